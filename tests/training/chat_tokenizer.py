"""A character-level tokenizer with a chat template, for tests of training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metal_candle.models import chat_template

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TURNS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LAST_TURN_DIFFERS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if loop.last and message.role == 'assistant' %}<think></think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("c", "a"), ("ca", "t"), ("Ġ", "d"), (".", "Ġ")]


class ChatTokenizer:
    """Byte-level BPE over all 256 bytes with four merges: ``cat`` and `` d`` are one token each."""

    def __init__(self, chat_template: str | None = CHATML, adds_bos: bool = False) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        texts = [*SPECIAL, *alphabet, *("".join(merge) for merge in MERGES)]
        vocabulary = {text: index for index, text in enumerate(texts)}
        self.inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.inner.decoder = decoders.ByteLevel()
        self.inner.add_special_tokens(SPECIAL)
        if adds_bos:
            template = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
            self.inner.post_processor = template
        self.chat_template = chat_template
        self.eos_token_id: int | None = 2

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.inner.encode(text, add_special_tokens=add_special_tokens)
        return encoding.ids, encoding.offsets

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        assert self.chat_template is not None
        return chat_template.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens))
