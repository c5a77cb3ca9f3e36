"""Rows of several adapters by MLX's operations: both ways, what is chosen, MLX's transformations of them."""

from __future__ import annotations

from typing import Any

from metal_candle.kernels.grouped_lora import _GATHERED, _ONE_BY_ONE, Adapters, grouped_lora
from metal_candle.kernels.variant import Variant

import mlx.core as mx
import numpy as np
import pytest
from launched import BACKWARD, DTYPES, FORWARD, assert_near, normal, wide

ways = pytest.mark.parametrize("way", [_ONE_BY_ONE, _GATHERED], ids=lambda way: way.name)
EQUAL = Adapters((3, 3, 3, 3), (0.5, -2.0, 1.0, 0.0))
# What is rounded at rank is summed there: twice the error of a single rounding.
TOLERANCE = {dtype: BACKWARD[dtype] if dtype != mx.float32 else FORWARD[dtype] for dtype in DTYPES}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Any:
    with mx.stream(mx.cpu):
        yield


def operands(
    leading: tuple[int, ...], ids: list[int], width: int, out: int, dtype: mx.Dtype = mx.float32, adapters: Any = EQUAL
) -> tuple[Any, ...]:
    """base, x, ids, A, B and the adapters."""
    total = sum(adapters.ranks)
    arrays = [normal(*leading, out), normal(*leading, width, key=1), normal(total, width, key=2)]
    base, x, a, b = (array.astype(dtype) for array in (*arrays, normal(total, out, key=3)))
    return base, x, mx.array(np.array(ids, np.int32)), a, b, adapters


def expect(way: Variant, arguments: tuple[Any, ...]) -> None:
    (got,) = way.forward(*arguments)
    dtype = arguments[0].dtype
    assert got.dtype == dtype
    want: Any = grouped_lora.reference(*[wide(value) for value in arguments])
    assert_near(got, want, TOLERANCE[dtype], way.name)


@ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_row_gets_its_adapter(way: Variant, dtype: mx.Dtype) -> None:
    expect(way, operands((6,), [3, 0, -1, 1, 4, 1], 33, 17, dtype))
    expect(way, operands((3, 5), [2, -7, 0], 16, 9, dtype))
    expect(way, operands((2, 2, 3), [1, 2], 7, 1, dtype))


@ways
def test_ranks_that_differ(way: Variant) -> None:
    adapters = Adapters((4, 1, 16, 0), (0.5, 2.0, -1.0, 1.0))
    for dtype in DTYPES:
        expect(way, operands((6,), [2, 1, 0, 4, 2, 3], 33, 17, dtype, adapters))
        expect(way, operands((3, 5), [1, 0, 2], 33, 17, dtype, adapters))


@ways
def test_what_an_adapter_of_another_rank_holds_reaches_no_other_row(way: Variant) -> None:
    adapters = Adapters((3, 1, 5), (0.5, 2.0, -1.0))
    base, x, ids, a, b, _ = operands((4,), [0, 1, 2, -1], 33, 17, adapters=adapters)
    (before,) = way.forward(base, x, ids, a, b, adapters)
    # The rows of the first are what others of less rank read in vain.
    a[0:3], b[0:3] = mx.nan, mx.inf
    (after,) = way.forward(base, x, ids, a, b, adapters)
    assert not bool(mx.isfinite(after[0]).any())
    assert bool((before[1:] == after[1:]).all())
    # An infinite row of x meets the zeros of no other adapter either.
    x[1] = mx.inf
    got, want = way.forward(base, x, ids, a, b, adapters)[0], grouped_lora.reference(base, x, ids, a, b, adapters)
    assert bool(mx.array_equal(got[1:], want[1:], equal_nan=True))


@ways
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_an_adapter_holds_reaches_no_other_row(way: Variant, dtype: mx.Dtype) -> None:
    base, x, ids, a, b, _ = operands((6,), [0, 1, 2, -1, 3, 9], 33, 17, dtype)
    (before,) = way.forward(base, x, ids, a, b, EQUAL)
    a[0:3], b[0:3], b[3:6] = mx.nan, mx.inf, -mx.inf  # adapters 0 and 1
    (after,) = way.forward(base, x, ids, a, b, EQUAL)
    assert not bool(mx.isfinite(after[:2]).any())
    for row in (2, 3, 4, 5):
        assert bool((before[row] == after[row]).all())
    for row in (3, 5):
        assert bool((after[row] == base[row]).all())
    x[3] = mx.nan  # of a row without adapter
    (again,) = way.forward(base, x, ids, a, b, EQUAL)
    assert bool(mx.array_equal(again, after, equal_nan=True))
    of_base = way.vjp(base, (base, x, ids, a, b), (again,), (True, False, False, False, False), EQUAL)[0]
    assert of_base is not None
    assert bool(mx.array_equal(of_base, base))


@ways
def test_ids_of_any_integers(way: Variant) -> None:
    base, x, _, a, b, _ = operands((4,), [0] * 4, 8, 5)
    many = Adapters((1,) * 200, (0.5,) * 200)
    for dtype in (np.int8, np.uint8, np.uint32, np.int64, np.uint64):
        largest = np.iinfo(dtype).max
        expect(way, (base, x, mx.array(np.array([3, largest, 0, 100], dtype)), a, b, EQUAL))
    # 200 - 256: of int8 no id is 200 away from it.
    ids = mx.array(np.array([-56, 127, 3, -1], np.int8))
    given = (base, x, ids, normal(200, 8), normal(200, 5), many)
    for (got,) in (way.forward(*given), (grouped_lora.reference(*given),)):
        for row in (0, 3):
            assert bool((got[row] == base[row]).all())
        assert not bool((got[1] == base[1]).all())


@ways
@pytest.mark.parametrize("leading", [(4,), (4, 3)], ids=str)
def test_gradients_and_transformations_of_mlx(
    way: Variant, leading: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, x, ids, a, b, adapters = operands(leading, [2, 0, -1, 3], 12, 7)
    monkeypatch.setattr(grouped_lora, "_select", lambda *_: (way, "a test"))

    def ours(*arrays: mx.array) -> mx.array:
        result: mx.array = grouped_lora(arrays[0], arrays[1], ids, arrays[2], arrays[3], adapters)
        return result

    def plain(*arrays: mx.array) -> mx.array:
        return grouped_lora.reference(arrays[0], arrays[1], ids, arrays[2], arrays[3], adapters)  # type: ignore[return-value]

    def slope(function: Any) -> Any:
        return mx.grad(lambda *arrays: mx.square(function(*arrays)).sum(), argnums=(0, 1, 2, 3))

    arrays = (base, x, a, b)
    ours(*arrays)
    assert grouped_lora.last == (way.name, "a test")
    for got, want in (
        (slope(ours), slope(plain)),
        (slope(mx.checkpoint(ours)), slope(plain)),
        (mx.compile(slope(ours)), slope(plain)),
        (lambda *arrays: mx.jvp(ours, arrays, arrays)[1], lambda *arrays: mx.jvp(plain, arrays, arrays)[1]),
    ):
        for one, other in zip(got(*arrays), want(*arrays)):
            assert_near(one, other, BACKWARD[mx.float32])
    several = normal(3, *x.shape, key=5)
    batched = mx.vmap(lambda x: ours(base, x, a, b))(several)
    assert_near(batched, mx.stack([plain(base, each, a, b) for each in several]), FORWARD[mx.float32])


@pytest.mark.parametrize(
    ("ranks", "leading", "ids", "name"),
    [
        ((8, 8), (4, 16), 4, "gathered"),
        ((8, 8), (4, 15), 4, "one by one"),
        ((8,) * 4, (17, 7), 17, "one by one"),
        ((8,) * 4, (17, 8), 17, "gathered"),
        ((8,) * 3, (5,), 5, "one by one"),
        ((8,) * 4, (5,), 5, "gathered"),
        ((32,) * 7, (5,), 5, "one by one"),
        ((32,) * 8, (5,), 5, "gathered"),
        ((8,) * 8 + (4,), (4, 64), 4, "gathered"),
        ((8, 4, 2, 2), (4, 64), 4, "gathered"),
        ((8, 4, 2), (4, 64), 4, "one by one"),
        ((32, 16, 8, 8) * 2, (4,), 4, "gathered"),
        ((32, 16, 8, 8) * 2, (5,), 5, "one by one"),
        ((32, 16, 8, 8), (1,), 1, "one by one"),
        ((8, 8), (0, 4), 0, "reference"),
        ((), (4, 4), 4, "reference"),
    ],
)
def test_the_rule(ranks: tuple[int, ...], leading: tuple[int, ...], ids: int, name: str) -> None:
    arguments = operands(leading, [0] * ids, 12, 5, adapters=Adapters(ranks, (1.0,) * len(ranks)))
    assert grouped_lora.choose(*arguments).name == name
    mx.eval(grouped_lora(*arguments))


def test_dtypes_that_differ_are_left_to_the_definition() -> None:
    base, x, *rest = operands((4,), [0, 1, 2, 3], 12, 5)
    assert grouped_lora.choose(base, x.astype(mx.float16), *rest).name == "reference"
    doubles = [array.astype(mx.float64) if array.dtype == mx.float32 else array for array in (base, x, *rest[:3])]
    assert grouped_lora(*doubles, EQUAL).dtype == mx.float64
