"""Batch norm's running statistics: when they are updated, what for, and what is computed for it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, nn

import mlx.core as mx
import numpy as np
import pytest
from batch_norming import (
    BATCHES,
    EPS,
    F32,
    KINDS,
    after,
    assert_after,
    batch_normed,
    from_a_map,
    plain,
    running_normed,
    starting,
    statistics,
)
from checking import normal
from tolerance import VALUE, assert_near


@KINDS
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_update(kind: Any, momentum: float) -> None:
    layer = plain(3, momentum)
    seen = layer.running_mean()
    for i, x in enumerate(BATCHES):
        layer(kind.new(x))
        assert_after(layer, BATCHES[: i + 1], momentum)
    assert_near(seen.numpy(), after(BATCHES, momentum)[0], F32)


def test_not_outside_of_training() -> None:
    layer = plain(3)
    for kind in (Tensor, LazyTensor):
        layer.forward_t(kind.new(BATCHES[1]), False).numpy()
        layer.eval()(kind.new(BATCHES[1])).numpy()
        layer.train()
    assert_after(layer, [])


def test_tensors_are_copied_and_variables_shared() -> None:
    mean, variance = starting(3)
    nn.BatchNorm.new_no_bias(3, mean, variance, EPS)(Tensor(BATCHES[1]))
    assert mean.to_vec1() == [0.0] * 3
    own = Var(mean)
    nn.BatchNorm.new_no_bias(3, own, variance, EPS)(Tensor(BATCHES[1]))
    assert_near(own.numpy(), after(BATCHES[1:2])[0], F32)


def test_in_halves() -> None:
    builder = nn.VarBuilder.from_varmap(nn.VarMap(), "bf16")
    layer = nn.batch_norm(3, EPS, builder)
    layer(Tensor(BATCHES[1]).to_dtype("bf16"))
    assert layer.running_mean().dtype is DType.BF16
    for got, want in zip(statistics(layer), after(BATCHES[1:2])):
        assert_near(got, want, VALUE[DType.BF16])
    # Statistics may be wider than what is normalised.
    wide = plain(3)
    wide(Tensor(BATCHES[1]).to_dtype("bf16"))
    rounded = Tensor(BATCHES[1]).to_dtype("bf16").numpy()
    assert_after(wide, [rounded])
    assert wide.eval()(Tensor(BATCHES[1]).to_dtype("f16")).dtype is DType.F16


class Counted:
    """An operation that counts how often it is computed, and fails when told to."""

    name = "counted"
    fails = False

    def __init__(self) -> None:
        self.count = 0

    def forward(self, x: mx.array) -> mx.array:
        if not mx.any(x).item():  # it is recorded by trying it on zeros
            return x * 1
        self.count += 1
        if self.fails:
            raise ValueError("told to fail")
        return x * 1

    def backward(self, arg: mx.array, res: mx.array, grad: mx.array) -> mx.array:
        return grad


@pytest.mark.parametrize("first", ["statistics", "result", "gradient"])
def test_lazy_computes_once(first: str) -> None:
    above, layer = Counted(), plain(3)
    x = Var(BATCHES[1])
    result = layer(LazyTensor.from_tensor(x).apply_op1(above))
    assert above.count == 0
    if first == "statistics":
        assert_after(layer, BATCHES[1:2])
        assert not result.is_evaluated()
        result.eval()
    elif first == "result":
        result.eval()
    else:
        result.sqr().sum_all().backward()
    assert_after(layer, BATCHES[1:2])
    assert_near(result.numpy(), batch_normed(BATCHES[1]), F32)
    assert above.count == 1


def test_several_lazy_forwards_for_one_loss() -> None:
    above, layer = Counted(), plain(3)
    x = Var(BATCHES[0])
    results = [layer((LazyTensor.from_tensor(x) * (i + 1.0)).apply_op1(above)) for i in range(3)]
    assert above.count == 0
    (results[0] + results[1] * results[2]).sum_all().backward()
    assert above.count == 3
    layer(LazyTensor.from_tensor(x))
    assert_after(layer, [BATCHES[0], BATCHES[0] * 2, BATCHES[0] * 3, BATCHES[0]])
    assert above.count == 3


def test_batches_that_nobody_asks_for_are_let_go() -> None:
    above, layer = Counted(), plain(3)
    for step in range(40):
        layer(LazyTensor.new(BATCHES[0]).apply_op1(above))
        assert step - above.count < 20
    assert_after(layer, [BATCHES[0]] * 40)
    assert above.count == 40


def test_looking_changes_nothing() -> None:
    above, layer = Counted(), plain(3)
    result = layer(LazyTensor.new(BATCHES[1]).apply_op1(above))
    for _ in range(2):
        assert "batch_norm" in str(result.explain())
        assert "batch_norm" in result.to_dot()
        result.to_svg()
        assert layer.running_mean().dims() == [3]
        repr(result)
    assert above.count == 0
    result.eval()
    assert_after(layer, BATCHES[1:2])
    result.eval()
    result.explain()
    assert_after(layer, BATCHES[1:2])


def test_lazy_steps_before_anything_is_asked_for() -> None:
    above, layer = Counted(), plain(3)
    results = [layer(LazyTensor.new(x).apply_op1(above)) for x in BATCHES]
    assert_after(layer, BATCHES)
    for result, x in zip(results, BATCHES):
        assert_near(result.numpy(), batch_normed(x), F32)
    assert above.count == 3


def test_lazy_and_eager_in_turns() -> None:
    layer = plain(3)
    layer(LazyTensor.new(BATCHES[0]))
    layer(Tensor(BATCHES[1]))
    pending = layer(LazyTensor.new(BATCHES[2]))
    want = running_normed(BATCHES[0], *after(BATCHES))
    assert_near(layer.forward_t(Tensor(BATCHES[0]), False).numpy(), want, F32)
    assert_near(pending.numpy(), batch_normed(BATCHES[2]), F32)


def test_set_while_an_update_is_open() -> None:
    layer, variables = from_a_map(3)
    result = layer(LazyTensor.new(BATCHES[0]))
    variables.data()["running_mean"].set(Tensor.full(7.0, (3,), None, "f32"))
    result.eval()
    assert layer.running_mean().to_vec1() == [7.0] * 3


def test_nothing_is_kept_of_the_graph() -> None:
    import gc
    import weakref

    layer = plain(3)
    start = LazyTensor.new(BATCHES[0])
    gone = weakref.ref(start._node)
    result = layer(start)
    result.eval()
    statistics(layer)
    del start, result
    gc.collect()
    assert gone() is None


def test_a_batch_that_fails() -> None:
    above, layer = Counted(), plain(3)
    layer(Tensor(BATCHES[0]))
    result = layer(LazyTensor.new(BATCHES[1]).apply_op1(above))
    above.fails = True
    with pytest.raises(ValueError, match="told to fail"):
        result.eval()
    with pytest.raises(ValueError, match="told to fail"):
        layer(Tensor(BATCHES[1]))
    assert_after(layer, BATCHES[:1])
    layer(Tensor(BATCHES[1]))
    assert_after(layer, BATCHES[:2])


def test_copies_and_pickles_while_an_update_is_open() -> None:
    for copied in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        layer = plain(3)
        layer(LazyTensor.new(BATCHES[0]))
        twin = copied(layer)
        assert_after(twin, BATCHES[:1])
        twin(Tensor(BATCHES[1]))
        assert_after(twin, BATCHES[:2])
        assert_after(layer, BATCHES[:1])


@KINDS
def test_compiled(kind: Any) -> None:
    layer = plain(3)
    layer(LazyTensor.new(BATCHES[0]))  # still open when the plan reads it
    step = mc.compile(lambda x: layer(x))
    for i, x in enumerate(BATCHES[1:], 2):
        assert_near(step(kind.new(x)).numpy(), batch_normed(x), F32)
        assert_after(layer, BATCHES[:i])
    assert step.traces == 1
    evaluated = mc.compile(lambda x: layer.forward_t(x, False))
    for _ in range(2):
        want = running_normed(BATCHES[0], *statistics(layer))
        assert_near(evaluated(kind.new(BATCHES[0])).numpy(), want, F32)
        layer(kind.new(BATCHES[0]))  # the plan reads the statistics of its time


def test_twice_in_one_plan() -> None:
    layer = plain(3)
    step = mc.compile(lambda x, y: layer(x) + layer(y))
    want = batch_normed(BATCHES[0]) + batch_normed(BATCHES[1])
    assert_near(step(Tensor(BATCHES[0]), Tensor(BATCHES[1])).numpy(), want, F32)
    assert_after(layer, BATCHES[:2])


def trained(how: str) -> tuple[list[float], dict[str, Any]]:
    """Losses and variables of a small classifier's steps."""
    variables = nn.VarMap()
    builder = nn.VarBuilder.from_varmap(variables, "f32")
    first, norm = nn.linear(4, 8, builder.pp("first")), nn.batch_norm(8, EPS, builder.pp("norm"))
    last = nn.linear(8, 1, builder.pp("last"))
    model = nn.seq().add(first).add(norm).add_fn(lambda xs: xs.relu()).add(last)
    for seed, (name, var) in enumerate(variables.data().items()):
        if "norm" not in name:
            var.set(Tensor(0.5 * normal(*var.shape, seed=seed)))
    names = list(variables.data())
    x = normal(16, 4)
    y = (x[:, :1] * x[:, 1:2]).astype(np.float32)

    def step(xs: Any, ys: Any) -> tuple[Any, list[Any]]:
        loss = model(xs).sub(ys).sqr().mean_all()
        grads = loss.backward()
        found = [grads.get(variables.data()[name]) for name in names]
        return loss, [gradient for gradient in found if gradient is not None]

    run = mc.compile(step) if how == "compiled" else step
    kind = LazyTensor if how == "lazy" else Tensor
    learned = [var for name, var in variables.data().items() if "running" not in name]
    losses = []
    for _ in range(20):
        loss, gradients = run(kind.new(x), kind.new(y))
        assert len(gradients) == len(learned)
        for var, gradient in zip(learned, gradients):
            var.set(var - gradient * 0.1)
        losses.append(loss.to_scalar())
    model.eval()
    losses.append(model(kind.new(x)).sub(kind.new(y)).sqr().mean_all().to_scalar())
    return losses, {name: var.numpy() for name, var in variables.data().items()}


def test_training_is_the_same_in_all_ways() -> None:
    losses, variables = trained("eager")
    assert losses[-2] < 0.5 * losses[0]
    for how in ("lazy", "compiled"):
        others, other_variables = trained(how)
        # Twenty steps carry roundings on.
        np.testing.assert_allclose(others, losses, rtol=1e-4)
        for name, value in variables.items():
            np.testing.assert_allclose(other_variables[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_optimizers_leave_the_statistics_alone() -> None:
    layer, variables = from_a_map(3)
    optimizer = nn.AdamW(variables.all_vars(), nn.ParamsAdamW(lr=0.1, weight_decay=0.5))
    optimizer.backward_step(layer(Tensor(BATCHES[1])).sqr().sum_all())
    assert_after(layer, BATCHES[1:2])
    assert layer.weight_and_bias()[0].to_vec1() != [1.0] * 3  # type: ignore[index]
