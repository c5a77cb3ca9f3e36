"""Generation: sampling, token and text generators. metal-candle: ``metal_candle::inference``."""

from .chat import TextGenerator
from .generator import Generator, GeneratorConfig
from .sampling import (
    SamplingStrategy,
    StreamToken,
    apply_repetition_penalty,
    sample_token,
    sample_token_with_metadata,
)

__all__ = [
    "Generator",
    "GeneratorConfig",
    "SamplingStrategy",
    "StreamToken",
    "TextGenerator",
    "apply_repetition_penalty",
    "sample_token",
    "sample_token_with_metadata",
]
