"""The launches behind ``cross_entropy`` and ``picked_log_softmax``: one target a row.

MLX's ``mx.fast.cross_entropy`` is one launch and one reading of the logits, its gradient a launch that reads them once
more and writes; but that gradient belongs to MLX's own reverse mode and needs the forward launch in the same one. Where
the two halves are apart, as here, it is computed again: four passes over the logits and three launches. Ours keep each
row's maximum and sum: three passes, two launches, label smoothing included. (A logsumexp found again from the loss and
the target's logit, as MLX does it, would be lost where that logit is large or infinite.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import mlx.core as mx
import numpy as np

from . import custom
from .own import UNMEASURED
from .samples import instantiation, is_small, normal
from .softmax_launch import HELD, MANY

Samples = Callable[[], tuple[mx.array, mx.array]]

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LOSS, LOG_PROBABILITY = 1.0, -1.0
"""The sign of what is computed."""
# Rows up to this width are a simdgroup's each: 32 elements a thread.
NARROW = 1024
SIMDGROUPS = 8
WIDE = 8192

FORWARD = custom.Program("cross_entropy", ("x", "targets", "numbers"), ("result", "seen"))
GRADIENT = custom.Program("cross_entropy_vjp", ("x", "targets", "seen", "cotangent", "numbers"), ("gradient",))


def unfit(x: mx.array, targets: mx.array, rows: tuple[int, ...]) -> str | None:
    """Why the launches do not take logits x ``(*rows, n)`` with one target a row; ``None`` if they do."""
    if x.dtype not in DTYPES or not mx.issubdtype(targets.dtype, mx.integer):
        return f"logits of {x.dtype}, targets of {targets.dtype}"
    if x.ndim == 0 or x.shape[:-1] != rows:
        return f"logits {x.shape}, a target each for {rows}"
    if x.size == 0:
        return "no elements"
    count, n = x.size // x.shape[-1], x.shape[-1]
    # An index of x is a row's start, which has 64 bits, and a place within it, which may be a step past the end.
    return None if count < 2**21 and n < 2**30 else f"{count} rows of {n}: more than a grid holds"


def wins(x: mx.array, smoothing: float = 0.0) -> tuple[bool, str]:
    """Whether they are used for logits x ``(…, n)``, and why. Which gradients are wanted is not known yet."""
    n = x.shape[-1]
    rows = x.size // n
    if n > HELD and rows < MANY:
        return False, f"{UNMEASURED}: {rows} rows of {n}, of which each is one threadgroup's"
    if smoothing:
        # A logsumexp, the mean and the target's logit; the gradients of each.
        return True, f"{UNMEASURED}: 1 launch and pass over the logits to 3 and 2 at least"
    # Alone the loss is no faster than MLX's; with its gradient it saves a launch and a pass.
    return True, f"{UNMEASURED}: 1 launch and pass over the logits to 1, with the gradient 2 and 3 to 3 and 4"


@lru_cache(maxsize=256)
def _grid(rows: int, n: int) -> tuple[custom.Triple, custom.Triple]:
    if n <= NARROW:
        threads, groups = custom.SIMD * min(SIMDGROUPS, rows), custom.ceil_div(rows, SIMDGROUPS)
    else:
        threads, groups = 256 if n <= WIDE else 512, rows
    return (groups * threads, 1, 1), (threads, 1, 1)


@lru_cache(maxsize=256)
def _forward(rows: int, n: int, given: mx.Dtype, dtype: mx.Dtype) -> custom.Launch:
    grid, threadgroup = _grid(rows, n)
    template: custom.Template = (("T", given), ("R", dtype), ("NARROW", n <= NARROW))
    return custom.Launch(((rows,), (rows, 2)), (dtype, mx.float32), grid, threadgroup, template)


@lru_cache(maxsize=256)
def _gradient(shape: tuple[int, ...], rows: int, n: int, dtype: mx.Dtype) -> custom.Launch:
    grid, threadgroup = _grid(rows, n)
    return custom.Launch((shape,), (dtype,), grid, threadgroup, (("T", dtype), ("NARROW", n <= NARROW)))


@lru_cache(maxsize=64)
def _numbers(smoothing: float, sign: float) -> mx.array:
    return mx.array([smoothing, sign], mx.float32)


def losses(
    x: mx.array, targets: mx.array, dtype: mx.Dtype, sign: float, smoothing: float = 0.0
) -> tuple[mx.array, mx.array]:
    """The losses of the rows of x ``(…, n)``, of the shape of ``targets``, and what their gradient needs."""
    n = x.shape[-1]
    rows = x.size // n
    given = [x.reshape(rows, n), targets.reshape(rows), _numbers(smoothing, sign)]
    result, seen = custom.launch(FORWARD, given, _forward(rows, n, x.dtype, dtype))
    return result.reshape(targets.shape), seen


def gradient(
    cotangent: mx.array, x: mx.array, targets: mx.array, seen: mx.array, sign: float, smoothing: float = 0.0
) -> mx.array:
    """The gradient of x, of its shape and dtype; ``seen`` as ``losses`` gave it."""
    n = x.shape[-1]
    rows = x.size // n
    given = [x.reshape(rows, n), targets.reshape(rows), seen, cotangent.reshape(rows), _numbers(smoothing, sign)]
    return custom.launch(GRADIENT, given, _gradient(x.shape, rows, n, x.dtype))[0]


def trial(x: mx.array, targets: mx.array, dtype: mx.Dtype) -> tuple[tuple[Hashable, ...], Samples]:
    """The key of a trial for logits x and their targets, and what gives small ones of its instantiation."""
    n, given, of_targets = x.shape[-1], x.dtype, targets.dtype
    rows = x.size // n
    # Of a full threadgroup of rows one more, and of few rows or of a short one as many, which tells where they lie.
    like = (2 if rows < 4 else 4 if rows < 8 else 9) if n > NARROW else min(rows, SIMDGROUPS + 1)
    # Wide rows take a loop of more than one turn, the last of which is not full.
    width = (WIDE if n > WIDE else 4 * NARROW if n > NARROW else 384) + (3 if n % 4 else 4)
    if is_small(n):
        width = n

    def arguments() -> tuple[mx.array, mx.array]:
        drawn = np.random.default_rng(1).integers(0, min(width, 100), (like,))
        return normal((like, width), given), mx.array(drawn.astype(np.int32)).astype(of_targets)

    inputs = [((rows, n), given), ((rows,), of_targets), ((rows, 2), mx.float32)]
    key = instantiation(_forward(rows, n, given, dtype), *inputs)
    return (*key, n % 4 == 0), arguments
