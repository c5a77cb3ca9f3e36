"""The emulator compiles a text once for all processes, two at once included, and keeps no more than it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metal_candle import settings

import pytest
from emulator import Emulator, available, check, launcher, toolchain

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

TESTS = Path(__file__).parents[1]

PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
from metal_candle.kernels import custom
import mlx.core as mx
from emulator import Emulator, toolchain
from given import Given, how
if sys.argv[3] == "once":
    toolchain.subprocess = None
program = Given("cached", ("x",), ("y",), body="y[thread_position_in_grid.x] = x[thread_position_in_grid.x] + 1.0f;")
(y,) = Emulator().launch(program, [mx.arange(32).astype(mx.float32)], how(((32,), mx.float32)))
assert y.tolist() == list(range(1, 33))
"""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and nothing loaded from another."""
    with settings.CACHE.override(str(tmp_path)):
        launcher._kernel.cache_clear()
        yield tmp_path / "emulator"
    launcher._kernel.cache_clear()


def started(cache: Path, how: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(TESTS), str(TESTS / "kernels"), how]
    environment = {**os.environ, "METAL_CANDLE_CACHE": str(cache.parent)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent)


def objects(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in cache.iterdir() if path.suffix == toolchain.SUFFIX}


def test_two_processes_at_once_and_a_third_that_compiles_nothing(cache: Path) -> None:
    both = [started(cache) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    kept = objects(cache)
    assert sorted(name.split("-")[0] for name in kept) == ["kernel", "runtime"]
    # No scratch folder is left behind.
    assert not [path for path in cache.iterdir() if path.is_dir()]
    third = started(cache, "once")
    _, errors = third.communicate()
    assert third.returncode == 0, errors
    assert objects(cache) == kept


def test_a_failed_compilation_leaves_nothing(cache: Path) -> None:
    toolchain.runtime()
    before = objects(cache)
    with pytest.raises(toolchain.Fault, match="nonsense"):
        toolchain.build_kernel('#include "as_cpp.h"\nnonsense\n', checked=True)
    assert objects(cache) == before
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_the_text_and_the_mode_tell_objects_apart(cache: Path) -> None:
    texts = {toolchain.kernel_path(text, checked) for text in ("a", "b") for checked in (True, False)}
    assert len(texts) == 4


def test_what_was_used_longest_ago_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    for age in range(10):
        path = cache / f"kernel-{age}{toolchain.SUFFIX}"
        path.write_bytes(bytes(100))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    monkeypatch.setattr(toolchain, "KEPT_BYTES", 1000)
    toolchain._shrink(cache)
    assert len(objects(cache)) == 10
    monkeypatch.setattr(toolchain, "KEPT_BYTES", 800)
    toolchain._shrink(cache)
    assert sorted(objects(cache)) == [f"kernel-{age}{toolchain.SUFFIX}" for age in range(6)]


@pytest.mark.parametrize(
    ("what", "value", "reason"),
    [("compiler", lambda: None, r"clang\+\+"), ("sys", type("Sys", (), {"platform": "win32"}), "win32")],
)
def test_where_it_cannot_run_it_says_why(what: str, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, what, value)
    present, said = toolchain.available()
    assert not present
    assert reason.replace("\\", "") in said
    with pytest.raises(RuntimeError, match=reason):
        Emulator()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    said = rf"^emulator: cannot keep objects in {in_the_way}/.*; METAL_CANDLE_CACHE names another folder$"
    with settings.CACHE.override(str(in_the_way)):
        with pytest.raises(RuntimeError, match=said):
            toolchain.build_kernel('#include "as_cpp.h"\n', checked=True)
        with pytest.raises(RuntimeError, match=said):
            check._verdict("int unique_to_this_test;\n")
