"""Our own kernels with one thing broken: a barrier, a guard, a count. The emulator reports each of them.

What is broken is such that values may not show it: a missing barrier gives right results in most orders, and a read one
past the end lands in the next row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from metal_candle import settings
from metal_candle.kernels import custom
from metal_candle.kernels.grouped_lora import Adapters

import emulator
import instantiations
import mlx.core as mx
import pytest
from emulator import Emulator, Fault
from emulator.ahead import build_ahead
from emulator.dialect import without_comments
from given import Given
from launched import normal


class Launched(NamedTuple):
    """A launch with its arrays."""

    program: custom.Program
    inputs: Sequence[mx.array]
    how: custom.Launch


class Recording(Emulator):
    """Keeps the first launch of each program."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: dict[str, Launched] = {}

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        self.launches.setdefault(program.name, Launched(program, inputs, how))
        return super().launch(program, inputs, how)


UNORDERED = ("race",)
UNWRITTEN = ("uninitialised",)
PAST_THE_ROW = ("race", "bounds")  # into the next row, which another threadgroup writes, or past the last
BARRIER = re.compile(r"threadgroup_barrier\(mem_flags::mem_threadgroup\);")


# Rows of several simdgroups, of widths that are 3 more than a multiple of 4: the last loads are partial.
SAMPLES: dict[str, tuple[Any, ...]] = {
    "add_layer_norm": (normal(2, 1303), normal(2, 1303), normal(1303), normal(1303), 1e-5),
    "add_lora": (normal(2, 301), normal(2, 127), normal(127, 5), normal(5, 301), 0.5),
    "add_rms_norm": (normal(2, 1303), normal(2, 1303), normal(1303), 1e-5),
    "cross_entropy": (normal(2, 1303), mx.array([1, 1302])),
    "grouped_lora": (
        normal(3, 301),
        normal(3, 1027),
        mx.array([1, 0, 1]),
        normal(7, 1027),
        normal(7, 301),
        Adapters((4, 3), (0.5, 2.0)),
    ),
    "rope": (normal(1, 5, 3, 8), normal(3, 4), normal(3, 4), False),
    "softcap": (normal(7, 301), 2.5),
    "softmax": (normal(2, 1303), 0.5),
    "swiglu": (normal(3, 301), normal(3, 301)),
}


@cache
def launches() -> dict[str, Launched]:
    """A small launch of each program that the samples reach, forward and backward."""
    recording, kernels = Recording(), instantiations.kernels()
    with custom.using(recording), settings.KERNELS.override("custom"):
        for name, arguments in SAMPLES.items():
            kernel = kernels[name]
            inputs, params = arguments[: kernel.arity], arguments[kernel.arity :]
            outputs = kernel.forward(*arguments)
            results = outputs[: kernel.results]
            arrays = [value for value in arguments if isinstance(value, mx.array)]
            needs = [mx.issubdtype(value.dtype, mx.floating) for value in arrays]
            kernel.vjp(results if kernel.results > 1 else results[0], inputs, outputs, needs, *params)
    return recording.launches


def as_changed(launched: Launched, body: str, header: str) -> custom.Program:
    """The launch's program with another text."""
    its = launched.program
    return Given(its.name, its.inputs, its.outputs, its.contiguous, body=body, header=header)


def run(launched: Launched, body: str, header: str, how: custom.Launch | None = None) -> None:
    """Run the launch with this text in place of its program's."""
    Emulator().launch(as_changed(launched, body, header), launched.inputs, how or launched.how)


class Broken(NamedTuple):
    """What is replaced in a body, or else in what bodies call, by what; and what is reported."""

    program: str
    old: str
    new: str
    kinds: tuple[str, ...]

    def texts(self) -> tuple[str, str]:
        """The body and what it calls, one of them broken."""
        program = launches()[self.program].program
        if self.old in program.body:
            return program.body.replace(self.old, self.new, 1), program.header
        return program.body, program.header.replace(self.old, self.new, 1)


BROKEN = [
    Broken("softmax", "row < rows ? whole : 0", "row < rows ? whole + 1 : 0", PAST_THE_ROW),
    Broken("softmax", "lane < groups ? tops", "lane <= groups ? tops", UNWRITTEN),
    Broken("softmax", "groups = threads / 32", "groups = threads / 32 + 1", UNWRITTEN),
    Broken("softmax_backward", "uint(y_shape[0]) ? whole : 0", "uint(y_shape[0]) ? whole + 1 : 0", PAST_THE_ROW),
    Broken("softmax_backward", "lane < groups ? sums", "lane <= groups ? sums", UNWRITTEN),
    Broken("rms_norm", "row < rows ? width : 0", "row < rows ? width + 1 : 0", PAST_THE_ROW),
    Broken("rms_norm", "step / 128", "step / 128 + 1", UNWRITTEN),
    Broken("rms_norm", "value = simd_sum(lane < groups", "value = simd_sum(lane <= groups", UNWRITTEN),
    Broken("rms_norm", "inside = at + i < end", "inside = at + i <= end", ("bounds",)),
    Broken("rms_norm", "if (at + i < end)", "if (at + i <= end)", PAST_THE_ROW),
    Broken("layer_norm", "row < rows ? width : 0", "row < rows ? width + 1 : 0", PAST_THE_ROW),
    Broken("layer_norm", "step / 128", "step / 128 + 1", UNWRITTEN),
    Broken("fused_lora", "metal::min(row + t, rows - 1) * row_step", "(row + t + 1) * row_step", ("bounds",)),
    Broken("fused_lora", "if (n < N &&", "if (n <= N &&", PAST_THE_ROW),
    Broken("fused_lora", "rank < R) {", "rank <= R) {", ("race",)),
    Broken("grouped_lora", "block * RANKS + j, R - 1", "block * RANKS + j, K", ("bounds",)),
    Broken("grouped_lora", "n < N;", "n <= N;", PAST_THE_ROW),
    Broken("grouped_lora", "block * RANKS + j < R)", "block * RANKS + j <= R)", ("race", "bounds")),
    Broken("cross_entropy", "n = x_shape[1]", "n = x_shape[1] + 1", PAST_THE_ROW),
    Broken("cross_entropy", "if (index == 0 &&", "if (index <= 1 &&", ("race",)),
    Broken("cross_entropy_vjp", "n = x_shape[1]", "n = x_shape[1] + 1", PAST_THE_ROW),
    Broken("cross_entropy_vjp", "threads_per_threadgroup.x;", "32;", ("race",)),
    Broken("rope", "if (place < rows * fours)", "if (place <= rows * fours)", PAST_THE_ROW),
    Broken("rope", "if (head < left)", "if (head <= left)", PAST_THE_ROW),
    Broken("swiglu_vjp", "n = gate_shape[0]", "n = gate_shape[0] + 1", ("bounds",)),
    Broken("softcap", "n = x_shape[0]", "n = x_shape[0] + 1", ("bounds",)),
    Broken("softcap", "step * CHUNKS", "step", ("race",)),
    Broken("softcap_vjp", "n = x_shape[0]", "n = x_shape[0] + 1", ("bounds",)),
]


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """The chosen ones of the broken texts are compiled first, many at a time."""
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    items = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    names = {item.originalname for item in items}
    params = [item.callspec.params for item in items if "case" in item.fixturenames]
    cases = [each["case"] for each in params if isinstance(each["case"], Broken)]
    texts = [(launches()[case.program], *case.texts()) for case in cases]
    if "test_every_barrier_of_a_body_is_needed" in names:
        for launched in launches().values():
            broken = broken_barriers(launched.program.body)
            texts += [(launched, body, launched.program.header) for _, body in broken]
    build_ahead(
        [(as_changed(launched, body, header), launched.inputs, launched.how) for launched, body, header in texts]
    )


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.program}: {case.new}")
def test_what_is_broken_is_reported(case: Broken) -> None:
    launched = launches()[case.program]
    body, header = case.texts()
    unbroken = (launched.program.body, launched.program.header)
    assert (body, header) != unbroken, f"{case.program} has no {case.old!r} any more: take another"
    with pytest.raises(Fault, match=r"thread .* of threadgroup .*line \d+ of the (body|header)") as raised:
        run(launched, body, header)
    assert raised.value.kind in case.kinds, raised.value


def broken_barriers(text: str) -> Iterator[tuple[int, str]]:
    """The text without, or with a weaker one of, each of its barriers; and the line of that."""
    for match in BARRIER.finditer(without_comments(text)):
        line = text.count("\n", 0, match.start()) + 1
        for weaker in ("", "simdgroup_barrier(mem_flags::mem_threadgroup);"):
            yield line, text[: match.start()] + weaker + text[match.end() :]


def test_every_barrier_of_a_body_is_needed() -> None:
    tried = 0
    for name, launched in launches().items():
        program = launched.program
        for line, body in broken_barriers(program.body):
            tried += 1
            with pytest.raises(Fault) as raised:
                run(launched, body, program.header)
            assert raised.value.kind in UNORDERED, (name, line, raised.value)
    assert tried >= 8


def test_every_barrier_of_what_bodies_call_is_needed() -> None:
    calling = [launches()[name] for name in ("layer_norm", "cross_entropy")]
    needless = []
    for line, header in broken_barriers(custom.source("shared.h")):
        kinds = set()
        for launched in calling:
            try:
                run(launched, launched.program.body, header)
            except Fault as fault:
                kinds.add(fault.kind)
                break
        if not kinds & set(UNORDERED):
            needless.append(line)
    assert needless == []


@pytest.mark.parametrize("program", ["softmax", "softmax_backward", "rms_norm", "layer_norm", "cross_entropy", "rope"])
def test_a_threadgroup_too_few_leaves_outputs_unwritten(program: str) -> None:
    launched = launches()[program]
    its = launched.how
    axis = max(range(3), key=lambda each: its.grid[each] // its.threadgroup[each])
    grid = list(its.grid)
    grid[axis] -= its.threadgroup[axis]
    short = custom.Launch(
        its.shapes, its.dtypes, (grid[0], grid[1], grid[2]), its.threadgroup, its.template, its.unused
    )
    with pytest.raises(Fault, match=r"index \d+ of \w+") as raised:
        run(launched, launched.program.body, launched.program.header, short)
    assert raised.value.kind == "uncovered"


def test_as_they_are_nothing_is_reported() -> None:
    for launched in launches().values():
        run(launched, launched.program.body, launched.program.header)
