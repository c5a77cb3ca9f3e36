"""Records that a kernel computes in one go: each is defined by its kernel's plain reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...dtype import DType
from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError
from ...kernels.attention import attention
from ...kernels.fused_lora import add_lora, lora
from ...kernels.lora_order import merges, multiplications, order_taken
from ...kernels.rope import rope
from ...kernels.swiglu import swiglu
from ...shape import Shape, expect_rank
from ..operation import Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .linalg import expect_floats
from .norm import Softmax


class LoRA(Operation):
    """scale · (x · A) · B: ``(…, in)``, A ``(in, rank)``, B ``(rank, out)`` to ``(…, out)``.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685; the scale is applied at rank.
    """

    key = "lora"
    arity = 3
    candle = "metal_candle::LazyTensor::lora_fused(&self, a: &LazyTensor, b: &LazyTensor, scale: f32)"
    methods = ("lora_fused", "lora_forward_fused")
    samples = (Sample(((5, 13), (13, 4), (4, 7)), (0.5,)), Sample(((2, 3, 6), (6, 1), (1, 9)), (2.0,)))
    work = "product"
    scale: float

    @classmethod
    def bind(cls, x: Meta, lora_a: Meta, lora_b: Meta, scale: float) -> Operation:
        return cls(scale)

    def infer(self, x: Meta, a: Meta, b: Meta) -> Meta:
        expect_floats("lora", x, a, b)
        expect_rank(a.shape, 2, "lora A")
        expect_rank(b.shape, 2, "lora B")
        if not x.shape or x.shape[-1] != a.shape[0]:
            raise ShapeMismatchBinaryOpError("lora", x.shape, a.shape, "x (…, in) and A (in, rank)")
        if a.shape[1] != b.shape[0]:
            raise ShapeMismatchBinaryOpError("lora", a.shape, b.shape, "A (in, rank) and B (rank, out)")
        return Meta(Shape((*x.shape[:-1], b.shape[1])), x.dtype)

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        rows, width, rank, out = self._sizes(inputs)
        if merges(rows, width, rank, out, self._is_f16(inputs)):
            return 2 * width * out * (rank + rows) + width * out
        return 2 * rows * rank * (width + out) + rows * rank

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        sizes, wanted = self._sizes(inputs), tuple(needs)
        return 2 * multiplications(order_taken(*sizes, wanted, self._is_f16(inputs)), *sizes, wanted)

    @staticmethod
    def _is_f16(inputs: Sequence[Any]) -> bool:
        return bool(inputs[0].dtype is DType.F16)

    @staticmethod
    def _sizes(inputs: Sequence[Any]) -> tuple[int, int, int, int]:
        x, a, b = (meta.shape for meta in inputs)
        return math.prod(x[:-1]), *a, b[1]

    def lower(self, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return lora.forward(x, a, b, self.scale)[0]

    @staticmethod
    def numpy(x: Any, a: Any, b: Any, scale: float) -> Any:
        return scale * (x @ a) @ b

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return lora.vjp(cotangent, inputs, output, needs, self.scale)


class AddLoRA(Operation):
    """base + scale · (x · A) · B, base ``(…, out)``; the gradient keeps only x."""

    key = "add_lora"
    arity = 4
    methods = ("add_lora",)
    samples = (
        Sample(((5, 7), (5, 13), (13, 4), (4, 7)), (0.5,)),
        Sample(((2, 3, 9), (2, 3, 6), (6, 1), (1, 9)), (2.0,)),
    )
    work = "product"
    scale: float

    @classmethod
    def bind(cls, base: Meta, x: Meta, lora_a: Meta, lora_b: Meta, scale: float) -> Operation:
        return cls(scale)

    def infer(self, base: Meta, x: Meta, a: Meta, b: Meta) -> Meta:
        delta = LoRA(self.scale).infer(x, a, b)
        expect_floats("add_lora", base, x)
        if base.shape != delta.shape:
            raise ShapeMismatchBinaryOpError("add_lora", base.shape, delta.shape, "a base of the delta's shape")
        return base

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        return LoRA(self.scale).flops(inputs[1:], output) + elements(output)

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        return LoRA(self.scale).vjp_flops(inputs[1:], output, needs[1:])

    def lower(self, base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return add_lora.forward(base, x, a, b, self.scale)[0]

    @staticmethod
    def numpy(base: Any, x: Any, a: Any, b: Any, scale: float) -> Any:
        return base + scale * (x @ a) @ b

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return add_lora.vjp(cotangent, inputs, output, needs, self.scale)


class Swiglu(Operation):
    """silu(gate) · up, of equal shapes. Shazeer 2020, https://arxiv.org/abs/2002.05202."""

    arity = 2
    samples = (Sample(((5, 123), (5, 123))), Sample(((2, 3, 4), (2, 3, 4))), Sample(((0,), (0,))))
    work = "exponential"
    flops_per_element = 6

    def infer(self, gate: Meta, up: Meta) -> Meta:
        expect_floats("swiglu", gate, up)
        if gate.shape != up.shape:
            raise ShapeMismatchBinaryOpError("swiglu", gate.shape, up.shape, "equal shapes")
        return gate

    def lower(self, gate: mx.array, up: mx.array) -> mx.array:
        return swiglu.forward(gate, up)[0]

    def lower_and_save(self, gate: mx.array, up: mx.array) -> tuple[mx.array, ...]:
        return swiglu.forward(gate, up)

    @staticmethod
    def numpy(gate: Any, up: Any) -> Any:
        return gate / (1 + np.exp(-gate)) * up

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return swiglu.vjp(cotangent, inputs, output, needs)


def expect_tables(op: str, x: Meta, cos: Meta, sin: Meta) -> None:
    """Raise unless cos and sin turn the pairs of x ``(b, h, t, d)``: ``(t, d/2)``, or ``(b, t, d/2)``."""
    expect_floats(op, x, cos, sin)
    expect_rank(x.shape, 4, op)
    b, _, t, d = x.shape
    for table in (cos, sin):
        if d % 2 or tuple(table.shape) not in ((t, d // 2), (b, t, d // 2)):
            takes = f"(b, h, t, d) with an even d, and cos and sin (t, d/2), here {(t, d // 2)}, or (b, t, d/2)"
            raise ShapeMismatchBinaryOpError(op, x.shape, table.shape, takes)
    if cos.shape != sin.shape:
        raise ShapeMismatchBinaryOpError(op, cos.shape, sin.shape, "cos and sin of one shape")


class Rope(Operation):
    """Rotary embedding of ``(b, h, t, d)``, the first half of d paired with the second.

    cos and sin ``(t, d/2)``, or ``(b, t, d/2)``. Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """

    arity = 3
    candle = "candle_nn::rotary_emb::rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor>"
    samples = (Sample(((2, 3, 5, 8), (5, 4), (5, 4))), Sample(((2, 3, 5, 8), (2, 5, 4), (2, 5, 4))))
    flops_per_element = 3

    def infer(self, x: Meta, cos: Meta, sin: Meta) -> Meta:
        expect_tables("rope", x, cos, sin)
        return x

    def lower(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return rope.forward(x, cos, sin)[0]

    @staticmethod
    def numpy(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (table[:, None] if table.ndim == 3 else table for table in (cos, sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return rope.vjp(cotangent, inputs, output, needs)


class Sdpa(Operation):
    """softmax(scale · q · kᵀ + mask) · v to ``(b, h, t, dv)``, h a multiple of kv.

    q ``(b, h, t, d)``, k ``(b, kv, s, d)``, v ``(b, kv, s, dv)``. Causal masks are aligned bottom-right. A fourth
    input instead is a mask that broadcasts to ``(b, h, t, s)``: one of q's dtype is added, and gets a gradient; one of
    integers hides the keys where it is 0, as ``where_cond(mask, scores, -inf)`` does. A query that sees no key gives
    NaN, as softmax does, on the CPU; on a GPU it gives what MLX's kernel makes of it.
    """

    arity = None
    candle = "candle_nn::ops::sdpa(q, k, v, mask, do_causal, scale, softcapping) -> Result<Tensor>"
    samples: ClassVar[tuple[Sample, ...]] = (
        Sample(((1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)), (0.3, True)),
        Sample(((2, 2, 3, 4), (2, 2, 7, 4), (2, 2, 7, 4)), (0.5, False)),
        Sample(((1, 4, 3, 4), (1, 2, 7, 4), (1, 2, 7, 6)), (-0.5, False)),
        Sample(((2, 2, 3, 4), (2, 2, 7, 4), (2, 2, 7, 4), (3, 7)), (0.5, False)),
        Sample(((1, 4, 3, 4), (1, 2, 7, 4), (1, 2, 7, 1), (4, 1, 1)), (0.5, False)),
        Sample(((2, 2, 3, 4), (2, 2, 7, 4), (2, 2, 7, 4), (2, 1, 1, 7)), (0.5, False), ids=((3, 3),)),
        Sample(((1, 2, 0, 4), (1, 2, 3, 4), (1, 2, 3, 5)), (0.5, False)),
    )
    work = "product"
    scale: float
    causal: bool

    def infer(self, q: Meta, k: Meta, v: Meta, *mask: Meta) -> Meta:
        expect_floats("sdpa", q, k, v, *[meta for meta in mask if meta.dtype.is_float_])
        for meta in (q, k, v):
            expect_rank(meta.shape, 4, "sdpa")
        (b, h, t, d), (_, kv, s, _) = q.shape, k.shape
        takes = "q (b, h, t, d), k (b, kv, s, d) and v (b, kv, s, dv) with h a multiple of kv"
        if k.shape[0] != b or k.shape[3] != d or not kv or h % kv:
            raise ShapeMismatchBinaryOpError("sdpa", q.shape, k.shape, takes)
        if tuple(v.shape[:3]) != tuple(k.shape[:3]):
            raise ShapeMismatchBinaryOpError("sdpa", k.shape, v.shape, takes)
        for given in mask:
            self._expect_mask(given, (b, h, t, s))
        return Meta(Shape((b, h, t, v.shape[3])), q.dtype)

    def _expect_mask(self, mask: Meta, scores: tuple[int, ...]) -> None:
        if self.causal:
            raise ShapeMismatchError("sdpa: got a mask and causal=True; takes one of them")
        wanted = scores[len(scores) - len(mask.shape) :]
        if len(mask.shape) > len(scores) or any(a not in (1, b) for a, b in zip(mask.shape, wanted)):
            raise ShapeMismatchBinaryOpError("sdpa", mask.shape, scores, "a mask that broadcasts to (b, h, t, s)")

    def _scores(self, inputs: Sequence[Any]) -> int:
        """How many pairs of a query and a key it sees there are, over all heads."""
        (b, h, t, _), s = inputs[0].shape, inputs[1].shape[2]
        if not self.causal:
            return int(b * h * t * s)
        seeing = min(t, s)  # queries before the first key see none
        return int(b * h * (seeing * s - seeing * (seeing - 1) // 2))

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return "softmax", self._scores(inputs)

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        # Two products over the heads' widths, and a softmax between them.
        widths = inputs[0].shape[3] + inputs[2].shape[3]
        return self._scores(inputs) * int(2 * widths + Softmax.flops_per_element)

    def vjp_steps(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> tuple[Work, int]:
        return "norm", self._scores(inputs)

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        # A product each, and but for v the gradient of the scores: another, a difference and a product by element.
        of_scores = needs[0] or needs[1] or any(needs[3:])
        width, of_v = inputs[0].shape[3], inputs[2].shape[3]
        widths = width * (needs[0] + needs[1]) + of_v * (needs[2] + of_scores)
        return self._scores(inputs) * int(2 * widths + 2 * of_scores)

    def lower(self, q: mx.array, k: mx.array, v: mx.array, *mask: mx.array) -> mx.array:
        return attention.forward(q, k, v, self.scale, self._mask(mask))[0]

    def lower_and_save(self, q: mx.array, k: mx.array, v: mx.array, *mask: mx.array) -> tuple[mx.array, ...]:
        return attention.forward(q, k, v, self.scale, self._mask(mask))

    def _mask(self, mask: Sequence[mx.array]) -> mx.array | str | None:
        if not mask:
            return "causal" if self.causal else None
        return mask[0] if mx.issubdtype(mask[0].dtype, mx.floating) else mask[0] != 0

    @staticmethod
    def numpy(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        *mask, scale, causal = rest
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = scale * q @ np.swapaxes(k, -1, -2)
        if causal:
            t, s = scores.shape[-2:]
            mask = [np.tril(np.ones((t, s), np.int64), s - t)]
        for given in mask:
            is_float = np.issubdtype(given.dtype, np.floating)
            scores = scores + given if is_float else np.where(given != 0, scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        q, k, v, *mask = inputs
        return attention.vjp(cotangent, (q, k, v), output, needs, self.scale, self._mask(mask))
