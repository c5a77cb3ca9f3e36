"""Files are written whole or not at all; a lock keeps processes apart."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError, IoError, ModelError
from metal_candle.error.text import first_few, shown
from metal_candle.files import (
    locked,
    parse_json_object,
    read_json_object,
    write_all,
    write_atomically,
    write_json,
    write_text,
)
from metal_candle.formats.replacing import replace_together

import pytest


def test_text_and_json_round_trip_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_json(path, {"text": "naïve 🎉", "list": [1, None]})
    assert "naïve 🎉" in path.read_text(encoding="utf-8")
    assert read_json_object(path, ModelError.InvalidFormat) == {"text": "naïve 🎉", "list": [1, None]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: type[BaseException] | OSError) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write() -> None:
        with write_atomically(path) as beside:
            beside.write_text("half")
            raise error

    expected = CheckpointError.SaveFailed if isinstance(error, OSError) else error
    with pytest.raises(expected):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_made_for_what_fails_are_removed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError.SaveFailed), write_atomically(tmp_path / "a" / "b" / "c.txt"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there" / "new", tmp_path / "there"):
        with pytest.raises(ValueError, match="so"), replace_together(folder, ("1.txt", "2.txt"), ()):
            raise ValueError("so")
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]  # which others made


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_errors_say_where(tmp_path: Path) -> None:
    def invalid(reason: str) -> ModelError:
        return ModelError.InvalidFormat(reason=reason)

    with pytest.raises(ModelError.InvalidFormat, match="here: broken JSON at line 2: Expecting value"):
        parse_json_object('{"a":\n}', "here", invalid)
    with pytest.raises(ModelError.InvalidFormat, match="absent: No such file"):
        read_json_object(tmp_path / "absent", invalid)


def _hold(lock: Path, log: Path) -> None:
    with locked(lock):
        with log.open("a") as file:
            file.write("in ")
        time.sleep(0.05)
        with log.open("a") as file:
            file.write("out ")


def test_a_lock_lets_in_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holders = [context.Process(target=_hold, args=(tmp_path / "lock", tmp_path / "log")) for _ in range(2)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join()
        assert holder.exitcode == 0
    assert (tmp_path / "log").read_text() == "in out in out "


def test_an_integer_of_too_many_digits_is_named_not_raised_raw() -> None:
    with pytest.raises(ModelError.InvalidFormat, match=r"x\.json: .*digits"):
        parse_json_object(f'{{"a": {"9" * 5000}}}', "x.json", lambda reason: ModelError.InvalidFormat(reason=reason))


def test_a_link_stays_one_and_permissions_are_kept(tmp_path: Path) -> None:
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to("real")
    write_text(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("new", 0o640)
    real.chmod(0o400)
    write_text(real, "again")
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("again", 0o400)
    dangling.symlink_to("later")
    write_text(dangling, "first")
    assert dangling.is_symlink()
    assert (tmp_path / "later").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "later", "link", "real"]


def test_what_is_there_and_no_regular_file_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_fifo").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path has at most some 100 characters
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    messages = {"fifo": "device, FIFO or socket", "to_fifo": "device, FIFO", "folder": "Is a directory"}
    for name, message in {**messages, "loop": "symbolic link", "socket": "FIFO or socket"}.items():
        with pytest.raises(CheckpointError.SaveFailed, match=message):
            write_text(tmp_path / name, "text")
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a\0b", "\ud800", "n" * 300, "n/" * 3000, "n\n" * 200, 5, None])
def test_names_that_no_file_can_have_are_refused_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError.SaveFailed) as raised:
        write_text(name, "text")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_that_a_file_can_have_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    write_text(tmp_path / ("é" * 127), "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text", "text"]


def test_a_folder_without_access_fails_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied)
        with pytest.raises(CheckpointError.SaveFailed, match="a: Permission denied; what was there is unchanged"):
            write_text(tmp_path / "a", "text")


class Slow(io.BytesIO):
    """Takes some bytes at a time, and after ``room`` of them gives ``full``."""

    def __init__(self, room: int, full: Any) -> None:
        super().__init__()
        self.room, self.full = room, full

    def write(self, data: Any, /) -> Any:
        if self.tell() >= self.room:
            if isinstance(self.full, Exception):
                raise self.full
            return self.full
        return super().write(bytes(data[:3]))


def test_all_bytes_are_written_to_a_file_that_takes_them_in_parts() -> None:
    slow = Slow(100, None)
    write_all(slow, bytes(range(10)), "slow")
    assert slow.getvalue() == bytes(range(10))
    out = io.BytesIO()
    write_all(out, memoryview(bytearray(8)).cast("I"), "out")
    write_all(out, b"", "out")
    assert out.getvalue() == bytes(8)


@pytest.mark.parametrize("full", [None, 0, -1, 11, "3", OSError(28, "No space left"), ValueError("closed")])
def test_a_file_that_takes_no_more_is_an_error(full: Any) -> None:
    slow = Slow(6, full)
    with pytest.raises(IoError, match="slow: "):
        write_all(slow, bytes(10), "slow")
    assert len(slow.getvalue()) == 6


def test_files_of_text_and_closed_ones_take_no_bytes() -> None:
    with pytest.raises(IoError, match=r"out: .*str"):
        write_all(io.StringIO(), b"a", "out")  # type: ignore[arg-type]
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(IoError, match=r"out: .*closed"):
        write_all(closed, b"a", "out")


def test_a_pipe_that_is_full_is_an_error() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with (
        os.fdopen(reading, "rb", buffering=0),
        os.fdopen(writing, "wb", buffering=0) as pipe,
        pytest.raises(IoError, match="pipe: took None of "),
    ):
        write_all(pipe, bytes(1 << 20), "pipe")


def test_a_write_that_fails_at_a_path_is_a_failed_save(tmp_path: Path) -> None:
    def save(named: object) -> None:
        with write_atomically(tmp_path / "a"):
            write_all(Slow(0, None), b"text", named)

    for named in (tmp_path / "a", str(tmp_path / "a")):
        with pytest.raises(CheckpointError.SaveFailed, match="a: took None of 4 bytes"):
            save(named)
    with pytest.raises(IoError, match="other: took None"):  # a file that is read from, say
        save(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_there_twice() -> None:
    text = '{"a": {"b": 1, "b\\n": 2, "b\\n": 3}}'
    assert parse_json_object(text, "x", lambda reason: ModelError.InvalidFormat(reason=reason))["a"]["b\n"] == 3
    with pytest.raises(ModelError.InvalidFormat, match=r"x: has b\\n twice"):
        parse_json_object(text, "x", lambda reason: ModelError.InvalidFormat(reason=reason), unique=True)


def test_the_first_few_of_many_are_named_and_the_rest_counted() -> None:
    assert first_few([], 2) == ""
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_few(["a", "b", "c"], 2, "; ") == "a; b; and 1 more"


def test_what_is_shown_is_one_line_of_bounded_length() -> None:
    assert shown("model.layers.0.weight") == "model.layers.0.weight"
    assert shown("é\n\x1b[2J\u2028\ud800") == r"é\n\x1b[2J\u2028\ud800"
    assert shown("a" * 80) == "a" * 80
    assert shown("a" * 60 + "b" * 60) == "a" * 53 + "…" + "b" * 26
    assert shown(10**10_000) == "<int>"
    for value in ("\0" * 1000, "\0" * 79, list(range(10**5)), {"a": "\n"}):
        for most in (80, 300):
            assert len(shown(value, most)) <= most
            assert shown(value, most).isprintable()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "n" * 5000])
def test_text_of_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelError.InvalidFormat) as raised:
        read_json_object(name, ModelError.InvalidFormat)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
