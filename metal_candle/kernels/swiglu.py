"""The gated activation of Llama's feed-forward block.

On a GPU it is a function that ``mx.compile`` makes one launch of: gate and up are read and the result is written once,
which is the floor, and casts inside cost nothing, so that halves are computed in float32 and rounded once. Within a
larger ``mx.compile`` or a transformation MLX traces the function's operations, so that they join what is around them.

Of the two gradients ``mx.compile`` of MLX 0.32.4 makes one launch each, or five where they share the sigmoid: they read
five arrays and write two. Our launch of both reads three.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from . import custom, double
from .elementary import one_launch, selected, sigmoid_of_slice
from .kernel import Kernel, on_cpu
from .own import UNMEASURED, Own, Trial
from .samples import instantiation, length_like, normal
from .slices import sliced
from .variant import Gradients, Outputs, Variant


def _reference(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) · up`` for arrays of one shape. Shazeer 2020, https://arxiv.org/abs/2002.05202."""
    return gate * double.sigmoid(gate) * up


def _of_slice(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    wide = gate.astype(mx.float32)
    sigmoid = sigmoid_of_slice(wide)
    return (wide * sigmoid * up.astype(mx.float32)).astype(gate.dtype), sigmoid


def _gradients_of_slice(
    cotangent: mx.array, gate: mx.array, up: mx.array, sigmoid: mx.array
) -> tuple[mx.array, mx.array]:
    upstream, wide, factor = (array.astype(mx.float32) for array in (cotangent, gate, up))
    silu = wide * sigmoid
    of_gate = upstream * factor * (sigmoid + silu * (1 - sigmoid))
    return of_gate.astype(gate.dtype), (upstream * silu).astype(gate.dtype)


def _forward(gate: mx.array, up: mx.array) -> Outputs:
    # The sigmoid is saved: computing it again takes 4.5 ns an element, half of the backward pass.
    result: Outputs = sliced(_of_slice, gate, up)
    return result


def _vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    gate, up = inputs
    sigmoid = outputs[1] if len(outputs) == 2 else sliced(lambda x: sigmoid_of_slice(x.astype(mx.float32)), gate)
    of_gate, of_up = sliced(_gradients_of_slice, cotangent, gate, up, sigmoid)
    return of_gate if needs[0] else None, of_up if needs[1] else None


# Halves are cast a slice at a time: forward and backward of (2048, 1536) take 42 ms, with whole casts 94.
_VARIANT = Variant("rational", _forward, _vjp)


@one_launch
def _fused(gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


@one_launch
def _fused_of_gate(cotangent: mx.array, gate: mx.array, up: mx.array) -> mx.array:
    upstream, wide, factor = (array.astype(mx.float32) for array in (cotangent, gate, up))
    sigmoid = mx.sigmoid(wide)
    return (upstream * factor * (sigmoid + wide * sigmoid * (1 - sigmoid))).astype(gate.dtype)


@one_launch
def _fused_of_up(cotangent: mx.array, gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (cotangent.astype(mx.float32) * wide * mx.sigmoid(wide)).astype(up.dtype)


def _fused_forward(gate: mx.array, up: mx.array) -> Outputs:
    return (_fused(gate, up),)


def _fused_vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    # The sigmoid is computed again from gate, which is read anyway.
    gate, up = inputs
    return (
        _fused_of_gate(cotangent, gate, up) if needs[0] else None,
        _fused_of_up(cotangent, gate, up) if needs[1] else None,
    )


_FUSED = Variant("mx.compile", _fused_forward, _fused_vjp)


def _select(gate: mx.array, up: mx.array) -> tuple[Variant | None, str]:
    if not on_cpu() and gate.shape == up.shape:
        return _FUSED, "GPU, one launch"
    return selected(gate, _VARIANT, _VARIANT)


PROGRAM = custom.Program("swiglu_vjp", ("cotangent", "gate", "up"), ("of_gate", "of_up"))
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# Elements of a thread, as in the source.
EACH = 8
THREADS = 256


@lru_cache(maxsize=256)
def _launch(shape: tuple[int, ...], size: int, dtype: mx.Dtype) -> custom.Launch:
    threads = min(custom.ceil_div(size, EACH * custom.SIMD) * custom.SIMD, THREADS)
    grid = (custom.ceil_div(size, EACH * threads) * threads, 1, 1)
    return custom.Launch((shape, shape), (dtype, dtype), grid, (threads, 1, 1), (("T", dtype),))


def _own_vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...]) -> Gradients:
    gate, up = inputs
    if not (needs[0] and needs[1]):
        return _fused_vjp(cotangent, inputs, outputs, needs)
    flat = [array.reshape(-1) for array in (cotangent, gate, up)]
    return tuple(custom.launch(PROGRAM, flat, _launch(gate.shape, gate.size, gate.dtype)))


def _fits(gate: mx.array, up: mx.array) -> str | None:
    if gate.dtype not in DTYPES or up.dtype != gate.dtype:
        return f"gate of {gate.dtype}, up of {up.dtype}"
    if gate.shape != up.shape or not 0 < gate.size <= custom.MOST_THREADS_OF_A_GRID:
        return f"gate {gate.shape}, up {up.shape}"
    return None


def _trial(gate: mx.array, up: mx.array) -> Trial:
    shape, dtype = gate.shape, gate.dtype
    like = length_like(gate.size, EACH, THREADS)
    key = instantiation(_launch(shape, gate.size, dtype), (shape, dtype))
    return Trial((*key, gate.size % 4 == 0), lambda: (normal((like,), dtype) * 3, normal((like,), dtype, 1)))


_OWN = Own(
    "mx.compile, gradients in one launch",
    _fused_forward,
    _fits,
    lambda gate, up: (True, f"{UNMEASURED}: gradients read 3 arrays to 5, 1 launch to 2"),
    _trial,
    _own_vjp,
)

swiglu = Kernel("swiglu", _reference, _select, arity=2, own=_OWN)
