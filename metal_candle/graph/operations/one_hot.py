"""The record of one-hot encoding."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import InvalidIndexError
from ...shape import Shape
from ..operation import Meta, Operation, Sample
from .elementwise import scalar
from .ids import expect_ids


class OneHot(Operation):
    """Ids to rows of ``depth`` in a new last dim: ``on`` where the id says, else ``off``.

    An id of -1 gives a row of ``off``; any other outside raises ``InvalidIndexError`` when evaluated. Inside
    ``mx.compile``, where there are no values to look at, it gives such a row, too.
    """

    candle = "candle_nn::encoding::one_hot<D: WithDType>(indices: Tensor, depth: usize, on_value: D, off_value: D)"
    differentiable = False
    # Of integers: the derived tests take a float result to be of its inputs' dtype.
    samples = (
        Sample(((5,),), (7, 1, 0, DType.I32), ids=((0, 7),)),
        Sample(((2, 3),), (4, 0, 1, DType.U8), ids=((0, 4),)),
        Sample(((),), (3, 25, -1, DType.I32), ids=((0, 3),)),
        Sample(((0, 2),), (3, 1, 0, DType.U32), ids=((0, 3),)),
    )
    depth: int
    on: float
    off: float
    dtype: DType

    def infer(self, ids: Meta) -> Meta:
        expect_ids("one_hot", ids)
        return Meta(Shape((*ids.shape, self.depth)), self.dtype)

    def lower(self, ids: mx.array) -> mx.array:
        # In the ids' own dtype places beyond its range would wrap.
        wide = ids.astype(mx.int64)
        try:
            values = np.array(wide)
        except ValueError:  # traced
            pass
        else:
            wrong = values[(values < -1) | (values >= self.depth)]
            if wrong.size:
                raise InvalidIndexError("one_hot", int(wrong.flat[0]), self.depth)
        dtype = self.dtype.mlx_
        places = mx.arange(self.depth, dtype=mx.int64)
        return mx.where(wide[..., None] == places, scalar(self.on, dtype), scalar(self.off, dtype))

    @staticmethod
    def numpy(ids: Any, depth: int, on: float, off: float, dtype: DType) -> Any:
        return np.where(ids[..., None] == np.arange(depth), on, off)
