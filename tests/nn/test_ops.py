"""Functions of ``nn.ops``: values, slopes, numbers at the ends of the range, pixels, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, nn
from metal_candle.graph.operations import piecewise
from metal_candle.nn import ops

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import FLOATS, assert_slopes, check, check_dtypes, normal
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
SHAPES = [(), (1,), (0, 3), (5, 7), (2, 3, 4)]
ALPHA, GAMMA = 1.6732632423543772, 1.0507009873554805


def softmax(x: Any, dim: int = -1) -> Any:
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# What is computed element by element: the function, its definition, and mlx.nn's.
ELEMENTWISE: dict[str, tuple[Callable[..., Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "silu": (ops.silu, lambda x: x * sigmoid(x), mlx.nn.silu),
    "sigmoid": (ops.sigmoid, sigmoid, mx.sigmoid),
    "hard_sigmoid": (ops.hard_sigmoid, lambda x: np.clip((x + 3) / 6, 0, 1), lambda x: mlx.nn.relu6(x + 3) / 6),
    "mish": (ops.mish, lambda x: x * np.tanh(np.logaddexp(0, x)), mlx.nn.mish),
    "leaky_relu": (
        lambda x: ops.leaky_relu(x, 0.2),
        lambda x: np.where(x > 0, x, 0.2 * x),
        lambda x: mlx.nn.leaky_relu(x, 0.2),
    ),
    "selu": (
        lambda x: ops.selu(x, ALPHA, GAMMA),
        lambda x: GAMMA * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
        mlx.nn.selu,
    ),
}
EACH = pytest.mark.parametrize("name", ELEMENTWISE)


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise(name: str, shape: tuple[int, ...]) -> None:
    ours, numpy, theirs = ELEMENTWISE[name]
    x = 3 * normal(*shape)
    check_dtypes(ours, (x,), numpy)
    check(ours, (x,), np.array(theirs(mx.array(x))))


@EACH
def test_slopes(name: str) -> None:
    x = 4 * normal(5, 3)
    assert_slopes(ELEMENTWISE[name][0], x)
    assert_slopes(lambda t: ELEMENTWISE[name][0](t.t()), x)


@EACH
def test_one_node_each(name: str) -> None:
    x = LazyTensor.new(normal(3))
    assert ELEMENTWISE[name][0](x).graph_size() == x.graph_size() + 1


@EACH
def test_integers_are_refused(name: str) -> None:
    for kind in (Tensor, LazyTensor):
        with pytest.raises(mc.error.UnsupportedDTypeForOpError, match=rf"{name}: got dtype i64; takes bf16, f16"):
            ELEMENTWISE[name][0](kind.new([1, 2]))


@KINDS
@pytest.mark.parametrize("dtype", [*FLOATS, DType.F64], ids=str)
@EACH
def test_large_numbers_and_their_gradients_are_finite(name: str, dtype: DType, kind: Any) -> None:
    """exp(x) overflows from 12 on in F16, from 89 on in F32."""
    ours, numpy, _ = ELEMENTWISE[name]
    x = np.array([-3e4, -700.0, -100.0, -12.0, 12.0, 100.0, 700.0, 3e4])
    variable = Var.new(x, mc.Device.Cpu, dtype)
    result = ours(variable if kind is Tensor else LazyTensor.from_tensor(variable))
    gradient = result.sum_all().backward()[variable].to_dtype(DType.F64).numpy()
    with np.errstate(over="ignore"):
        want = numpy(variable.to_dtype(DType.F64).numpy())
    np.testing.assert_allclose(result.to_dtype(DType.F64).numpy(), want, rtol=1e-2, atol=1e-3)
    right, left = {"selu": (GAMMA, 0), "leaky_relu": (1, 0.2)}.get(name, (1 if name in ("silu", "mish") else 0, 0))
    np.testing.assert_allclose(gradient, [left] * 4 + [right] * 4, rtol=1e-2, atol=1e-3)


@given(st.floats(-1e6, 1e6, width=32))
@settings(deadline=None, max_examples=60)
def test_mish_anywhere(x: float) -> None:
    variable = Var(np.array([x], np.float32))
    result = ops.mish(variable)
    value = x * math.tanh(max(x, 0) + math.log1p(math.exp(-abs(x))))
    assert result.to_vec1()[0] == pytest.approx(value, rel=4e-6, abs=1e-30)
    part = math.tanh(max(x, 0) + math.log1p(math.exp(-abs(x))))
    slope = part + x * (1 - part * part) * (math.exp(min(x, 0)) / (1 + math.exp(-abs(x))))
    assert result.backward()[variable].to_vec1()[0] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_mish_in_pieces_that_fit_the_cache() -> None:
    x = 5 * normal(300_000)
    check(ops.mish, (x,), x * np.tanh(np.logaddexp(0, x.astype(np.float64))))


def test_the_launch_that_a_gpu_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """mx.compile works on the CPU, too; the others are compiled by the same lines, and each takes a second."""

    def both() -> tuple[Any, Any]:
        variable = Var.new(4 * normal(5, 7), dtype=DType.BF16)
        result = ops.mish(variable)
        return result.to_dtype(DType.F32).numpy(), result.sum_all().backward()[variable].to_dtype(DType.F32).numpy()

    want = both()
    monkeypatch.setattr(piecewise, "on_cpu", lambda: False)
    for got, wanted in zip(both(), want):
        np.testing.assert_allclose(got, wanted, rtol=2**-7, atol=1e-6)


KINKS = [
    ("hard_sigmoid", [-3.0, 3.0, 2.0, 4.0], [1 / 12, 1 / 12, 1 / 6, 0]),
    ("leaky_relu", [0.0, -0.0, 1.0, -1.0], [0.6, 0.6, 1.0, 0.2]),
    ("selu", [0.0, 1.0], [ALPHA * GAMMA, GAMMA]),
]


@KINDS
@pytest.mark.parametrize(("name", "x", "slopes"), KINKS)
def test_gradients_at_kinks_are_candles(kind: Any, name: str, x: list[float], slopes: list[float]) -> None:
    variable = Var(np.array(x, np.float32))
    given = variable if kind is Tensor else LazyTensor.from_tensor(variable)
    found = ELEMENTWISE[name][0](given).sum_all().backward()[variable]
    np.testing.assert_allclose(found.numpy(), slopes, rtol=1e-6)


@EACH
def test_nan_stays(name: str) -> None:
    assert np.isnan(ELEMENTWISE[name][0](Tensor([float("nan")])).numpy()).all()


# --- softmax, swiglu --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1, mc.D.Minus2])
def test_softmax_along_each_dim(dim: Any) -> None:
    axis = dim if isinstance(dim, int) else -2
    x = normal(4, 5)
    check_dtypes(lambda t: ops.softmax(t, dim), (x,), lambda x: softmax(x, axis))
    check_dtypes(lambda t: ops.log_softmax(t, dim), (x,), lambda x: np.log(softmax(x, axis)))


def test_softmax_passes_gradients_whatever_its_layout() -> None:
    x = normal(3, 4)
    assert_slopes(ops.softmax_last_dim, x)
    assert_slopes(lambda t: ops.softmax_last_dim(t.t()), x)
    assert_slopes(lambda t: ops.log_softmax(t, 0), x)
    check_dtypes(ops.softmax_last_dim, (x,), softmax)


def test_published_softmax() -> None:
    """The example of candle's documentation."""
    want = [[0.1345, 0.3655, 0.1345, 0.3655], [0.0049, 0.2671, 0.7262, 0.0018]]
    got = ops.softmax(Tensor([[0.0, 1.0, 0.0, 1.0], [-2.0, 2.0, 3.0, -3.0]]), 1)
    np.testing.assert_array_equal(got.numpy().round(4), np.array(want, np.float32))


def test_swiglu() -> None:
    for shape in [(6,), (3, 6), (2, 3, 4), (2, 0), (0, 4)]:
        x = normal(*shape)
        half = shape[-1] // 2
        check_dtypes(ops.swiglu, (x,), lambda x, h=half: x[..., :h] * sigmoid(x[..., :h]) * x[..., h:])
    assert_slopes(ops.swiglu, normal(3, 6))
    gate, up = normal(2, 5), normal(2, 5, seed=1)
    check_dtypes(ops.silu_mul, (gate, up), lambda gate, up: gate * sigmoid(gate) * up)
    assert_slopes(ops.silu_mul, gate, up)


@KINDS
def test_swiglu_refuses(kind: Any) -> None:
    for shape in [(2, 3), (1,)]:
        with pytest.raises(mc.error.ShapeMismatchError, match=r"swiglu: got shape .*; takes a last dim of even size"):
            ops.swiglu(kind.new(normal(*shape)))
    with pytest.raises(mc.error.DimOutOfRangeError, match="swiglu"):
        ops.swiglu(kind.new(1.0))


def test_numbers_are_numbers() -> None:
    x = Tensor([1.0])
    for call, name in [
        (lambda: ops.leaky_relu(x, "0.1"), r"leaky_relu: got '0.1' for negative_slope; takes a number"),
        (lambda: ops.selu(x, None, 1.0), r"selu: got None for alpha; takes a number"),  # type: ignore[arg-type]
        (lambda: ops.selu(x, 1.0, True), r"selu: got True for gamma; takes a number"),
        (lambda: ops.dropout(x, "a"), r"dropout: got 'a' for drop_p; takes a number"),  # type: ignore[arg-type]
        (lambda: ops.softcap(x, []), r"softcap: got a list for cap; takes a number"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(mc.error.ArgumentTypeError, match=f"^{name}$"):
            call()


# --- pixels -----------------------------------------------------------------------------------


def shuffled(x: Any, r: int) -> Any:
    """``pixel_shuffle`` pixel by pixel."""
    b, c, h, w = x.shape
    result = np.empty((b, c // r**2, h * r, w * r), x.dtype)
    for channel, i, j in np.ndindex(*result.shape[1:]):
        result[:, channel, i, j] = x[:, channel * r * r + (i % r) * r + j % r, i // r, j // r]
    return result


@pytest.mark.parametrize(("shape", "r"), [((2, 4, 3, 5), 2), ((1, 18, 2, 1), 3), ((1, 3, 2, 2), 1), ((0, 4, 1, 1), 2)])
def test_pixel_shuffle(shape: tuple[int, ...], r: int) -> None:
    x = normal(*shape)
    check_dtypes(lambda t: ops.pixel_shuffle(t, r), (x,), lambda x: shuffled(x, r))
    check(lambda t: ops.pixel_unshuffle(t, r), (shuffled(x, r),), x)
    check(
        lambda t: ops.pixel_shuffle(t, r),
        (np.arange(math.prod(shape)).reshape(shape),),
        shuffled(np.arange(math.prod(shape)).reshape(shape), r),
    )


def test_pixel_slopes() -> None:
    assert_slopes(lambda t: ops.pixel_shuffle(t, 2), normal(1, 4, 2, 3))
    assert_slopes(lambda t: ops.pixel_unshuffle(t.transpose(2, 3), 2), normal(1, 2, 4, 2))
    assert_slopes(lambda t: ops.replication_pad2d(t, 2), normal(1, 2, 3, 2))


@pytest.mark.parametrize("pad", [0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 3, 1)])
def test_replication_pad2d(shape: tuple[int, ...], pad: int) -> None:
    def padded(x: Any) -> Any:
        return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")

    check_dtypes(lambda t: ops.replication_pad2d(t, pad), (normal(*shape),), padded)


@KINDS
def test_pixels_refuse(kind: Any) -> None:
    x = kind.new(normal(1, 6, 3, 4))
    for call, kind_of_error, text in [
        (lambda: ops.pixel_shuffle(x, 2), ValueError, r"pixel_shuffle: got 6 channels; takes a multiple of 4"),
        (lambda: ops.pixel_shuffle(x, 0), ValueError, r"pixel_shuffle: got upscale_factor 0; takes 1 or more"),
        (lambda: ops.pixel_shuffle(x, 1.5), TypeError, r"pixel_shuffle: got upscale_factor 1\.5; takes an integer"),
        (lambda: ops.pixel_unshuffle(x, 2), ValueError, r"pixel_unshuffle: got 3 x 4 pixels; takes multiples of 2"),
        (lambda: ops.replication_pad2d(x, -1), ValueError, r"replication_pad2d: got pad -1; takes 0 or more"),
    ]:
        with pytest.raises(kind_of_error, match=f"^{text}$"):
            call()
    flat = kind.new(normal(3, 4))
    for call in (ops.pixel_shuffle, ops.pixel_unshuffle, ops.replication_pad2d):
        with pytest.raises(mc.error.UnexpectedNumberOfDimsError):
            call(flat, 1)
    with pytest.raises(mc.error.EmptyTensorError):
        ops.replication_pad2d(kind.new(np.zeros((1, 1, 0, 2), np.float32)), 1)


@KINDS
def test_identity(kind: Any) -> None:
    x = kind.new(normal(2))
    for made in (ops.Identity(), ops.Identity.new(), ops.Identity.default()):
        assert made(x) is x
        assert made.forward_t(x, True) is x
    assert nn.seq().add(ops.Identity()).forward(x) is x


@pytest.mark.parametrize("cap", [1.0, 5.0])
def test_attention_without_a_scale_has_the_usual_one(cap: float) -> None:
    q, k, v = (Tensor(normal(1, 2, 3, 16, seed=seed)) for seed in range(3))
    same = ops.sdpa(q, k, v, scale=0.25, softcapping=cap)
    np.testing.assert_array_equal(ops.sdpa(q, k, v, softcapping=cap).numpy(), same.numpy())
