"""Low-rank adaptation where the rows of a batch belong to different adapters, of different ranks.

One launch computes it for few rows: the idea of Punica's SGMV, Chen et al. 2023, https://arxiv.org/abs/2310.18547, and
of S-LoRA, Sheng et al. 2023, https://arxiv.org/abs/2311.03285, which keep the adapters' factors in one buffer and let
each row find its own. Here both products, the scale and the sum are one launch.

Elsewhere MLX's operations, in one of two ways that keep what an adapter holds from the rows of others. The third would
be the fastest, all adapters' products at once with zeros at rank where a row is another's, but 0 times another's inf
is NaN.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from . import custom
from .custom import Launch, Program
from .kernel import Kernel, on_cpu
from .lora_launch import DTYPES, MOST_LOADS, MOST_RANK, PER_THREAD
from .matmul import addmm, as_rows, matmul
from .own import UNMEASURED, Own, Trial
from .variant import Gradients, Outputs, Variant

PROGRAM = Program("grouped_lora", ("base", "x", "ids", "a", "b", "offsets", "scales"), ("y",), contiguous=False)

THREADS = 512
RANKS = 8
MOST_ROWS = custom.MOST_GROUPS
# Rows up to which the rule takes the launch.
FEW_ROWS = 64
# Threadgroups in all that the columns are split for; each of a row reads all of its adapter's A.
GROUPS = 64
# Rows of one id from which two adapters are enough for "gathered", which goes over each row once, not for each adapter.
# Measured on an x86-64 core, width 576 and 2048, rank 8 and 32: alternating calls, the time to the definition's.
# - "gathered", 16 rows an id and more: float32 0.58 to 1.1 for 2 adapters, 0.05 to 0.6 for 8; bfloat16 0.02 to 0.27.
# - "gathered", 1 to 4 rows of up to 8 ids, float32: for 2 adapters 0.9 to 2.8; from a quarter of the rank on, at least
#   4 adapters, 0.6 to 1.1 for 4 of rank 8, 0.3 to 0.9 for 8 of rank 32.
# - "one by one": float32 0.8 to 1.1; bfloat16 0.06 to 0.9 from 4 rows on, for a single one 0.6 to 1.7.
# On a GPU "gathered" takes about ten launches, "one by one" four for each adapter.
TOGETHER = 16
# Ids up to which their factors are copied for any number of rows: for each as much as rank rows of x and y.
FEW_IDS = 16
# Adapters from which it is worth while to copy no more factors than there are. Measured likewise, one row an id, ranks
# from 4 to 64: 1.1 to 1.2 for 2 and 4 adapters, 0.4 to 0.7 for 16.
MANY = 8
_IDS = (mx.int32, mx.uint32, mx.int16, mx.uint16, mx.int8, mx.uint8)


class Adapters(NamedTuple):
    """The ranks of adapters, and what the product of each is multiplied by."""

    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    def offsets(self) -> tuple[int, ...]:
        """Where the rows of each begin in the packed factors, and where those of the last end."""
        return (0, *accumulate(self.ranks))


def _reference(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> mx.array:
    """``base + scale_g · (x · a_gᵀ) · b_g`` for each row, g its id: base ``(…, out)``, x ``(…, in)``.

    ids are integers of x's leading shape, or of the first dims of it; a row whose id names no adapter keeps its base.
    a ``(Σ ranks, in)`` and b ``(Σ ranks, out)`` hold the adapters' factors below each other.

    What an adapter or a row holds reaches the result of no other row, be it NaN. Of the gradients that is so of base's;
    the others multiply it by the zeros that stand for other adapters' rows, which makes NaN of NaN and infinities.
    """
    own = _as_int32(ids, len(adapters.ranks)).reshape(ids.shape + (1,) * (x.ndim - ids.ndim))
    offsets = adapters.offsets()
    result = base
    for i, scale in enumerate(adapters.scales):
        rows = slice(offsets[i], offsets[i + 1])
        result = mx.where(own == i, base + scale * (x @ a[rows].T) @ b[rows], result)
    return result


def _one_by_one(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> Outputs:
    """As the definition does it, in two products for each adapter."""
    rows, kept = as_rows(x), as_rows(base)
    own = _as_int32(_of_rows(ids, x), len(adapters.ranks)).reshape(-1, 1)
    offsets = adapters.offsets()
    result = kept
    for i, scale in enumerate(adapters.scales):
        factors = slice(offsets[i], offsets[i + 1])
        result = mx.where(own == i, addmm(kept, matmul(rows, a[factors].T), b[factors], alpha=scale), result)
    return (result.reshape(base.shape),)


def _gathered(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> Outputs:
    """Each id's rows by the factors that it names, in two products for any number of adapters."""
    count, out = len(adapters.ranks), b.shape[1]
    own = _as_int32(ids, count).reshape(ids.size)
    known = (own >= 0) & (own < count)
    at = mx.where(known, own, 0)
    kept = base.reshape(ids.size, -1, out)
    scales = _tables(adapters)[1].astype(x.dtype)[at].reshape(-1, 1, 1)
    # Not mx.gather_mm, which MLX can neither batch nor give tangents of.
    places, theirs = _places(adapters)
    of_a, of_b = a[places[at]].swapaxes(1, 2), b[places[at]]
    at_rank = matmul(x.reshape(ids.size, -1, x.shape[-1]), of_a) * scales
    if theirs is not None:
        # Both: 0 times another adapter's infinity is NaN.
        held = theirs[at]
        at_rank = mx.where(held[:, None, :], at_rank, mx.array(0, x.dtype))
        of_b = mx.where(held[:, :, None], of_b, mx.array(0, x.dtype))
    summed = kept + matmul(at_rank, of_b)
    return (mx.where(known.reshape(-1, 1, 1), summed, kept).reshape(base.shape),)


def _vjp(
    cotangent: mx.array,
    inputs: tuple[mx.array, ...],
    outputs: Outputs,
    needs: tuple[bool, ...],
    adapters: Adapters,
) -> Gradients:
    """All adapters' products at once, and at rank zeros where a row is another's: four to five products for any number.

    They take as many multiplications as the definition's two for each adapter and each gradient. To keep NaN and
    infinities in their rows would take copies of x and the cotangent for each adapter, with zeros for other rows.
    """
    _, x, ids, a, b = inputs
    rows, upstream = as_rows(x), as_rows(cotangent)
    owner, scales = _columns(adapters)
    mine = _of_rows(ids, x).reshape(-1, 1) == owner
    scale, none = scales.astype(x.dtype), mx.array(0, x.dtype)
    of_x = of_a = of_b = None
    if needs[1] or needs[3]:
        at_rank = mx.where(mine, matmul(upstream, b.T) * scale, none)
        of_x = matmul(at_rank, a).reshape(x.shape) if needs[1] else None
        of_a = matmul(at_rank.T, rows) if needs[3] else None
    if needs[4]:
        of_b = matmul(mx.where(mine, matmul(rows, a.T) * scale, none).T, upstream)
    return cotangent if needs[0] else None, of_x, None, of_a, of_b


@lru_cache(maxsize=256)
def _columns(adapters: Adapters) -> tuple[mx.array, mx.array]:
    """For each row of the packed factors its adapter and its scale."""
    # From NumPy, so that they are there at once: a value that MLX has yet to compute belongs to a thread's stream.
    owner = np.repeat(np.arange(len(adapters.ranks), dtype=np.int32), adapters.ranks)
    return mx.array(owner), mx.array(np.repeat(np.array(adapters.scales, np.float32), adapters.ranks))


@lru_cache(maxsize=256)
def _places(adapters: Adapters) -> tuple[mx.array, mx.array | None]:
    """Of each adapter the rows of the packed factors, as many as the largest rank, and which of them are its own.

    ``None`` where all are.
    """
    ranks = np.array(adapters.ranks, np.int32)[:, None]
    along = np.arange(max(adapters.ranks), dtype=np.int32)
    theirs = along < ranks
    places = np.where(theirs, np.array(adapters.offsets()[:-1], np.int32)[:, None] + along, 0)
    return mx.array(places.astype(np.int32)), None if theirs.all() else mx.array(theirs)


@lru_cache(maxsize=256)
def _tables(adapters: Adapters) -> tuple[mx.array, mx.array]:
    """Offsets and scales as the body takes them."""
    return mx.array(np.array(adapters.offsets(), np.int32)), mx.array(np.array(adapters.scales, np.float32))


def _of_rows(ids: mx.array, x: mx.array) -> mx.array:
    """An id for each row of x."""
    leading = x.shape[:-1]
    if ids.shape != leading:
        ids = mx.broadcast_to(ids.reshape(ids.shape + (1,) * (len(leading) - ids.ndim)), leading)
    return ids.reshape(prod(leading))


class _Plan(NamedTuple):
    misfit: str | None  # why only the definition takes them
    unfit: str | None
    wins: tuple[bool, str]
    how: Launch | None


def _plan(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> _Plan:
    shapes = (base.shape, x.shape, ids.shape, a.shape, b.shape)
    return _planned(shapes, (base.dtype, x.dtype, a.dtype, b.dtype), ids.dtype, adapters)


@lru_cache(maxsize=1024)
def _planned(
    shapes: tuple[tuple[int, ...], ...], dtypes: tuple[mx.Dtype, ...], of_ids: mx.Dtype, adapters: Adapters
) -> _Plan:
    misfit = _misfit(shapes, dtypes, of_ids, adapters)
    unfit = misfit or _unfit(shapes[1], shapes[4][1], adapters)
    if unfit is not None:
        return _Plan(misfit, unfit, (False, unfit), None)
    (*leading, width), out = shapes[1], shapes[4][1]
    rows, rank = prod(leading), max(adapters.ranks)
    threads = THREADS
    while threads > custom.SIMD and threads * PER_THREAD > width * rank:
        threads //= 2
    groups = max(1, min(custom.ceil_div(out, threads), GROUPS // rows))
    how = Launch(
        shapes=((rows, out),),
        dtypes=dtypes[:1],
        grid=(groups * threads, rows, 1),
        threadgroup=(threads, 1, 1),
        template=(("T", dtypes[0]),),
    )
    return _Plan(None, None, _wins(rows, width, rank), how)


def _misfit(
    shapes: tuple[tuple[int, ...], ...], dtypes: tuple[mx.Dtype, ...], of_ids: mx.Dtype, adapters: Adapters
) -> str | None:
    base, x, ids, a, b = shapes
    if len({*dtypes}) > 1 or dtypes[0] not in DTYPES:
        return "operands of " + ", ".join(str(dtype).removeprefix("mlx.core.") for dtype in dtypes)
    if not mx.issubdtype(of_ids, mx.integer):
        return f"ids of {of_ids}"
    total = sum(adapters.ranks)
    if not x or a != (total, x[-1]) or len(b) != 2 or b[0] != total or base != (*x[:-1], b[1]):
        return "the shapes do not fit"
    if ids != x[: len(ids)] or len(ids) >= len(x):
        return "ids of another shape than the rows"
    if 0 in (*base, *x, *adapters.ranks) or not adapters.ranks:
        return "a size is 0"
    return None


def _unfit(x: tuple[int, ...], out: int, adapters: Adapters) -> str | None:
    if max(x[-1], out) > custom.MOST_THREADS_OF_A_GRID:  # steps along them are counted in 32 bits
        return f"rows of {x[-1]} and {out}"
    if max(adapters.ranks) > MOST_RANK:
        return f"a rank above {MOST_RANK}"
    return f"more than {MOST_ROWS} rows" if prod(x[:-1]) > MOST_ROWS else None


def _wins(rows: int, width: int, rank: int) -> tuple[bool, str]:
    """One launch to the three of all adapters' products at once; bounded as ``lora_launch`` says.

    Those read the factors of all adapters, the launch those that rows belong to.
    """
    loads = width * rank * (RANKS + 1) // RANKS
    if rows > FEW_ROWS:
        return False, f"{UNMEASURED}: more than {FEW_ROWS} rows"
    if loads > MOST_LOADS:
        return False, f"{UNMEASURED}: {loads} loads for x · A in each threadgroup, more than {MOST_LOADS}"
    return True, f"{UNMEASURED}: 1 launch to 3, {loads} loads for x · A in each threadgroup"


def _forward(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> Outputs:
    how = _plan(base, x, ids, a, b, adapters).how
    assert how is not None
    inputs = (as_rows(base), as_rows(x), _as_int32(_of_rows(ids, x), len(adapters.ranks)), a, b, *_tables(adapters))
    (y,) = custom.launch(PROGRAM, inputs, how)
    return (y if x.ndim == 2 else y.reshape(base.shape),)


def _as_int32(ids: mx.array, count: int) -> mx.array:
    if ids.dtype == mx.int32:
        return ids
    if ids.dtype not in _IDS:
        # Cut to 32 bits, an id far outside could become one of an adapter.
        ids = mx.where((ids >= 0) & (ids < count), ids, mx.array(count, ids.dtype))
    return ids.astype(mx.int32)


def _trial(base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters) -> Trial:
    """The same adapters on at most 8 rows of at most 4,096 elements and 40 columns."""
    how = _plan(base, x, ids, a, b, adapters).how
    assert how is not None
    rows, width, out = min(how.shapes[0][0], 8), min(x.shape[-1], 4096), min(base.shape[-1], 40)
    total, count = sum(adapters.ranks), len(adapters.ranks)
    shapes = [(rows, out), (rows, width), (total, width), (total, out)]

    def arguments() -> tuple[Any, ...]:
        keys = mx.random.split(mx.random.key(0), 4)
        base, x, a, b = (mx.random.normal(shape, x_dtype, key=key) for shape, key in zip(shapes, keys))
        # An update as large as the base, so that either would be missed.
        a = a * (1 / (width * max(1, *adapters.ranks)) ** 0.5)
        return base, x, mx.array(np.arange(rows) % (count + 1), mx.int32), a, b, adapters

    x_dtype = x.dtype
    # MLX passes arrays of fewer than 8 elements by another address space.
    small = [prod(shape) < 8 for shape in (*shapes, (rows,), (count + 1,), (count,))]
    return Trial((how.template, how.threadgroup, *small), arguments)


_OWN = Own(
    "grouped_lora",
    _forward,
    fits=lambda *arguments: _plan(*arguments).unfit,
    wins=lambda *arguments: _plan(*arguments).wins,
    trial=_trial,
    vjp=_vjp,
)


_ONE_BY_ONE = Variant("one by one", _one_by_one, _vjp)
_GATHERED = Variant("gathered", _gathered, _vjp)


def _select(
    base: mx.array, x: mx.array, ids: mx.array, a: mx.array, b: mx.array, adapters: Adapters
) -> tuple[Variant | None, str]:
    misfit = _plan(base, x, ids, a, b, adapters).misfit
    if misfit is not None:
        return None, misfit
    largest = max(adapters.ranks)
    together = x.size // x.shape[-1] // ids.size
    if len(adapters.ranks) >= MANY and ids.size * largest <= sum(adapters.ranks):
        return _GATHERED, f"{ids.size} ids copy no more factors than there are"
    if ids.size > FEW_IDS and together < largest:
        return _ONE_BY_ONE, f"{ids.size} ids, whose factors would be copied for {together} rows each"
    # What "one by one" takes products of, in adapters of the largest rank.
    count = sum(adapters.ranks) // largest
    least = 2 if together >= TOGETHER and on_cpu() else max(4, largest // 4)
    if count < least:
        return _ONE_BY_ONE, f"adapters worth {count} of rank {largest}, fewer than {least}"
    return _GATHERED, f"adapters worth {least} of rank {largest}, or more"


grouped_lora = Kernel("grouped_lora", _reference, _select, arity=5, own=_OWN)
