"""What an adapter changes, module by module: norms of the deltas, against the weights' where a model is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..models.adaptable import AdaptableModel
from .formats.stored import Factors, block_of, widened_together


@dataclass(frozen=True)
class ModuleChange:
    """One module: its rank and scale, the Frobenius norm of ``scale · BA``, and that of its weight where known."""

    path: str
    rank: int
    scale: float
    norm: float
    weight_norm: float | None = None

    @property
    def relative(self) -> float | None:
        """The delta's norm over the weight's, ``None`` where that is not known or 0."""
        return self.norm / self.weight_norm if self.weight_norm else None


@dataclass(frozen=True)
class AdapterReport:
    """How many layers an adapter changes and by what norm. ``str(report)`` is one line."""

    modules: tuple[ModuleChange, ...]
    num_layers: int | None = None
    """How many blocks the model has, where it is known."""

    @property
    def changed(self) -> tuple[ModuleChange, ...]:
        """The modules whose delta is not 0, as before training every B is; one that is no number counts."""
        return tuple(module for module in self.modules if module.norm != 0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that are changed."""
        return tuple(sorted({block for module in self.changed if (block := block_of(module.path)[0]) is not None}))

    @property
    def norm(self) -> float:
        """The Frobenius norm of all deltas together."""
        return math.hypot(*(module.norm for module in self.modules))

    @property
    def relative(self) -> float | None:
        """``norm`` over the norm of all adapted weights together, ``None`` where that is not known."""
        weights = [module.weight_norm for module in self.modules]
        known = math.hypot(*(norm for norm in weights if norm is not None))
        return self.norm / known if known and None not in weights else None

    def __str__(self) -> str:
        changed = self.changed
        if not changed:
            return f"changes nothing: B is zero in all {len(self.modules)} modules"
        of = f" of {self.num_layers}" if self.num_layers is not None else ""
        norms = sorted(module.norm for module in changed)
        size = f"norm of the deltas {self.norm:.3g}, per module {norms[0]:.3g} to {norms[-1]:.3g}"
        if self.relative is not None:
            size += f", {100 * self.relative:.2g} % of the weights'"
        zero = f", {len(self.modules) - len(changed)} more with B zero" if len(changed) < len(self.modules) else ""
        return f"changes {len(self.layers)}{of} layers, {len(changed)} modules{zero}: {size}"


def report_of(factors: Mapping[str, Factors], model: AdaptableModel | None = None) -> AdapterReport:
    """The report on factors by module path; with a model, its weights' norms too, widened one at a time."""
    weights: dict[str, float] = {}
    if model is not None:
        for place in model.projections():
            if place.path in factors:
                norm = mx.linalg.norm(place.dense_weight().mlx().astype(mx.float32)).item()
                weights[place.path] = float(norm)  # type: ignore[arg-type]
    modules = tuple(
        ModuleChange(path, each.rank, each.scale, each.norm(), weights.get(path))
        for path, each in widened_together(factors).items()
    )
    return AdapterReport(modules, None if model is None else model.num_layers())
