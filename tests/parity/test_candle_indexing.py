"""``t[...]`` of candle's binding beside ours: ints, slices, lists, tensors, ``None`` and a leading ``...``, mixed."""

from __future__ import annotations

from typing import Any

from metal_candle import DType
from metal_candle.tensor.base import TensorBase

import numpy as np
from both import KINDS, Operand, Raised, agree, assert_same, candle, counted, ours, theirs
from hypothesis import assume, given, settings
from hypothesis import strategies as st


class Ids:
    """A 1-D tensor of ids, to be made for either side."""

    def __init__(self, ids: list[int], dtype: DType) -> None:
        self.operand = Operand(np.array(ids, np.int64), dtype)

    def __repr__(self) -> str:
        return f"Ids({self.operand.values.tolist()}, {self.operand.dtype})"


def made(at: Any, like: Any) -> Any:
    """The index for a tensor of either side."""
    if isinstance(at, tuple):
        return tuple(made(item, like) for item in at)
    if isinstance(at, Ids):
        return at.operand.ours(type(like)) if isinstance(like, TensorBase) else at.operand.theirs()
    return at


def items(size: int) -> st.SearchStrategy[Any]:
    """What may index a dim of this size; now and then what may not."""
    bound = st.none() | st.integers(-size - 2, size + 2)
    ids = st.lists(st.integers(0, size - 1), min_size=1, max_size=4)
    # Bytes may look like a mask, and negative ids in lists are one of the differences.
    tensors = st.builds(Ids, ids, st.sampled_from([DType.U32, DType.I64]))
    return st.one_of(
        st.integers(-size - 1, size), st.integers(-size, size - 1), st.builds(slice, bound, bound), ids, tensors
    )


@st.composite
def indices(draw: Any, shape: tuple[int, ...]) -> Any:
    """An index with an item for some of the dims, from the first on or, behind ``...``, up to the last.

    The binding takes ``...`` for one dim at least and for the dims of ``None``, too: these are differences.
    """
    from_end = draw(st.booleans())
    count = draw(st.integers(0, len(shape) - from_end))
    sizes = shape[len(shape) - count :] if from_end else shape[:count]
    found: list[Any] = [draw(items(size)) for size in sizes]
    if from_end:
        return (..., *found)
    for place in sorted(draw(st.lists(st.integers(0, count), max_size=2)), reverse=True):
        found.insert(place, None)
    return found[0] if len(found) == 1 and draw(st.booleans()) else tuple(found)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_indexing(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    at = data.draw(indices(shape))
    operand = counted(*shape)
    want = theirs(lambda t: t[made(at, t)], operand)
    # Ids of a slice: candle wants a copy first, which is one of the differences.
    assume(not (isinstance(want, Raised) and "RequiresContiguous" in str(want.error)))
    for kind in KINDS:
        assert_same(want, ours(kind, lambda t: t[made(at, t)], operand))


def test_too_many_items_and_what_is_no_index() -> None:
    for at in [(0, 0, 0), (..., 0, 0, 0), "a", 1.5, (0, "a"), [0.5]]:
        agree(lambda t, at=at: t[at], None, [counted(2, 3)])


def test_the_binding_is_the_reference() -> None:
    # That both sides do index: one value by hand.
    assert candle.Tensor([[1.0, 2.0], [3.0, 4.0]])[1, 0].values() == 3.0
