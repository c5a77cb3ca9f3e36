"""Rows, tokens, masks and batches of training data."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from metal_candle.error import DataError, ModelError, TrainingError
from metal_candle.training.data import (
    Completion,
    Conversation,
    Example,
    Message,
    Row,
    Text,
    batch_count,
    batches,
    find_data,
    packaged_dataset,
    read_rows,
    render_inspection,
    render_inspection_plain,
    render_summary,
    split,
    summarize,
    tokenize,
)
from metal_candle.training.data.batching import WINDOW

import numpy as np
import pytest
from chat_tokenizer import LAST_TURN_DIFFERS, PLAIN_TURNS, ChatTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path("train.jsonl")


def write(folder: Path, *lines: str | bytes | dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(encoded))
    return path


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def trained(example: Example, tokenizer: ChatTokenizer) -> list[str]:
    """The stretches that are trained on, as text."""
    text = render_inspection_plain(example, tokenizer).split("\n", 1)[1]
    return [part.split("]]")[0] for part in text.split("[[")[1:]]


def examples_of(path: Path, tokenizer: ChatTokenizer, **options: Any) -> list[Example]:
    return tokenize(read_rows(path), tokenizer, **{"max_length": 512, **options})


# --- reading ----------------------------------------------------------------------------------


def test_the_three_forms_blank_lines_and_other_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        b'\xef\xbb\xbf{"text": "one\xe2\x80\xa8line", "id": 7}',
        "  \r",
        {"prompt": "2+2=", "completion": "4"},
        chat(("system", "s"), ("user", "u"), ("assistant", "a")),
        "",
    )
    rows = read_rows(path)
    assert [row.line for row in rows] == [1, 3, 4]
    assert rows[0].content == Text("one\u2028line")
    assert rows[1].content == Completion("2+2=", "4")
    assert isinstance(rows[2].content, Conversation)
    assert [turn.role for turn in rows[2].content.messages] == ["system", "user", "assistant"]


GOOD = {"text": "fine"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "broken JSON: Expecting ',' delimiter at column 13"),
        ("[", "a JSON array is not JSON Lines"),
        ("[" * 100_000, "broken JSON"),
        ('["a"]', "got a list; a line takes one object"),
        ("null", "got null"),
        ('{"txt": "a"}', 'got fields "txt"; takes {"text"}'),
        ('{"txt": "a"}', 'nearest: "text" for "txt"'),
        (
            '{"instruction": "a", "output": "b"}',
            'nearest: "prompt" for "instruction", "completion" for "output"',
        ),
        ('{"prompt": "a"}', 'got fields "prompt"'),
        ("{}", "got no fields"),
        ('{"text": "a", "messages": []}', "fields text and messages are both there"),
        ('{"text": 3}', "text is a number; takes text"),
        ('{"text": " \\n"}', "text is empty"),
        ('{"text": "a\\ud800"}', "text has a lone surrogate, \\ud800"),
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"messages": []}', "messages is an empty list"),
        ('{"messages": "hi"}', "messages is a text"),
        ('{"messages": ["hi"]}', "message 1 is a text"),
        (
            '{"messages": [{"from": "user", "value": "a"}]}',
            'message 1 has fields "from", "value"; takes exactly',
        ),
        (json.dumps(chat(("user", "a"), ("asistant", "b"))), "message 2 has role 'asistant'"),
        (json.dumps(chat(("user", "a"), ("asistant", "b"))), "nearest: assistant"),
        (json.dumps(chat(("user", "a"), ("assistant", ""))), "the content of message 2 (assistant) is empty"),
        (json.dumps(chat(("user", "a"))), "messages has no assistant turn"),
        (b'{"text": "caf\xe9"}', "not UTF-8: byte 0xe9 at position 14"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str | bytes, says: str) -> None:
    path = write(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(DataError.InvalidLine) as raised:
        read_rows(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:3: ")
    assert says in message
    assert "\n" not in message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["text", "prompt", "completion", "messages", "role", "content", "user"]),
                inner,
            )
        ),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_row_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(value), encoding="utf-8")
    with contextlib.suppress(DataError):
        assert len(read_rows(path)) == 1


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError.InvalidFile, match="no such file"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(DataError.InvalidFile, match="directory"):
        read_rows(tmp_path)
    for lines in ([], ["", "   "]):
        with pytest.raises(DataError.InvalidFile, match="has no rows"):
            read_rows(write(tmp_path, *lines))


def test_where_data_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError.InvalidFile, match=r"has no train\.jsonl"):
        find_data(tmp_path)
    path = write(tmp_path, GOOD)
    assert find_data(path).train == path
    assert find_data(path).valid is None
    assert find_data(tmp_path) == find_data(str(tmp_path))
    assert find_data(tmp_path).valid is None
    (tmp_path / "valid.jsonl").write_bytes(path.read_bytes())
    assert find_data(tmp_path).valid == tmp_path / "valid.jsonl"
    assert find_data("field-guide").train == packaged_dataset("field-guide") / "train.jsonl"
    with pytest.raises(DataError.InvalidFile, match="no such file or directory, nor a packaged data set"):
        find_data(tmp_path / "gone")
    with pytest.raises(DataError.InvalidFile, match="there are field-guide"):
        packaged_dataset("nothing")
    (tmp_path / "field-guide").mkdir()
    (tmp_path / "field-guide" / "train.jsonl").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert find_data("field-guide").train == Path("field-guide/train.jsonl")


# --- what is trained on -----------------------------------------------------------------------


def test_every_assistant_turn_with_its_end_is_trained_on(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer()
    path = write(
        tmp_path,
        chat(
            ("system", "s"),
            ("user", "hi"),
            ("assistant", "a cat"),
            ("user", "cat?"),
            ("assistant", "日本 dog"),
        ),
    )
    [example] = examples_of(path, tokenizer)
    assert trained(example, tokenizer) == ["a cat<|im_end|>", "日本 dog<|im_end|>"]
    assert example.trained_tokens == len([*"a ", "cat", "end"]) + 6 + len([" d", *"og", "end"])
    assert len(example.tokens) == len(example.targets)
    assert tokenizer.decode(example.tokens).endswith("日本 dog<|im_end|>\n")


def test_without_a_prompt_mask_everything_but_the_first_token_is(tmp_path: Path) -> None:
    path = write(tmp_path, chat(("user", "hi"), ("assistant", "cat")))
    [example] = examples_of(path, ChatTokenizer(), mask_prompt=False)
    assert example.targets == [False] + [True] * (len(example.tokens) - 1)


def test_a_template_that_ends_turns_with_white_space_only(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(PLAIN_TURNS)
    path = write(tmp_path, chat(("user", "u"), ("assistant", "one"), ("user", "v"), ("assistant", "two")))
    [example] = examples_of(path, tokenizer)
    assert trained(example, tokenizer) == ["one\n\n", "two\n\n"]


def test_prompt_and_completion_are_a_user_and_an_assistant_turn(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer()
    row, as_chat = {"prompt": "the", "completion": "cat"}, chat(("user", "the"), ("assistant", "cat"))
    first, second = examples_of(write(tmp_path, row, as_chat), tokenizer)
    assert (first.tokens, first.targets) == (second.tokens, second.targets)
    assert trained(first, tokenizer) == ["cat<|im_end|>"]


def test_without_a_template_prompt_and_completion_are_put_together(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(None)
    [example] = examples_of(write(tmp_path, {"prompt": "the", "completion": " dog"}), tokenizer)
    assert trained(example, tokenizer) == [" dog<|im_end|>"]
    assert example.tokens == tokenizer.encode_with_offsets("the dog<|im_end|>")[0]


def test_a_token_across_the_boundary_is_trained_on(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(None)
    [example] = examples_of(write(tmp_path, {"prompt": "a c", "completion": "at"}), tokenizer)
    assert example.tokens == tokenizer.encode_with_offsets("a cat<|im_end|>")[0]
    assert trained(example, tokenizer) == ["cat<|im_end|>"]


def test_text_is_trained_on_from_its_second_token_to_the_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer()
    path = write(tmp_path, {"text": "cats"})
    [example] = examples_of(path, tokenizer)
    assert tokenizer.decode(example.tokens) == "cats<|im_end|>"
    assert example.targets == [False, True, True]
    tokenizer.eos_token_id = None
    assert tokenizer.decode(examples_of(path, tokenizer)[0].tokens) == "cats"


def test_text_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(None, adds_bos=True)
    text, completion = examples_of(write(tmp_path, {"text": "ab"}, {"prompt": "a", "completion": "b"}), tokenizer)
    assert text.tokens == completion.tokens == [0, *tokenizer.inner.encode("ab").ids[1:], 2]
    assert text.targets == [False, True, True, True]
    assert completion.targets == [False, False, True, True]


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    two_turns = chat(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b"))
    path = write(tmp_path, GOOD, two_turns)
    with pytest.raises(ModelError.TokenizerFailed, match=r"train\.jsonl:2: .* renders message 2 differently"):
        examples_of(path, ChatTokenizer(LAST_TURN_DIFFERS))
    one_turn = write(tmp_path, chat(("user", "u"), ("assistant", "a")))
    assert len(examples_of(one_turn, ChatTokenizer(LAST_TURN_DIFFERS))) == 1
    with pytest.raises(DataError.InvalidLine, match="no chat template"):
        examples_of(one_turn, ChatTokenizer(None))
    with pytest.raises(DataError.InvalidLine, match="message 1 is an assistant turn"):
        examples_of(write(tmp_path, chat(("assistant", "a"))), ChatTokenizer())


@given(
    st.lists(
        st.tuples(st.text("cat dog日é\n.", min_size=1), st.text("cat dog日é\n.", min_size=1)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=50, deadline=None)
def test_trained_tokens_are_the_answers_whatever_they_say(turns: list[tuple[str, str]]) -> None:
    tokenizer = ChatTokenizer()
    messages = [turn for user, answer in turns for turn in (("user", f"q{user}"), ("assistant", f"r{answer}"))]
    content = Conversation(tuple(Message(*turn) for turn in messages))
    [example] = tokenize([Row(HERE, 1, content)], tokenizer, max_length=10_000)
    assert trained(example, tokenizer) == [f"r{answer}<|im_end|>" for _, answer in turns]


def test_rows_longer_than_the_limit(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(None)
    path = write(tmp_path, {"text": "ab"}, {"text": "abcdefgh"}, {"prompt": "abcdef", "completion": "g"})
    with pytest.raises(DataError.InvalidLine) as raised:
        examples_of(path, tokenizer, max_length=5)
    assert str(raised.value) == (
        f"{path}:2: the row has 9 tokens, the limit is 5; raise --max-length, or choose --too-long truncate "
        "or --too-long skip"
    )
    assert [e.line for e in examples_of(path, tokenizer, max_length=5, too_long="skip")] == [1]
    assert [e.line for e in examples_of(path, tokenizer, max_length=9)] == [1, 2, 3]
    with pytest.raises(DataError.InvalidLine, match=r":3: nothing to train on: .* cut to the limit"):
        examples_of(path, tokenizer, max_length=5, too_long="truncate")
    short = write(tmp_path, {"text": "abcdefgh"})
    assert len(examples_of(short, tokenizer, max_length=5, too_long="truncate")[0].tokens) == 5
    with pytest.raises(DataError.InvalidFile, match="all 1 rows are longer than 5 tokens"):
        examples_of(short, tokenizer, max_length=5, too_long="skip")
    for options in ({"max_length": 1}, {"too_long": "cut"}):
        with pytest.raises(TrainingError.InvalidConfig):
            examples_of(short, tokenizer, **options)


# --- split and batches ------------------------------------------------------------------------


def example_of_length(length: int, marker: int) -> Example:
    """``length`` tokens that tell which example they are; every second one is trained on."""
    return Example([marker * 1000 + i for i in range(length)], [i % 2 == 1 for i in range(length)], HERE, marker)


def test_split_is_deterministic_disjoint_and_complete() -> None:
    examples = [example_of_length(3, i) for i in range(50)]
    train, held = split(examples, 0.2, seed=1)
    assert (len(train), len(held)) == (40, 10)
    assert sorted(e.line for e in train + held) == list(range(50))
    assert split(examples, 0.2, seed=1) == (train, held)
    assert split(examples, 0.2, seed=2)[1] != held
    assert split(examples, 0, seed=1) == (examples, [])
    assert len(split(examples, 0.001, seed=1)[1]) == 1
    for fraction, some in ((1.0, examples), (-0.1, examples), (float("nan"), examples), (0.5, examples[:1])):
        with pytest.raises(TrainingError.InvalidConfig):
            split(some, fraction, seed=1)


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(0, 3),
    st.sampled_from([1, 16]),
)
@settings(max_examples=100, deadline=None)
def test_a_pass_gives_every_token_once_and_trains_on_no_padding(
    lengths: list[int], batch_size: int, epoch: int, pad_to: int
) -> None:
    examples = [example_of_length(length, i + 1) for i, length in enumerate(lengths)]
    options: dict[str, Any] = {"seed": 5, "epoch": epoch, "pad_id": 2, "max_length": 37, "pad_to": pad_to}
    formed = list(batches(examples, batch_size, **options))
    assert len(formed) == batch_count(examples, batch_size)
    seen = []
    for batch in formed:
        assert batch.inputs.shape == batch.targets.shape == batch.mask.shape
        assert (batch.inputs.dtype, batch.targets.dtype, batch.mask.dtype) == (np.int32, np.int32, np.bool_)
        longest = max(int((row != 2).sum()) for row in batch.inputs)
        length = batch.inputs.shape[1]
        assert longest <= length <= max(longest, min(37, max(longest + pad_to - 1, 1.25 * longest)))
        assert length in (longest, 37) or length % pad_to == 0
        for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
            example = examples[inputs[0] // 1000 - 1]
            count = len(example.tokens) - 1
            seen.append(example.line)
            assert inputs[:count].tolist() == example.tokens[:-1]
            assert targets[:count].tolist() == example.tokens[1:]
            assert mask[:count].tolist() == example.targets[1:]
            assert (inputs[count:] == 2).all()
            assert not mask[count:].any()
    assert sorted(seen) == list(range(1, len(lengths) + 1))
    assert sum(batch.trained_tokens for batch in formed) == sum(e.trained_tokens for e in examples)


def test_batches_depend_on_seed_and_epoch_and_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 200, size=8 * WINDOW)
    examples = [example_of_length(int(length), i + 1) for i, length in enumerate(lengths)]

    def order(seed: int, epoch: int) -> list[list[int]]:
        formed = batches(examples, 8, seed=seed, epoch=epoch, pad_id=2, max_length=200)
        return [batch.inputs[:, 0].tolist() for batch in formed]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    widths = [batch.inputs.shape[1] for batch in batches(examples, 8, seed=0, epoch=0, pad_id=2, max_length=200)]
    assert widths != sorted(widths)
    # sorted in one window, rows of a batch differ by about 200/16 tokens, plus up to 15 of rounding
    assert sum(width * 8 for width in widths) < 1.25 * lengths.sum()


def test_batch_options_are_checked_at_the_call() -> None:
    for options in ({"batch_size": 0}, {"pad_to": 0}):
        values = {"batch_size": 1, "seed": 0, "epoch": 0, "pad_id": 0, "max_length": 8, **options}
        with pytest.raises(TrainingError.InvalidConfig):
            batches([example_of_length(3, 1)], **values)


# --- inspection -------------------------------------------------------------------------------


def test_inspection_marks_what_is_trained_on(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer()
    path = write(tmp_path, chat(("user", "日"), ("assistant", "cat")))
    [example] = examples_of(path, tokenizer)
    plain = render_inspection_plain(example, tokenizer)
    assert plain == (
        f"{path}:1: {len(example.tokens)} tokens, 2 trained on\n"
        "<|im_start|>user\n日<|im_end|>\n<|im_start|>assistant\n[[cat<|im_end|>]]\n"
    )
    rich_text = render_inspection(example, tokenizer)
    assert rich_text.plain == plain.replace("[[", "").replace("]]", "")
    [green] = [span for span in rich_text.spans if "green" in str(span.style)]
    assert rich_text.plain[green.start : green.end] == "cat<|im_end|>"


def test_summary_counts_and_draws() -> None:
    examples = [example_of_length(length, 1) for length in range(11, 111)]
    summary = summarize(examples)
    assert (summary.rows, summary.shortest, summary.longest) == (100, 11, 110)
    assert summary.tokens == sum(range(11, 111))
    assert summary.percentiles == ((50, 60), (90, 100), (99, 109))
    assert [count for _, _, count in summary.histogram] == [10] * 10
    text = render_summary(summary)
    assert text.startswith(f"100 rows, {summary.tokens} tokens, {summary.trained_tokens} trained on (50%)")
    assert text.splitlines()[-1] == f"101–110 {'█' * 40} 10"
    assert len(render_summary(summarize(examples[:1])).splitlines()) == 3
