"""``nn.checkpoint`` (the record ``checkpoint``) and checkpointed decoders: same numbers, less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import ArgumentTypeError, Device, Error, LazyTensor, NotEvaluatedError, Tensor, Var, nn
from metal_candle.graph.body import _bodies
from metal_candle.graph.cost import cost_of_all
from metal_candle.graph.node import topological_order
from metal_candle.graph.operations.checkpoint import Checkpoint
from metal_candle.models import load_model
from metal_candle.nn import checkpoint, ops
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.batch_loss import batch_loss, targets_of
from metal_candle.training.data import Example, collate

import mlx.core as mx
import numpy as np
import pytest

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
WAYS = ("eager", "lazy", "compiled")


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def values(*shape: int, seed: int = 0) -> Tensor:
    return Tensor.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.3)


class Net:
    """Blocks of a norm, two products and dropout around a residual."""

    def __init__(self, count: int = 3, dropout: float = 0.0) -> None:
        self.dropout = dropout
        self.weights = [
            (
                Var.from_tensor(values(8, 16, seed=i)),
                Var.from_tensor(values(16, 8, seed=99 + i)),
                values(8, seed=50 + i),
            )
            for i in range(count)
        ]
        self.vars = [var for up, down, _ in self.weights for var in (up, down)]

    def block(self, i: int) -> Callable[[Any], Any]:
        up, down, scale = self.weights[i]

        def forward(x: Any) -> Any:
            hidden = x.rms_norm(1e-5).broadcast_mul(x._lift(scale)).broadcast_matmul(x._lift(up)).silu()
            if self.dropout:
                hidden = ops.dropout(hidden, self.dropout)
            return x + hidden.broadcast_matmul(x._lift(down))

        return forward

    def loss(self, x: Any, wrap: Wrap) -> Any:
        for i in range(len(self.weights)):
            x = wrap(self.block(i))(x)
        return (x * x).mean_all()

    def step(self, x: Any, wrap: Wrap) -> list[Any]:
        loss = self.loss(x, wrap)
        grads = loss.backward()
        return [loss, *(grads[var] for var in self.vars)]

    def run(self, way: str, wrap: Wrap, xs: Tensor) -> list[np.ndarray[Any, Any]]:
        step: Callable[..., Any] = partial(self.step, wrap=wrap)
        Device.default().set_seed(5)
        if way == "compiled":
            step = mc.compile(lambda x: self.step(x, wrap))
        found = step(LazyTensor.from_tensor(xs) if way == "lazy" else xs)
        return [tensor.mlx() if isinstance(tensor, Tensor) else tensor.eval().mlx() for tensor in found]


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    return checkpoint(checkpoint(function))


@pytest.mark.parametrize("wrap", [checkpoint, twice], ids=["once", "nested"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("way", WAYS)
def test_same_loss_and_gradients_bit_by_bit(way: str, dropout: float, wrap: Wrap) -> None:
    net, xs = Net(dropout=dropout), values(4, 8)
    for kept, found in zip(net.run(way, plain, xs), net.run(way, wrap, xs)):
        np.testing.assert_array_equal(np.array(found), np.array(kept))


@pytest.mark.parametrize("way", WAYS)
def test_dropout_draws_the_mask_of_the_forward_pass(way: str) -> None:
    """The gradient of a sum of dropped ones is the dropped ones themselves."""
    ones = Var.from_tensor(Tensor.ones((64, 64), "f32"))

    def step(x: Any) -> Any:
        dropped = checkpoint(lambda x: ops.dropout(x, 0.5))(x)
        return dropped, dropped.sum_all().backward()[ones]

    given = LazyTensor.from_tensor(ones) if way == "lazy" else ones
    dropped, gradient = mc.compile(step)(given) if way == "compiled" else step(given)
    np.testing.assert_array_equal(gradient.numpy(), dropped.numpy() if way != "lazy" else dropped.eval().numpy())
    assert 0.4 < float((gradient.numpy() > 0).mean()) < 0.6


def test_memory_of_a_deep_network() -> None:
    """What a block keeps is its input alone: here one array of nine."""
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("peaks are those of the CPU back-end")
    net, xs = Net(40), values(8192, 8)

    def peak(wrap: Wrap) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        found = net.run("lazy", wrap, xs)
        used = mx.get_peak_memory() - before
        del found
        return used

    assert peak(checkpoint) < 0.4 * peak(plain)


def test_what_is_inside_is_rewritten() -> None:
    net, xs = Net(1), values(4, 8)
    _bodies.clear()
    net.run("lazy", checkpoint, xs)
    (body,) = _bodies.values()
    assert body.forward().rules() == {"rms_norm_weight": 1, "add_matmul": 1}
    backward, there = body.backward((True, False, True, True), (True,))
    assert backward.rules()["rms_norm_weight"] == 0  # it was fused before it was differentiated
    assert backward.size < 20
    assert there == [True, True, True]


def test_blocks_alike_share_a_body() -> None:
    net, xs = Net(6), values(4, 8)
    _bodies.clear()
    for _ in range(3):
        for var in net.vars:
            var.set(var * 0.9)
        net.run("lazy", checkpoint, xs)
    # The first block's input needs no gradient; that is no part of what a body is.
    assert len(_bodies) == 1


def test_one_operation_in_the_graph() -> None:
    net = Net(1)
    out = checkpoint(net.block(0))(LazyTensor.from_tensor(values(4, 8)))
    assert isinstance(out._node.operation, Checkpoint)
    assert out._node.operation.describe() == "checkpoint(body=6 operations)"
    kept = net.block(0)(LazyTensor.from_tensor(values(4, 8)))
    assert cost_of_all(topological_order([out._node])).flops == cost_of_all(topological_order([kept._node])).flops


# --- what functions take and give -----------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_several_arguments_and_results_in_containers(lazy: bool) -> None:
    a, b = Var.from_tensor(values(3, 4)), Var.from_tensor(values(4, 5, seed=1))
    given = (LazyTensor.from_tensor(a), LazyTensor.from_tensor(b)) if lazy else (a.as_tensor() + 0.0, b * 1.0)

    def function(pair: Any, *, scale: float) -> dict[str, Any]:
        product = pair[0].matmul(pair[1])
        return {"product": product, "parts": [product.sin() * scale, product.cos()], "scale": scale, "same": pair[0]}

    kept, found = function(given, scale=2.0), checkpoint(function)(given, scale=2.0)
    assert found["scale"] == 2.0
    assert isinstance(found["product"], type(given[0] + 0.0))
    np.testing.assert_array_equal(found["same"].numpy(), a.numpy())

    def loss(got: Any) -> Any:
        return (got["parts"][0] * got["product"] + got["parts"][1] * 3.0).sum_all()

    mine, theirs = loss(found).backward(), loss(kept).backward()
    for var in (a, b):
        # Another order of additions where several results meet.
        np.testing.assert_allclose(mine[var].numpy(), theirs[var].numpy(), rtol=0, atol=2e-6)


def test_results_without_a_gradient_are_told_apart() -> None:
    """A variable has a gradient or none just as without a checkpoint; of results that are not used nothing comes."""
    a, b = Var.from_tensor(values(3, 4)), Var.from_tensor(values(3, 4, seed=1))

    def function(x: Any, y: Any) -> tuple[Any, Any, Any]:
        return x * y.detach(), (x * 2.0).detach(), x.argmax(1)

    product, cut, ids = checkpoint(function)(LazyTensor.from_tensor(a), LazyTensor.from_tensor(b))
    assert product.track_op()
    assert not cut.track_op()
    assert not ids.track_op()
    grads = (product + cut).sum_all().backward()
    assert a in grads
    assert b not in grads
    assert "detach" in grads.explain(b)
    assert len(cut.sum_all().backward()) == 0
    np.testing.assert_array_equal(grads[a].numpy(), b.numpy())


def test_closures_over_lazy_tensors_and_views() -> None:
    weight = Var.from_tensor(values(4, 4))
    outside, view = LazyTensor.from_tensor(weight).exp(), weight.t()

    def function(x: Any) -> Any:
        return x.matmul(outside) + x._lift(view) * 2.0

    x = LazyTensor.from_tensor(values(4, 4, seed=2))
    mine = checkpoint(function)(x).sum_all().backward()[weight]
    theirs = function(x).sum_all().backward()[weight]
    np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-6)
    weight.set(weight * 2.0)
    np.testing.assert_array_equal(view.numpy(), weight.numpy().T)


def test_a_variable_that_is_set_inside_is_set_once() -> None:
    """Running statistics, as of a batch norm, move by one step although the function is computed twice."""
    scale = Var.from_tensor(values(8))
    for way in WAYS:
        count = Var.zeros((), "f32")

        def function(x: Any, count: Var = count) -> Any:
            count.set(count.as_tensor() + 1.0)
            return x.broadcast_mul(x._lift(scale)).exp()

        def step(x: Any, function: Callable[..., Any] = function) -> Any:
            return checkpoint(function)(x).sum_all().backward()[scale]

        xs: Any = values(4, 8)
        found = mc.compile(step)(xs) if way == "compiled" else step(LazyTensor.from_tensor(xs) if way == "lazy" else xs)
        np.testing.assert_allclose(found.numpy(), (xs.numpy() * np.exp(xs.numpy() * scale.numpy())).sum(0), rtol=1e-5)
        assert float(count) == 1.0


def test_a_variable_that_is_used_after_it_was_set_is_refused() -> None:
    """Its gradient would lack what comes by its new value."""
    weight = Var.from_tensor(values(8, 8))

    def function(x: Tensor) -> Tensor:
        weight.set(weight * 0.5)
        return x.matmul(weight.as_tensor())

    before = weight.numpy()
    with pytest.raises(Error, match=r"uses a variable \[8, 8\] after it has set it, where no gradient would reach"):
        checkpoint(function)(values(4, 8))
    np.testing.assert_array_equal(weight.numpy(), before)


def test_batch_norm_in_training() -> None:
    def norm() -> nn.BatchNorm:
        start = [Tensor.full(value, 8) for value in (0.0, 1.0, 1.0, 0.0)]
        return nn.BatchNorm.new(8, *start, 1e-5)

    kept, recomputed, xs = norm(), norm(), values(16, 8)
    np.testing.assert_array_equal(checkpoint(recomputed)(xs).numpy(), kept(xs).numpy())
    np.testing.assert_array_equal(recomputed.running_mean().numpy(), kept.running_mean().numpy())
    assert np.abs(kept.running_mean().numpy()).min() > 0


def test_a_compiled_function_sees_modules_modes() -> None:
    drop = nn.Dropout(0.5)
    run = mc.compile(lambda x: checkpoint(drop)(x))
    xs = Tensor.ones((64,), "f32")
    assert set(run(xs).numpy().tolist()) == {0.0, 2.0}
    drop.eval()
    assert set(run(xs).numpy().tolist()) == {1.0}


def test_what_is_no_function_and_what_cannot_be_returned() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^checkpoint: got 3; takes a function or a module$"):
        checkpoint(3)  # type: ignore[arg-type]
    xs = values(2, 2)
    with pytest.raises(Error, match=r"^checkpoint: the result is of type array; takes a tensor: Tensor"):
        checkpoint(lambda x: mx.zeros(2))(xs)
    with pytest.raises(NotEvaluatedError, match="a function that checkpoint is tracing cannot look at values"):
        checkpoint(lambda x: x * float(x.sum_all()))(xs)
    # A failed call leaves nothing behind.
    assert checkpoint(lambda x: x + 1.0)(xs).shape == (2, 2)


def test_a_leaked_tensor_says_where_it_comes_from() -> None:
    seen: list[Any] = []

    def function(x: Any) -> Any:
        seen.append(x * 2.0)
        return x * 3.0

    checkpoint(function)(LazyTensor.from_tensor(values(2, 2)))
    with pytest.raises(NotEvaluatedError, match="made while checkpoint traced function has no value"):
        seen[0].eval()


# --- decoders -------------------------------------------------------------------------------------


def batch(count: int, length: int) -> Any:
    rng = np.random.default_rng(0)
    rows = [
        Example(rng.integers(3, 64, length).tolist(), [j >= length // 3 for j in range(length)], Path("made.jsonl"), i)
        for i in range(count)
    ]
    return collate(rows, 2, length)


@pytest.mark.parametrize(
    ("kind", "settings"), [("llama", {}), ("mistral", {"sliding_window": 5}), ("qwen3", {"attention_bias": True})]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_decoder(tiny_model_dir: Callable[..., Path], kind: str, settings: Any, dropout: float) -> None:
    model = load_model(tiny_model_dir(kind, **settings)).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, dropout, tuple(TargetModule)))
    for layer in adapter.trainable_variables():
        layer.set(Tensor.randn(0.0, 0.2, layer.shape, layer.device, layer.dtype))
    model.apply_adapter(adapter)
    tensors = targets_of(batch(3, 17), 30).tensors()

    def step(*given: Any) -> list[Any]:
        loss = batch_loss(model, *given)
        grads = loss.backward()
        return [loss, *(grads[var] for var in adapter.trainable_variables())]

    found = []
    for on in (False, True):
        model.gradient_checkpointing(on)
        Device.default().set_seed(1)
        found.append([np.array(each.mlx()) for each in mc.compile(step)(*tensors)])
    for kept, recomputed in zip(*found):
        # The norm at a block's end is not fused with the sum before it; float32 sums of 32 numbers.
        np.testing.assert_allclose(recomputed, kept, rtol=1e-5, atol=1e-6)
