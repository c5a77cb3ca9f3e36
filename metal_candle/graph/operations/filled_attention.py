"""The record of attention whose hidden scores are filled with a number instead of taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchError, UnsupportedDTypeForOpError
from ...kernels.attention import attention
from ...kernels.matmul import matmul
from ...kernels.softmax import softmax
from ...kernels.variant import is_half
from ..operation import Gradients, Meta, Sample
from .fused import Sdpa
from .linalg import expect_floats


class FilledSdpa(Sdpa):
    """softmax(where(mask ≠ 0, scale · q · kᵀ, fill)) · v; of ``hides`` where the mask is 0. Shapes as ``sdpa``'s.

    A mask of integers that broadcasts to ``(b, h, t, s)``, and one number of any float dtype, which has a gradient.
    Filled with -inf it is ``sdpa`` with that mask. Any other number, such as -1e9, is left in the scores, so that a
    query whose keys are all hidden gives the mean of v, as spelled; these scores are all computed at once.
    """

    candle = ""
    samples = (
        Sample(((2, 2, 3, 4), (2, 2, 7, 4), (2, 2, 7, 4), (3, 7), ()), (0.5, False, True), ids=((3, 2),)),
        Sample(((1, 4, 3, 4), (1, 2, 7, 4), (1, 2, 7, 6), (1, 1, 3, 7), (1,)), (0.5, False, False), ids=((3, 3),)),
    )
    hides: bool

    def infer(self, q: Meta, k: Meta, v: Meta, mask: Meta, fill: Meta) -> Meta:  # type: ignore[override]
        if mask.dtype.is_float_:
            raise UnsupportedDTypeForOpError("filled_sdpa", mask.dtype, "a mask of integers")
        expect_floats("filled_sdpa", fill)
        if fill.shape.elem_count() != 1:
            raise ShapeMismatchError(f"filled_sdpa: got {list(fill.shape)} to fill with; takes one number")
        return super().infer(q, k, v, mask)

    def lower(self, *inputs: mx.array) -> mx.array:
        return self.lower_and_save(*inputs)[0]

    def lower_and_save(  # type: ignore[override]
        self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array, fill: mx.array
    ) -> tuple[mx.array, ...]:
        seen = self._seen(mask)
        if takes_away(fill):
            return attention.forward(q, k, v, self.scale, seen)
        weights = self._weights(q, k, seen, fill)
        return _by_groups(weights, v).astype(q.dtype), weights

    def _seen(self, mask: mx.array) -> mx.array:
        return mask == 0 if self.hides else mask != 0

    def _weights(self, q: mx.array, k: mx.array, seen: mx.array, fill: mx.array) -> mx.array:
        """The softmax ``(b, h, t, s)``, of halves in float32."""
        wide = _wide(q)
        scores = _by_groups(wide * mx.array(self.scale, wide.dtype), mx.swapaxes(_wide(k), -1, -2))
        return softmax.forward(mx.where(seen, scores, _wide(fill).reshape(())))[0] if scores.size else scores

    @staticmethod
    def numpy(q: Any, k: Any, v: Any, mask: Any, fill: Any, scale: float, causal: bool, hides: bool) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.where((mask == 0) == hides, scale * q @ np.swapaxes(k, -1, -2), fill.reshape(()))
        e = np.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        q, k, v, mask, fill = inputs
        seen = self._seen(mask)
        if takes_away(fill) and not needs[4]:
            return (*attention.vjp(cotangent, (q, k, v), output, tuple(needs[:3]), self.scale, seen)[:3], None, None)
        saved = output if isinstance(output, tuple) and not takes_away(fill) else (output,)
        weights = saved[1] if len(saved) > 1 else self._weights(q, k, seen, fill)
        kv = k.shape[1]
        upstream = _wide(cotangent)
        of_v = _summed_groups(mx.swapaxes(weights, -1, -2), upstream, kv) if needs[2] else None
        weighted = weights * _by_groups(upstream, mx.swapaxes(_wide(v), -1, -2))
        of_scores = weighted - weights * weighted.sum(axis=-1, keepdims=True)
        nothing = mx.array(0, weights.dtype)
        of_seen = mx.where(seen, of_scores, nothing) * mx.array(self.scale, weights.dtype)
        of_q = _by_groups(of_seen, _wide(k)) if needs[0] else None
        of_k = _summed_groups(mx.swapaxes(of_seen, -1, -2), _wide(q), kv) if needs[1] else None
        of_fill = None
        if needs[4]:
            of_fill = mx.where(seen, nothing, of_scores).sum().reshape(fill.shape)
        found = (of_q, of_k, of_v, None, of_fill)
        return tuple(None if part is None else part.astype(x.dtype) for part, x in zip(found, inputs))


def takes_away(fill: mx.array) -> bool:
    """Whether it is -inf. While MLX traces there is no number to look at."""
    try:
        return bool(np.array(_wide(fill)).item() == -np.inf)
    except ValueError:
        return False


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if is_half(x) else x


def _by_groups(x: mx.array, shared: mx.array) -> mx.array:
    """``x (b, h, t, n)`` times ``shared (b, kv, n, m)``, which h/kv heads share, to ``(b, h, t, m)``."""
    b, h, t, n = x.shape
    kv = shared.shape[1]
    return matmul(x.reshape(b, kv, h // kv * t, n), _wide(shared)).reshape(b, h, t, shared.shape[-1])


def _summed_groups(x: mx.array, y: mx.array, kv: int) -> mx.array:
    """``x (b, h, s, t)`` times ``y (b, h, t, n)``, summed over the heads that share, to ``(b, kv, s, n)``."""
    product = matmul(x, y)
    b, h, s, n = product.shape
    return product if h == kv else product.reshape(b, kv, h // kv, s, n).sum(axis=2)
