"""A trial launches what the launch that it stands for does: the same text, as many threads, the same way through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metal_candle.kernels import custom
from metal_candle.kernels.grouped_lora import Adapters

import instantiations
import mlx.core as mx
import numpy as np
import pytest
from instantiations import FLOATS, Given, recorded

KERNELS = instantiations.kernels()
# Around every bound at which a launch changes.
WIDTHS = (1, 3, 7, 8, 33, 128, 129, 257, 512, 513, 768, 1024, 1025, 3000, 4096, 4097, 8192, 8193, 16384, 16387, 49152)
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 40, 255, 512, 1000, 2048, 5000)


def shapes() -> Iterator[tuple[int, int]]:
    """Rows and widths."""
    for i, width in enumerate(WIDTHS):
        for rows in ROWS if width < 9 else (*ROWS[i % 3 :: 3], 8):
            yield rows, width


def _zeros(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.zeros(shape, dtype)


def _norms(tensors: int, beside: int) -> Iterator[tuple[Any, ...]]:
    for rows, width in shapes():
        for given in range(beside + 1):
            row = [_zeros(width)] * given + [None] * (beside - given)
            yield *[_zeros(rows, width)] * tensors, *row, 1e-5


def _softmax() -> Iterator[tuple[Any, ...]]:
    for rows, width in shapes():
        x = _zeros(rows, width)
        yield x, 0.5
        yield x, 0.5, "causal"
        for shape in ((width,), (rows, width), (rows, 1), (1,), ()):
            yield x, 0.5, _zeros(*shape)
            yield x, 0.5, _zeros(*shape, dtype=mx.bool_)


def _losses(column: bool) -> Iterator[tuple[Any, ...]]:
    for rows, width in shapes():
        targets = _zeros(rows, dtype=mx.int64 if rows % 2 else mx.int32)
        yield _zeros(rows, width), targets[:, None] if column else targets


def _rope() -> Iterator[tuple[Any, ...]]:
    for lead in ((), (1,), (3,), (2, 5)):
        for rows, pairs in ((1, 1), (1, 3), (2, 3), (3, 2), (1, 8), (31, 4), (33, 5), (100, 16), (7, 32), (1000, 64)):
            for flag in (False, True):
                yield _zeros(*lead, rows, 2 * pairs), _zeros(rows, pairs), _zeros(rows, pairs), flag


def _flat(count: int, *params: Any) -> Iterator[tuple[Any, ...]]:
    for size in (1, 3, 7, 8, 9, 100, 255, 256, 257, 300, 1000, 1024, 1792, 1793, 2047, 2048, 2049, 10001):
        yield *[_zeros(size)] * count, *params


def _lora(base: int) -> Iterator[tuple[Any, ...]]:
    for rows in (1, 2, 3, 5, 8, 20):
        for width, rank, out in ((1, 1, 1), (2, 3, 2), (3, 2, 40), (576, 8, 576), (5000, 16, 300), (64, 256, 8)):
            full = _zeros(rows, out), _zeros(rows, width), _zeros(width, rank), _zeros(rank, out)
            yield *full[1 - base :], 0.5


def _grouped() -> Iterator[tuple[Any, ...]]:
    for rows in (1, 3, 7, 8, 20):
        for ranks in ((1,), (4, 3), (8,) * 9):
            for width, out in ((1, 1), (3, 2), (576, 300), (5000, 40)):
                total = sum(ranks)
                ids = _zeros(rows, dtype=mx.int32)
                arrays = _zeros(rows, out), _zeros(rows, width), ids, _zeros(total, width), _zeros(total, out)
                yield *arrays, Adapters(ranks, (0.5,) * len(ranks))


MORE = {
    "add_layer_norm": _norms(2, 2),
    "add_lora": _lora(1),
    "add_rms_norm": _norms(2, 1),
    "cross_entropy": _losses(False),
    "grouped_lora": _grouped(),
    "layer_norm": _norms(1, 2),
    "log_softmax": ((_zeros(*shape),) for shape in shapes()),
    "lora": _lora(0),
    "picked_log_softmax": _losses(True),
    "rms_norm": _norms(1, 1),
    "rope": _rope(),
    "softcap": _flat(1, 5.0),
    "softmax": _softmax(),
    "softmax_backward": ((_zeros(*shape), _zeros(*shape), 0.5, log) for shape in shapes() for log in (False, True)),
    "swiglu": _flat(2),
}


def as_compiled(launches: list[tuple[custom.Program, tuple[Given, ...], custom.Launch]]) -> list[Any]:
    """What is compiled and how many threads run it together, of each launch."""
    return [
        (
            program.name,
            program.contiguous,
            how.template,
            how.threadgroup,
            how.dtypes,
            how.unused,
            [(dtype, len(shape) > 0, int(np.prod(shape)) < 8) for shape, dtype in given],
        )
        for program, given, how in launches
    ]


@pytest.mark.parametrize("name", KERNELS)
def test_a_trial_launches_what_it_stands_for(name: str) -> None:
    kernel = KERNELS[name]
    assert kernel.own is not None
    stood_for: dict[Any, list[Any]] = {}
    for arguments in (*instantiations.SAMPLES[name](), *MORE[name]):
        trial = kernel.own.trial(*arguments)
        if trial.key not in stood_for:
            stood_for[trial.key] = as_compiled(recorded(kernel, *trial.arguments()))
        assert stood_for[trial.key] == as_compiled(recorded(kernel, *arguments)), arguments[:2]
    assert len(stood_for) >= len(FLOATS)
