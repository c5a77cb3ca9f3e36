"""The command line: ``metal-candle finetune | generate | merge | convert | inspect | doctor``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 1, never in a traceback."""
    try:
        from .app import run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
