"""LoRA over the target modules of a model. metal-candle: ``metal_candle::training::LoRAAdapter``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

from ..constructors import Default, New
from ..device import DeviceLike
from ..error import ModelError, ShapeMismatchError, TrainingError
from ..error.expect import DICT, FLAG, INTEGER, NUMBER, PATH, TEXT, Kind, a, expect, integer, optional
from ..error.takes import takes
from ..error.text import described, shown
from ..models.adaptable import AdaptableModel
from ..models.places import expect_sizes
from ..models.target_module import TargetModule
from ..scalar import hold_python_numbers
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .adapter_files import layers_for, stored_from, targets_of
from .adapter_report import AdapterReport, report_of
from .adapter_targets import ALL_NAMES, all_linear, refusal
from .formats.metal_candle import key_of, path_of
from .formats.recognise import read, write
from .formats.stored import Format, StoredAdapter
from .lora import LoRAConfig, LoRALayer

ALL_LINEAR = tuple(TargetModule)
MODEL = a(AdaptableModel, "one of metal_candle.models, or an AdaptableModel")


@dataclass(frozen=True)
class LoRAAdapterConfig(Default):
    """Rank, alpha and dropout, and the projections that are adapted: metal-candle's q and v by default.

    A target that is a text names linear maps by the end of their module path, "mlp.c_fc" say, for models whose
    projections are not ``TargetModule``s; "all-linear", as PEFT calls it, is every linear map of the blocks that is
    not narrower than the rank. Raises ``TrainingError.InvalidLoRAConfig`` for values that are not numbers and targets
    that are not a list of names; ``validate()`` checks the ranges.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: Sequence[TargetModule | str] = (TargetModule.QProj, TargetModule.VProj)
    init: Literal["normal", "uniform"] = "uniform"

    def __post_init__(self) -> None:
        hold_python_numbers(self)
        self.to_lora_config()
        targets: object = self.target_modules
        good = isinstance(targets, Sequence) and not isinstance(targets, str)
        if not good or not all(isinstance(each, (TargetModule, str)) for each in self.target_modules):
            raise TrainingError.InvalidLoRAConfig(
                reason=f"target_modules is {described(targets)}; takes a list of TargetModules and names of modules"
            )

    def to_lora_config(self) -> LoRAConfig:
        """The configuration of each layer."""
        return LoRAConfig(self.rank, self.alpha, self.dropout, self.init)

    @takes(module=Kind("a TargetModule or a module path", lambda module: isinstance(module, (TargetModule, str))))
    def is_target(self, module: TargetModule | str) -> bool:
        """Whether a projection, or the linear map at a module path, is adapted."""
        path = f"{module.parent}.{module.value}" if isinstance(module, TargetModule) else module
        return any(path == name or path.endswith(f".{name}") for name in self.target_names())

    def target_names(self) -> list[str]:
        """The targets' names: "q_proj" …"""
        return [each.value if isinstance(each, TargetModule) else each for each in self.target_modules]

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidLoRAConfig`` for numbers out of range."""
        self.to_lora_config().validate()


class LoRAAdapter(New):
    """A ``LoRALayer`` for each place that is adapted, by its module path."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_layers: int,
        config: LoRAAdapterConfig | None = None,
        device: DeviceLike = None,
    ) -> None:
        """An adapter for layers whose attention is ``hidden_size`` wide throughout; see also ``for_model``.

        Raises ``TrainingError.InvalidLoRAConfig``, also for a target that is none of the seven ``TargetModule``s.
        """
        integer("LoRAAdapter", "hidden_size", hidden_size, 1)
        integer("LoRAAdapter", "intermediate_size", intermediate_size, 1)
        integer("LoRAAdapter", "num_layers", num_layers, 0)
        sizes = dict.fromkeys(TargetModule, (hidden_size, hidden_size))
        sizes[TargetModule.GateProj] = sizes[TargetModule.UpProj] = (hidden_size, intermediate_size)
        sizes[TargetModule.DownProj] = (intermediate_size, hidden_size)
        config = _checked(config)
        if ALL_NAMES in config.target_names():
            config = replace(config, target_modules=ALL_LINEAR)
        for name in config.target_names():
            if not any(replace(config, target_modules=[name]).is_target(each) for each in TargetModule):
                known = ", ".join(each.value for each in TargetModule)
                raise TrainingError.InvalidLoRAConfig(
                    reason=f"target_modules: no projection is {shown(name)}; takes {known}, and for_model the model's"
                )
        self._config = config
        self._num_layers = num_layers
        self._layers = {
            path_of(i, target): LoRALayer(*sizes[target], self._config.to_lora_config(), device)
            for i in range(num_layers)
            for target in TargetModule
            if self._config.is_target(target)
        }

    @classmethod
    @takes(model=MODEL)
    def for_model(cls, model: AdaptableModel, config: LoRAAdapterConfig | None = None) -> LoRAAdapter:
        """An adapter with the sizes of a model's own projections, grouped heads included.

        Raises ``TrainingError.InvalidLoRAConfig`` for a target that no module of the model is, or that names experts,
        embeddings or the head.
        """
        config = _checked(config)
        if ALL_NAMES in config.target_names():
            config = replace(config, target_modules=all_linear(model, config.rank))
        lora = config.to_lora_config()
        places = model.projections()
        for name in config.target_names():
            if reason := refusal(model, name):
                raise TrainingError.InvalidLoRAConfig(reason=reason)
            if not any(place.path.endswith(f".{name}") for place in places):
                known = ", ".join(dict.fromkeys(place.path.rpartition(".")[2] for place in places))
                raise TrainingError.InvalidLoRAConfig(reason=f"no module of the model is {name!r}; it has {known}")
        layers = {
            place.path: LoRALayer(place.in_features, place.out_features, lora, model.device)
            for place in places
            if config.is_target(place.path)
        }
        return cls.of_layers(config, layers, model.num_layers())

    @classmethod
    @takes(config=a(LoRAAdapterConfig), layers=DICT, num_layers=INTEGER)
    def of_layers(cls, config: LoRAAdapterConfig, layers: Mapping[str, LoRALayer], num_layers: int) -> LoRAAdapter:
        """An adapter of layers that are there, by their module paths, in a model of so many blocks."""
        adapter = cls.__new__(cls)
        adapter._config, adapter._num_layers, adapter._layers = config, num_layers, dict(layers)
        return adapter

    def config(self) -> LoRAAdapterConfig:
        """Rank, alpha, dropout, targets."""
        return self._config

    def num_layers(self) -> int:
        """How many blocks it spans."""
        return self._num_layers

    def layers(self) -> list[tuple[str, LoRALayer]]:
        """``("layers.0.q_proj", layer)`` …, first block first."""
        return [(key_of(path), layer) for path, layer in self._layers.items()]

    @takes(layer_idx=INTEGER, module=a(TargetModule))
    def get_layer(self, layer_idx: int, module: TargetModule) -> LoRALayer | None:
        """The layer at a place, or ``None``."""
        return self._layers.get(path_of(layer_idx, module))

    def layer_at(self, path: str) -> LoRALayer | None:
        """The layer at a module path, "model.layers.0.self_attn.q_proj" say, or ``None``."""
        expect("LoRAAdapter.layer_at", path, a(str, "a module path"))
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

    @takes(total=INTEGER)
    def num_frozen_parameters(self, total: int) -> int:
        """``total`` less the trained ones, not below 0."""
        return max(total - self.num_trainable_parameters(), 0)

    @takes(training=FLAG)
    def set_training(self, training: bool) -> None:
        """Dropout acts in training mode only."""
        for layer in self._layers.values():
            layer.set_training(training)

    @takes(base=a(Tensor))
    def merge_weights(self, base: Tensor, layer_idx: int, module: TargetModule) -> Tensor:
        """``base + scaling · (A · B)ᵀ`` for a frozen weight ``(out, in)``, in its dtype; unadapted modules keep theirs.

        Raises ``ShapeMismatchError`` for a weight of another shape.
        """
        layer = self.get_layer(layer_idx, module)
        if layer is None:
            return base
        if tuple(base.shape) != (wanted := (layer.out_features(), layer.in_features())):
            raise ShapeMismatchError(f"merge_weights: got a weight of shape {tuple(base.shape)}; takes {wanted}")
        return base.detach() + layer.delta_weight().to_dtype(base.dtype)

    # --- files --------------------------------------------------------------------------------

    @takes(base_model=optional(TEXT))
    def stored(self, base_model: str | None = None) -> StoredAdapter:
        """What files hold of it: each module with its own rank and scale. The factors are shared, not copied."""
        names, dropout = self._config.target_names(), self._config.dropout
        return stored_from(self._layers, names, dropout, self._num_layers, base_model)

    @takes(model=optional(MODEL))
    def report(self, model: AdaptableModel | None = None) -> AdapterReport:
        """How many layers it changes and by what norm; with a model, also relative to its weights."""
        factors = self.stored().factors if self._layers else {}
        report = report_of(factors, model)
        return report if model is not None else replace(report, num_layers=self._num_layers)

    @takes(path=PATH, base_model=optional(TEXT), fold_scales=FLAG)
    def save(
        self,
        path: str | PathLike[str],
        base_model: str | None = None,
        format: Format | str = Format.Peft,
        fold_scales: bool = False,
    ) -> None:
        """Write the folder that PEFT ("peft") or mlx-lm ("mlx-lm") loads, or metal-candle's file ("metal-candle").

        What a format cannot hold is made exact another way or refused: see ``formats.uniform`` for ``fold_scales``.
        Raises ``CheckpointError.SaveFailed``; an old one then stays.
        """
        write(path, self.stored(base_model), format, self._num_layers, fold_scales)

    @classmethod
    @takes(path=PATH, model=MODEL, alpha=optional(NUMBER))
    def load(cls, path: str | PathLike[str], model: AdaptableModel, alpha: float | None = None) -> LoRAAdapter:
        """Read an adapter for ``model``: a folder or file in PEFT's, mlx-lm's or metal-candle's format.

        The format is recognised by what is there. Modules may have ranks and scales of their own. Its dropout does not
        act before training or ``set_training(True)``. ``alpha`` is for files that do not say theirs, as the crate's.
        Raises ``CheckpointError`` for what is damaged, contradicts itself or is a variant of LoRA that is not
        supported, and for an adapter of another model, naming the first module that does not fit.
        """
        stored = read(path, alpha)
        layers = layers_for(stored, model)
        targets = targets_of(layers, model.projections())
        config = LoRAAdapterConfig(stored.rank, stored.alpha, stored.dropout, targets)
        adapter = cls.of_layers(config, layers, model.num_layers())
        adapter.set_training(False)
        return adapter


def _checked(config: LoRAAdapterConfig | None) -> LoRAAdapterConfig:
    """The configuration, or the default one. Raises ``TrainingError.InvalidLoRAConfig``."""
    config = LoRAAdapterConfig() if config is None else config
    if not isinstance(config, LoRAAdapterConfig):
        raise TrainingError.InvalidLoRAConfig(
            reason=f"an adapter's configuration is {described(config)}; takes a LoRAAdapterConfig, which has targets"
        )
    config.validate()
    return config


@takes(model=MODEL, adapter=a(LoRAAdapter))
def expect_fits(model: AdaptableModel, adapter: LoRAAdapter) -> None:
    """Raise ``ModelError.InvalidConfig`` unless every layer of an adapter has its place in a model."""
    if adapter.num_layers() != model.num_layers():
        reason = f"the adapter spans {adapter.num_layers()} layers, the model has {model.num_layers()}"
        raise ModelError.InvalidConfig(reason=reason)
    places = {place.path: place for place in model.projections()}
    for path in adapter.paths():
        if path not in places:
            raise ModelError.InvalidConfig(reason=f"the adapter has a layer for {path}, which the model lacks")
        expect_sizes(places[path], adapter.layer_at(path))


@takes(model=MODEL, adapter=a(LoRAAdapter))
def merged_weights(model: AdaptableModel, adapter: LoRAAdapter) -> dict[str, Tensor]:
    """The adapted weights ``(out, in)`` by Hugging Face name, each with its delta added. Raises as ``expect_fits``."""
    expect_fits(model, adapter)
    merged = {}
    for place in model.projections():
        if (layer := adapter.layer_at(place.path)) is not None:
            merged[f"{place.path}.weight"] = place.dense_weight() + layer.delta_weight()
    return merged
