"""The launch for rows of different adapters: values, ids, layouts, odd numbers, gradients, MLX's transformations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_candle import features, settings
from metal_candle.kernels.grouped_lora import MOST_ROWS, PROGRAM, Adapters, _plan, grouped_lora
from metal_candle.kernels.lora_launch import MOST_RANK

import mlx.core as mx
import numpy as np
import pytest
from exporting import Exporting
from launched import BACKWARD, DTYPES, FORWARD, WIDTHS, assert_near, check, check_gradients, launched, normal
from slope import central_differences

FOUR = Adapters((4, 16, 1, 9), (0.5, -2.0, 1.0, 3.0))


def operands(
    leading: tuple[int, ...], width: int, adapters: Adapters, out: int, dtype: mx.Dtype = mx.float32, seed: int = 0
) -> list[Any]:
    """base, x, ids of all adapters and of none, A and B, and the adapters."""
    total, count = sum(adapters.ranks), len(adapters.ranks)
    ids = np.random.default_rng(seed).integers(-1, count + 1, leading).astype(np.int32)
    base, x = normal(*leading, out, dtype=dtype), normal(*leading, width, dtype=dtype, key=1)
    a, b = normal(total, width, dtype=dtype, key=2), normal(total, out, dtype=dtype, key=3)
    return [base, x, mx.array(ids), a, b, adapters]


def by_row(base: Any, x: Any, ids: Any, a: Any, b: Any, adapters: Adapters) -> Any:
    """Each row by itself, in float64."""
    base, x, ids, a, b = (np.array(each.astype(mx.float32), np.float64) for each in (base, x, ids, a, b))
    ends = np.cumsum(adapters.ranks)
    for row in np.ndindex(*x.shape[:-1]):
        adapter = int(ids[row])
        if 0 <= adapter < len(ends):
            own = slice(ends[adapter] - adapters.ranks[adapter], ends[adapter])
            base[row] += adapters.scales[adapter] * (a[own] @ x[row]) @ b[own]
    return mx.array(base.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 33, 70])
def test_rows(device: str, rows: int, dtype: mx.Dtype) -> None:
    arguments = operands((rows,), 65, FOUR, 37, dtype)
    check(grouped_lora, arguments[:5], FOUR)
    assert_near(grouped_lora.forward(*arguments)[0], by_row(*arguments), FORWARD[dtype])


def test_the_definition_is_each_row_by_itself() -> None:
    arguments = operands((70,), 65, FOUR, 37)
    assert_near(grouped_lora.reference(*arguments), by_row(*arguments), FORWARD[mx.float32])


@pytest.mark.parametrize("ranks", [(1,), (256, 1), (3, 8, 31, 127), (5,) * 9, (64, 255, 33)], ids=str)
def test_ranks(device: str, ranks: tuple[int, ...]) -> None:
    adapters = Adapters(ranks, tuple(0.25 * (1 + i) for i in range(len(ranks))))
    check(grouped_lora, operands((6,), 70, adapters, 33)[:5], adapters)


@pytest.mark.parametrize("width", WIDTHS)
def test_widths(device: str, width: int) -> None:
    check(grouped_lora, operands((3,), width, FOUR, 127)[:5], FOUR)
    check(grouped_lora, operands((3,), 31, FOUR, width)[:5], FOUR)


def test_leading_dims_and_ids_of_fewer(device: str) -> None:
    for leading in ((), (3,), (2, 3), (2, 1, 2)):
        base, x, ids, a, b, _ = operands(leading, 33, FOUR, 7)
        check(grouped_lora, [base, x, ids, a, b], FOUR)
        for dims in range(len(leading)):
            check(grouped_lora, [base, x, ids[(..., *[0] * (len(leading) - dims))], a, b], FOUR)


@pytest.mark.parametrize("dtype", [mx.int8, mx.uint8, mx.int16, mx.uint16, mx.uint32, mx.int64, mx.uint64], ids=str)
def test_ids_of_any_integers(device: str, dtype: mx.Dtype) -> None:
    base, x, _, a, b, _ = operands((5,), 12, FOUR, 6)
    largest = mx.iinfo(dtype).max
    far = 2**32 + 1 if dtype in (mx.int64, mx.uint64) else 100  # cut to 32 bits it would be adapter 1
    ids = mx.array(np.array([3, largest, 0, far, 1], str(dtype).removeprefix("mlx.core.")))
    check(grouped_lora, [base, x, ids, a, b], FOUR)
    (got,) = grouped_lora.forward(base, x, ids, a, b, FOUR)
    for row in (1, 3):
        np.testing.assert_array_equal(np.array(got[row]), np.array(base[row]))


def test_a_row_without_adapter_keeps_its_base_to_the_bit(device: str) -> None:
    base, x, _, a, b, _ = operands((4,), 12, FOUR, 6)
    base[1] = mx.array([-0.0, mx.inf, mx.nan, 1e-38, -3e38, 0.0])
    x[1] = mx.nan
    ids = mx.array([0, -1, 4, 1], mx.int32)
    for forward in (grouped_lora.forward, lambda *arguments: (grouped_lora.reference(*arguments),)):
        (got,) = forward(base, x, ids, a, b, FOUR)
        for row in (1, 2):
            assert np.array(got[row]).tobytes() == np.array(base[row]).tobytes()


def test_what_an_adapter_holds_reaches_no_other_row(device: str) -> None:
    base, x, _, a, b, _ = operands((4,), 12, FOUR, 6)
    ids = mx.array([0, 1, 2, -1], mx.int32)
    want = grouped_lora.reference(base, x, ids, a, b, FOUR)
    a[4:20], b[4:20] = mx.nan, mx.inf  # adapter 1
    check(grouped_lora, [base, x, ids, a, b], FOUR)
    (got,) = grouped_lora.forward(base, x, ids, a, b, FOUR)
    assert bool(mx.isnan(got[1]).all())
    for row in (0, 2, 3):
        assert_near(got[row], want[row], FORWARD[mx.float32])


def test_the_gradient_of_base_is_the_cotangent_whatever_adapters_hold(device: str) -> None:
    base, x, _, a, b, _ = operands((4,), 12, FOUR, 6)
    ids = mx.array([0, 1, 2, -1], mx.int32)
    a[4:20], b[4:20], x[3] = mx.nan, mx.inf, mx.nan
    cotangent = normal(4, 6, key=5)
    for function in (grouped_lora, grouped_lora.reference):
        (_, (found,)) = mx.vjp(lambda base, f=function: f(base, x, ids, a, b, FOUR), [base], [cotangent])
        np.testing.assert_array_equal(np.array(found), np.array(cotangent))


def test_views_are_read_where_they_are(device: str) -> None:
    base, x, ids, a, b, _ = operands((4,), 33, FOUR, 17)
    for some_base in (mx.broadcast_to(normal(17), (4, 17)), normal(17, 4).T, normal(8, 34)[::2, ::2]):
        check(grouped_lora, [some_base, x, ids, a, b], FOUR)
    for some_x in (mx.broadcast_to(x[:1], (4, 33)), normal(33, 4).T, normal(8, 66)[::2, 1::2]):
        check(grouped_lora, [base, some_x, ids, a, b], FOUR)
    check(grouped_lora, [base, x, mx.repeat(ids, 2)[::2], normal(33, 30).T, normal(17, 30).T], FOUR)
    check(grouped_lora, [base, x, mx.broadcast_to(mx.array(1, mx.int32), (4,)), normal(60, 33)[::2], b], FOUR)
    for reverse in (np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]):
        check(grouped_lora, [base[reverse], x[reverse], ids[::-1], a[reverse], b[reverse]], FOUR)
    assert not PROGRAM.contiguous


def test_large_and_small_numbers(device: str) -> None:
    base, x, ids, a, b, _ = operands((5,), 33, FOUR, 9)
    check(grouped_lora, [base, x * 1e30, ids, a * 1e-30, b], FOUR)
    check(grouped_lora, [base, x * 1e-30, ids, a * 1e-5, b], FOUR)
    x[2, 7] = mx.inf
    check(grouped_lora, [base, x, ids, mx.abs(a), b], FOUR)
    # x · A is 128 · 1000, which float16 has not.
    one = Adapters((2,), (1e-3,))
    ones, factor = mx.ones((2, 128), mx.float16), mx.full((2, 128), 1000.0, mx.float16)
    half = mx.full((2, 5), 0.5, mx.float16)
    check(grouped_lora, [half, ones, mx.array([0, 0], mx.int32), factor, half], one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_definitions(device: str, dtype: mx.Dtype) -> None:
    for leading, width, out in (((5,), 33, 17), ((2, 3), 16, 31), ((), 12, 5)):
        arguments = operands(leading, width, FOUR, out, dtype)
        check_gradients(grouped_lora, arguments[:5], FOUR)


def test_gradients_are_slopes(device: str) -> None:
    adapters = Adapters((2, 1), (0.5, -1.5))
    base, x, _, a, b, _ = operands((4,), 5, adapters, 3)
    ids = mx.array([1, 0, -1, 1], mx.int32)
    weights = normal(4, 3, key=9)

    def loss(base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return (grouped_lora(base, x, ids, a, b, adapters) * weights).sum()

    launched(grouped_lora, [base, x, ids, a, b], adapters)
    gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(base, x, a, b)
    values = [np.array(array, np.float64) for array in (base, x, a, b)]

    def exact(base: Any, x: Any, a: Any, b: Any) -> float:
        result = base.copy()
        for row, own, scale in ((0, slice(2, 3), -1.5), (1, slice(0, 2), 0.5), (3, slice(2, 3), -1.5)):
            result[row] += scale * (a[own] @ x[row]) @ b[own]
        return float((result * np.array(weights, np.float64)).sum())

    for gradient, slopes in zip(gradients, central_differences(lambda moved: exact(*moved), values, 1e-4), strict=True):
        # float32 gradients; central differences of a form that is linear in each are exact but for float64's rounding.
        np.testing.assert_allclose(np.array(gradient), slopes, rtol=2e-5, atol=2e-5)


def test_transformations_of_mlx(device: str) -> None:
    base, x, ids, a, b, _ = operands((6,), 12, FOUR, 7)

    def ours(*arrays: mx.array) -> mx.array:
        return grouped_lora(arrays[0], arrays[1], ids, arrays[2], arrays[3], FOUR)

    def plain(*arrays: mx.array) -> mx.array:
        return grouped_lora.reference(arrays[0], arrays[1], ids, arrays[2], arrays[3], FOUR)

    def slope(function: Any) -> Any:
        return mx.grad(lambda *arrays: mx.square(function(*arrays)).sum(), argnums=(0, 1, 2, 3))

    launched(grouped_lora, [base, x, ids, a, b], FOUR)
    arrays = (base, x, a, b)
    for got, want in (
        (slope(ours), slope(plain)),
        (slope(mx.checkpoint(ours)), slope(plain)),
        (lambda *arrays: mx.jvp(ours, arrays, arrays)[1], lambda *arrays: mx.jvp(plain, arrays, arrays)[1]),
    ):
        for one, other in zip(got(*arrays), want(*arrays)):
            assert_near(one, other, BACKWARD[mx.float32])
    with features.disabled("custom-metal"):  # MLX batches no launch
        several = normal(3, 6, 12, key=5)
        batched = mx.vmap(lambda x: ours(base, x, a, b))(several)
        assert_near(batched, mx.stack([plain(base, each, a, b) for each in several]), FORWARD[mx.float32])


def test_it_can_be_exported_without_a_gpu(tmp_path: Path) -> None:
    base, x, ids, a, b, _ = operands((3,), 33, FOUR, 9)
    how = _plan(base, x, ids, a, b, FOUR).how
    assert how is not None

    def launch(*arrays: mx.array) -> Any:
        return Exporting().launch(PROGRAM, list(arrays), how)

    path = tmp_path / "grouped.mlxfn"
    tables = (mx.array(FOUR.offsets(), mx.int32), mx.array(FOUR.scales))
    mx.export_function(str(path), launch, base, x, ids, a, b, *tables)
    assert PROGRAM.body.encode() in path.read_bytes()


def test_what_it_does_not_take(device: str) -> None:
    base, x, ids, a, b, _ = operands((2,), 12, FOUR, 5)
    above = Adapters((MOST_RANK + 1,), (1.0,))
    cases = [
        ([base, x.astype(mx.float16), ids, a, b, FOUR], "operands of float32, float16, float32, float32"),
        (operands((0,), 12, FOUR, 5), "a size is 0"),
        (operands((2,), 0, FOUR, 5), "a size is 0"),
        (operands((2,), 12, FOUR, 0), "a size is 0"),
        (operands((2,), 12, above, 5), f"a rank above {MOST_RANK}"),
        ([base, x, ids, a[:0], b[:0], Adapters((), ())], "a size is 0"),
        (operands((MOST_ROWS + 1,), 1, Adapters((1,), (1.0,)), 1), f"more than {MOST_ROWS} rows"),
    ]
    for arguments, reason in cases:
        assert grouped_lora.choose(*arguments).name != "grouped_lora"
        assert grouped_lora.last is not None
        assert grouped_lora.last[1].endswith(f"; not grouped_lora: {reason}")
        mx.eval(grouped_lora(*arguments))


def test_the_rule(device: str) -> None:
    with settings.KERNELS.override("auto"):
        for rows, width, rank, wins in (
            (1, 4096, 16, True),
            (64, 4096, 16, True),
            (65, 64, 4, False),
            (1, 4096, 64, False),
        ):
            adapters = Adapters((rank, 4), (1.0, 1.0))
            shapes = ((rows, 64), (rows, width), (rank + 4, width), (rank + 4, 64))
            base, x, a, b = (mx.zeros(shape) for shape in shapes)
            chosen = grouped_lora.choose(base, x, mx.zeros((rows,), mx.int32), a, b, adapters).name
            assert grouped_lora.last is not None
            assert (chosen == "grouped_lora") == wins, grouped_lora.last
            assert "unmeasured: " in grouped_lora.last[1]


def test_switched_off(device: str) -> None:
    arguments = operands((1,), 12, FOUR, 5)
    with features.disabled("custom-metal"):
        assert grouped_lora.choose(*arguments).name == "reference"
    with settings.KERNELS.override("reference"):
        assert grouped_lora.choose(*arguments).name == "reference"
    launched(grouped_lora, arguments[:5], FOUR)


def test_the_trial_is_of_the_same_instantiation(device: str) -> None:
    assert grouped_lora.own is not None
    for rows, width, ranks, out in (
        (1, 4096, (8,), 64),
        (20, 9000, (1, 3), 3),
        (8, 16, (256,) * 9, 500),
        (1, 3, (2,), 1),
    ):
        arguments = operands((rows,), width, Adapters(ranks, (1.0,) * len(ranks)), out)
        trial = grouped_lora.own.trial(*arguments)
        small = trial.arguments()
        assert grouped_lora.own.trial(*small).key == trial.key
        how, of_trial = _plan(*arguments).how, _plan(*small).how
        assert how is not None
        assert of_trial is not None
        assert (how.template, how.threadgroup) == (of_trial.template, of_trial.threadgroup)
        assert small[1].shape[0] <= 8
