"""Whoever keeps every step's graph is told which variable does it; ordinary loops are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.nn.kv_cache import ConcatKvCache
from metal_candle.tensor import growth as module
from metal_candle.tensor.growth import STEPS, GraphGrowthWarning, Growth

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Growth:
    """Nothing remembered, and nothing counted unless a test wants it."""
    fresh = Growth()
    fresh._next = float("inf")
    for place in ("tensor.grad_store", "tensor.lazy", "nn.optim.optimizer"):
        monkeypatch.setattr(f"metal_candle.{place}.growth", fresh)
    return fresh


@pytest.fixture
def counting(fresh: Growth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are counted at every look."""
    fresh._next = 0.0
    for name, value in (("SHARE", 0), ("PAUSE", 0), ("LEAST", 10)):
        monkeypatch.setattr(module, name, value)


def line_of(mark: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, line in enumerate(file, 1) if f"# {mark}" in line and "line_of" not in line)


class Training:
    def __init__(self) -> None:
        self.weight = Var.from_tensor(Tensor.from_numpy(np.eye(4, dtype=np.float32)))
        self.xs = LazyTensor.from_tensor(Tensor.from_numpy(np.ones((4, 4), np.float32)))
        self.losses: list[Any] = []

    def step(self) -> LazyTensor:
        loss = self.xs.matmul(LazyTensor.from_tensor(self.weight)).sqr().mean_all()
        grads = loss.backward()
        self.weight.set(self.weight - grads[self.weight] * 0.01)
        return loss

    def keep(self, count: int) -> None:
        for _ in range(count):
            self.losses.append(self.step())  # GROWS-SELF


def told(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run()
    assert all(issubclass(each.category, GraphGrowthWarning) for each in found)
    assert all(each.filename == __file__ for each in found)
    return [str(each.message) for each in found]


def summed() -> None:
    training, total = Training(), LazyTensor.zeros((), "f32")
    for _ in range(3 * STEPS):
        total = total + training.step()  # GROWS-SUM


def listed() -> None:
    training = Training()
    losses = []
    for _ in range(3 * STEPS):
        losses.append(training.step())  # GROWS-LIST


def averaged() -> None:
    training = Training()
    average = LazyTensor.from_tensor(training.weight)
    for _ in range(8):
        training.step()
        average = average * 0.9 + LazyTensor.from_tensor(training.weight) * 0.1  # GROWS-EMA


def stepped() -> None:
    """An optimizer's ``backward_step`` is a backward pass, too."""
    training, history = Training(), []
    optimizer = nn.SGD([training.weight], 0.01)
    xs = Tensor.from_numpy(np.ones((4, 4), np.float32))
    for step in range(3 * STEPS):
        loss = xs.matmul(training.weight.as_tensor()).sqr().mean_all()
        optimizer.backward_step(loss)
        history.append((step, {"loss": loss}))  # GROWS-NESTED


def gradients() -> None:
    weight, stores = Var.from_tensor(Tensor.from_numpy(np.eye(4, dtype=np.float32))), []
    for _ in range(3 * STEPS):
        stores.append((weight * 2.0).sqr().sum_all().backward())  # GROWS-STORES


def of_an_object() -> None:
    training = Training()
    for _ in range(3 * STEPS):
        training.losses.append(training.step())  # GROWS-OBJECT


@pytest.mark.parametrize(
    ("run", "name", "mark"),
    [
        (summed, "total", "GROWS-SUM"),
        (listed, "losses", "GROWS-LIST"),
        (lambda: Training().keep(3 * STEPS), "self.losses", "GROWS-SELF"),
        (stepped, "history", "GROWS-NESTED"),
        (gradients, "stores", "GROWS-STORES"),
        (of_an_object, "training.losses", "GROWS-OBJECT"),
    ],
    ids=["sum", "list", "attribute", "backward_step, nested", "what backward gave", "another object's"],
)
def test_the_variable_and_its_line_are_named(run: Callable[[], None], name: str, mark: str) -> None:
    found = told(run)
    assert len(found) == 1, "once, not at every step"
    assert f"`{name}` at {__file__}:{line_of(mark)} holds" in found[0]
    assert ".detach() of an eager tensor, .detach().eval() of a lazy one" in found[0]
    assert "float(loss)" in found[0]


@pytest.mark.usefixtures("counting")
def test_a_moving_average_that_nobody_evaluates() -> None:
    (found,) = told(averaged)
    assert f"`average` at {__file__}:{line_of('GROWS-EMA')} holds" in found
    assert "more recorded operations are kept" in found


@pytest.mark.usefixtures("counting")
def test_counting_finds_nothing_where_nothing_grows() -> None:
    training = Training()
    assert told(lambda: [float(training.step().eval()) for _ in range(8)]) == []


def numbers() -> None:
    training, total, losses = Training(), 0.0, []
    for _ in range(3 * STEPS):
        loss = training.step()
        total += float(loss.eval())
        losses.append(float(loss.eval()))


def cured() -> None:
    training, total, losses = Training(), Tensor.zeros((), "f32"), []
    average = training.weight.detach().copy()
    for _ in range(3 * STEPS):
        loss = training.step().detach().eval()
        total = total + loss
        losses.append(training.step().eval().detach())
        losses.append(loss)
        average = average * 0.9 + training.weight.detach() * 0.1


def micro_batches() -> None:
    """A few losses are summed before one gradient."""
    training = Training()
    for _ in range(STEPS):
        total = LazyTensor.zeros((), "f32")
        for _ in range(4):
            total = total + training.xs.matmul(LazyTensor.from_tensor(training.weight)).sum_all()
        grads = total.backward()
        training.weight.set(training.weight - grads[training.weight] * 0.001)


def generated() -> None:
    """A cache that grows by a position a step."""
    cache = ConcatKvCache(2)
    for _ in range(3 * STEPS):
        keys = LazyTensor.from_tensor(Tensor.ones((1, 1, 1, 4), "f32"))
        k, v = cache.append(keys, keys)
        (k * v).sum_all().eval()


def two_networks() -> None:
    """Two losses, each with a gradient of its own, alive at the same time."""
    one, other = Training(), Training()
    for _ in range(2 * STEPS):
        first, second = one.step(), other.step()
        assert first.shape == second.shape


@pytest.mark.parametrize("run", [numbers, cured, micro_batches, generated, two_networks])
def test_ordinary_loops_are_left_alone(run: Callable[[], None]) -> None:
    assert told(run) == []


def test_first_steps_of_a_run_that_keeps_losses_for_a_while() -> None:
    """Fewer than ``STEPS`` are an ordinary list of losses."""
    training = Training()
    assert told(lambda: [training.step() for _ in range(STEPS - 1)]) == []


def test_counting_is_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a count as many times its duration pass as keeps it to a share of the time."""
    monkeypatch.setattr(module, "SHARE", 200)
    monkeypatch.setattr(module, "PAUSE", 0.5)
    growth, clock = Growth(), iter([10.0, 10.001, 10.4, 10.6, 10.61, 12.6])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    looks = []
    for _ in range(4):
        growth.now_and_then()
        looks.append(growth._next)
    # Half a second after a count of 1 ms, and 200 times 10 ms after one of that; between them it is not time.
    assert looks == pytest.approx([10.501, 10.501, 12.61, 12.61])
