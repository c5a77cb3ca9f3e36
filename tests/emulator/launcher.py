"""The back-end for ``custom.using`` that runs kernels on the CPU and reports what they do wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

from metal_candle.kernels import custom

import mlx.core as mx
import numpy as np

from . import native, toolchain
from .arrays import Bytes, Stored, loaded, stored
from .check import type_check
from .declared import element_bytes, padded, refuse_pointers
from .fault import Fault
from .generate import Generated, Parameter, metal_source
from .glue import run_source
from .native import Role
from .places import place

Order = Literal["forward", "backward", "shuffled"]
ORDERS: tuple[Order, ...] = ("forward", "backward", "shuffled")

MOST_THREADS = 1024
MOST_THREADGROUP_BYTES = 32 << 10
MOST_BUFFERS = 31

# The runtime keeps its fibres for the process, and runs one launch at a time.
_one_launch = threading.Lock()


class Emulator:
    """Launches programs on the CPU: threads as fibres, barriers and simdgroup operations honoured.

    ``order`` is that in which threads and threadgroups run; ``seed`` that of the shuffled one. ``checked`` reports
    every wrong access; without it only the machine's own protection does, at a fraction of the time. ``patience`` is
    how many seconds of processor time a threadgroup may go on. ``defines`` are macros for the run, to reach what a text
    holds for other back-ends; the type check does without them. ``type_check=False`` leaves that check out, for what
    its header does not know.
    A ``Fault`` is raised where a kernel does what it must not, ``RuntimeError`` without a compiler or where the cache
    folder cannot be written.
    """

    name = "emulator"
    trusted = True

    def __init__(
        self,
        order: Order = "forward",
        seed: int = 0,
        checked: bool = True,
        patience: float = 10.0,
        defines: tuple[str, ...] = (),
        type_check: bool = True,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"Emulator: got order {order!r}; takes one of {', '.join(ORDERS)}")
        if not patience > 0:
            raise ValueError(f"Emulator: got patience {patience}; takes seconds above 0")
        present, reason = toolchain.available()
        if not present:
            raise RuntimeError(f"Emulator: {reason}")
        self.order = order
        self.seed = seed
        self.checked = checked
        self.patience = patience
        self.defines = defines
        self.type_check = type_check

    def launch(self, program: custom.Program, inputs: Sequence[mx.array], how: custom.Launch) -> list[mx.array]:
        """The program's outputs. Raises ``Fault``."""
        mx.eval(*inputs)
        specs = tuple((tuple(array.shape), array.dtype) for array in inputs)
        threads, groups = _launchable(program, how)
        kernel = _kernel(program, program.body, program.header, specs, how, self.checked, self.defines, self.type_check)
        if kernel.loaded.threadgroup_bytes > MOST_THREADGROUP_BYTES:
            raise Fault(
                "launch",
                f"{program.name}: got {kernel.loaded.threadgroup_bytes} bytes of threadgroup memory; "
                f"takes up to {MOST_THREADGROUP_BYTES}",
            )
        kept = [stored(array, program.contiguous) for array in inputs]
        results = [np.empty(prod(s) * dtype.size, np.uint8) for s, dtype in zip(how.shapes, how.dtypes)]
        buffers = [
            _buffer(parameter, program, how, inputs, kept, results)
            for parameter in kernel.generated.parameters
            if parameter.kind != "attribute"
        ]
        with _one_launch:
            report = native.launch(
                kernel.loaded,
                buffers,
                groups,
                threads,
                ORDERS.index(self.order),
                self.checked,
                self.seed,
                self.patience,
            )
        if report.failed:
            raise Fault(report.kind.decode(), f"{program.name}: {place(report, kernel.loaded.path, kernel.generated)}")
        return [loaded(data, shape, dtype) for data, shape, dtype in zip(results, how.shapes, how.dtypes)]


class _Kernel(NamedTuple):
    generated: Generated
    loaded: native.Loaded


@lru_cache(maxsize=512)
def _kernel(
    program: custom.Program,
    body: str,  # programs of one name may differ in their text
    header: str,
    specs: tuple[tuple[tuple[int, ...], mx.Dtype], ...],
    how: custom.Launch,
    checked: bool,
    defines: tuple[str, ...],
    checked_types: bool,
) -> _Kernel:
    generated = metal_source(program, specs, how)
    names = [*zip(program.inputs, (dtype for _, dtype in specs)), *zip(program.outputs, how.dtypes)]
    if any(dtype == mx.complex64 for _, dtype in names):
        which = ", ".join(name for name, dtype in names if dtype == mx.complex64)
        raise Fault("type", f"{program.name}: got complex64 for {which}; the emulator takes no complex numbers")
    refuse_pointers(generated)
    # The two compilers run side by side; what the check says comes first.
    with ThreadPoolExecutor(1) as beside:
        building = beside.submit(toolchain.build_kernel, run_source(generated, defines), checked)
        if checked_types:
            type_check(generated)
    try:
        path = building.result()
    except Fault as fault:
        raise Fault(fault.kind, f"{program.name}: {fault}") from None
    template = dict(zip((name for name, _ in how.template), generated.template_arguments))
    elements = element_bytes(generated, template)
    return _Kernel(generated, native.load(toolchain.runtime(), path, elements, padded(generated)))


def _launchable(program: custom.Program, how: custom.Launch) -> tuple[custom.Triple, custom.Triple]:
    """The threads of a threadgroup and the threadgroups along each axis."""
    grid, group = how.grid, how.threadgroup
    if min(group) < 1:
        raise Fault("launch", f"{program.name}: got a threadgroup of {group} threads; takes at least 1 along each axis")
    if min(grid) < 0 or max(grid) >= 1 << 31:
        raise Fault("launch", f"{program.name}: got a grid of {grid} threads; takes 0 to 2**31 - 1 along each axis")
    if prod(group) > MOST_THREADS:
        raise Fault(
            "launch", f"{program.name}: got {prod(group)} threads in a threadgroup {group}; takes up to {MOST_THREADS}"
        )
    if any(all_ % one for all_, one in zip(grid, group)):
        raise Fault(
            "launch",
            f"{program.name}: got grid {grid}, no multiple of the threadgroup {group}; Metal trims the last "
            "threadgroup, CUDA does not",
        )
    x, y, z = (all_ // one for all_, one in zip(grid, group))
    return group, (x, y, z)


def _buffer(
    parameter: Parameter,
    program: custom.Program,
    how: custom.Launch,
    inputs: Sequence[mx.array],
    kept: Sequence[Stored],
    results: Sequence[Bytes],
) -> native.Argument:
    if parameter.output:
        index = program.outputs.index(parameter.array)
        role = Role.UNUSED_OUTPUT if parameter.array in how.unused else Role.OUTPUT
        return native.Argument(parameter.name, results[index], how.dtypes[index].size, role)
    index = program.inputs.index(parameter.array)
    array = inputs[index]
    if parameter.kind == "buffer":
        lies = kept[index]
        return native.Argument(parameter.name, lies.data, array.dtype.size, Role.INPUT, lies.first, lies.after)
    if parameter.kind == "strides":
        numbers = np.array(kept[index].strides, np.int64)
    else:
        numbers = np.array(array.shape if parameter.kind == "shape" else [array.ndim], np.int32)
    return native.Argument(parameter.name, numbers.view(np.uint8), numbers.itemsize, Role.INPUT)
