"""Clipping (``GlobalNorm``, ``ClipFactor``, ``ScaleGradients``, ``ClampGradients``), as PyTorch's functions have it."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn

import mlx.core as mx
import numpy as np
import pytest
from checking import normal


def store() -> tuple[list[Var], Any]:
    """Variables of three dtypes, and gradients 3, (0, 4) and 12, of norm 13."""
    vars = [Var([1.0]), Var.from_tensor(Tensor([[1.0, 1.0]], dtype="f16")), Var.from_tensor(Tensor(1.0, dtype="bf16"))]
    loss = (vars[0] * 3.0).sum_all() + (vars[1] * Tensor([[0.0, 4.0]], dtype="f16")).sum_all().to_dtype("f32")
    return vars, (loss + (vars[2] * 12.0).to_dtype("f32")).backward()


def test_clipping_by_global_norm() -> None:
    gradients = [Tensor([3.0]), Tensor([[0.0, 4.0]], dtype="f16")]
    norm = nn.global_norm(gradients)
    assert norm.to_scalar() == 5.0
    assert nn.clip_factor(norm, 1.0).to_scalar() == pytest.approx(0.2, rel=1e-5)
    assert nn.clip_factor(norm, 10.0).to_scalar() == 1.0
    with pytest.raises(mc.TrainingError, match="global_norm: there are no gradients"):
        nn.global_norm([])
    v, w = Var([3.0]), Var([4.0])
    grads = (v.sqr() + w.sqr()).sum_all().backward()
    assert nn.global_norm(grads).to_scalar() == 10.0
    assert nn.global_norm({v: grads[v], w: grads[w]}).to_scalar() == 10.0
    with pytest.raises(mc.ArgumentTypeError, match=r"^global_norm: got 3; takes a list of tensors$"):
        nn.global_norm(3)  # type: ignore[arg-type]
    wide = nn.global_norm([Tensor(np.full(2, 1e200)), Tensor([1.0])])
    assert wide.dtype is DType.F64
    assert nn.global_norm([Tensor([[]])]).to_scalar() == 0.0


@pytest.mark.parametrize("as_dict", [False, True])
def test_gradients_are_scaled_in_place(as_dict: bool) -> None:
    vars, grads = store()
    given: Any = {var: grads[var] for var in vars} if as_dict else grads
    assert nn.clip_grad_norm(given, 20.0).to_scalar() == 13.0
    assert given[vars[2]].to_scalar() == 12.0
    assert nn.clip_grad_norm(given, 6.5).to_scalar() == 13.0
    assert [given[var].dtype for var in vars] == [DType.F32, DType.F16, DType.BF16]
    assert [given[var].numpy().reshape(-1).tolist() for var in vars] == [
        pytest.approx([1.5], rel=1e-6),
        pytest.approx([0.0, 2.0], rel=1e-3),
        pytest.approx([6.0], rel=1e-2),
    ]
    # Of some only.
    assert nn.clip_grad_norm(given, 1.0, [vars[0], vars[0], Var([1.0])]).to_scalar() == pytest.approx(1.5)
    assert given[vars[0]].to_vec1() == pytest.approx([1.0], rel=1e-5)
    assert given[vars[2]].to_scalar() == pytest.approx(6.0, rel=1e-2)


@pytest.mark.parametrize("as_dict", [False, True])
def test_elements_are_clamped_in_place(as_dict: bool) -> None:
    vars, grads = store()
    given: Any = {var: grads[var] for var in vars} if as_dict else grads
    nn.clip_grad_value(given, 3.5)
    assert [given[var].numpy().reshape(-1).tolist() for var in vars] == [[3.0], [0.0, 3.5], [3.5]]
    assert given[vars[1]].dtype is DType.F16
    nn.clip_grad_value(given, 0.5, vars[:1])
    assert (given[vars[0]].to_vec1(), given[vars[2]].to_scalar()) == ([0.5], 3.5)
    wide = {vars[0]: Tensor(np.array([0.3, float("nan"), -7.0]))}
    nn.clip_grad_value(wide, 0.1)
    np.testing.assert_array_equal(wide[vars[0]].numpy(), [0.1, float("nan"), -0.1])


def test_norms_that_are_not_finite() -> None:
    w, other = Var([1.0, 1.0]), Var([1.0])
    grads = {w: Tensor([float("inf"), 1.0]), other: Tensor([2.0])}
    assert nn.clip_grad_norm(grads, 1.0).to_scalar() == float("inf")
    np.testing.assert_array_equal(grads[w].numpy(), [float("nan"), 0.0])
    assert grads[other].to_vec1() == [0.0]
    grads = {w: Tensor([float("nan"), 1.0]), other: Tensor([2.0])}
    assert np.isnan(nn.clip_grad_norm(grads, 1.0).to_scalar())
    assert np.isnan(grads[other].numpy()).all()
    # To look at the norm only.
    grads = {w: Tensor([3.0, 4.0])}
    assert nn.clip_grad_norm(grads, float("inf")).to_scalar() == 5.0
    assert grads[w].to_vec1() == [3.0, 4.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_clips_on_the_way(compiled: bool) -> None:
    starts = [normal(4, 3), normal(5)]
    vars, others = [Var(start) for start in starts], [Var(start) for start in starts]
    a, b = nn.AdamW(vars), nn.AdamW(others)

    def loss_of(those: list[Var], x: Tensor) -> Any:
        return sum((var.sqr() * x).sum_all() for var in those)

    def step(x: Tensor) -> Any:
        norm = a.backward_step(loss_of(vars, x), max_norm=0.5)
        grads = loss_of(others, x).backward()
        by_hand = nn.clip_grad_norm(grads, 0.5)
        b.step(grads)
        return norm, by_hand

    run = mc.compile(step) if compiled else step
    for scale in (1.0, 0.01, 3.0):
        norm, by_hand = run(Tensor(scale))
        assert norm.to_scalar() == by_hand.to_scalar()
    for ours, theirs in zip(vars, others):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    grads = loss_of(vars, Tensor(1.0)).backward()
    assert a.step(grads) is None
    assert a.step(grads, Tensor(0.5)) is None


def test_only_the_optimizers_variables_count_in_its_norm() -> None:
    mine, others = Var([3.0]), Var([4.0])
    grads = (mine.sqr() + others.sqr()).sum_all().backward()
    norm = nn.SGD([mine], 0.1).step(grads, max_norm=1.0)
    assert norm is not None
    assert norm.to_scalar() == 6.0


def test_what_clipping_refuses() -> None:
    w = Var([1.0])
    cases: list[tuple[Any, str]] = [
        (
            lambda: nn.clip_grad_norm([Tensor(1.0)], 1.0),  # type: ignore[arg-type]
            "clip_grad_norm: got a list; takes the GradStore of loss.backward(), or a dict from Var to gradient",
        ),
        (lambda: nn.clip_grad_norm({}, float("nan")), "clip_grad_norm: got max_norm nan; takes at least 0"),
        (lambda: nn.clip_grad_norm({}, "1"), "clip_grad_norm: got '1' for max_norm; takes a number"),  # type: ignore[arg-type]
        (lambda: nn.clip_grad_value({}, -1.0), "clip_grad_value: got clip_value -1.0; takes at least 0"),
        (
            lambda: nn.clip_grad_value({}, 1.0, w),
            "clip_grad_value: got a Var; takes a list of Vars, as VarMap.all_vars() gives",
        ),
    ]
    for call, text in cases:
        with pytest.raises(mc.Error) as raised:
            call()
        assert str(raised.value) == text
    assert nn.clip_grad_norm({}, 1.0).to_scalar() == 0.0


def test_the_norm_of_large_gradients_copies_none_of_them() -> None:
    gradients = [Tensor(normal(1024, 1024, seed=seed)) for seed in range(4)] + [Tensor([3.0]), Tensor([[4.0]])]
    want = np.sqrt(sum((each.numpy().astype(np.float64) ** 2).sum() for each in gradients))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert nn.global_norm(gradients).to_scalar() == pytest.approx(want, rel=1e-6)
    assert mx.get_peak_memory() - before < 1024 * 1024
