"""Executors, and the awaitable forms of evaluation."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor
from metal_candle.graph import AsyncExecutor, AsyncGraphExecutor, Operation

import numpy as np
import pytest

X = Tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("operation", "inputs", "want"),
    [
        (Operation.Matmul, [X, X], [[7.0, 10.0], [15.0, 22.0]]),
        (Operation.Add, [X, Tensor([1.0, 2.0])], [[2.0, 4.0], [4.0, 6.0]]),
        (Operation.Mul, [X, Tensor(2.0)], [[2.0, 4.0], [6.0, 8.0]]),
        (Operation.MulScalar(value=3.0), [X], [[3.0, 6.0], [9.0, 12.0]]),
        (Operation.LoRA(scale=2.0), [X, Tensor([[1.0], [1.0]]), Tensor([[1.0, 0.0]])], [[6.0, 0.0], [14.0, 0.0]]),
    ],
)
def test_operations(operation: Any, inputs: list[Tensor], want: list[list[float]]) -> None:
    result = AsyncExecutor(Device.Cpu).execute_operation(operation, inputs)
    assert isinstance(result, Tensor)
    assert result.to_vec2() == want


def test_operations_along_a_dim() -> None:
    executor = AsyncExecutor(Device.Cpu)
    np.testing.assert_allclose(executor.execute_operation(Operation.Softmax(dim=-1), [X]).sum(-1).numpy(), [1, 1], 1e-6)
    normed = executor.execute_operation(Operation.RMSNorm(eps=0.0), [X]).numpy()
    np.testing.assert_allclose((normed**2).mean(-1), [1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("operation", "count", "text"),
    [
        (Operation.Matmul, 1, "Matmul requires 2 inputs"),
        (Operation.Add, 3, "Add requires 2 inputs"),
        (Operation.Mul, 0, "Mul requires 2 inputs"),
        (Operation.MulScalar(value=1.0), 2, "MulScalar requires 1 input"),
        (Operation.Softmax(dim=0), 0, "Softmax requires 1 input"),
        (Operation.RMSNorm(eps=1e-5), 2, "RMSNorm requires 1 input"),
        (Operation.LoRA(scale=1.0), 2, "LoRA requires 3 inputs"),
        (Operation.Cat(0), 0, "Cat requires at least 1 input"),
        (Operation.Input, 0, "Cannot execute Input operation"),
    ],
)
def test_refusals(operation: Any, count: int, text: str) -> None:
    with pytest.raises(mc.Error, match=re.escape(text)):
        AsyncExecutor(Device.Cpu).execute_operation(operation, [X] * count)


@pytest.mark.parametrize(
    ("operation", "inputs", "text"),
    [
        ("add", [X, X], "execute_operation: got 'add'; takes an Operation"),
        (Operation.Add, None, "execute_operation: got None; takes a list of tensors"),
        (Operation.Add, [X, "x"], "execute_operation: got str for an operand; takes a tensor"),
        (Operation.MulScalar(value="x"), [X], "mul_scalar: got 'x' for value; takes a number"),
        (Operation.RMSNorm(eps="x"), [X], "rms_norm: got 'x' for eps; takes a number"),
        (Operation.Softmax(dim="x"), [X], "softmax: got 'x' for a dim; takes an integer"),
    ],
)
def test_arguments_of_other_types(operation: Any, inputs: Any, text: str) -> None:
    with pytest.raises(mc.ArgumentTypeError, match=f"^{re.escape(text)}"):
        AsyncExecutor(Device.Cpu).execute_operation(operation, inputs)


def test_an_executor_describes_itself() -> None:
    executor = AsyncExecutor()
    executor.synchronize()
    assert repr(AsyncExecutor(Device.Cpu)) == "AsyncExecutor(device=Device.Cpu)"
    assert executor.device == Device.default()
    graph = AsyncGraphExecutor(Device.Cpu)
    assert repr(graph) == "AsyncGraphExecutor(device=Device.Cpu)"
    assert graph.sync_executor().device == Device.Cpu


def test_awaiting() -> None:
    async def main() -> list[Tensor]:
        x = LazyTensor.from_tensor(X)
        executor = AsyncGraphExecutor(Device.Cpu)
        waiting = (x * 2.0).eval_async()
        return [await waiting, *await asyncio.gather(executor.execute_tensor(x + 1.0), (x - 1.0).eval_async())]

    doubled, more, less = asyncio.run(main())
    assert doubled.to_vec2() == [[2.0, 4.0], [6.0, 8.0]]
    assert more.to_vec2() == [[2.0, 3.0], [4.0, 5.0]]
    assert less.to_vec2() == [[0.0, 1.0], [2.0, 3.0]]
