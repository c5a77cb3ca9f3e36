"""Executors: the bound on evaluations in flight, shutting down, defaults."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import metal_candle as mc
from metal_candle import Device, Tensor
from metal_candle.graph import AsyncExecutor, AsyncGraphExecutor, Evaluation
from metal_candle.tensor import workers

import pytest
from held import (
    LONG,
    Calling,
    Held,
    bad,
    busy,
    four_workers,  # noqa: F401
    held,
    lazy,
    release,
    until,
)


def test_the_bound_holds_and_submit_waits() -> None:
    executor = AsyncExecutor(Device.Cpu, max_in_flight=2)
    (x, one), (y, two), (z, three) = held(), held(), held()
    first, second = executor.submit(x), executor.submit(y)
    assert one.begun.wait(LONG)
    assert two.begun.wait(LONG)
    third: list[Evaluation[Tensor]] = []
    thread = threading.Thread(target=lambda: third.append(executor.submit(z)))
    thread.start()
    until(lambda: len(executor._slots._tickets) == 1)  # it waits for a slot
    assert executor.in_flight() == 2
    assert not three.begun.is_set()
    one.let_go.set()
    thread.join(LONG)
    assert three.begun.wait(LONG)
    assert executor.in_flight() == 2
    two.let_go.set()
    three.let_go.set()
    assert [evaluation.wait(LONG).to_vec1() for evaluation in (first, second, *third)] == [[2.0]] * 3
    executor.shutdown()
    assert executor.in_flight() == 0


def test_under_asyncio_the_bound_suspends() -> None:
    most: list[int] = []

    async def main() -> list[Any]:
        executor = AsyncExecutor(Device.Cpu, max_in_flight=3)

        def note() -> None:
            most.append(executor.in_flight())

        async with executor:
            work = [executor.execute(lazy(float(i)).apply_op1(Calling(note))) for i in range(40)]
            values = await asyncio.gather(*work)
        assert executor.in_flight() == 0
        with pytest.raises(mc.Error, match="execute: the executor was shut down"):
            await executor.execute(lazy() * 2.0)
        return [value.to_vec1() for value in values]

    assert asyncio.run(main()) == [[i + 1.0] for i in range(40)]
    assert len(most) == 40
    assert max(most) <= 3


def test_cancelling_who_waits_for_a_slot() -> None:
    async def main() -> None:
        executor = AsyncExecutor(Device.Cpu, max_in_flight=1)
        x, op = held()
        running = asyncio.create_task(executor.execute(x))
        await asyncio.to_thread(op.begun.wait, LONG)
        never = Held(held=False)
        waiting = asyncio.create_task(executor.execute(lazy().apply_op1(never)))
        last = asyncio.create_task(executor.execute(lazy() * 4.0))
        await asyncio.sleep(0)
        assert executor.in_flight() == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        op.let_go.set()
        assert (await running).to_vec1() == [2.0]
        assert (await last).to_vec1() == [4.0]
        assert never.calls == 0
        until(lambda: executor._slots._free == 1)
        async with executor:
            pass

    asyncio.run(main())


def test_a_cancelled_one_gives_its_slot_back() -> None:
    with AsyncExecutor(Device.Cpu, max_in_flight=5) as executor:
        before = busy()
        waiting = [executor.submit(lazy() * 2.0) for _ in range(5)]
        assert executor.in_flight() == 5
        assert waiting[3].cancel()
        assert executor.in_flight() == 4
        extra = executor.submit(lazy() * 3.0)  # does not block
        release(before)
        assert extra.wait(LONG).to_vec1() == [3.0]


def test_shutdown() -> None:
    executor = AsyncExecutor(Device.Cpu, max_in_flight=6)
    before = busy()
    x, op = lazy() * 2.0, Held(held=False)
    waiting = executor.submit(lazy().apply_op1(op))
    executor.shutdown(wait=False, cancel_pending=True)
    assert waiting.cancelled()
    with pytest.raises(mc.Error, match=r"^submit: the executor was shut down; takes tensors before that$"):
        executor.submit(x)
    release(before)
    executor.shutdown()
    assert op.calls == 0
    assert executor.execute_operation(mc.graph.Operation.Add, [Tensor([1.0]), Tensor([2.0])]).to_vec1() == [3.0]


def test_shutdown_waits_and_frees_who_waits_for_a_slot() -> None:
    executor = AsyncExecutor(Device.Cpu, max_in_flight=1)
    x, op = held()
    running = executor.submit(x)
    errors: list[BaseException] = []

    def blocked() -> None:
        try:
            executor.submit(lazy() * 2.0)
        except mc.Error as error:
            errors.append(error)

    thread = threading.Thread(target=blocked)
    thread.start()
    until(lambda: len(executor._slots._tickets) == 1)
    ending = threading.Thread(target=executor.shutdown)
    ending.start()
    thread.join(LONG)
    assert [str(error) for error in errors] == ["submit: the executor was shut down while this waited for a slot"]
    assert ending.is_alive()
    op.let_go.set()
    ending.join(LONG)
    assert running.done()
    until(lambda: executor._slots._free == 1)


def test_a_block_that_raises_cancels_what_waits() -> None:
    evaluations: list[Evaluation[Tensor]] = []

    def block() -> None:
        with AsyncExecutor(Device.Cpu) as executor:
            evaluations.append(executor.submit(lazy() * 2.0))
            raise KeyError

    async def async_block() -> None:
        async with AsyncExecutor(Device.Cpu) as executor:
            evaluations.append(executor.submit(lazy() * 2.0))
            raise KeyError

    before = busy()
    with pytest.raises(KeyError):
        block()
    with pytest.raises(KeyError):
        asyncio.run(async_block())
    assert [evaluation.cancelled() for evaluation in evaluations] == [True, True]
    release(before)


def test_synchronize_waits_and_leaves_errors_alone() -> None:
    executor = AsyncExecutor(Device.Cpu, max_in_flight=50)
    evaluations = [executor.submit(bad() if i == 7 else lazy(float(i)) * 2.0) for i in range(20)]
    executor.synchronize()
    assert all(evaluation.done() for evaluation in evaluations)
    assert [i for i, evaluation in enumerate(evaluations) if evaluation.exception()] == [7]


def test_lists_and_evaluated_tensors() -> None:
    x, op = held()
    y = lazy(5.0) * 1.0
    y.eval()
    with AsyncExecutor("cpu", max_in_flight=1) as executor:
        running = executor.submit(x)
        assert executor.submit(y).wait().to_vec1() == [5.0]  # takes no slot
        op.let_go.set()
        assert [value.to_vec1() for value in executor.submit([x, y, y * 2.0]).wait(LONG)] == [[2.0], [5.0], [10.0]]
        assert running.wait(LONG).to_vec1() == [2.0]
        assert executor.submit([]).wait() == []


def test_a_callback_may_submit_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "count", lambda device: 1)  # the one that calls back
    results: list[Any] = []
    finished = threading.Event()
    with AsyncExecutor(Device.Cpu, max_in_flight=1) as executor:
        x, op = held()

        def more(evaluation: Any) -> None:
            assert evaluation.wait().to_vec1() == [2.0]
            for i in range(5):
                results.append(executor.submit(lazy(float(i)) * 2.0))
            finished.set()

        executor.submit(x).add_done_callback(more)
        op.let_go.set()
        assert finished.wait(LONG)
        assert [result.wait(LONG).to_vec1() for result in results] == [[2.0 * i] for i in range(5)]
        until(lambda: executor._slots._free == 1)


@pytest.mark.parametrize("bound", [0, -1, True, 1.5, "2"])
def test_a_wrong_bound(bound: Any) -> None:
    with pytest.raises(mc.Error, match=r"^AsyncExecutor: got .* for max_in_flight; takes an integer from 1 up$"):
        AsyncExecutor(Device.Cpu, max_in_flight=bound)


def test_defaults() -> None:
    assert AsyncExecutor(Device.Cpu).max_in_flight == 8
    assert AsyncExecutor(Device.Cpu, 3).max_in_flight == 3

    async def main() -> Tensor:
        executor = AsyncGraphExecutor(Device.Cpu, max_in_flight=1)
        return await executor.execute_tensor(lazy() * 7.0)

    assert asyncio.run(main()).to_vec1() == [7.0]


def test_a_worker_for_each_core_and_one_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert workers.count(Device.Cpu) >= 1
    assert workers.count(Device(mc.DeviceType.Cuda)) == 1
    assert not workers.in_worker()
