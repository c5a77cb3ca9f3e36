"""The program: its commands, its errors and exit codes."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from .. import features
from ..error import Error
from . import convert, doctor, finetune, generate, inspect, merge


class Commands(TyperGroup):
    """The commands. Typer ends an interrupted one without a word, or with exit code 1, by its version."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C is said in a line of its own and exits with 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    name="metal-candle",
    help="Fine-tune language models with LoRA on MLX, and use what comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(finetune.finetune)
app.command()(generate.generate)
app.command()(merge.merge)
app.command()(convert.convert)
app.add_typer(inspect.app, name="inspect")
app.command()(doctor.doctor)


def run() -> None:
    """Exit codes: 0 done, 1 an error in what was given or found, 2 wrong usage, 130 interrupted (see ``main``)."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of an encoding that lacks a curve's or an answer's characters
    try:
        features.switched_off()  # a wrong name in a variable is said by every command
        app()
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {what}", file=sys.stderr)
        sys.exit(1)
