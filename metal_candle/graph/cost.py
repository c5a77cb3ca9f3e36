"""What a graph costs: FLOPs and bytes by the records' own estimates, and from these the time on a CPU, roughly.

Nothing is computed or measured here: everything follows from shapes and dtypes. ``work.py`` says what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..dtype import DType
from .operation import Meta, Metas, Operation
from .work import Work

# Nanoseconds for an element, one thread: MLX 0.32.4's CPU back-end and the kernels of this package on two x86-64
# cores, 2026-11-21; medians of 7 alternating runs of eager operations on 1024 x 1024 float32 elements. Where the
# members of a kind differ, the value lies between them: exponential is 3.1 (log) to 8.1 (gelu_erf), elementary 11.2
# (round) to 20.7 (bilinear upsampling), select 1.9 (gather) to 5.8 (where_cond), softmax 5.8, but 15.5 for
# log_sum_exp; arithmetic 0.4 to 0.7, but 1.7 for sqrt.
NANOSECONDS: dict[Work, float] = {
    "view": 0.0,
    "product": 0.0,
    "move": 0.6,
    "select": 4.0,
    "scatter": 30.0,
    "arithmetic": 0.5,
    "reduction": 1.0,
    "norm": 3.0,
    "exponential": 6.0,
    "softmax": 6.0,
    "elementary": 16.0,
    "sort": 7.0,
    "random": 8.0,
    "normal": 28.0,
}
# What copies elements takes as long for every dtype; what computes with them, so much longer for F16, which these
# cores convert, and for F64, of which a register holds half as many. BF16 takes up to half as long again as F32, and
# four times as long for maxima.
F16_MORE = 4.0
F64_FACTOR = 2.0
_COPIES = ("view", "product", "move", "select", "scatter", "sort", "random", "normal")
# The product of two 1024 x 1024 float32 matrices on both cores with OpenBLAS came to 127 GFLOP/s; smaller ones are
# slower. A copy of 4 MiB moved 16 GB/s, which bounds the product of a matrix and a vector.
PRODUCT_FLOPS_PER_SECOND = 100e9
BYTES_PER_SECOND = 16e9


class Recorded(Protocol):
    """An operation with its inputs: a ``GraphNode`` or a term. A leaf has no inputs."""

    @property
    def operation(self) -> Operation | None: ...

    @property
    def inputs(self) -> Sequence[Recorded]: ...

    @property
    def meta(self) -> Metas: ...


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes read and written. Costs add up with ``+``."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __str__(self) -> str:
        """Decimal multiples: "12.6 MFLOP, 3.1 MB"."""
        return f"{_scaled(self.flops)}FLOP, {_scaled(self.bytes)}B"


def _scaled(number: float) -> str:
    """A number with the prefix of its unit: "12.6 M"; plain below 1000: "12 "."""
    power = 0
    while number >= 999.95 and power < 5:  # what would be rounded to 1000.0 has the next prefix
        number, power = number / 1000, power + 1
    return f"{number:.1f} {' kMGTP'[power]}" if power else f"{number:.0f} "


def cost_of(node: Recorded) -> Cost:
    """What computing a node costs, whether it has its value or not; nothing for what has no inputs (any more)."""
    if node.operation is None or not node.inputs:
        return Cost()
    inputs = _metas(node)
    return Cost(node.operation.flops(inputs, node.meta), node.operation.traffic(inputs, node.meta))


def cost_of_all(nodes: Iterable[Recorded]) -> Cost:
    """What computing these nodes costs; not what they depend on, unless it is among them."""
    return sum(map(cost_of, nodes), Cost())


def uses_blas(node: Recorded) -> bool:
    """Whether most of its time goes to matrix products, which are spread over several threads already."""
    return node.operation is not None and bool(node.inputs) and node.operation.uses_blas()


def element_work(node: Recorded) -> float:
    """Nanoseconds that one thread of MLX's CPU back-end spends on a node's elements, matrix products left out.

    Roughly: of the 48 operations that ``NANOSECONDS`` was read from, the F32 ones came out within a factor of 3, but
    for sqrt, the cast to F16 and a sum over the first of two dims; in F64 the casts to halves take 16 times as long,
    and ``gelu_erf`` 20 times. The microseconds that MLX takes for a call are not in it.
    """
    if node.operation is None or not node.inputs:
        return 0.0
    inputs = _metas(node)
    work, count = node.operation.steps(inputs, node.meta)
    each = NANOSECONDS[work]
    if work not in _COPIES:
        dtype = _first(inputs[0]).dtype
        each = each + F16_MORE if dtype is DType.F16 else each * F64_FACTOR if dtype is DType.F64 else each
    return each * count


def seconds(nodes: Iterable[Recorded]) -> float:
    """The time to compute these nodes one after the other on a CPU, roughly.

    Products run at what all cores give, or at what memory gives where that is less; the rest is ``element_work``.
    """
    total = 0.0
    for node in nodes:
        total += element_work(node) * 1e-9
        if uses_blas(node):
            cost = cost_of(node)
            total += max(cost.flops / PRODUCT_FLOPS_PER_SECOND, cost.bytes / BYTES_PER_SECOND)
    return total


def _metas(node: Recorded) -> list[Metas]:
    return [source.meta for source in node.inputs]


def _first(metas: Metas) -> Meta:
    return metas if isinstance(metas, Meta) else metas[0]
