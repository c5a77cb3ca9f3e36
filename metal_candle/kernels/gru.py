"""A gated recurrent unit over a sequence: one result of all steps, and its gradient through time.

As in ``lstm.py``, the inputs' part of the gates is given for all steps, and the backward pass computes the gates again.
Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the reset gate on the product as in cuDNN, PyTorch and candle.
"""

from __future__ import annotations

import mlx.core as mx

from .elementary import one_launch
from .kernel import on_cpu
from .recurrent import by_step, gate_products, sigmoid, states_before, tanh, wide
from .variant import Gradients


def forward(px: mx.array, h: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """The state after each step, ``(b, t, n)``, in px's dtype; halves are computed in float32.

    px ``(b, t, 3n)`` is what the inputs add to the gates, in the order reset, update, new; the state before is
    ``(b, n)``, weight ``(3n, n)``, bias ``(3n,)``: r, z = σ(px + h·Wᵀ + bias), n = tanh(px + r·(h·Wᵀ + bias)) and the
    new state z·h + (1 - z)·n.
    """
    dtype = px.dtype
    px, h, weight = wide(px, h, weight)
    b, steps, _ = px.shape
    size = h.shape[1]
    parts = mx.contiguous(px.reshape(b, steps, 3, size).transpose(1, 2, 0, 3))
    product = gate_products(weight.reshape(3, size, size), b)
    beside = None if bias is None else wide(bias)[0].reshape(3, 1, size)
    cell = _cell if on_cpu() else _compiled_cell
    hs = []
    for step in range(steps):
        own = product(h) if beside is None else product(h) + beside
        h = cell(parts[step], own, h)
        hs.append(h)
    return mx.stack(hs, axis=1).astype(dtype)


def vjp(cotangent: mx.array, inputs: tuple[mx.array, ...], output: mx.array, needs: tuple[bool, ...]) -> Gradients:
    """Gradients of px, h, weight and, where it is given, bias."""
    dtype = inputs[0].dtype
    px, h, weight, *bias = wide(*inputs)
    hs, upstream = wide(output, cotangent)
    b, steps, size = hs.shape
    before = states_before(h, hs)
    product = before @ weight.T
    if bias:
        product = product + bias[0]
    r, z = (sigmoid(px[..., k : k + size] + product[..., k : k + size]) for k in (0, size))
    of_product = product[..., 2 * size :]
    n = tanh(px[..., 2 * size :] + r * of_product)
    # What the state's gradient is multiplied by, for the gates' part that comes from the state.
    new = (1 - z) * (1 - mx.square(n))
    slope = mx.stack([new * of_product * r * (1 - r), (before - n) * z * (1 - z), new * r], axis=2)
    slope_by, kept, given = by_step(slope), by_step(z), by_step(upstream)
    of_h = mx.zeros_like(h)
    of_hs: list[mx.array] = []
    for step in reversed(range(steps)):
        total = of_h + given[step]
        of_hs.append(total)
        of_h = (slope_by[step] * total[:, None]).reshape(b, 3 * size) @ weight + total * kept[step]
    every = mx.stack(of_hs[::-1], axis=1)
    of_state = (slope * every[:, :, None]).reshape(b, steps, 3 * size)
    of_px = mx.concatenate([of_state[..., : 2 * size], new * every], axis=-1) if needs[0] else None
    of_weight = of_state.reshape(-1, 3 * size).T @ before.reshape(-1, size) if needs[2] else None
    found = (of_px, of_h, of_weight, of_state.sum(axis=(0, 1)))
    return tuple(x.astype(dtype) if need and x is not None else None for x, need in zip(found, needs))


def _cell(px: mx.array, product: mx.array, h: mx.array) -> mx.array:
    r, z = sigmoid(px[:2] + product[:2])
    n = tanh(px[2] + r * product[2])
    return n + z * (h - n)


@one_launch
def _launched(
    px_r: mx.array, px_z: mx.array, px_n: mx.array, r: mx.array, z: mx.array, n: mx.array, h: mx.array
) -> mx.array:
    n = mx.tanh(px_n + mx.sigmoid(px_r + r) * n)
    return n + mx.sigmoid(px_z + z) * (h - n)


def _compiled_cell(px: mx.array, product: mx.array, h: mx.array) -> mx.array:
    result: mx.array = _launched(*px, *product, h)
    return result
