"""LoRA adapters in PEFT's layout: a folder of ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT stores A as (rank, in) and B as (out, rank) under ``base_model.model.<module path>.lora_A.weight`` and
``….lora_B.weight``; here A is (in, rank) and B is (rank, out), so both are transposed on the way.
Layout and semantics: PEFT 0.21, ``peft.LoraConfig``.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

import mlx.core as mx

from ...error.expect import PATH
from ...error.takes import takes
from ...formats import safetensors
from ...formats.safetensors import Reader
from .folder import CONFIG, save_folder
from .peft_config import PeftConfig, config_of
from .stored import STORED, Factors, Format, Pair, StoredAdapter
from .tensors import OPENED, invalid, open_tensors, read_pairs, unreadable

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight")


@takes(directory=PATH, adapter=STORED)
def save(directory: str | PathLike[str], adapter: StoredAdapter) -> None:
    """Write an adapter folder that ``PeftModel.from_pretrained`` loads; dtypes are kept.

    Module paths stay as they are: PEFT finds them where transformers names its modules so, as for Llama, Mistral and
    Qwen; some of mlx-lm's other architectures have names of their own.

    Both files are complete on disk before either replaces an old one, the configuration last. Raises
    ``CheckpointError.SaveFailed`` if they cannot be written or the folder holds an adapter of another format, and
    ``CheckpointError.InvalidFormat`` if there are no factors.
    """
    adapter.expect_factors(directory)
    tensors = {}
    for path, factors in adapter.factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = mx.contiguous(factors.a.T)
        tensors[f"{PREFIX}{path}.lora_B.weight"] = mx.contiguous(factors.b.T)
    save_folder(Path(directory), config_of(adapter), WEIGHTS, tensors, safetensors.PT, others=("adapters.safetensors",))


@takes(directory=PATH, file=OPENED)
def load(directory: str | PathLike[str], file: Reader | None = None) -> StoredAdapter:
    """Read an adapter folder written by ``save`` or by PEFT; dtypes are kept.

    ``file`` is the file of tensors where that is open already, or has another name than PEFT's.

    Raises ``CheckpointError.LoadFailed`` for a file that is missing or truncated and
    ``CheckpointError.InvalidFormat`` for one that is no LoRA adapter, uses a variant of LoRA that is not
    supported, or contradicts itself.
    """
    folder = Path(directory)
    weights = folder / WEIGHTS if file is None else Path(file.source)
    if not (folder / CONFIG).is_file() or not weights.is_file():
        raise unreadable(what_is_missing(folder, weights))
    config = PeftConfig(folder / CONFIG)
    file = file or open_tensors(weights)
    pairs = read_pairs(file, _FACTOR, f"{PREFIX}….lora_A.weight and ….lora_B.weight")
    factors = {path: _factors(weights, path, pair, config) for path, pair in pairs.items()}
    mx.eval([array for each in factors.values() for array in (each.a, each.b)])
    return StoredAdapter(
        rank=config.rank,
        scale=config.scale(config.rank, config.alpha),
        factors=factors,
        dropout=config.dropout,
        targets=config.targets,
        layers=config.layers,
        base_model=config.base_model,
        format=Format.Peft,
        source=str(directory),
        notes=config.notes,
    )


def what_is_missing(folder: Path, file: Path) -> str:
    """One line about a folder that lacks a file."""
    if not folder.is_dir():
        return f"{folder}: no such adapter folder"
    missing = [path.name for path in (folder / CONFIG, file) if not path.is_file()]
    reason = f"{folder}: no {' and no '.join(missing)}"
    if (folder / "adapter_model.bin").is_file():
        return f"{reason}; adapter_model.bin, a pickle, is not read: save with safe_serialization=True"
    return f"{reason}; an adapter folder has {CONFIG} and {WEIGHTS}"


def _factors(file: Path, path: str, pair: Pair, config: PeftConfig) -> Factors:
    a, b = pair
    rank = config.rank_of(path)
    for name, array, axis, form in (("A", a, 0, f"({rank}, in)"), ("B", b, 1, f"(out, {rank})")):
        if array.ndim != 2 or array.shape[axis] != rank:
            reason = f"{path}.lora_{name}.weight is {tuple(array.shape)}, {CONFIG} asks for rank {rank}: {form}"
            raise invalid(file, reason)
    return Factors(mx.contiguous(a.T), mx.contiguous(b.T), config.scale_of(path))
