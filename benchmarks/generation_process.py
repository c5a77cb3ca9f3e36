"""Sides in processes of their own: a question is a line of JSON, and so is its answer.

What answers imports this module and never ``metal_candle``, so that nothing of it, its BLAS above all, is in there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY = "ready"


def serve(handle: Callable[[Any], Any]) -> None:
    """Answer each line of the standard input until it ends."""
    print(READY, flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), flush=True)


class Process:
    """A script of this folder that serves. Ends the program where it does not come up, or ends."""

    def __init__(self, script: str, *arguments: str | Path) -> None:
        self._name = " ".join([script, *map(str, arguments[:1])])
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self._line() != READY:  # libraries may print while they load
            pass

    def ask(self, question: Any) -> Any:
        """Its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name}: its process ended")
        return line.rstrip("\n")
