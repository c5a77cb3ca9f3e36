"""Faults planted in small bodies: each is reported with its kind and place, and its corrected twin is not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metal_candle.kernels import custom

import mlx.core as mx
import pytest
from emulator import Emulator, Fault, available
from emulator.ahead import build_ahead
from emulator.launcher import ORDERS, Order
from given import Given, how

MARK = "// <-"

Arrays = tuple[tuple[tuple[int, ...], mx.Dtype], ...]

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
SIXTY_FOUR: Arrays = (((64,), F32),)
START = "const uint t = thread_position_in_threadgroup.x;\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
ONE_GROUP = how(*SIXTY_FOUR, grid=64, threadgroup=64)


@dataclass(frozen=True)
class Planted:
    """A fault and its correction.

    ``fix`` names what is replaced in the body, and by what; ``says`` are regular expressions, each of which the report
    has to match, besides the number of every line that ends with the mark. Where the correction is to the launch or to
    the inputs, ``fixed`` and ``given`` hold them. ``orders`` are those in which it is of this kind.
    """

    kind: str
    wrong: str
    fix: tuple[str, str] = ("", "")
    says: tuple[str, ...] = ()
    inputs: Arrays = SIXTY_FOUR
    launch: custom.Launch = ONE_GROUP
    fixed: custom.Launch | None = None
    given: Arrays | None = None
    orders: tuple[Order, ...] = ORDERS

    @property
    def lines(self) -> list[int]:
        """The lines the report has to name."""
        return [number for number, line in enumerate(self.wrong.splitlines(), 1) if line.endswith(MARK)]

    @property
    def right(self) -> str:
        """The corrected body."""
        return self.wrong.replace(*self.fix) if self.fix[0] else self.wrong

    def launches(self) -> list[tuple[custom.Program, Arrays, custom.Launch]]:
        """The wrong and the corrected launch."""
        wrong = (program(self.wrong, self.inputs, self.launch), self.inputs, self.launch)
        given, fixed = self.given or self.inputs, self.fixed or self.launch
        return [wrong, (program(self.right, given, fixed), given, fixed)]

    def assert_reported(self, order: Order) -> None:
        """Run the wrong body; the report has to say what and where."""
        with pytest.raises(Fault) as raised:
            run(self.wrong, self.inputs, self.launch, order)
        said = str(raised.value)
        assert raised.value.kind == self.kind, said
        assert "planted" in said
        for pattern in (*self.says, *(rf"\bline {line}\b" for line in self.lines)):
            assert re.search(pattern, said), f"{pattern!r} not in: {said}"

    def assert_twin_passes(self, order: Order) -> None:
        """Run the corrected body."""
        assert self.wrong.count(self.fix[0]) == 1 or self.fix == ("", ""), self.fix
        assert self.fix != ("", "") or self.fixed or self.given, "nothing is corrected"
        run(self.right, self.given or self.inputs, self.fixed or self.launch, order)


def simple(kind: str, wrong: str, right: str, *says: str, **how_it_runs: object) -> Planted:
    """A body of one line or several after ``t``, replaced as a whole by the correction."""
    return Planted(kind, f"{START}{wrong}\n", (wrong, right), says, **how_it_runs)  # type: ignore[arg-type]


def in_every_order(cases: dict[str, Planted]) -> pytest.MarkDecorator:
    """A test for each case and each order in which it is run."""
    return pytest.mark.parametrize(
        ("name", "order"), [(name, order) for name, case in cases.items() for order in case.orders]
    )


def build(request: pytest.FixtureRequest, *tables: dict[str, Planted]) -> None:
    """Compile in parallel what the chosen tests of a module will run; skip them where nothing compiles."""
    present, reason = available()
    if not present:
        pytest.skip(reason)
    items = [item for item in request.session.items if item.path == request.path]
    chosen = {item.callspec.params.get("name") for item in items if isinstance(item, pytest.Function) and item.callspec}
    cases = [case for table in tables for name, case in table.items() if name in chosen]
    build_ahead([launch for case in cases for launch in case.launches()])


def run(body: str, arrays: Arrays, launch: custom.Launch, order: Order) -> list[mx.array]:
    """Run a body over inputs x, z, … and outputs y, w, … with values 0 to 6."""
    inputs = [values(shape, dtype) for shape, dtype in arrays]
    return Emulator(order=order, seed=1).launch(program(body, arrays, launch), inputs, launch)


def program(body: str, arrays: Arrays, launch: custom.Launch) -> custom.Program:
    """The body over x, z, … and y, w, …, as many as there are arrays."""
    return Given("planted", tuple("xzv"[: len(arrays)]), tuple("ywu"[: len(launch.shapes)]), body=body)


def values(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """The numbers 0 to 6, over and over."""
    size = 1
    for length in shape:
        size *= length
    return (mx.arange(size) % 7).astype(dtype).reshape(list(shape))
