"""What a step is: one evaluation, of variables that have a gradient, the same eager, lazy and compiled."""

from __future__ import annotations

import gc
import threading
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, nn
from metal_candle.graph import node, plans

import mlx.core as mx
import numpy as np
import pytest
from checking import normal
from optimizing import ALL, GRADIENTS, START, after, steps


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name at each call of ``mx.eval`` and ``mx.async_eval``."""
    calls: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(mx, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    for name in ("eval", "async_eval"):
        monkeypatch.setattr(mx, name, counted(name))
    return calls


def several(count: int) -> list[Var]:
    return [Var(normal(3, 2 + i % 3, seed=i)) for i in range(count)]


@pytest.mark.parametrize("name", ALL)
def test_an_update_is_one_evaluation(name: str, evaluations: list[str]) -> None:
    vars = several(30)
    optimizer = ALL[name]([nn.ParamGroup(vars[:10], lr=0.001), {"params": vars[10:], "weight_decay": 0.5}])
    gradients = {var: Tensor(normal(*var.shape)) for var in vars}
    known = 0
    for step in range(4):
        for max_norm in (None, 1.0):
            evaluations.clear()
            optimizer.step(gradients, max_norm=max_norm)
            assert evaluations == ["eval"], step
        # A plan knows its leaves by their age, which for variables that were set differs from those that were not yet.
        if step > 1:
            assert len(plans._plans) == known
        known = len(plans._plans)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("lazy", [False, True])
def test_gradients_and_update_are_one_evaluation(name: str, lazy: bool, evaluations: list[str]) -> None:
    vars = several(6)
    optimizer = ALL[name](vars)
    known = 0
    for step in range(4):
        loss = sum(((LazyTensor.from_tensor(var) if lazy else var) ** 2.0).sum_all() for var in vars)
        evaluations.clear()
        optimizer.backward_step(loss, max_norm=1.0)
        # The first step of all also makes the 1 that gradients start from.
        assert evaluations == ["eval"] or not step
        assert loss._node.value is not None
        if step > 1:
            assert len(plans._plans) == known
        known = len(plans._plans)


@pytest.mark.parametrize("name", ALL)
def test_compiled_is_eager_bit_for_bit(name: str) -> None:
    want = after(ALL[name], 8)
    np.testing.assert_array_equal(after(ALL[name], 8, "compiled"), want)
    np.testing.assert_array_equal(after(ALL[name], 8, "lazy"), want)


@pytest.mark.parametrize("name", ALL)
def test_variables_without_a_gradient_stay(name: str) -> None:
    w, alone, other, ids = Var(START), Var(START), Var(START), Var([[3]])
    optimizer, single = ALL[name]([w, other, ids]), ALL[name]([alone])
    assert optimizer.vars() == [w, other]
    for gradient in GRADIENTS[:3]:
        optimizer.step({w: Tensor(gradient), ids: Tensor([[1.0]])})
        single.step({alone: Tensor(gradient)})
    np.testing.assert_array_equal(other.numpy(), START)
    np.testing.assert_array_equal(w.numpy(), alone.numpy())
    assert ids.to_vec2() == [[3]]
    for entry, value in optimizer.state().items():
        assert not entry.startswith("1.") or not value.numpy().any()
    grads = (other * 2.0).sum_all().backward()
    optimizer.step(grads)
    assert (other.numpy() != START).any()
    assert len(grads) == 1


def test_steps_without_any_gradient_count() -> None:
    w = Var([1.0])
    optimizer = nn.AdamW([w])
    optimizer.step(Tensor([1.0]).sum_all().backward())
    optimizer.backward_step(Tensor(1.0))
    assert optimizer.step({}, max_norm=1.0).to_scalar() == 0.0  # type: ignore[union-attr]
    assert (optimizer.step_count(), w.to_vec1()) == (3, [1.0])


@pytest.mark.parametrize("name", [name for name in ALL if name != "muon"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (5, 1, 3)])
def test_any_shape(name: str, shape: tuple[int, ...]) -> None:
    start = np.asarray(normal(*shape), np.float32)
    w, row = Var(start), Var(start.reshape(1, -1))
    one, other = ALL[name]([w]), ALL[name]([row])
    for seed in range(3):
        gradient = np.asarray(normal(*shape, seed=seed), np.float32)
        one.step({w: Tensor(gradient)})
        other.step({row: Tensor(gradient.reshape(1, -1))})
    np.testing.assert_array_equal(w.numpy().reshape(-1), row.numpy().reshape(-1))
    assert w.shape == shape


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_regression_converges(name: str, lazy: bool) -> None:
    kind: Any = LazyTensor.from_tensor if lazy else lambda tensor: tensor
    xs = normal(64, 5)
    w = normal(5, 3, seed=1)
    weight = Var.zeros((5, 3))
    # Without decay, which moves the goal.
    rate = 0.2 if name == "sgd" else 0.05
    optimizer = ALL[name]([nn.ParamGroup([weight], weight_decay=0.0)])
    inputs, targets = Tensor(xs), Tensor(xs @ w)
    for step in range(200):
        optimizer.set_learning_rate(rate * (1 - step / 200))
        optimizer.backward_step((kind(inputs).matmul(kind(weight)) - kind(targets)).sqr().mean_all())
    np.testing.assert_allclose(weight.numpy(), w, atol=1e-2)


@pytest.mark.parametrize("make", [nn.AdamW.new_lr, nn.Adam, nn.SGD])
def test_the_rate_can_change_in_a_compiled_step(make: Any) -> None:
    w = Var([1.0])
    optimizer = make([w], 0.1)
    assert optimizer.learning_rate() == 0.1
    step = mc.compile(lambda x: optimizer.backward_step((w * x).sum_all()))
    optimizer.set_learning_rate(0.0)
    step(Tensor([1.0]))
    assert w.to_vec1() == [1.0]
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rate() == 0.5
    step(Tensor([1.0]))
    assert w.to_vec1()[0] < 0.6
    assert step.traces == 1


def test_a_variable_is_shared_with_layers_and_counted_once() -> None:
    w = Var([1.0])
    optimizer = nn.SGD([w, w, Var.from_tensor(w.as_tensor())], 0.5)
    assert optimizer.vars() == [w]
    seen = w.as_tensor()
    optimizer.backward_step((seen * 1.0).sum_all())
    assert seen.to_vec1() == w.to_vec1() == [0.5]


def test_nan_goes_where_it_is() -> None:
    w, other = Var([[1.0]]), Var([[1.0]])
    for make in ALL.values():
        optimizer = make([w, other])
        w.set(Tensor([[1.0]]))
        other.set(Tensor([[1.0]]))
        optimizer.step({w: Tensor([[float("nan")]]), other: Tensor([[1.0]])})
        assert np.isnan(w.numpy()).all()
        assert np.isfinite(other.numpy()).all()


def test_old_values_are_let_go_before_the_new_ones_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where several threads are at work, as in other tests of this process, one of them may be about to read a value.
    monkeypatch.setattr(node, "_threads", {threading.get_ident()})
    vars = [Var(normal(256, 512, seed=i)) for i in range(24)]
    optimizer = nn.AdamW(vars)
    gradients = {var: Tensor(normal(256, 512)) for var in vars}
    optimizer.step(gradients)
    gc.collect()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    optimizer.step(gradients)
    one = 4 * 256 * 512
    # Beside the old variables and moments as many new ones would be 72; MLX works at some ten operations at a time.
    assert mx.get_peak_memory() - before < 48 * one
    assert mx.get_active_memory() - before < 2 * one


def test_what_others_hold_keeps_its_value() -> None:
    w = Var(START)
    optimizer = nn.AdamW([w])
    steps(optimizer, [w], [[GRADIENTS[0]]])
    now, moments, view = w.mlx(), optimizer.state(), w.narrow(0, 0, 1)
    held = {name: tensor.numpy().copy() for name, tensor in moments.items()}
    loss = (w * Tensor(GRADIENTS[1])).sum_all()
    value = loss.to_scalar()
    before = np.array(now)
    optimizer.backward_step(loss)
    np.testing.assert_array_equal(np.array(now), before)
    assert loss.to_scalar() == value
    np.testing.assert_array_equal(loss.backward()[w].numpy(), GRADIENTS[1])
    np.testing.assert_array_equal(view.numpy(), w.numpy()[:1])
    for name, tensor in moments.items():
        np.testing.assert_array_equal(tensor.numpy(), held[name])


def test_empty_push_and_from_slice() -> None:
    a, b, pushed = Var(START), Var(START), Var(START)
    optimizer = nn.AdamW.empty(nn.ParamsAdamW(lr=0.5))
    assert optimizer.vars() == []
    assert optimizer.learning_rate() == 0.5
    optimizer.set_learning_rate(0.05)
    optimizer.push(a)
    assert optimizer.learning_rate() == 0.05
    same = nn.AdamW.from_slice([b], nn.ParamsAdamW(lr=0.05))
    for gradient in GRADIENTS[:3]:
        optimizer.step({a: Tensor(gradient)})
        same.step({b: Tensor(gradient)})
    optimizer.push(pushed)
    optimizer.push(pushed)
    optimizer.push(Var([1]))
    assert optimizer.vars() == [a, pushed]
    optimizer.step({a: Tensor(GRADIENTS[3]), pushed: Tensor(GRADIENTS[3])})
    same.step({b: Tensor(GRADIENTS[3])})
    np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert (pushed.numpy() != START).any()
    assert optimizer.step_count() == 4
    mc.compile(lambda: optimizer.step({a: Tensor(GRADIENTS[4])}))()
    with pytest.raises(mc.TrainingError.StateError, match="push: the variable would be unknown to a step that was"):
        optimizer.push(Var(START))


def test_what_steps_refuse() -> None:
    w = Var([1.0, 2.0])
    optimizer = nn.SGD([w], 0.1)
    loss: Any = w.sum_all()
    cases: list[tuple[Any, str]] = [
        (
            lambda: optimizer.step(loss),
            "step: got a Tensor; takes the GradStore of loss.backward(), or a dict from Var to gradient",
        ),
        (
            lambda: optimizer.backward_step(loss.backward()),
            "backward_step: got a GradStore; takes a loss (step takes gradients)",
        ),
        (
            lambda: optimizer.step({w: np.ones(2)}),
            "step: got a Var and an ndarray in the dict of gradients; takes a Var and a tensor for each",
        ),
        (
            lambda: optimizer.step({"w": Tensor([1.0])}),
            "step: got 'w' and a Tensor in the dict of gradients; takes a Var and a tensor for each",
        ),
        (lambda: optimizer.step(loss.backward(), 0.5), "step: got factor 0.5; takes a scalar tensor"),
        (lambda: optimizer.step({w: Tensor([1.0])}), "sgd_update: got a gradient (1,) for a parameter (2,)"),
        (
            lambda: optimizer.step(loss.backward(), Tensor(1.0), 1.0),
            "step: got both factor and max_norm; takes one of them",
        ),
        (
            lambda: optimizer.step(loss.backward(), Tensor([1.0, 2.0])),
            "step: got a factor of shape [2]; takes a scalar",
        ),
        (lambda: optimizer.step(loss.backward(), max_norm=-1.0), "step: got max_norm -1.0; takes at least 0"),
        (lambda: optimizer.set_learning_rate("fast"), "set_learning_rate: got 'fast' for lr; takes a number"),
        (
            lambda: optimizer.set_learning_rate(-0.1),
            "invalid training configuration: set_learning_rate: lr is -0.1; takes at least 0",
        ),
        (
            lambda: optimizer.set_learning_rate(float("nan")),
            "invalid training configuration: set_learning_rate: lr is nan; takes at least 0",
        ),
        (lambda: nn.SGD(w, 0.1), "SGD: got a Var; takes a list of Vars, or of ParamGroups"),
        (
            lambda: nn.SGD([w, w.as_tensor()], 0.1),
            "SGD: got a tensor in the list of variables; takes Vars, as VarMap.all_vars() gives",
        ),
    ]
    for call, text in cases:
        with pytest.raises(mc.Error) as raised:
            call()
        assert str(raised.value) == text
    assert (optimizer.step_count(), w.to_vec1()) == (0, [1.0, 2.0])
    assert optimizer.learning_rate() == 0.1


def test_an_optimizer_prints_its_numbers() -> None:
    vars = [Var([1.0]), Var([2.0, 3.0])]
    optimizer = nn.SGD(vars, 0.5)
    assert repr(optimizer) == "SGD(2 vars, lr=0.5, momentum=0.0, nesterov=False, dampening=0.0, weight_decay=0.0)"
    optimizer.set_learning_rate(0.25)
    assert repr(optimizer).startswith("SGD(2 vars, lr=0.25, ")
    grouped = nn.AdamW([nn.ParamGroup(vars[:1]), nn.ParamGroup(vars[1:], weight_decay=0.0)], 0.5)
    text = "AdamW(2 vars in 2 groups, lr=0.5, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01)"
    assert repr(grouped) == text
    traced = []

    def step(x: Tensor) -> Tensor:
        traced.append(repr(grouped))
        return x + 1.0

    mc.compile(step)(Tensor([1.0]))
    assert traced == [text]


def test_a_loss_cut_off_by_compile_is_refused() -> None:
    w = Var([1.0])
    forward = mc.compile(lambda x: (w * x).sum_all())
    with pytest.raises(mc.BackwardNotSupportedError, match=r"call backward\(\) inside it"):
        nn.SGD([w], 0.1).backward_step(forward(Tensor([1.0])))


@pytest.mark.parametrize("computed", [True, False], ids=["computed", "not yet"])
def test_an_interrupted_step_is_whole(monkeypatch: pytest.MonkeyPatch, computed: bool) -> None:
    """Ctrl-C is raised where MLX returns: when old values are gone and new ones are in no variable yet."""
    w, other = Var.from_tensor(Tensor([1.0, 2.0])), Var.from_tensor(Tensor([4.0]))
    optimizer = nn.AdamW([w, other], nn.ParamsAdamW(0.1, weight_decay=0.0))
    evaluate = mx.eval

    def interrupted(*arrays: Any) -> None:
        monkeypatch.undo()
        if computed:
            evaluate(*arrays)
        raise KeyboardInterrupt

    def step() -> None:
        optimizer.backward_step((LazyTensor.from_tensor(w) * 3.0).sum_all() + LazyTensor.from_tensor(other).sum_all())

    step()
    monkeypatch.setattr(mx, "eval", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step()
    assert w.to_vec1() == pytest.approx([0.8, 1.8], abs=1e-6)
    assert (other.to_vec1(), optimizer.step_count()) == ([pytest.approx(3.8, abs=1e-6)], 2)
    step()
    assert (w.to_vec1(), optimizer.step_count()) == (pytest.approx([0.7, 1.7], abs=1e-6), 3)
