"""An adapter into its base's weights: computed in F32, rounded or quantised again, and what that loses measured."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Union

import mlx.core as mx

from ..dtype import DType, DTypeLike
from ..error.expect import INTEGER, a
from ..error.takes import takes
from ..models.adaptable import MergeableModel
from ..models.save import weights_dtype
from ..nn.quantized_linear import QuantizedWeight
from ..tensor.eager import Tensor
from .adapter import LoRAAdapter, expect_fits
from .requantize import requantized

NOTABLE = 0.25
"""The share of a delta whose loss is warned about."""

_NAMED = 3


class MergeWarning(UserWarning):
    """A notable part of what an adapter adds is lost when the merged weights are rounded or quantised again.

    The cure: a wider dtype, more bits, or the adapter beside the base instead of in it.
    """


@dataclass(frozen=True)
class MergedModule:
    """One merged weight: the norm of its delta, and that of what rounding or quantising took from the sum."""

    path: str
    delta: float
    lost: float
    how: str
    """What the merged weight is: "bf16", "4 bits (groups of 64)"."""

    @property
    def share(self) -> float:
        """``‖(W_merged − W) − Δ‖ / ‖Δ‖``: above 1 more is lost than was added."""
        return self.lost / self.delta


@dataclass(frozen=True)
class Merged:
    """Merged weights by name, as ``save_model`` and ``save_mlx_lm`` take them, and what merging lost.

    ``str`` is one line.
    """

    weights: dict[str, Union[Tensor, QuantizedWeight]]
    modules: tuple[MergedModule, ...]

    @property
    def share(self) -> float:
        """The norm of all that is lost over that of all deltas, 0 for an adapter that changes nothing."""
        delta = math.hypot(*(module.delta for module in self.modules))
        return math.hypot(*(module.lost for module in self.modules)) / delta if delta else 0.0

    @takes(count=INTEGER)
    def worst(self, count: int = _NAMED) -> list[MergedModule]:
        """The modules that lose the largest shares, the worst first."""
        return sorted(self.modules, key=lambda module: -module.share)[:count]

    def warning(self) -> str | None:
        """One line on the modules that lose a notable part of their delta (``NOTABLE``), ``None`` without any."""
        notable = [module for module in self.modules if not module.share < NOTABLE]
        if not notable:
            return None
        named = ", ".join(f"{module.path} {_percent(module.share)}" for module in self.worst())
        hows = dict.fromkeys(module.how for module in notable)
        return (
            f"merging into {' and '.join(hows)} loses {_percent(self.share)} of what the adapter adds; "
            f"{len(notable)} of {len(self.modules)} modules lose {_percent(NOTABLE)} or more, the worst: {named}"
        )

    def __str__(self) -> str:
        if not self.modules:
            return "nothing to merge: B is zero everywhere"
        worst = self.worst(1)[0]
        hows = " and ".join(dict.fromkeys(module.how for module in self.modules))
        lost = f"{_percent(self.share)} of the deltas lost, at most {_percent(worst.share)} ({worst.path})"
        return f"{len(self.modules)} weights merged into {hows}, {lost}"


@takes(model=a(MergeableModel, "a Decoder or an MlxLmModel"), adapter=a(LoRAAdapter))
def merge_adapter(model: MergeableModel, adapter: LoRAAdapter, dtype: DTypeLike = DType.F32) -> Merged:
    """Add an adapter's deltas to the weights: ``W + scale · BA`` in F32, then in ``dtype``, or quantised as W is.

    A quantised weight keeps its bits and groups; its scales and biases get ``dtype``, as ``save_model`` writes them.
    Modules whose B is zero are left as they are. Nothing of ``model`` changes. Warns by a ``MergeWarning`` that names
    the worst modules where rounding takes a notable part of a delta. Raises ``UnsupportedDTypeForOpError`` for other
    dtypes than F32, BF16 and F16, and ``ModelError.InvalidConfig`` for an adapter of another model.
    """
    target = weights_dtype("merge_adapter", dtype)
    expect_fits(model, adapter)
    quantized, norms = model.quantized_weights(), {each.path: each.norm for each in adapter.report().modules}
    weights: dict[str, Union[Tensor, QuantizedWeight]] = {}
    modules = []
    for place in model.projections():
        layer, name = adapter.layer_at(place.path), f"{place.path}.weight"
        if layer is None or not norms[place.path]:
            continue
        base, delta = place.dense_weight(), layer.delta_weight()
        exact = base + delta
        merged: Union[Tensor, QuantizedWeight]
        if name in quantized:
            merged = requantized(quantized[name], exact, target)
            back, how = merged.dequantize(), _described(merged)
        else:
            merged = exact.to_dtype(target)
            back, how = merged.to_dtype(DType.F32), target.as_str()
        # Not against the sum, which F32 has rounded already: what is small beside the weight is lost there.
        lost = mx.linalg.norm((back.mlx() - base.mlx()) - delta.mlx()).item()
        modules.append(MergedModule(place.path, norms[place.path], float(lost), how))  # type: ignore[arg-type]
        weights[name] = merged
    result = Merged(weights, tuple(modules))
    if text := result.warning():
        warnings.warn(text, MergeWarning, stacklevel=3)  # past the check of the arguments
    return result


def _described(weight: QuantizedWeight) -> str:
    bits, group, mode = weight.packing()
    return f"{bits} bits (groups of {group})" if mode == "affine" else f"{bits} bits ({mode})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
