"""Python in the pages of ``docs/`` runs as it stands, block after block, and prints what the page says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["MIGRATION_V1_TO_V2.md", "finetuning.md", "from_candle.md", "tensors_and_graphs.md"]
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", flags=re.S | re.M)


def program_of(page: str) -> tuple[str, list[str]]:
    """The page's program, which marks the end of each block's output, and what each block is said to print.

    A ``text`` block is the output of the ``python`` block before it.
    """
    parts: list[str] = []
    said: list[str] = []
    for kind, content in _BLOCK.findall(page):
        if kind == "python":
            parts.append(f"{content}\nprint('--- end of block')\n")
            said.append("")
        else:
            said[-1] = content
    return "\n".join(parts), said


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_page_runs_and_prints_what_it_says(name: str, tmp_path: Path) -> None:
    text, said = program_of((DOCS / name).read_text("utf-8"))
    assert any(said)
    program = tmp_path / "page.py"
    program.write_text(text, "utf-8")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("--- end of block\n")[:-1]
    assert len(printed) == len(said)
    for block, expected in zip(printed, said):
        if expected:
            assert block == expected


def test_every_page_with_python_is_executed() -> None:
    """A sample that nobody runs goes stale; pages whose samples are fragments of this package's own files are named."""
    fragments = {"adding_an_operation.md", "adding_a_kernel.md"}  # tests/test_adding_a_kernel_page.py runs what can run
    with_python = {page.name for page in DOCS.glob("*.md") if "```python\n" in page.read_text("utf-8")}
    assert with_python - fragments <= set(PAGES)
