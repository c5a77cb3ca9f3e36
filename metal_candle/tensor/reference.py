"""``docs/operations.md``: every operation and tensor method in tables.

``python -m metal_candle.tensor.reference docs/operations.md`` writes it; a test fails when it is stale.
"""

from __future__ import annotations

import inspect
import sys

from .. import files
from ..graph.operation import REGISTRY, Operation
from .construct import Constructors
from .derive import method_table
from .methods import TensorMethods
from .written import WrittenMethods

_HEAD = """# Operations

Written by `python -m metal_candle.tensor.reference docs/operations.md`: do not edit.

Every method is on `Tensor`, which computes at once, and on `LazyTensor`, which records. The operators
`+ - * / @ == != < <= > >=` broadcast and take numbers; the named methods want equal shapes, and
`broadcast_*` broadcasts, as in candle. Shape and dtype errors are raised when an operation is recorded.
What stands as `Operation.Name` has no method: a function or a layer of `nn` records it.
"""


def generate() -> str:
    """The page's text."""
    families: dict[str, list[str]] = {}
    for key, record_class in REGISTRY.items():
        # Other layers may declare records of their own, which are not part of this reference.
        if record_class.__module__.startswith(f"{Operation.__module__}s."):
            families.setdefault(record_class.__module__, []).append(_row(key, record_class))
    parts = [_HEAD]
    for module in sorted(families):
        parts.append(_table(_first_line(sys.modules[module].__doc__), families[module]))
    written = [kind for kind in reversed(WrittenMethods.__mro__) if issubclass(kind, TensorMethods)][1:]
    parts.append(_table("Methods made of several operations", [row for kind in written for row in _rows_of(kind)]))
    parts.append(_table("Constructors", _rows_of(Constructors)))
    return "\n".join(parts)


def _table(title: str, rows: list[str]) -> str:
    head = f"## {title.rstrip('.')}\n\n| method | candle | what it does |\n| --- | --- | --- |"
    return "\n".join([head, *rows]) + "\n"


def _row(key: str, record_class: type[Operation]) -> str:
    names = [_call(name, function) for name, (of, function) in method_table().items() if of == key]
    shown = names or [f"Operation.{record_class.__name__}"]
    candle = f"`{record_class.candle}`" if record_class.candle else ""
    return f"| {', '.join(f'`{name}`' for name in shown)} | {candle} | {_sentence(record_class.__doc__)} |"


def _rows_of(kind: type) -> list[str]:
    rows = []
    for name, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod) else member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        doc = inspect.cleandoc(function.__doc__ or "")
        candle = next((line[len("candle: ") :] for line in doc.splitlines() if line.startswith("candle: ")), "")
        rows.append(f"| `{_call(name, function)}` | {candle.replace('``', '`')} | {_sentence(doc)} |")
    return rows


def _call(name: str, function: object) -> str:
    names = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]  # type: ignore[arg-type]
    return f"{name}({', '.join(names)})"


def _sentence(doc: str | None) -> str:
    return inspect.cleandoc(doc or "").split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0]


if __name__ == "__main__":
    files.write_text(sys.argv[1], generate())
