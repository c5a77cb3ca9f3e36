"""Small arguments for trials, and what tells the launches apart that one trial stands for."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import mlx.core as mx
import numpy as np

from .custom import SIMD, Launch

CONSTANT = 8
"""MLX passes arrays of fewer elements by another address space: another text, hence another program."""


def is_small(*shape: int) -> bool:
    """Whether an array of this shape is passed by that address space."""
    return prod(shape) < CONSTANT


def instantiation(how: Launch, *inputs: tuple[tuple[int, ...], mx.Dtype]) -> tuple[Hashable, ...]:
    """What a launch shares with the trial that stands for it, its inputs given by shape and dtype.

    Not what it does with those beyond it, such as whether a row is read again: a trial's key has that besides.
    """
    return (how.template, how.threadgroup, how.dtypes, *[(is_small(*shape), dtype) for shape, dtype in inputs])


def length_like(size: int, each: int, most: int) -> int:
    """A small length for which as many threads of ``each`` elements are launched as for ``size``, up to ``most``.

    A multiple of 4 where ``size`` is one, since other lengths have other loads; of the largest threadgroup two.
    """
    if size < CONSTANT:
        return size
    simdgroups = -(-size // (each * SIMD))
    whole = min(simdgroups - 1, most // SIMD)
    return each * SIMD * whole + each * SIMD // 2 + (3 if size % 4 else 4)


def normal(shape: tuple[int, ...], dtype: mx.Dtype, key: int = 0) -> mx.array:
    """Normal numbers, the same for the same key; independent of those of another."""
    return mx.array(np.random.default_rng(key).normal(size=shape).astype(np.float32)).astype(dtype)
