"""Every instantiation of every program of ours: what the compilers' and the generators' tests go through.

They are recorded, not written down: each kernel is called, in both directions, with a stand-in for a GPU that keeps
what it is asked to launch. ``SAMPLES`` has the arguments that reach each combination of a kernel's template arguments,
with the most threads that the combination is launched with. Nothing is computed, so sizes are free.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import metal_candle.kernels
from metal_candle import settings
from metal_candle.kernels import custom
from metal_candle.kernels.grouped_lora import Adapters
from metal_candle.kernels.kernel import Kernel

import mlx.core as mx

Given = tuple[tuple[int, ...], mx.Dtype]
"""An input's shape and dtype."""

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class Instantiation(NamedTuple):
    """A launch without its arrays, and the name of a kernel that does it."""

    kernel: str
    program: custom.Program
    given: tuple[Given, ...]
    how: custom.Launch

    def __str__(self) -> str:
        values = [str(value).removeprefix("mlx.core.") for _, value in self.how.template]
        return " ".join([self.program.name, *values])


class _Recorder:
    """A back-end that launches nothing: it keeps what it is asked, and gives zeros."""

    name = "recorder"
    trusted = True

    def __init__(self) -> None:
        self.launches: list[tuple[custom.Program, tuple[Given, ...], custom.Launch]] = []

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        self.launches.append((program, tuple((array.shape, array.dtype) for array in inputs), how))
        return [mx.zeros(shape, dtype) for shape, dtype in zip(how.shapes, how.dtypes)]


def kernels() -> dict[str, Kernel]:
    """The kernels that have a launch of ours, by name."""
    modules = [
        importlib.import_module(f"{metal_candle.kernels.__name__}.{info.name}")
        for info in pkgutil.iter_modules(metal_candle.kernels.__path__)
    ]
    every = [value for module in modules for value in vars(module).values() if isinstance(value, Kernel)]
    return {kernel.name: kernel for kernel in every if kernel.own is not None}


@cache
def instantiations() -> tuple[Instantiation, ...]:
    """All of them, each once, with the most threads. Raises ``LookupError`` for a kernel without samples."""
    found: dict[Hashable, Instantiation] = {}
    for name, kernel in sorted(kernels().items()):
        if name not in SAMPLES:
            raise LookupError(f"instantiations: got kernel {name!r}; SAMPLES has {', '.join(sorted(SAMPLES))}")
        for arguments in SAMPLES[name]():
            for program, given, how in recorded(kernel, *arguments):
                # As far as MLX's text depends on the inputs: it has few elements in constant memory.
                inputs = tuple((dtype, len(shape) > 0, prod(shape) < 8) for shape, dtype in given)
                key = (program.name, inputs, how.template, how.dtypes)
                if key not in found or prod(found[key].how.threadgroup) < prod(how.threadgroup):
                    found[key] = Instantiation(name, program, given, how)
    return tuple(found.values())


def recorded(kernel: Kernel, *arguments: Any) -> list[tuple[custom.Program, tuple[Given, ...], custom.Launch]]:
    """What the kernel launches for these arguments, for its results and for all gradients."""
    recorder = _Recorder()
    with custom.using(recorder), settings.KERNELS.override("custom"):
        outputs = kernel.forward(*arguments)
        if kernel.own is None or kernel.last is None or kernel.last[0] != kernel.own.name:
            raise LookupError(f"{kernel.name}: got a sample that it does not launch; {kernel.last}")
        inputs, params = arguments[: kernel.arity], arguments[kernel.arity :]
        cotangents = tuple(mx.zeros_like(result) for result in outputs[: kernel.results])
        arrays = [*inputs, *[value for value in params if isinstance(value, mx.array)]]
        needs = [value is not None and mx.issubdtype(value.dtype, mx.floating) for value in arrays]
        kernel.vjp(cotangents if kernel.results > 1 else cotangents[0], inputs, outputs, needs, *params)
    return recorder.launches


def _zeros(dtype: mx.Dtype, *shapes: tuple[int, ...]) -> list[mx.array]:
    return [mx.zeros(shape, dtype) for shape in shapes]


def _lora(base: bool) -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for rows in (1, 2, 4, 8):
            shapes = ((rows, 300), (rows, 576), (576, 8), (8, 300))
            yield *_zeros(dtype, *shapes[not base :]), 0.5


def _grouped_lora() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        base, x, a, b = _zeros(dtype, (5, 300), (5, 576), (12, 576), (12, 300))
        yield base, x, mx.zeros((5,), mx.int32), a, b, Adapters((8, 4), (0.5, 2.0))
        # As many rows and adapters as make their ids, offsets and scales arrays in device memory.
        base, x, a, b = _zeros(dtype, (9, 300), (9, 576), (12, 576), (12, 300))
        yield base, x, mx.zeros((9,), mx.int32), a, b, Adapters((1,) * 8 + (4,), (0.5,) * 9)


def _softmax() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for width in SOFTMAX_WIDTHS:
            (x,) = _zeros(dtype, (2, 3, width))
            yield x, 0.5
            yield x, 0.5, "causal"
            for of_mask in {dtype, mx.float32, mx.bool_}:
                yield x, 0.5, mx.zeros((3, width), of_mask)


def _log_softmax() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for width in SOFTMAX_WIDTHS:
            yield (mx.zeros((2, 3, width), dtype),)


def _softmax_backward() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for width in SOFTMAX_WIDTHS:
            for log in (False, True):
                yield *_zeros(dtype, (5, width), (5, width)), 0.5, log


def _norm(residual: bool, beside: int) -> Iterator[tuple[Any, ...]]:
    """x, a residual, and each choice of rows beside it."""
    for dtype in FLOATS:
        given = _zeros(dtype, (3, 8192), (3, 8192))[: 1 + residual]
        for present in product((False, True), repeat=beside):
            yield *given, *[mx.zeros((8192,), dtype) if each else None for each in present], 1e-5


def _rope() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for interleaved in (False, True):
            yield *_zeros(dtype, (1, 5, 3, 8), (3, 4), (3, 4)), interleaved


def _row_losses() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        for shape in ((9, 1024), (2, 8193)):
            yield *_zeros(dtype, shape), mx.zeros(shape[:-1], mx.int32)


def _picked() -> Iterator[tuple[Any, ...]]:
    for x, ids in _row_losses():
        yield x, ids[:, None]


def _swiglu() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        yield tuple(_zeros(dtype, (3, 1024), (3, 1024)))


def _softcap() -> Iterator[tuple[Any, ...]]:
    for dtype in FLOATS:
        yield *_zeros(dtype, (3, 1024)), 30.0


# The largest of each number of elements that a thread may hold, for a simdgroup and for a threadgroup a row.
SOFTMAX_WIDTHS = (128, 256, 512, 2048, 4096, 8192)
SAMPLES: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "add_layer_norm": lambda: _norm(True, 2),
    "add_lora": lambda: _lora(True),
    "add_rms_norm": lambda: _norm(True, 1),
    "cross_entropy": _row_losses,
    "grouped_lora": _grouped_lora,
    "layer_norm": lambda: _norm(False, 2),
    "log_softmax": _log_softmax,
    "lora": lambda: _lora(False),
    "picked_log_softmax": _picked,
    "rms_norm": lambda: _norm(False, 1),
    "rope": _rope,
    "softmax": _softmax,
    "softmax_backward": _softmax_backward,
    "swiglu": _swiglu,
    "softcap": _softcap,
}
