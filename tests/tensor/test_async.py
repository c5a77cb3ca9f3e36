"""Asynchronous evaluation: what overlaps and what waits, cancellation, errors, bounds, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor, Var, features, settings
from metal_candle.error import FeatureDisabledError, InvalidIndexError, NotEvaluatedError
from metal_candle.graph import AsyncExecutor, AsyncGraphExecutor, Evaluation, eval_all_async
from metal_candle.tensor import in_flight, workers

import mlx.core as mx
import pytest

LONG = 20  # seconds after which a test that waits for a thread gives up


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


# --- plain code ---------------------------------------------------------------------------------


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


# --- shared nodes -------------------------------------------------------------------------------


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
    assert below.done()
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


# --- cancellation and errors --------------------------------------------------------------------


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


def test_a_cancelled_one_that_waits_never_runs() -> None:
    before = busy()
    op = Held(held=False)
    x = lazy().apply_op1(op)
    evaluation = x.eval_async()
    assert repr(evaluation) == "Evaluation(waiting)"
    threading.Timer(0.01, evaluation.cancel).start()
    with pytest.raises(futures.CancelledError):
        evaluation.wait(LONG)
    assert evaluation.cancel()  # again
    assert evaluation.cancelled()
    assert repr(evaluation) == "Evaluation(cancelled)"
    assert futures.wait([evaluation], LONG).not_done == set()
    release(before)
    (lazy() * 2.0).eval_async().wait(LONG)
    assert op.calls == 0
    assert not x.is_evaluated()
    assert x.eval_async().wait(LONG).to_vec1() == [2.0]


def test_a_running_one_is_not_cancelled() -> None:
    x, op = held()
    evaluation = x.eval_async()
    assert op.begun.wait(LONG)
    assert not evaluation.cancel()
    op.let_go.set()
    assert evaluation.wait(LONG).to_vec1() == [2.0]


def test_cancelling_the_task_that_awaits() -> None:
    x, op = held()
    y_op = Held(held=False)
    y = lazy().apply_op1(y_op)

    async def main() -> None:
        evaluation = x.eval_async()
        task = asyncio.create_task(evaluation)
        await asyncio.to_thread(op.begun.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not evaluation.done()  # runs on
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(x.eval_async(), 0.01)
        op.let_go.set()
        assert (await evaluation).to_vec1() == [2.0]

        before = busy()
        waiting = y.eval_async()
        first, second = asyncio.create_task(waiting), asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not waiting.cancelled()  # the second still waits
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.01)
        assert not waiting.cancelled()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)
        assert not waiting.cancelled()  # so does what `shield` made
        assert waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release(before)

    asyncio.run(main())
    assert x.is_evaluated()
    assert op.calls == 1
    assert y_op.calls == 0


def test_the_last_task_that_gives_up_cancels_what_has_not_begun() -> None:
    op = Held(held=False)

    async def main() -> None:
        before = busy()
        evaluation = lazy().apply_op1(op).eval_async()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(evaluation, 0.01)
        assert evaluation.cancelled()
        release(before)

    asyncio.run(main())
    assert op.calls == 0


def test_errors_keep_their_kind() -> None:
    evaluation = bad().eval_async()
    with pytest.raises(InvalidIndexError) as plain:
        bad().eval()
    for _ in range(2):
        with pytest.raises(InvalidIndexError) as found:
            evaluation.wait(LONG)
        assert str(found.value) == str(plain.value)
    assert isinstance(evaluation.exception(), IndexError)
    assert repr(evaluation) == "Evaluation(raised InvalidIndexError)"

    async def main() -> None:
        with pytest.raises(InvalidIndexError):
            await bad().eval_async()
        good, wrong = await asyncio.gather((lazy() + 1.0).eval_async(), bad().eval_async(), return_exceptions=True)
        assert isinstance(good, Tensor)
        assert isinstance(wrong, InvalidIndexError)

    asyncio.run(main())
    with pytest.raises(InvalidIndexError):
        eval_all_async([lazy() * 2.0, bad()]).wait(LONG)


def test_a_timeout_of_its_own_is_an_error_like_others() -> None:
    let_go = threading.Event()

    def late() -> None:
        assert let_go.wait(LONG)
        raise TimeoutError("the operation's own")

    evaluation = lazy().apply_op1(Calling(late)).eval_async()

    def free() -> None:
        until(lambda: evaluation._waiting == 1)
        let_go.set()

    thread = threading.Thread(target=free)
    thread.start()
    with pytest.raises(TimeoutError, match="the operation's own"):
        evaluation.wait(LONG)
    thread.join(LONG)


def test_an_interrupt_leaves_things_usable() -> None:
    x, op = held()
    evaluation = x.eval_async()
    assert op.begun.wait(LONG)

    def interrupt() -> None:
        until(lambda: evaluation._waiting == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        evaluation.wait(LONG)
    thread.join(LONG)
    assert not evaluation.done()
    op.let_go.set()
    assert evaluation.wait(LONG).to_vec1() == [2.0]
    assert (lazy() * 3.0).eval_async().wait(LONG).to_vec1() == [3.0]


@pytest.mark.parametrize("value", [3, None, "x", [1.0], {"a": lazy()}, [lazy(), "x"]], ids=str)
def test_what_is_no_tensor(value: Any) -> None:
    with AsyncExecutor(Device.Cpu) as executor:
        for call in (executor.submit, lambda x: eval_all_async([x]), lambda x: asyncio.run(executor.execute(x))):
            with pytest.raises(mc.ArgumentTypeError, match=r"^\w+: got \w+.*; takes a tensor( or a list of them)?$"):
                call(value)
        assert executor.in_flight() == 0
    for wrong in (3, None, "x", {}, lazy(), Tensor([[1.0]])):
        for op, together in (("eval_all", mc.eval_all), ("eval_all_async", eval_all_async)):
            with pytest.raises(mc.ArgumentTypeError, match=rf"^{op}: got .*; takes a list of tensors$"):
                together(wrong)
            with pytest.raises(mc.ArgumentTypeError, match=rf"^{op}: got 2 arguments; takes a list of tensors$"):
                together(lazy(), lazy())


@pytest.mark.parametrize(
    "kind",
    [list, tuple, iter, lambda tensors: (y for y in tensors), lambda tensors: map(LazyTensor.from_tensor, tensors)],
)
def test_any_iterable_is_gone_through_once_with_tensors_of_all_kinds(kind: Callable[[Any], Any]) -> None:
    def outputs() -> Any:
        return kind([lazy() * 2.0, Tensor([3.0]), Var([4.0]), LazyTensor.from_tensor(Var([5.0])) + 1.0])

    expected = [[2.0], [3.0], [4.0], [6.0]]
    with AsyncExecutor(Device.Cpu) as executor:
        for values in (
            mc.eval_all(outputs()),
            eval_all_async(outputs()).wait(LONG),
            executor.submit(outputs()).wait(LONG),
            asyncio.run(executor.execute(outputs())),
        ):
            assert [value.to_vec1() for value in values] == expected
            assert {type(value) for value in values} == {Tensor}
        for single in (Tensor([3.0]), Var([3.0]), lazy() * 3.0):
            assert executor.submit(single).wait(LONG).to_vec1() == [3.0]


def test_an_error_that_nobody_asks_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def failed() -> Evaluation[Tensor]:
        evaluation = bad().eval_async()
        futures.wait([evaluation], LONG)
        return evaluation

    failed()
    gc.collect()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("metal_candle.eval", "ERROR")
    assert record.getMessage() == "an evaluation failed, and nobody asked for its error"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], InvalidIndexError)
    caplog.clear()
    del record

    async def awaited() -> None:
        await failed()

    for ask in (
        lambda: failed().wait(LONG),
        lambda: failed().result(),
        lambda: asyncio.run(awaited()),
    ):
        with pytest.raises(InvalidIndexError):
            ask()
    assert isinstance(failed().exception(), InvalidIndexError)
    assert (lazy() * 2.0).eval_async().wait(LONG).to_vec1() == [2.0]
    gc.collect()
    assert caplog.records == []
    repr(failed())
    gc.collect()
    assert len(caplog.records) == 1, "to look at it is not to ask for its error"


def test_wrong_timeouts_and_devices() -> None:
    evaluation: Evaluation[Tensor] = Evaluation()
    wrong: Any
    for wrong in ("a", [1], True):
        with pytest.raises(mc.ArgumentTypeError, match=r"^wait: got .* for timeout; takes seconds or None$"):
            evaluation.wait(wrong)
    with pytest.raises(mc.ArgumentValueError, match=r"^wait: got nan for timeout; takes seconds or None$"):
        evaluation.wait(float("nan"))
    for none in (-1, 0, -math.inf):
        with pytest.raises(TimeoutError, match=r"^wait: the evaluation is not done yet; it goes on$"):
            evaluation.wait(none)
    assert (lazy() * 2.0).eval_async().wait(math.inf).to_vec1() == [2.0]
    for wrong in (2, True):
        with pytest.raises(
            mc.ArgumentTypeError, match=rf"^AsyncExecutor: got {wrong} for device; takes a device, a bound is max_"
        ):
            AsyncExecutor(wrong)


def test_in_a_function_that_is_traced() -> None:
    def f(x: Tensor) -> Any:
        return (LazyTensor.from_tensor(x) * 2.0).eval_async().wait()

    with pytest.raises(NotEvaluatedError, match="eval_async: a function that compile is tracing"):
        mc.compile(f)(Tensor([1.0]))
    outside = lazy() * 2.0

    def g(x: Tensor) -> Any:
        return x + outside.eval_async().wait()

    with pytest.raises(NotEvaluatedError):
        mc.compile(g)(Tensor([1.0]))
    outside.eval()
    assert mc.compile(g)(Tensor([1.0])).to_vec1() == [3.0]


def test_without_the_feature() -> None:
    x = lazy() * 2.0
    with features.disabled("graph"):
        for call in (x.eval_async, lambda: eval_all_async([x]), lambda: AsyncExecutor(Device.Cpu).submit(x)):
            with pytest.raises(FeatureDisabledError):
                call()


def test_switches_of_the_caller_hold_in_the_worker() -> None:
    seen: list[str] = []
    x = lazy().apply_op1(Calling(lambda: seen.append(settings.KERNELS.value)))
    with settings.KERNELS.override("reference"):
        evaluation = x.eval_async()
    evaluation.wait(LONG)
    lazy().apply_op1(Calling(lambda: seen.append(settings.KERNELS.value))).eval_async().wait(LONG)
    assert seen == ["reference", settings.KERNELS.value]


def test_waiting_in_a_worker_is_refused_and_evaluating_there_is_not() -> None:
    inner = lazy(2.0) * 2.0
    other, op = held()

    def wait() -> None:
        other.eval_async().wait(LONG)

    with pytest.raises(mc.Error, match="wait: an evaluation waits for another, whose thread it may be using"):
        lazy().apply_op1(Calling(wait)).eval_async().wait(LONG)
    op.let_go.set()
    assert lazy().apply_op1(Calling(lambda: inner.eval())).eval_async().wait(LONG).to_vec1() == [2.0]
    assert inner.is_evaluated()
    other.eval_async().wait(LONG)


# --- asyncio ------------------------------------------------------------------------------------


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


# --- executors ----------------------------------------------------------------------------------


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
        assert executor._slots._free == 1
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


# --- what is left behind ------------------------------------------------------------------------


def test_nobody_holds_the_evaluation_or_the_tensor() -> None:
    x, op = held()
    x.eval_async()
    gc.collect()
    op.let_go.set()
    until(x.is_evaluated)
    y, op = held()
    node = weakref.ref(y._node)
    evaluation = y.eval_async()
    assert op.begun.wait(LONG)
    del y
    gc.collect()
    op.let_go.set()
    assert evaluation.wait(LONG).to_vec1() == [2.0]
    assert node() is not None
    del evaluation
    until(lambda: node() is None)


def test_nodes_are_freed_without_the_cycle_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        with AsyncExecutor(Device.Cpu, max_in_flight=4) as executor:
            alive: list[weakref.ref[Any]] = []
            for i in range(6):
                x = bad() if i == 5 else lazy(float(i)) * 2.0
                alive.append(weakref.ref(x._node))
                evaluation = executor.submit(x)
                alive.append(weakref.ref(evaluation))
                if i == 5:
                    with pytest.raises(InvalidIndexError):
                        evaluation.wait(LONG)
                else:
                    evaluation.wait(LONG)
                del x, evaluation
        before = busy()
        x = lazy() * 3.0
        alive.append(weakref.ref(x._node))
        evaluation = x.eval_async()
        alive.append(weakref.ref(evaluation))
        evaluation.cancel()
        release(before)
        del x, evaluation
        alive += [weakref.ref(pair[1]) for pair in before]
        del before
        alive.append(weakref.ref(executor))
        del executor
        until(lambda: [ref for ref in alive if ref() is not None] == [])
    finally:
        gc.enable()


def test_values_on_the_way_are_not_kept() -> None:
    x = lazy(*[0.5] * 4)
    inner = x * 3.0
    node = weakref.ref(inner._node)
    output = inner.exp()
    del inner
    output.eval_async().wait(LONG)
    until(lambda: node() is None)


def test_executors_leave_no_threads() -> None:
    for i in range(20):
        with AsyncExecutor(Device.Cpu) as executor:
            assert executor.submit(lazy(float(i)) * 2.0).wait(LONG).to_vec1() == [2.0 * i]
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("metal-candle-eval")]
    assert len(ours) <= 4


def run(program: str) -> str:
    """What a program prints, which has to end by itself, and well."""
    start = "import metal_candle as mc, sys, os, threading\nfrom metal_candle import LazyTensor, Tensor\n"
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_program_ends_with_work_in_flight() -> None:
    program = (
        "from metal_candle.graph import AsyncExecutor\n"
        "x = LazyTensor.randn(0.0, 1.0, (64, 64))\n"
        "y = x\n"
        "for i in range(200): y = y.matmul(x).tanh()\n"
        "ends = [y.eval_async(), (y + 1.0).eval_async()]\n"  # the second waits for the first
        "ends += [(x * float(i)).exp().eval_async() for i in range(200)]\n"
        "executor = AsyncExecutor('cpu', 1000)\n"
        "ends += [executor.submit(x * float(i)) for i in range(50)]\n"
        "ends[1].add_done_callback(lambda end: print('last', end.exception()))\n"
        "print('main')\n"
    )
    assert run(program).splitlines() == ["main", "last None"]


def test_the_program_ends_by_an_error_with_work_in_flight() -> None:
    program = (
        "x = LazyTensor.randn(0.0, 1.0, (64, 64))\n"
        "ends = [(x * float(i)).exp().eval_async() for i in range(100)]\n"
        "sys.exit(0)\n"
    )
    assert run(program) == ""


def test_evaluating_while_the_interpreter_ends() -> None:
    program = (
        "import atexit\n"
        "x = LazyTensor.new([1.0]) * 2.0\n"
        "LazyTensor.new([1.0]).exp().eval_async().wait()\n"
        "atexit.register(lambda: print(x.eval_async().wait().to_vec1()))\n"
    )
    assert run(program) == "[2.0]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with threads; Metal cannot")
def test_a_forked_process_has_workers_of_its_own() -> None:
    program = (
        "import warnings\n"
        "from metal_candle.graph import AsyncExecutor\n"
        "from metal_candle.tensor import workers\n"
        "workers.count = lambda device: 1\n"  # all of them are at work when it forks
        "warnings.simplefilter('ignore')\n"
        "go = threading.Event()\n"
        "class Held:\n"
        "    def infer(self, x): return x.shape, x.dtype\n"
        "    def forward(self, x): begun.set(); go.wait(30); return x + 1\n"
        "begun, executor = threading.Event(), AsyncExecutor('cpu', 1)\n"
        "x, y = LazyTensor.new([1.0]).apply_op1(Held()), LazyTensor.new([1.0]) * 2.0\n"
        "held = executor.submit(x)\n"
        "begun.wait(30)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    go.set()\n"
        "    try: held.wait()\n"
        "    except mc.Error as error: print(error)\n"
        "    print(executor.in_flight(), executor.submit(y).wait().to_vec1(), x.eval_async().wait().to_vec1())\n"
        "    sys.stdout.flush(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "go.set()\n"
        "print(held.wait().to_vec1())\n"
    )
    assert run(program).splitlines() == [
        "wait: the evaluation runs in the process that this one was forked from; evaluate again here",
        "0 [2.0] [2.0]",
        "[2.0]",
    ]
