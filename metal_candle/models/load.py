"""From a path to a model with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import (
    CannotFindTensorError,
    ModelError,
    UnexpectedShapeError,
    UnsupportedSafeTensorDtypeError,
)
from ..formats.gguf import read_gguf_header
from ..formats.sharded import load_directory
from ..nn.var_builder import VarBuilder
from .architecture import MLX_LM_EXTRA, foreign_architecture, has_mlx_lm, unknown_architecture
from .config import ModelConfig
from .decoder import Decoder, check_all_used
from .download import Progress
from .fetch import resolve
from .file_errors import model_file_errors
from .tokenizer import Tokenizer
from .weights.gguf import load_gguf, read_gguf_config


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, and where both came from; ``note`` says how, where that is not plain."""

    model: Any
    tokenizer: Tokenizer
    path: Path
    name: str
    note: str = ""


def build(config: ModelConfig, weights: dict[str, mx.array], dtype: DTypeLike, device: DeviceLike = None) -> Decoder:
    """A network from ready weights.

    Raises ``ModelError.InvalidFormat`` for a missing or surplus tensor, with the nearest names, and
    ``ModelError.ShapeMismatch`` with both shapes.
    """
    vb = VarBuilder.from_tensors(weights, dtype, device)
    try:
        model = Decoder(config, vb)
    except CannotFindTensorError as error:
        raise ModelError.InvalidFormat(reason=f"{error}; the weights do not fit config.json") from error
    except UnexpectedShapeError as error:
        raise ModelError.ShapeMismatch(name=error.name, expected=error.expected, actual=error.got) from error
    check_all_used(vb)
    return model


def _load_weights(folder: Path) -> dict[str, mx.array]:
    try:
        with model_file_errors():
            return load_directory(folder)
    except UnsupportedSafeTensorDtypeError as error:
        raise ModelError.InvalidFormat(reason=f"{folder}: {error}") from error


def load_tokenizer(model: str | PathLike[str], progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of a model alone; see ``load_model``."""
    path = resolve(model, progress)
    if path.is_dir():
        return Tokenizer.from_directory(path)
    with model_file_errors():
        header = read_gguf_header(path)
    return Tokenizer.from_gguf(header.metadata)


def load_config(model: str | PathLike[str], progress: Progress | None = None) -> ModelConfig:
    """The configuration of a model alone; see ``load_model``."""
    path = resolve(model, progress)
    return ModelConfig.from_directory(path) if path.is_dir() else read_gguf_config(path)


def load_model(
    model: str | PathLike[str],
    dtype: DTypeLike = DType.F32,
    device: DeviceLike = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model from a Hugging Face folder, a GGUF file, a hub id, or ``smollm2``, which is fetched once.

    A folder of an architecture that is not ours goes through mlx-lm where that is installed: the model is an
    ``MlxLmModel`` then, and ``note`` says so. ``progress(done, total)`` counts the bytes of a download. Raises kinds of
    ``ModelError``.
    """
    path = resolve(model, progress)
    target = DType.of(dtype)
    if path.is_dir() and (name := foreign_architecture(path)) is not None:
        if not has_mlx_lm():
            raise unknown_architecture(path, name, MLX_LM_EXTRA)
        from .mlx_lm.load import load_mlx_lm

        return replace(load_mlx_lm(path, target, device, progress), name=str(model))
    if path.is_dir():
        config, tokenizer = ModelConfig.from_directory(path), Tokenizer.from_directory(path)
        weights = _load_weights(path)
    else:
        config, weights, metadata = load_gguf(path, target.mlx_)
        tokenizer = Tokenizer.from_gguf(metadata)
    network = build(config, weights, target, device or Device.default())
    # MLX reads files when their values are first needed; a file that cannot be read shall fail here.
    mx.eval([tensor.mlx() for tensor in network.weights().values()])
    return LoadedModel(network, tokenizer, path, str(model))
