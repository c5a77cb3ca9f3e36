"""Every command line that README, the pages and the examples tell has commands and flags that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metal_candle.cli.app import app

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line of a block, or what stands between backticks in the text.
_TOLD = re.compile(r"^(metal-candle [a-z].*)$|`(metal-candle [a-z][^`]*)`", re.M)


def told(page: Path) -> Iterator[str]:
    for line, inline in _TOLD.findall(page.read_text("utf-8")):
        yield (line or inline).partition(" #")[0].replace("\n", " ").replace(" …", "")


def understood(command: str) -> bool:
    """Parse a command line as far as its flags go; what is left out, as in a mention of a command, is not asked for.

    Raises ``AssertionError`` for a command or a flag that does not exist.
    """
    words = shlex.split(command)[1:]
    program: Any = typer.main.get_command(app)
    while hasattr(program, "commands"):
        if not words:
            return True
        word = words.pop(0)
        assert word in program.commands, f"{command}: no command {word}"
        program = program.commands[word]
    flags = {flag: each for each in program.params for flag in [*each.opts, *each.secondary_opts]}
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            assert word in flags, f"{command}: no flag {word}"
            if not getattr(flags[word], "is_flag", False) and words:
                words.pop(0)
    return True


def test_the_pages_tell_commands() -> None:
    assert sum(1 for page in PAGES for _ in told(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_told_exists(page: Path) -> None:
    assert all(understood(command) for command in told(page))


@pytest.mark.parametrize(
    "command", ["metal-candle refine", "metal-candle merge --adaptor a", "metal-candle inspect none"]
)
def test_what_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        understood(command)
