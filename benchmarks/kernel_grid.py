"""The sizes at which ``kernels.py`` measures, and their order.

An axis is a dict of sizes and how soon they matter; a case's level is the sum of its sizes', its dtype's and its
kernel's. So the coarse grid, and what the aims are about, comes first, and what is left out when the time is up is the
finest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import mlx.core as mx

Axis = Mapping[int, int]

GRADIENT = 3
"""Levels later that gradients come than results."""


@dataclass(frozen=True)
class Grid:
    """The sizes for a GPU, or for a CPU, where a kernel is a hundred times as slow and nothing is launched.

    ``tokens`` are those of the cases that have one model's shapes.
    """

    gpu: bool
    dtypes: Sequence[mx.Dtype]
    tokens: int = 128

    def levels(self) -> Iterator[tuple[mx.Dtype, int]]:
        """The dtypes, with how soon they matter: on a GPU the aims are about halves."""
        later = {mx.float32: 1, mx.bfloat16: 1} if self.gpu else {}
        return ((dtype, later.get(dtype, 0)) for dtype in self.dtypes)

    def sizes(self, gpu: Axis, cpu: Axis) -> Axis:
        """One of both."""
        return gpu if self.gpu else cpu

    def over(self, *axes: Axis) -> Iterator[tuple[mx.Dtype, list[int], int]]:
        """Each dtype with each combination of sizes, and the level of it."""
        for dtype, level in self.levels():
            for sizes in product(*axes):
                yield dtype, list(sizes), level + sum(axis[size] for axis, size in zip(axes, sizes))


def normal(dtype: mx.Dtype, *shape: int, scale: float = 1.0) -> mx.array:
    """Normal numbers."""
    return (mx.random.normal(shape) * scale).astype(dtype)
