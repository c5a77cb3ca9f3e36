"""``BatchNorm``: values against NumPy and ``mlx.nn``, running statistics, gradients, errors."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn
from metal_candle.kernels import batch_norm as kernel

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import pytest
from batch_norming import (
    BATCHES,
    EPS,
    F32,
    KINDS,
    SHAPES,
    after,
    assert_after,
    batch_normed,
    from_a_map,
    given,
    plain,
    rest,
    running_normed,
    starting,
    statistics,
)
from checking import assert_slopes, check, check_dtypes, normal
from tolerance import VALUE, Tolerance, assert_near

# --- values -----------------------------------------------------------------------------------


@SHAPES
def test_training(shape: tuple[int, ...]) -> None:
    before = starting(shape[1])
    check_dtypes(lambda x, w, b: nn.BatchNorm(shape[1], *before, w, b, EPS)(x), given(shape), batch_normed)
    check_dtypes(
        lambda x: nn.BatchNorm.new_no_bias(shape[1], *before, EPS).forward_train(x), given(shape)[:1], batch_normed
    )


@SHAPES
def test_with_running_statistics(shape: tuple[int, ...]) -> None:
    mean, variance = normal(shape[1], seed=3), normal(shape[1], seed=4) ** 2
    before = Tensor(mean), Tensor(variance)
    check_dtypes(
        lambda x, w, b: nn.BatchNorm.new(shape[1], *before, w, b, EPS).forward_t(x, False),
        given(shape),
        lambda x, w, b: running_normed(x, mean, variance, w, b),
    )
    check_dtypes(
        lambda x: nn.BatchNorm.new_no_bias(shape[1], *before, EPS).eval()(x),
        given(shape)[:1],
        lambda x: running_normed(x, mean, variance),
    )


def test_empty() -> None:
    layer = plain(3).eval()
    assert layer(Tensor.zeros((0, 3, 4), "f32")).dims() == [0, 3, 4]
    assert plain(0)(Tensor.zeros((4, 0, 2), "f32")).dims() == [4, 0, 2]


@KINDS
def test_of_a_view(kind: Any) -> None:
    x = normal(3, 4, 5)
    assert_near(plain(4)(kind.new(x).transpose(0, 2)).numpy(), batch_normed(x.transpose(2, 1, 0)), F32)


def test_without_removing_the_mean() -> None:
    x = normal(4, 3, 5) + 1.0
    layer, _ = from_a_map(3, nn.BatchNormConfig(EPS, remove_mean=False))
    of_squares = (x**2).mean((0, 2))
    assert_near(layer(Tensor(x)).numpy(), running_normed(x, np.zeros(3), of_squares), F32)
    mean, variance = statistics(layer)
    np.testing.assert_array_equal(mean, np.zeros(3))
    assert_near(variance, 0.9 + 0.1 * of_squares * 20 / 19, F32)
    tensors = {"running_mean": Tensor.zeros((3,), "f64"), "running_var": Tensor.ones((3,), "f64")}
    builder = nn.VarBuilder.from_tensors(tensors, "f64", mc.Device.Cpu)
    config = nn.BatchNormConfig(EPS, remove_mean=False, affine=False)
    assert_slopes(lambda x: nn.batch_norm(3, config, builder)(x), x)


def test_offset_and_size() -> None:
    """Many elements far from 0, in blocks and not; one sum after the other in float32 would be off by 1e-3."""
    for shape in [(64, 4, 33, 31), (1100, 4, 256)]:
        x = normal(*shape) + np.float32(100)
        layer = plain(4, 1.0)
        got = layer(Tensor(x)).numpy()
        wide = x.astype(np.float64)
        # Numbers near 100 are 7.6e-6 apart; the mean may be off by some of that.
        np.testing.assert_allclose(got, batch_normed(wide), rtol=0, atol=8e-5)
        mean, variance = statistics(layer)
        np.testing.assert_allclose(mean, wide.mean(rest(x)), rtol=8e-7)
        np.testing.assert_allclose(variance, wide.var(rest(x), ddof=1), rtol=1e-6)


def test_blocks_are_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients of a batch that takes several blocks are those of the same in one piece."""
    shape = (37, 16, 24, 24)
    x, weight, bias = (Var(array) for array in given(shape))
    upstream = Tensor(normal(*shape, seed=5))

    def found() -> list[Any]:
        layer = nn.BatchNorm(16, *starting(16), weight, bias, EPS)
        result = layer(x)
        grads = result.mul(upstream).sum_all().backward()
        return [result, *statistics(layer), *(grads[each].numpy() for each in (x, weight, bias))]

    whole = found()
    monkeypatch.setattr(kernel, "LARGE", 0)
    # Sums of 2e4 elements of size 1, rounded otherwise.
    for one, other in zip(found(), whole):
        assert_near(one.numpy() if isinstance(one, Tensor) else one, np.array(other), Tolerance(1e-5, 1e-4))


PUBLISHED = """
    -0.7493 -1.0410 1.6977 -0.6579 1.7982 -0.0087 0.2812 -0.1190 0.2908 -0.5975 -0.0278 -0.2138
    -1.3130 -1.6048 -2.2028 0.9452 0.4002 0.0831 1.0004 0.1860 0.5004 0.5539 0.9991 -0.2540
    -0.0703 -0.3752 -0.1096 -0.2374 1.0258 -2.2208 -0.0257 0.6073 -1.1627 -0.0964 -1.9718 1.6577
    0.1931 -0.3692 -0.8011 0.9059 0.4797 0.6521 -0.0165 -0.6683 -0.4148 2.0649 -0.8276 1.7947
    -0.2061 0.5812 -1.3598 1.6192 1.0466 -0.4423 0.4202 0.1749 0.6969 0.2616 -0.0369 -1.4951
    -0.0814 -0.1877 0.0267 0.6150 0.2402 -1.1440 -2.0068 0.6032 -2.6639 0.8260 0.1085 -0.1693
    1.2805 0.7654 -0.4930 0.3770 1.1309 0.2303 0.2949 -0.2634 -0.5225 0.4269 0.6341 1.5736
    0.9827 -1.2499 0.3509 -1.6243 -0.8123 0.7634 -0.3047 0.0143 -0.4032 0.0537 0.7022 0.8405
    -1.2221 -1.6847 -0.0714 -0.1608 0.5579 -1.5858 0.4617 -0.6480 0.1332 0.0419 -0.9784 0.4173
    1.2313 -1.9046 -0.1656 0.1259 0.0763 1.4252 -0.9115 -0.1093 -0.3100 -0.6734 -1.4357 0.9205
"""
NORMED = """
    -0.6391 -0.9414 1.8965 -0.5444 2.0007 0.1283 0.4287 0.0140 0.4387 -0.4818 0.1085 -0.0842
    -1.6809 -2.0057 -2.6714 0.8328 0.2262 -0.1268 0.8943 -0.0123 0.3377 0.3973 0.8928 -0.5021
    0.0861 -0.2324 0.0451 -0.0884 1.2311 -2.1603 0.1327 0.7939 -1.0550 0.0589 -1.9002 1.8912
    0.2918 -0.3253 -0.7993 1.0741 0.6063 0.7955 0.0617 -0.6536 -0.3754 2.3461 -0.8284 2.0495
    -0.2010 0.6476 -1.4446 1.7665 1.1493 -0.4556 0.4741 0.2097 0.7723 0.3031 -0.0186 -1.5905
    0.0530 -0.0572 0.1650 0.7746 0.3862 -1.0481 -1.9422 0.7624 -2.6231 0.9933 0.2498 -0.0381
    1.2061 0.6327 -0.7681 0.2004 1.0396 0.0370 0.1090 -0.5125 -0.8009 0.2559 0.4865 1.5324
    1.1861 -1.1461 0.5261 -1.5372 -0.6890 0.9570 -0.1587 0.1745 -0.2616 0.2156 0.8931 1.0375
    -1.2614 -1.7691 0.0015 -0.0966 0.6921 -1.6605 0.5866 -0.6313 0.2260 0.1258 -0.9939 0.5378
    1.3484 -2.0319 -0.1574 0.1568 0.1034 1.5574 -0.9614 -0.0967 -0.3130 -0.7047 -1.5264 1.0134
"""


@KINDS
def test_published(kind: Any) -> None:
    """The figures of candle's own test, which are PyTorch's."""
    x, want = (np.array(text.split(), np.float32).reshape(2, 5, 3, 4) for text in (PUBLISHED, NORMED))
    layer = nn.BatchNorm.new_no_bias(5, *starting(5), 1e-8)
    got = layer.forward_train(kind.new(x)).numpy()
    # Given with four decimals.
    np.testing.assert_allclose(got, want, rtol=0, atol=6e-5)
    mean, variance = statistics(layer)
    np.testing.assert_array_equal(np.round(mean, 4), np.float32([-0.0133, 0.0197, -0.0153, -0.0073, -0.0020]))
    np.testing.assert_array_equal(np.round(variance, 4), np.float32([0.9972, 0.9842, 0.9956, 0.9866, 0.9898]))
    half, shift = Tensor.full(0.5, (5,), None, "f32"), Tensor.full(-1.5, (5,), None, "f32")
    scaled = nn.BatchNorm.new(5, *starting(5), half, shift, 1e-8).forward_train(kind.new(x)).numpy()
    assert_near(scaled, got * 0.5 - 1.5, F32)


def test_mlx() -> None:
    x, weight, bias = given((4, 3, 5, 2))
    theirs = mlx_nn.BatchNorm(3, EPS, 0.3)
    theirs.weight, theirs.bias = mx.array(weight), mx.array(bias)
    layer = nn.BatchNorm.new_with_momentum(3, *starting(3), Tensor(weight), Tensor(bias), EPS, 0.3)
    for step in range(3):
        batch = x + step
        want = np.array(theirs(mx.array(batch.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
        assert_near(layer(Tensor(batch)).numpy(), want, F32)
    mean, variance = statistics(layer)
    assert_near(mean, np.array(theirs.running_mean), F32)
    theirs.running_var = mx.array(variance)  # mlx.nn's is of the biased variance
    theirs.eval()
    want = np.array(theirs(mx.array(x.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
    check(layer.eval(), (x,), want)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 2, 2, 3)])
def test_slopes(shape: tuple[int, ...]) -> None:
    before = starting(shape[1], "f64")
    assert_slopes(lambda x, w, b: nn.BatchNorm(shape[1], *before, w, b, EPS)(x), *given(shape))
    assert_slopes(lambda x: nn.BatchNorm.new_no_bias(shape[1], *before, EPS)(x), given(shape)[0])
    assert_slopes(lambda x, w, b: nn.BatchNorm(shape[1], *before, w, b, EPS).eval()(x), *given(shape))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_gradients_of_halves(dtype: DType) -> None:
    x, weight, bias = (Var.from_tensor(Tensor(array).to_dtype(dtype)) for array in given((6, 3, 5)))
    wide = [Var.from_tensor(each.to_dtype(DType.F32)) for each in (x, weight, bias)]
    upstream = Tensor(normal(6, 3, 5, seed=5)).to_dtype(dtype)
    half = nn.BatchNorm(3, *starting(3), weight, bias, EPS)(x).mul(upstream).sum_all().backward()
    full = nn.BatchNorm(3, *starting(3), wide[1], wide[2], EPS)(wide[0])
    full_grads = full.mul(upstream.to_dtype(DType.F32)).sum_all().backward()
    for one, other in zip((x, weight, bias), wide):
        assert half[one].dtype is dtype
        assert_near(half[one].numpy(), full_grads[other].numpy(), VALUE[dtype])


@KINDS
@pytest.mark.parametrize("train", [True, False])
def test_statistics_get_no_gradient(kind: Any, train: bool) -> None:
    layer, variables = from_a_map(3)
    grads = layer.forward_t(kind.new(normal(4, 3, 5)), train).sqr().sum_all().backward()
    named = variables.data()
    assert sorted(named) == ["bias", "running_mean", "running_var", "weight"]
    assert [name for name in sorted(named) if grads.get(named[name]) is not None] == ["bias", "weight"]


# --- making one, errors -----------------------------------------------------------------------


def test_getters() -> None:
    row = Tensor(normal(3))
    layer = nn.BatchNorm.new_with_momentum(3, *starting(3), row, row, 1e-3, 0.2)
    assert (layer.eps(), layer.momentum()) == (1e-3, 0.2)
    assert layer.weight_and_bias() == (row, row) or layer.weight_and_bias()[0] is row  # type: ignore[index]
    assert nn.BatchNorm(3, *starting(3), row, row, 1e-3).momentum() == 0.1
    assert plain(3).weight_and_bias() is None
    assert layer.running_var().to_vec1() == [1.0] * 3


def test_from_a_builder() -> None:
    assert nn.BatchNormConfig.default() == nn.BatchNormConfig(1e-5, True, True, 0.1)
    layer, variables = from_a_map(3, 1e-3)
    assert (layer.eps(), layer.momentum()) == (1e-3, 0.1)
    assert list(variables.data()) == ["running_mean", "running_var", "weight", "bias"]
    layer.forward_train(Tensor(BATCHES[1]))
    assert_near(variables.data()["running_mean"].numpy(), after(BATCHES[1:2])[0], F32)
    bare, variables = from_a_map(3, nn.BatchNormConfig(affine=False, momentum=0.5))
    assert list(variables.data()) == ["running_mean", "running_var"]
    assert (bare.momentum(), bare.weight_and_bias()) == (0.5, None)


@KINDS
def test_refuses(kind: Any) -> None:
    layer = plain(3)
    for train in (True, False):
        with pytest.raises(ValueError, match=r"^batch_norm: got rank 1, shape \(3,\); takes rank 2 or more$"):
            layer.forward_t(kind.new(normal(3)), train)
    with pytest.raises(ValueError, match=r"^batch_norm: got shapes \(2, 4, 5\) and \(3,\); takes \(b, c, …\) and stat"):
        layer.forward_t(kind.new(normal(2, 4, 5)), False)
    row = Tensor(normal(3))
    affine = nn.BatchNorm(3, *starting(3), row, row, EPS)
    for layer in (plain(3), affine):
        with pytest.raises(ValueError, match=r"^batch_norm: got shapes \(2, 4, 5\) and \(3,\); takes \(b, c, …\) and"):
            layer(kind.new(normal(2, 4, 5)))
    with pytest.raises(TypeError, match=r"^batch_norm: dtypes differ, lhs f16, rhs f32"):
        affine(kind.new(normal(2, 3, 5)).to_dtype("f16"))
    with pytest.raises(TypeError, match=r"^batch_norm: got dtype i64; takes bf16, f16, f32 or f64"):
        plain(3)(kind.new([[1, 2, 3], [4, 5, 6]]))
    for shape in [(1, 3), (1, 3, 1, 1), (0, 3, 4)]:
        message = r"^batch_norm: got shape \(\d, 3.*\) in training; takes more than one value per channel$"
        with pytest.raises(ValueError, match=message):
            layer(kind.new(normal(*shape)))
        layer.forward_t(kind.new(normal(*shape)), False)
    assert_after(layer, [])


def test_refuses_to_be_made() -> None:
    row, short = Tensor(normal(3)), Tensor(normal(2))
    with pytest.raises(ValueError, match=r"^batch_norm: got -1.0 for eps; takes a finite number from 0$"):
        nn.BatchNorm(3, *starting(3), row, row, -1.0)
    for momentum in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^batch_norm: got momentum {momentum}; takes a number from 0 to 1$"):
            plain(3, momentum)
    with pytest.raises(TypeError, match=r"^batch_norm: got None for eps; takes a number"):
        nn.BatchNorm.new_no_bias(3, *starting(3), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^batch_norm: got weight of shape \(2,\); takes \(3,\)$"):
        nn.BatchNorm(3, *starting(3), short, row, EPS)
    with pytest.raises(ValueError, match=r"^batch_norm: got running_var of shape \(2,\); takes \(3,\)$"):
        nn.BatchNorm.new_no_bias(3, row, short, EPS)
    with pytest.raises(TypeError, match=r"^batch_norm: got config None; takes a BatchNormConfig or eps, a number"):
        nn.batch_norm(3, None, nn.VarBuilder.zeros("f32"))  # type: ignore[arg-type]
