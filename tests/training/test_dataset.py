"""The data set that the package carries."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from metal_candle.training.data import Conversation, Row, find_data, packaged_dataset, read_rows, tokenize

import pytest
from chat_tokenizer import ChatTokenizer

FILES = ("train", "valid")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {name: read_rows(packaged_dataset("field-guide") / f"{name}.jsonl") for name in FILES}


def _said(row: Row, role: str) -> list[str]:
    assert isinstance(row.content, Conversation)
    return [turn.content for turn in row.content.messages if turn.role == role]


def test_it_is_found_by_name_and_small() -> None:
    files = find_data("field-guide")
    assert files.valid is not None
    assert files.train.stat().st_size + files.valid.stat().st_size < 200_000


def test_every_answer_has_the_three_lines(rows: dict[str, list[Row]]) -> None:
    assert {name: len(rows[name]) for name in FILES} == {"train": 286, "valid": 34}
    for row in itertools.chain(*rows.values()):
        for answer in _said(row, "assistant"):
            assert re.fullmatch(r"What: [A-Z][^\n]+\.\nHow: [A-Z][^\n]+\.\nTry: [A-Z][^\n]+\.", answer), row


def test_no_row_repeats_another(rows: dict[str, list[Row]]) -> None:
    everything = [row for name in FILES for row in rows[name]]
    questions = [_said(row, "user")[0].lower() for row in everything]
    assert len(set(questions)) == len(questions)
    answers = [answer for row in everything for answer in _said(row, "assistant")]
    assert len(set(answers)) == len(answers)
    grams = [_word_runs(" ".join(_said(row, "user") + _said(row, "assistant"))) for row in everything]
    for (i, first), (j, second) in itertools.combinations(enumerate(grams), 2):
        shared = len(first & second) / min(len(first), len(second))
        assert shared < 0.1, f"{everything[i].path}:{everything[i].line} and {everything[j].line}"


def _word_runs(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(itertools.pairwise(zip(words, words[1:], words[2:])))


def test_every_row_has_a_trained_span(rows: dict[str, list[Row]]) -> None:
    tokenizer = ChatTokenizer()
    for name in FILES:
        for row, example in zip(rows[name], tokenize(rows[name], tokenizer, max_length=2000)):
            answers = [f"{answer}<|im_end|>" for answer in _said(row, "assistant")]
            shown = [token for token, target in zip(example.tokens, example.targets) if target]
            assert tokenizer.decode(shown) == "".join(answers)


@pytest.mark.slow
def test_lengths_with_the_real_tokenizer(rows: dict[str, list[Row]], smollm2_gguf: Path) -> None:
    from metal_candle.formats.gguf import read_gguf_header
    from metal_candle.models.tokenizer import Tokenizer

    tokenizer: Any = Tokenizer.from_gguf(read_gguf_header(smollm2_gguf).metadata)
    examples = [example for name in FILES for example in tokenize(rows[name], tokenizer, max_length=143)]
    lengths = [len(example.tokens) for example in examples]
    assert (min(lengths), max(lengths)) == (78, 143)
    assert sum(lengths) < 31_000  # one epoch in about three minutes on two cores
    end_of_turn = tokenizer.eos_token_id
    for example in examples:
        ends = [i for i, token in enumerate(example.tokens) if token == end_of_turn and example.targets[i]]
        assert ends
        assert all(not target for target in example.targets[ends[-1] + 1 :])
