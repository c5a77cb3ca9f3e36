"""From a path to a model with its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ModelError, UnsupportedSafeTensorDtypeError
from ..error.expect import a, expect
from ..formats.gguf import read_gguf_header
from ..formats.sharded import load_directory
from ..nn.quantized_linear import QuantizedWeight
from ..nn.var_builder import VarBuilder
from ..tensor.arguments import boolean
from .architecture import MLX_LM_EXTRA, foreign_architecture, has_mlx_lm, unknown_architecture
from .config import ModelConfig
from .decoder import Decoder
from .download import Progress
from .fetch import resolve
from .frozen import FrozenBuilder
from .load_errors import expect_all_used, misfit_errors, model_file_errors
from .loaded import LoadedModel
from .quantization import Packer, described, quantization_entry
from .quantize_options import Quantize, QuantizeOptions
from .tokenizer import Tokenizer
from .weights.gguf import load_gguf, read_gguf_config


def build(
    config: ModelConfig, weights: Mapping[str, mx.array | QuantizedWeight], dtype: DTypeLike, device: DeviceLike = None
) -> Decoder:
    """A network from ready weights; its configuration says how they are quantised, whatever ``config`` says.

    Raises ``ModelError.InvalidFormat`` for a missing or surplus tensor, with the nearest names, and
    ``ModelError.ShapeMismatch`` with both shapes.
    """
    expect("build", config, a(ModelConfig), "config")
    expect("build", weights, a(Mapping, "a dict of arrays by name"), "weights")
    quantized = {name: weight for name, weight in weights.items() if isinstance(weight, QuantizedWeight)}
    plain = {name: weight for name, weight in weights.items() if name not in quantized}
    vb = FrozenBuilder.on(VarBuilder.from_tensors(plain, dtype, device), quantized)
    with misfit_errors():
        model = Decoder(replace(config, quantization=quantization_entry(quantized)), vb)
    unused = [name for name in vb.unused() if not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight"]
    expect_all_used(unused)  # but for frequencies, which are computed, and the copy of a tied head
    return model


def _load_weights(folder: Path) -> dict[str, Any]:
    try:
        with model_file_errors():
            return load_directory(folder)
    except UnsupportedSafeTensorDtypeError as error:
        raise ModelError.InvalidFormat(reason=f"{folder}: {error}") from error


def load_tokenizer(model: str | PathLike[str], progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of a model alone; see ``load_model``."""
    path = resolve(model, progress)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("tokenizer.json", "config.json")):
            ModelConfig.from_directory(path)  # which says that this is no model's folder
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
    quantize: Quantize = None,
    group_size: int | None = None,
    quantize_embeddings: bool = False,
) -> LoadedModel:
    """Load a model from a Hugging Face folder, a GGUF file, a hub id, or ``smollm2``, which is fetched once.

    ``quantize`` says how weights are held, one after the other, so that no float copy of all of them ever exists:

    - ``None``: a folder that MLX's tools quantised stays as it is, the blocks of a GGUF file are widened to ``dtype``;
    - "keep": those blocks stay quantised, too, without loss (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K;
      ``note`` names others);
    - "dense": all are widened to ``dtype``;
    - 4 or 8 (or 2, 3, 5, 6): the projections are quantised to so many bits in groups of ``group_size``, 64 by default,
      and with ``quantize_embeddings`` the table of tokens and the head; what a GGUF file has in fewer bits stays.

    On a CPU a token that is generated takes some three times as long from quantised weights as from F32, as MLX unpacks
    them for each; a training step of a hundred tokens about a fifth longer.

    A folder of an architecture that is not ours goes through mlx-lm where that is installed: the model is an
    ``MlxLmModel`` then, and ``note`` says so. ``progress(done, total)`` counts the bytes of a download. Raises kinds of
    ``ModelError``.
    """
    tables = boolean("load_model", "quantize_embeddings", quantize_embeddings)
    return load_held(model, QuantizeOptions(quantize, group_size, tables), dtype, device, progress)


def load_held(
    model: str | PathLike[str],
    options: QuantizeOptions,
    dtype: DTypeLike = DType.F32,
    device: DeviceLike = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """``load_model``, with how weights are held as one value."""
    path = resolve(model, progress)
    target = DType.of(dtype)
    if path.is_dir() and (name := foreign_architecture(path)) is not None:
        if not has_mlx_lm():
            raise unknown_architecture(path, name, MLX_LM_EXTRA)
        if options.how not in (None, "keep"):
            raise ModelError.InvalidConfig(
                reason=f"{path}: architecture {name!r} goes through mlx-lm, which keeps weights as they are stored; "
                "quantise the folder with mlx_lm.convert -q"
            )
        from .mlx_lm.load import load_mlx_lm

        return replace(load_mlx_lm(path, target, device, progress), name=str(model))
    where = Device.of(device)
    packer = Packer(options, target, where)
    if path.is_dir():
        config, tokenizer = ModelConfig.from_directory(path), Tokenizer.from_directory(path)
        weights = _load_weights(path)
        packer.folder(path, weights, config.quantization)
    else:
        config, weights, metadata = load_gguf(path, target.mlx_, packer.from_blocks)
        tokenizer = Tokenizer.from_gguf(metadata)
    packer.check()
    network = build(config, weights, target, where)
    # MLX reads files when their values are first needed; a file that cannot be read shall fail here.
    mx.eval([tensor.mlx() for tensor in network.weights().values()])
    note = described(network.quantized_weights().values(), packer.widened, target)
    return LoadedModel(network, tokenizer, path, str(model), note)
