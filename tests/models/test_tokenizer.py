"""Tokens, chat templates, streaming: SmolLM2's golden encodings, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError, ModelError
from metal_candle.formats.gguf import read_gguf_header
from metal_candle.models.gguf_tokenizer import tokenizer_json
from metal_candle.models.tokenizer import Tokenizer

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = {
    "Hello world 12345 it's": [19556, 905, 216, 33, 34, 35, 36, 37, 357, 506],
    "  two  spaces\n\n\ttab": [216, 827, 216, 5600, 1116, 197, 15999],
    "naïve café 日本語 🎉": [3546, 46494, 37366, 17097, 241, 115, 40993, 179, 120, 248, 15107, 232, 227],
    "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Once upon a time": [6403, 1980, 253, 655],
}
# fmt: off
GRAVITY = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
    2, 198, 1, 4093, 198, 1780, 314, 9354, 47, 2, 198, 1, 520, 9531, 198,
]
# fmt: on
USER = [{"role": "user", "content": "What is gravity?"}]


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_gguf_header(smollm2_gguf).metadata)


@pytest.fixture(scope="session")
def all_bytes() -> Tokenizer:
    """A tokenizer with a token for each byte, so that every text survives."""
    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*symbols, "th"],
            "tokenizer.ggml.token_type": [1] * 257,
            "tokenizer.ggml.merges": ["t h"],
        }
    )


# --- SmolLM2 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_encodings_and_back(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.encode(text) == GOLDEN[text]
    assert smollm2.encode(text, add_special_tokens=True) == GOLDEN[text]  # this model adds none
    assert smollm2.decode(GOLDEN[text]) == text


def test_golden_chat(smollm2: Tokenizer) -> None:
    text = smollm2.apply_chat_template(USER, add_generation_prompt=True)
    assert smollm2.encode(text) == GRAVITY
    assert smollm2.apply_chat_template(USER) == text.removesuffix("<|im_start|>assistant\n")
    own = smollm2.apply_chat_template([{"role": "system", "content": "Be brief."}, *USER])
    assert own.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_special_tokens(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_token_id, smollm2.eos_token_id, smollm2.pad_token_id) == (1, 2, 2)
    assert smollm2.eos_token_ids == {0, 2}
    assert smollm2.vocab_size == 49152
    assert smollm2.decode(GOLDEN["<|im_start|>user\nHi<|im_end|>"], skip_special_tokens=True) == "user\nHi"


def test_bytes_without_a_token_are_reported(smollm2: Tokenizer) -> None:
    lost = smollm2.unencodable("a\x04b\x1d\x04 \U00040000")
    assert lost == ["\x04", "\x1d", "\U00040000"]
    assert smollm2.decode(smollm2.encode("a\x04b")) == "ab"  # which is why they are reported
    assert smollm2.unencodable("".join(map(chr, range(0x20, 0x3000)))) == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_not_reported_comes_back(smollm2: Tokenizer, text: str) -> None:
    lost = smollm2.unencodable(text)
    back = smollm2.decode(smollm2.encode(text))
    assert (back == text) == (not lost)


def test_saved_files_read_back(smollm2: Tokenizer, tmp_path: Path) -> None:
    smollm2.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert [again.encode(text) for text in GOLDEN] == list(GOLDEN.values())
    assert again.chat_template == smollm2.chat_template
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 2)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_max_length"] == 8192


# --- streaming --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 256), max_size=40))
def test_a_stream_is_the_decoded_text_in_pieces(all_bytes: Tokenizer, ids: list[int]) -> None:
    stream = all_bytes.decode_stream()
    pieces = [stream.step(index) for index in ids]
    assert "".join([*pieces, stream.finish()]) == all_bytes.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_a_stream_of_good_text_has_no_broken_character(all_bytes: Tokenizer, text: str) -> None:
    stream = all_bytes.decode_stream()
    pieces = [stream.step(index) for index in all_bytes.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert stream.finish() == ""


def test_a_character_comes_with_its_last_byte(smollm2: Tokenizer) -> None:
    stream = smollm2.decode_stream()
    assert [stream.step(index) for index in [15107, 232, 227, 2]] == [" ", "", "🎉", ""]


def test_what_never_becomes_a_character_comes_at_the_end(all_bytes: Tokenizer) -> None:
    first, *_ = all_bytes.encode("🎉")
    stream = all_bytes.decode_stream()
    assert (stream.step(first), stream.finish()) == ("", "\ufffd")


def test_a_stream_keeps_the_spaces_of_a_sentencepiece_tokenizer() -> None:
    pieces = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "<0xC3>": 3, "<0xA9>": 4}
    model = tokenizers.models.BPE(pieces, [], byte_fallback=True, unk_token="<unk>")
    inner = tokenizers.Tokenizer(model)
    parts = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    inner.decoder = tokenizers.decoders.Sequence([*parts, tokenizers.decoders.Strip(" ", 1, 0)])
    stream = Tokenizer(inner, {}).decode_stream()
    assert [stream.step(index) for index in [1, 2, 3, 4, 2]] == ["Hello", " world", "", "é", " world"]


# --- other tokenizers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġcafé", "Ċ", "Ċ", "x"]),
        ("gpt-2", ["It", "'s", "Ġ1234", "Ġcafé", "Ċ", "Ċ", "x"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "Ġcafé", "ĊĊ", "x"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "4", "Ġcafé", "ĊĊ", "x"]),
    ],
)
def test_text_is_split_as_the_model_learned_it(tiny_metadata: dict[str, Any], pre: str, words: list[str]) -> None:
    built = tokenizer_json({**tiny_metadata, "tokenizer.ggml.pre": pre})
    inner = tokenizers.Tokenizer.from_str(json.dumps(built))
    assert inner.pre_tokenizer is not None
    split = [word for word, _ in inner.pre_tokenizer.pre_tokenize_str("It's 1234 café\n\nx")]
    assert split == [word.replace("é", "Ã©") for word in words]


def test_the_beginning_of_text_is_added_where_the_model_wants_it(tiny_metadata: dict[str, Any]) -> None:
    wants = Tokenizer.from_gguf({**tiny_metadata, "tokenizer.ggml.add_bos_token": True})
    assert wants.encode("a") == [3]
    assert wants.encode("a", add_special_tokens=True) == [1, 3]
    assert wants.encode_batch(["a", "b"], add_special_tokens=True) == [[1, 3], [1, 4]]


def test_user_defined_tokens_are_recognised_but_not_special(tiny_metadata: dict[str, Any]) -> None:
    types = [3, 4, *tiny_metadata["tokenizer.ggml.token_type"][2:]]
    tokenizer = Tokenizer.from_gguf({**tiny_metadata, "tokenizer.ggml.token_type": types})
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == "<|im_start|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; takes 'gpt2'"),
        (
            {"pre": "tekken"},
            r"tokenizer\.ggml\.pre is 'tekken'; takes smollm, gpt-2, default, qwen2, llama-bpe",
        ),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"merges": ["a b c"]}, "takes two tokens with a space between"),
        ({"merges": ["q z"]}, "Token `qz` out of vocabulary"),
        ({"token_type": [1]}, "64 tokens and 1 token types"),
        ({"eos_token_id": 64}, "eos_token_id is 64, which is no token"),
    ],
)
def test_metadata_that_make_no_tokenizer(tiny_metadata: dict[str, Any], change: dict[str, Any], message: str) -> None:
    changed = {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(ModelError.TokenizerFailed, match=message) as raised:
        Tokenizer.from_gguf({**tiny_metadata, **changed})
    assert "\n" not in str(raised.value)


def test_half_a_surrogate_pair_is_no_text(all_bytes: Tokenizer) -> None:
    with pytest.raises(ModelError.TokenizationFailed, match=r"U\+D83D at character 1"):
        all_bytes.encode("a\ud83d")
    assert all_bytes.unencodable("a\ud83d") == []


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_names_its_tokens_in_several_places(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir(eos_token_id=0)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    config["eos_token"] = {"content": "<|im_end|>", "lstrip": False}
    config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    tokenizer = Tokenizer.from_directory(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.eos_token_ids == {0, 1, 2}
    assert tokenizer.chat_template == "yes"
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_directory(folder).chat_template == "file"


def test_truncation_left_in_the_file_is_switched_off(tiny_model_dir: Callable[..., Path]) -> None:
    folder = tiny_model_dir()
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    inner.save(str(folder / "tokenizer.json"))
    assert len(Tokenizer.from_directory(folder).encode("abcd")) == 4


def test_folders_that_hold_no_tokenizer(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ModelError.FileNotFound, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    folder = tiny_model_dir()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError.TokenizerFailed, match=r"tokenizer_config\.json: broken JSON at line 1"):
        Tokenizer.from_directory(folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])
    with pytest.raises(ModelError.TokenizerFailed, match=r"tokenizer\.json: ") as raised:
        Tokenizer.from_directory(folder)
    assert "\n" not in str(raised.value)
    (folder / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ModelError.TokenizerFailed, match=r"tokenizer\.json: not UTF-8"):
        Tokenizer.from_directory(folder)


def test_saving_where_nothing_can_be_saved(all_bytes: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError.SaveFailed, match="file is a file, not a folder"):
        all_bytes.save(tmp_path / "file")


# --- chat templates ---------------------------------------------------------------------------


@pytest.fixture
def chat(tiny_metadata: dict[str, Any]) -> Callable[..., str]:
    def render(template: str, **variables: object) -> str:
        metadata = {**tiny_metadata, "tokenizer.chat_template": template}
        return Tokenizer.from_gguf(metadata).apply_chat_template(USER, **variables)

    return render


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<|im_start|><|im_end|>"),
        ("  {% if true %}\nyes\n  {% endif %}\n", "yes\n"),  # block lines leave no trace
        ("{{ messages | tojson }}", '[{"role": "user", "content": "What is gravity?"}]'),
        ("{{ '<é>' | tojson }}", '"<é>"'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c", "abuserc"),
        ("{% if tools is defined %}{{ tools[0] }}{% else %}none{% endif %}", "none"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_what_templates_rely_on(chat: Callable[..., str], template: str, text: str) -> None:
    assert chat(template) == text


def test_further_variables(chat: Callable[..., str]) -> None:
    assert chat("{{ tools[0] }}{{ thinking }}", tools=["t"], thinking=False) == "tFalse"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "the template refuses the messages: roles must alternate",
        ),
        ("a\n{% if %}", "line 2: "),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ absent.field }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_templates_that_fail(chat: Callable[..., str], template: str, message: str) -> None:
    with pytest.raises(ModelError.ChatTemplateFailed, match=message) as raised:
        chat(template)
    assert "\n" not in str(raised.value)


def test_a_model_without_a_template_says_so(all_bytes: Tokenizer) -> None:
    with pytest.raises(ModelError.ChatTemplateFailed, match="has no chat template; give plain text"):
        all_bytes.apply_chat_template(USER)
