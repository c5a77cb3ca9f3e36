"""Executors under metal-candle's names. Both compute in the calling thread, as the original's first one does."""

from __future__ import annotations

from collections.abc import Sequence

from ..device import Device
from ..error import TrainingError
from ..graph.node import record
from ..graph.operation import Operation
from .eager import Tensor
from .lazy import LazyTensor


class AsyncExecutor:
    """Runs single operations on eager tensors. metal-candle: ``metal_candle::graph::AsyncExecutor``."""

    def __init__(self, device: Device | None = None) -> None:
        self._device = device or Device.default()

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self._device

    def execute_operation(self, op: Operation, inputs: Sequence[Tensor]) -> Tensor:
        """The operation's value, computed when this returns; shapes broadcast where the operation's do.

        Raises ``TrainingError.Failed`` for ``Input``, ``ShapeMismatchError`` for a wrong number of tensors, and
        what the operation raises for tensors that do not fit.
        """
        if op == Operation.Input:
            raise TrainingError.Failed(reason="Cannot execute Input operation; it is a value already")
        op.check_arity(len(inputs))
        if not inputs:
            raise TrainingError.Failed(reason=f"{type(op).__name__} requires at least 1 input, got 0")
        return Tensor._from_node(record(op, tuple(tensor._node for tensor in inputs)))

    def synchronize(self) -> None:
        """Wait until the device's work is done."""
        self._device.synchronize()

    def __repr__(self) -> str:
        return f"AsyncExecutor(device={self._device})"


class AsyncGraphExecutor:
    """Evaluates lazy tensors behind an awaitable. metal-candle: ``metal_candle::graph::AsyncGraphExecutor``."""

    def __init__(self, device: Device | None = None) -> None:
        self._executor = AsyncExecutor(device)

    async def execute_tensor(self, tensor: LazyTensor) -> Tensor:
        """``tensor.eval()``: computed when it is awaited, without letting other tasks run meanwhile."""
        return await tensor.eval_async()

    def sync_executor(self) -> AsyncExecutor:
        """The executor of single operations."""
        return self._executor

    def __repr__(self) -> str:
        return f"AsyncGraphExecutor(device={self._executor.device})"
