"""Windows that slide over the last dims of an array: what convolutions and pools have in common.

An array is ``(batch, channels, *size)``; everything here is per spatial dim. A window has ``kernel`` elements,
``dilation`` apart; neighbouring windows start ``stride`` apart, the first one ``padding`` zeros before the array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Union

import mlx.core as mx

Sizes = tuple[int, ...]
Index = tuple[Union[EllipsisType, slice], ...]

# Elements of columns that are made in one piece, 4 MiB of float32: larger ones leave the processor's cache before
# they are read again. Measured on one x86-64 core, 8 images of 64 x 56 x 56 with 64 kernels of 3x3, in these pieces and
# in one: 62 and 71 ms forward, 45 and 77 the input's gradient, 40 and 66 the kernel's.
PIECE = 2**20


@dataclass(frozen=True)
class Windows:
    """How windows lie, one number per spatial dim."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Sizes

    def count(self, size: Sizes) -> Sizes:
        """How many whole windows fit in each dim; 0 or less if none does."""
        parts = zip(size, self.kernel, self.stride, self.dilation, self.padding)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in parts)

    def reach(self, count: Sizes) -> Sizes:
        """How much of the padded array ``count`` windows cover in each dim."""
        parts = zip(count, self.kernel, self.stride, self.dilation)
        return tuple((n - 1) * s + d * (k - 1) + 1 for n, k, s, d in parts)

    def elements(self, count: Sizes) -> Iterator[Index]:
        """For each element of a window, in row-major order, where ``count`` windows have it in the padded array."""
        for place in itertools.product(*map(range, self.kernel)):
            parts = zip(place, count, self.stride, self.dilation)
            yield spatial(slice(i * d, i * d + (n - 1) * s + 1, s) for i, n, s, d in parts)

    def padded(self, x: mx.array, count: Sizes) -> mx.array:
        """``x`` with zeros around it, cut or filled up to what ``count`` windows cover."""
        width = [(0, 0), (0, 0)]
        reaches = self.reach(count)
        for size, p, reach in zip(x.shape[2:], self.padding, reaches):
            width.append((p, max(reach - p - size, 0)))
        if any(before or after for before, after in width):
            x = mx.pad(x, width)
        return x[spatial(slice(0, reach) for reach in reaches)]

    def columns(self, x: mx.array, count: Sizes) -> mx.array:
        """The windows as columns: ``(b, c, *size)`` to ``(b, c · prod(kernel), prod(count))``."""
        b, c = x.shape[:2]
        if self._is_identity(x.shape[2:], count):
            return x.reshape(b, c, math.prod(count))
        # MLX strides over row-major arrays only; one that is row-major already is not copied.
        x = mx.contiguous(self.padded(x, count))
        steps = _row_major(x.shape)
        inside, between = self._steps(steps[2:])
        windows = mx.as_strided(x, (b, c, *self.kernel, *count), (*steps[:2], *inside, *between))
        return windows.reshape(b, c * math.prod(self.kernel), math.prod(count))

    def rows(self, x: mx.array, count: Sizes) -> mx.array:
        """The windows of the whole batch as rows, a window's channels last: ``(b, c, *size)`` to
        ``(b · prod(count), prod(kernel) · c)``."""
        b, c = x.shape[:2]
        # With the channels last, longer runs of elements are copied.
        x = mx.contiguous(mx.moveaxis(self.padded(x, count), 1, -1))
        steps = _row_major(x.shape)
        inside, between = self._steps(steps[1:-1])
        windows = mx.as_strided(x, (b, *count, *self.kernel, c), (steps[0], *between, *inside, 1))
        return windows.reshape(b * math.prod(count), math.prod(self.kernel) * c)

    def _steps(self, steps: list[int]) -> tuple[list[int], list[int]]:
        """How far apart a window's elements are, and windows, in an array whose neighbours are ``steps`` apart."""
        inside = [step * d for step, d in zip(steps, self.dilation)]
        return inside, [step * s for step, s in zip(steps, self.stride)]

    def placed_back(self, pieces: Iterable[mx.array], size: Sizes, count: Sizes) -> mx.array:
        """The adjoint of taking windows: for each element of a window a ``(b, c, *count)``, added where it came from.

        The result is ``(b, c, *size)``. Elements whose places have the same remainder by the stride are neighbours in
        an array of their own, so that they are added up as a whole; at last these arrays are interleaved. Adding into
        slices of the result instead copies all of it for each element, as MLX does not update a slice in place: 50 and
        19 ms for max pool's gradient in windows of 3 x 3, stride 2, of 8 x 64 x 56 x 56.
        """
        parts = zip(self.reach(count), size, self.padding, self.stride)
        cells = [-(-max(reach, n + p) // s) for reach, n, p, s in parts]
        apart: dict[Sizes, mx.array] = {}
        for place, piece in zip(itertools.product(*map(range, self.kernel)), pieces):
            at = [divmod(i * d, s) for i, d, s in zip(place, self.dilation, self.stride)]
            around = [(shift, n - m - shift) for (shift, _), n, m in zip(at, cells, count)]
            if any(before or after for before, after in around):
                piece = mx.pad(piece, [(0, 0), (0, 0), *around])
            phase = tuple(remainder for _, remainder in at)
            apart[phase] = apart[phase] + piece if phase in apart else piece
        return self._interleaved(apart)[spatial(slice(p, p + n) for p, n in zip(self.padding, size))]

    def _interleaved(self, apart: dict[Sizes, mx.array]) -> mx.array:
        """One array of those that hold every ``stride``-th element, named by where they start; zeros for the others."""
        zeros = mx.zeros_like(next(iter(apart.values())))
        for axis in reversed(range(len(self.stride))):
            starts = {phase[:axis] for phase in apart}
            step = self.stride[axis]
            if step > 1:
                stacked = {
                    start: mx.stack([apart.get((*start, i), zeros) for i in range(step)], axis=axis + 3)
                    for start in starts
                }
                apart = {start: array.flatten(axis + 2, axis + 3) for start, array in stacked.items()}
                zeros = mx.zeros_like(next(iter(apart.values())))
            else:
                apart = {start: apart[first] for start, first in ((start, (*start, 0)) for start in starts)}
        return apart[()]

    def columns_placed_back(self, columns: mx.array, size: Sizes, count: Sizes) -> mx.array:
        """``placed_back`` of what has the layout of ``columns``."""
        b, rows = columns.shape[:2]
        elements = math.prod(self.kernel)
        c = rows // elements
        if self._is_identity(size, count):
            return columns.reshape(b, c, *size)
        apart = columns.reshape(b, c, elements, *count)
        return self.placed_back((apart[:, :, i] for i in range(elements)), size, count)

    def _is_identity(self, size: Sizes, count: Sizes) -> bool:
        return (
            all(k == s == 1 and p == 0 for k, s, p in zip(self.kernel, self.stride, self.padding))
            and tuple(size) == count
        )


def spatial(slices: Iterable[slice]) -> Index:
    """An index of the last dims."""
    return (..., *slices)


def in_pieces(function: Callable[..., mx.array], per_sample: int, *arrays: mx.array) -> list[mx.array]:
    """``function`` of some samples of the arrays at a time, so that ``PIECE`` elements are in work at once.

    ``per_sample`` is how many elements ``function`` makes of a sample.
    """
    batch = arrays[0].shape[0]
    step = max(1, PIECE // max(per_sample, 1))
    results: list[mx.array] = []
    for start in range(0, batch, step):
        parts = [array[start : start + step] for array in arrays]
        if results:
            # One after the other: MLX may otherwise make the columns of all pieces first.
            parts = list(mx.depends(parts, [results[-1]]))
        results.append(function(*parts))
    return results


def _row_major(shape: Sizes) -> list[int]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return steps[::-1]
