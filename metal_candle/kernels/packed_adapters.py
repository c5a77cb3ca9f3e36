"""Several adapters of one layer, packed once so that ``grouped_lora`` finds those of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Union

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError, ArgumentValueError
from ..error.text import described, shown
from .grouped_lora import Adapters, grouped_lora

Ids = Union[mx.array, Sequence[Any], np.ndarray[Any, Any]]

NONE = 2**32 - 1
"""The id of a row without adapter, candle's for "no entry"."""


class Factors(NamedTuple):
    """One adapter: a ``(in, rank)``, b ``(rank, out)``, and what their product is multiplied by.

    The factors are of MLX, or of NumPy, whose float64 becomes float32.
    """

    a: mx.array | np.ndarray[Any, Any]
    b: mx.array | np.ndarray[Any, Any]
    scale: float = 1.0


class PackedAdapters:
    """The factors of several adapters of one layer, below each other: a ``(Σ ranks, in)``, b ``(Σ ranks, out)``.

    ``names`` has their order, ``adapters`` their ranks and scales. Packing copies the factors and is differentiable;
    what changes in them later does not reach the copy. A tuple may stand for ``Factors``.

    Raises ``ArgumentTypeError`` for what is no mapping to ``Factors``, ``ArgumentValueError`` for no adapters, and for
    factors that do not fit each other or the first adapter's or are not of floats.

    >>> from metal_candle.kernels.packed_adapters import Factors, PackedAdapters
    >>> import mlx.core as mx
    >>> packed = PackedAdapters({"fr": Factors(mx.ones((3, 2)), mx.ones((2, 4)), 0.5)})
    >>> packed(mx.zeros((2, 4)), mx.ones((2, 3)), packed.ids(["fr", None]))
    array([[3, 3, 3, 3],
           [0, 0, 0, 0]], dtype=float32)
    """

    def __init__(self, factors: Mapping[str, tuple[Any, ...]]) -> None:
        if not isinstance(factors, Mapping):
            raise ArgumentTypeError(f"PackedAdapters: got {described(factors)}; takes a mapping of names to Factors")
        if not factors:
            raise ArgumentValueError("PackedAdapters: got no adapters; takes one or more")
        read = {name: _read(name, each) for name, each in factors.items()}
        first = next(iter(read.values()))
        for name, (a, b, _) in read.items():
            _expect(name, a, b, first[0], first[1])
        self.names = tuple(read)
        self.a = mx.concatenate([a.T for a, _, _ in read.values()])
        self.b = mx.concatenate([b for _, b, _ in read.values()])
        ranks = tuple(a.shape[1] for a, _, _ in read.values())
        self.adapters = Adapters(ranks, tuple(scale for _, _, scale in read.values()))
        self._places = {name: place for place, name in enumerate(read)}

    def ids(self, names: Sequence[str | None]) -> mx.array:
        """The ids of these adapters, ``(len(names),)`` uint32; ``None`` is a row without one.

        Raises ``ArgumentTypeError`` for what is no sequence, ``ArgumentValueError`` for a name that is not packed.
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ArgumentTypeError(f"PackedAdapters.ids: got {described(names)}; takes a sequence of names")
        for name in names:
            # A list has no hash, by which it could be looked up.
            if name is not None and not (isinstance(name, str) and name in self._places):
                takes = shown(", ".join(self.names))
                raise ArgumentValueError(f"PackedAdapters.ids: got {described(name)}; takes {takes} or None")
        return mx.array(np.array([NONE if name is None else self._places[name] for name in names], np.uint32))

    def __call__(self, base: mx.array, x: mx.array, ids: Ids) -> mx.array:
        """``base`` ``(…, out)`` plus, for each row of x ``(…, in)``, the delta of its adapter.

        ids are integers of x's leading shape or the first dims of it, or a sequence of names as ``ids`` takes them.
        Raises ``ArgumentTypeError`` for base and x that are no arrays of MLX, ``ArgumentValueError`` for other shapes
        or dtypes.
        """
        for name, array in (("base", base), ("x", x)):
            if not isinstance(array, mx.array):
                raise ArgumentTypeError(
                    f"PackedAdapters: got {described(array)} for {name}; takes an mx.array (tensors: base.grouped_lora)"
                )
        if not isinstance(ids, mx.array):
            ids = self._ids_of(ids)
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

    def _ids_of(self, given: Any) -> mx.array:
        if isinstance(given, Sequence) and any(isinstance(each, str) or each is None for each in given):
            return self.ids(given)
        try:
            read = np.array(given)
        except ValueError:  # rows of different lengths
            read = np.array(None)
        if read.dtype.kind not in "iuf":
            takes = "integers or a sequence of names"
            raise ArgumentTypeError(f"PackedAdapters: got {described(given)} for ids; takes {takes}")
        return mx.array(read)

    def __len__(self) -> int:
        """How many adapters there are."""
        return len(self.names)

    def __repr__(self) -> str:
        ranks = ", ".join(f"{name}: {rank}" for name, rank in zip(self.names, self.adapters.ranks))
        return f"PackedAdapters({self.a.shape[1]} to {self.b.shape[1]}, ranks {ranks})"


def _read(name: str, given: Any) -> tuple[mx.array, mx.array, float]:
    """The factors as MLX's arrays, and the scale."""
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        raise ArgumentTypeError(f"PackedAdapters: got {name!r} with {described(given)}; takes Factors(a, b, scale)")
    a, b, scale = Factors(*given)
    for factor in (a, b):
        if not isinstance(factor, (mx.array, np.ndarray)):
            raise ArgumentTypeError(
                f"PackedAdapters: got {name!r} with {described(factor)} for a factor; takes arrays of MLX or NumPy"
            )
    try:
        number = float(scale if not isinstance(scale, (str, bytes)) else "")
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"PackedAdapters: got {name!r} with scale {described(scale)}; takes a number") from None
    return mx.array(a), mx.array(b), number


def _expect(name: str, a: mx.array, b: mx.array, first_a: mx.array, first_b: mx.array) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not a.shape[1]:
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} with {a.shape} and {b.shape}; takes (in, rank), (rank, out)"
        )
    if (a.shape[0], b.shape[1]) != (first_a.shape[0], first_b.shape[1]):
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} from {a.shape[0]} to {b.shape[1]}; takes the first adapter's "
            f"{first_a.shape[0]} to {first_b.shape[1]}"
        )
    if not mx.issubdtype(first_a.dtype, mx.floating):
        raise ArgumentValueError(f"PackedAdapters: got {name!r} of {a.dtype} and {b.dtype}; takes floats")
    if {a.dtype, b.dtype} != {first_a.dtype}:
        raise ArgumentValueError(
            f"PackedAdapters: got {name!r} of {a.dtype} and {b.dtype}; takes the first adapter's {first_a.dtype}"
        )
