"""LoRA over the target modules of a model. metal-candle: ``metal_candle::training::LoRAAdapter``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from ..device import DeviceLike
from ..error import CheckpointError, TrainingError
from ..models.projection import AdaptableModel, TargetModule
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .formats import peft
from .lora import LoRAConfig, LoRALayer

ALL_LINEAR = tuple(TargetModule)


@dataclass(frozen=True)
class LoRAAdapterConfig:
    """Rank, alpha and dropout, and the projections that are adapted: metal-candle's q and v by default.

    A target that is a text names linear maps by the end of their module path, "mlp.c_fc" say, for models whose
    projections are not ``TargetModule``s.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Sequence[TargetModule | str] = (TargetModule.QProj, TargetModule.VProj)
    init: Literal["normal", "uniform"] = "uniform"

    def to_lora_config(self) -> LoRAConfig:
        """The configuration of each layer."""
        return LoRAConfig(self.rank, self.alpha, self.dropout, self.init)

    def is_target(self, module: TargetModule | str) -> bool:
        """Whether a projection, or the linear map at a module path, is adapted."""
        path = module.value if isinstance(module, TargetModule) else module
        return any(path == name or path.endswith(f".{name}") for name in self.target_names())

    def target_names(self) -> list[str]:
        """The targets' names: "q_proj" …"""
        return [each.value if isinstance(each, TargetModule) else each for each in self.target_modules]


class LoRAAdapter:
    """A ``LoRALayer`` for each place that is adapted, by its module path."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        config: LoRAAdapterConfig | None = None,
        device: DeviceLike = None,
    ) -> None:
        """An adapter for layers whose attention is ``hidden_size`` wide throughout; see also ``for_model``."""
        sizes = dict.fromkeys(TargetModule, (hidden_size, hidden_size))
        sizes[TargetModule.GateProj] = sizes[TargetModule.UpProj] = (hidden_size, intermediate_size)
        sizes[TargetModule.DownProj] = (intermediate_size, hidden_size)
        self._config = config or LoRAAdapterConfig()
        self._num_layers = num_layers
        self._layers = {
            path_of(i, target): LoRALayer(*sizes[target], self._config.to_lora_config(), device)
            for i in range(num_layers)
            for target in TargetModule
            if self._config.is_target(target)
        }

    @classmethod
    def for_model(cls, model: AdaptableModel, config: LoRAAdapterConfig | None = None) -> LoRAAdapter:
        """An adapter with the sizes of a model's own projections, grouped heads included.

        Raises ``TrainingError.InvalidLoRAConfig`` for a target that no module of the model is.
        """
        adapter = cls(1, 1, 0, config)
        adapter._num_layers = model.num_layers()
        lora = adapter._config.to_lora_config()
        lora.validate()
        places = model.projections()
        for name in adapter._config.target_names():
            if not any(place.path.endswith(f".{name}") for place in places):
                known = ", ".join(dict.fromkeys(place.path.rpartition(".")[2] for place in places))
                raise TrainingError.InvalidLoRAConfig(reason=f"no module of the model is {name!r}; it has {known}")
        adapter._layers = {
            place.path: LoRALayer(place.in_features, place.out_features, lora, model.device)
            for place in places
            if adapter._config.is_target(place.path)
        }
        return adapter

    def config(self) -> LoRAAdapterConfig:
        """Rank, alpha, dropout, targets."""
        return self._config

    def num_layers(self) -> int:
        """How many blocks it spans."""
        return self._num_layers

    def layers(self) -> Iterator[tuple[str, LoRALayer]]:
        """``("layers.0.q_proj", layer)`` …, first block first."""
        for path, layer in self._layers.items():
            yield key_of(path), layer

    def get_layer(self, layer_idx: int, module: TargetModule) -> LoRALayer | None:
        """The layer at a place, or ``None``."""
        return self._layers.get(path_of(layer_idx, module))

    def layer_at(self, path: str) -> LoRALayer | None:
        """The layer at a module path, "model.layers.0.self_attn.q_proj" say, or ``None``."""
        return self._layers.get(path)

    def paths(self) -> list[str]:
        """The module paths that are adapted, first block first."""
        return list(self._layers)

    def forward(self, layer_idx: int, module: TargetModule, x: Any) -> Any:
        """The delta at a place, or ``None`` where that module is not adapted."""
        layer = self.get_layer(layer_idx, module)
        return None if layer is None else layer.forward(x)

    def trainable_variables(self) -> list[Var]:
        """Every A and B, first block first."""
        return [var for layer in self._layers.values() for var in layer.trainable_variables()]

    def num_trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(layer.num_parameters() for layer in self._layers.values())

    def num_frozen_parameters(self, total: int) -> int:
        """``total`` less the trained ones, not below 0."""
        return max(total - self.num_trainable_parameters(), 0)

    def set_training(self, training: bool) -> None:
        """Dropout acts in training mode only."""
        for layer in self._layers.values():
            layer.set_training(training)

    def merge_weights(self, base: Tensor, layer_idx: int, module: TargetModule) -> Tensor:
        """``base + scaling · (A · B)ᵀ`` for a frozen weight ``(out, in)``; unadapted modules keep theirs."""
        layer = self.get_layer(layer_idx, module)
        if layer is None:
            return base
        return base.detach() + layer.delta_weight().to_dtype(base.dtype)

    # --- files --------------------------------------------------------------------------------

    def save(self, directory: str | PathLike[str], base_model: str | None = None) -> None:
        """Write the folder that PEFT loads. Raises ``CheckpointError.SaveFailed``; an old one then stays."""
        factors = {path: (layer.lora_a().mlx(), layer.lora_b().mlx()) for path, layer in self._layers.items()}
        peft.save(
            directory,
            factors,
            rank=self._config.rank,
            alpha=self._config.alpha,
            dropout=self._config.dropout,
            target_modules=self._config.target_names(),
            base_model=base_model,
        )

    @classmethod
    def load(cls, directory: str | PathLike[str], model: AdaptableModel) -> LoRAAdapter:
        """Read an adapter folder that PEFT or this package wrote, for ``model``.

        Modules may have ranks and scales of their own. Raises ``CheckpointError`` for a damaged folder and
        for an adapter of another model, naming the first module that does not fit.
        """
        stored = peft.load(directory)
        places = model.projections()
        paths = {place.path for place in places}
        if unknown := next((path for path in stored.factors if path not in paths), None):
            raise CheckpointError.InvalidFormat(
                reason=f"{directory}: the adapter is for another model: this one has no {unknown}"
            )
        adapted = [place for place in places if place.path in stored.factors]
        last = max(place.layer for place in adapted)
        if stored.layers is None and last < model.num_layers() - 1:
            raise CheckpointError.InvalidFormat(
                reason=f"{directory}: the adapter is for another model: it spans {last + 1} layers, "
                f"this one has {model.num_layers()}"
            )
        names = tuple(_targets(place.path for place in adapted))
        adapter = cls(1, 1, 0, LoRAAdapterConfig(stored.rank, stored.alpha, stored.dropout, names))
        adapter._num_layers = model.num_layers()
        for place in adapted:
            factors = stored.factors[place.path]
            found, wanted = (factors.a.shape[0], factors.b.shape[1]), (place.in_features, place.out_features)
            if found != wanted:
                raise CheckpointError.InvalidFormat(
                    reason=f"{directory}: the adapter is for another model: {place.path} maps {found[0]} to {found[1]} "
                    f"there, {wanted[0]} to {wanted[1]} here"
                )
            # alpha over rank is the scale in force, also where the file says so by another rule.
            own = LoRAConfig(factors.rank, factors.scale * factors.rank, stored.dropout, "uniform")
            layer = LoRALayer(*wanted, own, model.device)
            layer.lora_a().set(Tensor.from_mlx(factors.a, model.device).to_dtype("f32"))
            layer.lora_b().set(Tensor.from_mlx(factors.b, model.device).to_dtype("f32"))
            adapter._layers[place.path] = layer
        return adapter


def path_of(layer: int, target: TargetModule) -> str:
    """The module path of a projection of a block."""
    return f"model.layers.{layer}.{target.parent}.{target.value}"


def key_of(path: str) -> str:
    """metal-candle's key of a module path: "layers.0.q_proj"; the path itself where it is no target module's."""
    match = _TARGET_PATH.fullmatch(path)
    return f"layers.{match['layer']}.{match['name']}" if match else path


_TARGET_PATH = re.compile(
    rf"model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<name>{'|'.join(target.value for target in TargetModule)})"
)


def _targets(paths: Iterable[str]) -> list[TargetModule | str]:
    """The targets that module paths amount to: members of ``TargetModule`` in its order, then other names."""
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    known = [target for target in TargetModule if target.value in names]
    return [*known, *(name for name in names if TargetModule.from_name(name) is None)]


def merged_weights(model: AdaptableModel, adapter: LoRAAdapter) -> dict[str, Tensor]:
    """The adapted weights ``(out, in)`` by Hugging Face name, each with its delta added."""
    merged = {}
    for place in model.projections():
        if (layer := adapter.layer_at(place.path)) is not None:
            merged[f"{place.path}.weight"] = place.dense_weight() + layer.delta_weight()
    return merged
