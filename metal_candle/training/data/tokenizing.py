"""Rows to tokens, with a mask of the tokens that are trained on.

What is trained on:

- ``{"text"}``: everything, and an end-of-sequence token after it.
- ``{"prompt", "completion"}``: the completion and the token that ends it. If the tokenizer has a chat
  template, the prompt is a user turn and the completion the assistant turn that answers it; if not, the two
  texts are put together as they are, with an end-of-sequence token after them.
- ``{"messages"}``: every assistant turn with its end-of-turn token, but not the header before it nor white
  space that the template puts after it.

A text is tokenised whole and the mask laid over it by character offsets, so that the tokens are those that
the model sees when it generates, also where a token reaches across a boundary: it counts as trained if any
of its characters is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from ...error import DataError, ModelError, TrainingError
from ...error.expect import FLAG, INTEGER, LIST, Kind, expect, list_of
from ...error.takes import takes
from .reading import Completion, Conversation, Message, Row, Text

TooLong: TypeAlias = Literal["error", "truncate", "skip"]
Span: TypeAlias = tuple[int, int]
"""Half-open range of characters."""


class Tokenizer(Protocol):
    """What training needs of a tokenizer; ``metal_candle.models.tokenizer.Tokenizer`` has it."""

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> str | None: ...

    def encode_with_offsets(self, text: str, add_special_tokens: bool = False) -> tuple[list[int], list[Span]]:
        """The ids of ``text`` and each id's characters; a token that was added has none."""
        ...

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str: ...

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str: ...


@dataclass(frozen=True)
class Example:
    """A tokenised row. ``targets[i]`` says whether token i is trained on; the first, which nothing
    precedes, never is.

    Raises ``DataError.InvalidLine`` for fewer than two tokens and for another number of targets.
    """

    tokens: list[int]
    targets: list[bool]
    path: Path
    line: int

    def __post_init__(self) -> None:
        for name in ("tokens", "targets"):
            expect("Example", getattr(self, name), LIST, name)
        if len(self.tokens) < 2 or len(self.tokens) != len(self.targets):
            reason = f"{len(self.tokens)} tokens and {len(self.targets)} targets; takes two or more, as many of both"
            raise DataError.InvalidLine(path=self.path, line=self.line, reason=reason)

    @property
    def trained_tokens(self) -> int:
        """How many tokens are trained on."""
        return sum(self.targets)


EXAMPLES = list_of(Example, "a list of Examples, as tokenize gives")


TOKENIZER = Kind("a tokenizer, as load_tokenizer gives", lambda given: hasattr(given, "encode_with_offsets"))


@takes(
    rows=list_of(Row, "a list of Rows, as read_rows gives"), tokenizer=TOKENIZER, max_length=INTEGER, mask_prompt=FLAG
)
def tokenize(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    mask_prompt: bool = True,
    too_long: TooLong = "error",
) -> list[Example]:
    """Turn rows into examples of at most ``max_length`` tokens.

    ``mask_prompt=False`` trains on prompts and headers too. A longer row is an error, loses its end
    (``too_long="truncate"``) or is left out (``"skip"``).

    Raises ``DataError.InvalidLine`` for a row that is too long or has nothing to train on,
    ``DataError.InvalidFile`` if no row is left, ``ModelError.TokenizerFailed`` if the chat template cannot be
    used to find the turns.
    """
    if max_length < 2:
        reason = f"max_length is {max_length}; takes at least 2, one token to read and one to predict"
        raise TrainingError.InvalidConfig(reason=reason)
    if too_long not in ("error", "truncate", "skip"):
        raise TrainingError.InvalidConfig(reason=f"too_long is {too_long!r}; takes error, truncate or skip")
    examples = []
    for row in rows:
        tokens, targets = _tokens(row, tokenizer, mask_prompt)
        cut = len(tokens) > max_length
        if cut:
            if too_long == "skip":
                continue
            if too_long == "error":
                reason = (
                    f"the row has {len(tokens)} tokens, the limit is {max_length}; raise --max-length, or "
                    "choose --too-long truncate or --too-long skip"
                )
                raise DataError.InvalidLine(path=row.path, line=row.line, reason=reason)
            tokens, targets = tokens[:max_length], targets[:max_length]
        if not any(targets):
            reason = f"nothing to train on: the row has {len(tokens)} tokens{', cut to the limit' if cut else ''}"
            raise DataError.InvalidLine(path=row.path, line=row.line, reason=reason)
        examples.append(Example(tokens, targets, row.path, row.line))
    if rows and not examples:
        reason = f"all {len(rows)} rows are longer than {max_length} tokens and were skipped; raise --max-length"
        raise DataError.InvalidFile(path=rows[0].path, reason=reason)
    return examples


def _tokens(row: Row, tokenizer: Tokenizer, mask_prompt: bool) -> tuple[list[int], list[bool]]:
    content = row.content
    rendered = not (isinstance(content, Text) or tokenizer.chat_template is None)
    match content:
        case Text(text):
            spans = [(0, len(text))]
        case Completion(prompt, completion) if not rendered:
            text = prompt + completion
            spans = [(len(prompt), len(text))]
        case Completion(prompt, completion):
            turns = (Message("user", prompt), Message("assistant", completion))
            text, spans = _render(Conversation(turns), row, tokenizer)
        case Conversation():
            text, spans = _render(content, row, tokenizer)
    # A template writes the special tokens itself; plain text gets those that the model begins a text with.
    tokens, offsets = tokenizer.encode_with_offsets(text, add_special_tokens=not rendered)
    targets = _overlaps(offsets, spans) if mask_prompt else [True] * len(tokens)
    end = tokenizer.eos_token_id
    if not rendered and end is not None:
        if tokens and tokens[-1] == end:  # the tokenizer adds one
            tokens, targets = tokens[:-1], targets[:-1]
        tokens, targets = [*tokens, end], [*targets, True]
    if targets:
        targets[0] = False
    return tokens, targets


def _render(conversation: Conversation, row: Row, tokenizer: Tokenizer) -> tuple[str, list[Span]]:
    """The conversation as text, and where its assistant turns stand in it."""
    if tokenizer.chat_template is None:
        reason = 'the tokenizer has no chat template, so "messages" cannot be rendered; use "text" or "prompt"'
        raise DataError.InvalidLine(path=row.path, line=row.line, reason=reason)
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
    if messages[0]["role"] == "assistant":
        reason = "message 1 is an assistant turn with nothing before it; put a user turn first"
        raise DataError.InvalidLine(path=row.path, line=row.line, reason=reason)
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: i + 1], add_generation_prompt=False)
        if not (whole.startswith(after) and after.startswith(before)):
            reason = (
                f"{row.path}:{row.line}: the chat template renders message {i + 1} differently inside the "
                "conversation than at its end, so its place cannot be found; split the conversation into "
                'rows of one assistant turn each, or render it yourself into a {"text"} row'
            )
            raise ModelError.TokenizerFailed(reason=reason)
        spans.append((len(before), _turn_end(after, len(before), message["content"])))
    return whole, spans


def _turn_end(rendered: str, start: int, content: str) -> int:
    """Where the assistant turn that begins at ``start`` and ends ``rendered`` stops being trained on.

    White space after an end-of-turn token belongs to the template. Where nothing but white space follows
    the content, that is what ends the turn.
    """
    turn = rendered[start:]
    stripped = turn.rstrip()
    return len(rendered) if stripped.endswith(content.rstrip()) else start + len(stripped)


def _overlaps(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """For each token, whether it shares a character with one of the spans; both are in order."""
    covered = []
    current = 0
    for start, end in offsets:
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        covered.append(current < len(spans) and spans[current][0] < end and start < spans[current][1])
    return covered
