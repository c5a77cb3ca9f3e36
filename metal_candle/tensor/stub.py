"""``methods.pyi``: the types of the methods that are made from records.

``python -m metal_candle.tensor.stub`` writes it; a test fails when it is stale.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from .. import files
from ..graph.operation import REGISTRY
from .derive import method_table, operator_table

STUB = Path(__file__).with_name("methods.pyi")

_HEAD = '''"""Types of the derived methods. Written by ``python -m metal_candle.tensor.stub``: do not edit."""

from collections.abc import Sequence

from typing_extensions import Self

from ..dtype import DTypeLike
from ..shape import DimLike, DimsLike, ShapeLike
from .base import TensorBase
from .python import PythonProtocols

class TensorMethods(PythonProtocols):
'''


def generate() -> str:
    """The stub's text."""
    lines = []
    for name, (key, function) in sorted(method_table().items()):
        lines.append(f"    def {name}{_signature(function)}:")
        lines.append(f'        """{_sentence(key)}"""')
    for name in sorted(operator_table()):
        # object has __eq__ and __ne__, which take anything and give a bool.
        ignored = "  # type: ignore[override]" if name in ("__eq__", "__ne__") else ""
        lines.append(f"    def {name}(self, other: TensorBase | float, /) -> Self: ...{ignored}")
    lines.append("    def __hash__(self) -> int: ...")
    return _HEAD + "\n".join(lines) + "\n"


def _sentence(key: str) -> str:
    """The first sentence of a record's docstring, on one line."""
    return inspect.cleandoc(REGISTRY[key].__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _signature(function: object) -> str:
    """The signature as a stub spells it: annotations are names already."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        text = parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += " = ..."
        parts.append(text)
    return f"({', '.join(parts)}) -> Self"


if __name__ == "__main__":
    files.write_text(STUB, generate())
