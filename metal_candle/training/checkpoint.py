"""An adapter's weights in a file, and back into the adapter. metal-candle: ``metal_candle::training::checkpoint``.

The file is ``formats.metal_candle``'s: tensors ``layers.{i}.{module}.lora_a`` ``(in, rank)`` and ``….lora_b``
``(rank, out)``, F32, unscaled; the header says rank, alpha and targets, and what ``CheckpointMetadata`` holds.
``formats.metal_candle.load`` reads it without an adapter. Optimizers save their own state: ``AdamW.save``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path

import mlx.core as mx

from ..error import CheckpointError
from ..error.expect import PATH, a, integer, optional
from ..error.takes import takes
from ..error.text import described, first_few, shown
from ..files import parse_json_object
from ..formats import safetensors
from ..graph.node import leaf
from ..graph.operations.counts import number
from ..tensor.assign import set_all
from ..tensor.base import TensorBase
from ..tensor.var import Var
from .adapter import LoRAAdapter
from .adapter_files import stored_from
from .formats import metal_candle
from .formats.stored import Factors
from .formats.tensors import invalid, open_tensors, reading

__all__ = ["CheckpointMetadata", "CheckpointMismatchError", "load_checkpoint", "save_checkpoint"]

MOST = 32
"""How many names of a kind an error lists."""

_FLOATS = ("F32", "F16", "BF16")


class CheckpointMismatchError(CheckpointError.InvalidFormat):  # type: ignore[valid-type, misc]
    """A checkpoint of another adapter: ``missing`` and ``extra`` name tensors, ``misfits`` says what else differs."""

    def __init__(self, reason: str, missing: Sequence[str], extra: Sequence[str], misfits: Sequence[str]) -> None:
        super().__init__(reason=reason)
        self.missing, self.extra, self.misfits = tuple(missing), tuple(extra), tuple(misfits)


@dataclass(frozen=True)
class CheckpointMetadata:
    """Where a training stood: updates made, the last loss and rate, and when, in Unix seconds: by default now.

    The loss may be a tensor of one number, and the time a float, as ``time.time()`` gives it. Raises
    ``ArgumentTypeError`` for what is no number.
    """

    global_step: int
    loss: float
    learning_rate: float
    timestamp: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        op, loss, when = "CheckpointMetadata", self.loss, self.timestamp
        values = {
            "global_step": integer(op, "global_step", self.global_step),
            "loss": number(op, "loss", loss.mlx() if isinstance(loss, TensorBase) else loss),
            "learning_rate": number(op, "learning_rate", self.learning_rate),
            "timestamp": int(when)
            if isinstance(when, float) and math.isfinite(when)
            else integer(op, "timestamp", when),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """As the header has it; a number that is not finite is ``null``, since JSON has none."""
        values = asdict(self)
        return json.dumps(
            {name: value if isinstance(value, int) or math.isfinite(value) else None for name, value in values.items()}
        )

    @classmethod
    def from_json(cls, text: str, source: object) -> CheckpointMetadata:
        """Read the header's text; ``source`` names the file. Raises ``CheckpointError.InvalidFormat``."""
        where = f"{metal_candle.METADATA} in the header"
        values = parse_json_object(text, where, lambda reason: invalid(source, reason))
        for name, whole in (("global_step", True), ("loss", False), ("learning_rate", False), ("timestamp", True)):
            value = values.get(name)
            if value is None and name in values and not whole:
                values[name] = math.nan
            elif isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                takes = "a whole number" if whole else "a number"
                raise invalid(source, f"{where}: {name} is {described(value)}; takes {takes}")
        return cls(**{each.name: values[each.name] for each in fields(cls)})


@takes(adapter=a(LoRAAdapter), path=PATH, metadata=optional(a(CheckpointMetadata)))
def save_checkpoint(
    adapter: LoRAAdapter, path: str | PathLike[str], metadata: CheckpointMetadata | None = None
) -> None:
    """Write the adapter, whole or not at all: an old file is replaced when the new one is complete.

    Raises ``CheckpointError.SaveFailed`` where it cannot be written, and ``CheckpointError.InvalidFormat`` for an
    adapter without layers, or with a layer that has more than A and B, which the format has no place for.
    """
    layers = {module: layer for module in adapter.paths() if (layer := adapter.layer_at(module)) is not None}
    for module, layer in layers.items():
        if len(layer.trainable_variables()) != 2:
            raise invalid(path, f"{module} has more than lora_a and lora_b; save the adapter in another format")
    config = adapter.config()
    stored = stored_from(layers, config.target_names(), config.dropout, adapter.num_layers(), None)
    metal_candle.save(path, stored, {} if metadata is None else {metal_candle.METADATA: metadata.to_json()})


@takes(adapter=a(LoRAAdapter), path=PATH)
def load_checkpoint(adapter: LoRAAdapter, path: str | PathLike[str]) -> CheckpointMetadata | None:
    """Set the adapter's variables to what the file holds, and give its metadata, or ``None`` if it has none.

    All or nothing: raises ``CheckpointMismatchError``, a ``CheckpointError.InvalidFormat``, naming every tensor that is
    missing, that the adapter has no place for, or of another shape or dtype, and every layer whose scale is another
    one, and then changes nothing. Halves are widened. Raises ``CheckpointError.LoadFailed`` for a file that is not
    there, cut short or damaged.
    """
    file = Path(path)
    tensors = open_tensors(file)
    header = tensors.header
    places = _places(adapter)
    _expect_tensors(file, header, places)
    if metal_candle.HEADER in header.metadata:
        _expect_scales(file, adapter, metal_candle.load(tensors).factors)
    text = header.metadata.get(metal_candle.METADATA)
    metadata = None if text is None else CheckpointMetadata.from_json(text, file)
    with reading():
        values = [(var, tensors.array(name).astype(var.dtype.mlx_)) for name, var in places.items()]
    if wrong := next((name for (name, _), (_, value) in zip(places.items(), values) if not _finite(value)), None):
        raise invalid(file, f"{wrong} holds numbers that are not finite")
    set_all([(leaf(value, var.device), [var]) for var, value in values])
    return metadata


def _finite(array: mx.array) -> bool:
    return bool(mx.isfinite(array).all().item())


def _places(adapter: LoRAAdapter) -> dict[str, Var]:
    """Each tensor's name, and the variable that it is for."""
    return {
        f"{key}.{name}": var
        for key, layer in adapter.layers()
        for name, var in (("lora_a", layer.lora_a()), ("lora_b", layer.lora_b()))
    }


def _expect_tensors(file: Path, header: safetensors.Header, places: Mapping[str, Var]) -> None:
    missing = [name for name in places if name not in header.tensors]
    extra = [name for name in header.tensors if name not in places]
    misfits = []
    for name, var in places.items():
        info = header.tensors.get(name)
        if info is not None and (info.shape != tuple(var.shape) or info.dtype not in _FLOATS):
            misfits.append(f"{name} is {info.dtype} {list(info.shape)}, takes F32 {list(var.shape)}")
    wrong = [f"missing {_listed(missing)}"] if missing else []
    wrong += [f"the adapter has no {_listed([shown(name) for name in extra])}"] if extra else []
    wrong += [_listed(misfits)] if misfits else []
    if wrong:
        raise _refused(file, wrong, missing, extra, misfits)


def _expect_scales(file: Path, adapter: LoRAAdapter, stored: Mapping[str, Factors]) -> None:
    """The same factors with another alpha are another adapter."""
    wrong = []
    for path, factors in stored.items():
        layer = adapter.layer_at(path)
        own = 0.0 if layer is None else layer.config().scaling()
        if not math.isclose(own, factors.scale, rel_tol=1e-6):
            wrong.append(f"{metal_candle.key_of(path)} has alpha / rank {factors.scale:g} there, {own:g} here")
    if wrong:
        raise _refused(file, [_listed(wrong)], [], [], wrong)


def _refused(file: Path, wrong: list[str], *names: Sequence[str]) -> CheckpointMismatchError:
    return CheckpointMismatchError(f"{file}: is no checkpoint of this adapter: {'; '.join(wrong)}", *names)


def _listed(names: Sequence[str]) -> str:
    return first_few(names, MOST)
