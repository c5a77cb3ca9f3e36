"""The gated activation of Llama's feed-forward block."""

from __future__ import annotations

import mlx.core as mx

from . import double
from .elementary import selected, sigmoid_of_slice
from .kernel import Gradients, Kernel, Outputs, Variant, through_float32
from .slices import sliced


def _reference(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) · up`` for arrays of one shape. Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    return gate * double.sigmoid(gate) * up


def _of_slice(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = sigmoid_of_slice(gate)
    return gate * sigmoid * up, sigmoid


def _gradients_of_slice(
    cotangent: mx.array, gate: mx.array, up: mx.array, sigmoid: mx.array
) -> tuple[mx.array, mx.array]:
    silu = gate * sigmoid
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


def _forward(gate: mx.array, up: mx.array) -> Outputs:
    # The sigmoid is saved: computing it again takes 4.5 ns an element, half of the backward pass.
    result: Outputs = sliced(_of_slice, gate, up)
    return result


def _vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    gate, up = inputs
    sigmoid = outputs[1] if len(outputs) == 2 else sliced(sigmoid_of_slice, gate)
    of_gate, of_up = sliced(_gradients_of_slice, cotangent, gate, up, sigmoid)
    return of_gate if needs[0] else None, of_up if needs[1] else None


_VARIANT = Variant("rational", _forward, _vjp)
_HALF = through_float32(_VARIANT)

swiglu = Kernel("swiglu", _reference, lambda gate, up: selected(gate, _VARIANT, _HALF), arity=2)
