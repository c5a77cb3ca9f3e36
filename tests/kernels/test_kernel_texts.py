"""Every instantiation of every kernel: its text is MLX's, passes the type check, and its launch suits each back-end."""

from __future__ import annotations

from importlib.resources import files
from math import prod

import metal_candle.kernels
from metal_candle.kernels import custom

import emulator
import mlx.core as mx
import pytest
from emulator import check, generate
from emulator.ahead import build_ahead
from instantiations import Instantiation, instantiations
from printed import printed

every = pytest.mark.parametrize("case", instantiations(), ids=str)
MOST_THREADS = 512
"""A body of ours holds rows in registers: a pipeline may allow fewer threads than Metal's 1,024, and says so late."""
MOST_VALUE = 256
"""Template arguments are flags, dtypes and small counts: each value is compiled anew."""


def generated(case: Instantiation) -> generate.Generated:
    """Its text by our rules."""
    return generate.metal_source(case.program, case.given, case.how)


@pytest.fixture(scope="module")
def checked() -> None:
    """The type checks of all, many at a time."""
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    build_ahead([case[1:] for case in instantiations()], run=False)


@every
def test_its_text_is_what_mlx_generates(case: Instantiation) -> None:
    inputs = [mx.zeros(shape, dtype) for shape, dtype in case.given]
    assert generated(case).text == printed(case.program, inputs, case.how)


@every
def test_it_passes_the_type_check(checked: None, case: Instantiation) -> None:
    check.type_check(generated(case))


@every
def test_its_arguments_suit_each_back_end(case: Instantiation) -> None:
    of = generated(case).parameters
    buffers = [parameter for parameter in of if parameter.kind != "attribute"]
    assert len(buffers) <= 31, "Metal binds 31 buffers"
    assert [p.name for p in buffers if p.kind == "buffer" and p.passing == "reference"] == [], "a pointer on CUDA"
    values = [value for _, value in case.how.template if isinstance(value, int)]
    assert all(0 <= value <= MOST_VALUE for value in values), case.how.template


@every
def test_its_launch_suits_each_back_end(case: Instantiation) -> None:
    grid, group = case.how.grid, case.how.threadgroup
    assert all(threads % of == 0 for threads, of in zip(grid, group)), "Metal trims the last threadgroup, CUDA does not"
    assert prod(group) % custom.SIMD == 0
    assert prod(group) <= MOST_THREADS
    assert prod(grid) < 2**31
    # CUDA's limit of blocks along the second and the third axis.
    assert all(threads // of < 2**16 for threads, of in zip(grid[1:], group[1:]))
    assert set(case.how.unused) <= set(case.program.outputs)
    unused = [shape for name, shape in zip(case.program.outputs, case.how.shapes) if name in case.how.unused]
    assert all(prod(shape) == 1 for shape in unused)


def test_there_are_instantiations_of_every_body() -> None:
    bodies = {
        entry.name.removesuffix(".metal")
        for entry in (files(metal_candle.kernels) / "source").iterdir()
        if entry.name.endswith(".metal")
    }
    assert {case.program.name for case in instantiations()} == bodies
