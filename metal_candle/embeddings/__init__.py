"""Sentence embeddings. metal-candle: ``metal_candle::embeddings``.

``EmbeddingModel.from_pretrained(EmbeddingModelType.AllMiniLmL6V2).encode(["a text", "another"])`` gives a tensor
``(2, 384)`` of unit rows, whose products are the texts' cosine similarities.
"""

from . import loader, pooling
from .config import EmbeddingConfig, EmbeddingModelType
from .encoder import BertEncoder
from .model import EmbeddingModel

__all__ = ["BertEncoder", "EmbeddingConfig", "EmbeddingModel", "EmbeddingModelType", "loader", "pooling"]
