"""How softmax and log-softmax are launched as programs of ours, and when."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, Union

import mlx.core as mx

from .custom import MOST_DIMS, MOST_THREADS_OF_A_GRID, SIMD, Launch, Program, Template, ceil_div, launch, scalar
from .kernel import launching
from .own import UNMEASURED, Trial
from .samples import instantiation, is_small, normal
from .variant import Outputs

# A mask as far as a launch depends on it: its shape and dtype.
MaskKind = Union[None, str, tuple[tuple[int, ...], mx.Dtype]]

_INPUTS, _OUTPUTS = ("x", "mask", "scale"), ("out",)
_PLAIN = Program("softmax", _INPUTS, _OUTPUTS)
# A mask is read where it lies, by its strides, and x with it: MLX would lay a broadcast one out in full.
_MASKED = Program("softmax", _INPUTS, _OUTPUTS, contiguous=False)

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_NONE, _ADDED, _SEEN, _CAUSAL = range(4)

# Elements that a row's threads hold at once; those of a longer row are read twice.
HELD = 8192
# Rows that keep any GPU busy with a threadgroup each.
MANY = 256


class Rows(NamedTuple):
    """How rows are spread: over how many threads, how many together in a threadgroup, how often a thread takes four."""

    threads: int
    together: int
    chunks: int

    def grid(self, rows: int) -> tuple[int, int, int]:
        """All threads for this many rows."""
        return (ceil_div(rows, self.together) * self.threads, self.together, 1)

    @property
    def threadgroup(self) -> tuple[int, int, int]:
        """The threads of a threadgroup."""
        return (self.threads, self.together, 1)


@lru_cache(maxsize=256)
def spread(width: int, rows: int) -> Rows:
    """How rows of this width are spread: a simdgroup each up to 512 elements, then a threadgroup each."""
    if width <= 16 * SIMD:
        chunks = 1 if width <= 4 * SIMD else 2 if width <= 8 * SIMD else 4
        # Few rows go to as many threadgroups, hence cores.
        return Rows(SIMD, min(8, max(1, rows // MANY)), chunks)
    chunks = 2 if width <= HELD // 2 else 4
    return Rows(min(512, ceil_div(width, 4 * chunks * SIMD) * SIMD), 1, chunks)


def too_many(shape: tuple[int, ...]) -> str | None:
    """Why a launch cannot take rows of this shape: no elements, or more threads than a grid has."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    if not rows or not width:
        return "no elements"
    across, down, _ = spread(width, rows).grid(rows)
    return f"{rows} rows, more threads than a grid has" if across * down > MOST_THREADS_OF_A_GRID else None


def keeps_up(width: int, rows: int) -> str | None:
    """Why a launch may not keep up with MLX's, unless each element is read once, or there are rows for every core."""
    return None if width <= HELD or rows >= MANY else f"{UNMEASURED}: {rows} rows of {width}, read twice"


def kind_of(mask: mx.array | str | None) -> MaskKind:
    """What a launch depends on."""
    return (mask.shape, mask.dtype) if isinstance(mask, mx.array) else mask


def unfit(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> str | None:
    """Why softmax's program cannot take these arguments."""
    return _unfit(x.shape, x.dtype, kind_of(mask))


@lru_cache(maxsize=1024)
def _unfit(shape: tuple[int, ...], dtype: mx.Dtype, mask: MaskKind) -> str | None:
    if dtype not in FLOATS:
        return f"{dtype}"
    if not 1 <= len(shape) <= MOST_DIMS:
        return f"{len(shape)} dims"
    if mask == "causal" and len(shape) < 2:
        return "a causal mask of one dim"
    if isinstance(mask, tuple):
        of_mask, given = mask
        if given not in (*FLOATS, mx.bool_):
            return f"a mask of {given}"
        if len(of_mask) > len(shape) or any(a not in (1, b) for a, b in zip(of_mask[::-1], shape[::-1])):
            return f"a mask {list(of_mask)}, to which {list(shape)} would be broadcast"
    return too_many(shape)


def wins(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> tuple[bool, str]:
    """Whether softmax's program is used, and why."""
    return _wins(x.shape, scale != 1, mask is not None)


@lru_cache(maxsize=1024)
def _wins(shape: tuple[int, ...], scaled: bool, masked: bool) -> tuple[bool, str]:
    if not scaled and not masked:
        return False, f"{UNMEASURED}: 1 launch to mx.softmax's 1, as many bytes"
    rows, width = math.prod(shape[:-1]), shape[-1]
    slow = keeps_up(width, rows)
    if slow is not None:
        return False, slow
    # MLX's is read and written for the scale and the mask, compiled or not, and then again, rows of more than ``HELD``
    # twice.
    times = "twice to three times" if width > HELD else "once to twice"
    return True, f"{UNMEASURED}: 1 launch to 2, the scores read {times} and written once to twice"


def why_apart(shape: tuple[int, ...], dtype: mx.Dtype) -> str | None:
    """Why a factor, a mask and the softmax of what is of this shape and dtype are computed one after the other.

    ``None`` where one launch does it all, on the device that MLX computes on in this context.
    """
    on, always = launching()
    if on is None:
        return "no kernel of ours is launched here; apart, mask and softmax take as long"
    reason = _unfit(shape, dtype, None)
    if reason is not None or always:
        return reason
    is_used, why = _wins(shape, True, True)
    return None if is_used else why


def log_unfit(x: mx.array) -> str | None:
    """Why log-softmax's program cannot take x."""
    return _unfit(x.shape, x.dtype, None)


def log_wins(x: mx.array) -> tuple[bool, str]:
    """Whether log-softmax's program is used, and why."""
    width = x.shape[-1]
    slow = keeps_up(width, x.size // width)
    if slow is not None:
        return False, slow
    # The best of MLX's is x - mx.logsumexp(x), which reads a row of any width once, then the difference does.
    return True, f"{UNMEASURED}: 1 launch to 2, x read {'twice as there' if width > HELD else 'once to twice'}"


@lru_cache(maxsize=1024)
def _how(shape: tuple[int, ...], dtype: mx.Dtype, mask: MaskKind, log: bool) -> Launch:
    rows, width = math.prod(shape[:-1]), shape[-1]
    by = spread(width, rows)
    of_mask = mask[1] if isinstance(mask, tuple) else mx.float32
    template = template_of(dtype, log, by, ("MASK", _number(mask)), ("M", of_mask))
    return Launch((shape,), (dtype,), by.grid(rows), by.threadgroup, template)


def template_of(dtype: mx.Dtype, log: bool, by: Rows, *others: tuple[str, int | mx.Dtype]) -> Template:
    """What the programs of softmax and of its gradient are instantiated by."""
    return (("T", dtype), ("LOG", log), ("CHUNKS", by.chunks), *others)


def _number(mask: MaskKind) -> int:
    if isinstance(mask, tuple):
        return _SEEN if mask[1] == mx.bool_ else _ADDED
    return _CAUSAL if mask == "causal" else _NONE


def softmax(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> Outputs:
    """``softmax(scale · x + mask)`` over the last dim, for arguments that are not ``unfit``."""
    by = scalar(scale)
    how = _how(x.shape, x.dtype, kind_of(mask), False)
    if not isinstance(mask, mx.array):
        return tuple(launch(_PLAIN, [x, by, by], how))
    # An array without dims has no shape that a kernel could read.
    return tuple(launch(_MASKED, [x, mask if mask.ndim else mask.reshape(1), by], how))


def log_softmax(x: mx.array) -> Outputs:
    """``x - log(sum(exp(x)))`` over the last dim, for x that is not ``log_unfit``."""
    one = scalar(1.0)
    return tuple(launch(_PLAIN, [x, one, one], _how(x.shape, x.dtype, None, True)))


def trial(x: mx.array, scale: float = 1.0, mask: mx.array | str | None = None) -> Trial:
    """Softmax's trial: rows and a mask like these."""
    shape, dtype, kind = tuple(x.shape), x.dtype, kind_of(mask)
    how, (rows, width) = _how(shape, dtype, kind, False), like(shape)

    def arguments() -> tuple[Any, ...]:
        # Scaled so that an omitted factor shows.
        if mask == "causal":
            seen = min(7, width)
            return 3 * normal((_blocks(rows, seen, how.threadgroup[1]), seen, width), dtype), 0.5, mask
        of_x = 3 * normal((rows, width), dtype)
        if not isinstance(kind, tuple):
            return of_x, 0.5, None
        of_mask, its = kind
        across = 1 if not of_mask or of_mask[-1] == 1 else width
        given = (across,) if is_small(*of_mask) else (rows, across)
        if its == mx.bool_:
            # Each row sees its first element; along a row repeated there is no other.
            return of_x, 0.5, (mx.arange(math.prod(given)).reshape(given) % across % 3 != 1)
        return of_x, 0.5, normal(given, its, 1)

    inputs = [(shape, dtype)]
    across = False
    if isinstance(kind, tuple):
        inputs.append(kind)
        across = bool(kind[0]) and kind[0][-1] != 1
    return Trial((*instantiation(how, *inputs), across, *_way(shape)), arguments)


def _blocks(rows: int, each: int, together: int) -> int:
    """How many blocks of so many rows are at least ``rows``, and do not fill the last threadgroup if they can."""
    least = ceil_div(rows, each)
    return next((count for count in range(least, least + together) if count * each % together), least)


def log_trial(x: mx.array) -> Trial:
    """Log-softmax's trial, likewise."""
    shape, dtype = tuple(x.shape), x.dtype
    key = instantiation(_how(shape, dtype, None, True), (shape, dtype))
    return Trial((*key, *_way(shape)), lambda: (3 * normal(like(shape), dtype),))


def like(shape: tuple[int, ...]) -> tuple[int, int]:
    """Few rows, as rows and columns, for which as many threads are launched, that go the same way as those given."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    by = spread(width, rows)
    odd = 3 if width % 4 else 4
    if by.threads > SIMD:
        held = HELD * _parts(width) - HELD // 2 if width > HELD else 4 * by.chunks * (by.threads - SIMD)
        return 9, held + odd
    few = rows if is_small(rows, width) else 9
    # Of many, in threadgroups of several, one more than fill these.
    return (MANY * by.together + 1 if rows >= 2 * MANY else few), width if is_small(width) else 96 * by.chunks + odd


def _way(shape: tuple[int, ...]) -> tuple[int, bool]:
    return _parts(shape[-1]), shape[-1] % 4 == 0


def _parts(width: int) -> int:
    """In how many parts a row is read, more than two being as three."""
    return min(3, ceil_div(width, HELD))


def trial_of_gradient(how: Launch, shape: tuple[int, ...], dtype: mx.Dtype, log: bool) -> Trial:
    """The trial of the launch for the gradient of a result of this shape."""
    rows = like(shape)

    def arguments() -> tuple[mx.array, mx.array, float, bool]:
        y = mx.softmax(3 * normal(rows, mx.float32), axis=-1)
        return (mx.log(y) if log else y).astype(dtype), normal(rows, dtype, 1), 0.5, log

    return Trial((*instantiation(how, (shape, dtype)), *_way(shape)), arguments)
