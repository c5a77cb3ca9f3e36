"""Faults planted in small bodies: each is reported with its kind and place, and its corrected twin is not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metal_candle.kernels import custom

import mlx.core as mx
import pytest
from emulator import Emulator, Fault
from given import Given, how

ORDERS = ("forward", "backward", "shuffled")
MARK = "// <-"

Arrays = tuple[tuple[tuple[int, ...], mx.Dtype], ...]

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16
SIXTY_FOUR: Arrays = (((64,), F32),)
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
    orders: tuple[str, ...] = ORDERS

    @property
    def lines(self) -> list[int]:
        """The lines the report has to name."""
        return [number for number, line in enumerate(self.wrong.splitlines(), 1) if line.endswith(MARK)]

    def assert_reported(self, order: str) -> None:
        """Run the wrong body; the report has to say what and where."""
        with pytest.raises(Fault) as raised:
            run(self.wrong, self.inputs, self.launch, order)
        said = str(raised.value)
        assert raised.value.kind == self.kind, said
        assert "planted" in said
        for pattern in (*self.says, *(rf"\bline {line}\b" for line in self.lines)):
            assert re.search(pattern, said), f"{pattern!r} not in: {said}"

    def assert_twin_passes(self, order: str) -> None:
        """Run the corrected body."""
        assert self.wrong.count(self.fix[0]) == 1 or self.fix == ("", ""), self.fix
        assert self.fix != ("", "") or self.fixed or self.given, "nothing is corrected"
        right = self.wrong.replace(*self.fix) if self.fix[0] else self.wrong
        run(right, self.given or self.inputs, self.fixed or self.launch, order)


def in_every_order(cases: dict[str, Planted]) -> pytest.MarkDecorator:
    """A test for each case and each order in which it is run."""
    return pytest.mark.parametrize(
        ("name", "order"), [(name, order) for name, case in cases.items() for order in case.orders]
    )


def run(body: str, arrays: Arrays, launch: custom.Launch, order: str) -> list[mx.array]:
    """Run a body over inputs x, z, … and outputs y, w, … with values 0 to 6."""
    program = Given("planted", tuple("xzv"[: len(arrays)]), tuple("ywu"[: len(launch.shapes)]), body=body)
    inputs = [values(shape, dtype) for shape, dtype in arrays]
    return Emulator(order=order, seed=1).launch(program, inputs, launch)


def values(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """The numbers 0 to 6, over and over."""
    size = 1
    for length in shape:
        size *= length
    return (mx.arange(size) % 7).astype(dtype).reshape(list(shape))
