"""What ends an answer: the union of configuration, tokenizer and chat template, and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import InferenceError
from metal_candle.inference import Generator, GeneratorConfig, TextGenerator
from metal_candle.inference.sampling import StreamToken
from metal_candle.inference.stop import TextStops, end_of_turn, end_tokens
from metal_candle.models import LoadedModel, Tokenizer, load_model

import pytest
from hypothesis import given
from hypothesis import strategies as st

ModelDir = Callable[..., Path]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def loaded(tiny_model_dir: ModelDir) -> LoadedModel:
    return load_model(tiny_model_dir(eos_token_id=7))


def scripted(generator: TextGenerator, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model say these ids, and stop where the generator stops."""
    inner: Any = generator._generator

    def stream(prompt: list[int], **options: Any) -> Any:
        for i in ids:
            yield StreamToken(i, None, 0.0, 1.0, i in inner._eos)
            if i in inner._eos:
                return

    monkeypatch.setattr(inner, "stream", stream)


def test_three_sources_that_differ(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    turn, start = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|im_start|>")
    assert turn is not None
    assert start is not None
    tokenizer.eos_token_ids = frozenset([9])
    tokenizer.chat_template = CHATML
    assert end_of_turn(tokenizer) == turn
    assert end_tokens(tokenizer, loaded.model.config.eos_token_ids()) == {7, 9, turn}
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_start|>")
    generator = TextGenerator(loaded)
    assert generator._generator._eos == {7, 9, start}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["configuration", "tokenizer", "template"])
def test_each_of_them_ends_an_answer(loaded: LoadedModel, which: int) -> None:
    free = GeneratorConfig(max_tokens=6, stop_on_eos=False, repetition_penalty=1e6)
    said = [t.token_id for t in TextGenerator(loaded, free).stream_tokens("a cat")]
    end = said[2]
    if which == 0:
        loaded.model.config.eos_token_id = [63, end]
    elif which == 1:
        loaded.tokenizer.eos_token_ids = frozenset([end])
    else:
        turn = loaded.tokenizer.token_to_id("<|im_end|>")
        # A template that ends turns by another special token, and a model that says it third.
        loaded.tokenizer.chat_template = CHATML
        assert end_of_turn(loaded.tokenizer) == turn
        weights = loaded.model.embed_tokens.embeddings()
        row = weights.numpy().copy()
        row[[turn, end]] = row[[end, turn]]
        from metal_candle import Tensor
        from metal_candle.models import build

        arrays = {name: tensor.mlx() for name, tensor in loaded.model.weights().items()}
        arrays["model.embed_tokens.weight"] = Tensor.new(row).mlx()
        prompt = loaded.tokenizer.encode("a cat")
        assert turn not in said
        assert not {turn, end} & set(prompt)
        loaded = LoadedModel(build(loaded.model.config, arrays, "f32"), loaded.tokenizer, loaded.path, loaded.name)
    ending = GeneratorConfig(max_tokens=6, repetition_penalty=1e6)
    found = list(TextGenerator(loaded, ending).stream_tokens("a cat"))
    assert len(found) == 3
    assert [t.is_eos for t in found] == [False, False, True]


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} <|im_end|> {% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} ### {% endfor %}", None),
        ("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}", None),
        ("{{ messages[0].content }}<|im_end|>", None),
        ("{{ raise_exception('tools only') }}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_found_by_content(loaded: LoadedModel, template: str | None, token: str | None) -> None:
    loaded.tokenizer.chat_template = template
    assert end_of_turn(loaded.tokenizer) == (None if token is None else loaded.tokenizer.token_to_id(token))


@pytest.mark.slow
def test_smollm2s_template(smollm2_gguf: Path) -> None:
    from metal_candle.models.load import load_tokenizer

    tokenizer: Tokenizer = load_tokenizer(smollm2_gguf)
    assert end_of_turn(tokenizer) == tokenizer.token_to_id("<|im_end|>") == 2


# --- texts ------------------------------------------------------------------------------------


@given(
    st.lists(st.text("ab!", max_size=3), max_size=8),
    st.lists(st.text("ab!", min_size=1, max_size=4), max_size=3),
)
def test_text_goes_through_up_to_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    through, text = TextStops(stops), "".join(pieces)
    given_out = []
    for piece in pieces:
        given_out.append(through.step(piece))
        so_far = "".join(given_out)
        assert not any(stop in so_far for stop in stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert through.reached == bool(ends)
    whole = "".join(given_out) + through.finish()
    # As pieces come one by one, the stop that is complete first wins, and of those the one that begins first.
    if not ends:
        assert whole == text
    else:
        complete = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(whole)
        assert len(whole) < complete
        assert any(text[len(whole) :].startswith(stop) for stop in stops)


def test_an_answer_is_cut_at_a_text(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = loaded.tokenizer.encode("a cat sat the cat")
    whole = loaded.tokenizer.decode(ids)
    stop = whole[3:6]
    generator = TextGenerator(loaded, GeneratorConfig(stop=["zzz", stop]))
    scripted(generator, ids, monkeypatch)
    assert generator.generate("x") == whole[: whole.find(stop)]
    texts = [token.text for token in generator.stream_tokens("x")]
    assert "".join(text or "" for text in texts) == whole[: whole.find(stop)]
    assert len(texts) < len(ids)
    held = TextGenerator(loaded, GeneratorConfig(stop=[whole[-1:] + "never"]))
    scripted(held, ids, monkeypatch)
    assert held.generate("x") == whole
    assert held.config().stop == [whole[-1:] + "never"]
    for config in ({"max_tokens": len(ids)}, {"stop_tokens": ids[-1:]}):
        held = TextGenerator(loaded, GeneratorConfig(stop=[whole[-1:] + "never"], **config))
        scripted(held, ids, monkeypatch)
        assert "".join(token.text or "" for token in held.stream_tokens("x")) == whole


@pytest.mark.parametrize("stop", ["text", [""], [3]])
def test_texts_that_are_none(loaded: LoadedModel, stop: Any) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match="takes a list of texts that are not empty"):
        TextGenerator(loaded, GeneratorConfig(stop=stop))


def test_ids_have_no_text_to_stop_at(loaded: LoadedModel) -> None:
    with pytest.raises(InferenceError.InvalidConfig, match=r"stop is \['x'\], which takes text; give it to a Text"):
        Generator(loaded.model, GeneratorConfig(stop=["x"]))
