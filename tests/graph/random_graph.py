"""Random graphs: a list of draws that is read as operations on a few leaves, by their shapes and dtypes alone.

So one program gives the same graph of lazy tensors of any float dtypes, of a function that is being compiled, and of
the float64 tensors whose results are nearly exact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from metal_candle import DType
from metal_candle.error import Error
from metal_candle.shape import broadcast_shapes

import numpy as np
from hypothesis import strategies as st
from spelled import SPELLED

NUMBERS = [1.0, 2.0, -1.0, 0.5, 3.0, 0.125, -0.75, 1.5, 0.0, -0.0, 1e-3, 7.0]
SHAPES = ((3, 4), (4, 4), (4,), (2, 3, 4), (4, 2), (2, 4))
FLOATS = (DType.F32, DType.F16, DType.BF16)
LARGEST = 96
"""Elements of a value; larger ones are not broadcast further."""

Step = tuple[int, int, int, int]
Make = Callable[[Any, Any, float, int], Any]
Rounding = Callable[[Any], Any]

steps = st.lists(
    st.tuples(
        st.integers(0, 999), st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 5]), st.integers(0, 99), st.integers(0, 99)
    ),
    min_size=5,
    max_size=40,
)


def _product(x: Any, y: Any) -> Any:
    """A product of two, whichever way round they fit."""
    for right in (y, y.t() if len(y.shape) > 1 else y):
        if len(x.shape) > 1 and len(right.shape) > 1 and x.shape[-1] == right.shape[-2]:
            try:
                return x.broadcast_matmul(right)
            except Error:
                pass
    return x + number_like(x)


def number_like(x: Any) -> float:
    """A number that depends on the shape only."""
    return 1.0 / (1 + len(x.shape))


def _grown(x: Any) -> Any:
    return x.broadcast_as((2, *x.shape)) if np.prod(x.shape) * 2 <= LARGEST and len(x.shape) < 4 else x


def _narrowed(x: Any, y: Any, number: float, k: int) -> Any:
    if not len(x.shape) or x.shape[k % len(x.shape)] < 2:
        return x
    dim = k % len(x.shape)
    part = x.narrow(dim, 1, x.shape[dim] - 1)
    return part.narrow(dim, 0, 1) if k % 3 == 0 else part


def _turned(x: Any, y: Any, number: float, k: int) -> Any:
    rank = len(x.shape)
    if rank < 2:
        return x
    return [x.t(), x.transpose(0, 1), x.permute(tuple(reversed(range(rank)))), x.t().t()][k % 4]


def _reshaped(x: Any, y: Any, number: float, k: int) -> Any:
    count = int(np.prod(x.shape))
    return x.reshape(
        [(count,), (1, count), (count, 1), tuple(x.shape), (2, count // 2) if count % 2 == 0 else (count,)][k % 5]
    )


def _squeezed(x: Any, y: Any, number: float, k: int) -> Any:
    if len(x.shape) > 3:
        return x.sum(0)
    wide = x.unsqueeze(k % (len(x.shape) + 1))
    return wide.squeeze(k % (len(x.shape) + 1)) if k % 2 else wide


UNARY: dict[str, Make] = {
    "turn": _turned,
    "turn_again": _turned,
    "reshape": _reshaped,
    "reshape_again": _reshaped,
    "squeeze": _squeezed,
    "narrow": _narrowed,
    "broadcast": lambda x, y, n, k: _grown(x),
    "affine": lambda x, y, n, k: x.affine(n, NUMBERS[k % len(NUMBERS)]),
    "scale": lambda x, y, n, k: x * n,
    "mul_scalar": lambda x, y, n, k: x.mul_scalar(n),
    "divide": lambda x, y, n, k: x / (n or 2.0),
    "shift": lambda x, y, n, k: x + n,
    "from": lambda x, y, n, k: n - x,
    "neg": lambda x, y, n, k: -x,
    "tanh": lambda x, y, n, k: x.tanh(),
    "silu": lambda x, y, n, k: x.silu(),
    "gelu": lambda x, y, n, k: x.gelu(),
    "exp": lambda x, y, n, k: x.tanh().exp(),
    "power": lambda x, y, n, k: [x.powf(2.0), x.powf(1.0), x.sqr().powf(0.5), x.abs().powf(0.5), x**3.0][k % 5],
    "softmax": lambda x, y, n, k: x.softmax(-1) if len(x.shape) else x,
    "log_softmax": lambda x, y, n, k: x.log_softmax(-1) if len(x.shape) else x,
    "sum": lambda x, y, n, k: x.sum_keepdim(k % len(x.shape)) if len(x.shape) else x,
    "mean": lambda x, y, n, k: x.mean_keepdim(k % len(x.shape)) if len(x.shape) else x,
    "contiguous": lambda x, y, n, k: x.contiguous(),
    "detach": lambda x, y, n, k: x.detach() if k % 4 == 0 else x.sin(),
}
BINARY: dict[str, Make] = {
    "add": lambda x, y, n, k: x + y,
    "add_again": lambda x, y, n, k: y + x * n,
    "sub": lambda x, y, n, k: x - y,
    "mul": lambda x, y, n, k: x * y,
    "gate": lambda x, y, n, k: x.silu() * y,
    "div": lambda x, y, n, k: x / (y.sqr() + 1.0),
}
KINDS = (*UNARY, *BINARY, "matmul", "to_dtype", *SPELLED, *SPELLED)


def draw_program(rng: random.Random, longest: int = 20) -> list[Step]:
    """A program of a generator, where a test wants the same ones each time."""
    return [
        (rng.randrange(1000), rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 5)), rng.randrange(100), rng.randrange(100))
        for _ in range(rng.randint(5, longest))
    ]


def build(program: Sequence[Step], leaves: Sequence[Any], wide: bool = False, rounding: Rounding | None = None) -> Any:
    """Every value of a program: the leaves, then one for each step.

    ``wide`` leaves dtypes as they are; ``rounding`` is applied to what each step makes.
    """
    values = list(leaves)
    for kind, back, b, k in program:
        name = KINDS[kind % len(KINDS)]
        x, y, number = values[-1 - back % len(values)], values[b % len(values)], NUMBERS[k % len(NUMBERS)]
        made = _step(name, x, y, number, k, wide)
        values.append(made if rounding is None or made is x else rounding(made))
    return values


def _step(name: str, x: Any, y: Any, number: float, k: int, wide: bool) -> Any:
    def to(t: Any, dtype: DType) -> Any:
        return t if wide else t.to_dtype(dtype)

    if name == "to_dtype":
        return to(x, FLOATS[k % 3])
    if name in UNARY:
        return UNARY[name](x, y, number, k)
    y = y if y.dtype is x.dtype else y.to_dtype(x.dtype)
    if name in SPELLED:
        made = SPELLED[name](x, y, number, k, to)
        return made if len(made.shape) <= 4 else made.sum(0)
    if name == "matmul":
        return _product(x, y)
    try:
        shape = broadcast_shapes(x.shape, y.shape, name)
    except Error:
        return x * y.mean_all().broadcast_as(x.shape)
    return BINARY[name](x, y, number, k) if np.prod(shape) <= LARGEST else x
