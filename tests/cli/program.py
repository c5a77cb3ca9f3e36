"""The command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
COMMAND = [sys.executable, "-m", "metal_candle"]
# A width that no line of ours reaches, so that nothing is wrapped.
ENVIRONMENT = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process."""
    command, variables = [*COMMAND, *map(str, arguments)], {**ENVIRONMENT, **environment}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=variables, timeout=600)


def ok(*arguments: object, stdin: str = "", **environment: str) -> str:
    """What a run that has to succeed printed."""
    result = run(*arguments, stdin=stdin, **environment)
    assert result.returncode == OK, result.stderr
    return result.stdout


def trained(model: Path, rows: Path, output: Path) -> Path:
    """An adapter after two steps."""
    ok("finetune", "--model", model, "--data", rows, "--output", output, "--steps", 2, "--sample", "")
    return output
