"""The loss as a picture and as text."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from metal_candle.error import CheckpointError
from metal_candle.training.curves import loss_series, plot_loss, render_curve, smoothed

import pytest


def test_series_take_what_was_measured() -> None:
    records = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": None},
        {"step": 2, "held_out_loss": 2.0},
        {"loss": 1.0},
    ]
    assert loss_series(records, "loss") == ([1], [3.0])
    assert loss_series(records, "held_out_loss") == ([2], [2.0])


def test_smoothing_keeps_the_ends_and_straight_lines() -> None:
    line = [float(i) for i in range(100)]
    assert smoothed(line) == pytest.approx(line)
    zigzag = [float(i % 2) for i in range(100)]
    assert max(abs(value - 0.5) for value in smoothed(zigzag)[10:-10]) < 0.05  # a mean of 11 values
    assert smoothed([]) == []


def test_the_picture_is_a_png_of_the_two_curves(tmp_path: Path) -> None:
    records = [{"step": i, "loss": 3 * 0.9**i} for i in range(1, 40)]
    records += [{"step": i, "held_out_loss": 3.1 * 0.9**i} for i in (10, 20, 39)]
    path = tmp_path / "run" / "loss.png"
    plot_loss(records, path, "run")
    picture = path.read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1200, 675)
    plot_loss([], path)
    assert path.read_bytes() != picture
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError.SaveFailed):
        plot_loss(records, tmp_path / "file" / "loss.png")


def test_the_curve_as_text_falls_with_the_values() -> None:
    lines = render_curve([4.0, 3.0, 2.0, 1.0], width=4, height=4).splitlines()
    assert [line[:3] for line in lines] == ["4 ┤", "  ┤", "  ┤", "1 ┤"]
    blank = chr(0x2800)
    assert [next(i for i, cell in enumerate(line[3:]) if cell != blank) for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 39, 40, 41, 1000])
def test_the_curve_has_the_size_asked_for(count: int) -> None:
    values = [math.cos(i / count) for i in range(count)]
    lines = render_curve(values, width=20, height=5).splitlines()
    assert len(lines) == 5
    assert {len(line.partition("┤")[2]) for line in lines} == {20}
    columns = zip(*(line.partition("┤")[2] for line in lines))
    assert all(any(cell != chr(0x2800) for cell in column) for column in columns)


def test_values_that_are_not_finite_leave_a_gap() -> None:
    values = [1.0] * 10 + [math.nan] * 10 + [1.0] * 10
    [line] = render_curve(values, width=15, height=1).splitlines()
    cells = line.partition("┤")[2]
    assert cells[5:10] == chr(0x2800) * 5
    assert chr(0x2800) not in cells[:5] + cells[10:]
    assert render_curve([], 10, 3) == render_curve([math.inf], 10, 3) == ""
