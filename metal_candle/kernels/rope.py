"""Rotary position embedding."""

from __future__ import annotations

import mlx.core as mx

from .kernel import Kernel
from .variant import Gradients, Outputs, Variant


def _reference(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> mx.array:
    """Each pair ``(a, b)`` of ``x`` ``(…, t, d)`` turned by the angle of cos and sin ``(t, d/2)``.

    The first half of d is paired with the second or, ``interleaved``, each element with its neighbour.
    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        turned = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
        return turned.reshape(x.shape)
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _forward(x: mx.array, cos: mx.array, sin: mx.array, interleaved: bool = False) -> Outputs:
    return (_reference(x, cos, sin, interleaved),)


def _vjp(
    cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], interleaved: bool = False
) -> Gradients:
    x, cos, sin = inputs
    # The transpose of a rotation turns back.
    of_x = _reference(cotangent, cos, -sin, interleaved) if needs[0] else None
    if not any(needs[1:]):
        return (of_x, *(None for _ in needs[1:]))
    _, found = mx.vjp(lambda c, s: _reference(x, c, s, interleaved), [cos, sin], [cotangent])
    return (of_x, *(gradient if need else None for gradient, need in zip(found, needs[1:])))


# mx.fast.rope takes frequencies, not angles, and on the CPU 3.9 ns an element to this one's 1.8.
_VARIANT = Variant("composition", _forward, _vjp)

rope = Kernel(
    "rope",
    _reference,
    lambda *arguments: (_VARIANT, "the same operations, gradient by turning back"),
    arity=3,
)
