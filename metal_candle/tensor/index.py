"""``t[...]``, ``t.i(...)`` and the ranges of ``slice_assign``: what may stand there and what it becomes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from types import NoneType
from typing import Any

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..error import (
    ArgumentTypeError,
    ArgumentValueError,
    DimOutOfRangeError,
    InvalidIndexError,
    ShapeMismatchError,
)
from ..error.text import described, shown
from ..graph.node import leaf, record
from ..graph.operation import Meta, Operation
from ..graph.operations.index import IndexSelect
from ..graph.operations.part import Slice
from ..shape import Shape
from .base import TensorBase

_RANGES = "takes slices, pairs of integers and integers"
_TAKES = "takes ints, slices, `...`, None, lists and tensors of ids"


def index(tensor: Any, at: Any) -> Any:
    """The part of ``tensor`` that ``at`` names, which is one of these or a tuple of them:

    - an int, which drops its dim; negative ones count from the end;
    - a slice with any step, clamped as Python's are; ``...``, the dims between; ``None``, a new dim of size 1;
    - ids: a tensor of any rank whose dtype is U8, U32, I32 or I64, whose dims take the place of its dim (one of
      rank 0 drops it), as in ``index_select``: the dtype's largest value gives zeros, others outside raise when
      the values are there; or a list, a ``range`` or a NumPy array of ints, where negative ones count from the
      end.

    Every item acts on its own dim: ids in several dims give every combination of them, as in candle. NumPy would
    pair them off; ``gather`` or ``flatten`` with computed ids does that.

    Raises ``InvalidIndexError``, ``DimOutOfRangeError`` for too many items, and ``Error`` for anything else, such
    as a U8 mask of the tensor's own shape: ``where_cond`` chooses by condition.
    """
    items = at if type(at) is tuple else (at,)
    key = _key(items)
    if key is not None:
        view = _view(tensor._node.meta, key)
        return tensor if view is None else tensor._wrap(record(view[0], (tensor._node,), None, view[1]))
    bounds, dims, picked = _resolved(items, tensor.shape)
    shape: list[int] = []
    for dim in dims:
        if dim in picked:
            ids = picked[dim]
            picked[dim] = ids = ids if isinstance(ids, TensorBase) else _ids(tensor, ids, tensor.shape[dim])
            shape += ids.shape
        else:
            shape.append(1 if dim < 0 else len(range(*bounds[dim])))
    result = tensor
    if any(b != (0, size, 1) for b, size in zip(bounds, tensor.shape)):
        result = result._record(Slice(tuple(bounds)))
    for dim, ids in picked.items():
        result = result._record(IndexSelect(dim), ids if len(ids.shape) == 1 else ids.reshape((ids.elem_count(),)))
    return result if tuple(result.shape) == tuple(shape) else result.reshape(tuple(shape))


def _key(items: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The items of an index as values that can be remembered; ``None`` where ids are among them."""
    key: tuple[Any, ...] = ()
    for item in items:
        kind = type(item)
        if kind is slice:
            bounds = (item.start, item.stop, item.step)
            if any(type(bound) not in (int, NoneType) for bound in bounds):
                return None
            key += (bounds,)
        elif kind is int or item is None or item is Ellipsis:
            key += (item,)
        else:
            return None
    return key


@functools.lru_cache(1024)
def _view(meta: Meta, key: tuple[Any, ...]) -> tuple[Operation, Meta] | None:
    """The one operation of an index without ids, with what it gives; ``None`` if that is the whole tensor.

    One view, so that writing through it in place reaches the tensor; remembered, because loops ask again.
    """
    items = tuple(slice(*item) if type(item) is tuple else item for item in key)
    bounds, dims, _ = _resolved(items, meta.shape)
    whole = all(b == (0, size, 1) for b, size in zip(bounds, meta.shape))
    if whole and dims == list(range(len(meta.shape))):
        return None
    operation = Slice(() if whole else tuple(bounds), tuple(dims))
    return operation, operation.infer(meta)


def _resolved(items: tuple[Any, ...], shape: Shape) -> tuple[list[tuple[int, int, int]], list[int], dict[int, Any]]:
    """What the items ask for: each dim's bounds, the result's dims (-1 for a new one), and the ids by their dim."""
    bounds: list[tuple[int, int, int]] = []
    dims: list[int] = []
    picked: dict[int, Any] = {}
    for item in _full(items, shape):
        if item is None:
            dims.append(-1)
            continue
        size = shape[len(bounds)]
        if isinstance(item, int):
            start = _position(item, size)
            bounds.append((start, start + 1, 1))
            continue
        dims.append(len(bounds))
        if isinstance(item, slice):
            kept = _kept(item, size)
            # Of none or one element neither the step nor the far bound matters, and MLX takes no huge ones.
            bounds.append((kept.start, kept.stop, kept.step) if len(kept) > 1 else _run(kept))
        else:
            picked[len(bounds)] = item
            bounds.append((0, size, 1))
    for dim in range(len(bounds), len(shape)):
        dims.append(dim)
        bounds.append((0, shape[dim], 1))
    return bounds, dims, picked


def _full(given: tuple[Any, ...], shape: Shape) -> list[Any]:
    """The items of an index, each an int, a slice, None, a tensor or a NumPy array; no ``...`` any more."""
    items = [_item(item) for item in given]
    if len(items) == 1 and isinstance(items[0], TensorBase):
        mask = items[0]
        if mask.dtype is DType.U8 and mask.shape and mask.shape == shape:
            raise ArgumentValueError(
                f"index: got a u8 tensor of the tensor's own shape {tuple(mask.shape)}, as masks have; "
                "where_cond chooses by condition, index_select takes u8 ids"
            )
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    if consumed > len(shape):
        raise DimOutOfRangeError("index", shape, consumed - 1)
    places = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(places) > 1:
        raise ArgumentValueError("index: got two `...`; takes one")
    for place in places:
        items[place : place + 1] = [slice(None)] * (len(shape) - consumed)
    return items


def _item(item: Any) -> Any:
    if item is None or item is Ellipsis or isinstance(item, (slice, TensorBase)):
        return item
    if isinstance(item, (list, range, np.ndarray)):
        try:
            ids = np.asarray(item)
        except (ValueError, OverflowError) as error:
            raise ArgumentValueError(f"index: got lists of different lengths or huge numbers; {_TAKES}") from error
        if not ids.size and not isinstance(item, np.ndarray):
            ids = ids.astype(np.int64)
        if ids.dtype.kind in "iu":
            return ids
        hint = "; where_cond chooses by condition" if ids.dtype.kind == "b" else ""
        raise ArgumentTypeError(f"index: got {type(item).__name__} of {ids.dtype}; {_TAKES}{hint}")
    if isinstance(item, (bool, np.bool_)):
        raise ArgumentTypeError(f"index: got bool; {_TAKES}; where_cond chooses by condition")
    try:
        return operator.index(item)
    except TypeError:
        raise ArgumentTypeError(f"index: got {type(item).__name__}; {_TAKES}") from None


def _position(item: int, size: int) -> int:
    """An int, negative ones from the end, as a place in a dim. Raises ``InvalidIndexError``."""
    if not -size <= item < size:
        raise InvalidIndexError("index", item, size)
    return item + size if item < 0 else item


def _kept(item: slice, size: int) -> range:
    try:
        return range(*item.indices(size))
    except TypeError as error:
        raise ArgumentTypeError(f"index: got {shown(item)}; {error}") from None
    except ValueError as error:
        raise ArgumentValueError(f"index: got {shown(item)}; {error}") from None


def _run(kept: range) -> tuple[int, int, int]:
    return (kept[0], kept[0] + 1, 1) if kept else (0, 0, 1)


def _ids(tensor: Any, ids: np.ndarray[Any, Any], size: int) -> Any:
    """Known ids, negative ones from the end, as a tensor. Raises ``InvalidIndexError``."""
    wrong = ids[(ids >= size) | ((ids < -size) if ids.dtype.kind == "i" else False)]
    if wrong.size:
        raise InvalidIndexError("index", int(wrong.flat[0]), size)
    places = ids.astype(np.int64)
    return tensor._wrap(leaf(mx.array(np.where(places < 0, places + size, places)), tensor.device))


def block(ranges: Any, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Where ``slice_assign``'s ranges begin and end, one for each dim.

    A range is a slice or a ``range`` of step 1, a pair ``(start, end)``, or an int for one place; negative
    numbers count from the end. Raises ``ShapeMismatchError`` for another number of them, for one that is empty
    or leaves its dim: nothing is clamped.
    """
    listed = ranges if isinstance(ranges, (tuple, list)) else (ranges,)
    if listed is not ranges and not isinstance(ranges, (slice, range)) and not hasattr(ranges, "__index__"):
        raise ArgumentTypeError(f"slice_assign: got {described(ranges)} for the ranges; {_RANGES}")
    if len(listed) != len(shape):
        raise ShapeMismatchError(
            f"slice_assign: got {len(listed)} ranges for shape {tuple(shape)}; takes one for each dim"
        )
    found = []
    for dim, (item, size) in enumerate(zip(listed, shape)):
        start, end, step = _ends(item, size)
        if step != 1 or not 0 <= start < end <= size:
            raise ShapeMismatchError(
                f"slice_assign: got range {item} in dim {dim} of shape {tuple(shape)}; "
                "takes ranges of step 1, not empty, inside the dim"
            )
        found.append((start, end))
    return found


def _ends(item: Any, size: int) -> tuple[int, int, int]:
    """Start, end and step of one range, negative numbers counted from the end."""
    step = None
    if isinstance(item, (slice, range)):
        first, last, step = item.start, item.stop, item.step
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        first, last = item
    else:
        first, last = item, None
    try:
        start = 0 if first is None else operator.index(first)
        start = start + size if start < 0 else start
        end = size if last is None else operator.index(last)
        end = end + size if end < 0 else end
    except TypeError:
        raise ArgumentTypeError(f"slice_assign: got {described(item)} for a range; {_RANGES}") from None
    if first is item:
        end = start + 1
    return start, end, 1 if step is None else step
