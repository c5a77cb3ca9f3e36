"""What is no model, configuration or prompt is refused where it is given, in words."""

# mypy: disable-error-code="arg-type, list-item, dict-item"

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import ArgumentTypeError, Tensor
from metal_candle.error import InferenceError
from metal_candle.inference import (
    BatchGenerator,
    Generator,
    GeneratorConfig,
    KVCache,
    KVCacheConfig,
    TextGenerator,
)
from metal_candle.models import Decoder, LoadedModel, load_model

import numpy as np
import pytest

Calls = Callable[[Decoder], Any]
PLAIN = GeneratorConfig()


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Callable[..., Path]) -> LoadedModel:
    return load_model(tiny_model_dir(num_hidden_layers=1))


@pytest.fixture(scope="module")
def model(loaded: LoadedModel) -> Decoder:
    model = loaded.model
    assert isinstance(model, Decoder)
    return model


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: Generator(None), "Generator: got None; takes a model"),
        (lambda model: Generator(model, 3), "Generator: got config 3; takes a GeneratorConfig"),
        (lambda model: Generator(model).generate("12"), "got a prompt '12'; takes a list of token ids"),
        (lambda model: Generator(model).generate([1.5]), "got a prompt a list; takes a list of token ids"),
        (lambda model: Generator(model).generate(None), "got a prompt None; takes"),
        (lambda model: Generator(model, eos_token_ids=3), "Generator: got eos_token_ids 3; takes token ids"),
        (lambda model: Generator(model).generate([1], cancel=3), "Generator: got cancel 3; takes a Cancellation"),
        (lambda model: Generator(model).generate([1], progress=3), "Generator: got progress 3; takes a function"),
        (lambda model: Generator(model).generate([1], prompt_cache=3), "got prompt_cache 3; takes a PromptCache"),
        (lambda model: BatchGenerator(model, 3), "BatchGenerator: got config 3; takes"),
        (lambda model: BatchGenerator(model, None, [1]), "got adapters a list; takes a dict"),
        (lambda model: BatchGenerator(model).generate("12"), "got prompts '12'; takes a list of lists"),
        (lambda model: BatchGenerator(model).generate([1, 2]), "got a prompt 1; takes"),
        (lambda model: BatchGenerator(model, eos_token_ids=3), "got eos_token_ids 3; takes token ids"),
        (lambda model: BatchGenerator(model).generate([[1]], "a"), "got adapters 'a'; takes a list of names or None"),
        (lambda model: BatchGenerator(model).generate([[1]], [3]), "got an adapter 3; takes a name or None"),
        (lambda model: BatchGenerator(model, adapters={"a": 3}).generate([[1]], ["a"]), "'a': 3; takes a LoRAAdapter"),
        (lambda model: BatchGenerator(model, adapters={"a": None}).generate([[1]], ["a"]), "got adapter 'a': None"),
        (lambda model: BatchGenerator(model).generate([[1]], None, [None]), "got config None; takes a GeneratorConfig"),
        (
            lambda model: BatchGenerator(model).generate([[1]], None, PLAIN),
            "configs a GeneratorConfig; takes a list",
        ),
        (lambda model: BatchGenerator(model).generate([[1]], cancel=3), "got cancel 3; takes a Cancellation or None"),
        (lambda model: BatchGenerator(model).generate([[1]], progress=3), "got progress 3; takes a function or None"),
        (lambda model: KVCache({}), "KVCache: got config a dict; takes a KVCacheConfig"),
        (lambda model: TextGenerator(None), "TextGenerator: got None; takes a LoadedModel, which load_model gives"),
        (lambda model: TextGenerator(model), "TextGenerator: got a Decoder; takes a LoadedModel"),
    ],
)
def test_arguments_of_another_type(model: Decoder, call: Calls, words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(model)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda loaded: TextGenerator(loaded, {}), "TextGenerator: got config a dict; takes a GeneratorConfig"),
        (lambda loaded: TextGenerator(loaded, None, [3]), "TextGenerator: got adapters a list; takes a dict"),
        (lambda loaded: TextGenerator(loaded).generate(None), "got prompt None; takes a text or a list of messages"),
        (lambda loaded: TextGenerator(loaded).generate({"role": "user"}), "got prompt a dict; takes a text or a list"),
        (lambda loaded: TextGenerator(loaded).generate([3]), "got a message 3; takes a list of messages, each a dict"),
        (lambda loaded: TextGenerator(loaded).generate_batch("ab"), "got prompts 'ab'; takes a list of prompts"),
        (lambda loaded: asyncio.run(anext(TextGenerator(loaded).stream_async("a", cancel=3))), "got cancel 3; takes"),
    ],
)
def test_arguments_of_another_type_where_there_is_text(
    loaded: LoadedModel, call: Callable[[LoadedModel], Any], words: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(loaded)


def test_a_cache_on_a_device_by_its_name() -> None:
    cache, ones = KVCache(KVCacheConfig(4, 1, 1, 2), "cpu"), Tensor.ones((1, 1, 3, 2), "f32", "cpu")
    assert cache.update(0, ones, ones)[0].shape == (1, 1, 3, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sampling": 3}, "sampling is 3; takes a SamplingStrategy"),
        ({"eos_token_id": -1}, "eos_token_id is -1; takes an integer from 0"),
        ({"stop_tokens": "</s>"}, "stop_tokens is '</s>'; takes a list of token ids"),
        ({"stop_tokens": ["</s>"]}, "takes a list of token ids"),
        ({"stop_on_eos": None}, "stop_on_eos is None; takes True or False"),
        ({"stop": 3}, "stop is 3; takes a list of texts"),
    ],
)
def test_what_could_never_end_a_text_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match=words):
        GeneratorConfig(**fields).validate()


def test_ids_of_any_kind_of_integer(model: Decoder) -> None:
    config = GeneratorConfig(max_tokens=3, stop_tokens=np.array([63]))
    expected = Generator(model, config).generate([4, 5])
    assert Generator(model, config).generate(iter([4, 5])) == expected
    assert Generator(model, config).generate(np.array([4, 5])) == expected
    assert BatchGenerator(model, config).generate([np.array([4, 5])]) == [expected]
