"""What an evaluation keeps, shares, frees, and does not do twice."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import weakref
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.graph import node, plans
from metal_candle.graph import spread as spread_module
from metal_candle.graph.plan import RUNS_BEFORE_CODE
from metal_candle.graph.spread import _cores, parts_of
from metal_candle.graph.structure import survey
from metal_candle.graph.term import terms_of

import mlx.core as mx
import numpy as np
import pytest
from rewriting import lowered


class Counting:
    """An operation that counts how often it is computed."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, x: Any) -> Any:
        return x

    def forward(self, x: mx.array) -> mx.array:
        self.calls += 1
        return x + 1.0

    def backward(self, args: Any, res: Any, grad: Any) -> Any:
        return (grad,)


def lazy(*shape: int) -> LazyTensor:
    return LazyTensor.new(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def test_a_value_that_is_held_is_not_fused_away() -> None:
    x, a, b = lazy(5, 16), lazy(16, 4), lazy(4, 16)
    y = x @ a @ b * 0.5
    assert lowered(y) == ["lora"]
    hidden = x @ a
    z = hidden @ b * 0.5
    assert lowered(z) == ["matmul", "matmul", "affine"]
    z.eval()
    assert hidden.is_evaluated()
    np.testing.assert_allclose(hidden.numpy(), x.numpy() @ a.numpy(), rtol=1e-5, atol=1e-6)


def test_a_value_that_another_lazy_tensor_needs_is_computed_once() -> None:
    """Nobody has a tensor of it, but an unevaluated one depends on it."""
    counting = Counting()
    shared = lazy(3).apply_op1(counting)
    first, second = shared * 2.0, shared * 3.0
    del shared
    first.eval()
    second.eval()
    assert counting.calls == 1


def test_what_nobody_needs_is_not_kept() -> None:
    x = lazy(3)
    y = (x.exp() + 1.0).sqr()
    inner = weakref.ref(y._node.inputs[0])
    y.eval()
    assert inner() is None


def test_a_loop_pays_for_rewriting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    real = plans.rewrite
    monkeypatch.setattr(plans, "rewrite", lambda *args: runs.append(1) or real(*args))
    x, a, b = lazy(7, 16), lazy(16, 3), lazy(3, 16)
    want = x.numpy() @ a.numpy() @ b.numpy()
    for i in range(2 * RUNS_BEFORE_CODE):
        y = x @ a @ b * 0.75
        np.testing.assert_allclose(y.numpy(), want * 0.75, rtol=1e-5, atol=1e-6, err_msg=f"run {i}")
    assert len(runs) == 1
    # Other numbers, another shape, another holder, another switch: another plan.
    (x @ a @ b * 0.5).eval()
    assert len(runs) == 2
    (x.narrow(0, 0, 3) @ a @ b * 0.75).eval()
    hidden = x @ a
    (hidden @ b * 0.75).eval()
    assert len(runs) == 4
    with features.disabled("rewrite.lora"):
        np.testing.assert_allclose((x @ a @ b * 0.75).numpy(), want * 0.75, rtol=1e-5, atol=1e-6)
    assert len(runs) == 5


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_plans", type(plans._plans)())
    monkeypatch.setattr(plans, "_terms", 0)
    monkeypatch.setattr(plans, "MOST_TERMS", 40)
    x = lazy(2)
    for i in range(50):
        assert ((x + float(i + 1)).exp() * 2.0).eval().shape == (2,)
        assert plans._terms <= 40
    assert 1 <= len(plans._plans) <= 10
    y = x
    for _ in range(30):
        y = y + 1.0
    y.eval()
    assert plans._terms <= 40, "a graph as large as a quarter of the bound is not kept"


def test_two_outputs_that_are_the_same_both_have_their_values() -> None:
    x = lazy(4)
    first, second = x.exp() + 1.0, x.exp() + 1.0
    assert lowered(first, second) == ["exp", "affine"]
    for tensor in mc.eval_all([first, second]):
        np.testing.assert_allclose(tensor.numpy(), np.exp(x.numpy()) + 1, rtol=1e-5)


def test_backward_computes_what_is_shared_with_the_loss_once() -> None:
    counting = Counting()
    w = Var([[1.0, 2.0]] * 16)
    x, b = lazy(5, 16), lazy(2, 16)
    hidden = x.apply_op1(counting).matmul(LazyTensor.from_tensor(w))
    logits = x + hidden.matmul(b) * 0.5
    loss = logits.sqr().sum_all()
    grads = loss.backward()
    loss.eval()
    logits.eval()
    hidden.eval()
    grads[w].numpy()
    assert counting.calls == 1
    x_, w_, b_ = x.numpy() + 1, w.numpy(), b.numpy()
    got = x.numpy() + x_ @ w_ @ b_ * 0.5
    np.testing.assert_allclose(logits.numpy(), got, rtol=1e-4)
    np.testing.assert_allclose(grads[w].numpy(), x_.T @ (2 * got) @ b_.T * 0.5, rtol=1e-4)


def test_gradients_go_through_fused_operations() -> None:
    w = Var(np.full((4, 16), 0.1, np.float32))
    x, a, base = lazy(5, 16), lazy(16, 4), lazy(5, 16)
    loss = (base + x.matmul(a).matmul(LazyTensor.from_tensor(w)) * 0.5).sqr().sum_all()
    gradient = loss.backward()[w]
    names = [node.operation.name() for node in mc.graph.ComputationGraph(loss).nodes()]
    assert names.count("add_lora") == 1
    assert "matmul" not in names
    delta = base.numpy() + x.numpy() @ a.numpy() @ w.numpy() * 0.5
    want = (x.numpy() @ a.numpy()).T @ (2 * delta) * 0.5
    np.testing.assert_allclose(gradient.numpy(), want, rtol=1e-4, atol=1e-4)


def test_the_layout_of_a_held_view_is_not_changed_by_rewriting() -> None:
    w = Var(np.arange(6, dtype=np.float32).reshape(2, 3))
    view = LazyTensor.from_tensor(w).t()
    (view.t().t() * 2.0).sum_all().backward()
    assert (view.stride, view.is_contiguous()) == ((1, 3), False)


@pytest.mark.parametrize("rewriting", [True, False])
def test_peak_memory_of_a_long_chain(rewriting: bool) -> None:
    """A small multiple of the largest value, however long the chain is."""
    x = LazyTensor.new(np.ones((1024, 1024), np.float32))
    largest = 4 * 1024 * 1024

    def peak(length: int) -> int:
        y = x
        for i in range(length):
            y = (y * 1.01 + x).sqrt() if i % 2 else y.exp().log()
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        y.eval()
        return int(mx.get_peak_memory() - before)

    with features.disabled(*([] if rewriting else ["rewrite"])):
        short, long = peak(20), peak(200)
    # MLX has up to ten tasks of one stream under way, whose results exist.
    assert long <= 14 * largest
    assert long <= short + 4 * largest


def test_values_are_freed_while_their_graph_lives_on() -> None:
    """The last tensor of a chain that was evaluated step by step keeps nothing of what came before."""
    x = LazyTensor.new(np.ones((256, 256), np.float32))
    x.eval()
    gc.collect()
    before = mx.get_active_memory()
    y = x
    for _ in range(50):
        y = y * 1.5 + 1.0
        y.eval()
    assert mx.get_active_memory() - before <= 3 * 256 * 256 * 4


def test_threads_that_evaluate_and_differentiate_one_graph() -> None:
    """Nodes are rewritten and freed by one thread while another walks them; each round is a graph of its own."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(60):
            _race(attempt)
    finally:
        sys.setswitchinterval(interval)


def _race(attempt: int) -> None:
    depth, rows = 4 + attempt % 7, 2 + attempt % 5
    w = Var(np.full((16, 4), 0.1, np.float32))
    b = Var(np.full((4, 16), 0.2, np.float32))
    x = lazy(rows, 16)
    parts = [x]
    for i in range(depth):
        y = parts[-1]
        parts.append((y + y.matmul(LazyTensor.from_tensor(w)).matmul(LazyTensor.from_tensor(b)) * 0.5).silu() + i)
    first, second = parts[-1].sqr().mean_all(), (parts[-1] * 0.5 - 1.0).sum_all()
    errors: list[BaseException] = []
    found: dict[int, Any] = {}

    def attempt_to(name: int, what: Any) -> None:
        try:
            found[name] = what()
        except BaseException as error:
            errors.append(error)

    jobs: list[Any] = [first.backward, second.backward, parts[2].eval, first.eval, parts[-2].eval, second.explain]
    threads = [threading.Thread(target=attempt_to, args=job) for job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    with features.disabled("rewrite"):
        wide = [Var.from_tensor(v.to_dtype("f64")) for v in (w, b)]
        y64 = x.to_dtype("f64")
        for i in range(depth):
            update = y64.matmul(LazyTensor.from_tensor(wide[0])).matmul(LazyTensor.from_tensor(wide[1])) * 0.5
            y64 = (y64 + update).silu() + i
        losses = [y64.sqr().mean_all(), (y64 * 0.5).sum_all()]
        for loss, grads in zip(losses, (found[0], found[1])):
            want = loss.backward()
            for variable, exact in zip((w, b), wide):
                expected = want[exact].numpy()
                scale = np.abs(expected).max()
                np.testing.assert_allclose(grads[variable].numpy(), expected, rtol=0, atol=1e-4 * scale)


def test_a_plan_is_made_of_the_graph_that_its_key_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread evaluates a part between the walk and the rewriting."""
    real = plans.apply_rules
    waiting: list[Any] = []

    def meanwhile(graph: Any, log: Any) -> Any:
        if waiting:
            thread = threading.Thread(target=waiting.pop().eval)
            thread.start()
            thread.join()
        return real(graph, log)

    monkeypatch.setattr(plans, "apply_rules", meanwhile)
    for race in (True, False):
        inner = lazy(3, 3).sin()
        middle = inner.exp()
        outer = middle.cos() + 0.125
        if race:
            waiting.append(middle)
        np.testing.assert_allclose(
            outer.numpy(), np.cos(np.exp(np.sin(lazy(3, 3).numpy()))) + 0.125, rtol=1e-5, err_msg=f"{race=}"
        )


def test_equal_operations_of_several_results_both_have_gradients() -> None:
    v = Var(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    x = LazyTensor.from_tensor(v) * 2.0
    first, places = x.sort_last_dim(True)
    second, _ = x.sort_last_dim(True)
    gradient = (first * second.exp()).sum_all().backward()[v].numpy()
    value = v.numpy() * 2
    np.testing.assert_allclose(gradient, 2 * np.exp(value) * (1 + value), rtol=1e-5)
    np.testing.assert_array_equal(places.numpy(), np.argsort(value, axis=-1))


def test_ids_between_others_have_room_after_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty terms that rewriting nests between two nodes, when ids have become large."""
    monkeypatch.setattr(node, "_ids", itertools.count(1 << 40))
    factors = [LazyTensor.new(np.eye(64, dtype=np.float32)) for _ in range(30)]
    v = Var(np.ones((64, 1), np.float32))
    y = LazyTensor.new(np.eye(64, dtype=np.float32))
    for factor in factors:
        y = y @ factor
    loss = (y @ (LazyTensor.from_tensor(v) * 2.0)).sum_all()
    np.testing.assert_array_equal(loss.backward()[v].numpy(), np.full((64, 1), 2.0))


def test_short_threads_do_not_collect_streams() -> None:
    def spread() -> None:
        tensors = [LazyTensor.new(np.ones((256, 512), np.float32)).softmax(-1).softmax(-1) for _ in range(2)]
        mc.eval_all(tensors)

    before = next(spread_module._threads_with_streams)
    for _ in range(2):
        thread = threading.Thread(target=spread)
        thread.start()
        thread.join()
    after = next(spread_module._threads_with_streams)
    assert after - before <= 3
    assert spread_module.MOST_THREADS <= 16


def test_independent_results_on_several_streams() -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((256, 512)).astype(np.float32) for _ in range(6)]

    def chain(x: LazyTensor) -> LazyTensor:
        for _ in range(4):
            x = x.softmax(-1) * 3.0
        return x

    tensors = [chain(LazyTensor.new(value)) for value in values]
    shared = tensors[0] + 1.0
    graph = terms_of(survey([t._node for t in (*tensors, shared)]))
    parts, why = parts_of(graph, tensors[0].device)
    streams = min(_cores(), 6)
    assert [part.stream for part in parts] == [i % streams for i in range(6)]
    assert why == f"6 independent parts one after the other on {streams} stream{'s' if streams > 1 else ''}"
    alone = [chain(LazyTensor.new(value)).eval() for value in values]
    together = mc.eval_all([*tensors, shared])
    for got, want in zip(together, alone):
        np.testing.assert_array_equal(got.numpy(), want.numpy())
    np.testing.assert_array_equal(together[-1].numpy(), alone[0].numpy() + 1)


def test_small_or_connected_work_is_not_spread() -> None:
    x = lazy(8, 8)
    first, second = x.exp(), LazyTensor.new([1.0]).exp()
    assert "are too little to share out" in parts_of(terms_of(survey([first._node, second._node])), x.device)[1]
    big = lazy(512, 512).softmax(-1)
    left, right = big + 1.0, big * 2.0
    del big
    why = parts_of(terms_of(survey([left._node, right._node])), x.device)[1]
    assert why == "its results depend on each other or on the same"


def test_compiled_results_may_be_spread_too() -> None:
    values = [np.random.default_rng(i).standard_normal((256, 512)).astype(np.float32) for i in range(4)]
    f = mc.compile(lambda xs: [x.softmax(-1).softmax(-1) for x in xs])
    for _ in range(2):
        for got, value in zip(f([Tensor(value) for value in values]), values):
            np.testing.assert_allclose(got.numpy(), Tensor(value).softmax(-1).softmax(-1).numpy(), rtol=1e-6)


def test_a_custom_operation_is_not_kept_by_plans() -> None:
    operation = Counting()
    seen = weakref.ref(operation)
    w = Var([1.0])
    loss = LazyTensor.from_tensor(w).apply_op1(operation).sum_all()
    loss.backward()[w].numpy()
    loss.eval()
    del operation, loss
    gc.collect()
    assert seen() is None


def test_a_finalizer_that_evaluates_during_a_walk() -> None:
    """Whoever holds the lock of the walk may be interrupted by anything that Python runs in between."""
    from metal_candle.graph import structure

    y = lazy(3).exp()
    with structure.lock:
        assert y.eval().shape == (3,)


def test_what_a_shared_view_shows_is_computed_once() -> None:
    x, a, b = lazy(5, 16), lazy(16, 4), lazy(4, 16)
    turned = (x @ a).t()
    y, z = turned.t() @ b * 0.5, turned * 3.0
    del turned
    assert lowered(y, z).count("matmul") == 2
    y.eval()
    np.testing.assert_allclose(z.numpy(), (x.numpy() @ a.numpy()).T * 3, rtol=1e-5)


def test_a_held_result_that_becomes_a_view_keeps_its_layout() -> None:
    w = Var(np.arange(12, dtype=np.float32).reshape(3, 4))
    part = LazyTensor.from_tensor(w).narrow(1, 1, 2) * 1.0
    before = part.layout()
    (part * part).sum_all().backward()
    assert part.layout() == before
    assert part.is_contiguous()
    np.testing.assert_array_equal(part.numpy(), w.numpy()[:, 1:3])


def test_a_leaf_among_independent_results() -> None:
    x = LazyTensor.new(np.ones((256, 512), np.float32))
    first, second = x.softmax(-1).softmax(-1), (x * 2.0).softmax(-1).softmax(-1)
    results = mc.eval_all([x, first, second, x, first])
    for got in results[1:3]:
        np.testing.assert_allclose(got.numpy(), np.full((256, 512), 1 / 512), rtol=1e-6)
    f = mc.compile(lambda x, y: (x, x.softmax(-1), y.softmax(-1), y, x.softmax(-1)))
    y = Tensor(np.zeros((256, 512), np.float32))
    given, left, right, same, again = f(x.eval(), y)
    assert (given.numpy()[0, 0], same.numpy()[0, 0]) == (1.0, 0.0)
    np.testing.assert_array_equal(left.numpy(), again.numpy())
    np.testing.assert_allclose(right.numpy(), left.numpy(), rtol=1e-6)
