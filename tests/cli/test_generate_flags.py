"""Flags of ``generate`` that end an answer, bound the cache, and filter what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metal_candle.cli.generate import generator_config
from metal_candle.error import InferenceError
from metal_candle.inference import GeneratorConfig, SamplingStrategy, TextGenerator
from metal_candle.models import load_model

import pytest
from program import ok

HOT = SamplingStrategy.Temperature(temperature=1.0)


def test_flags_are_the_configurations(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir(eos_token_id=None, tie_word_embeddings=False)
    config = GeneratorConfig(
        max_tokens=30,
        sampling=HOT,
        min_p=0.01,
        repetition_penalty=1.5,
        seed=3,
        cache="rotating",
        max_kv_size=9,
        stop=["th"],
    )
    drawing = ("--min-p", 0.01, "--repetition-penalty", 1.5, "--seed", 3)
    flags = ("--max-tokens", 30, *drawing, "--max-kv-size", 9, "--stop", "th", "--stop", "zzz")
    wanted = TextGenerator(load_model(folder), config).generate("a cat")
    assert ok("generate", "--model", folder, "--raw", *flags, "a cat") == wanted + "\n"


def test_what_they_come_down_to() -> None:
    plain = generator_config(5, None, None, None, None, None, (), None)
    assert plain == GeneratorConfig(max_tokens=5)
    assert generator_config(5, None, None, None, 0.1, None, (), None).sampling == HOT
    with pytest.raises(InferenceError.InvalidConfig, match="max_kv_size is 2 for a rotating cache"):
        generator_config(5, None, None, None, None, None, (), 2)
    with pytest.raises(InferenceError.InvalidSampling, match="repetition penalty is 0; takes a number above 0"):
        generator_config(5, None, None, None, None, None, (), None, repetition_penalty=0)
    with pytest.raises(InferenceError.InvalidSampling, match="min-p is 2; takes a number from 0 to 1"):
        generator_config(5, None, None, None, 2, None, (), None)
