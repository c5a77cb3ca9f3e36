"""Text in, text out: prompts, chat messages, pieces of whole characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import InferenceError, ModelError
from metal_candle.inference import GeneratorConfig, SamplingStrategy, TextGenerator
from metal_candle.models import LoadedModel, load_model

import pytest

ModelDir = Callable[..., Path]
CONFIG = GeneratorConfig(
    max_tokens=30, sampling=SamplingStrategy.Temperature(temperature=3.0), seed=5, stop_on_eos=False
)


@pytest.fixture
def loaded(tiny_model_dir: ModelDir) -> LoadedModel:
    return load_model(tiny_model_dir())


def test_the_pieces_are_the_text_of_the_tokens(loaded: LoadedModel) -> None:
    generator = TextGenerator(loaded, CONFIG)
    tokens = list(generator.stream_tokens("a cat"))
    pieces = list(generator.stream("a cat"))
    text = loaded.tokenizer.decode([token.token_id for token in tokens], skip_special_tokens=True)
    assert "".join(pieces) == text == generator.generate("a cat")
    assert "".join(token.text or "" for token in tokens) == text
    assert all(pieces)
    assert len(tokens) == 30
    assert generator.config() is CONFIG


def test_messages_go_through_the_chat_template(loaded: LoadedModel) -> None:
    generator = TextGenerator(loaded, CONFIG)
    messages = [{"role": "user", "content": "a cat"}]
    text = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    assert generator.encode(messages) == loaded.tokenizer.encode(text)
    assert generator.generate(messages) == generator.generate(text)


def test_it_stops_at_the_tokenizers_end_tokens(loaded: LoadedModel) -> None:
    token = next(TextGenerator(loaded, CONFIG).stream_tokens("a cat"))
    ends = loaded.tokenizer.eos_token_ids
    loaded.tokenizer.eos_token_ids = ends | {token.token_id}
    stopping = GeneratorConfig(**{**vars(CONFIG), "stop_on_eos": True})
    found = list(TextGenerator(loaded, stopping).stream_tokens("a cat"))
    assert [t.token_id for t in found] == [token.token_id]
    assert found[0].is_eos


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty; takes at least one token to go on from"),
        # A template makes an opening of no messages too, which a model would answer.
        ([], "the prompt has no messages; takes at least one"),
    ],
)
def test_an_empty_prompt_is_refused(loaded: LoadedModel, prompt: Any, words: str) -> None:
    generator = TextGenerator(loaded)
    with pytest.raises(InferenceError.InvalidConfig, match=f": {words}$"):
        generator.generate(prompt)
    with pytest.raises(InferenceError.InvalidConfig, match=f": prompts\\[1\\]: {words}$"):
        generator.generate_batch(["a cat", prompt])


def test_messages_without_a_template_are_refused(loaded: LoadedModel) -> None:
    loaded.tokenizer.chat_template = None
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    with pytest.raises(ModelError.ChatTemplateFailed, match="no chat template; give plain text"):
        TextGenerator(loaded).generate(messages)
