"""Records of functions of MLX arrays that MLX itself differentiates: a whole network of another library, say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from ...error import BackwardNotSupportedError
from ..operation import Gradients, Meta, Metas, Operation


class Computation(Protocol):
    """What such a record computes. Two records are equal if they hold the same object."""

    name: str

    def infer(self, *inputs: Meta) -> Meta:
        """Shape and dtype of the result. Raises the error a user should see where inputs do not fit."""

    def compute(self, *inputs: mx.array, differentiated: bool) -> mx.array:
        """The result; ``differentiated`` says that ``mx.vjp`` runs through it."""

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        """Floating-point operations of one call."""


class MlxFunction(Operation):
    """What an object computes on MLX arrays, differentiated by ``mx.vjp``, which computes it once more."""

    arity = None
    lasting = False
    work = "product"
    computation: Any

    def name(self) -> str:
        return str(self.computation.name)

    def describe(self) -> str:
        return self.name()

    def infer(self, *inputs: Meta) -> Meta:
        meta: Meta = self.computation.infer(*inputs)
        return meta

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return int(self.computation.flops(inputs, output))

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return 2 * self.flops(inputs, output)

    def lower(self, *inputs: mx.array) -> mx.array:
        result: mx.array = self.computation.compute(*inputs, differentiated=False)
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return self._differentiated(cotangent, inputs, needs)[1]

    def _differentiated(
        self, cotangent: mx.array, inputs: Sequence[mx.array], needs: Sequence[bool]
    ) -> tuple[mx.array, Gradients]:
        """The result and the gradients that ``needs`` marks. Nothing is walked that no marked input leads to."""
        wanted = [i for i, need in enumerate(needs) if need]

        def function(*chosen: mx.array) -> mx.array:
            full = list(inputs)
            for i, value in zip(wanted, chosen):
                full[i] = value
            result: mx.array = self.computation.compute(*full, differentiated=True)
            return result

        try:
            (result,), found = mx.vjp(function, [inputs[i] for i in wanted], [cotangent])
        except ValueError as error:
            if "VJP" not in str(error) and "Not implemented" not in str(error):
                raise
            raise BackwardNotSupportedError(f"{self.name()} ({error})") from error
        gradients: list[mx.array | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, found):
            gradients[i] = gradient
        return result, tuple(gradients)


class MlxLoss(MlxFunction):
    """An ``MlxFunction`` whose result is a number: where a gradient is taken in the same plan it is computed once.

    A number's gradient is known up to a factor before the number is used, so that value and gradients of the inputs
    from ``first`` on come from one ``mx.vjp``.
    """

    first: int

    def lower_and_save(self, *inputs: mx.array) -> tuple[mx.array, ...]:
        needs = [i >= self.first for i in range(len(inputs))]
        value, gradients = self._differentiated(mx.ones((), mx.float32), inputs, needs)
        return (value, *(gradient for gradient in gradients if gradient is not None))

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        if any(needs[: self.first]) or not isinstance(output, tuple) or len(output) == 1:
            return super().vjp(cotangent, inputs, output, needs)
        saved = (None,) * self.first + output[1:]
        return tuple(
            (gradient * cotangent).astype(gradient.dtype) if need and gradient is not None else None
            for gradient, need in zip(saved, needs)
        )
