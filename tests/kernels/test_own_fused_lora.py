"""The launch of a low-rank update of few rows: values, layouts, odd numbers, gradients, MLX's transformations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_candle import LazyTensor, Tensor, features, settings
from metal_candle.kernels import custom, lora_launch
from metal_candle.kernels.fused_lora import add_lora, lora
from metal_candle.kernels.lora_launch import MOST_LOADS, MOST_RANK, MOST_ROWS, PROGRAM

import mlx.core as mx
import numpy as np
import pytest
from exporting import Exporting
from launched import DTYPES, WIDTHS, check, check_gradients, launched, normal
from slope import central_differences


def factors(width: int, rank: int, out: int, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    return [normal(width, rank, dtype=dtype, key=2), normal(rank, out, dtype=dtype, key=3)]


def operands(leading: tuple[int, ...], width: int, rank: int, out: int, dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """base, x, A and B."""
    base, x = normal(*leading, out, dtype=dtype), normal(*leading, width, dtype=dtype, key=1)
    return [base, x, *factors(width, rank, out, dtype)]


def transposed(matrix: mx.array) -> mx.array:
    """The same matrix, its columns next to each other in memory."""
    return mx.contiguous(matrix.T).T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
def test_rows(device: str, rows: int, dtype: mx.Dtype) -> None:
    inputs = operands((rows,), 65, 5, 37, dtype)
    check(add_lora, inputs, 0.5)
    if rows in (1, 3):
        check(lora, inputs[1:], -2.0)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 7, 8, 9, 16, 31, 33, 64, 65, 100, 127, 129, 255, 256])
def test_ranks(device: str, rank: int) -> None:
    for rows in (1, 3, 8):
        base, x, a, b = operands((rows,), 70, rank, 33)
        check(add_lora, [base, x, a, b], 0.25)
        check(add_lora, [base, x, transposed(a), transposed(b)], 0.25)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(device: str, width: int, dtype: mx.Dtype) -> None:
    check(add_lora, operands((1,), width, 4, 127, dtype), 0.5)
    check(add_lora, operands((2,), 31, 3, width, dtype), 0.5)


def test_many_columns_go_through_few_threadgroups(device: str) -> None:
    inputs = operands((1,), 1, 1, 10_001)
    check(add_lora, inputs, 0.5)
    (_, how) = recorded(add_lora, *inputs, 0.5)
    assert how.grid[0] == lora_launch.MOST_GROUPS * how.threadgroup[0] < 10_001


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (1, 1), (2, 1, 2)], ids=str)
def test_leading_dims(device: str, leading: tuple[int, ...]) -> None:
    inputs = operands(leading, 33, 4, 7)
    check(add_lora, inputs, 0.5)
    check(lora, inputs[1:], 0.5)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 3), (5, 1, 1), (8, 1, 9)], ids=str)
def test_arrays_of_few_elements(device: str, sizes: tuple[int, int, int]) -> None:
    """Metal has those of fewer than 8 in another address space."""
    check(add_lora, operands((1,), *sizes), 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("layout", ["A", "B", "A and B"])
def test_transposed_factors_are_read_where_they_are(device: str, layout: str, rows: int, dtype: mx.Dtype) -> None:
    for rank in (1, 3, 16, 40):
        base, x, a, b = operands((rows,), 101, rank, 45, dtype)
        a, b = transposed(a) if "A" in layout else a, transposed(b) if "B" in layout else b
        check(add_lora, [base, x, a, b], 0.5)
    assert not PROGRAM.contiguous


def test_views_and_broadcasts(device: str) -> None:
    base, x, a, b = operands((4,), 33, 5, 17)
    row = normal(17)
    for some_base in (mx.broadcast_to(row, (4, 17)), normal(17, 4).T, normal(8, 34)[::2, ::2]):
        check(add_lora, [some_base, x, a, b], 0.5)
    for some_x in (mx.broadcast_to(x[:1], (4, 33)), normal(33, 4).T, normal(8, 66)[::2, 1::2]):
        check(add_lora, [base, some_x, a, b], 0.5)
    for some_a in (normal(66, 10)[::2, ::2], mx.broadcast_to(a[:, :1], (33, 5)), normal(33, 9)[:, 4:]):
        check(add_lora, [base, x, some_a, b], 0.5)
    for some_b in (normal(10, 34)[1::2, 1::2], mx.broadcast_to(b[:1], (5, 17))):
        check(add_lora, [base, x, a, some_b], 0.5)
    for reverse in (np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]):
        check(add_lora, [array[reverse] for array in (base, x, a, b)], 0.5)
    x3 = mx.swapaxes(normal(3, 2, 33), 0, 1)
    check(add_lora, [mx.swapaxes(normal(3, 2, 17), 0, 1), x3, a, b], 0.5)


# The five cases of the Rust crate, where the difference of fused and unfused is below 1e-6. There factors are small:
# A of standard deviation 0.02, as initialised, B the same.
CASES = {
    "1x16 r4": [((1,), 16, 4, 16)],
    "8x64 r8": [((8,), 64, 8, 64)],
    "chained": [((2,), 32, 4, 32), ((2,), 32, 4, 32)],
    "ranks": [((2,), 64, rank, 64) for rank in (2, 4, 8, 16)],
    "3-D": [((2, 3), 32, 4, 24)],
}


@pytest.mark.parametrize("case", CASES)
def test_fused_and_unfused_differ_by_less_than_a_millionth(device: str, case: str) -> None:
    chained: mx.array | None = None
    for leading, width, rank, out in CASES[case]:
        _, x, a, b = operands(leading, width, rank, out)
        x = x if case != "chained" or chained is None else chained
        a, b = a * 0.02, b * 0.02
        launched(lora, [x, a, b], 2.0)
        (fused,) = lora.forward(x, a, b, 2.0)
        chained = fused
        unfused = (x @ a) @ b * 2.0
        assert float(mx.abs(fused - unfused).max()) < 1e-6
        assert float(mx.abs(unfused).max()) > 1e-5


def test_infinities_and_nan_stay_in_their_row(device: str) -> None:
    base, x, a, b = (np.array(array) for array in operands((5,), 40, 3, 9))
    x[1, 7], x[2, 39], x[3, 0], x[3, 1], base[4, 2] = np.inf, np.nan, np.inf, -np.inf, -np.inf
    a[7] = [1.0, -1.0, 0.0]  # inf · 0 is NaN
    check(add_lora, [mx.array(each) for each in (base, x, a, b)], 0.5)
    a, b = np.abs(a), np.abs(b)
    a[5, 1] = np.inf
    check(add_lora, [mx.array(each) for each in (base, np.abs(np.ones_like(x)), a, b)], 0.5)


def test_large_and_small_numbers(device: str) -> None:
    base, x, a, b = operands((3,), 33, 4, 9)
    for of_x, of_a, scale in ((1e30, 1e-30, 1.0), (1e-30, 1e-5, 1.0), (1e18, 1e18, 1e-30), (1.0, 1.0, -1e20)):
        check(add_lora, [base, x * of_x, a * of_a, b], scale)


def test_halves_keep_the_inner_product_in_float32(device: str) -> None:
    ones = mx.ones((2, 128), mx.float16)
    # x · A is 128 · 1000 = 128,000, which float16 has not; the update, a thousandth of that, it has.
    a, b = mx.full((128, 2), 1000.0, mx.float16), mx.full((2, 5), 0.5, mx.float16)
    for scale in (1e-3, 1e-2):
        check(lora, [ones, a, b], scale)
    # A large scale on a product that float16 rounds to zero.
    check(lora, [ones * 2e-4, a * 1e-7, b], 1e6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_definitions(device: str, dtype: mx.Dtype) -> None:
    for leading, width, rank, out in (((5,), 33, 4, 17), ((2, 3), 16, 1, 31), ((7,), 9, 8, 11), ((), 12, 2, 5)):
        inputs = operands(leading, width, rank, out, dtype)
        check_gradients(add_lora, inputs, 0.5)
        check_gradients(lora, inputs[1:], 2.0)


def test_gradients_are_slopes(device: str) -> None:
    inputs = operands((3,), 7, 2, 5)
    weights = normal(3, 5, key=9)

    def loss(*arrays: mx.array) -> mx.array:
        return (add_lora(*arrays, 0.5) * weights).sum()

    gradients = mx.grad(loss, argnums=(0, 1, 2, 3))(*inputs)

    def exact(*arrays: Any) -> float:
        base, x, a, b = arrays
        return float(((base + 0.5 * (x @ a) @ b) * np.array(weights, np.float64)).sum())

    values = [np.array(array, np.float64) for array in inputs]
    for gradient, slopes in zip(gradients, central_differences(lambda moved: exact(*moved), values, 1e-4), strict=True):
        # float32 gradients; central differences of a bilinear form are exact but for float64's rounding.
        np.testing.assert_allclose(np.array(gradient), slopes, rtol=2e-5, atol=2e-5)


def test_transformations_of_mlx(device: str) -> None:
    base, x, a, b = operands((3,), 12, 2, 7)

    def ours(base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return add_lora(base, x, a, b, 0.5)

    def plain(base: mx.array, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return base + 0.5 * (x @ a) @ b

    def loss(function: Any) -> Any:
        return lambda *arrays: mx.square(function(*arrays)).sum()

    launched(add_lora, [base, x, a, b], 0.5)
    near = {"rtol": 2e-5, "atol": 2e-5}
    for got, want in (
        (mx.grad(loss(ours), argnums=(1, 2, 3)), mx.grad(loss(plain), argnums=(1, 2, 3))),
        (mx.grad(loss(mx.checkpoint(ours)), argnums=(1, 2, 3)), mx.grad(loss(plain), argnums=(1, 2, 3))),
        (lambda *arrays: mx.jvp(ours, arrays, arrays)[1], lambda *arrays: mx.jvp(plain, arrays, arrays)[1]),
    ):
        for one, other in zip(got(base, x, a, b), want(base, x, a, b)):
            np.testing.assert_allclose(np.array(one), np.array(other), **near)
    of_grad = mx.grad(lambda x: mx.square(mx.grad(lambda x: loss(ours)(base, x, a, b))(x)).sum())(x)
    want = mx.grad(lambda x: mx.square(mx.grad(lambda x: loss(plain)(base, x, a, b))(x)).sum())(x)
    np.testing.assert_allclose(np.array(of_grad), np.array(want), rtol=1e-4, atol=1e-4)


def test_it_is_traced_once_when_mlx_compiles() -> None:
    inputs = operands((3,), 12, 2, 7)
    recorder = Recorder(None)
    with custom.using(recorder), settings.KERNELS.override("custom"):
        step = mx.compile(mx.grad(lambda *arrays: mx.square(add_lora(*arrays, 0.5)).sum(), argnums=(1, 2, 3)))
        for _ in range(3):
            mx.eval(step(*inputs))
    assert [program for program, _ in recorder.launches] == [PROGRAM]


class Recorder:
    """A back-end that keeps what it is asked to launch, and launches it on another, or gives zeros."""

    name = "recorder"
    trusted = True

    def __init__(self, inner: custom.Backend | None) -> None:
        self.inner = inner
        self.launches: list[tuple[custom.Program, custom.Launch]] = []

    def launch(self, program: custom.Program, inputs: Any, how: custom.Launch) -> list[mx.array]:
        self.launches.append((program, how))
        if self.inner is not None:
            return self.inner.launch(program, inputs, how)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(how.shapes, how.dtypes)]


def recorded(kernel: Any, *arguments: Any) -> tuple[custom.Program, custom.Launch]:
    recorder = Recorder(None)
    with custom.using(recorder):
        kernel.forward(*arguments)
    (one,) = recorder.launches
    return one


@pytest.mark.parametrize("spelling", ["delta", "sum", "transposed"])
def test_an_update_spelled_out_is_one_launch(device: str, spelling: str) -> None:
    base, x, a, b = operands((4,), 40, 4, 24)
    of_base, of_x, of_a, of_b = (LazyTensor.from_tensor(Tensor.new(np.array(each))) for each in (base, x, a, b))
    if spelling == "transposed":
        of_a, of_b = (LazyTensor.from_tensor(Tensor.new(np.array(each.T))).t() for each in (a, b))
    recorder = Recorder(custom.backend())
    with custom.using(recorder):
        if spelling == "delta":
            result = of_x.matmul(of_a).matmul(of_b) * 0.5
        else:
            result = of_base + of_x.matmul(of_a).matmul(of_b) * 0.5
        told = result.explain()
        recorder.launches.clear()
        value = result.eval().numpy()
    ((program, how),) = recorder.launches
    assert program is PROGRAM
    assert dict(how.template)["ADD"] == (spelling != "delta")
    kernel = "lora" if spelling == "delta" else "add_lora"
    assert f"{kernel} [" in told
    assert "fused_lora, recorder: METAL_CANDLE_KERNELS=custom" in told
    want = 0.5 * np.array(x) @ np.array(a) @ np.array(b) + (0 if spelling == "delta" else np.array(base))
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5)


def test_it_can_be_exported_without_a_gpu(tmp_path: Path) -> None:
    inputs = operands((3,), 33, 4, 9)
    how = lora_launch.plan(*inputs).how
    assert how is not None

    def launch(*arrays: mx.array) -> Any:
        return Exporting().launch(PROGRAM, [*arrays, custom.scalar(0.5)], how)

    path = tmp_path / "lora.mlxfn"
    mx.export_function(str(path), launch, *inputs)
    assert PROGRAM.body.encode() in path.read_bytes()


def test_what_it_does_not_take(device: str) -> None:
    base, x, a, b = operands((2,), 12, 3, 5)
    many = operands((MOST_ROWS + 1,), 12, 3, 5)
    cases: list[tuple[list[mx.array], str]] = [
        ([base, x.astype(mx.float16), a, b], "operands of float16, float32"),
        (many, f"more than {MOST_ROWS} rows"),
        ([base, x, *factors(12, MOST_RANK + 1, 5)], f"a rank above {MOST_RANK}"),
        (operands((0,), 12, 3, 5), "a size is 0"),
        (operands((2,), 0, 3, 5), "a size is 0"),
        (operands((2,), 12, 0, 5), "a size is 0"),
        (operands((2,), 12, 3, 0), "a size is 0"),
    ]
    for inputs, reason in cases:
        add_lora.choose(*inputs, 0.5)
        assert add_lora.last is not None
        assert add_lora.last[0] != "fused_lora"
        assert add_lora.last[1].endswith(f"; not fused_lora: {reason}")
        if len({array.dtype for array in inputs}) == 1:
            want = inputs[0] + 0.5 * (inputs[1] @ inputs[2]) @ inputs[3]
            np.testing.assert_allclose(np.array(add_lora(*inputs, 0.5)), np.array(want), rtol=2e-5, atol=2e-5)


def test_a_base_that_is_broadcast_is_left_to_mlx(device: str) -> None:
    _, x, a, b = operands((2, 3), 12, 3, 5)
    for shape in ((5,), (3, 5), (1, 1, 5), (4, 2, 3, 5), ()):
        base = normal(*shape)
        assert add_lora.choose(base, x, a, b, 0.5).name == "reference"
        want = base + 0.5 * (x @ a) @ b
        np.testing.assert_allclose(np.array(add_lora(base, x, a, b, 0.5)), np.array(want), rtol=1e-5, atol=1e-5)
        of_base = mx.grad(lambda base: add_lora(base, x, a, b, 0.5).sum())(base)
        np.testing.assert_array_equal(np.array(of_base), np.full(shape, want.size / base.size, np.float32))


def test_the_rule(device: str) -> None:
    with settings.KERNELS.override("auto"):
        for width, rank, rows, wins in (
            (4096, 16, 1, True),
            (4096, 16, 4, True),
            (4096, 16, 8, False),
            (2048, 16, 8, True),
            (4096, 64, 1, False),
            (576, 64, 8, True),
            (576, 8, 9, False),
        ):
            inputs = [mx.zeros(shape) for shape in ((rows, 64), (rows, width), (width, rank), (rank, 64))]
            chosen = add_lora.choose(*inputs, 0.5).name
            assert (chosen == "fused_lora") == wins, add_lora.last
            assert add_lora.last is not None
            assert "unmeasured: " in add_lora.last[1]
        inputs = [mx.zeros(shape) for shape in ((1, 4096), (4096, 16), (16, 64))]
        assert lora.choose(*inputs, 0.5).name == "fused_lora"
        assert lora.last is not None
        assert "unmeasured: 1 launch to 2 (3 with a scale), 98304 loads" in lora.last[1]
        assert MOST_LOADS >= 98304


def test_switched_off(device: str) -> None:
    inputs = operands((1,), 12, 3, 5)
    with features.disabled("custom-metal"):
        assert add_lora.choose(*inputs, 0.5).name == "reference"
    with settings.KERNELS.override("reference"):
        assert add_lora.choose(*inputs, 0.5).name == "reference"
    launched(add_lora, inputs, 0.5)


def test_the_trial_is_of_the_same_instantiation(device: str) -> None:
    for rows, width, rank, out in (
        (1, 4096, 8, 64),
        (2, 9000, 1, 3),
        (8, 16, 256, 4097),
        (1, 3, 2, 1),
        (40, 576, 16, 9),
    ):
        base, *rest = operands((rows,), width, rank, out)
        for kernel, arguments in ((add_lora, (base, *rest, 0.5)), (lora, (*rest, 0.5))):
            assert kernel.own is not None
            trial = kernel.own.trial(*arguments)
            small = trial.arguments()
            assert all(one.size <= other.size for one, other in zip(small[:-1], arguments[:-1]))
            (_, how), (_, of_trial) = recorded(kernel, *arguments), recorded(kernel, *small)
            assert (how.template, how.threadgroup) == (of_trial.template, of_trial.threadgroup)
            # By what MLX's text differs beside the template.
            assert [one.size < 8 for one in small[:-1]] == [other.size < 8 for other in arguments[:-1]]
            assert kernel.own.trial(*small).key == trial.key


def test_tangents_end_at_the_launch() -> None:
    """A launch has none, as ``mx.gather_mm`` has none; MLX asks for those of all that depends on the arguments."""

    class Opaque(Recorder):
        def launch(self, program: custom.Program, inputs: Any, how: custom.Launch) -> list[mx.array]:
            (base, x, *_), (shape,) = inputs, how.shapes
            none = mx.gather_mm(x[:, None, :1] * 0, base[:, None, :], rhs_indices=mx.arange(shape[0]))
            return [none.reshape(shape)]

    inputs = operands((3,), 12, 2, 7)
    with custom.using(Opaque(None)), settings.KERNELS.override("custom"):
        launched(add_lora, inputs, 0.5)
        (got,) = mx.jvp(lambda *arrays: add_lora(*arrays, 0.5), inputs, inputs)[1]
    (want,) = mx.jvp(lambda *arrays: add_lora.reference(*arrays, 0.5), inputs, inputs)[1]
    np.testing.assert_allclose(np.array(got), np.array(want), rtol=2e-5, atol=2e-5)
