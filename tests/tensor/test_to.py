"""``to``: a dtype, a device, or another tensor's, by position or by keyword."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var

import mlx.core as mx
import pytest


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_by_position_and_by_keyword(kind: Any) -> None:
    t = kind.new([1.5, 2.5])
    for dtype in (DType.F16, "f16", mx.float16):
        for moved in (t.to(dtype), t.to(dtype=dtype), t.to(Device.Cpu, dtype), t.to("cpu", dtype=dtype)):
            assert (type(moved), moved.dtype, moved.device) == (kind, DType.F16, Device.Cpu)
    assert t.to(kind.new([1])).to_vec1() == [1, 2]
    assert t.to(Device.Cpu).to_vec1() == [1.5, 2.5]
    assert t.to() is t


def test_the_gradient_goes_along() -> None:
    w = Var([1.0, 2.0])
    assert (w.to("f64", "cpu") * 3.0).sum_all().backward()[w].to_vec1() == [3.0, 3.0]


def test_refusals() -> None:
    t = Tensor([1.0])
    with pytest.raises(mc.Error, match="to: got 'nonsense'; takes a dtype, a device or a tensor"):
        t.to("nonsense")
    with pytest.raises(mc.Error, match="to: got 'f32' beside another of its kind; takes one device and one dtype"):
        t.to("f16", "f32")
    if not mx.metal.is_available():
        with pytest.raises(mc.DeviceError):
            t.to("metal")
