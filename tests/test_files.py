"""Files are written whole or not at all; a lock keeps processes apart."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from metal_candle.error import CheckpointError, ModelError
from metal_candle.files import (
    locked,
    parse_json_object,
    read_json_object,
    write_atomically,
    write_json,
    write_text,
)

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
