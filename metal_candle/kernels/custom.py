"""Kernels of our own: a body in Metal's language, and the back-ends that launch it.

The same body runs on Apple's GPUs through ``mx.fast.metal_kernel`` and on NVIDIA's through ``mx.fast.cuda_kernel``,
where ``source/as_cuda.h`` spells Metal's names in CUDA. A test's back-end can stand in for both; see ``using``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, Protocol, Union

import mlx.core as mx

Template = tuple[tuple[str, Union[bool, int, mx.Dtype]], ...]
Triple = tuple[int, int, int]

SIMD = 32
"""Threads that run in step: a simdgroup of Metal's, a warp of CUDA's."""
MOST_THREADS_OF_A_GRID = 2**31 - 1024
"""Threads along an axis of a grid, which back-ends count in 32 bits, whole threadgroups and a step past the end too."""
MOST_GROUPS = 2**16 - 1
"""Threadgroups along the second and the third axis of a grid, on CUDA."""
MOST_DIMS = 10
"""Of an array whose shape a body reads, on CUDA."""


def source(name: str) -> str:
    """The text of a file in ``kernels/source``."""
    from importlib.resources import files  # a program that launches nothing does not wait for its import

    return (files(__package__) / "source" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Program:
    """The body of a kernel, ``source/<name>.metal``, with the names of its inputs and outputs.

    What several bodies call stands in ``source/shared.h``. A body keeps to what docs/adding_a_kernel.md says.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    contiguous: bool = True
    """Whether MLX copies inputs that are not row-contiguous. A body that reads strides says ``False``."""

    @cached_property
    def body(self) -> str:
        """The text of the body."""
        return source(f"{self.name}.metal")

    @cached_property
    def header(self) -> str:
        """What stands before the kernel on every back-end."""
        return source("shared.h")


@dataclass(frozen=True)
class Launch:
    """How a program is launched: everything but the program and the arrays.

    ``grid`` counts threads, as Metal does, and is a multiple of ``threadgroup`` in each axis. ``unused`` names outputs
    that this instantiation does not write: of one element, and thrown away.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[mx.Dtype, ...]
    grid: Triple
    threadgroup: Triple
    template: Template = ()
    unused: tuple[str, ...] = ()


class Backend(Protocol):
    """What launches programs. ``trusted`` where kernels need no trial before they are used."""

    name: str
    trusted: bool

    def launch(self, program: Program, inputs: Sequence[mx.array], how: Launch) -> list[mx.array]:
        """The program's outputs."""


class _Gpu:
    """MLX's own launcher of one platform."""

    trusted = False

    def __init__(self, name: str, make: Callable[[Program], Callable[..., list[mx.array]]]) -> None:
        self.name = name
        self._make = cache(make)

    def launch(self, program: Program, inputs: Sequence[mx.array], how: Launch) -> list[mx.array]:
        """The program's outputs, computed on the default stream."""
        return self._make(program)(
            inputs=list(inputs),
            output_shapes=list(how.shapes),
            output_dtypes=list(how.dtypes),
            grid=how.grid,
            threadgroup=how.threadgroup,
            template=list(how.template),
        )


def as_metal(program: Program) -> Any:
    """The program as ``mx.fast.metal_kernel``. Without Metal it can be exported, not called."""
    return mx.fast.metal_kernel(
        name=program.name,
        input_names=list(program.inputs),
        output_names=list(program.outputs),
        source=program.body,
        header=program.header,
        ensure_row_contiguous=program.contiguous,
    )


def as_cuda(program: Program) -> Any:
    """The program as ``mx.fast.cuda_kernel``. Raises ``RuntimeError`` without CUDA."""
    return mx.fast.cuda_kernel(
        name=program.name,
        input_names=list(program.inputs),
        output_names=list(program.outputs),
        source=program.body,
        header=cuda_header(program),
        ensure_row_contiguous=program.contiguous,
    )


def cuda_header(program: Program) -> str:
    """What stands before the kernel on CUDA: Metal's names, then what it stands there on every back-end."""
    return source("as_cuda.h") + program.header


_instead: ContextVar[Backend | None] = ContextVar("backend", default=None)


def _found() -> Backend | None:
    if mx.metal.is_available():
        return _Gpu("metal", as_metal)
    if mx.cuda.is_available():
        return _Gpu("cuda", as_cuda)
    return None


_PRESENT = _found()


def backend() -> Backend | None:
    """What launches our kernels in this context; ``None`` where MLX computes on the CPU."""
    instead = _instead.get()
    if instead is not None or _PRESENT is None:
        return instead
    # mx.stream() changes the default device too, so this is the stream in use.
    return None if mx.default_device().type is mx.cpu else _PRESENT


@contextmanager
def using(other: Backend) -> Iterator[None]:
    """Launch through ``other`` inside the block, whatever the device."""
    token = _instead.set(other)
    try:
        yield
    finally:
        _instead.reset(token)


def launch(program: Program, inputs: Sequence[mx.array], how: Launch) -> list[mx.array]:
    """The program's outputs from the back-end of this context. Raises ``RuntimeError`` if there is none."""
    on = backend()
    if on is None:
        raise RuntimeError(f"{program.name}: got the CPU; takes a GPU that Metal or CUDA drives")
    return on.launch(program, inputs, how)


@lru_cache(maxsize=256)
def scalar(value: float) -> mx.array:
    """A number as an input of shape ``(1,)``, float32. Kept: a loop asks for the same ones."""
    return mx.array([value], mx.float32)


def ceil_div(count: int, size: int) -> int:
    """How many parts of ``size`` hold ``count``."""
    return -(-count // size)
