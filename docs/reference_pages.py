"""Pages that say what the package itself knows: the command line, environment variables and features, errors.

python docs/reference_pages.py           writes command_line.md, environment.md, errors.md
python docs/reference_pages.py --check   fails if one is stale
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metal_candle import EagerPerformanceWarning, GraphGrowthWarning, error, features, settings
from metal_candle.cli.app import app
from metal_candle.error.base import Error
from metal_candle.error.groups import ErrorGroup
from metal_candle.training import MergeWarning

import typer

HERE = Path(__file__).parent
WARNINGS: list[type[Warning]] = [EagerPerformanceWarning, GraphGrowthWarning, MergeWarning]
NEVER_RAISED = ("InferenceError.EndOfSequence", "DeviceError.InitializationFailed", "DeviceError.OperationFailed")
"""Kinds of the crate without a place here: a text just ends, and other errors say more of a device or an operation."""
HEAD = "Written by `python docs/reference_pages.py`: do not edit."


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check that they are what they would be written as; 1 if one is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page is stale")
    check = parser.parse_args(arguments).check
    pages: dict[str, Callable[[], str]] = {
        "command_line.md": command_line,
        "environment.md": environment,
        "errors.md": errors,
    }
    stale = 0
    for name, make in pages.items():
        path, text = HERE / name, make()
        if check:
            if not path.exists() or path.read_text("utf-8") != text:
                print(f"{path} is stale", file=sys.stderr)
                stale = 1
        else:
            path.write_text(text, "utf-8")
    return stale


# --- the command line -------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its flags and their defaults."""
    program = typer.main.get_command(app)
    parts = [
        "# Command line",
        HEAD,
        f"`metal-candle`: {program.help}",
        "Exit codes: 0 done, 1 an error in what was given or found, told in one line, 2 wrong usage, 130 interrupted. "
        "`--config FILE` takes a YAML file with the names of the flags; flags on the line win.",
        *_commands(program, "metal-candle"),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    for child_name, child in getattr(command, "commands", {}).items():
        path = f"{name} {child_name}"
        if getattr(child, "commands", None):
            yield from _commands(child, path)
            continue
        text = inspect.cleandoc(child.help or "")
        flags = [each for each in child.params if each.name != "help"]
        yield f"## {path}\n\n{text.replace('Example: ', 'Example: `', 1) + '`' if 'Example: ' in text else text}"
        if flags:
            yield "\n".join(["| flag | default | what it is |", "| --- | --- | --- |", *map(_flag, flags)])


def _flag(parameter: Any) -> str:
    options = [*parameter.opts, *getattr(parameter, "secondary_opts", [])]
    names = " ".join(f"`{each}`" for each in options) if options[0].startswith("-") else f"`{parameter.name.upper()}`"
    default = "required" if parameter.required else "" if parameter.default is None else f"`{parameter.default}`"
    return f"| {names} | {default} | {getattr(parameter, 'help', None) or ''} |"


# --- the environment --------------------------------------------------------------------------


def environment() -> str:
    """Every environment variable and every feature."""
    rows = [
        f"| `{each.name}` | {f'`{each.default}`' if each.default else ''} | {each.doc} |"
        for each in sorted(settings.SETTINGS, key=lambda each: each.name)
    ]
    parts = [
        "# Environment variables and features",
        HEAD,
        "A variable is read each time it is asked for. In a program `metal_candle.settings` has an object for each, "
        'whose `override("value")` is a `with` block and a decorator.',
        "\n".join(["| variable | default | what it does |", "| --- | --- | --- |", *rows]),
        "Besides these, `HF_HOME` and `HF_TOKEN` mean what they mean to `huggingface_hub`, and `XDG_CACHE_HOME` what "
        "it means everywhere on Linux.",
        "## Features",
        "Switched off by `METAL_CANDLE_DISABLE` from outside and by `features.disabled(…)` for a block. `graph` and "
        "`custom-metal` are the features of the crate; the rest are passes and rules of rewriting, which "
        "[their page](rewrites.md) explains.",
        "\n".join(f"- `{name}`" for name in features.names() if name.count(".") < 2),
    ]
    return "\n\n".join(parts) + "\n"


# --- errors -----------------------------------------------------------------------------------


def errors() -> str:
    """Every kind of error: what it means, what else it is caught as, its text."""
    kinds = {name: getattr(error, name) for name in error.__all__}
    classes = {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, Error)}
    groups = {name: kind for name, kind in classes.items() if issubclass(kind, ErrorGroup) and _variants(kind)}
    single = {name: kind for name, kind in classes.items() if name not in groups and kind not in (Error, ErrorGroup)}
    parts = [
        "# Errors",
        HEAD,
        "All are kinds of `metal_candle.Error`, and each is also the nearest of Python's own, so that "
        "`except ValueError` works as expected. A message is one line: the operation, what it got, what it takes.",
        "## Groups",
        "A group is caught as a whole, `except ModelError`, or by variant, `except ModelError.FileNotFound`. The "
        "fields of a variant are attributes of the exception. Ported programs may name "
        f"{', '.join(f'`{name}`' for name in NEVER_RAISED)}, which nothing here raises.",
    ]
    for name, group in groups.items():
        parts.append(f"### {name}\n\n{inspect.getdoc(group)}")
        rows = [
            f"| `{name}.{variant}` | {_builtins(kind)} | `{(inspect.getdoc(kind) or '').partition(' Fields: ')[0]}` |"
            for variant, kind in _variants(group)
        ]
        parts.append("\n".join(["| variant | also a | text, with its fields |", "| --- | --- | --- |", *rows]))
    parts.append("## Kinds by themselves")
    rows = [f"| `{name}` | {_builtins(kind)} | {_cell(inspect.getdoc(kind))} |" for name, kind in single.items()]
    parts.append("\n".join(["| kind | also a | when |", "| --- | --- | --- |", *rows]))
    parts.append("## Warnings")
    parts.append('Categories for Python\'s `warnings`: `warnings.simplefilter("error", …)` turns one into an error.')
    rows = [f"| `{kind.__name__}` | {_cell(inspect.getdoc(kind))} |" for kind in WARNINGS]
    parts.append("\n".join(["| warning | when, and the cure |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _variants(group: type) -> list[tuple[str, type]]:
    return [(name, kind) for name, kind in vars(group).items() if inspect.isclass(kind) and issubclass(kind, group)]


def _builtins(kind: type) -> str:
    own = [each for each in kind.__mro__ if each.__module__ == "builtins"]
    generic = (Exception, BaseException, object)
    nearest = [
        each for each in own if each not in generic and not any(issubclass(b, each) and b is not each for b in own)
    ]
    return ", ".join(f"`{each.__name__}`" for each in nearest)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
