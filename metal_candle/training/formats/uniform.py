"""One rank and one scale for all modules, for formats that hold no others; exact, or refused."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import mlx.core as mx

from ...error import CheckpointError
from .stored import Factors, StoredAdapter


def with_one_rank(adapter: StoredAdapter) -> StoredAdapter:
    """The same deltas at the largest rank there is: columns of zeros for A, rows of zeros for B. Exact."""
    rank = max(factors.rank for factors in adapter.factors.values())
    padded = {path: _padded(factors, rank) for path, factors in adapter.factors.items()}
    count = sum(factors.rank != rank for factors in adapter.factors.values())
    note = (f"{count} of {len(padded)} modules padded with zeros to rank {rank}",) if count else ()
    return replace(adapter, rank=rank, factors=padded, notes=(*adapter.notes, *note))


def with_one_scale(adapter: StoredAdapter, target: str, fold_scales: bool = False) -> StoredAdapter:
    """The same deltas at the commonest scale: the quotient of a module's own goes into its B.

    A quotient that is a power of two is exact. Others round each number of B once, in F32, by a relative 6e-8 at
    most: only with ``fold_scales``; else they raise ``CheckpointError.InvalidFormat``, naming the module.
    """
    counts = Counter(factors.scale for factors in adapter.factors.values())
    scale = adapter.scale if counts[adapter.scale] == max(counts.values()) else counts.most_common(1)[0][0]
    folded = {}
    exact = rounded = 0
    for path, factors in adapter.factors.items():
        if factors.scale == scale:
            folded[path] = factors
            continue
        ratio = factors.scale / scale
        b = _times(factors.b, ratio)
        if b is not None:
            exact += 1
        elif fold_scales:
            rounded += 1
            b = factors.b.astype(mx.float32) * ratio
            norm = replace(factors, b=b, scale=scale).norm()
            if not math.isclose(norm, factors.norm(), rel_tol=1e-5):
                raise CheckpointError.InvalidFormat(
                    reason=f"{adapter.source}: {path} has scale {factors.scale:g}, others {scale:g}: too far apart to "
                    f"fold the one into B, whose numbers leave F32's range; {target} cannot hold this adapter"
                )
        else:
            raise CheckpointError.InvalidFormat(
                reason=f"{adapter.source}: {path} has scale {factors.scale:g}, others {scale:g}; {target} holds one "
                f"for all (no rank_pattern, alpha_pattern): fold the others into B (fold_scales=True, "
                f"--fold-scales), which rounds B once, by 6e-8 at most"
            )
        folded[path] = replace(factors, b=b, scale=scale)
    notes = []
    if exact:
        notes.append(f"the scales of {exact} modules are in their B, exactly (by powers of two)")
    if rounded:
        notes.append(f"the scales of {rounded} modules are in their B, rounded once in F32")
    return replace(adapter, scale=scale, factors=folded, notes=(*adapter.notes, *notes))


def _padded(factors: Factors, rank: int) -> Factors:
    if (lacking := rank - factors.rank) == 0:
        return factors
    return replace(factors, a=mx.pad(factors.a, [(0, 0), (0, lacking)]), b=mx.pad(factors.b, [(0, lacking), (0, 0)]))


def _times(b: mx.array, ratio: float) -> mx.array | None:
    """``b · ratio`` where that is exact: a power of two, and no number leaves its dtype's range."""
    if math.frexp(ratio)[0] != 0.5:
        return None
    product = b * mx.array(ratio, b.dtype)
    return product if mx.array_equal(product * mx.array(1 / ratio, b.dtype), b).item() else None
