"""``docs/candle_coverage.md``: where every public name of candle is here, or why it is not; the same of metal-candle.

    python docs/candle_coverage.py           writes candle_coverage.md and metal_candle_coverage.md
    python docs/candle_coverage.py --check   fails if one is stale

The names are in ``candle_names.yaml``, those of candle-nn in ``candle_nn_names.yaml``, those of the crate metal-candle
in ``metal_candle_names.yaml``. Every place is looked up in the package, those of tensors on ``Tensor`` and on
``LazyTensor``: a name that is not there and has no reason not to be fails both.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_origin

import metal_candle
from metal_candle.constructors import New
from metal_candle.graph.operation import REGISTRY
from metal_candle.nn.module import Module
from metal_candle.tensor.derive import method_table

import yaml

NAMES = tuple(Path(__file__).with_name(name) for name in ("candle_names.yaml", "candle_nn_names.yaml"))
PAGE = Path(__file__).with_name("candle_coverage.md")
CRATE_NAMES = (Path(__file__).with_name("metal_candle_names.yaml"),)
CRATE_PAGE = Path(__file__).with_name("metal_candle_coverage.md")

HEAD = """# candle's names and where they are

Written by `python docs/candle_coverage.py` from `docs/candle_names.yaml` and `docs/candle_nn_names.yaml`: do not edit.

Every public name of candle-core, of candle-nn and of candle's own Python binding. What is under `Tensor` is on
`LazyTensor`, too, unless it says "eager only". A difference from candle that is meant is under "notes", as *differs*.
"""

CRATE_HEAD = """# metal-candle's names and where they are

Written by `python docs/candle_coverage.py` from `docs/metal_candle_names.yaml`: do not edit.

Every public name of the crate metal-candle 1.3. A difference that is meant is under "notes", as *differs*; what the
crate promised for its lazy evaluation is on [a page of its own](promises.md).
"""


@dataclasses.dataclass(frozen=True)
class Name:
    """One name of candle's: its place here, or the reason why there is none."""

    name: str
    at: str
    call: str = ""
    why: str = ""
    kind: str = ""
    differs: str = ""
    note: str = ""
    gradient: bool | None = None
    eager: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """Names that belong together. ``counted``: methods of candle's own ``Tensor``."""

    title: str
    candle: str
    tensor: bool
    counted: bool
    names: list[Name]


def read(*paths: Path) -> tuple[dict[str, str], list[Section]]:
    """The kinds of reasons, and the sections of all files. Raises ``ValueError`` where an entry contradicts itself."""
    contents = [yaml.safe_load(path.read_text("utf-8")) for path in paths or NAMES]
    kinds = {kind: text for content in contents for kind, text in content.get("kinds", {}).items()}
    sections = []
    for given in (section for content in contents for section in content["sections"]):
        here = f"{given['here']}." if given["here"] else ""
        listed = given["names"].items()
        names = [Name(name, **{"at": _place(here, name), **(entry or {})}) for name, entry in listed]
        for name in names:
            if bool(name.why) != bool(name.kind) or (name.kind and name.kind not in kinds):
                raise ValueError(
                    f"{given['title']}, {name.name}: a `why` goes with a `kind`, one of {', '.join(kinds)}"
                )
            if name.why and (name.differs or name.at != _place(here, name.name)):
                raise ValueError(f"{given['title']}, {name.name}: has a place and a reason to have none")
        tensor = given.get("tensor", False)
        sections.append(Section(given["title"], given["candle"], tensor, given.get("total", tensor), names))
    return kinds, sections


def _place(here: str, name: str) -> str:
    """Where a name is if its entry does not say so: Rust's ``::`` is Python's dot."""
    return here + name.replace("::", ".")


def find(place: str, root: Any = metal_candle) -> Any:
    """What is at a dotted place of the package; fields of a dataclass count. Raises ``LookupError``."""
    found = root
    for part in place.split("."):
        if inspect.ismodule(found):
            try:
                found = getattr(found, part)
            except AttributeError:
                try:
                    found = importlib.import_module(f"{found.__name__}.{part}")
                except ImportError:
                    raise LookupError(place) from None
        elif hasattr(found, part):
            found = getattr(found, part)
        elif dataclasses.is_dataclass(found) and part in (field.name for field in dataclasses.fields(found)):
            found = part
        else:
            raise LookupError(place)
    return found


def missing(sections: list[Section]) -> list[str]:
    """What does not stand up: names whose place does not exist, or exists where it should not."""
    problems = []
    for section in sections:
        for name in section.names:
            if name.why:
                continue
            places = [name.at]
            if section.tensor and name.at.startswith("Tensor."):
                lazy = f"Lazy{name.at}"
                if not name.eager:
                    places.append(lazy)
                elif _exists(lazy):
                    problems.append(f"{section.title}: {name.name} is said to be eager only, but {lazy} exists")
            problems += [f"{section.title}: {name.name} is not at {at}" for at in places if not _exists(at)]
    return problems


def _exists(place: str) -> bool:
    try:
        find(place)
    except LookupError:
        return False
    return True


def gradient(name: Name) -> bool | None:
    """Whether a gradient passes: what the operation's record says, else what the entry says."""
    method = name.at.rpartition(".")[2]
    if name.at == f"Tensor.{method}":
        if method in _RECORDS:
            return REGISTRY[_RECORDS[method]].differentiable
        if method in _OPERATORS:
            return _OPERATORS[method]
    return name.gradient


_RECORDS = {name: key for name, (key, _) in method_table().items()}
_OPERATORS = {
    f"__{side}{record.operator}__": record.differentiable
    for record in REGISTRY.values()
    if getattr(record, "operator", "")
    for side in ("", "r")
}


def written(name: Name) -> str:
    """How it is called: its place with the parameters."""
    if name.call:
        return name.call
    found = find(name.at)
    if not callable(found) or inspect.isclass(found) or isinstance(found, Module) or get_origin(found):
        return name.at
    if getattr(found, "__func__", None) is New.__dict__["new"].__func__:
        found = found.__self__  # what the constructor takes
    try:
        parameters = [p for p in inspect.signature(found).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError):
        return name.at
    shown = [_parameter(parameter) for parameter in parameters]
    kinds = [parameter.kind for parameter in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    return f"{name.at}({', '.join(shown)})"


def _parameter(parameter: inspect.Parameter) -> str:
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
    return star + parameter.name + default


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value) and value == type(value)():
        return f"{type(value).__name__}()"
    return f"DType.{value.name}" if isinstance(value, metal_candle.DType) else repr(value)


def page(kinds: dict[str, str], sections: list[Section], head: str = HEAD) -> str:
    """The page's text."""
    return "\n".join([head, counts(kinds, sections), *(_table(section) for section in sections)])


def counts(kinds: dict[str, str], sections: list[Section]) -> str:
    """How many names there are, how many are here, and how many are not, by kind of reason."""
    names = [name for section in sections for name in section.names]
    methods = [name for section in sections if section.counted for name in section.names]
    absent = Counter(name.kind for name in names if name.why)
    here, differing = len(names) - absent.total(), sum(bool(name.differs) for name in names)
    rows = [f"| {kinds[kind]} | {number} |" for kind, number in absent.most_common()]
    of_tensor = (
        f" Of the {len(methods)} methods of candle's `Tensor`, {sum(not name.why for name in methods)} are here."
    )
    return "\n".join(
        [
            f"**{len(names)} names, {here} of them here**, {differing} with a difference that is meant."
            f"{of_tensor if methods else ''}\n",
            "| not here, because it is | names |",
            "| --- | --- |",
            *rows,
            f"| together | {absent.total()} |\n",
        ]
    )


def _table(section: Section) -> str:
    here = sum(not name.why for name in section.names)
    lines = [f"## {section.title}\n", f"`{section.candle}`: {len(section.names)} names, {here} here.\n"]
    if section.tensor:
        lines += ["| candle | here | gradient | notes |", "| --- | --- | --- | --- |"]
    else:
        crate = "metal-candle" if section.candle.startswith("metal_candle") else "candle"
        lines += [f"| {crate} | here | notes |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(_row(section, name) for name in section.names)]) + "\n"


def _row(section: Section, name: Name) -> str:
    if name.why:
        cells = ["–", "–", f"*not here:* {name.why}"]
    else:
        notes = ["Eager only."] * name.eager + [name.note] * bool(name.note)
        notes += [f"*differs:* {name.differs}"] * bool(name.differs)
        passes = {None: "–", True: "yes", False: "no"}[gradient(name)]
        cells = [f"`{written(name)}`", passes, " ".join(notes)]
    if not section.tensor:
        del cells[1]
    return f"| `{name.name}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str] | None = None, names: Path | None = None, target: Path = PAGE) -> int:
    """Write the pages, or check them. Returns the exit code: 1 for missing names or a stale page."""
    parser = argparse.ArgumentParser(description="Where every public name of candle is in metal_candle.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args(arguments).check
    if names is not None:
        return _make(target, (names,), HEAD, check)
    pages = ((PAGE, NAMES, HEAD), (CRATE_PAGE, CRATE_NAMES, CRATE_HEAD))
    return max(_make(*each, check) for each in pages)


def _make(target: Path, names: tuple[Path, ...], head: str, check: bool) -> int:
    kinds, sections = read(*names)
    problems = missing(sections)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        print(f"{len(problems)} names are not where the lists say", file=sys.stderr)
        return 1
    text = page(kinds, sections, head)
    if not check:
        target.write_text(text, "utf-8")
    elif not target.exists() or target.read_text("utf-8") != text:
        print(f"{target.name} is stale: run python docs/candle_coverage.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
