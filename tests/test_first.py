"""The first thing to run: a bit of everything, in under two seconds."""

from __future__ import annotations

import metal_candle as mc
from metal_candle import Device, LazyTensor, Tensor, Var

import numpy as np


def test_a_line_fitted_by_gradient_descent() -> None:
    w, b = Var.zeros((1, 1)), Var.zeros((1,))
    x = Tensor.arange(0, 8).to_dtype("f32").reshape((8, 1)) / 8.0
    y = x * 3.0 + 0.5

    @mc.compile
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = (x.matmul(w) + b - y).sqr().mean_all()
        grads = loss.backward()
        for variable in (w, b):
            variable.set(variable - grads[variable] * 0.5)
        return loss

    losses = [step(x, y).to_scalar() for _ in range(200)]
    assert losses[-1] < 1e-6 < losses[0]
    assert abs(w.numpy().item() - 3.0) < 1e-2
    assert step.traces == 1


def test_lazy_and_eager_agree() -> None:
    Device.Cpu.set_seed(0)
    x, a, b = Tensor.randn(0.0, 1.0, (2, 8)), Tensor.randn(0.0, 1.0, (8, 2)), Tensor.randn(0.0, 1.0, (2, 8))
    eager = x.lora_fused(a, b, 0.5).rms_norm(1e-5).softmax(-1)
    lazy = LazyTensor.from_tensor(x).lora_fused(a, b, 0.5).rms_norm(1e-5).softmax(-1)
    assert lazy.shape == eager.shape
    assert not lazy.is_evaluated()
    np.testing.assert_array_equal(lazy.eval().numpy(), eager.numpy())


def test_a_layer_from_a_map_of_variables() -> None:
    varmap = mc.nn.VarMap()
    vb = mc.nn.VarBuilder.from_varmap(varmap, "f32")
    layer = mc.nn.linear(4, 2, vb.pp("layer"))
    loss = layer.forward(Tensor.ones((3, 4))).sum_all()
    grads = loss.backward()
    assert sorted(varmap.data()) == ["layer.bias", "layer.weight"]
    assert grads[varmap.data()["layer.bias"]].to_vec1() == [3.0, 3.0]
