"""The launch of ``source/fused_lora.metal``: when it can be used, when it is, and with how many threads.

Its inputs keep their layout: the body reads strides, so neither a transposed factor, as of layers that keep PEFT's
``(rank, in)`` and ``(out, rank)``, nor a base that is repeated along the rows is copied.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import mlx.core as mx

from . import custom
from .custom import Launch, Program
from .matmul import as_rows
from .own import UNMEASURED, Trial
from .variant import Outputs

PROGRAM = Program("fused_lora", ("base", "x", "a", "b", "scale"), ("y",), contiguous=False)

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
MOST_RANK = 256
# Rows of x by block: as many as the rule ever uses, and the number that the benchmark goes up to.
TOKENS = (1, 2, 4, 8)
MOST_ROWS = 64
# By rows of a block: threads, as many as registers allow, and ranks of a thread at a time, as the body has them.
THREADS = {1: 512, 2: 512, 4: 256, 8: 256}
RANKS = {1: 2, 2: 2, 4: 4, 8: 4}
# Threadgroups along the columns of y. Each reads all of A, from a cache that all of them share.
MOST_GROUPS = 16
# A thread of its own for so many elements of A; fewer threads have too little to do.
PER_THREAD = 8
# Loads of a threadgroup in its first step, by which that step is bounded; see `wins`.
MOST_LOADS = 2**17


class Plan(NamedTuple):
    """What arguments of some shapes and dtypes lead to."""

    unfit: str | None
    wins: tuple[bool, str]
    how: Launch | None


def plan(base: mx.array | None, x: mx.array, a: mx.array, b: mx.array) -> Plan:
    """The plan for these arguments."""
    of_base = None if base is None else (base.shape, base.dtype)
    return _plan(of_base, x.shape, x.dtype, a.shape, a.dtype, b.shape, b.dtype)


@lru_cache(maxsize=1024)
def _plan(
    base: tuple[tuple[int, ...], mx.Dtype] | None,
    x: tuple[int, ...],
    dtype: mx.Dtype,
    a: tuple[int, ...],
    a_dtype: mx.Dtype,
    b: tuple[int, ...],
    b_dtype: mx.Dtype,
) -> Plan:
    unfit = _unfit(base, x, dtype, a, a_dtype, b, b_dtype)
    if unfit is not None:
        return Plan(unfit, (False, unfit), None)
    rows, (width, rank), out = prod(x[:-1]), a, b[1]
    tokens = next((size for size in TOKENS if rows <= size), TOKENS[-1])
    threads = THREADS[tokens]
    while threads > custom.SIMD and threads * PER_THREAD > width * rank:
        threads //= 2
    groups = min(custom.ceil_div(out, threads), MOST_GROUPS)
    how = Launch(
        shapes=((rows, out),),
        dtypes=(dtype,),
        grid=(groups * threads, custom.ceil_div(rows, tokens), 1),
        threadgroup=(threads, 1, 1),
        template=(("T", dtype), ("TOKENS", tokens), ("ADD", base is not None)),
    )
    return Plan(None, _wins(rows, tokens, width, rank, "2" if base is not None else "2 (3 with a scale)"), how)


def _unfit(
    base: tuple[tuple[int, ...], mx.Dtype] | None,
    x: tuple[int, ...],
    dtype: mx.Dtype,
    a: tuple[int, ...],
    a_dtype: mx.Dtype,
    b: tuple[int, ...],
    b_dtype: mx.Dtype,
) -> str | None:
    dtypes = {dtype, a_dtype, b_dtype, *(() if base is None else base[1:])}
    if dtypes != {dtype} or dtype not in DTYPES:
        return f"operands of {', '.join(sorted(str(each).removeprefix('mlx.core.') for each in dtypes))}"
    if len(a) != 2 or len(b) != 2 or not x or x[-1] != a[0] or a[1] != b[0]:
        return "the shapes do not fit"
    if base is not None and base[0] != (*x[:-1], b[1]):
        return "the base has another shape than the sum"
    if 0 in (*x, *a, *b):
        return "a size is 0"
    if max(a[0], b[1]) > custom.MOST_THREADS_OF_A_GRID:  # steps along them are counted in 32 bits
        return f"rows of {a[0]} and {b[1]}"
    if a[1] > MOST_RANK:
        return f"a rank above {MOST_RANK}"
    return f"more than {MOST_ROWS} rows" if prod(x[:-1]) > MOST_ROWS else None


def _wins(rows: int, tokens: int, width: int, rank: int, launches: str) -> tuple[bool, str]:
    """One launch instead of two or three, as long as its first step takes no longer than a launch does.

    Every threadgroup loads all of A and, for each ``RANKS`` elements of a row of it, one of each row of x. 2^17 loads
    are 4,096 instructions of a simdgroup: 2 to 3 us for a core that issues one a cycle at 1.4 to 1.8 GHz, which is
    about what a launch costs. MLX's own ``x @ A`` has so few columns that it too runs on few cores.
    """
    if rows > TOKENS[-1]:
        return False, f"{UNMEASURED}: more than {TOKENS[-1]} rows"
    loads = width * rank * (RANKS[tokens] + tokens) // RANKS[tokens]
    if loads > MOST_LOADS:
        return False, f"{UNMEASURED}: {loads} loads for x · A in each threadgroup, more than {MOST_LOADS}"
    return True, f"{UNMEASURED}: 1 launch to {launches}, {loads} loads for x · A in each threadgroup"


def lora_forward(x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    """``scale · (x · a) · b`` in one launch, x · a and the sums in float32."""
    return (_launch(None, x, a, b, scale),)


def add_forward(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> Outputs:
    """``base + scale · (x · a) · b`` likewise."""
    return (_launch(base, x, a, b, scale),)


def _launch(base: mx.array | None, x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    how = plan(base, x, a, b).how
    assert how is not None
    beside = b if base is None else as_rows(base)
    (y,) = custom.launch(PROGRAM, (beside, as_rows(x), a, b, custom.scalar(scale)), how)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], b.shape[1])


def trial(base: mx.array | None, x: mx.array, a: mx.array, b: mx.array) -> Trial:
    """A launch of the same instantiation and number of threads, for at most 4,096 elements a row and 40 columns."""
    how = plan(base, x, a, b).how
    assert how is not None
    rows, width, rank, out = min(how.shapes[0][0], TOKENS[-1]), min(a.shape[0], 4096), a.shape[1], min(b.shape[1], 40)
    shapes = [(rows, out), (rows, width), (width, rank), (rank, out)][base is None :]
    dtype = x.dtype

    def arguments() -> tuple[mx.array | float, ...]:
        keys = mx.random.split(mx.random.key(0), len(shapes))
        given = [mx.random.normal(shape, dtype, key=key) for shape, key in zip(shapes, keys)]
        # An update as large as the base, so that either would be missed.
        given[-2] = given[-2] * (2 / (width * rank) ** 0.5)
        return (*given, 0.5)

    # MLX passes arrays of fewer than 8 elements by another address space.
    return Trial((how.template, how.threadgroup, *[prod(shape) < 8 for shape in shapes]), arguments)
