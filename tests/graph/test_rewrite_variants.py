"""Every rewrite's examples with their inputs in other shapes, orders and values: what fires gives the same results.

A rule that reads less than it relies on fires where it should not, and its value or its gradient is another there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from metal_candle import Error, LazyTensor, Tensor, Var, features
from metal_candle.graph.plans import apply_rules
from metal_candle.graph.rewrite import Example, Log, Pass
from metal_candle.graph.rewrites import PASSES, vocabulary_head
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of

import numpy as np
import pytest
from rewriting import where_computed, where_planned

CASES = [
    pytest.param(each, example, id=f"{each.name}-{i}") for each in PASSES for i, example in enumerate(each.examples)
]
# Of values of about 1, by the narrowest float on the way. A norm of equal elements divides by the root of its eps, so
# by 1/300: as many roundings, of float32 6e-8 each, at each of several steps.
TOLERANCE = {"f64": 1e-11, "f32": 1e-3, "bf16": 6e-2, "f16": 6e-3}
# Sizes of the examples that have to be large, and what they are here; see small_heads.
SMALLER = {2050: 10, 1025: 5}
SQUARE = 4

View = Callable[[Any], Any]
Shapes = tuple[tuple[int, ...], ...]


class Variant(NamedTuple):
    """An example's leaves by shape, and what is done to each before the example's function takes it."""

    words: str
    shapes: Shapes
    views: tuple[View, ...]


def _as_it_is(x: Any) -> Any:
    return x


def _reversed(dim: int) -> View:
    return lambda x: x[(*(slice(None),) * dim, slice(None, None, -1))]


def _swapped(a: int, b: int) -> View:
    return lambda x: x.transpose(a, b)


def _widened(shape: tuple[int, ...]) -> View:
    return lambda x: x.broadcast_as(shape)


def _given(shapes: Shapes, i: int, words: str, leaf: tuple[int, ...], view: View = _as_it_is) -> Variant:
    """The example's inputs, but for one: a view of a leaf of another shape, or of its own."""
    views = [view if place == i else _as_it_is for place in range(len(shapes))]
    return Variant(f"input {i} {words}", (*shapes[:i], leaf, *shapes[i + 1 :]), tuple(views))


def _changed(shapes: Shapes) -> Iterator[Variant]:
    for i, shape in enumerate(shapes):
        yield _given(shapes, i, "in 1", (1, *shape))
        yield _given(shapes, i, "in 2", (2, *shape))
        yield _given(shapes, i, "repeated 2 times", shape, _widened((2, *shape)))
        if len(shape) > 1:
            yield _given(shapes, i, "laid out by columns", (*shape[:-2], shape[-1], shape[-2]), lambda x: x.t())
        for dim, size in enumerate(shape):
            other = (*shape[:dim], 3 if size == 1 else 1, *shape[dim + 1 :])
            yield _given(shapes, i, f"{list(other)}", other)
            small, large = (shape, other) if size == 1 else (other, shape)
            yield _given(shapes, i, f"broadcast from {list(small)}", small, _widened(large))
            yield _given(shapes, i, f"with dim {dim} reversed", shape, _reversed(dim))


def _turned(shapes: Shapes) -> Iterator[Variant]:
    for i, shape in enumerate(shapes):
        for a, b in itertools.combinations(range(len(shape)), 2):
            if shape[a] == shape[b]:
                yield _given(shapes, i, f"of {list(shape)} with dims {a} and {b} swapped", shape, _swapped(a, b))


def _as_written(example: Example) -> Variant:
    shapes = tuple(tuple(SMALLER.get(size, size) for size in shape) for shape in example.shapes)
    return Variant("as it is", shapes, (_as_it_is,) * len(shapes))


def _variants_of(example: Example) -> Iterator[Variant]:
    """As written, otherwise shaped, turned; and with all sizes equal, so that whatever is swapped or mistaken fits."""
    written = _as_written(example)
    yield written
    yield from _changed(written.shapes)
    yield from _turned(written.shapes)
    square = tuple(tuple(1 if size == 1 else SQUARE for size in shape) for shape in written.shapes)
    if square != written.shapes:
        yield written._replace(words="square", shapes=square)
        yield from _turned(square)


def _leaves(example: Example, variant: Variant, dtype: str) -> list[Any]:
    rng = np.random.default_rng(0)
    integers = dict(example.ids)
    made: list[Any] = []
    for i, shape in enumerate(variant.shapes):
        if i in integers:
            below = min(SMALLER.get(integers[i], integers[i]), SQUARE)
            made.append(Tensor(rng.integers(0, below, shape).astype(np.uint32)))
        else:
            made.append(Var.from_tensor(Tensor(rng.uniform(-1, 1, shape)).to_dtype(dtype)))
    return made


def _recorded(example: Example, variant: Variant, leaves: list[Any]) -> LazyTensor | None:
    """What the function makes of the leaves; ``None`` if it does not take them."""
    try:
        inputs = [view(LazyTensor.from_tensor(leaf)) for view, leaf in zip(variant.views, leaves)]
        y: LazyTensor = example.before(*inputs)
    except (Error, ValueError, IndexError):  # Python's, of "a, b = x.chunk(2)" that is one part
        return None
    return y


def _own_rules(each: Pass, example: Example, y: LazyTensor) -> bool:
    """Whether a rule of this pass is applied."""
    log = Log()
    with where_planned(example):
        apply_rules(terms_of(survey([y._node])), log)
    return not {each.name, *(rule.name for rule in each.rules)}.isdisjoint(entry.rule for entry in log.fired)


def _narrowest(y: LazyTensor) -> float:
    """The tolerance of the narrowest float that is computed with."""
    return max(TOLERANCE[str(term.dtype)] for term in terms_of(survey([y._node])).order if term.dtype.is_float_)


def _results(example: Example, variant: Variant, leaves: list[Any]) -> list[np.ndarray[Any, Any] | None]:
    """The value and the gradients of the leaves."""
    y = _recorded(example, variant, leaves)
    assert y is not None
    weights = LazyTensor.new(np.random.default_rng(1).uniform(-1, 1, y.shape)).to_dtype(y.dtype)
    grads = (y * weights).sum_all().backward()
    results = [y, *(grads.get(leaf) for leaf in leaves if isinstance(leaf, Var))]
    return [None if result is None else result.to_dtype("f64").numpy() for result in results]


def _plain(example: Example, variant: Variant, leaves: list[Any]) -> list[np.ndarray[Any, Any] | None] | None:
    """The same without rewriting; ``None`` if that raises: an id beyond the size, say."""
    with features.disabled("rewrite"):
        try:
            return _results(example, variant, leaves)
        except Error:
            return None


@pytest.fixture(autouse=True)
def small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_head, "LEAST_LOGITS", 1)


@pytest.mark.parametrize(("each", "example"), CASES)
def test_inputs_of_other_shapes_and_orders(each: Pass, example: Example) -> None:
    for variant in _variants_of(example):
        leaves = _leaves(example, variant, "f64")
        y = _recorded(example, variant, leaves)
        if y is None or not _own_rules(each, example, y):
            continue
        tolerance = _narrowest(y)
        expected = _plain(example, variant, leaves)
        if expected is None:
            continue
        with where_computed(example):
            found = _results(example, variant, leaves)
        for i, (got, want) in enumerate(zip(found, expected)):
            assert (got is None) == (want is None), (variant.words, i)
            if got is not None and want is not None:
                scale = max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0.0)))
                np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=f"{variant.words}, {i}")


class Exemption(NamedTuple):
    """Where a pass may give another NaN or infinity, of what it is given, and why."""

    special: tuple[str, ...]
    values: bool
    reason: str


SPECIAL = {"0": 0.0, "inf": math.inf, "-inf": -math.inf, "nan": math.nan, "huge": 1e30}
EXEMPT = {
    "softmax": Exemption(
        ("-inf",),
        False,
        "a row of -inf is NaN either way; the gradient of its log-sum-exp takes no share of that, log_softmax's does",
    ),
    "cross_entropy": Exemption(
        ("inf", "-inf", "nan"), False, "a row of which nothing is picked has no gradient; log_softmax's is 0 times NaN"
    ),
    "norm": Exemption(
        ("huge",), False, "squares overflow: a root of their reciprocal, 0, has no gradient; the norm's is 0"
    ),
    "gate": Exemption(("-inf",), False, "1 + exp(-x) overflows, and its gradient is NaN; the sigmoid's is 0"),
    "product_order": Exemption(
        ("inf", "-inf", "huge"), True, "inf times 0, or inf minus inf, comes in one order of the products only"
    ),
}


def _with_special(leaf: Any, name: str) -> Any:
    values = leaf.numpy().copy()
    # The last row, but of 0 all of them.
    place = slice(None) if name == "0" else -1
    values.reshape(-1, values.shape[-1])[place] = SPECIAL[name]
    return Var.from_tensor(Tensor(values))


def _places(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 where finite, 1 and -1 where infinite, 2 where NaN."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


@pytest.mark.parametrize("each", PASSES, ids=lambda each: each.name)
def test_nan_and_infinity_stay_where_they_are(each: Pass) -> None:
    exempt = EXEMPT.get(each.name, Exemption((), False, ""))
    needed: set[str] = set()
    for number, example in enumerate(each.examples):
        variant = _as_written(example)
        leaves = _leaves(example, variant, "f32")
        y = _recorded(example, variant, leaves)
        if y is None or not _own_rules(each, example, y):
            continue
        floats = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Var) and leaf.shape]
        for i, name in itertools.product(floats, SPECIAL):
            given = [*leaves[:i], _with_special(leaves[i], name), *leaves[i + 1 :]]
            expected = _plain(example, variant, given)
            assert expected is not None
            with where_computed(example):
                found = _results(example, variant, given)
            for place, (got, want) in enumerate(zip(found, expected)):
                if got is None or want is None or np.array_equal(_places(got), _places(want)):
                    continue
                where = f"example {number}, input {i} of {name}, result {place}"
                assert name in exempt.special, where
                assert place > 0 or exempt.values, where
                needed.add(name)
    assert needed == set(exempt.special)
