"""``TrainingState``: all that a run has to know to go on as if it had never stopped, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..error import ArgumentTypeError, CheckpointError, Error, IoError, TrainingError
from ..error.expect import PATH, Kind, a
from ..error.takes import takes
from ..error.text import first_few
from ..files import parse_json_object
from ..formats import safetensors
from ..formats.reading import is_folder
from ..models.adaptable import AdaptableModel
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .adapter import MODEL, LoRAAdapter, LoRAAdapterConfig
from .config import TrainingConfig
from .fingerprint import DataFingerprint, ModelFingerprint, RowsFingerprint
from .json_values import json_value
from .lora import LoRAConfig, LoRALayer
from .position import Position
from .recorded import Record, adapter_config_of, config_of, made_of, record_of_adapter

STATE = "training.state"
"""The state's name in the folder of a run: a safetensors file, but not one that is taken for the adapter's."""

FORMAT, VERSION = "metal-candle training state", "1"
RANDOM_KEY = "random.key"


@dataclass(frozen=True)
class TrainingState:
    """The state of a run between two updates. Its arrays never change: it stays what it is while the run goes on.

    ``arrays`` are A and B of every layer ("adapter.<module path>.a"), the optimizer's moments, count and rate
    ("optimizer.3.m" for moment m of variable 3), and MLX's random key, from which dropout draws. Batches are a
    function of data, configuration and epoch, so that ``position`` is all there is of the data's order; sums of
    accumulated batches are zero between updates. ``config`` is a record (``training.recorded``) of the run's
    configuration. ``notes`` are its owner's: the command line keeps its flags there.
    """

    position: Position
    config: Record
    pad_id: int
    adapter_config: LoRAAdapterConfig
    layers: dict[str, LoRAConfig]
    model: ModelFingerprint
    data: DataFingerprint | None
    callbacks: dict[str, dict[str, Any]]
    arrays: dict[str, mx.array] = field(repr=False)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    source: str = "the state"

    @property
    def step(self) -> int:
        """How many updates were made."""
        return self.position.step

    def training_config(self) -> TrainingConfig:
        """The run's configuration. Raises ``TrainingError.StateError`` for a schedule of the user's own."""
        return config_of(self.config, self.source)

    @takes(model=MODEL)
    def adapter(self, model: AdaptableModel) -> LoRAAdapter:
        """A new adapter for ``model`` with the state's weights. Raises ``TrainingError.StateError`` for a module that
        the model lacks or that has another size there."""
        places = {place.path: place for place in model.projections()}
        layers: dict[str, LoRALayer] = {}
        for path, config in self.layers.items():
            if path not in places:
                raise TrainingError.StateError(reason=f"{self.source}: the model has no {path}")
            place = places[path]
            layers[path] = LoRALayer.for_factors(place.in_features, place.out_features, config, model.device)
        adapter = LoRAAdapter.of_layers(self.adapter_config, layers, model.num_layers())
        self.check_adapter(adapter)
        for name, var in adapter_variables(adapter).items():
            var.set(Tensor.from_mlx(self.arrays[name], var.device))
        return adapter

    @takes(adapter=a(LoRAAdapter))
    def check_adapter(self, adapter: LoRAAdapter) -> None:
        """Raise ``TrainingError.StateError``, which names all that differs, unless the state fits an adapter."""
        own = adapter_variables(adapter)
        kept = {name: array for name, array in self.arrays.items() if name.startswith("adapter.")}
        wrong = [f"{name} is not in it" for name in own if name not in kept]
        wrong += [f"the adapter has no {name}" for name in kept if name not in own]
        for name, var in own.items():
            if name in kept and tuple(kept[name].shape) != tuple(var.shape):
                wrong.append(f"{name} is {list(var.shape)} here, {list(kept[name].shape)} there")
        refuse(self.source, wrong)

    # --- the file -----------------------------------------------------------------------------

    @takes(path=PATH)
    def save(self, path: str | PathLike[str]) -> None:
        """Write it as one safetensors file, whole or not at all. Raises ``CheckpointError.SaveFailed``; a file that
        was there is then unchanged."""
        record = {
            "position": asdict(self.position),
            "config": self.config,
            "pad_id": self.pad_id,
            "adapter_config": record_of_adapter(self.adapter_config),
            "layers": {path: asdict(config) for path, config in self.layers.items()},
            "model": asdict(self.model),
            "data": None if self.data is None else asdict(self.data),
            "callbacks": _written(path, self.callbacks, "callbacks"),
            "metrics": self.metrics,
            "notes": _written(path, self.notes, "notes"),
        }
        text = json.dumps(record, ensure_ascii=False)
        safetensors.save(path, self.arrays, {"format": FORMAT, "version": VERSION, "state": text})

    @classmethod
    @takes(path=PATH)
    def load(cls, path: str | PathLike[str]) -> TrainingState:
        """Read a file, or the one in a run's folder. Raises ``CheckpointError.LoadFailed`` when it cannot be read,
        ``CheckpointError.InvalidFormat`` when it is damaged, another file, or a later version's."""
        try:
            file = Path(path) / STATE if is_folder(Path(path)) else Path(path)
            reader = safetensors.Reader(file)
            metadata = reader.header.metadata
            if metadata.get("format") != FORMAT:
                raise CheckpointError.InvalidFormat(reason=f"{file} is no training state")
            if metadata.get("version") != VERSION:
                found = metadata.get("version")
                raise CheckpointError.InvalidFormat(
                    reason=f"{file} has version {found} of the format; this metal-candle reads {VERSION}"
                )
            record = parse_json_object(metadata.get("state", ""), str(file), _invalid)
            arrays = reader.arrays()
        except IoError as error:
            raise CheckpointError.LoadFailed(reason=str(error)) from error
        except CheckpointError:
            raise
        except Error as error:
            raise CheckpointError.InvalidFormat(reason=getattr(error, "reason", str(error))) from error
        try:
            return cls._of(record, arrays, str(file))
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError.InvalidFormat(reason=f"{file}: damaged: {error!r}") from error

    @classmethod
    def _of(cls, record: Record, arrays: dict[str, mx.array], source: str) -> TrainingState:
        data = record["data"]
        key = arrays[RANDOM_KEY]
        if key.dtype != mx.uint32 or tuple(key.shape) != (2,):
            raise CheckpointError.InvalidFormat(reason=f"{source}: {RANDOM_KEY} is no key")
        return cls(
            made_of(Position, record["position"], source),
            dict(record["config"]),
            int(record["pad_id"]),
            adapter_config_of(record["adapter_config"], source),
            {path: made_of(LoRAConfig, config, source) for path, config in record["layers"].items()},
            made_of(ModelFingerprint, record["model"], source),
            None if data is None else _data_of(data, source),
            dict(record["callbacks"]),
            arrays,
            dict(record["metrics"]),
            dict(record["notes"]),
            source,
        )


def _written(path: object, value: object, name: str) -> Any:
    """What JSON can hold. Raises ``CheckpointError.SaveFailed``."""
    try:
        return json_value(value, name)
    except ArgumentTypeError as error:
        raise CheckpointError.SaveFailed(reason=f"{path}: {error}") from error


def _data_of(record: Record, source: str) -> DataFingerprint:
    return DataFingerprint(*(made_of(RowsFingerprint, record[name], source) for name in ("train", "valid")))


def _invalid(reason: str) -> Error:
    return CheckpointError.InvalidFormat(reason=reason)


def refuse(source: str, wrong: list[str]) -> None:
    """Raise ``TrainingError.StateError`` that lists what is wrong, if anything is."""
    if wrong:
        raise TrainingError.StateError(reason=f"{source}: {first_few(wrong, 5, '; ')}")


@takes(state=Kind("a TrainingState, or the path of one", lambda it: isinstance(it, TrainingState) or PATH.holds(it)))
def state_of(state: TrainingState | str | PathLike[str]) -> TrainingState:
    """A state as it is; from a file or a run's folder, read. Raises as ``TrainingState.load``."""
    return state if isinstance(state, TrainingState) else TrainingState.load(state)


def model_differences(model: AdaptableModel, state: TrainingState) -> list[str]:
    """What differs from the model that a state is of, in words."""
    return [f"the model: {text}" for text in ModelFingerprint.of(model).differences(state.model)]


def adapter_variables(adapter: LoRAAdapter) -> dict[str, Var]:
    """An adapter's variables by their names in a state."""
    found = {}
    for path in adapter.paths():
        layer = adapter.layer_at(path)
        assert layer is not None
        for name, var in zip("ab", layer.trainable_variables(), strict=True):
            found[f"adapter.{path}.{name}"] = var
    return found


def optimizer_state(arrays: Mapping[str, mx.array], device: Any) -> dict[str, Tensor]:
    """The optimizer's part of a state's arrays, as its ``load_state`` takes it."""
    return {
        name.removeprefix("optimizer."): Tensor.from_mlx(array, device)
        for name, array in arrays.items()
        if name.startswith("optimizer.")
    }


# --- MLX's random key -------------------------------------------------------------------------


def random_key() -> mx.array:
    """The key of this thread's generator, two 32-bit numbers."""
    state: Any = mx.random.state  # MLX's annotation says too little
    key: mx.array = state[0]
    return key


def set_random_key(key: mx.array) -> None:
    """Let this thread's generator go on from a key: a seed's halves are the key that it makes."""
    high, low = np.array(key).tolist()
    mx.random.seed((high << 32) | low)
