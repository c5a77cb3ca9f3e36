"""Which embedding model, and how it is used. metal-candle: ``metal_candle::embeddings::config``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from os import PathLike
from typing import Union

from ..error import EmbeddingError
from ..error.text import described


class EmbeddingModelType(Enum):
    """The models that have a name here. metal-candle: ``EmbeddingModelType``.

    E5 was trained with a prefix before each text and gives better results with it: ``"query: "`` for what is searched
    for, ``"passage: "`` for what is searched in, ``"query: "`` for both where the two are alike. The caller adds it.
    The other two take texts as they are.
    """

    E5SmallV2 = "intfloat/e5-small-v2"
    AllMiniLmL6V2 = "sentence-transformers/all-MiniLM-L6-v2"
    AllMpnetBaseV2 = "sentence-transformers/all-mpnet-base-v2"

    def model_id(self) -> str:
        """Its id on the Hugging Face hub."""
        return str(self.value)

    def dimension(self) -> int:
        """The length of its embeddings."""
        return 768 if self is EmbeddingModelType.AllMpnetBaseV2 else 384

    @staticmethod
    def default() -> EmbeddingModelType:
        """``E5SmallV2``."""
        return EmbeddingModelType.E5SmallV2


ModelName = Union[EmbeddingModelType, str, "PathLike[str]"]
"""A model: a type, a folder, or a hub id."""
MODEL = "a folder with config.json, a hub id such as org/name, or an EmbeddingModelType"
"""What errors say of it."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """metal-candle's ``EmbeddingConfig``. ``model_type`` may also be a folder or a hub id.

    ``normalize`` gives rows of unit length. Longer texts are cut to ``max_seq_length`` tokens, or to fewer where the
    model's files say so or it has no more positions.
    """

    model_type: ModelName = EmbeddingModelType.E5SmallV2
    normalize: bool = True
    max_seq_length: int = 512

    @staticmethod
    def default() -> EmbeddingConfig:
        """``EmbeddingConfig()``."""
        return EmbeddingConfig()

    def validate(self) -> None:
        """Raise ``EmbeddingError.InvalidConfig`` for a length below 1 and for values of another type."""
        for name, fits, takes in (
            ("model_type", isinstance(self.model_type, (EmbeddingModelType, str, PathLike)), MODEL),
            ("normalize", isinstance(self.normalize, bool), "True or False"),
            ("max_seq_length", type(self.max_seq_length) is int and self.max_seq_length >= 1, "an integer from 1"),
        ):
            if not fits:
                reason = f"{name} is {described(getattr(self, name))}; takes {takes}"
                raise EmbeddingError.InvalidConfig(reason=reason)
