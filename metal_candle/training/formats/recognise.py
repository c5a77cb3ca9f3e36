"""Which format an adapter on disk has, by what it holds and not by its name; and reading and writing any of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from ...error.expect import FLAG, INTEGER, NUMBER, PATH, optional
from ...error.takes import takes
from ...files import read_json_object
from ...formats.reading import io_errors
from ...formats.safetensors import Header, Reader
from . import metal_candle, mlx_lm, peft
from .folder import CONFIG
from .stored import STORED, Format, StoredAdapter, block_of, ends_with
from .tensors import invalid, open_tensors, reading, unreadable, what_is

_CANDLE_LORA = re.compile(r"(?:.+\.)?[ab]\d+\.weight")
_WEIGHTS = (peft.WEIGHTS, mlx_lm.WEIGHTS)


@dataclass(frozen=True)
class Found:
    """An adapter on disk."""

    format: Format
    file: Reader
    """Its file of tensors, open, the header checked."""

    @property
    def weights(self) -> Path:
        """The path of that file."""
        return Path(self.file.source)


@takes(path=PATH)
def recognise(path: str | PathLike[str]) -> Found:
    """The format of an adapter, a folder or a file of tensors.

    Raises ``CheckpointError.LoadFailed`` where nothing is there or the file is damaged, and
    ``CheckpointError.InvalidFormat``, naming what it is, for anything else than a LoRA adapter in PEFT's, mlx-lm's
    or metal-candle's format.
    """
    place = Path(path)
    with reading(), io_errors(place):
        weights = _weights_in(place) if place.is_dir() else place
        if not weights.is_file():
            raise unreadable(f"{place}: no such adapter; takes a folder or a .safetensors file")
        with weights.open("rb") as opened:
            start = opened.read(4)
    if start == b"GGUF":
        raise invalid(place, "is a GGUF file; adapters are written in that format (convert --to gguf), not read")
    if start[:2] in (b"PK", b"\x80\x02"):
        raise invalid(place, "is a pickle of PyTorch, which is not read; save the adapter as safetensors")
    file = open_tensors(weights)
    return Found(_format_of(weights, file.header), file)


@takes(alpha=optional(NUMBER))
def read(path: str | PathLike[str], alpha: float | None = None) -> StoredAdapter:
    """Read an adapter in any of the formats; ``alpha`` is for files that do not say theirs, as the crate's.

    Raises ``CheckpointError`` as ``recognise`` and the format's own reader.
    """
    found = recognise(path)
    if found.format is Format.MetalCandle:
        adapter = metal_candle.load(found.file, alpha)
    else:
        load = peft.load if found.format is Format.Peft else mlx_lm.load
        adapter = replace(load(found.weights.parent, found.file), source=str(path))
        if alpha is not None and alpha != adapter.alpha:
            said = f"says alpha {adapter.alpha:g} (scale times rank)"
            raise invalid(path, f"{said}, and {alpha:g} was given; leave it out")
    _check_listed(adapter)
    return adapter


def base_model(path: str | PathLike[str]) -> str | None:
    """The model an adapter says it is for, without reading its tensors' numbers. Raises as ``recognise``."""
    found = recognise(path)
    if found.format is Format.MetalCandle:
        return metal_candle.base_model(found.file)
    config = read_json_object(found.weights.parent / CONFIG, unreadable)
    named = config.get("base_model_name_or_path" if found.format is Format.Peft else "model")
    return None if named is None else str(named)


def _check_listed(adapter: StoredAdapter) -> None:
    """Factors stand only where the configuration says that there are some."""
    for module in adapter.factors:
        block = block_of(module)[0]
        if adapter.targets is not None and not ends_with(module, adapter.targets):
            raise invalid(adapter.source, f"{module} has factors, but it says it adapts {', '.join(adapter.targets)}")
        if adapter.layers is not None and block is not None and block not in adapter.layers:
            listed = ", ".join(map(str, adapter.layers))
            raise invalid(adapter.source, f"{module} has factors, but it says it adapts the layers {listed}")


@takes(path=PATH, adapter=STORED, num_layers=optional(INTEGER), fold_scales=FLAG)
def write(
    path: str | PathLike[str],
    adapter: StoredAdapter,
    format: Format | str,
    num_layers: int | None = None,
    fold_scales: bool = False,
) -> StoredAdapter:
    """Write an adapter as a PEFT or mlx-lm folder, or as metal-candle's file; returns it as written.

    ``num_layers`` is the model's number of blocks, where it is known. ``fold_scales`` lets modules' own scales be
    rounded into their B where the format holds one scale for all and no exact way exists. Raises ``CheckpointError``.
    """
    target = Format.of(format)
    if target is Format.Peft:
        adapter = _listed(adapter)
        peft.save(path, adapter)
    elif target is Format.MlxLm:
        return mlx_lm.save(path, _listed(adapter), num_layers, fold_scales)
    elif target is Format.MetalCandle:
        metal_candle.save(path, adapter)
    else:
        raise invalid(path, "a GGUF adapter needs its base's configuration; write it with formats.gguf_adapter.save")
    return adapter


def _listed(adapter: StoredAdapter) -> StoredAdapter:
    """An adapter that lists no modules, by a regular expression say, with the list of those that have factors.

    Their names in a block and the blocks where that is all of them, else their whole paths.
    """
    if adapter.targets is not None:
        return adapter
    inside, blocks = {block_of(path)[1] for path in adapter.factors}, adapter.adapted_layers()
    if len(adapter.factors) != len(inside) * len(blocks):
        return replace(adapter, targets=tuple(adapter.factors), layers=None, last_blocks=None)
    layers = blocks if adapter.last_blocks is None else None
    return replace(adapter, targets=tuple(sorted(map(mlx_lm.target_of, inside))), layers=layers)


def _weights_in(folder: Path) -> Path:
    """The file of tensors of a folder: by its usual name, or the only one."""
    usual = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if len(usual) == 1:
        return usual[0]
    if len(usual) == 2:
        raise invalid(folder, f"holds {usual[0].name} and {usual[1].name}; give one of the files, or remove one")
    there = sorted(folder.glob("*.safetensors"))
    if len(there) == 1:
        return there[0]
    if len(there) > 1:
        raise invalid(folder, f"holds {len(there)} safetensors files, {there[0].name} first; give one of the files")
    raise unreadable(peft.what_is_missing(folder, folder / peft.WEIGHTS))


def _format_of(weights: Path, header: Header) -> Format:
    names = list(header.tensors)
    if any(name.startswith(peft.PREFIX) for name in names):
        return Format.Peft
    if metal_candle.HEADER in header.metadata or (names and all(map(metal_candle.is_key, names))):
        return Format.MetalCandle
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return Format.MlxLm
    if names and all(_CANDLE_LORA.fullmatch(name) for name in names):
        reason = "its scale is in no file, and its merged and unmerged results differ; takes PEFT's, mlx-lm's"
        raise invalid(weights, f"is candle-lora's format, which is not supported: {reason} or metal-candle's")
    config = weights.parent / CONFIG
    kind = read_json_object(config, unreadable).get("fine_tune_type") if config.is_file() else None
    if kind not in (None, "lora"):
        raise invalid(config, f"fine_tune_type is {kind!r}, which is not supported; takes 'lora'")
    if not names:
        raise invalid(weights, "holds no LoRA factors")
    reason = f"tensor {names[0]} {what_is(names[0])}" if names else "holds no tensors"
    raise invalid(weights, f"is no LoRA adapter of PEFT, mlx-lm or metal-candle: {reason}")
