"""``kernels.matmul`` through float32 and plain, against NumPy in float64."""

from __future__ import annotations

from pathlib import Path

from metal_candle import blas
from metal_candle.kernels.matmul import addmm, matmul

import mlx.core as mx
import numpy as np
import pytest

# Half a unit in the last place of a value just above a power of two, and the float32 sum's own error.
ROUNDING = {mx.float16: 2.0**-11 + 1e-5, mx.bfloat16: 2.0**-8 + 1e-5, mx.float32: 1e-5}
SHAPES = [
    ((5, 123), (123, 17)),
    ((2, 3, 5, 7), (7, 4)),
    ((2, 1, 5, 7), (3, 7, 4)),
    ((7,), (7, 3)),
    ((0, 4), (4, 3)),
]


@pytest.fixture(params=[True, False], ids=["optimised", "own"], autouse=True)
def optimised(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    path = Path("libopenblas.so") if request.param else None
    monkeypatch.setattr(blas, "status", lambda: blas.Blas(path, ""))
    return bool(request.param)


def arrays(dtype: mx.Dtype, *shapes: tuple[int, ...]) -> list[mx.array]:
    return [mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) for i, shape in enumerate(shapes)]


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32), np.float64)


def assert_rounded(got: mx.array, want: np.ndarray, scale: np.ndarray, dtype: mx.Dtype) -> None:
    """``got`` is ``want`` rounded once, up to a float32 sum's error, which goes with the terms' ``scale``."""
    assert got.dtype == dtype
    assert got.shape == want.shape
    error = np.abs(wide(got) - want)
    assert (error <= ROUNDING[dtype] * np.abs(want) + 1e-6 * scale).all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul(dtype: mx.Dtype, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with mx.stream(mx.cpu):
        a, b = arrays(dtype, *shapes)
        got = matmul(a, b)
        assert_rounded(got, wide(a) @ wide(b), np.abs(wide(a)) @ np.abs(wide(b)), dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_addmm(dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):
        a, b, c = arrays(dtype, (5, 123), (123, 17), (17,))
        got = addmm(c, a, b, alpha=0.5, beta=-2.0)
        want = 0.5 * (wide(a) @ wide(b)) - 2 * wide(c)
        assert_rounded(got, want, np.abs(wide(a)) @ np.abs(wide(b)) + 2 * np.abs(wide(c)), dtype)


def test_transposed_factor() -> None:
    with mx.stream(mx.cpu):
        a, b = arrays(mx.bfloat16, (5, 31), (17, 31))
        assert_rounded(matmul(a, b.T), wide(a) @ wide(b).T, np.abs(wide(a)) @ np.abs(wide(b)).T, mx.bfloat16)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_gradients(dtype: mx.Dtype) -> None:
    """Of the sum of ``g * (a @ b + c)``: ``g bᵀ``, ``aᵀ g`` and the sum of ``g`` over the rows."""
    with mx.stream(mx.cpu):
        a, b, c, g = arrays(dtype, (5, 19), (19, 7), (7,), (5, 7))

        def loss(a: mx.array, b: mx.array, c: mx.array) -> mx.array:
            return (g.astype(mx.float32) * addmm(c, a, b).astype(mx.float32)).sum()

        grads = mx.grad(loss, argnums=(0, 1, 2))(a, b, c)
        wants = (wide(g) @ wide(b).T, wide(a).T @ wide(g), wide(g).sum(0))
        scales = (
            np.abs(wide(g)) @ np.abs(wide(b)).T,
            np.abs(wide(a)).T @ np.abs(wide(g)),
            np.abs(wide(g)).sum(0),
        )
        for got, want, scale in zip(grads, wants, scales, strict=True):
            assert_rounded(got, want, scale, dtype)


def test_mixed_dtypes_are_mlx_s() -> None:
    with mx.stream(mx.cpu):
        a, b, c = arrays(mx.float16, (3, 4), (4, 5), (5,))
        assert matmul(a, b.astype(mx.bfloat16)).dtype == mx.float32
        assert addmm(c.astype(mx.float32), a, b).dtype == mx.float32


def test_halves_go_through_float32_only_on_the_cpu_with_an_optimised_blas(
    optimised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: list[mx.Dtype] = []
    plain = mx.matmul

    def record(a: mx.array, b: mx.array) -> mx.array:
        multiplied.append(a.dtype)
        return plain(a, b)

    monkeypatch.setattr(mx, "matmul", record)
    a, b = arrays(mx.float16, (3, 4), (4, 5))
    with mx.stream(mx.cpu):
        matmul(a, b)
    assert multiplied == [mx.float32 if optimised else mx.float16]
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    matmul(a, b)
    assert multiplied[1:] == [mx.float16]


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=str)
def test_shapes_that_do_not_fit(dtype: mx.Dtype) -> None:
    a, b = arrays(dtype, (3, 4), (5, 6))
    with mx.stream(mx.cpu), pytest.raises(ValueError, match=r"\[matmul\]"):
        matmul(a, b)
