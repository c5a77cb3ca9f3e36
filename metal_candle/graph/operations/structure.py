"""Records that hold a graph together: leaves, the parts of a result, and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...device import Device
from ...dtype import DType
from ...error import TrainingError, UnsupportedDTypeForOpError
from ...layout import Layout
from ..operation import Arrays, Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements


class Input(Operation):
    """A leaf: a tensor that is already there, or a placeholder that ``compile`` fills."""

    arity = 0
    work = "view"

    def infer(self) -> Meta:
        raise TrainingError.Failed(reason="Input: it is a value already; its tensor has shape and dtype")


class Pick(Operation):
    """One result of an operation that has several."""

    work = "view"
    index: int

    def infer(self, several: Any) -> Meta:
        meta: Meta = several[self.index]
        return meta

    def lower(self, several: Any) -> mx.array:
        result: mx.array = several[self.index]
        return result


class Vjp(Operation):
    """The gradients of ``operation`` for the inputs that ``needs`` marks; several results if these are several.

    Inputs: the cotangents of the results that have one (``present``), the operation's inputs, its result.
    """

    arity = None
    differentiable = False  # gradients of gradients are out of scope, as in candle
    operation: Operation
    needs: tuple[bool, ...]
    present: tuple[bool, ...]

    def infer(self, *metas: Any) -> Metas:
        inputs = metas[sum(self.present) : -1]
        found = tuple(meta for meta, need in zip(inputs, self.needs) if need)
        return found if len(found) > 1 else found[0]

    def lower(self, *arrays: Any) -> Arrays:
        count = sum(self.present)
        given, inputs, output = iter(arrays[:count]), arrays[count:-1], arrays[-1]
        cotangents = tuple(next(given) if present else None for present in self.present)
        several = isinstance(output, tuple) and self.operation.lower_and_save is None
        gradients = self.operation.vjp(cotangents if several else cotangents[0], inputs, output, self.needs)
        found = []
        for i, need in enumerate(self.needs):
            if need:
                gradient = gradients[i]
                found.append(mx.zeros_like(inputs[i]) if gradient is None else gradient)
        return tuple(found) if len(found) > 1 else found[0]

    def is_lasting(self) -> bool:
        return self.operation.is_lasting()

    def name(self) -> str:
        return f"{self.operation.name()}.vjp"

    def _of(self, metas: Sequence[Metas]) -> tuple[Sequence[Metas], Metas, tuple[bool, ...]]:
        return metas[sum(self.present) : -1], metas[-1], self.needs

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        return self.operation.vjp_steps(*self._of(inputs))

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return self.operation.vjp_flops(*self._of(inputs))

    def traffic(self, inputs: Sequence[Metas], output: Metas) -> int:
        return self.operation.vjp_traffic(*self._of(inputs))

    def uses_blas(self) -> bool:
        return self.operation.uses_blas()


class Detach(Operation):
    """The same values, cut off from the gradient."""

    candle = "Tensor::detach(&self) -> Tensor"
    methods = ("detach",)
    samples = (Sample(((),)), Sample(((0, 3),)), Sample(((5, 123),)))
    numpy = np.asarray
    differentiable = False
    is_view = True

    def infer(self, x: Meta) -> Meta:
        return x

    def relayout(self, layout: Layout) -> Layout:
        return layout

    def lower(self, x: mx.array) -> mx.array:
        return x


class ToDevice(Operation):
    """The same values on another device; memory that both share is not copied."""

    candle = "Tensor::to_device(&self, device: &Device) -> Result<Tensor>"
    work = "view"
    device: Device

    def infer(self, x: Meta) -> Meta:
        if x.dtype is DType.F64 and not self.device.is_cpu():
            raise UnsupportedDTypeForOpError("to_device", x.dtype, f"bf16, f16, f32 or an integer on {self.device}")
        return x

    def lower(self, x: mx.array) -> mx.array:
        return x

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent,)


class Contiguous(Operation):
    """The same values in row-major order, copied only if they are not so already."""

    candle = "Tensor::contiguous(&self) -> Result<Tensor>"
    methods = ("contiguous",)
    samples = (Sample(((),)), Sample(((0, 3),)), Sample(((5, 123),)))
    numpy = np.asarray
    is_view = True
    work = "move"

    def infer(self, x: Meta) -> Meta:
        return x

    def steps(self, inputs: Sequence[Metas], output: Metas) -> tuple[Work, int]:
        # A copy by strides, as which it is counted: what is in order already costs nothing.
        return "select", elements(output)

    def relayout(self, layout: Layout) -> Layout | None:
        return layout if layout.is_contiguous() else None

    def lower(self, x: mx.array) -> mx.array:
        return mx.contiguous(x)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent,)
