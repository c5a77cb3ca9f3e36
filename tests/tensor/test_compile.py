"""``compile``: traced once per structure and shapes, then replayed; equal to the function itself."""

from __future__ import annotations

import gc
from collections import namedtuple
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.nn import ops

import mlx.core as mx
import numpy as np
import pytest

Pair = namedtuple("Pair", "left right")


def test_traced_once_per_shape_dtype_and_constant() -> None:
    calls = []

    @mc.compile
    def scaled(x: Tensor, factor: float = 2.0) -> Tensor:
        """Its own docstring."""
        calls.append(factor)
        return x * factor

    for _ in range(3):
        assert scaled(Tensor([1.0, 2.0])).to_vec1() == [2.0, 4.0]
    assert scaled.traces == len(calls) == 1
    assert scaled(Tensor([1.0, 2.0, 3.0])).to_vec1() == [2.0, 4.0, 6.0]
    assert scaled(Tensor([1.0, 2.0], dtype="f16")).dtype is DType.F16
    assert scaled(Tensor([1.0, 2.0]), factor=3.0).to_vec1() == [3.0, 6.0]
    assert scaled(Tensor([1.0, 2.0]), 3.0).to_vec1() == [3.0, 6.0]
    assert scaled.traces == len(calls) == 5
    assert scaled(Tensor([5.0, 6.0])).to_vec1() == [10.0, 12.0]
    assert scaled.traces == 5
    assert (scaled.__name__, scaled.__doc__) == ("scaled", "Its own docstring.")
    assert scaled.explain().splitlines()[0] == (
        "plan 0: 1 operations of 2 nodes, reads 0 and sets 0 variables, holds 0 tensors from outside, "
        "replay without mx.compile (CPU); arguments x [2] f32"
    )
    reasons = [line.strip() for line in scaled.explain().splitlines() if "because" in line]
    assert reasons == [
        "traced because x is [3] f32, not [2] f32",
        "traced because x is [2] f16, not [2] f32",
        "traced because factor is 3.0, not left out",
        "traced because passed by name is nothing, not factor",
    ]
    assert scaled.recompiles == 4


def test_nested_containers_in_and_out() -> None:
    @mc.compile
    def swap(pair: Pair, parts: dict[str, Any]) -> Any:
        first, (second, label) = parts["list"]
        return Pair(pair.right, pair.left), {"sum": first + second, "label": label, "none": None}, [first]

    a, b = Tensor([1.0]), Tensor([2.0])
    swapped, named, listed = swap(Pair(a, b), {"list": [a, (b, "text")]})
    assert isinstance(swapped, Pair)
    assert (swapped.left.to_vec1(), swapped.right.to_vec1()) == ([2.0], [1.0])
    assert named["sum"].to_vec1() == [3.0]
    assert (named["label"], named["none"]) == ("text", None)
    assert listed[0].to_vec1() == [1.0]
    swap(Pair(b, b), {"list": [b, (b, "text")]})
    assert swap.traces == 1
    swap(Pair(b, b), {"list": [b, (b, "other")]})
    assert swap.traces == 2


def test_lazy_in_lazy_out() -> None:
    @mc.compile
    def f(x: Any) -> Any:
        return x.exp()

    assert isinstance(f(LazyTensor.new([0.0])), LazyTensor)
    assert isinstance(f(Tensor([0.0])), Tensor)
    assert f.traces == 2


def test_variables_are_read_at_each_call() -> None:
    w = Var([2.0])

    @mc.compile
    def f(x: Tensor) -> Tensor:
        return x * w

    assert f(Tensor([3.0])).to_vec1() == [6.0]
    w.set(Tensor([5.0]))
    assert f(Tensor([3.0])).to_vec1() == [15.0]
    assert f.traces == 1


def test_variables_are_set_when_the_plan_has_run() -> None:
    w, seen = Var([1.0]), []

    @mc.compile
    def double(by: Tensor) -> tuple[Tensor, Tensor]:
        before = w * 1.0
        w.set(w * by)
        seen.append(w.track_op())
        w.set(w + 1.0)
        return before, w * 10.0

    before, after = double(Tensor([2.0]))
    assert (before.to_vec1(), after.to_vec1(), w.to_vec1()) == ([1.0], [30.0], [3.0])
    before, after = double(Tensor([2.0]))
    assert (before.to_vec1(), after.to_vec1(), w.to_vec1()) == ([3.0], [70.0], [7.0])
    assert double.traces == 1
    assert seen == [True]
    assert "reads 1 and sets 1 variables" in double.explain()


def test_a_variable_among_the_arguments_is_itself() -> None:
    w, other = Var([1.0, 2.0]), Var([3.0, 4.0])

    @mc.compile
    def step(v: Var, x: Tensor) -> Tensor:
        gradient = (v * x).sum_all().backward()[v]
        v.set(v - gradient)
        return gradient

    assert step(w, Tensor([1.0, 1.0])).to_vec1() == [1.0, 1.0]
    assert w.to_vec1() == [0.0, 1.0]
    step(w, Tensor([1.0, 2.0]))
    assert w.to_vec1() == [-1.0, -1.0]
    assert step.traces == 1
    step(other, Tensor([1.0, 1.0]))
    assert (step.traces, other.to_vec1()) == (2, [2.0, 3.0])
    assert mc.compile(lambda v: v)(w) is w


def test_what_was_recorded_earlier_keeps_its_value() -> None:
    w = Var([1.0])
    earlier = LazyTensor.from_tensor(w) * 10.0
    w.set(Tensor([2.0]))
    f = mc.compile(lambda x: earlier + LazyTensor.from_tensor(w) + x)
    assert f(LazyTensor.new([0.5])).eval().to_vec1() == [12.5]
    w.set(Tensor([3.0]))
    assert f(LazyTensor.new([0.5])).eval().to_vec1() == [13.5]


def test_random_numbers_are_drawn_anew_and_follow_the_seed() -> None:
    @mc.compile
    def noise(x: Tensor) -> tuple[Tensor, Tensor]:
        drawn = Tensor.randn(0.0, 1.0, (4,))
        return drawn - drawn + x, ops.dropout(drawn, 0.5)

    x = Tensor([1.0, 2.0, 3.0, 4.0])
    Device.Cpu.set_seed(3)
    first, second = noise(x)[1].to_vec1(), noise(x)[1].to_vec1()
    assert first != second
    assert noise(x)[0].to_vec1() == x.to_vec1()
    Device.Cpu.set_seed(3)
    assert noise(x)[1].to_vec1() == first
    assert noise.traces == 1


def test_looking_at_a_traced_value_is_refused() -> None:
    for look in (
        lambda x: x.to_scalar(),
        lambda x: float(x * 2.0),
        lambda x: x.numpy(),
        lambda x: bool(x > 0.0),
        lambda x: LazyTensor.from_tensor(x).eval(),
        lambda x: mc.eval_all([LazyTensor.from_tensor(x) * 2.0]),
    ):
        with pytest.raises(RuntimeError, match="a function that compile is tracing cannot look at values"):
            mc.compile(look)(Tensor(1.0))
    assert Tensor(2.0).to_scalar() == 2.0


def test_a_failing_trace_leaves_variables_and_tracing_as_they_were() -> None:
    w = Var([1.0])

    @mc.compile
    def broken(x: Tensor) -> Tensor:
        w.set(w + x)
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        broken(Tensor([1.0]))
    assert w.to_vec1() == [1.0]
    assert (w + 1.0).to_vec1() == [2.0]
    assert broken.traces == 0


def test_a_failing_replay_sets_nothing() -> None:
    w, table = Var([1.0]), Tensor([[1.0], [2.0]])

    @mc.compile
    def f(ids: Tensor) -> Tensor:
        w.set(w + 1.0)
        return table.embedding(ids)

    f(Tensor([1]))
    with pytest.raises(IndexError, match="embedding: index 2 is out of range"):
        f(Tensor([2]))
    assert w.to_vec1() == [2.0]


def test_what_escapes_a_trace_has_no_value() -> None:
    kept = []
    f = mc.compile(lambda x: kept.append(x * 2.0) or x)
    f(Tensor([1.0]))
    assert repr(kept[0]) == "Tensor[[1]; f32, traced]"
    with pytest.raises(mc.Error, match="eval: a tensor that was made while compile traced <lambda> has no value"):
        kept[0].to_vec1()


def test_a_compiled_function_inside_another_is_part_of_it() -> None:
    inner = mc.compile(lambda x: x * 2.0)
    outer = mc.compile(lambda x: inner(x) + 1.0)
    assert outer(Tensor([1.0])).to_vec1() == [3.0]
    assert (outer.traces, inner.traces) == (1, 0)


def test_arguments_that_cannot_be_part_of_a_plan() -> None:
    with pytest.raises(mc.Error, match=r"compile: argument x is of type ndarray; takes a tensor: Tensor\(array\)"):
        mc.compile(lambda x: x)(np.zeros(2))
    with pytest.raises(mc.Error, match=r"compile: the result\['a'\] is of type set; takes tensors, hashable values"):
        mc.compile(lambda x: {"a": {1, 2}})(Tensor(1.0))


def training_step(w: Var, b: Var, moment: Var) -> Any:
    def step(x: Any, y: Any, rate: Any) -> Any:
        prediction = (x.matmul(x._lift(w)).silu() + x._lift(b)).softmax(-1)
        loss = (prediction - y).sqr().mean_all()
        grads = loss.backward()
        moment.set(moment * 0.5 + grads[w])
        w.set(w - moment * rate)
        b.set(b - grads[b] * rate)
        return loss

    return step


def test_a_training_step_replayed_equals_the_step_itself() -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 3), (3,), (6, 3))]
    batches = [
        (rng.standard_normal((4, 6)).astype(np.float32), rng.random((4, 3)).astype(np.float32)) for _ in range(5)
    ]
    plain, replayed = ([Var(x) for x in start] for _ in range(2))
    compiled = mc.compile(training_step(*replayed))
    eager = training_step(*plain)
    for x, y in batches:
        losses = [step(Tensor(x), Tensor(y), Tensor(0.3)) for step in (eager, compiled)]
        # A forward pass in one plan with its gradient may use what a kernel saved: equal but for rounding.
        np.testing.assert_allclose(losses[0].numpy(), losses[1].numpy(), rtol=1e-5)
        for a, b in zip(plain, replayed):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
    assert compiled.traces == 1


def test_a_plan_lets_results_go_after_their_last_use() -> None:
    """Every result but the outputs' has a step that drops it."""
    from metal_candle.graph.plans import planned

    x = LazyTensor.new([1.0])
    y = x.exp().sqr() + x
    plan = planned([y._node])[1].plan
    dropped = [slot for step in plan.steps for slot in step[3]]
    assert len(dropped) == len(set(dropped)) == 3


def test_a_result_says_that_its_gradient_ends_here() -> None:
    w = Var([1.0, 2.0])
    f = mc.compile(lambda x: (w * x).sum_all())
    loss = f(Tensor([3.0, 4.0]))
    assert loss.to_scalar() == 11.0
    for result in (loss, loss * 2.0, LazyTensor.from_tensor(loss) + 1.0):
        with pytest.raises(NotImplementedError, match="backward: compile has no gradient; its results keep no operat"):
            result.backward()
    v = Var([1.0])
    assert "the end of a compiled function" in (v * loss).sum_all().backward().explain(w)
    plain = mc.compile(lambda x: x * 2.0)(Tensor([1.0]))
    assert len(plain.backward()) == 0


def test_methods_and_what_is_no_function() -> None:
    class Scaled:
        def __init__(self, factor: float) -> None:
            self.w = Var([factor])

        @mc.compile
        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    two, three = Scaled(2.0), Scaled(3.0)
    assert two.forward(Tensor([5.0])).to_vec1() == [10.0]
    assert three.forward(Tensor([5.0])).to_vec1() == [15.0]
    with pytest.raises(mc.Error, match="compile: got int; takes a function"):
        mc.compile(3)  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match=r"compile: the result is of type GradStore; takes its gradients"):
        mc.compile(lambda x: (x * two.w).sum_all().backward())(Tensor([1.0]))


def test_a_bound_number_of_plans_is_kept() -> None:
    f = mc.compile(lambda x, factor: x * factor, max_plans=3)
    for factor in (1.0, 2.0, 3.0):
        assert f(Tensor([2.0]), factor).to_vec1() == [2.0 * factor]
    with pytest.warns(RuntimeWarning, match=r"<lambda> has dropped .* max_plans is 3, .* <lambda>.explain\(\)") as told:
        f(Tensor([2.0]), 4.0)
    assert f(Tensor([2.0]), 1.0).to_vec1() == [2.0]  # the second time nobody is warned
    assert told[0].filename == __file__
    assert f.traces == 5
    assert len(f._plans) == 3
    f(Tensor([2.0]), 4.0)
    assert f.traces == 5
    assert "plan 4:" in f.explain()
    assert "plan 1:" not in f.explain()
    assert "traced because its plan was dropped: max_plans is 3" in f.explain()
    assert f.explain().splitlines()[-1] == "dropped: 2 plans; max_plans is 3"
    with pytest.raises(mc.Error, match="compile: got max_plans True; takes a whole number from 1"):
        mc.compile(lambda x: x, max_plans=True)
    with pytest.raises(mc.Error, match="compile: got max_plans 0; takes a whole number from 1"):
        mc.compile(lambda x: x, max_plans=0)


def test_zeros_of_both_signs_are_different_constants() -> None:
    f = mc.compile(lambda x, by: x * by)
    assert [str(f(Tensor([1.0]), by).to_vec1()[0]) for by in (0.0, -0.0, 0.0)] == ["0.0", "-0.0", "0.0"]
    assert f.traces == 2


def test_rules_rewrite_what_is_compiled() -> None:
    rng = np.random.default_rng(0)
    x, a, b = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 16), (16, 4), (4, 16)))

    @mc.compile
    def update(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x + x.matmul(a).matmul(b) * 0.5

    np.testing.assert_allclose(update(x, a, b).numpy(), x.numpy() + x.numpy() @ a.numpy() @ b.numpy() * 0.5, rtol=1e-5)
    assert "rewritten: lora x 1, add_lora x 1" in update.explain()
    assert "1 operations of 7 nodes" in update.explain()


def test_values_that_variables_and_arguments_had_are_given_back() -> None:
    """Of each traced shape, and without the garbage collector."""
    size = 1 << 20
    total = Var.zeros((size,), DType.F32, Device.Cpu)

    @mc.compile
    def add(x: Tensor, ones: Tensor) -> Tensor:
        total.set(total + ones)
        return x.sum_all()

    gc.collect()
    gc.disable()
    try:
        total.mlx()
        before = mx.get_active_memory()
        for length in (1, 2, 3):
            add(Tensor.ones((length,), DType.F32, Device.Cpu), Tensor.ones((size,), DType.F32, Device.Cpu)).to_scalar()
        assert mx.get_active_memory() - before < 2 * size
    finally:
        gc.enable()
    assert total.as_tensor().max(0).to_scalar() == 3.0
