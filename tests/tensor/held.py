"""Evaluations that wait to be let go, for the tests of asynchronous evaluation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from metal_candle import LazyTensor, Tensor
from metal_candle.graph import Evaluation
from metal_candle.tensor import in_flight, workers

import mlx.core as mx
import pytest

LONG = 120  # seconds after which a test that waits for a thread gives up


@pytest.fixture(autouse=True)
def four_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four workers on any machine, gone after the test; nothing may be in flight then."""
    monkeypatch.setattr(workers, "count", lambda device: 4)
    monkeypatch.setattr(workers, "_pools", {})
    yield
    for pool in workers._pools.values():
        pool.shutdown()
    assert in_flight._owner == {}


class Held:
    """A custom operation, x + 1, that says when it has begun, and waits to be let go."""

    def __init__(self, held: bool = True) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.calls = 0
        if not held:
            self.let_go.set()

    def infer(self, x: Any) -> Any:
        return x.shape, x.dtype

    def forward(self, x: mx.array) -> mx.array:
        self.calls += 1
        self.begun.set()
        if not self.let_go.wait(LONG):
            raise AssertionError("nobody let it go")
        return x + 1


class Calling(Held):
    """A custom operation that calls a function and is x + 1 otherwise."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(held=False)
        self.function = function

    def forward(self, x: mx.array) -> mx.array:
        self.function()
        return super().forward(x)


def lazy(*numbers: float) -> LazyTensor:
    return LazyTensor.new(list(numbers) or [1.0])


def held(*numbers: float) -> tuple[LazyTensor, Held]:
    """A tensor whose evaluation waits to be let go."""
    op = Held()
    return lazy(*numbers).apply_op1(op), op


def bad() -> LazyTensor:
    """A tensor whose evaluation raises: an index is looked at when it is computed."""
    return lazy(1.0, 2.0).index_select(LazyTensor.new([7]), 0)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does right after waking this one."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def busy() -> list[tuple[Held, Evaluation[Tensor]]]:
    """All four workers, held."""
    found = []
    for _ in range(4):
        x, op = held()
        found.append((op, x.eval_async()))
    for op, _ in found:
        assert op.begun.wait(LONG)
    return found


def release(found: list[tuple[Held, Evaluation[Tensor]]]) -> None:
    for op, _ in found:
        op.let_go.set()
    for _, evaluation in found:
        evaluation.wait(LONG)
