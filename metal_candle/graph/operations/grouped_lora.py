"""The record of a low-rank update where each row has its own adapter."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ArgumentTypeError, ArgumentValueError, ShapeMismatchBinaryOpError, ShapeMismatchError
from ...error.text import described
from ...kernels.grouped_lora import Adapters, grouped_lora
from ...shape import expect_rank
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import elements
from .ids import expect_ids
from .linalg import expect_floats


class GroupedLoRA(Operation):
    """base + scale · (x · Aᵀ) · B for each row, with the factors and the scale of the adapter that its id names.

    base ``(…, out)``, x ``(…, in)``, ids of x's leading shape or the first dims of it, the adapters' factors below
    each other: A ``(Σ ranks, in)``, B ``(Σ ranks, out)``. A row whose id names no adapter keeps its base: -1, the
    largest value of the ids' dtype, or any other. NaN in a row or an adapter reaches no other row's result; of the
    gradients it reaches all but base's. Chen et al. 2023 (Punica), https://arxiv.org/abs/2310.18547.
    """

    key = "grouped_lora"
    arity = 5
    methods = ("grouped_lora",)
    samples = (
        Sample(((5, 7), (5, 13), (5,), (6, 13), (6, 7)), ((4, 2), (0.5, -1.5)), ids=((2, 3),)),
        Sample(((2, 3, 4), (2, 3, 6), (2,), (4, 6), (4, 4)), ((1, 3), (2.0, 1.0)), ids=((2, 2),)),
    )
    work = "product"
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @classmethod
    def bind(
        cls, base: Meta, x: Meta, ids: Meta, lora_a: Meta, lora_b: Meta, ranks: Sequence[int], scales: Sequence[float]
    ) -> Operation:
        return cls(_each("ranks", ranks, operator.index, "integers"), _each("scales", scales, _number, "numbers"))

    def infer(self, base: Meta, x: Meta, ids: Meta, a: Meta, b: Meta) -> Meta:
        expect_floats("grouped_lora", base, x, a, b)
        expect_ids("grouped_lora", ids)
        expect_rank(a.shape, 2, "grouped_lora A")
        expect_rank(b.shape, 2, "grouped_lora B")
        if len(self.ranks) != len(self.scales) or any(rank < 1 for rank in self.ranks):
            raise ArgumentValueError(
                f"grouped_lora: got ranks {self.ranks} and scales {self.scales}; takes a rank above 0 and a scale each"
            )
        if not x.shape or x.shape[-1] != a.shape[1]:
            raise ShapeMismatchBinaryOpError("grouped_lora", x.shape, a.shape, "x (…, in) and A (ranks, in)")
        if (a.shape[0], b.shape[0]) != (sum(self.ranks),) * 2:
            takes = f"A ({sum(self.ranks)}, in) and B ({sum(self.ranks)}, out)"
            raise ShapeMismatchBinaryOpError("grouped_lora", a.shape, b.shape, takes)
        if tuple(base.shape) != (*x.shape[:-1], b.shape[1]):
            raise ShapeMismatchBinaryOpError("grouped_lora", base.shape, x.shape, "base (…, out) and x (…, in)")
        if len(ids.shape) >= len(x.shape) or tuple(ids.shape) != tuple(x.shape[: len(ids.shape)]):
            raise ShapeMismatchError(
                f"grouped_lora: got ids {tuple(ids.shape)}; takes the shape {tuple(x.shape[:-1])} or its first dims"
            )
        return base

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        # Two products for each adapter, which go over all rows.
        return self._products(inputs) + elements(output) * len(self.ranks)

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        rows, width, ranks, out = self._sizes(inputs)
        narrow, wide = 2 * rows * ranks * width, 2 * rows * ranks * out
        return wide * (needs[1] or needs[3]) + narrow * (needs[1] + needs[3]) + (narrow + wide) * needs[4]

    def _products(self, inputs: Sequence[Any]) -> int:
        rows, width, ranks, out = self._sizes(inputs)
        return 2 * rows * ranks * (width + out)

    @staticmethod
    def _sizes(inputs: Sequence[Any]) -> tuple[int, int, int, int]:
        _, x, _, a, b = (meta.shape for meta in inputs)
        return math.prod(x[:-1]), x[-1], a[0], b[1]

    def lower(self, base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return grouped_lora.forward(base, x, ids, a, b, Adapters(self.ranks, self.scales))[0]

    @staticmethod
    def numpy(base: Any, x: Any, ids: Any, a: Any, b: Any, ranks: Any, scales: Any) -> Any:
        ends = np.cumsum(ranks)
        result = base.copy()
        for row in np.ndindex(*x.shape[:-1]):
            adapter = int(ids[row[: ids.ndim]])
            if 0 <= adapter < len(ranks):
                own = slice(ends[adapter] - ranks[adapter], ends[adapter])
                result[row] += scales[adapter] * (a[own] @ x[row]) @ b[own]
        return result

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return grouped_lora.vjp(cotangent, inputs, output, needs, Adapters(self.ranks, self.scales))


def _each(name: str, given: Any, read: Callable[[Any], Any], kind: str) -> tuple[Any, ...]:
    """The numbers of all adapters. Raises ``ArgumentTypeError``."""
    takes = f"takes {kind}, one for each adapter"
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise ArgumentTypeError(f"grouped_lora: got {described(given)} for {name}; {takes}")
    found = []
    for each in given:
        try:
            found.append(read(each))
        except (TypeError, ValueError):
            raise ArgumentTypeError(f"grouped_lora: got {described(each)} among {name}; {takes}") from None
    return tuple(found)


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):  # of which float reads some
        raise TypeError("text is no number")
    return float(value)
