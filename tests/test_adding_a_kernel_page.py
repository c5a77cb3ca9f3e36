"""``docs/adding_a_kernel.md`` shows what is in the files: its excerpts, the files and the functions that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_kernel.md").read_text("utf-8")
LEFT_OUT = re.compile(r"^(?:#|//) …\n", re.MULTILINE)


class Excerpt(NamedTuple):
    """A block of the page: the file its first line names, and its parts, between which something is left out."""

    file: str
    parts: list[str]

    def __str__(self) -> str:
        return f"{self.file}: {self.parts[0].splitlines()[0]}"


def excerpts(page: str) -> list[Excerpt]:
    found = []
    for block in re.findall(r"^```(?:python|cpp)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        head, _, code = block.partition("\n")
        named = re.fullmatch(r"(?:#|//) (\S+/\S+)", head)
        assert named is not None, f"{head!r} names no file"
        # The formatter sets blank lines around a mark that the file has not.
        found.append(Excerpt(named[1], [part.strip("\n") + "\n" for part in LEFT_OUT.split(code)]))
    return found


def missing(excerpt: Excerpt, text: str) -> str | None:
    """The first part that is not in the text behind the one before; whole lines."""
    place, text = 0, "\n" + text
    for part in excerpt.parts:
        found = text.find("\n" + part, place)
        if not part.strip() or found < 0:
            return part if part.strip() else "nothing between two marks"
        place = found + len(part)
    return None


@pytest.mark.parametrize("excerpt", excerpts(PAGE), ids=str)
def test_an_excerpt_is_in_its_file(excerpt: Excerpt) -> None:
    assert missing(excerpt, (ROOT / excerpt.file).read_text("utf-8")) is None


def test_every_block_of_code_is_an_excerpt() -> None:
    fences = re.findall(r"^```(\w*)$", PAGE, re.MULTILINE)
    kinds = fences[::2]
    assert fences[1::2] == [""] * len(kinds)
    assert len(excerpts(PAGE)) == sum(kind != "" for kind in kinds) >= 8
    assert set(kinds) == {"python", "cpp", ""}


def test_the_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:metal_candle|tests|benchmarks|docs)/[\w/.]+)`", PAGE)
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).exists()] == []
    commands = re.findall(r"^(?:pytest|python) (.*)$", PAGE, re.MULTILINE)
    words = [word for command in commands for word in command.split(" #")[0].split() if "/" in word]
    assert len(words) >= 6
    assert [word for word in words if not (ROOT / word).exists()] == []


def test_what_is_not_in_a_file_is_found() -> None:
    text = "def f():\n    return 1\n\n\ndef g():\n    return 2\n"
    for block, first in [
        ("def f():\n    return 1\n", None),
        ("def f():\n    return 1\n# …\ndef g():\n", None),
        ("def f():\n    return 2\n", "def f():\n    return 2\n"),
        ("def g():\n# …\ndef f():\n", "def f():\n"),
        ("ef f():\n", "ef f():\n"),
        ("def g():\n    return\n", "def g():\n    return\n"),
    ]:
        (excerpt,) = excerpts(f"```python\n# a/b.py\n{block}```\n")
        assert missing(excerpt, text) == first
    with pytest.raises(AssertionError, match="names no file"):
        excerpts("```python\nx = 1\n```\n")
