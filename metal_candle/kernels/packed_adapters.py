"""Several adapters of one layer, packed once so that ``grouped_lora`` finds those of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..error import ArgumentValueError
from .grouped_lora import Adapters, grouped_lora

NONE = 2**32 - 1
"""The id of a row without adapter, candle's for "no entry"."""


class Factors(NamedTuple):
    """One adapter: a ``(in, rank)``, b ``(rank, out)``, and what their product is multiplied by."""

    a: mx.array
    b: mx.array
    scale: float = 1.0


class PackedAdapters:
    """The factors of several adapters of one layer, below each other: a ``(Σ ranks, in)``, b ``(Σ ranks, out)``.

    ``names`` has their order, ``adapters`` their ranks and scales. Packing copies the factors and is differentiable;
    what changes in them later does not reach the copy.

    Raises ``ArgumentValueError`` for no adapters, and for factors that do not fit each other or the first adapter's.

    >>> import mlx.core as mx
    >>> packed = PackedAdapters({"fr": Factors(mx.ones((3, 2)), mx.ones((2, 4)), 0.5)})
    >>> packed(mx.zeros((2, 4)), mx.ones((2, 3)), packed.ids(["fr", None]))
    array([[3, 3, 3, 3],
           [0, 0, 0, 0]], dtype=float32)
    """

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        if not factors:
            raise ArgumentValueError("PackedAdapters: got no adapters; takes one or more")
        first = next(iter(factors.values()))
        for name, each in factors.items():
            _expect(name, each, first)
        self.names = tuple(factors)
        self.a = mx.concatenate([each.a.T for each in factors.values()])
        self.b = mx.concatenate([each.b for each in factors.values()])
        ranks = tuple(each.a.shape[1] for each in factors.values())
        self.adapters = Adapters(ranks, tuple(float(each.scale) for each in factors.values()))
        self._places = {name: place for place, name in enumerate(factors)}

    def ids(self, names: Sequence[str | None]) -> mx.array:
        """The ids of these adapters, ``(len(names),)`` uint32; ``None`` is a row without one.

        Raises ``ArgumentValueError`` for a name that is not packed.
        """
        unknown = [name for name in names if name is not None and name not in self._places]
        if unknown:
            raise ArgumentValueError(f"PackedAdapters.ids: got {unknown[0]!r}; takes {', '.join(self.names)} or None")
        return mx.array(np.array([NONE if name is None else self._places[name] for name in names], np.uint32))

    def __call__(self, base: mx.array, x: mx.array, ids: mx.array) -> mx.array:
        """``base`` ``(…, out)`` plus, for each row of x ``(…, in)``, the delta of its adapter.

        ids are integers of x's leading shape or the first dims of it. Raises ``ArgumentValueError`` for other shapes
        or dtypes.
        """
        if x.ndim == 0 or x.shape[-1] != self.a.shape[1] or base.shape != (*x.shape[:-1], self.b.shape[1]):
            takes = f"(…, {self.b.shape[1]}) and (…, {self.a.shape[1]})"
            raise ArgumentValueError(f"PackedAdapters: got base {base.shape} and x {x.shape}; takes {takes}")
        if ids.ndim >= x.ndim or ids.shape != x.shape[: ids.ndim] or not mx.issubdtype(ids.dtype, mx.integer):
            raise ArgumentValueError(
                f"PackedAdapters: got ids {ids.shape} of {ids.dtype}; takes integers of {x.shape[:-1]}, or fewer dims"
            )
        if base.dtype != x.dtype or x.dtype != self.a.dtype:
            raise ArgumentValueError(
                f"PackedAdapters: got base of {base.dtype} and x of {x.dtype}; takes the factors' {self.a.dtype}"
            )
        summed: mx.array = grouped_lora(base, x, ids, self.a, self.b, self.adapters)
        return summed

    def __len__(self) -> int:
        """How many adapters there are."""
        return len(self.names)

    def __repr__(self) -> str:
        ranks = ", ".join(f"{name}: {rank}" for name, rank in zip(self.names, self.adapters.ranks))
        return f"PackedAdapters({self.a.shape[1]} to {self.b.shape[1]}, ranks {ranks})"


def _expect(name: str, each: Factors, first: Factors) -> None:
    a, b = each.a, each.b
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not a.shape[1]:
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} with {a.shape} and {b.shape}; takes (in, rank), (rank, out)"
        )
    if (a.shape[0], b.shape[1]) != (first.a.shape[0], first.b.shape[1]):
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} from {a.shape[0]} to {b.shape[1]}; takes the first adapter's "
            f"{first.a.shape[0]} to {first.b.shape[1]}"
        )
    if {a.dtype, b.dtype} != {first.a.dtype}:
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} of {a.dtype} and {b.dtype}; takes the first adapter's {first.a.dtype}"
        )
