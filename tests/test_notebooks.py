"""The notebooks of ``examples/`` run, and are committed as ``examples/run_notebooks.py`` writes them."""

from __future__ import annotations

import base64
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LARGEST_IMAGE = 60_000


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", EXAMPLES / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults(notebook: Any, folders: Any) -> list[str]:
    """What a committed notebook must not hold."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if set(notebook.metadata) - {"kernelspec", "language_info"} or set(notebook.metadata.language_info) != {"name"}:
        found.append("metadata of one machine")
    counts = [cell.execution_count for cell in code]
    if counts not in ([None] * len(code), list(range(1, len(code) + 1))):
        found.append(f"executed in another order or in part: {counts}")
    for number, cell in enumerate(code):
        if cell.metadata:
            found.append(f"cell {number}: metadata {dict(cell.metadata)}")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number}: an error or a warning")
            for kind, content in {"text/plain": output.get("text", ""), **output.get("data", {})}.items():
                size = len(base64.b64decode(content)) if kind == "image/png" else len(content)
                if kind.startswith("image/") and size > LARGEST_IMAGE:
                    found.append(f"cell {number}: an image of {size} bytes, more than {LARGEST_IMAGE}")
                elif kind.startswith("text/") and folders.search(content):
                    found.append(f"cell {number}: a folder of one machine, {folders.search(content).group()}")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_committed_is_tidy(path: Path, runner: ModuleType) -> None:
    assert faults(nbformat.read(path, as_version=4), runner.FOLDERS) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path: Path, runner: ModuleType) -> None:
    notebook = runner.tidied(runner.execute(path))
    assert faults(notebook, runner.FOLDERS) == []
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


def _notebook(*sources: str) -> Any:
    v4 = nbformat.v4
    return v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])


UNTIDY = """
import sys
print("kept", "/home/someone/code/model.py", "/tmp/x/y.bin", "https://pypi.org/home/x", "1/tmp")
sys.stdout.flush()
print("a warning", file=sys.stderr, flush=True)
print("more")
"/Users/someone/a b"
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_results_are_tidied_and_taken_out_again(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.ipynb", tmp_path / "bad.ipynb"
    nbformat.write(_notebook(UNTIDY), good)
    nbformat.write(_notebook("1 / 0"), bad)
    as_it_was = bad.read_bytes()
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", str(bad), str(good)])
    assert runner.main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert bad.read_bytes() == as_it_was
    (cell,) = nbformat.read(good, as_version=4).cells
    assert [output.output_type for output in cell.outputs] == ["stream", "execute_result"]
    assert cell.outputs[0].text == "kept model.py y.bin https://pypi.org/home/x 1/tmp\nmore\n"
    assert faults(nbformat.read(good, as_version=4), runner.FOLDERS) == []
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--clear", str(good)])
    assert runner.main() == 0
    cleared = nbformat.read(good, as_version=4).cells[0]
    assert cleared.outputs == []
    assert cleared.execution_count is None
    assert sorted(tmp_path.iterdir()) == [bad, good]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_fails_is_raised(runner: ModuleType, tmp_path: Path) -> None:
    nbformat.write(_notebook("1 / 0"), tmp_path / "bad.ipynb")
    with pytest.raises(CellExecutionError):
        runner.execute(tmp_path / "bad.ipynb")


def test_faults_are_found(runner: ModuleType) -> None:
    v4 = nbformat.v4
    notebook = _notebook("a", "b", "c")
    notebook.metadata = {**runner.METADATA, "widgets": {}}
    first, second, third = notebook.cells
    first.metadata = {"execution": {}}
    first.outputs = [v4.new_output("stream", name="stdout", text="at /home/someone/x.py")]
    second.outputs = [v4.new_output("stream", name="stderr", text="a warning")]
    second.execution_count = 2
    image = base64.b64encode(bytes(LARGEST_IMAGE + 1)).decode()
    third.outputs = [v4.new_output("display_data", data={"image/png": image})]
    assert len(faults(notebook, runner.FOLDERS)) == 6
