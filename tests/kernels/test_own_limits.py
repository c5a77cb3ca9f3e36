"""What launches refuse whatever the kernel: operands of several dtypes, grids and dims beyond what back-ends count."""

from __future__ import annotations

import re
from importlib.resources import files
from math import prod
from typing import Any

import metal_candle.kernels
from metal_candle.kernels import custom
from metal_candle.kernels.grouped_lora import Adapters

import mlx.core as mx
import pytest
from instantiations import SAMPLES, kernels, recorded

KERNELS = kernels()
# A mask is read as what it is, and a launch is instantiated for it.
OF_ANY_DTYPE = {("softmax", 2)}
OF_ONE_OPERAND = {"softmax", "log_softmax", "softcap", "cross_entropy", "picked_log_softmax"}


def is_floating(value: Any) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_operands_of_several_dtypes(name: str) -> None:
    own = KERNELS[name].own
    assert own is not None
    refused = 0
    for arguments in SAMPLES[name]():
        assert own.fits(*arguments) is None
        places = [i for i, value in enumerate(arguments) if is_floating(value) and (name, i) not in OF_ANY_DTYPE]
        for i in places if len(places) > 1 else []:
            for dtype in (mx.float32, mx.float16, mx.bfloat16):
                if dtype != arguments[i].dtype:
                    other = (*arguments[:i], arguments[i].astype(dtype), *arguments[i + 1 :])
                    assert own.fits(*other) is not None, (i, dtype)
                    refused += 1
    assert bool(refused) == (name not in OF_ONE_OPERAND)


def zeros(*shapes: tuple[int, ...]) -> list[mx.array]:
    """Recorded, never computed: they may be as large as one likes."""
    return [mx.zeros(shape) for shape in shapes]


ROWS = 2**31 - 1
LARGE: dict[str, list[tuple[Any, ...]]] = {
    "softmax": [(*zeros((rows, width)), 1.0, None) for rows, width in ((ROWS // 32, 1), (ROWS // 64, 600), (2**26, 2))],
    "log_softmax": [(*zeros((2**26, 4)),), (*zeros((2**22, 4096)),)],
    "softmax_backward": [(*zeros((2**26, 4), (2**26, 4)), 1.0, False)],
    "rms_norm": [(*zeros((rows, width)), None, 1e-5) for rows, width in ((ROWS // 8, 5), (ROWS // 64, 600))],
    "layer_norm": [(*zeros((2**30, 5)), None, None, 1e-5)],
    "add_rms_norm": [(*zeros((2**30, 5), (2**30, 5)), None, 1e-5)],
    "add_layer_norm": [(*zeros((2**30, 5), (2**30, 5)), None, None, 1e-5)],
    "softcap": [(*zeros((ROWS,)), 3.0), (*zeros((2**16, 2**16)), 3.0)],
    "swiglu": [(*zeros((ROWS,), (ROWS,)),), (*zeros((2**16, 2**16), (2**16, 2**16)),)],
    "rope": [
        (*zeros((1, 1, 2**15, 2**17), (2**15, 2**16), (2**15, 2**16)), False),
        (*zeros((2**17, 1, 1, 2), (1, 1), (1, 1)), False),
        (*zeros((1, 2**20, 1, 2), (1, 1), (1, 1)), False),
        (*zeros((2**15, 2**17, 1, 2), (1, 1), (1, 1)), False),
    ],
    "cross_entropy": [
        (*zeros((2**27, 40)), mx.zeros((2**27,), mx.int32), 0.0),
        (*zeros((2**23, 2000)), mx.zeros((2**23,), mx.int32), 0.0),
        (*zeros((2**20, 2000)), mx.zeros((2**20,), mx.int32), 0.0),
    ],
    "picked_log_softmax": [(*zeros((2**27, 40)), mx.zeros((2**27, 1), mx.int32))],
    "lora": [(*zeros((1, ROWS), (ROWS, 4), (4, 5)), 1.0), (*zeros((1, 5), (5, 4), (4, ROWS)), 1.0)],
    "add_lora": [(*zeros((1, ROWS), (1, 5), (5, 4), (4, ROWS)), 1.0)],
    "grouped_lora": [
        (*zeros((1, 5), (1, ROWS)), mx.zeros((1,), mx.int32), *zeros((4, ROWS), (4, 5)), Adapters((4,), (1.0,))),
        (*zeros((1, ROWS), (1, 5)), mx.zeros((1,), mx.int32), *zeros((4, 5), (4, ROWS)), Adapters((4,), (1.0,))),
        (*zeros((2**17, 5), (2**17, 5)), mx.zeros((2**17,), mx.int32), *zeros((4, 5), (4, 5)), Adapters((4,), (1.0,))),
    ],
}


def test_every_kernel_has_large_arguments() -> None:
    assert sorted(LARGE) == sorted(KERNELS)


@pytest.mark.parametrize("name", sorted(LARGE))
def test_grids(name: str) -> None:
    """A grid, rounded up to whole threadgroups, is counted in 32 bits, and has 2**16 - 1 of them along y and z."""
    refused = 0
    for arguments in LARGE[name]:
        why = reason(name, *arguments)
        if why is not None:
            refused += 1
            continue
        for _, _, how in recorded(KERNELS[name], *arguments):
            assert how.grid[0] <= custom.MOST_THREADS_OF_A_GRID
            for count, size in zip(how.grid[1:], how.threadgroup[1:]):
                assert count // size < 2**16
            assert prod(how.threadgroup) <= 1024
    assert refused


def reason(name: str, *arguments: Any) -> str | None:
    """Why the launch does not take them. Apart from an assertion, which would print, hence compute them."""
    own = KERNELS[name].own
    assert own is not None
    return own.fits(*arguments)


def test_bounds_to_the_thread() -> None:
    most = custom.MOST_THREADS_OF_A_GRID
    # Rows of up to 512 elements have a simdgroup each, four of which are beside each other along y.
    found = [reason("rms_norm", *zeros((rows, 5)), None, 1e-5) for rows in (most // 8, most // 8 + 1)]
    assert found == [None, f"{most // 8 + 1:,} rows are more than one launch takes"]
    found = [reason("softcap", *zeros((size,)), 2.0) for size in (most, most + 1)]
    assert found == [None, f"{most + 1} elements"]


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "softmax", "log_softmax"])
def test_dims(name: str) -> None:
    """CUDA's kernels get a shape as an array of ten."""
    more: tuple[Any, ...] = {"rms_norm": (None, 1e-5), "layer_norm": (None, None, 1e-5)}.get(name, ())
    for dims in (custom.MOST_DIMS, custom.MOST_DIMS + 1):
        found = reason(name, *zeros((1,) * (dims - 1) + (5,)), *more)
        assert found == (None if dims == custom.MOST_DIMS else f"{dims} dims")


SOURCES = [entry for entry in (files(metal_candle.kernels) / "source").iterdir() if entry.name.endswith(".metal")]
# A factor, a call or a word, before the size of a row.
PRODUCT = re.compile(r"((?:\w*\([^()]*\)|[\w.]+) \* (?:n|N|K|width|whole|\(2 \* pairs\)))(?!\w)")


def narrow_products(text: str) -> list[str]:
    """Products by the size of a row whose other factor is not of 64 bits: 32 do not count a large array's elements."""
    code = re.sub(r"//.*", "", text)
    wide = ["size_t", "int64_t", *re.findall(r"const (?:size_t|int64_t) (\w+) =", code)]
    found = PRODUCT.findall(code)
    return [product for product in found if not set(wide) & set(re.findall(r"\w+", product.split(" * ")[0]))]


@pytest.mark.parametrize("source", SOURCES, ids=lambda entry: str(entry.name))
def test_elements_are_counted_in_64_bits(source: Any) -> None:
    assert narrow_products(source.read_text("utf-8")) == []


def test_the_check_of_products_finds_one() -> None:
    assert narrow_products("auto line = x + row * n;") == ["row * n"]
    assert narrow_products("auto line = x + size_t(row) * n;\ny[(row + t) * N + n] = 0;") == ["(row + t) * N"]
    assert narrow_products("const int64_t row = at;\nauto line = x + row * width;  // not at * width") == []
    assert any(" * " in each for source in SOURCES for each in PRODUCT.findall(source.read_text("utf-8")))
