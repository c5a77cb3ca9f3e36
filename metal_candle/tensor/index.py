"""``t[...]`` and ``t.i(...)``: what may stand between the brackets and which operations it becomes."""

from __future__ import annotations

from typing import Any

from ..error import DimOutOfRangeError, Error, InvalidIndexError
from ..graph.operations.index import IndexSelect, Slice
from .base import TensorBase


def index(tensor: Any, at: Any) -> Any:
    """The part of ``tensor`` that ``at`` names.

    Takes ints (the dim is dropped), slices, ``...``, ``None`` (a new dim of size 1), 1-D tensors of ids, and
    tuples of these. Raises ``InvalidIndexError`` and ``DimOutOfRangeError``.
    """
    items = list(at) if isinstance(at, tuple) else [at]
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    if consumed > tensor.rank:
        raise DimOutOfRangeError("index", tensor.shape, consumed - 1)
    if sum(item is Ellipsis for item in items) > 1:
        raise Error("index: got two `...`; takes one")
    if Ellipsis in [item for item in items if not isinstance(item, TensorBase)]:
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (tensor.rank - consumed)

    bounds: list[tuple[int, int, int]] = []
    selected: list[tuple[int, TensorBase]] = []
    shape: list[int] = []
    for item in items:
        if item is None:
            shape.append(1)
            continue
        size = tensor.shape[len(bounds)]
        if isinstance(item, bool) or not isinstance(item, (int, slice, TensorBase)):
            raise Error(f"index: got {type(item).__name__}; takes ints, slices, `...`, None and 1-D tensors of ids")
        if isinstance(item, int):
            if not -size <= item < size:
                raise InvalidIndexError("index", item, size)
            start = item % size
            bounds.append((start, start + 1, 1))
        elif isinstance(item, slice):
            kept = range(*item.indices(size))
            # Of none or one element neither the step nor the far bound matters, and MLX takes no huge ones.
            bounds.append((kept.start, kept.stop, kept.step) if len(kept) > 1 else _run(kept))
            shape.append(len(kept))
        else:
            selected.append((len(bounds), item))
            bounds.append((0, size, 1))
            shape.append(item.elem_count())
    shape += tensor.shape[len(bounds) :]
    result = tensor
    if any(b != (0, size, 1) for b, size in zip(bounds, tensor.shape)):
        result = result._record(Slice(tuple(bounds)))
    for dim, ids in selected:
        result = result._record(IndexSelect(dim), ids)
    return result if tuple(result.shape) == tuple(shape) else result.reshape(tuple(shape))


def _run(kept: range) -> tuple[int, int, int]:
    return (kept[0], kept[0] + 1, 1) if kept else (0, 0, 1)
