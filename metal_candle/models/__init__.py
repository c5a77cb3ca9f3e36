"""Language models: the decoder, its configuration, weights and tokenizers."""

from .config import ModelConfig
from .decoder import Decoder
from .load import LoadedModel, build, load_model, load_tokenizer
from .projection import AdaptableModel, Projection, TargetModule
from .tokenizer import Tokenizer

__all__ = [
    "AdaptableModel",
    "Decoder",
    "LoadedModel",
    "ModelConfig",
    "Projection",
    "TargetModule",
    "Tokenizer",
    "build",
    "load_model",
    "load_tokenizer",
]
