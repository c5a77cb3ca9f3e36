"""v1's functions, and what is left when the feature ``graph`` is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, compat, features

import numpy as np
import pytest

X = np.array([[1.0, 2.0, 4.0], [-1.0, 0.0, 1.0]], np.float32)


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_functions_answer_in_kind(kind: Any) -> None:
    x, alpha, beta = kind.new(X), Tensor([1.0, 2.0, 3.0]), Tensor([0.5, 0.0, -0.5])
    centred = X - X.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    rms = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-5)
    softmax = np.exp(X) / np.exp(X).sum(0)
    for got, want in [
        (compat.softmax(x, 0), softmax),
        (compat.rms_norm(x, alpha, 1e-5), rms * [1, 2, 3]),
        (compat.layer_norm(x, alpha, beta, 1e-5), normed * [1, 2, 3] + [0.5, 0.0, -0.5]),
        (x.layer_norm(1e-5), normed),
        (x.rms_norm(1e-5), rms),
        (x.rms_norm_fused(1e-5), rms),
        (compat.rms_norm(x, alpha.ones_like(), 1e-5), rms),
    ]:
        assert isinstance(got, kind)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


def test_norms_have_gradients_for_their_weights() -> None:
    alpha, beta = Var([1.0, 2.0, 3.0]), Var([0.0, 0.0, 0.0])
    grads = compat.layer_norm(Tensor(X), alpha, beta, 1e-5).backward()
    assert grads[beta].to_vec1() == [2.0, 2.0, 2.0]
    np.testing.assert_allclose(grads[alpha].numpy(), Tensor(X).layer_norm(1e-5).sum(0).numpy(), rtol=1e-5, atol=1e-6)


def test_norms_refuse_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"layer_norm: got shapes \(2, 3\) and \(2,\); takes \(…, n\) and weight"):
        compat.layer_norm(Tensor(X), Tensor([1.0, 2.0]), Tensor([1.0, 2.0]), 1e-5)
    with pytest.raises(ValueError, match=r"rms_norm: got shapes \(2, 3\) and \(2,\); takes \(…, n\) and weight \(n,\)"):
        compat.rms_norm(Tensor(X), Tensor([1.0, 2.0]), 1e-5)


def test_layer_norm_of_constant_rows_is_zero() -> None:
    assert Tensor([[7.0], [0.0]]).layer_norm(1e-5).to_vec2() == [[0.0], [0.0]]
    np.testing.assert_allclose(Tensor.full(1e4, (2, 5)).layer_norm(1e-5).numpy(), 0, atol=1e-3)


def test_the_module_offers_the_eager_classes() -> None:
    assert compat.Tensor is Tensor
    assert compat.Var is Var


@pytest.mark.parametrize(
    "touch",
    [
        lambda lazy: LazyTensor.from_tensor(Tensor([1.0])),
        lambda lazy: LazyTensor.new([1.0]),
        lambda lazy: LazyTensor.zeros((2,)),
        lambda lazy: LazyTensor.randn(0.0, 1.0, (2,)),
        lambda lazy: lazy.eval(),
        lambda lazy: mc.eval_all([lazy]),
    ],
)
def test_without_the_feature_graph_lazy_tensors_say_so(touch: Callable[[LazyTensor], Any]) -> None:
    lazy = LazyTensor.new([1.0]) * 2.0
    with features.disabled("graph"), pytest.raises(mc.Error, match="feature `graph` not enabled; remove it from METAL"):
        touch(lazy)
    touch(lazy)


def test_without_the_feature_graph_eager_code_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAL_CANDLE_DISABLE", "graph")
    w = Var([1.0, 2.0])
    loss = (Tensor([3.0, 4.0]) * w).sqr().sum_all()
    assert loss.backward()[w].to_vec1() == [18.0, 64.0]
    with pytest.raises(RuntimeError, match=r'leave features\.disabled\("graph"\)'):
        LazyTensor.from_tensor(w)
