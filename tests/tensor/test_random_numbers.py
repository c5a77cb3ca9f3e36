"""Random numbers: repeated by seeds, spread as they should be, and refused where there are none."""

from __future__ import annotations

import re
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, error

import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
FLOATS = pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32, DType.F64], ids=str)


@KINDS
@FLOATS
def test_random_numbers_repeat_after_seeding(kind: Any, dtype: DType) -> None:
    def draw() -> list[Any]:
        Device.Cpu.set_seed(11)
        base = kind.zeros((50,), dtype)
        drawn = [
            kind.rand(-2.0, 3.0, (50,), dtype=dtype),
            kind.randn(1.0, 2.0, (50,), dtype=dtype),
            base.rand_like(0.0, 1.0),
            base.randn_like(0.0, 1.0),
        ]
        assert all(tensor.dtype is dtype and tensor.dims() == [50] for tensor in drawn)
        return [tensor.tolist() for tensor in drawn]

    first = draw()
    assert draw() == first
    assert len({tuple(values) for values in first}) == 4


@FLOATS
def test_random_numbers_are_spread_as_they_should(dtype: DType) -> None:
    """Bounds are six standard errors of 20,000 draws, plus half a unit of the dtype's last place at 3."""
    Device.Cpu.set_seed(0)
    n, unit = 20_000, {"bf16": 2**-7, "f16": 2**-10}.get(dtype.as_str(), 0.0)
    uniform = Tensor.rand(-1.0, 3.0, (n,), dtype=dtype).to_dtype("f64").numpy()
    assert uniform.min() >= -1.0
    assert uniform.max() <= 3.0
    assert abs(uniform.mean() - 1.0) < 6 * (4 / 12**0.5) / n**0.5 + unit
    assert abs(uniform.std() - 4 / 12**0.5) < 0.05
    normal = Tensor.randn(2.0, 0.5, (n,), dtype=dtype).to_dtype("f64").numpy()
    assert abs(normal.mean() - 2.0) < 6 * 0.5 / n**0.5 + unit
    assert abs(normal.std() - 0.5) < 0.03
    assert np.all(Tensor.randn(2.0, 0.0, (9,), dtype=dtype).numpy() == 2.0)


@KINDS
def test_random_numbers_end_no_gradient_and_are_drawn_once(kind: Any) -> None:
    x = kind.ones((3,))
    drawn = x.rand_like(0.0, 1.0)
    assert drawn.track_op() is False
    assert drawn.tolist() == drawn.tolist()
    assert kind.rand(0, 1, ()).dims() == []
    assert kind.randn(0, 1, (0, 2)).dims() == [0, 2]


@KINDS
@pytest.mark.parametrize("dtype", ["u8", "i64"])
def test_there_are_no_random_integers(kind: Any, dtype: str) -> None:
    x = kind.ones((3,), dtype)
    for call in (
        lambda: kind.rand(0.0, 1.0, 2, dtype=dtype),
        lambda: kind.randn(0.0, 1.0, 2, dtype=dtype),
        lambda: x.rand_like(0.0, 1.0),
        lambda: x.randn_like(0.0, 1.0),
    ):
        with pytest.raises(error.UnsupportedDTypeForOpError, match=f"got dtype {dtype}; takes bf16, f16, f32 or f64"):
            call()


@KINDS
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("rand", (1.0, 1.0), "got lo 1.0, up 1.0; takes lo < up"),
        ("rand", (2.0, 1.0), "got lo 2.0, up 1.0; takes lo < up"),
        ("rand", (float("nan"), 1.0), "got nan for lo; takes a finite number"),
        ("rand", (0.0, float("inf")), "got inf for up; takes a finite number"),
        ("rand", ("0", 1.0), "got '0' for lo; takes a finite number"),
        ("randn", (0.0, -1.0), "got std -1.0; takes std >= 0"),
        ("randn", (0.0, float("nan")), "got nan for std; takes a finite number"),
        ("randn", (0.0, float("inf")), "got inf for std; takes a finite number"),
        ("randn", (None, 1.0), "got None for mean; takes a finite number"),
    ],
)
def test_random_numbers_that_are_none(kind: Any, name: str, arguments: Any, text: str) -> None:
    with pytest.raises(mc.Error, match=re.escape(f"{name}: {text}")):
        getattr(kind, name)(*arguments, (2,))
    with pytest.raises(mc.Error, match=re.escape(f"{name}_like: {text}")):
        getattr(kind.ones(2), f"{name}_like")(*arguments)
