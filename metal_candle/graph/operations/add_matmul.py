"""The record of a matrix product that is added to something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...error import ShapeMismatchBinaryOpError
from ...kernels.add_matmul import add_matmul, slower
from ...shape import broadcast_shapes
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements
from .linalg import Matmul, expect_floats, product_flops


class AddMatmul(Operation):
    """alpha · (a · b) + beta · c: a ``(…, m, k)``, b ``(…, k, n)``, c broadcast to their product ``(…, m, n)``.

    Leading dims of a and b broadcast as in ``broadcast_matmul``. Halves are added up in float32 and rounded once. A k
    of 0 gives beta · c.
    """

    arity = 3
    samples = (
        Sample(((5, 13), (13, 3), (5, 3)), (1.0, 1.0)),
        Sample(((5, 13), (13, 3), (3,)), (1.0, 1.0)),
        Sample(((3, 4), (4, 7), (7,)), (0.5, -2.0)),
        Sample(((5, 13), (13, 3), (5, 1)), (-1.5, 0.25)),
        Sample(((2, 3, 4), (2, 4, 5), (2, 3, 5)), (0.5, 1.0)),
        Sample(((2, 3, 4), (4, 5), (2, 3, 5)), (1.0, 2.0)),
        Sample(((2, 3, 4), (4, 5), (1, 1, 5)), (1.0, 1.0)),
        Sample(((2, 1, 3, 4), (5, 4, 2), (3, 2)), (2.0, 1.0)),
        Sample(((4, 3), (2, 3, 5), ()), (1.0, 3.0)),
        Sample(((3, 0), (0, 2), (2,)), (2.0, 0.5)),
        Sample(((0, 3), (3, 2), (2,)), (1.0, 1.0)),
    )
    work = "product"
    alpha: float
    beta: float

    def infer(self, a: Meta, b: Meta, c: Meta) -> Meta:
        expect_floats("add_matmul", a, b, c)
        product = Matmul().infer(a, b)
        if c.shape != product.shape:
            try:
                fits = broadcast_shapes(c.shape, product.shape, "add_matmul") == product.shape
            except ShapeMismatchBinaryOpError:
                fits = False
            if not fits:
                takes = "a c that broadcasts to the product"
                raise ShapeMismatchBinaryOpError("add_matmul", c.shape, product.shape, takes)
        return product

    def flops(self, inputs: Sequence[Metas], output: Metas) -> int:
        return product_flops(inputs, output) + (1 + (self.alpha != 1) + (self.beta != 1)) * elements(output)

    def vjp_flops(self, inputs: Sequence[Metas], output: Metas, needs: Sequence[bool]) -> int:
        return product_flops(inputs, output) * (needs[0] + needs[1]) + elements(output) * needs[2]

    def slower(self, a: Meta, b: Meta, c: Meta) -> str | None:
        """Why, for these operands, it is slower than the product, the scalings and the sum; ``None`` where it is not.

        For the device that MLX computes on in this context; see ``metal_candle.kernels.add_matmul.slower``.
        """
        return slower(tuple(a.shape), tuple(b.shape), tuple(c.shape), a.dtype.mlx_, self.alpha, self.beta)

    @staticmethod
    def numpy(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
        return alpha * (a @ b) + beta * c

    def lower(self, a: mx.array, b: mx.array, c: mx.array) -> mx.array:
        return add_matmul.forward(a, b, c, self.alpha, self.beta)[0]

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return add_matmul.vjp(cotangent, inputs, output, needs, self.alpha, self.beta)
