"""``metal_candle.cache``: which folder it is in which environment."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from metal_candle.cache import cache_folder, temporary_folder

import pytest


@pytest.fixture(autouse=True)
def plain_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("METAL_CANDLE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_default() -> None:
    assert cache_folder() == Path("/home/ada/.cache/metal-candle")
    assert cache_folder("models", "a.gguf") == Path("/home/ada/.cache/metal-candle/models/a.gguf")


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("/home/ada/Library/Caches/metal-candle")


def test_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/disk")
    assert cache_folder() == Path("/fast/disk/metal-candle")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/ada/.cache/metal-candle")


def test_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/disk")
    monkeypatch.setenv("METAL_CANDLE_CACHE", "~/mine")
    assert cache_folder("blas") == Path("/home/ada/mine/blas")
    monkeypatch.setenv("METAL_CANDLE_CACHE", "~nobody-of-that-name/mine")  # as a shell leaves it
    assert cache_folder() == Path.cwd() / "~nobody-of-that-name" / "mine"
    monkeypatch.setenv("METAL_CANDLE_CACHE", "mine")
    assert cache_folder() == Path.cwd() / "mine"


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder("blas") == temporary_folder() / "blas"
    assert temporary_folder() == Path(tempfile.gettempdir()) / f"metal-candle-{os.getuid()}"
