"""``VarMap`` and ``VarBuilder``."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, nn

import mlx.core as mx
import pytest


def tensors() -> dict[str, Any]:
    return {
        "model.layers.0.q_proj.weight": Tensor.ones((3, 4)),
        "model.layers.0.k_proj.weight": mx.ones((2, 4), mx.float16),
        "model.norm.weight": Tensor.ones((4,)),
        "ids": Tensor([1, 2]),
    }


def test_ready_tensors_by_name() -> None:
    vb = nn.VarBuilder.from_tensors(tensors(), "f32")
    inner = vb.pp("model").pp("layers").pp(0)
    weight = inner.pp("q_proj").get((3, 4), "weight")
    assert (weight.dims(), weight.dtype) == ([3, 4], DType.F32)
    assert (inner.prefix(), inner.root().prefix(), vb.dtype()) == ("model.layers.0", "", DType.F32)
    assert inner.path("x") == "model.layers.0.x"
    assert inner.pp("k_proj").get((2, 4), "weight").dtype is DType.F32
    assert inner.to_dtype("bf16").pp("k_proj").get((2, 4), "weight").dtype is DType.BF16
    assert vb.get(2, "ids").dtype is DType.I64
    assert vb.contains_tensor("ids")
    assert not vb.contains_tensor("model")
    assert vb.unused() == ["model.norm.weight"]
    assert vb.pp("model.norm").get_unchecked("weight").dims() == [4]
    assert vb.unused() == []


def test_a_missing_tensor_is_named_with_its_neighbours() -> None:
    vb = nn.VarBuilder.from_tensors(tensors(), "f32").pp("model").pp("layers").pp(0)
    with pytest.raises(KeyError) as caught:
        vb.pp("v_proj").get((3, 4), "weight")
    text = str(caught.value)
    assert text.startswith("cannot find tensor model.layers.0.v_proj.weight; nearest: model.layers.0.")
    assert "model.layers.0.q_proj.weight" in text
    assert isinstance(caught.value, mc.Error)
    with pytest.raises(mc.Error, match=r"^cannot find tensor nothing-like-it$"):
        nn.VarBuilder.from_tensors(tensors(), "f32").get(1, "nothing-like-it")


def test_a_wrong_shape_is_named_with_both() -> None:
    vb = nn.VarBuilder.from_tensors(tensors(), "f32")
    with pytest.raises(ValueError, match=r"model\.norm\.weight: expected shape \(5,\), got \(4,\)"):
        vb.pp("model.norm").get(5, "weight")


def test_a_map_makes_variables_on_demand_and_shares_them() -> None:
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, DType.F32)
    layer, same = nn.linear(4, 2, vb.pp("a")), nn.linear(4, 2, vb.pp("a"))
    norm = nn.rms_norm(4, 1e-5, vb.pp("norm"))
    table = nn.embedding(10, 4, vb.pp("table"))
    assert list(varmap.data()) == ["a.weight", "a.bias", "norm.weight", "table.weight"]
    assert [var.dims() for var in varmap.all_vars()] == [[2, 4], [2], [4], [10, 4]]
    assert norm.weight().to_vec1() == [1.0] * 4
    assert table.embeddings().dims() == [10, 4]
    varmap.set_one("a.weight", Tensor.ones((2, 4)))
    assert layer.weight().to_vec2() == same.weight().to_vec2() == [[1.0] * 4] * 2
    loss = layer.forward(table.forward(Tensor([1]))).sum_all()
    grads = loss.backward()
    assert {name for name, var in varmap.data().items() if var in grads} == {"a.weight", "a.bias", "table.weight"}
    assert vb.unused() == []
    assert vb.contains_tensor("norm.weight")


def test_a_map_refuses() -> None:
    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, "f32")
    vb.get((2,), "weight")
    with pytest.raises(ValueError, match=r"weight: expected shape \(3,\), got \(2,\)"):
        vb.get((3,), "weight")
    with pytest.raises(KeyError, match="cannot find tensor weigth; nearest: weight"):
        varmap.set_one("weigth", Tensor([1.0, 2.0]))
    with pytest.raises(mc.Error, match=r"set: got shapes \(2,\) and \(1,\); takes the variable's shape"):
        varmap.set_one("weight", Tensor([1.0]))
    with pytest.raises(mc.Error, match="a VarMap makes tensors, so it needs their shape"):
        vb.get_unchecked("other")


def test_zeros() -> None:
    vb = nn.VarBuilder.zeros("f16")
    assert vb.get((2,), "any.name").to_vec1() == [0.0, 0.0]
    assert nn.linear_b(3, 2, False, vb).bias() is None
    assert nn.linear_b(3, 2, True, vb).weight().dtype is DType.F16
    assert vb.contains_tensor("x")
    with pytest.raises(mc.Error, match="zeros need a shape"):
        vb.get_unchecked("x")
