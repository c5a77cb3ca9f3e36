"""The small model that tests of training share, and runs of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from resumed_runs import Whole, ended, saved_run


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Callable[..., Path]) -> Path:
    """A model of one narrow block."""
    return tiny_model_dir(num_hidden_layers=1, hidden_size=16, intermediate_size=32)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Whole:
    """What an uninterrupted run tells, and where it ends."""
    return ended(folder)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run after one update."""
    return saved_run(folder, tmp_path_factory.mktemp("saved") / "state")
