"""Asynchronous evaluations that share nodes: what is shared is computed once, in whatever order they come."""

from __future__ import annotations

import random
import threading

from metal_candle import Device, LazyTensor
from metal_candle.error import InvalidIndexError
from metal_candle.graph import AsyncExecutor
from metal_candle.tensor import in_flight

import pytest
from held import (
    LONG,
    Held,
    four_workers,  # noqa: F401
    held,
    lazy,
    until,
)


def test_what_a_tensor_holds_is_computed_once() -> None:
    shared, op = held(1.0, 2.0)
    one, two = (shared * 2.0).eval_async(), (shared * 3.0).eval_async()
    independent = lazy(4.0).sqrt().eval_async()
    assert op.begun.wait(LONG)
    assert independent.wait(LONG).to_vec1() == [2.0]  # does not queue behind them
    assert not two.running()  # it waits for the first, though three workers are free
    op.let_go.set()
    assert one.wait(LONG).to_vec1() == [4.0, 6.0]
    assert two.wait(LONG).to_vec1() == [6.0, 9.0]
    assert op.calls == 1
    assert shared.is_evaluated()


def test_what_only_other_recordings_hold_is_computed_once() -> None:
    shared, op = held(1.0)
    outputs = [shared * float(i) + 1.0 for i in range(5)]
    del shared
    evaluations = [output.eval_async() for output in outputs]
    op.let_go.set()
    assert [evaluation.wait(LONG).to_vec1() for evaluation in evaluations] == [[2.0 * i + 1.0] for i in range(5)]
    assert op.calls == 1


def test_one_tensor_twice() -> None:
    x, op = held()
    first, second = x.eval_async(), x.eval_async()
    op.let_go.set()
    assert first.wait(LONG).to_vec1() == second.wait(LONG).to_vec1() == [2.0]
    assert op.calls == 1


def test_a_graph_on_top_of_one_in_flight() -> None:
    x, op = held()
    below = x.eval_async()
    assert op.begun.wait(LONG)
    above = (x * 10.0).eval_async()
    op.let_go.set()
    assert above.wait(LONG).to_vec1() == [20.0]
    # What waits for the nodes begins before the first one's end is told: it may end first.
    assert below.wait(LONG).to_vec1() == [2.0]
    assert op.calls == 1


def test_the_one_behind_an_error_computes_itself() -> None:
    shared, op = held(1.0, 2.0)
    failing = shared.index_select(LazyTensor.new([7]), 0).eval_async()
    good = (shared * 2.0).eval_async()
    op.let_go.set()
    with pytest.raises(InvalidIndexError):
        failing.wait(LONG)
    assert good.wait(LONG).to_vec1() == [4.0, 6.0]


def test_cancelled_between_two_that_share() -> None:
    shared, op = held(1.0)
    first, second, third = [(shared * float(i)).eval_async() for i in range(3)]
    assert op.begun.wait(LONG)
    assert second.cancel()
    assert not third.running()
    op.let_go.set()
    assert third.wait(LONG).to_vec1() == [4.0]
    assert first.wait(LONG).to_vec1() == [0.0]
    assert second.cancelled()
    assert op.calls == 1


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_submitting_and_cancelling(seed: int) -> None:
    """Threads submit and cancel what shares nodes, at random: all ends, values are right, nothing runs twice."""
    draw = random.Random(seed)
    ops = [Held(held=False) for _ in range(6)]
    nodes = [(lazy(1.0), 1.0)]
    for op in ops:
        x, value = draw.choice(nodes)
        nodes.append((x.apply_op1(op), value + 1.0))
        for _ in range(3):
            (x, a), (y, b) = draw.choice(nodes), draw.choice(nodes)
            nodes.append((x + y, a + b))
    executor = AsyncExecutor(Device.Cpu, max_in_flight=5)
    wrong: list[object] = []

    def work(mine: random.Random) -> None:
        for _ in range(30):
            x, want = mine.choice(nodes)
            evaluation = x.eval_async() if mine.random() < 0.5 else executor.submit(x)
            if mine.random() < 0.3 and evaluation.cancel():
                continue
            got = evaluation.wait(LONG).to_vec1()
            if got != [want]:
                wrong.append((got, want))

    threads = [threading.Thread(target=work, args=(random.Random(draw.random()),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    executor.shutdown()
    assert wrong == []
    assert all(op.calls <= 1 for op in ops)
    until(lambda: in_flight._owner == {} and executor._slots._free == 5)
