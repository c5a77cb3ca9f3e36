"""The files that came before GGUF. candle: ``candle_core::quantized::ggml_file``."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from ..device import DeviceLike
from ..error import CannotFindTensorError
from ..formats.byte_reader import Source
from ..formats.ggml_legacy import read_ggml
from .ggml_dtype import GgmlDType
from .qtensor import QTensor

__all__ = ["Content", "HParams", "VersionedMagic", "Vocab"]


class VersionedMagic(Enum):
    """The formats and versions that are read."""

    GgmlUnversioned = "GgmlUnversioned"
    GgmfV1 = "GgmfV1"
    GgjtV1 = "GgjtV1"
    GgjtV2 = "GgjtV2"
    GgjtV3 = "GgjtV3"


@dataclass(frozen=True)
class HParams:
    """The sizes of the model."""

    n_vocab: int
    n_embd: int
    n_mult: int
    n_head: int
    n_layer: int
    n_rot: int
    ftype: int


@dataclass(frozen=True)
class Vocab:
    """The tokens' bytes, each with its score."""

    token_score_pairs: list[tuple[bytes, float]]


@dataclass(frozen=True)
class Content:
    """All that a file holds; ``tensors`` by name."""

    magic: VersionedMagic
    hparams: HParams
    vocab: Vocab
    tensors: dict[str, QTensor]

    @staticmethod
    def read(reader: Source, device: DeviceLike = None) -> Content:
        """Read a whole file: of a path, a binary file that can seek, or bytes.

        Raises ``NotFoundError``, ``IoError`` and ``ModelError.InvalidFormat``. Quantised tensors are refused before
        ``GgjtV3``: their blocks were laid out otherwise, and candle would read other numbers than were written.
        candle: ``Content::read``.
        """
        file = read_ggml(reader)
        tensors = {
            tensor.name: QTensor.from_data(tensor.data, tensor.shape, GgmlDType.of(tensor.type), device)
            for tensor in file.tensors
        }
        return Content(VersionedMagic(file.magic), HParams(**file.hparams), Vocab(file.vocab), tensors)

    def remove(self, name: str) -> QTensor:
        """Take a tensor out of ``tensors``. Raises ``CannotFindTensorError``. candle: ``Content::remove``."""
        if name not in self.tensors:
            raise CannotFindTensorError(name, get_close_matches(name, self.tensors, cutoff=0.4))
        return self.tensors.pop(name)
