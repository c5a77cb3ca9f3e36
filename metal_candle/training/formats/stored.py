"""A LoRA adapter as files hold it, whatever their format: what every reader gives and every writer takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from ...error import CheckpointError
from ...error.expect import a
from ...error.text import described


class Format(Enum):
    """The formats of adapters; the values are the names that the command line and ``LoRAAdapter.save`` take."""

    Peft = "peft"
    MlxLm = "mlx-lm"
    MetalCandle = "metal-candle"
    Gguf = "gguf"

    @staticmethod
    def of(name: str | Format) -> Format:
        """The format of that name. Raises ``CheckpointError.InvalidFormat``."""
        for member in Format:
            if name in (member, member.value):
                return member
        what = f"{name!r} does not exist" if isinstance(name, str) else f"is {described(name)}"
        takes = ", ".join(member.value for member in Format)
        raise CheckpointError.InvalidFormat(reason=f"adapter format {what}; takes {takes}")


@dataclass(frozen=True)
class Factors:
    """One module's adapter: ``y = x Wᵀ + scale · (x A) B``."""

    a: mx.array
    """Shape (in, rank)."""
    b: mx.array
    """Shape (rank, out)."""
    scale: float
    """What the product is multiplied by, whatever rule of the file it came from."""

    @property
    def rank(self) -> int:
        """Inner dimension of the two factors."""
        return int(self.a.shape[1])

    @property
    def alpha(self) -> float:
        """The alpha whose quotient by the rank is the scale."""
        return alpha_for(self.scale, self.rank)

    def norm(self) -> float:
        """The Frobenius norm of ``scale · A B``, in double precision.

        The product is not formed: ``‖A B‖² = tr(BᵀAᵀA B) = Σ (AᵀA) ∘ (B Bᵀ)``, two matrices of rank by rank.
        """
        a, b = (each.astype(np.float64) for each in self._numbers())
        with np.errstate(all="ignore"):  # what is not finite comes out as such
            squared = float(((a.T @ a) * (b @ b.T)).sum())
        return abs(self.scale) * (math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.nan)

    def is_finite(self) -> bool:
        """Whether no number of A and B is infinite or NaN."""
        return all(bool(np.isfinite(each).all()) for each in self._numbers())

    def _numbers(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A and B in F32, in MLX's memory where they are so there."""
        a, b = (np.array(each.astype(mx.float32), copy=False) for each in (self.a, self.b))
        return a, b


def widened_together(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Factors in F32, computed: all in one evaluation, where one for each takes longer than its numbers."""
    widened = {
        path: replace(each, a=each.a.astype(mx.float32), b=each.b.astype(mx.float32)) for path, each in factors.items()
    }
    mx.eval([array for each in widened.values() for array in (each.a, each.b)])
    return widened


@dataclass(frozen=True)
class StoredAdapter:
    """What an adapter's files hold. ``rank`` and ``scale`` are the general ones; a module may have its own."""

    rank: int
    scale: float
    factors: Mapping[str, Factors]
    """Module path in the model, "model.layers.0.self_attn.q_proj" say, to its factors."""
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    """The modules it says it adapts, as ends of module paths; ``None`` where it does not list them."""
    layers: tuple[int, ...] | None = None
    """The blocks it says it is limited to, ``None`` for all."""
    last_blocks: int | None = None
    """How many of the model's last blocks it says it is limited to, in place of ``layers``."""
    base_model: str | None = None
    format: Format | None = None
    source: str = "adapter"
    """The file or folder it was read from, which errors name."""
    notes: tuple[str, ...] = field(default=())
    """What a reader or a conversion did that is worth saying: "rank-stabilised scale" …"""

    @property
    def alpha(self) -> float:
        """The general alpha: ``scale · rank``."""
        return alpha_for(self.scale, self.rank)

    def target_names(self) -> tuple[str, ...]:
        """The modules it says it adapts, or the names of those that have factors."""
        return (
            self.targets
            if self.targets is not None
            else tuple(sorted({path.rpartition(".")[2] for path in self.factors}))
        )

    def adapted_layers(self) -> tuple[int, ...]:
        """The blocks that have factors, in order."""
        return tuple(sorted({block for path in self.factors if (block := block_of(path)[0]) is not None}))

    def chosen_layers(self, num_layers: int | None = None) -> tuple[int, ...] | None:
        """The blocks it is limited to in a model of ``num_layers``, ``None`` for all.

        Without that number the last adapted block counts as the model's last.
        """
        if self.layers is not None or self.last_blocks is None:
            return self.layers
        total = num_layers or max(self.adapted_layers(), default=-1) + 1
        return tuple(range(total - self.last_blocks, total)) if self.last_blocks < total else None

    def expect_factors(self, target: object) -> None:
        """Raise ``CheckpointError.InvalidFormat``, naming what is to be written, for an adapter of no modules."""
        if not self.factors:
            raise CheckpointError.InvalidFormat(reason=f"{target}: an adapter needs at least one module's factors")

    def num_parameters(self) -> int:
        """How many numbers the factors have."""
        return sum(each.a.size + each.b.size for each in self.factors.values())


STORED = a(StoredAdapter)
Pair: TypeAlias = "tuple[mx.array, mx.array]"


def alpha_for(scale: float, rank: int) -> float:
    """The alpha with ``alpha / rank == scale`` in double precision, so that no scale changes on its way.

    Where no number has that quotient, which can be so for a scale that is none of an alpha (rank-stabilised ones), it
    is the nearest: the last bit of a double.
    """
    alpha = scale * rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return next((each for each in near if each / rank == scale), alpha)


def block_of(path: str) -> tuple[int | None, str]:
    """The number of the block that a module path leads through, and the path inside that block.

    "model.layers.3.self_attn.q_proj" gives 3 and "self_attn.q_proj"; a path outside the blocks ``None`` and itself.
    """
    parts = path.split(".")
    for place, part in enumerate(parts[:-1]):
        if part.isdecimal():
            return int(part), ".".join(parts[place + 1 :])
    return None, path


def ends_with(path: str, names: Iterable[str]) -> bool:
    """Whether a module path is one of the names or ends in one after a dot."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def in_order(path: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts module paths by the numbers in them: block 2 before block 10."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in path.split("."))
