"""Records that sort the last dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import UnexpectedNumberOfDimsError
from ..operation import Arrays, Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements


def _sorted_ids(x: mx.array, asc: bool) -> mx.array:
    """Ids that sort the last dim, equal elements in the order they stand in; NaN counts as the largest."""
    if mx.issubdtype(x.dtype, mx.floating):
        # A NaN with its sign bit set would come first where MLX sorts by bits.
        x = mx.where(mx.isnan(x), mx.array(float("nan"), x.dtype), x)
    if asc:
        return mx.argsort(x, axis=-1)
    # MLX has no descending order, and negating fits neither unsigned integers nor NaN: sorted from the far end,
    # then read from there, equal elements keep their order.
    back = mx.argsort(x[..., ::-1], axis=-1)[..., ::-1]
    return mx.array(x.shape[-1] - 1, mx.uint32) - back if x.size else back


def _comparisons(x: Meta) -> int:
    """n·log₂(n) for each row of n, the logarithm rounded up."""
    return elements(x) * max(0, x.shape[-1] - 1).bit_length()


class ArgSortLastDim(Operation):
    """The ids, U32, that sort the last dim: ascending if ``asc``, else descending.

    Equal elements keep their order in both directions (candle leaves it open), and NaN of either sign counts
    as larger than every number: last ascending, first descending, as in PyTorch. Raises
    ``UnexpectedNumberOfDimsError`` for a scalar.
    """

    candle = "Tensor::arg_sort_last_dim(&self, asc: bool) -> Result<Tensor>"
    methods = ("arg_sort_last_dim",)
    samples = (
        Sample(((7,),), (True,)),
        Sample(((5, 123),), (False,)),
        Sample(((2, 3, 4),), (True,)),
        Sample(((3, 0),), (False,)),
    )
    differentiable = False
    work = "sort"
    asc: bool

    @classmethod
    def bind(cls, x: Meta, asc: bool) -> Operation:
        return cls(bool(asc))

    def infer(self, x: Meta) -> Meta:
        if not x.shape:
            raise UnexpectedNumberOfDimsError("arg_sort_last_dim", "1 or more", x.shape)
        return Meta(x.shape, DType.U32)

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return self.work, _comparisons(inputs[0])

    def lower(self, x: mx.array) -> mx.array:
        return _sorted_ids(x, self.asc)

    @staticmethod
    def numpy(x: Any, asc: bool) -> Any:
        if asc:
            return np.argsort(x, axis=-1, kind="stable")
        return x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]


class SortLastDim(Operation):
    """The last dim sorted, and the ids, U32, that sort it: two results, in the order of ``arg_sort_last_dim``."""

    candle = "Tensor::sort_last_dim(&self, asc: bool) -> Result<(Tensor, Tensor)>"
    work = "sort"
    asc: bool

    def infer(self, x: Meta) -> Metas:
        if not x.shape:
            raise UnexpectedNumberOfDimsError("sort_last_dim", "1 or more", x.shape)
        return x, Meta(x.shape, DType.U32)

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return self.work, _comparisons(inputs[0])

    def vjp_steps(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "scatter", elements(inputs[0])

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return 0

    def lower(self, x: mx.array) -> Arrays:
        ids = _sorted_ids(x, self.asc)
        return mx.take_along_axis(x, ids, axis=-1), ids

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        # The ids are a permutation: no place is written twice.
        return (mx.put_along_axis(mx.zeros_like(inputs[0]), output[1], cotangent[0], axis=-1),)
