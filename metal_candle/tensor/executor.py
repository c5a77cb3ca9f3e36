"""Asynchronous evaluation: executors under metal-candle's names, and what ``eval_async`` does."""

from __future__ import annotations

import asyncio
import operator
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent import futures
from dataclasses import fields
from types import TracebackType
from typing import Any, TypeVar, overload

from .. import features
from ..constructors import New
from ..device import Device, DeviceLike
from ..error import ArgumentTypeError, Error, NotEvaluatedError, TrainingError
from ..error.expect import a, expect
from ..error.text import described
from ..graph.node import GraphNode, current_trace, record
from ..graph.operation import Operation
from ..graph.operations.counts import number
from . import in_flight, workers
from .arguments import no_tensor
from .arguments import tensors as expect_tensors
from .base import TensorBase
from .eager import Tensor
from .evaluation import Evaluation
from .slots import Slots

A = TypeVar("A", bound="AsyncExecutor")


def eval_async(tensor: TensorBase) -> Evaluation[Tensor]:
    """Begin to evaluate without blocking: ``LazyTensor.eval_async`` as a function.

    Raises ``ArgumentTypeError`` for what is no tensor, ``NotEvaluatedError`` in a function that ``compile`` traces,
    ``FeatureDisabledError`` without the feature ``graph``.
    """
    return _begin(Evaluation(), _one("eval_async", tensor), False)


def eval_all_async(tensors: Iterable[TensorBase], *others: Any) -> Evaluation[list[Tensor]]:
    """Begin to evaluate several tensors in one go, as ``eval_all`` does, without blocking; gives their list.

    They are one evaluation: what they share is computed once, and an error of one is the error of all. Raises as
    ``eval_async``.
    """
    if others:
        raise ArgumentTypeError(f"eval_all_async: got {1 + len(others)} arguments; takes a list of tensors")
    return _begin(Evaluation(), _several("eval_all_async", tensors), True)


class AsyncExecutor(New):
    """Evaluates lazy tensors beside the caller, at most ``max_in_flight`` at once, waiting ones included:
    ``AsyncExecutor(max_in_flight=2)``.

    ``device`` says whose workers compute, one for each core of the CPU or one for a GPU; every executor of a device
    uses the same. A tensor is computed on its own device. ``max_in_flight`` is twice the number of workers if not
    given. As ``with`` or ``async with`` it is shut down at the end of the block, and what has not begun is cancelled if
    the block raises. Single operations on eager tensors it computes in the calling thread.

    metal-candle: ``metal_candle::graph::AsyncExecutor``.
    """

    def __init__(self, device: DeviceLike = None, max_in_flight: int | None = None) -> None:
        if isinstance(device, int):
            got = described(device)
            raise ArgumentTypeError(
                f"AsyncExecutor: got {got} for device; takes a device, a bound is max_in_flight={got}"
            )
        self._device = Device.of(device)
        self._max_in_flight = 2 * workers.count(self._device) if max_in_flight is None else _bound(max_in_flight)
        self._shut = False
        self._reset()
        _executors.add(self)

    def _reset(self) -> None:
        self._slots = Slots(self._max_in_flight)
        self._lock = threading.RLock()
        self._evaluations: set[Evaluation[Any]] = set()

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self._device

    @property
    def max_in_flight(self) -> int:
        """How many evaluations may be waiting or running at once."""
        return self._max_in_flight

    def in_flight(self) -> int:
        """How many evaluations are waiting or running now."""
        with self._lock:
            return sum(not evaluation.done() for evaluation in self._evaluations)

    @overload
    def submit(self, tensor: TensorBase) -> Evaluation[Tensor]: ...
    @overload
    def submit(self, tensor: Iterable[TensorBase]) -> Evaluation[list[Tensor]]: ...
    def submit(self, tensor: TensorBase | Iterable[TensorBase]) -> Evaluation[Any]:
        """Begin to evaluate a tensor, or several as ``eval_all`` does; blocks while ``max_in_flight`` are in flight.

        Under asyncio use ``execute``, which suspends instead. In a worker's own thread, as in a callback of an
        evaluation, it goes beyond the bound rather than wait for itself. What has its value takes no slot.

        Raises ``Error`` after ``shutdown``, ``ArgumentTypeError`` for what is no tensor, ``NotEvaluatedError`` in a
        function that ``compile`` traces, ``FeatureDisabledError`` without the feature ``graph``.
        """
        nodes, several = self._asked("submit", tensor)
        slot = _pending(nodes)
        if slot:
            (self._slots.take_beyond if workers.in_worker() else self._slots.take)()
        return self._start("submit", nodes, several, slot)

    @overload
    async def execute(self, tensor: TensorBase) -> Tensor: ...
    @overload
    async def execute(self, tensor: Iterable[TensorBase]) -> list[Tensor]: ...
    async def execute(self, tensor: TensorBase | Iterable[TensorBase]) -> Any:
        """The value of a tensor, or of several; suspends while ``max_in_flight`` are in flight.

        Raises as ``submit``.
        """
        nodes, several = self._asked("execute", tensor)
        slot = _pending(nodes)
        if slot:
            await self._slots.take_async()
        return await self._start("execute", nodes, several, slot)

    def _asked(self, op: str, tensor: Any) -> tuple[list[GraphNode], bool]:
        several = not isinstance(tensor, TensorBase)
        if several and (isinstance(tensor, (str, bytes, dict)) or not isinstance(tensor, Iterable)):
            raise no_tensor(op, tensor, "a tensor or a list of them")
        nodes = (_several if several else _one)(op, tensor)
        if self._shut:
            raise _shut_down(op)
        return nodes, several

    def _start(self, op: str, nodes: list[GraphNode], several: bool, slot: bool) -> Evaluation[Any]:
        """Begin; the slot that was taken is given back when the evaluation is over."""
        evaluation: Evaluation[Any] = Evaluation()
        if slot:
            with self._lock:
                shut = self._shut
                self._evaluations.add(evaluation)
            evaluation.add_done_callback(self._over)
            if shut:
                evaluation.cancel()
                raise _shut_down(op)
        try:
            return _begin(evaluation, nodes, several, self._device)
        except BaseException:  # an interrupt too: the slot must come back; raised again
            evaluation.cancel()
            raise

    def _over(self, evaluation: futures.Future[Any]) -> None:
        with self._lock:
            self._evaluations.discard(evaluation)
        self._slots.give()

    def execute_operation(self, op: Operation, inputs: Sequence[Tensor]) -> Tensor:
        """The operation's value, computed when this returns; shapes broadcast where the operation's do.

        Raises ``TrainingError.Failed`` for ``Input``, ``ShapeMismatchError`` for a wrong number of tensors,
        ``ArgumentTypeError`` for what is no operation, no tensor or no number, and what the operation raises for
        tensors that do not fit.
        """
        expect("execute_operation", op, a(Operation))
        inputs = expect_tensors("execute_operation", inputs)
        if op == Operation.Input:
            raise TrainingError.Failed(reason="Cannot execute Input operation; it is a value already")
        op.check_arity(len(inputs))
        if not inputs:
            raise TrainingError.Failed(reason=f"{type(op).__name__} requires at least 1 input, got 0")
        for field in fields(op):
            if field.type == "float":  # what infer does not look at
                number(op.name(), field.name, getattr(op, field.name))
        return Tensor._from_node(record(op, tuple(tensor._node for tensor in inputs)))

    def synchronize(self) -> None:
        """Wait until what was submitted is over and the device's work is done; errors stay with their evaluations.

        Raises ``Error`` in a worker's own thread.
        """
        self._wait("synchronize")
        self._device.synchronize()

    def shutdown(self, wait: bool = True, cancel_pending: bool = False) -> None:
        """Take nothing more; who waits for a slot gets an ``Error``. May be called again.

        ``wait`` blocks until what is in flight is over, and raises ``Error`` in a worker's own thread;
        ``cancel_pending`` cancels what has not begun.
        """
        with self._lock:
            self._shut = True
            evaluations = list(self._evaluations)
        self._slots.close()
        if cancel_pending:
            for evaluation in evaluations:
                evaluation.cancel()
        if wait:
            self._wait("shutdown")

    def _wait(self, op: str) -> None:
        with self._lock:
            evaluations = list(self._evaluations)
        if evaluations and workers.in_worker():
            raise Error(f"{op}: an evaluation waits for others, whose thread it may be using; call it elsewhere")
        futures.wait(evaluations)

    def __enter__(self: A) -> A:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(cancel_pending=kind is not None)

    async def __aenter__(self: A) -> A:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=False, cancel_pending=kind is not None)
        with self._lock:
            bells = [evaluation._bell() for evaluation in self._evaluations]
        if bells:
            await asyncio.wait(bells)

    def __repr__(self) -> str:
        return f"AsyncExecutor(device={self._device})"


class AsyncGraphExecutor(New):
    """Evaluates lazy tensors behind an awaitable. metal-candle: ``metal_candle::graph::AsyncGraphExecutor``."""

    def __init__(self, device: DeviceLike = None, max_in_flight: int | None = None) -> None:
        self._executor = AsyncExecutor(device, max_in_flight)

    async def execute_tensor(self, tensor: TensorBase) -> Tensor:
        """The value; other tasks run while it is computed. Raises as ``AsyncExecutor.submit``."""
        return await self._executor.execute(tensor)

    def sync_executor(self) -> AsyncExecutor:
        """The executor behind it."""
        return self._executor

    def __repr__(self) -> str:
        return f"AsyncGraphExecutor(device={self._executor.device})"


def _bound(max_in_flight: Any) -> int:
    try:
        bound = 0 if isinstance(max_in_flight, bool) else operator.index(max_in_flight)
    except TypeError:
        bound = 0
    if bound < 1:
        raise Error(f"AsyncExecutor: got {described(max_in_flight)} for max_in_flight; takes an integer from 1 up")
    return bound


def _shut_down(op: str) -> Error:
    return Error(f"{op}: the executor was shut down; takes tensors before that")


def _one(op: str, tensor: Any) -> list[GraphNode]:
    if not isinstance(tensor, TensorBase):
        raise no_tensor(op, tensor)
    return _nodes(op, [tensor])


def _several(op: str, tensors: Any) -> list[GraphNode]:
    return _nodes(op, expect_tensors(op, tensors))


def _nodes(op: str, tensors: Sequence[TensorBase]) -> list[GraphNode]:
    features.require("graph")
    nodes = [tensor._node for tensor in tensors]
    trace = current_trace()
    if trace is not None and _pending(nodes):
        raise NotEvaluatedError(
            f"{op}: a function that {trace.by} is tracing cannot look at values; return them instead"
        )
    return nodes


def _pending(nodes: Sequence[GraphNode]) -> bool:
    return any(node.value is None for node in nodes)


def _begin(
    evaluation: Evaluation[Any], nodes: list[GraphNode], several: bool, device: Device | None = None
) -> Evaluation[Any]:
    """``evaluation``, in a worker of ``device``, or of the first node's; over at once if every value is there."""

    def value() -> Tensor | list[Tensor]:
        tensors = [Tensor._from_node(node) for node in nodes]
        return tensors if several else tensors[0]

    if _pending(nodes):
        in_flight.begin(evaluation, nodes, device or nodes[0].device, value)
    else:
        evaluation.set_result(value())
    return evaluation


_executors: weakref.WeakSet[AsyncExecutor] = weakref.WeakSet()


def _after_fork() -> None:
    """What was in flight stays in the process that was forked."""
    for executor in _executors:
        executor._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
