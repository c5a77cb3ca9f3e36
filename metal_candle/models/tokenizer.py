"""Text to token ids and back, chat messages to text: one class over the ``tokenizers`` library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from ..error import InvalidIndexError, ModelError
from ..error.expect import PATH, TEXT, a, expect, integer, listed, wrong
from ..error.text import shown
from ..files import read_json_object, read_text, write_json, write_text
from ..tensor.arguments import boolean
from .gguf_tokenizer import end_token_ids, special_token_id, tokenizer_json

if TYPE_CHECKING:
    from ..quantized.gguf_file import Content

_MESSAGES = "a list of messages, each a dict with role and content"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def _failed(reason: str) -> ModelError:
    return ModelError.TokenizerFailed(reason=reason)


class Tokenizer:
    """A model's tokenizer with its special tokens and chat template.

    ``config`` is the content of ``tokenizer_config.json``, where the special tokens and the template are
    named. Made by ``from_directory`` or ``from_gguf``.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, config: dict[str, Any], eos_token_ids: Iterable[int] = ()
    ) -> None:
        expect("Tokenizer", tokenizer, a(tokenizers.Tokenizer, "a tokenizers.Tokenizer"))
        expect("Tokenizer", config, a(dict, "the content of tokenizer_config.json, a dict"), "config")
        found = listed("Tokenizer", eos_token_ids, "token ids", "eos_token_ids")
        ends = [integer("Tokenizer", "an end token", i) for i in found]
        tokenizer.no_truncation()  # a tokenizer.json may carry the settings of somebody's last call
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._config = config
        self._special = {name: _token_text(config.get(name)) for name in _SPECIAL}
        self.chat_template = _template_text(config.get("chat_template"))
        eos = self.eos_token_id
        self.eos_token_ids = frozenset(ends) | frozenset(() if eos is None else [eos])
        self._missing_bytes = _missing_bytes(tokenizer)

    # --- where it comes from ------------------------------------------------------------------

    @classmethod
    def from_directory(cls, path: str | PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a Hugging Face folder.

        Takes ``tokenizer.json`` and, where present, ``tokenizer_config.json``, ``special_tokens_map.json``,
        ``chat_template.jinja``, and the end tokens of ``generation_config.json`` and ``config.json``.
        Raises ``ModelError.FileNotFound`` or ``ModelError.TokenizerFailed``.
        """
        expect("Tokenizer", path, PATH)
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not os.path.isfile(file):
            raise ModelError.FileNotFound(
                path=f"{shown(file, 300)}; save the tokenizer with transformers (use_fast=True) to have one"
            )
        tokenizer = _parse(read_text(file, _failed), str(file))
        named = _optional(folder / "special_tokens_map.json")
        config = {**named, **_optional(folder / "tokenizer_config.json")}
        template = folder / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = read_text(template, _failed)
        ends: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            ids = _optional(folder / name).get("eos_token_id")
            ends.update(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int)
        return cls(tokenizer, config, ends)

    @classmethod
    def from_gguf(cls, content: Content | dict[str, Any]) -> Tokenizer:
        """Build a byte-level BPE tokenizer from a GGUF's content, or its metadata as plain Python values.

        Raises ``ModelError.TokenizerFailed``. candle: ``TokenizerFromGguf::from_gguf``.
        """
        if isinstance(content, dict):
            metadata = content
        elif not hasattr(content, "metadata"):
            raise wrong("Tokenizer.from_gguf", content, "a GGUF's Content, or its metadata as a dict")
        else:
            metadata = {key: value.plain() for key, value in content.metadata.items()}
        tokenizer = _parse(json.dumps(tokenizer_json(metadata), ensure_ascii=False), "GGUF metadata")
        tokens = metadata["tokenizer.ggml.tokens"]
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: special_token_id(metadata, key) for name, key in names.items()}
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: tokens[index] for name, index in ids.items() if index is not None},
        }
        architecture = metadata.get("general.architecture")
        if length := metadata.get(f"{architecture}.context_length"):
            config["model_max_length"] = length
        if template := metadata.get("tokenizer.chat_template"):
            config["chat_template"] = template
        return cls(tokenizer, config, end_token_ids(metadata))

    def save(self, directory: str | PathLike[str]) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers and mlx-lm load.

        Raises ``CheckpointError.SaveFailed``.
        """
        expect("Tokenizer.save", directory, PATH)
        write_text(Path(directory) / "tokenizer.json", self._tokenizer.to_str(pretty=False))
        write_json(Path(directory) / "tokenizer_config.json", self._config)

    # --- special tokens -----------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model's embedding may have more rows."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text when one is written; ``eos_token_ids`` are all that end one when read."""
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The id that fills up rows of a batch."""
        return self._id("pad_token")

    def _id(self, name: str) -> int | None:
        text = self._special[name]
        return None if text is None else self.token_to_id(text)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token's text, or ``None``."""
        expect("token_to_id", token, TEXT)
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    # --- text and ids -------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """The ids of ``text``. Special tokens spelled out in it are recognised.

        With ``add_special_tokens`` the model's own beginning (and end) is added, where it has one. Raises
        ``ModelError.TokenizationFailed`` for text that is no Unicode (a lone surrogate).
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[list[int]]:
        """``encode`` of many texts, on all cores."""
        found = listed("encode_batch", texts, "a list of texts", "texts")
        for text in found:
            _expect_unicode(text)
        special = boolean("encode", "add_special_tokens", add_special_tokens)
        encodings = self._tokenizer.encode_batch_fast(found, add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def truncate(self, max_length: int | None) -> None:
        """Cut every text from here on to so many ids, those included that are added; ``None`` cuts none.

        Raises ``ModelError.TokenizerFailed`` for fewer than are added.
        """
        if max_length is None:
            self._tokenizer.no_truncation()
            return
        length = integer("truncate", "max_length", max_length, 0)
        try:
            self._tokenizer.enable_truncation(length)
        except Exception as error:  # the library raises plain Exception for whatever it does not like
            raise _failed(f"max_length {max_length}: {' '.join(str(error).split())}") from error

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of ``text`` and the characters each stands for, as (start, end); raises as ``encode``."""
        _expect_unicode(text)
        special = boolean("encode", "add_special_tokens", add_special_tokens)
        encoding = self._tokenizer.encode(text, add_special_tokens=special)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ``ids``; bytes that make no UTF-8 become U+FFFD."""
        found = [integer("decode", "an id", i, 0) for i in listed("decode", ids, "a list of token ids", "ids")]
        try:
            return str(self._tokenizer.decode(found, boolean("decode", "skip_special_tokens", skip_special_tokens)))
        except OverflowError as error:  # the library's ids have 32 bits
            raise InvalidIndexError("decode", max(found), self.vocab_size) from error

    def decode_stream(self, skip_special_tokens: bool = True) -> DecodeStream:
        """A decoder that takes ids one by one."""
        return DecodeStream(self, skip_special_tokens)

    def unencodable(self, text: str) -> list[str]:
        """The characters of ``text`` that ``encode`` would lose, each once, in order.

        A byte-level vocabulary may lack some bytes, and such a tokenizer has no unknown token.
        """
        expect("unencodable", text, TEXT)
        if not self._missing_bytes:
            return []
        return [c for c in dict.fromkeys(text) if self._missing_bytes.intersection(c.encode("utf-8", "replace"))]

    # --- chat ---------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **variables: object,
    ) -> str:
        """The text of ``messages`` (each with ``role`` and ``content``) in the model's chat format.

        ``add_generation_prompt`` adds the beginning of an assistant's turn; ``variables`` are for templates
        that take more (``tools``, ``enable_thinking`` …). Raises ``ModelError.ChatTemplateFailed``.
        """
        from .chat_template import render  # Jinja is only imported by those who chat

        if self.chat_template is None:
            raise ModelError.ChatTemplateFailed(
                reason="the model has no chat template; give plain text, or a model tuned for chat"
            )
        turns = listed("apply_chat_template", messages, _MESSAGES, "messages")
        for turn in turns:
            expect("apply_chat_template", turn, a(Mapping, _MESSAGES), "a message")
        special = {name: text or "" for name, text in self._special.items()}
        given = {**special, "add_generation_prompt": add_generation_prompt, **variables}
        return render(self.chat_template, turns, **given)


class DecodeStream:
    """Text from ids that come one by one: a character is given when its last byte is there, never half."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._shown = 0  # characters of the text of _ids that were given already

    def step(self, token_id: int) -> str:
        """The text that this id completes, possibly empty."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, self._skip)
        # U+FFFD at the end may be the beginning of a character.
        whole = text.rstrip("\ufffd")
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        # The last token stays as context: decoders treat the first of a text in its own way.
        if whole == text and (context := self._tokenizer.decode(self._ids[-1:], self._skip)):
            self._ids, self._shown = self._ids[-1:], len(context)
        return new

    def finish(self) -> str:
        """What is left at the end, with U+FFFD for bytes that never became a character."""
        rest = self._tokenizer.decode(self._ids, self._skip)[self._shown :]
        self._ids, self._shown = [], 0
        return rest


def _parse(text: str, source: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception for whatever it does not like
        raise _failed(f"{source}: {' '.join(str(error).split())}") from error


def _expect_unicode(text: str) -> None:
    expect("encode", text, TEXT)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ModelError.TokenizationFailed(reason=f"{found} is half of a surrogate pair") from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, _failed) if path.is_file() else {}


def _token_text(value: Any) -> str | None:
    """A special token is written as its text or as an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _template_text(value: Any) -> str | None:
    """A chat template, or the default one of a list of named templates."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _missing_bytes(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    """The bytes without a token, for a byte-level BPE; none for other kinds, which have an unknown token."""
    if not isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        return frozenset()
    symbols = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return frozenset(_byte(symbol) for symbol in symbols if tokenizer.token_to_id(symbol) is None)


def _byte(symbol: str) -> int:
    """The byte that GPT-2's alphabet writes as this character: itself if printable, else from U+0100 on."""
    if ord(symbol) < 256:
        return ord(symbol)
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [byte for byte in range(256) if byte not in printable][ord(symbol) - 256]
