"""The documentation site builds without a warning and has a place for every public name."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import metal_candle
from metal_candle import error

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODULES = ["compat", "embeddings", "graph", "inference", "models", "nn", "quantized", "training"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, in which every warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_public_name_has_its_place(site: Path) -> None:
    told = {
        match.rpartition(".")[2]
        for page in site.glob("api/*/index.html")
        for match in re.findall(r'id="(metal_candle\.[\w.]+)"', page.read_text("utf-8"))
    }
    told |= {path.parent.name for path in site.glob("api/*/index.html")}
    errors = (site / "errors" / "index.html").read_text("utf-8")
    lacking = []
    for name in ("", *MODULES):
        module: Any = importlib.import_module(f"metal_candle.{name}" if name else "metal_candle")
        for public in module.__all__:
            if public in ("VERSION", "__version__") or public in told or f">{public}<" in errors:
                continue
            if public not in vars(metal_candle)["_MODULES"]:
                lacking.append(f"{module.__name__}.{public}")
    assert lacking == []


@pytest.mark.slow
def test_every_name_of_the_crate_is_written_of(site: Path) -> None:
    """Fields, variants and methods too: a name that only the table of names has is one that nobody explains."""
    pages = [page for page in site.rglob("index.html") if not page.parent.name.endswith("_coverage")]
    words = {word for page in pages for word in re.findall(r"\w+", re.sub(r"<[^>]+>", "", page.read_text("utf-8")))}
    listed = yaml.safe_load((ROOT / "docs" / "metal_candle_names.yaml").read_text("utf-8"))
    lacking = []
    for section in listed["sections"]:
        for name, entry in section["names"].items():
            here = (entry or {}).get("at", name.replace("::", "."))
            if not (entry or {}).get("why") and here.rpartition(".")[2].strip("_") not in words:
                lacking.append(name)
    assert lacking == []


@pytest.mark.slow
def test_no_page_is_out_of_reach(site: Path) -> None:
    """Every page of ``docs/`` is in the navigation."""
    shown = (site / "index.html").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        stem = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert stem == "index" or f'href="{stem}/"' in shown, stem


def test_the_pages_written_from_the_program_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    assert pages.main(["--check"]) == 0, "python docs/reference_pages.py"
    code = "".join(
        path.read_text("utf-8") for path in (ROOT / "metal_candle").rglob("*.py") if path.parent.name != "error"
    )
    raised = set(re.findall(r"\b(\w+Error\.[A-Z]\w+)\(", code))
    groups = (kind for kind in vars(error).values() if isinstance(kind, type) and issubclass(kind, error.Error))
    variants = {each.__qualname__ for kind in groups for each in vars(kind).values() if isinstance(each, type)}
    assert {name for name in variants if name not in raised} == set(pages.NEVER_RAISED)
