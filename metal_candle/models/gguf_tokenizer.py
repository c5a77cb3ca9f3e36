"""A byte-level BPE tokenizer from a GGUF's metadata, as the JSON that the ``tokenizers`` library reads."""

from __future__ import annotations

from typing import Any

from ..error import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # the values of tokenizer.ggml.token_type that are recognised in text

END_OF_TEXT = frozenset({"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"})
"""Control tokens that end a turn or a text whatever the metadata says: a chat model may emit any of them."""


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _words(digits: str) -> dict[str, Any]:
    """The splitting shared by Llama 3 and Qwen 2, which differ in how long a run of digits may be."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(use_regex=True)]},
    "gpt-2": _byte_level(use_regex=True),
    "default": _byte_level(use_regex=True),
    "qwen2": _words(r"\p{N}"),
    "llama-bpe": _words(r"\p{N}{1,3}"),
}
"""``tokenizer.ggml.pre`` -> how text is split before merging."""


def tokenizer_json(metadata: dict[str, Any]) -> dict[str, Any]:
    """The ``tokenizer.json`` that the metadata's ``tokenizer.ggml.*`` keys amount to.

    Raises ``ModelError.TokenizerFailed`` for another kind than byte-level BPE, for a splitting that is not
    known, and for lists that are missing or do not fit each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise _failed(f"tokenizer.ggml.model is {kind!r}; takes 'gpt2' (byte-level BPE): use the model's folder")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise _failed(f"tokenizer.ggml.pre is {pre!r}; takes {', '.join(_PRE_TOKENIZERS)}: use the model's folder")
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int)
    if len(types) != len(tokens):
        raise _failed(f"tokenizer.ggml has {len(tokens)} tokens and {len(types)} token types")
    merges = [merge.split(" ") for merge in _list(metadata, "merges", str)]
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise _failed(f"tokenizer.ggml.merges has {' '.join(wrong)!r}; takes two tokens with a space between")
    added = [
        _added_token(index, content, special=kind == _CONTROL)
        for index, (content, kind) in enumerate(zip(tokens, types))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": _begin(metadata, tokens, default=pre == "llama-bpe"),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def special_token_id(metadata: dict[str, Any], name: str) -> int | None:
    """The id under ``tokenizer.ggml.<name>_token_id``, checked to be a token."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < len(_list(metadata, "tokens", str)):
        raise _failed(f"{key} is {value!r}, which is no token")
    return value


def end_token_ids(metadata: dict[str, Any]) -> frozenset[int]:
    """Every id that ends a text: those the metadata name, and control tokens in ``END_OF_TEXT``."""
    named = {special_token_id(metadata, name) for name in ("eos", "eot", "eom")} - {None}
    pairs = zip(_list(metadata, "tokens", str), _list(metadata, "token_type", int))
    known = {i for i, (text, kind) in enumerate(pairs) if kind == _CONTROL and text in END_OF_TEXT}
    return frozenset(index for index in named | known if index is not None)


def _failed(reason: str) -> ModelError:
    return ModelError.TokenizerFailed(reason=f"GGUF metadata: {reason}")


def _list(metadata: dict[str, Any], name: str, kind: type) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value or not isinstance(value[0], kind):
        raise _failed(f"tokenizer.ggml.{name} is missing or no list of {kind.__name__}")
    return value


def _added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    strips = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, "special": special, **strips}


def _begin(metadata: dict[str, Any], tokens: list[str], default: bool) -> dict[str, Any] | None:
    """What ``add_special_tokens`` adds: the beginning-of-text token, where the model wants one."""
    bos = special_token_id(metadata, "bos")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return None
    begin = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }
