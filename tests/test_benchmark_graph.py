"""``benchmarks/graph.py`` runs in its shortest form: sides agree, tables and rows are complete. No times are judged."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "graph.py"
SIDES = ["raw", "unrewritten", "lazy", "compiled", "eager"]
# Cases with --quick, and the sides beside the five.
GROUPS = {
    "lora": (10, []),
    "lora_gradient": (3, []),
    "softmax": (4, []),
    "rms_norm": (4, []),
    "spelled_rms_norm": (4, ["raw spelled"]),
    "small_operations": (1, ["eager, each waited for"]),
    "transformer_block": (2, []),
    "independent": (1, ["one by one"]),
}
COLUMNS = (
    "date,device,versions,commit,benchmark,case,side,median_us,p20_us,p80_us,ratio,ratio_p20,ratio_p80,rounds,repeats"
    ",bytes,copy_share,choice"
)
KERNELS_ALONE = {"bytes", "copy_share", "choice"}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # One BLAS thread: several wait for each other where other programs have the cores.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def tables(text: str) -> dict[str, list[list[str]]]:
    """The cells of each section's table, head and rule included."""
    found: dict[str, list[list[str]]] = {}
    for section in text.split("### ")[1:]:
        title, _, rest = section.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        found[title.partition(":")[0]] = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return found


@pytest.mark.slow
def test_every_case_has_its_row(tmp_path: Path) -> None:
    rows_file, chart = tmp_path / "results.csv", tmp_path / "graph.png"
    result = run("--quick", "--rounds", "1", "--csv", rows_file, "--plot", chart)
    assert result.returncode == 0, result.stderr
    found = tables(result.stdout)
    for group, (count, more) in GROUPS.items():
        head, rule, *rows = found[group]
        assert head == ["case", "raw µs", *SIDES[1:], *more, "rules"]
        assert len(rule) == len(head)
        assert len(rows) == count
        assert all(len(row) == len(head) and all(row) for row in rows)
    # A rule that no longer fires here is a graph that no longer becomes what it is measured for.
    rules = {group: {row[-1] for row in rows[2:]} for group, rows in found.items() if group in GROUPS}
    assert all("lora x" in text for group in ("lora", "lora_gradient") for text in rules[group])
    assert all("rms_norm x 10" in text for text in rules["spelled_rms_norm"])
    assert all("attention" in text and "swiglu x 1" in text for text in rules["transformer_block"])
    assert rules["softmax"] == rules["small_operations"] == {"none"}
    assert [row[:2] for row in found["Ratios to raw"][2:]] == [
        [name, str(count)] for name, (count, _) in GROUPS.items()
    ]

    with rows_file.open(newline="", encoding="utf-8") as file:
        assert file.readline().strip() == COLUMNS
        file.seek(0)
        written = list(csv.DictReader(file))
    assert len(written) == sum(count * (5 + len(more)) for count, more in GROUPS.values())
    assert {row["benchmark"] for row in written} == set(GROUPS)
    for row in written:
        assert {name for name, value in row.items() if not value} == KERNELS_ALONE
        assert float(row["p20_us"]) <= float(row["median_us"]) <= float(row["p80_us"])
        assert float(row["ratio"]) > 0
        assert row["side"] != "raw" or float(row["ratio"]) == 1
        assert "mlx 0." in row["versions"]
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_rows_are_added(tmp_path: Path) -> None:
    rows_file = tmp_path / "results.csv"
    for _ in range(2):
        result = run("--only", "small_operations", "--rounds", "2", "--csv", rows_file, "--profile")
        assert result.returncode == 0, result.stderr
        (row,) = tables(result.stdout)["Where the time goes"][2:]
        assert row[0] == "small_operations, 20 of 16 floats"
        assert len(row) == 8
        assert all(float(cell) > 0 for cell in row[1:])
    lines = rows_file.read_text("utf-8").splitlines()
    assert lines[0] == COLUMNS
    assert len(lines) == 1 + 2 * 6
    assert COLUMNS not in lines[1:]


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    rows_file = tmp_path / "results.csv"
    rows_file.write_text("kernel,seconds\n")
    result = run("--only", "small_operations", "--rounds", "1", "--csv", rows_file)
    assert result.returncode != 0
    assert "results.csv: has the columns ['kernel', 'seconds']" in result.stderr
    assert rows_file.read_text() == "kernel,seconds\n"
