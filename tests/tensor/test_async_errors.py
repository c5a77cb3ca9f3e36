"""Asynchronous evaluation: cancellation and errors reach the one who waits."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor, Var, features, settings
from metal_candle.error import FeatureDisabledError, InvalidIndexError, NotEvaluatedError
from metal_candle.graph import AsyncExecutor, Evaluation, eval_all_async

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

    def told() -> int:
        gc.collect()
        return len(caplog.records)

    failed()
    until(lambda: told() > 0)  # the thread that evaluated may still hold it
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
    assert told() == 0
    repr(failed())
    until(lambda: told() > 0)  # to look at it is not to ask for its error
    assert told() == 1


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
