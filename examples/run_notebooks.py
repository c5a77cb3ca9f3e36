"""Execute the notebooks here in place, so that they are read with their results.

python examples/run_notebooks.py [--clear] [notebook.ipynb ...]     (pip install ".[notebook]")

Without names: all of them, one after the other. What differs from machine to machine and is not a result is left out:
folders, warnings, times of execution, the kernel's version. A notebook that fails is not written. Run it on a machine
with nothing else to do: some notebooks measure times. ``--clear`` takes the results out.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A folder of this machine, up to the last part of the path: /home/me/code/x.py, C:\Users\me\x.py.
FOLDERS = re.compile(r"(?<![\w./:])(?:/(?:home|Users|root|tmp|private|var|opt|usr|mnt|work)/|[A-Z]:\\)[^\s'\"<>]*[/\\]")


def execute(path: Path, timeout: int = 600) -> Any:
    """The notebook with its results; the file stays as it is. Raises ``nbclient.exceptions.CellExecutionError``."""
    import nbformat
    from nbclient import NotebookClient

    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # else jupyter_core warns of folders to come
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    return notebook


def tidied(notebook: Any) -> Any:
    """The notebook without what is no result: warnings, folders, times, versions. Changed in place, and given back."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        outputs = _joined([each for each in cell.outputs if each.get("name") != "stderr"])
        for output in outputs:
            if output.output_type == "stream":
                output.text = FOLDERS.sub("", output.text)
                continue
            output.metadata = {}
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and kind.startswith("text/"):
                    output.data[kind] = FOLDERS.sub("", content)
        cell.outputs = outputs
    notebook.metadata = METADATA
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs, pieces of one stream as one: where a kernel cuts it is chance."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def cleared(notebook: Any) -> Any:
    """The notebook without results. Changed in place, and given back."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def written(notebook: Any, path: Path) -> None:
    """Write it whole or not at all."""
    import nbformat

    beside = path.with_suffix(".new")
    nbformat.write(notebook, beside)
    beside.replace(path)


def main() -> int:
    """Execute or clear what the command line names; 1 if a notebook fails."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all beside this script")
    parser.add_argument("--clear", action="store_true", help="take the results out instead")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        try:
            result = cleared(nbformat.read(path, as_version=4)) if arguments.clear else execute(path)
        except (CellExecutionError, OSError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed = 1
            continue
        written(tidied(result), path)
        print(path.name, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
