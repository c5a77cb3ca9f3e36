"""Programs for tests, whose body is given in the test."""

from __future__ import annotations

from dataclasses import dataclass

from metal_candle.kernels import custom

import mlx.core as mx


@dataclass(frozen=True)
class Given(custom.Program):
    """A program whose body and header are given, not read from a file."""

    body: str = ""
    header: str = ""


def how(
    *outputs: tuple[tuple[int, ...], mx.Dtype],
    grid: int | custom.Triple = 32,
    threadgroup: int | custom.Triple = 32,
    template: custom.Template = (),
    unused: tuple[str, ...] = (),
) -> custom.Launch:
    """A launch with outputs of these shapes and dtypes; a number is the length of the first axis."""
    sizes = [(n, 1, 1) if isinstance(n, int) else n for n in (grid, threadgroup)]
    shapes, dtypes = tuple(shape for shape, _ in outputs), tuple(dtype for _, dtype in outputs)
    return custom.Launch(shapes, dtypes, sizes[0], sizes[1], template, unused)
