"""No layer imports one above it; imports inside functions and under ``TYPE_CHECKING`` count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import metal_candle

import pytest

PACKAGE = Path(metal_candle.__file__).parent
LAYERS = [
    {
        "error",
        "dtype",
        "device",
        "shape",
        "settings",
        "features",
        "blas",
        "openblas",
        "elf",
        "cache",
        "constructors",
        "files",
        "layout",
        "display",
        "scalar",
        "utils",
        "version",
    },
    {"formats"},
    {"kernels"},
    {"graph"},
    {"tensor"},
    {"compat"},
    {"safetensors", "npy", "pickle", "quantized", "streaming", "test_utils"},
    {"nn"},
    {"models"},
    {"training"},
    {"inference"},
    {"embeddings"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the name in the package, ``kernels`` say, of each import of the package's own."""
    package = ["metal_candle", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "metal_candle" and len(parts) > 1:
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__main__":
        own = "cli"
    if own == "data":
        pytest.skip("holds files, not code")
    assert own in LEVEL, "a new file or folder has to be given its layer here"
    upward = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for line, name in imported(path)
        if LEVEL.get(name, -1) > LEVEL[own]
    ]
    assert upward == []


def test_the_reader_of_imports_sees_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "x.py").write_text(
        "import metal_candle.nn.ops\nfrom .. import tensor\nfrom ..models.decoder import Decoder\nimport os\n"
        "def f():\n    from ..training import lora\n"
        "if TYPE_CHECKING:\n    from metal_candle.cli import main\nfrom .node import GraphNode\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    found = [name for _, name in imported(tmp_path / "graph" / "x.py")]
    assert sorted(found) == ["cli", "graph", "models", "nn", "tensor", "training"]
