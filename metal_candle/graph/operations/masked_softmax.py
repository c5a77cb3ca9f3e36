"""Records of softmax together with what is done to the scores before it: a factor and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError, UnsupportedDTypeForOpError
from ...kernels.softmax import gradients, softmax
from ...kernels.softmax_backward import softmax_backward
from ...shape import resolve_dim
from ..operation import Gradients, Meta, Operation, Sample
from .filled_attention import takes_away
from .linalg import expect_floats


class MaskedSoftmax(Operation):
    """softmax(scale · x) over the last dim, or softmax(scale · x + mask): a mask of x's dtype that broadcasts to x."""

    arity = None
    samples = (
        Sample(((5, 123),), (0.5,)),
        Sample(((2, 3, 4, 7), (4, 7)), (-0.3,)),
        Sample(((2, 3, 4, 7), (2, 1, 1, 7)), (1.0,)),
        Sample(((7,), (1,)), (2.0,)),
    )
    work = "softmax"
    flops_per_element = 7
    scale: float

    def infer(self, x: Meta, *mask: Meta) -> Meta:
        expect_floats("masked_softmax", x, *mask)
        if len(mask) > 1:
            raise ShapeMismatchError(f"masked_softmax: got {1 + len(mask)} tensors; takes x and a mask")
        return _of_scores("masked_softmax", x, *mask)

    def lower(self, x: mx.array, *mask: mx.array) -> mx.array:
        return softmax.forward(x, self.scale, *mask)[0] if x.size else x

    @staticmethod
    def numpy(x: Any, *rest: Any) -> Any:
        *mask, scale = rest
        return _softmax(scale * x + sum(mask))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        if not output.size:
            return tuple(mx.zeros_like(x) if need else None for x, need in zip(inputs, needs))
        return gradients(output, cotangent, tuple(needs), self.scale, *inputs[1:])


class FilledSoftmax(Operation):
    """softmax(where(mask ≠ 0, scale · x, fill)) over the last dim; of ``hides`` where the mask is 0.

    A mask of integers that broadcasts to x, and one number of x's dtype. Filled with -inf, hidden scores are taken away
    in the same pass; any other number is left in the scores, which are then written once more.
    """

    arity = 3
    samples = (
        Sample(((2, 3, 4, 7), (4, 7), ()), (0.5, True), ids=((1, 2),)),
        Sample(((5, 9), (5, 9), (1,)), (-2.0, False), ids=((1, 3),)),
    )
    work = "softmax"
    flops_per_element = 7
    scale: float
    hides: bool

    def infer(self, x: Meta, mask: Meta, fill: Meta) -> Meta:
        expect_floats("filled_softmax", x, fill)
        if mask.dtype.is_float_:
            raise UnsupportedDTypeForOpError("filled_softmax", mask.dtype, "a mask of integers")
        if fill.shape.elem_count() != 1:
            raise ShapeMismatchError(f"filled_softmax: got {list(fill.shape)} to fill with; takes one number")
        return _of_scores("filled_softmax", x, mask)

    def lower(self, x: mx.array, mask: mx.array, fill: mx.array) -> mx.array:
        if not x.size:
            return x
        seen = self._seen(mask)
        if takes_away(fill):
            return softmax.forward(x, self.scale, seen)[0]
        scores = x if self.scale == 1 else x * self.scale
        return softmax.forward(mx.where(seen, scores, fill.reshape(())))[0]

    def _seen(self, mask: mx.array) -> mx.array:
        return mask == 0 if self.hides else mask != 0

    @staticmethod
    def numpy(x: Any, mask: Any, fill: Any, scale: float, hides: bool) -> Any:
        return _softmax(np.where((mask == 0) == hides, scale * x, fill.reshape(())))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        x, mask, fill = inputs
        if not x.size:
            return tuple(mx.zeros_like(each) if need else None for each, need in zip(inputs, needs))
        seen, nothing = self._seen(mask), mx.array(0, x.dtype)
        of_x = of_fill = None
        if needs[0]:
            of_x = mx.where(seen, softmax_backward(output, cotangent, self.scale, False), nothing)
        if needs[2]:
            hidden = mx.where(seen, nothing, softmax_backward(output, cotangent, 1.0, False))
            of_fill = hidden.astype(mx.float32).sum().astype(fill.dtype).reshape(fill.shape)
        return of_x, None, of_fill


def _of_scores(name: str, x: Meta, *masks: Meta) -> Meta:
    resolve_dim(-1, x.shape, name)
    for mask in masks:
        wanted = x.shape[len(x.shape) - len(mask.shape) :]
        if len(mask.shape) > len(x.shape) or any(a not in (1, b) for a, b in zip(mask.shape, wanted)):
            raise ShapeMismatchBinaryOpError(name, x.shape, mask.shape, "x (…, n) and a mask that broadcasts to it")
    return x


def _softmax(scores: Any) -> Any:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)
