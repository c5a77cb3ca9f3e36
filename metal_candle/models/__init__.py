"""Language models: the decoder, its configuration, weights and tokenizers."""

from .adaptable import AdaptableModel
from .config import ModelConfig
from .decoder import Decoder
from .language_model import LanguageModel
from .load import build, load_model, load_tokenizer
from .loaded import LoadedModel
from .loader import ModelLoader
from .projection import Projection
from .qwen import Qwen
from .target_module import TargetModule
from .tokenizer import Tokenizer

__all__ = [
    "AdaptableModel",
    "Decoder",
    "LanguageModel",
    "LoadedModel",
    "ModelConfig",
    "ModelLoader",
    "Projection",
    "Qwen",
    "TargetModule",
    "Tokenizer",
    "build",
    "load_model",
    "load_tokenizer",
]
