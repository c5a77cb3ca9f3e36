"""A model as a Hugging Face folder, which transformers, mlx-lm and this package load."""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..dtype import DType, DTypeLike
from ..error import CannotFindTensorError, CheckpointError, Error, UnexpectedShapeError, UnsupportedDTypeForOpError
from ..error.expect import PATH, a, expect, integer
from ..files import write_json, write_text
from ..formats import safetensors, sharded
from ..nn.quantized_linear import QuantizedWeight
from ..tensor.arguments import boolean
from ..tensor.base import TensorBase
from .decoder import Decoder
from .quantization import quantization_entry
from .tokenizer import Tokenizer

_DTYPE_NAMES = {DType.F32: "float32", DType.BF16: "bfloat16", DType.F16: "float16"}

# What a folder that is overwritten may hold: model files, and nothing that somebody would miss.
_MODEL_FILES = frozenset(
    (
        *("config.json", "generation_config.json", sharded.WHOLE, sharded.INDEX),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model"),
    )
)


def save_model(
    directory: str | PathLike[str],
    model: Decoder,
    tokenizer: Tokenizer,
    dtype: DTypeLike = DType.F32,
    overrides: Mapping[str, TensorBase | QuantizedWeight] | None = None,
    overwrite: bool = False,
    shard_bytes: int = sharded.SHARD_BYTES,
) -> None:
    """Write ``config.json``, the weights in ``dtype``, the tokenizer and ``generation_config.json``.

    Quantised weights stay so, as mlx-lm writes them; their scales and biases are rounded to ``dtype``, which F32 does
    not do. ``overrides`` replaces weights by their Hugging Face names, as merging an adapter does, each by floats or
    by a ``QuantizedWeight``, whatever the model's is. A tied head is not written twice; weights above ``shard_bytes``
    are split into files with an index. All files are written into a folder beside ``directory``, which is then renamed:
    the result is there whole or not at all.

    Raises ``CheckpointError.SaveFailed`` when ``directory`` is a file or holds something (with ``overwrite``:
    something else than a model) or cannot be written, ``CannotFindTensorError`` and ``UnexpectedShapeError``
    for an override that is no weight of the model, ``UnsupportedDTypeForOpError`` for other dtypes than F32,
    BF16 and F16.
    """
    expect("save_model", directory, PATH)
    expect("save_model", model, a(Decoder), "model")
    expect("save_model", tokenizer, a(Tokenizer), "tokenizer")
    expect("save_model", overrides, a((Mapping, type(None)), "a dict of weights by name"), "overrides")
    shard_bytes = integer("save_model", "shard_bytes", shard_bytes, 1)
    overwrite = boolean("save_model", "overwrite", overwrite)
    target = weights_dtype("save_model", dtype)
    weights, quantized = _weights(model, overrides or {})
    config = replace(model.config, torch_dtype=_DTYPE_NAMES[target], quantization=quantization_entry(quantized))
    for name, weight in quantized.items():
        weights.update(weight.tensors(name))
    with model_folder(Path(directory), overwrite) as folder:
        write_text(folder / "config.json", config.to_json())
        write_json(folder / "generation_config.json", _generation_config(model, tokenizer))
        tokenizer.save(folder)
        _save_weights(folder, weights, target, shard_bytes)


def weights_dtype(op: str, dtype: DTypeLike) -> DType:
    """A dtype that weights are stored in. Raises ``UnsupportedDTypeForOpError`` for others than F32, BF16 and F16."""
    target = DType.of(dtype)
    if target not in _DTYPE_NAMES:
        raise UnsupportedDTypeForOpError(op, target, "f32, bf16 or f16")
    return target


def _weights(
    model: Decoder, overrides: Mapping[str, TensorBase | QuantizedWeight]
) -> tuple[dict[str, TensorBase], dict[str, QuantizedWeight]]:
    """Float weights and quantised ones, by name."""
    quantized = model.quantized_weights()
    parts = {part for name, weight in quantized.items() for part in weight.tensors(name)}
    weights: dict[str, TensorBase] = {name: each for name, each in model.weights().items() if name not in parts}
    for name, tensor in overrides.items():
        before = quantized.pop(name, None) or weights.pop(name, None)
        if before is None:
            raise CannotFindTensorError(name, difflib.get_close_matches(name, [*weights, *quantized], n=3))
        expect(
            "save_model",
            tensor,
            a((TensorBase, QuantizedWeight), "a tensor or a QuantizedWeight"),
            f"override {name!r}:",
        )
        if tensor.shape != before.shape:
            raise UnexpectedShapeError(name, before.shape, tensor.shape)
        if isinstance(tensor, QuantizedWeight):
            quantized[name] = tensor
        else:
            weights[name] = tensor
    return weights, quantized


def _generation_config(model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    ends = sorted(model.config.eos_token_ids() | tokenizer.eos_token_ids)
    ids = {
        "bos_token_id": tokenizer.bos_token_id if model.config.bos_token_id is None else model.config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_token_id if model.config.pad_token_id is None else model.config.pad_token_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _save_weights(folder: Path, weights: Mapping[str, TensorBase], dtype: DType, shard_bytes: int) -> None:
    dtypes = {name: dtype if tensor.dtype.is_float() else tensor.dtype for name, tensor in weights.items()}
    sizes = {name: tensor.elem_count() * dtypes[name].size_in_bytes() for name, tensor in weights.items()}

    def arrays(names: Sequence[str]) -> dict[str, mx.array]:
        return {name: weights[name].mlx().astype(dtypes[name].mlx_) for name in names}

    sharded.save(folder, sizes, arrays, shard_bytes, safetensors.PT)


# --- a folder, whole or not at all ------------------------------------------------------------


@contextmanager
def model_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``target`` to fill; when the block ends well it takes the name, else it is removed.

    Raises ``CheckpointError.SaveFailed`` as ``save_model``.
    """
    check_target(target, overwrite)
    name = f".{target.absolute().name}.{os.getpid()}.{secrets.token_hex(4)}"
    beside, old = target.absolute().parent / f"{name}.tmp", target.absolute().parent / f"{name}.old"
    try:
        beside.mkdir(parents=True)
        yield beside
        replaced = target.exists()
        if replaced:
            target.rename(old)
        try:
            beside.rename(target)
        except OSError:
            if replaced:
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        # A file's own failure names it where it was beside the target; the user knows the target.
        cause = error.__cause__ if isinstance(error, CheckpointError.SaveFailed) else error
        if isinstance(cause, OSError) and not isinstance(cause, Error):
            reason = f"{target}: {cause.strerror or cause}; what was there is unchanged"
            raise CheckpointError.SaveFailed(reason=reason) from cause
        raise


def check_target(target: Path, overwrite: bool) -> None:
    """Raise ``CheckpointError.SaveFailed`` unless ``target`` is free, empty, or a model to be overwritten."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError.SaveFailed(reason=f"{target}: {reason}")

    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise refuse("there is a file or a link of that name; give a folder")
    try:
        names = sorted(entry.name for entry in target.iterdir()) if target.exists() else []
    except OSError as error:
        raise refuse(error.strerror or str(error)) from error
    if not names:
        return
    if not overwrite:
        raise refuse("the folder is not empty; give another one, or overwrite (--overwrite) where it holds a model")
    foreign = [name for name in names if name not in _MODEL_FILES and not _is_shard(name)]
    if foreign or "config.json" not in names:
        raise refuse(f"holds {foreign[0] if foreign else 'no config.json'}, so it is no model to overwrite")


def _is_shard(name: str) -> bool:
    return name.startswith("model-") and name.endswith(".safetensors")
