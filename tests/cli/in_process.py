"""The command line in the process of the tests: starting one for each line would take most of the time."""

from __future__ import annotations

import sys

from metal_candle.cli.app import run as program

import pytest
from program import FAILED, OK


class Program:
    """The program in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, what it printed, and what it said on standard error."""
        self._monkeypatch.setattr(sys, "argv", ["metal-candle", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            program()
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def ok(self, *arguments: object) -> str:
        code, out, err = self.run(*arguments)
        assert code == OK, err
        return out

    def refused(self, *arguments: object) -> str:
        code, out, err = self.run(*arguments)
        assert code == FAILED, out + err
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        return err
