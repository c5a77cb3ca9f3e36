"""``nn.Dropout`` and ``ops.dropout``: masks by the seed, in each kind of graph; means; gradients; modes; refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn
from metal_candle.nn import ops

import mlx.core as mx
import numpy as np
import pytest
from checking import FLOATS, normal

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
N = 20_000


def two(x: Any) -> Any:
    """Two masks, one after the other, in one tensor."""
    return type(x).stack([ops.dropout(x, 0.3), ops.dropout(x, 0.6)], 0)


def masks_of(draw: Callable[[], Any], seed: Callable[[int], None]) -> np.ndarray[Any, Any]:
    seed(11)
    kept: np.ndarray[Any, Any] = draw().numpy() != 0
    return kept


@pytest.mark.parametrize("seed", [Device.Cpu.set_seed, mx.random.seed], ids=["set_seed", "mx.random.seed"])
def test_a_seed_gives_the_same_masks_however_they_are_computed(seed: Callable[[int], None]) -> None:
    x = Tensor.ones((2, 500))
    compiled = mc.compile(two)
    compiled(x)  # traced before the seed is set
    ways = [lambda: two(x), lambda: two(LazyTensor.from_tensor(x)), lambda: compiled(x)]
    eager, lazy, replayed = (masks_of(way, seed) for way in ways)
    np.testing.assert_array_equal(eager, lazy)
    np.testing.assert_array_equal(eager, replayed)
    assert np.any(eager[0] != eager[1])
    for way in ways:  # and goes on with others
        assert np.any((way().numpy() != 0) != eager)


@KINDS
def test_a_mask_is_new_at_each_call(kind: Any) -> None:
    x, layer = kind.new(np.ones(500, np.float32)), nn.Dropout(0.5)
    compiled = mc.compile(lambda t: layer(t))
    for call in (layer, compiled):
        masks = [call(x).numpy() for _ in range(3)]
        assert np.any(masks[0] != masks[1])
        assert np.any(masks[1] != masks[2])


def test_a_lazy_mask_is_drawn_once() -> None:
    dropped = ops.dropout(LazyTensor.new(np.ones(500, np.float32)), 0.5)
    np.testing.assert_array_equal(dropped.eval().numpy(), dropped.eval().numpy())
    assert not (dropped - dropped).eval().numpy().any()


@pytest.mark.parametrize("dtype", [*FLOATS, DType.F64], ids=str)
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.77, 0.999])
def test_share_and_values(p: float, dtype: DType) -> None:
    """Four standard errors of the share are allowed; a kept element is x / (1 - p), rounded once."""
    mx.random.seed(3)
    x = Tensor.new(np.full(N, 2.75), Device.Cpu, dtype)
    dropped = ops.dropout(x, p)
    assert dropped.dtype is dtype
    values = dropped.to_dtype(DType.F64).numpy()
    share = (values == 0).mean()
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / N)
    want = Tensor.new(np.array([2.75 / (1 - p)]), Device.Cpu).to_dtype(dtype).to_dtype(DType.F64).to_vec1()[0]
    # float32's factor is rounded, and the product again.
    np.testing.assert_allclose(values[values != 0], want, rtol=2e-7 if dtype in (DType.F32, DType.F64) else 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_mean_is_kept(dtype: DType) -> None:
    """In BF16 1 / 0.9 is 1.109, 0.16 % low: of many different numbers the mean must not show that."""
    mx.random.seed(4)
    x = Tensor.rand(1.0, 2.0, (1_000_000,)).to_dtype(dtype)
    kept = ops.dropout(x, 0.1).to_dtype(DType.F32).numpy()
    ratio = kept[kept != 0] / x.to_dtype(DType.F32).numpy()[kept != 0]
    # Each is off by a rounding of at most 2^-8, evenly up and down.
    assert abs(ratio.mean(dtype=np.float64) * 0.9 - 1) < 1e-4


def test_neighbours_are_independent() -> None:
    """Counts of the patterns of four neighbours, whose bits come from one key: chi-square, 15 degrees of freedom."""
    mx.random.seed(5)
    for p in (0.5, 0.3):
        kept = (ops.dropout(Tensor.ones((4 * N,)), p).numpy() != 0).reshape(-1, 4)
        counts = np.bincount(kept @ np.array([1, 2, 4, 8]), minlength=16)
        ones = np.array([bin(pattern).count("1") for pattern in range(16)])
        want = N * (1 - p) ** ones * p ** (4 - ones)
        assert ((counts - want) ** 2 / want).sum() < 37.7  # of one in a thousand


@KINDS
@pytest.mark.parametrize("dtype", [*FLOATS, DType.F64], ids=str)
def test_the_gradient_sees_the_mask(kind: Any, dtype: DType) -> None:
    variable = Var.new(np.full(N, 2.0), Device.Cpu, dtype)
    for held in (True, False):
        dropped = ops.dropout(variable if kind is Tensor else LazyTensor.from_tensor(variable), 0.25)
        if held:
            dropped.numpy()  # computed earlier than its gradient
        gradient = dropped.sum_all().backward()[variable].to_dtype(DType.F64).numpy()
        kept = dropped.numpy() != 0
        np.testing.assert_array_equal(gradient != 0, kept)
        np.testing.assert_allclose(gradient[kept], 1 / 0.75, rtol=4e-3 if dtype in (DType.F16, DType.BF16) else 1e-6)


def test_the_gradient_sees_the_mask_when_compiled() -> None:
    x, layer = Var(np.ones(500, np.float32)), nn.Dropout(0.5)

    def step(t: Any) -> Any:
        dropped = layer(x * t)
        return dropped, dropped.sum_all().backward()[x]

    compiled = mc.compile(step)
    for _ in range(3):
        dropped, gradient = compiled(Tensor.ones((500,)))
        np.testing.assert_array_equal(dropped.numpy(), gradient.numpy())


@KINDS
def test_off_it_is_the_identity(kind: Any) -> None:
    x = kind.new(normal(3, 4))
    layer = nn.Dropout(0.5)
    before = mx.array(mx.random.state[0])
    assert layer(x, False) is x
    assert layer.forward(x, train=False) is x
    assert layer.forward_t(x, False) is x
    assert x.apply_t(layer, False) is x
    assert layer.eval()(x) is x
    assert nn.Dropout.new(0.0)(x, True) is x
    assert ops.dropout(x, 0.0) is x
    # Nothing was drawn, either.
    assert before.tolist() == mx.random.state[0].tolist()
    assert np.any(layer(x, True).numpy() == 0) or np.any(layer(x, True).numpy() == 0)


def test_it_goes_with_its_model() -> None:
    model = nn.seq().add(nn.Dropout(0.9)).add_fn(lambda xs: xs * 2.0)
    x = Tensor.ones((100,))
    assert np.any(model(x).numpy() == 0)
    assert model.forward_t(x, False).to_vec1() == [2.0] * 100
    assert model.eval()(x).to_vec1() == [2.0] * 100
    assert np.any(model.forward_t(x, True).numpy() == 0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0, 4), (5, 7), (2, 3, 5)])
@pytest.mark.parametrize("p", [0.4, 0.9])
def test_shapes(shape: tuple[int, ...], p: float) -> None:
    assert tuple(ops.dropout(Tensor.ones(shape), p).shape) == shape
    assert tuple(ops.dropout(LazyTensor.ones(shape), p).eval().shape) == shape


def test_products_as_candles() -> None:
    """A dropped infinity or NaN shows: it is multiplied by 0."""
    x = Tensor.new(np.array([np.inf, np.nan] * 50, np.float32))
    values = ops.dropout(x, 0.5).numpy()
    assert not np.any(values == 0)


@KINDS
@pytest.mark.parametrize("p", [1.0, -0.1, float("nan"), 2])
def test_refusals(kind: Any, p: float) -> None:
    text = rf"^dropout: got drop_p {float(p)}; takes 0 <= drop_p < 1$"
    with pytest.raises(mc.error.ArgumentValueError, match=text):
        nn.Dropout(p)
    with pytest.raises(mc.error.ArgumentValueError, match=text):
        ops.dropout(kind.new([1.0]), p)
    with pytest.raises(mc.error.ArgumentTypeError, match=r"^dropout: got '0.5' for drop_p; takes a number$"):
        nn.Dropout("0.5")  # type: ignore[arg-type]
    with pytest.raises(mc.error.UnsupportedDTypeForOpError, match=r"^dropout: got dtype i64; takes bf16"):
        nn.Dropout(0.5)(kind.new([1, 2]))
