"""What is no model, configuration or prompt is refused where it is given, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError
from metal_candle.error import InferenceError
from metal_candle.inference import BatchGenerator, Generator, GeneratorConfig
from metal_candle.models import Decoder, load_model

import numpy as np
import pytest

Calls = Callable[[Decoder], Any]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> Decoder:
    loaded = load_model(tiny_model_dir(num_hidden_layers=1)).model
    assert isinstance(loaded, Decoder)
    return loaded


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: Generator(None), "Generator: got None; takes a model"),
        (lambda model: Generator(model, 3), "Generator: got config 3; takes a GeneratorConfig"),  # type: ignore[arg-type]
        (lambda model: Generator(model).generate("12"), "got a prompt '12'; takes a list of token ids"),  # type: ignore[arg-type]
        (lambda model: Generator(model).generate([1.5]), "got a prompt a list; takes a list of token ids"),  # type: ignore[list-item]
        (lambda model: Generator(model).generate(None), "got a prompt None; takes"),  # type: ignore[arg-type]
        (lambda model: BatchGenerator(model, 3), "BatchGenerator: got config 3; takes"),  # type: ignore[arg-type]
        (lambda model: BatchGenerator(model, None, [1]), "got adapters a list; takes a dict"),  # type: ignore[arg-type]
        (lambda model: BatchGenerator(model).generate("12"), "got prompts '12'; takes a list of lists"),  # type: ignore[arg-type]
        (lambda model: BatchGenerator(model).generate([1, 2]), "got a prompt 1; takes"),  # type: ignore[list-item]
    ],
)
def test_arguments_of_another_type(model: Decoder, call: Calls, words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling": 3}, "sampling is 3; takes a SamplingStrategy"),
        ({"eos_token_id": -1}, "eos_token_id is -1; takes an integer from 0"),
        ({"stop_tokens": "</s>"}, "stop_tokens is '</s>'; takes a list of token ids"),
        ({"stop_tokens": ["</s>"]}, "takes a list of token ids"),
        ({"stop": 3}, "stop is 3; takes a list of texts"),
    ],
)
def test_what_could_never_end_a_text_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match=words):
        GeneratorConfig(**fields).validate()


def test_ids_of_any_kind_of_integer(model: Decoder) -> None:
    config = GeneratorConfig(max_tokens=3, stop_tokens=np.array([63]))
    expected = Generator(model, config).generate([4, 5])
    assert Generator(model, config).generate(iter([4, 5])) == expected  # type: ignore[arg-type]
    assert Generator(model, config).generate(np.array([4, 5])) == expected  # type: ignore[arg-type]
    assert BatchGenerator(model, config).generate([np.array([4, 5])]) == [expected]  # type: ignore[list-item]
