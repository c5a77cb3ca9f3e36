"""Asynchronous evaluation from plain code and under asyncio: what begins, what overlaps, what can be awaited."""

from __future__ import annotations

import asyncio
import threading
from concurrent import futures
from typing import Any

from metal_candle import LazyTensor, Tensor, Var
from metal_candle.graph import Evaluation, eval_all_async
from metal_candle.tensor import workers

import pytest
from held import (
    LONG,
    Held,
    four_workers,  # noqa: F401
    held,
    lazy,
    until,
)


def test_it_begins_without_being_waited_for() -> None:
    x, op = held(1.0, 2.0)
    evaluation = x.eval_async()
    assert isinstance(evaluation, Evaluation)
    assert op.begun.wait(LONG)
    assert not evaluation.done()
    assert evaluation.running()
    assert repr(evaluation) == "Evaluation(running)"
    with pytest.raises(TimeoutError, match=r"^wait: the evaluation is not done after 0.01 s; it goes on$"):
        evaluation.wait(0.01)
    op.let_go.set()
    value = evaluation.wait()
    assert isinstance(value, Tensor)
    assert value.to_vec1() == [2.0, 3.0]
    assert evaluation.done()
    assert not evaluation.cancelled()
    assert evaluation.exception() is None
    assert not evaluation.cancel()
    assert evaluation.wait() is value
    assert repr(evaluation) == "Evaluation(done)"
    assert x.is_evaluated()
    assert x.eval().to_vec1() == [2.0, 3.0]
    assert op.calls == 1


def test_an_evaluated_tensor_is_done_at_once() -> None:
    x = lazy(1.0) * 2.0
    x.eval()
    evaluation = x.eval_async()
    assert evaluation.done()
    assert evaluation.wait().to_vec1() == [2.0]
    assert workers._pools == {}
    assert eval_all_async([]).wait() == []


def test_several_in_one_evaluation() -> None:
    op = Held(held=False)
    shared = lazy(1.0, 2.0).apply_op1(op)
    outputs = [shared * 2.0, shared.sum(0), lazy(5.0)]
    del shared
    values = eval_all_async(outputs).wait()
    assert [value.tolist() for value in values] == [[4.0, 6.0], 5.0, [5.0]]
    assert op.calls == 1
    assert all(output.is_evaluated() for output in outputs)


def test_two_run_at_the_same_time() -> None:
    (x, one), (y, two) = held(), held()
    evaluations = [x.eval_async(), y.eval_async()]
    assert one.begun.wait(LONG)
    assert two.begun.wait(LONG)  # while the first is held
    two.let_go.set()
    assert evaluations[1].wait(LONG).to_vec1() == [2.0]
    assert not evaluations[0].done()
    one.let_go.set()
    assert evaluations[0].wait(LONG).to_vec1() == [2.0]


def test_a_callback_gets_the_evaluation() -> None:
    x, op = held()
    seen: list[Any] = []
    evaluation = x.eval_async()
    evaluation.add_done_callback(seen.append)
    assert seen == []
    op.let_go.set()
    until(lambda: seen == [evaluation])
    assert list(futures.as_completed([evaluation], LONG)) == [evaluation]


def test_values_can_be_read_in_any_thread() -> None:
    x = lazy(1.0, 2.0)
    parts = [(x * float(i)).exp().log() for i in range(8)]
    values = [part.eval_async().wait() for part in parts]
    total = values[0]
    for value in values[1:]:
        total = total + value
    assert total.to_vec1() == pytest.approx([28.0, 56.0], rel=1e-6)
    assert (parts[3] + parts[4]).eval().to_vec1() == pytest.approx([7.0, 14.0], rel=1e-6)


def test_many_threads_submit() -> None:
    results: list[float] = []

    def work(i: int) -> None:
        evaluations = [(lazy(float(i)) * float(j)).sum_all().eval_async() for j in range(20)]
        results.extend(evaluation.wait(LONG).to_scalar() for evaluation in evaluations)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert sorted(results) == sorted(float(i * j) for i in range(8) for j in range(20))


def test_gradients_of_a_lazy_loss() -> None:
    w = Var([1.0, 2.0])
    loss = (LazyTensor.from_tensor(w) * LazyTensor.from_tensor(w)).sum_all()
    evaluation = loss.eval_async()
    assert loss.backward()[w].to_vec1() == [2.0, 4.0]
    assert evaluation.wait().to_scalar() == 5.0


def test_gathering_a_hundred() -> None:
    async def main() -> list[Tensor]:
        return await asyncio.gather(*[(lazy(float(i)) * 2.0).eval_async() for i in range(100)])

    assert [value.to_vec1() for value in asyncio.run(main())] == [[2.0 * i] for i in range(100)]


def test_all_ways_to_await() -> None:
    async def main() -> list[float]:
        x = lazy(3.0)
        evaluation = (x * 2.0).eval_async()
        tasks = [asyncio.create_task((x + 1.0).eval_async()), asyncio.ensure_future((x + 2.0).eval_async())]
        values = [await evaluation, await evaluation, *[await task for task in tasks]]
        values.append(await asyncio.wait_for((x + 3.0).eval_async(), LONG))
        values.append(await asyncio.shield((x + 4.0).eval_async()))
        values.append(await asyncio.wrap_future((x + 5.0).eval_async()))
        values += await eval_all_async([x + 6.0])
        done, _ = await asyncio.wait([asyncio.create_task((x + 7.0).eval_async())])
        values += [task.result() for task in done]
        return [float(value.to_vec1()[0]) for value in values]

    assert asyncio.run(main()) == [6.0, 6.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert asyncio.run((lazy(1.0) * 5.0).eval_async()).to_vec1() == [5.0]


def test_the_loop_runs_on() -> None:
    async def main() -> list[float]:
        x, op = held()
        waiting = asyncio.create_task(x.eval_async())
        await asyncio.to_thread(op.begun.wait, LONG)
        for _ in range(100):  # other tasks take their turns while it is held
            await asyncio.sleep(0)
        assert not waiting.done()
        op.let_go.set()
        value: list[float] = (await waiting).to_vec1()
        return value

    assert asyncio.run(main()) == [2.0]


def test_a_loop_that_closes_first() -> None:
    x, op = held()
    evaluation = x.eval_async()
    tasks: list[Any] = []

    async def main() -> None:
        tasks.append(asyncio.ensure_future(evaluation))
        await asyncio.sleep(0)

    asyncio.run(main())
    op.let_go.set()
    assert evaluation.wait(LONG).to_vec1() == [2.0]
