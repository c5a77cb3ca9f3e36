"""A long short-term memory over a sequence: one result of all steps, and its gradient through time.

The inputs' part of the gates is given for all steps, so that a step is one product and what is done to its elements.
The backward pass computes the gates of all steps again, by one product, rather than keep them.
Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735, with the forget gate of Gers et al. 2000.
"""

from __future__ import annotations

import mlx.core as mx

from .elementary import one_launch
from .kernel import on_cpu
from .recurrent import by_step, gate_products, sigmoid, states_before, tanh, wide
from .variant import Gradients


def forward(px: mx.array, h: mx.array, c: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """The states ``h`` and ``c`` after each step, ``(b, t, n)``, in px's dtype; halves are computed in float32.

    px ``(b, t, 4n)`` is what the inputs and the biases add to the gates, in the order input, forget, cell, output;
    the states before are ``(b, n)``, weight ``(4n, n)``.
    """
    dtype = px.dtype
    px, h, c, weight = wide(px, h, c, weight)
    b, steps, _ = px.shape
    size = h.shape[1]
    # Each gate in one piece, the three sigmoids together: element operations on parts of rows are slow on the CPU.
    parts = px.reshape(b, steps, 4, size).transpose(1, 2, 0, 3)
    parts = mx.concatenate([parts[:, :2], parts[:, 3:], parts[:, 2:3]], axis=1)
    gates = weight.reshape(4, size, size)
    product = gate_products(mx.concatenate([gates[:2], gates[3:], gates[2:3]]), b)
    cell = _cell if on_cpu() else _compiled_cell
    hs, cs = [], []
    for step in range(steps):
        both = parts[step] + product(h)
        h, c = cell(both[:3], both[3], c)
        hs.append(h)
        cs.append(c)
    return mx.stack(hs, axis=1).astype(dtype), mx.stack(cs, axis=1).astype(dtype)


def vjp(
    cotangents: tuple[mx.array | None, mx.array | None],
    inputs: tuple[mx.array, ...],
    outputs: tuple[mx.array, mx.array],
    needs: tuple[bool, ...],
) -> Gradients:
    """Gradients of px, h, c and weight; a cotangent that is ``None`` stands for zeros."""
    dtype = inputs[0].dtype
    px, h, c, weight = wide(*inputs)
    hs, cs = wide(*outputs)
    b, steps, size = hs.shape
    before_h, before_c = states_before(h, hs), states_before(c, cs)
    gates = (px + before_h @ weight.T).reshape(b, steps, 4, size)
    i, f, o = (sigmoid(gates[:, :, place]) for place in (0, 1, 3))
    g, squashed = tanh(gates[:, :, 2]), tanh(cs)
    # What c's gradient is multiplied by for the first three gates, and h's for the last.
    slopes = [g * i * (1 - i), before_c * f * (1 - f), i * (1 - mx.square(g)), squashed * o * (1 - o)]
    slope = by_step(mx.stack(slopes, axis=2))
    into_c, kept = by_step(o * (1 - mx.square(squashed))), by_step(f)
    of_hs, of_cs = (None if x is None else by_step(*wide(x)) for x in cotangents)
    of_h, of_c = mx.zeros_like(h), mx.zeros_like(c)
    of_gates: list[mx.array] = []
    for step in reversed(range(steps)):
        if of_hs is not None:
            of_h = of_h + of_hs[step]
        if of_cs is not None:
            of_c = of_c + of_cs[step]
        of_c = of_c + of_h * into_c[step]
        of_gate = (slope[step] * mx.stack([of_c, of_c, of_c, of_h], axis=1)).reshape(b, 4 * size)
        of_gates.append(of_gate)
        of_h, of_c = of_gate @ weight, of_c * kept[step]
    of_px = mx.stack(of_gates[::-1], axis=1)
    of_weight = of_px.reshape(-1, 4 * size).T @ before_h.reshape(-1, size) if needs[3] else None
    found = (of_px, of_h, of_c, of_weight)
    return tuple(x.astype(dtype) if need and x is not None else None for x, need in zip(found, needs))


def _cell(ifo: mx.array, g: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
    i, f, o = sigmoid(ifo)
    c = f * c + i * tanh(g)
    return o * tanh(c), c


@one_launch
def _launched(i: mx.array, f: mx.array, o: mx.array, g: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
    c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
    return mx.sigmoid(o) * mx.tanh(c), c


def _compiled_cell(ifo: mx.array, g: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
    result: tuple[mx.array, mx.array] = _launched(*ifo, g, c)
    return result
