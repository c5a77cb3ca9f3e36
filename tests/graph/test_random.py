"""``Uniform``, ``Normal`` and ``Dropout``: each node draws once, from the generator that ``set_seed`` seeds."""

from __future__ import annotations

from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.nn import ops

import numpy as np
import pytest


def test_a_seed_repeats_the_numbers() -> None:
    Device.Cpu.set_seed(7)
    first = Tensor.randn(0.0, 1.0, (5,)).to_vec1(), Tensor.rand(0.0, 1.0, (5,)).to_vec1()
    again = Tensor.randn(0.0, 1.0, (5,)).to_vec1()
    Device.Cpu.set_seed(7)
    assert (Tensor.randn(0.0, 1.0, (5,)).to_vec1(), Tensor.rand(0.0, 1.0, (5,)).to_vec1()) == first
    assert again != first[0]


def test_a_lazy_node_is_drawn_once() -> None:
    x = LazyTensor.randn(0.0, 1.0, (100,))
    assert np.all((x - x).eval().numpy() == 0)
    np.testing.assert_array_equal(x.eval().numpy(), x.eval().numpy())
    y = LazyTensor.randn(0.0, 1.0, (100,))
    assert np.any(x.eval().numpy() != y.eval().numpy())


def test_moments() -> None:
    """Of 20,000 numbers: the mean's standard error is 0.007 of the deviation, four of them are allowed."""
    normal = Tensor.randn(2.0, 3.0, (20_000,)).numpy()
    assert abs(normal.mean() - 2.0) < 4 * 3 / np.sqrt(20_000)
    assert abs(normal.std() - 3.0) < 4 * 3 / np.sqrt(40_000)
    uniform = Tensor.rand(-1.0, 3.0, (20_000,)).numpy()
    assert uniform.min() >= -1
    assert uniform.max() < 3
    assert abs(uniform.mean() - 1.0) < 4 * (4 / np.sqrt(12)) / np.sqrt(20_000)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16, DType.F64], ids=str)
def test_dtypes(dtype: DType) -> None:
    assert Tensor.randn(0.0, 1.0, (3,), dtype=dtype).dtype is dtype
    assert Tensor.rand(0.0, 1.0, (3,), dtype=dtype).dtype is dtype


def test_integers_are_refused_when_recorded() -> None:
    with pytest.raises(TypeError, match=r"rand: got dtype u8; takes bf16, f16, f32 or f64"):
        LazyTensor.rand(0.0, 1.0, (3,), dtype="u8")
    with pytest.raises(TypeError, match=r"randn: got dtype i64"):
        Tensor.randn(0.0, 1.0, (3,), dtype=DType.I64)


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_dropout_scales_and_its_gradient_sees_the_same_mask(kind: type[Tensor] | type[LazyTensor]) -> None:
    w = Var(np.full((1000,), 2.0, np.float32))
    x = w if kind is Tensor else LazyTensor.from_tensor(w)
    dropped = ops.dropout(x, 0.25)
    gradient = dropped.backward()[w].numpy()
    values = (dropped if kind is Tensor else dropped.eval()).numpy()
    np.testing.assert_allclose(np.unique(values), [0.0, 2.0 / 0.75], rtol=1e-6)
    np.testing.assert_array_equal(gradient != 0, values != 0)
    np.testing.assert_allclose(gradient[gradient != 0], 1 / 0.75, rtol=1e-6)
    # Of 1000: the share's standard error is 0.0137.
    assert abs((values == 0).mean() - 0.25) < 4 * 0.0137


def test_dropout_refuses() -> None:
    with pytest.raises(ValueError, match=r"dropout: got drop_p 1\.0; takes 0 <= drop_p < 1"):
        ops.dropout(Tensor([1.0]), 1.0)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16, DType.F64], ids=str)
def test_uniform_never_gives_the_upper_bound(dtype: DType) -> None:
    """Rounding a draw to a half, or between close bounds, would reach it some thousand times in a million."""
    for low, high in ((0.0, 1.0), (1.0, 1.0625)):
        drawn = Tensor.rand(low, high, (500_000,), dtype=dtype).to_dtype("f64").numpy()
        assert low <= drawn.min()
        assert drawn.max() < high
