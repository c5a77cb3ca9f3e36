"""A result and the gradient of its weighted sum, for operations that are tested against plain loops."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, LazyTensor, Tensor, Var

import numpy as np

Array = np.ndarray[Any, Any]


def weights(shape: tuple[int, ...]) -> Array:
    """Small integers of both signs, the same for the same shape."""
    return np.asarray(np.arange(int(np.prod(shape))) * 5 % 7 - 3.0).reshape(shape)


def run(kind: Any, method: str, x: Array, *arguments: Any) -> tuple[Any, Any]:
    """The result, and the gradient of its sum weighted by ``weights``."""
    a = Var.new(x, Device.Cpu)
    y = getattr(a if kind is Tensor else LazyTensor.from_tensor(a), method)(*arguments)
    upstream = kind.new(weights(tuple(y.shape)), Device.Cpu).to_dtype(y.dtype)
    return y.numpy(), y.mul(upstream).sum_all().backward()[a].numpy()
