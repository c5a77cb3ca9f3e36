"""Generation: sampling, token and text generators, caches. metal-candle: ``metal_candle::inference``."""

from .batch import BatchGenerator, BatchToken
from .cache import KVCache, KVCacheConfig
from .chat import TextGenerator
from .config import GeneratorConfig
from .generator import Generator
from .prompt_cache import PromptCache
from .sampling import (
    SamplingStrategy,
    StreamToken,
    apply_repetition_penalty,
    sample_token,
    sample_token_with_metadata,
)
from .streams import Cancellation

__all__ = [
    "BatchGenerator",
    "BatchToken",
    "Cancellation",
    "Generator",
    "GeneratorConfig",
    "KVCache",
    "KVCacheConfig",
    "PromptCache",
    "SamplingStrategy",
    "StreamToken",
    "TextGenerator",
    "apply_repetition_penalty",
    "sample_token",
    "sample_token_with_metadata",
]
