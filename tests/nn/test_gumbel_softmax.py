"""``nn.sampling.gumbel_softmax``: the distribution, temperatures, seeds, dims and dtypes."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.nn.sampling import gumbel_softmax

import mlx.core as mx
import numpy as np
import pytest
from checking import normal

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
N = 20_000


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F64], ids=str)
def test_distribution(temperature: float, dtype: DType) -> None:
    """Chi-square against softmax(logits / temperature), 5 degrees of freedom: 20.5 is passed once in a thousand."""
    mx.random.seed(1)
    logits = np.array([0.5, -1.0, 1.5, 0.25, -0.5, 1.0])
    drawn = gumbel_softmax(Tensor.new(np.tile(logits, (N, 1)), Device.Cpu, dtype), temperature, 1)
    counts = np.bincount(drawn.numpy(), minlength=6)
    want = N * softmax(logits / temperature)
    assert ((counts - want) ** 2 / want).sum() < 20.5


def test_unlikely_ids_are_drawn_as_often_as_they_should_be() -> None:
    """Noise cut off at u = 0.999, which candle's is, reaches 6.9: an id 9.8 below the other would never be drawn."""
    mx.random.seed(2)
    gap = 9.8
    count = sum(
        int(gumbel_softmax(Tensor.new(np.tile(np.float32([gap, 0]), (500_000, 1))), 1.0, -1).to_dtype("i64").sum_all())
        for _ in range(2)
    )
    want = 1_000_000 / (1 + np.exp(gap))  # 55
    assert abs(count - want) < 4 * np.sqrt(want)


@KINDS
def test_at_temperature_0_it_is_argmax(kind: Any) -> None:
    logits = kind.new(normal(3, 5, 4))
    before = mx.array(mx.random.state[0])
    for dim in (0, 1, -1):
        for temperature in (0, 0.0, -1.0):
            got = gumbel_softmax(logits, temperature, dim)
            assert isinstance(got, kind)
            np.testing.assert_array_equal(got.numpy(), logits.argmax(dim).numpy())
    assert before.tolist() == mx.random.state[0].tolist()
    assert gumbel_softmax(kind.new([1, 3, 2]), 0.0, 0).to_scalar() == 1


@KINDS
def test_ids_are_u32_of_the_other_dims(kind: Any) -> None:
    logits = kind.new(normal(3, 5, 4))
    for dim, shape in ((0, [5, 4]), (1, [3, 4]), (-1, [3, 5])):
        got = gumbel_softmax(logits, 1.0, dim)
        assert (got.dtype, got.dims()) == (DType.U32, shape)
        assert got.numpy().max() < logits.dim(dim)


def test_a_seed_repeats_them_however_they_are_computed() -> None:
    logits = Tensor(normal(200, 7))
    compiled = mc.compile(lambda t: gumbel_softmax(t, 0.8, 1))
    compiled(logits)
    drawn = []
    for way in (
        lambda: gumbel_softmax(logits, 0.8, 1),
        lambda: gumbel_softmax(LazyTensor.from_tensor(logits), 0.8, 1),
        lambda: compiled(logits),
    ):
        Device.Cpu.set_seed(9)
        drawn.append([way().tolist(), way().tolist()])
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_a_forbidden_id_is_never_drawn() -> None:
    logits = Tensor.new(np.tile(np.float32([-np.inf, 0, -np.inf, -50]), (N, 1)))
    assert set(gumbel_softmax(logits, 5.0, 1).tolist()) <= {1, 3}


@KINDS
def test_refusals(kind: Any) -> None:
    logits = kind.new(normal(2, 3))
    for call, error, text in [
        (lambda: gumbel_softmax(logits, 1.0, 2), mc.error.DimOutOfRangeError, "argmax: .*"),
        (
            lambda: gumbel_softmax(logits, "1", 1),
            mc.error.ArgumentTypeError,
            "gumbel_softmax: got '1' for temperature; takes a number",
        ),
        (
            lambda: gumbel_softmax(logits, float("nan"), 1),
            mc.error.ArgumentValueError,
            "gumbel_softmax: got temperature nan; takes a finite number",
        ),
        (
            lambda: gumbel_softmax(kind.new([[1, 2]]), 1.0, 1),
            mc.error.UnsupportedDTypeForOpError,
            "rand_like: got dtype i64.*|rand: got dtype i64.*",
        ),
        (lambda: gumbel_softmax(kind.new(np.zeros((2, 0), np.float32)), 1.0, 1), mc.error.EmptyTensorError, ".*"),
    ]:
        with pytest.raises(error, match=f"^({text})$"):
            call()
