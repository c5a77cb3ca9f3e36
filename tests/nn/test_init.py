"""``Init``: every way a variable may start, its fans and gains; ``mlx.nn.init`` and PyTorch's formulas."""

from __future__ import annotations

import math
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, Var, nn
from metal_candle.nn import FanInOut, Init, NonLinearity, NormalOrUniform, init

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

FLOATS = pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16, DType.F64])
DISTRIBUTIONS = pytest.mark.parametrize("dist", list(NormalOrUniform))
FANS = pytest.mark.parametrize("fan", list(FanInOut))
# Standard errors over 40,000 numbers: 0.5 % of the deviation for a mean, 0.35 % for a deviation. Five and more.
COUNT, MEAN, DEVIATION = 40_000, 0.025, 0.02


@pytest.fixture(autouse=True)
def _seeded() -> None:
    Device.Cpu.set_seed(0)


def drawn(start: Init, shape: Any, dtype: DType = DType.F32) -> Any:
    """The values, in float64."""
    var = start.var(shape, dtype, Device.Cpu)
    assert isinstance(var, Var)
    assert var.dtype is dtype
    assert tuple(var.shape) == tuple(shape)
    return var.numpy().astype(np.float64)


def assert_normal(values: Any, mean: float, deviation: float) -> None:
    assert abs(values.mean() - mean) < MEAN * deviation
    assert values.std() == pytest.approx(deviation, rel=DEVIATION)
    # Normal, not uniform: kurtosis 3, with a standard error of sqrt(24 / n), against 1.8.
    assert ((values - mean) ** 4).mean() / deviation**4 == pytest.approx(3, abs=0.2)


def assert_uniform(values: Any, bound: float) -> None:
    """In ±bound, where halves may round up to it."""
    assert abs(values.mean()) < MEAN * bound
    assert np.abs(values).max() <= bound * (1 + 2**-8)
    assert np.abs(values).max() > 0.99 * bound
    assert np.histogram(values, 10, (-bound, bound))[0] == pytest.approx(len(values.ravel()) / 10, rel=0.1)


@FLOATS
def test_constant(dtype: DType) -> None:
    assert (drawn(Init.Const(2.5), (3, 2), dtype) == 2.5).all()
    assert (drawn(init.ZERO, (2,), dtype) == 0).all()
    assert (drawn(init.ONE, (), dtype) == 1).all()
    assert Init.default() is init.ZERO
    assert Init.Const(0.0) == Init.default()


def test_constants_may_be_integers() -> None:
    assert Init.Const(3.0).var((2,), DType.I64).to_vec1() == [3, 3]


@FLOATS
def test_normal(dtype: DType) -> None:
    assert_normal(drawn(Init.Randn(1.5, 0.5), (200, COUNT // 200), dtype), 1.5, 0.5)
    assert Init.Randn(mean=1.5, stdev=0.5) == Init.Randn(1.5, 0.5)


@FLOATS
def test_uniform(dtype: DType) -> None:
    assert_uniform(drawn(Init.Uniform(lo=1.0, up=2.0), (200, COUNT // 200), dtype) - 1.5, 0.5)


@DISTRIBUTIONS
@FANS
@FLOATS
def test_kaiming_in_every_dtype(dist: NormalOrUniform, fan: FanInOut, dtype: DType) -> None:
    values = drawn(Init.Kaiming(dist, fan, NonLinearity.ReLU), (100, COUNT // 100), dtype)
    deviation = math.sqrt(2 / (COUNT // 100 if fan is FanInOut.FanIn else 100))
    if dist is NormalOrUniform.Normal:
        assert_normal(values, 0.0, deviation)
    else:
        assert_uniform(values, math.sqrt(3) * deviation)


GAINS = [
    (NonLinearity.ReLU, math.sqrt(2)),
    (NonLinearity.Linear, 1.0),
    (NonLinearity.Sigmoid, 1.0),
    (NonLinearity.Tanh, 5 / 3),
    (NonLinearity.SELU, 0.75),
    (NonLinearity.ExplicitGain(0.3), 0.3),
]


@pytest.mark.parametrize(("non_linearity", "gain"), GAINS, ids=[str(what.variant) for what, _ in GAINS])
def test_gains(non_linearity: NonLinearity, gain: float) -> None:
    assert non_linearity.gain() == pytest.approx(gain, rel=1e-15)
    start = Init.Kaiming(dist=NormalOrUniform.Uniform, fan=FanInOut.FanIn, non_linearity=non_linearity)
    assert_uniform(drawn(start, (400, 10, 2, 5)), math.sqrt(3 / 100) * gain)


@pytest.mark.parametrize(
    ("shape", "fan_in", "fan_out"),
    [
        ((), 1, 1),
        ((7,), 1, 7),
        ((7, 5), 5, 7),
        ((7, 5, 3), 15, 21),
        ((7, 5, 3, 2), 30, 42),
        ((7, 5, 3, 2, 2), 60, 84),
        ((7, 0), 0, 7),
        ((0, 5, 3), 15, 0),
    ],
)
def test_fans(shape: tuple[int, ...], fan_in: int, fan_out: int) -> None:
    assert FanInOut.FanIn.for_shape(shape) == fan_in
    assert FanInOut.FanOut.for_shape(mc.Shape.of(shape)) == fan_out
    assert FanInOut.FanOut.for_shape(list(shape)) == fan_out


@FANS
def test_few_dims(fan: FanInOut) -> None:
    """candle's fans of fewer than two dims, where PyTorch refuses."""
    start = Init.Kaiming(NormalOrUniform.Normal, fan, NonLinearity.Linear)
    deviation = 1.0 if fan is FanInOut.FanIn else 1 / math.sqrt(COUNT)
    assert_normal(drawn(start, (COUNT,)), 0.0, deviation)
    assert drawn(start, ()).shape == ()


@FANS
@DISTRIBUTIONS
def test_nothing_to_draw_and_no_fan(dist: NormalOrUniform, fan: FanInOut) -> None:
    start = Init.Kaiming(dist, fan, NonLinearity.ReLU)
    assert drawn(start, (3, 0)).size == 0
    assert drawn(start, (0, 3)).size == 0


def test_defaults() -> None:
    relu_in = (FanInOut.FanIn, NonLinearity.ReLU)
    assert Init.Kaiming(NormalOrUniform.Normal, *relu_in) == init.DEFAULT_KAIMING_NORMAL
    assert Init.Kaiming(NormalOrUniform.Uniform, *relu_in) == init.DEFAULT_KAIMING_UNIFORM
    assert init.DEFAULT_KAIMING_NORMAL != init.DEFAULT_KAIMING_UNIFORM
    assert isinstance(Init.Uniform(0.0, 1.0), Init)


@pytest.mark.parametrize(
    "start", [Init.Randn(0.0, 1.0), Init.Uniform(0.0, 1.0), init.DEFAULT_KAIMING_NORMAL, init.DEFAULT_KAIMING_UNIFORM]
)
def test_a_seed_decides(start: Init) -> None:
    first, second = drawn(start, (4, 5)), drawn(start, (4, 5))
    assert (first != second).any()
    Device.Cpu.set_seed(0)
    assert (drawn(start, (4, 5)) == first).all()
    Device.Cpu.set_seed(1)
    assert (drawn(start, (4, 5)) != first).any()


def test_refuses_random_integers() -> None:
    for start, name in (
        (Init.Randn(0.0, 1.0), "randn"),
        (Init.Uniform(0.0, 1.0), "rand"),
        (init.DEFAULT_KAIMING_NORMAL, "randn"),
        (init.DEFAULT_KAIMING_UNIFORM, "rand"),
    ):
        with pytest.raises(mc.error.UnsupportedDTypeForOpError) as found:
            start.var((2, 2), DType.I64)
        assert str(found.value) == f"{name}: got dtype i64; takes bf16, f16, f32 or f64"


def test_refuses_bounds_the_wrong_way() -> None:
    with pytest.raises(mc.error.ArgumentValueError, match=r"^rand: got lo 1\.0, up 0\.0; takes lo < up$"):
        Init.Uniform(1.0, 0.0).var((2,), "f32")


def test_mlx_nn_init() -> None:
    """The same deviations and bounds: theirs are for (out, in) weights, too, and gain 1 by default."""
    like, shape = mx.zeros((100, 400)), (100, 400)
    gain = math.sqrt(2)
    for name, fan in (("fan_in", FanInOut.FanIn), ("fan_out", FanInOut.FanOut)):
        normal = np.array(mlx.nn.init.he_normal()(like, mode=name, gain=gain), np.float64)
        ours = drawn(Init.Kaiming(NormalOrUniform.Normal, fan, NonLinearity.ReLU), shape)
        assert ours.std() == pytest.approx(normal.std(), rel=2 * DEVIATION)
        uniform = np.array(mlx.nn.init.he_uniform()(like, mode=name, gain=gain), np.float64)
        ours = drawn(Init.Kaiming(NormalOrUniform.Uniform, fan, NonLinearity.ReLU), shape)
        assert ours.std() == pytest.approx(uniform.std(), rel=2 * DEVIATION)
        assert np.abs(ours).max() == pytest.approx(np.abs(uniform).max(), rel=2e-3)


def test_builders_start_what_a_map_lacks() -> None:
    """``get`` starts at zeros, ``get_with_hints`` as it is told; the map's later requests do not start anew."""
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, DType.F32)
    assert vb.get((3,), "a").to_vec1() == [0.0] * 3
    assert vb.get_with_hints((3,), "b", Init.Const(2.0)).to_vec1() == [2.0] * 3
    assert vb.get_with_hints((3,), "a", Init.Const(2.0)).to_vec1() == [0.0] * 3
