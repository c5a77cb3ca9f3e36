"""Records that hold a graph together: leaves, the parts of a result, and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..operation import Arrays, Gradients, Meta, Metas, Operation


class Input(Operation):
    """A leaf: a tensor that is already there, or a placeholder that ``compile`` fills."""

    arity = 0


class Pick(Operation):
    """One result of an operation that has several."""

    index: int

    def infer(self, several: Any) -> Meta:
        meta: Meta = several[self.index]
        return meta

    def lower(self, several: Any) -> mx.array:
        result: mx.array = several[self.index]
        return result


class Vjp(Operation):
    """The gradients of ``operation`` for the inputs that ``needs`` marks, as several results.

    Inputs: the cotangents of the results that have one (``present``), the operation's inputs, its result.
    """

    arity = None
    differentiable = False  # gradients of gradients are out of scope, as in candle
    operation: Operation
    needs: tuple[bool, ...]
    present: tuple[bool, ...]

    def infer(self, *metas: Any) -> Metas:
        inputs = metas[sum(self.present) : -1]
        return tuple(meta for meta, need in zip(inputs, self.needs) if need)

    def lower(self, *arrays: Any) -> Arrays:
        count = sum(self.present)
        given, inputs, output = iter(arrays[:count]), arrays[count:-1], arrays[-1]
        cotangents = tuple(next(given) if present else None for present in self.present)
        several = isinstance(output, tuple)
        gradients = self.operation.vjp(cotangents if several else cotangents[0], inputs, output, self.needs)
        found = []
        for i, need in enumerate(self.needs):
            if need:
                gradient = gradients[i]
                found.append(mx.zeros_like(inputs[i]) if gradient is None else gradient)
        return tuple(found)

    def name(self) -> str:
        return f"{self.operation.name()}.vjp"


class Detach(Operation):
    """The same values, cut off from the gradient."""

    candle = "Tensor::detach(&self) -> Tensor"
    methods = ("detach",)
    differentiable = False

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        return x


class Contiguous(Operation):
    """The same values in row-major order, copied only if they are not so already."""

    candle = "Tensor::contiguous(&self) -> Result<Tensor>"
    methods = ("contiguous",)

    def infer(self, x: Meta) -> Meta:
        return x

    def lower(self, x: mx.array) -> mx.array:
        return mx.contiguous(x)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return (cotangent,)
