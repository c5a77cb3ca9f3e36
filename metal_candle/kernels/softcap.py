"""Soft-capping: scores or logits kept between -cap and cap, as in Gemma 2.

A launch of ours reads and writes what ``mx.compile`` of the definition does, with as many launches, so that the rule
does not choose it until a measured row says so. Its gradient reads x rather than the result: as many bytes, but of a
half that was rounded to cap the slope would be 0.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from . import custom
from .elementary import one_launch
from .kernel import Kernel, on_cpu
from .own import UNMEASURED, Own, Trial
from .samples import instantiation, length_like, normal
from .variant import Gradients, Outputs, Variant, is_half


def _reference(x: mx.array, cap: float) -> mx.array:
    """``cap · tanh(x / cap)``: x of any shape to the same; halves are computed in float32 and rounded once.

    Gemma Team 2024, https://arxiv.org/abs/2408.00118, section 2.
    """
    wide = x.astype(mx.float32) if is_half(x) else x
    return (mx.tanh(wide / cap) * cap).astype(x.dtype)


def _forward(x: mx.array, cap: float) -> Outputs:
    return (_reference(x, cap),)


def _vjp(cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], cap: float) -> Gradients:
    return (cotangent * (1 - mx.square(outputs[0] * (1 / cap))),)


# Measured on 196,608 elements: 0.8 ns an element, MLX's cosh 11.
_SAVED = Variant("gradient of the result", _forward, _vjp)
_compiled = one_launch(_reference)


@one_launch
def _compiled_gradient(cotangent: mx.array, x: mx.array, cap: float) -> mx.array:
    # 1 / cosh² is 1 - tanh² without its cancellation, and few enough operations for one launch.
    slope_inverse = mx.square(mx.cosh(x.astype(mx.float32) / cap))
    return (cotangent.astype(mx.float32) / slope_inverse).astype(x.dtype)


def _compiled_forward(x: mx.array, cap: float) -> Outputs:
    return (_compiled(x, cap),)


def _compiled_vjp(
    cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], cap: float
) -> Gradients:
    return (_compiled_gradient(cotangent, inputs[0], cap),)


_COMPILED = Variant("mx.compile", _compiled_forward, _compiled_vjp)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def _select(x: mx.array, cap: float) -> tuple[Variant | None, str]:
    if on_cpu():
        return (None, "half precision on the CPU") if is_half(x) else (_SAVED, "CPU")
    return (_COMPILED, "GPU, one launch") if x.dtype in DTYPES else (None, f"{x.dtype}")


_PROGRAM = custom.Program("softcap", ("x", "cap"), ("y",))
_VJP = custom.Program("softcap_vjp", ("cotangent", "x", "cap"), ("of_x",))
# Elements of a thread, as in the sources.
EACH = 8
THREADS = 256


@lru_cache(maxsize=256)
def _how(shape: tuple[int, ...], size: int, dtype: mx.Dtype) -> custom.Launch:
    threads = min(custom.ceil_div(size, EACH * custom.SIMD) * custom.SIMD, THREADS)
    grid = (custom.ceil_div(size, EACH * threads) * threads, 1, 1)
    return custom.Launch((shape,), (dtype,), grid, (threads, 1, 1), (("T", dtype),))


def _launch(x: mx.array, cap: float) -> Outputs:
    return tuple(custom.launch(_PROGRAM, [x.reshape(-1), custom.scalar(cap)], _how(x.shape, x.size, x.dtype)))


def _launch_vjp(
    cotangent: mx.array, inputs: Outputs, outputs: Outputs, needs: tuple[bool, ...], cap: float
) -> Gradients:
    (x,) = inputs
    given = [cotangent.reshape(-1), x.reshape(-1), custom.scalar(cap)]
    return tuple(custom.launch(_VJP, given, _how(x.shape, x.size, x.dtype)))


def _fits(x: mx.array, cap: float) -> str | None:
    if x.dtype not in DTYPES:
        return f"{x.dtype}"
    return None if 0 < x.size <= custom.MOST_THREADS_OF_A_GRID else f"{x.size} elements"


def _wins(x: mx.array, cap: float) -> tuple[bool, str]:
    return False, f"{UNMEASURED}: as many launches and bytes as mx.compile"


def _trial(x: mx.array, cap: float) -> Trial:
    shape, dtype = x.shape, x.dtype
    like = length_like(x.size, EACH, THREADS)
    key = instantiation(_how(shape, x.size, dtype), (shape, dtype))
    return Trial((*key, x.size % 4 == 0), lambda: (normal((like,), dtype) * 3, 2.5))


_OWN = Own("one launch", _launch, _fits, _wins, _trial, _launch_vjp)

softcap = Kernel("softcap", _reference, _select, arity=1, own=_OWN)
