"""The gradient of softmax and log-softmax over the last dim, from their result."""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx

from . import double
from .custom import Launch, Program, backend, launch, scalar
from .kernel import Kernel, on_cpu
from .own import UNMEASURED, Own, Trial
from .softmax_launch import FLOATS, HELD, keeps_up, spread, template_of, too_many, trial_of_gradient
from .variant import Outputs, is_half


def _reference(y: mx.array, cotangent: mx.array, scale: float = 1.0, log: bool = False) -> mx.array:
    """``scale · y · (g - Σ g·y)`` for y = softmax(scale · x) and its cotangent g; of ``log`` ``g - exp(y) · Σ g``.

    y and g of one shape and dtype; computed in float32 and rounded once.
    """
    dtype = y.dtype
    if is_half(y):
        y, cotangent = y.astype(mx.float32), cotangent.astype(mx.float32)
    if log:
        found = cotangent - double.exp(y) * cotangent.sum(axis=-1, keepdims=True)
    else:
        found = y * (cotangent - (cotangent * y).sum(axis=-1, keepdims=True))
    return (found if scale == 1 else found * scale).astype(dtype)


_PROGRAM = Program("softmax_backward", ("y", "g", "scale"), ("out",))


@lru_cache(maxsize=1024)
def _how(shape: tuple[int, ...], dtype: mx.Dtype, log: bool) -> Launch:
    rows, width = math.prod(shape[:-1]), shape[-1]
    by = spread(width, rows)
    return Launch((shape,), (dtype,), by.grid(rows), by.threadgroup, template_of(dtype, log, by))


def _launch(y: mx.array, cotangent: mx.array, scale: float = 1.0, log: bool = False) -> Outputs:
    width = y.shape[-1]
    rows = [array.reshape(-1, width) for array in (y, cotangent)]
    return tuple(launch(_PROGRAM, [*rows, scalar(scale)], _how(y.shape, y.dtype, log)))


def _unfit(y: mx.array, cotangent: mx.array, scale: float = 1.0, log: bool = False) -> str | None:
    if y.dtype not in FLOATS or y.dtype != cotangent.dtype:
        return f"{y.dtype} and {cotangent.dtype}"
    return too_many(y.shape) if y.ndim else "0 dims"


def _wins(y: mx.array, cotangent: mx.array, scale: float = 1.0, log: bool = False) -> tuple[bool, str]:
    width = y.shape[-1]
    slow = keeps_up(width, y.size // width)
    if slow is not None:
        return False, slow
    # Compiled: a product, its sum, and the rest, which reads both again; of the logarithm a sum, and the rest.
    what = "the gradient" if log else "the result and its gradient"
    times = "twice as there" if width > HELD else "once to twice"
    return True, f"{UNMEASURED}: 1 launch to {2 if log else 3}, {what} read {times}"


def _trial(y: mx.array, cotangent: mx.array, scale: float = 1.0, log: bool = False) -> Trial:
    return trial_of_gradient(_how(y.shape, y.dtype, log), tuple(y.shape), y.dtype, log)


softmax_backward = Kernel(
    "softmax_backward",
    _reference,
    lambda *_: (None, "CPU" if on_cpu() else "GPU"),
    arity=2,
    own=Own("one launch", _launch, _unfit, _wins, _trial),
)


def launched(y: mx.array, cotangent: mx.array, log: bool = False) -> mx.array | None:
    """The gradient of ``softmax(x)``, or its logarithm, in one launch; ``None`` where it is not used."""
    if backend() is None:  # nothing to choose
        return None
    variant = softmax_backward.choose(y, cotangent, 1.0, log)
    return variant.forward(y, cotangent, 1.0, log)[0] if softmax_backward.launches(variant) else None
