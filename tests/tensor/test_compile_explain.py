"""What a compiled function tells of itself: its plans, why there are several, and what went wrong while tracing."""

from __future__ import annotations

import copy

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, Var, features, settings

import numpy as np
import pytest


def reasons(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if "because" in line]


def test_switches_are_part_of_a_plan() -> None:
    a, b, x = (Tensor(np.ones(shape, np.float32)) for shape in ((16, 4), (4, 16), (3, 16)))
    f = mc.compile(lambda x, a, b: x.matmul(a).matmul(b) * 0.5)
    f(x, a, b)
    with features.disabled("rewrite.lora"):
        f(x, a, b)
        f(x, a, b)
    with settings.KERNELS.override("reference"):
        f(x, a, b)
    f(x, a, b)
    assert f.traces == 3
    assert reasons(f.explain()) == [
        "traced because METAL_CANDLE_DISABLE is rewrite.lora, not empty",
        "traced because METAL_CANDLE_KERNELS is reference, not auto",
    ]
    assert f.explain().count("rewritten: lora x 1") == 2


def test_tensors_from_outside_are_named() -> None:
    table, shift = Tensor(np.ones((64, 4), np.float32)), Tensor(np.ones(4, np.float32))
    f = mc.compile(lambda x: x.matmul(table) + shift)
    f(Tensor(np.ones((4, 64), np.float32)))
    assert "holds 2 tensors from outside ([64, 4] f32, [4] f32), replay" in f.explain()


def test_a_dropped_plan_is_a_reason_and_no_neighbour() -> None:
    f = mc.compile(lambda x: x * 2.0, max_plans=2)
    f(Tensor([1.0]))
    f(Tensor([1.0, 2.0]))
    with pytest.warns(RuntimeWarning, match="max_plans is 2"):
        f(Tensor([1.0, 2.0, 3.0]))
    f(Tensor([1.0]))
    assert reasons(f.explain()) == [
        "traced because x is [3] f32, not [1] f32",
        "traced because its plan was dropped: max_plans is 2",
    ]
    f(Tensor([[1.0]]))
    assert reasons(f.explain())[-1] == "traced because x is [1, 1] f32, not [3] f32"


def test_the_warning_points_at_the_call_of_a_method() -> None:
    class Doubling:
        @mc.compile(max_plans=1)
        def forward(self, x: Tensor) -> Tensor:
            return x * 2.0

    module = Doubling()
    module.forward(Tensor([1.0]))
    with pytest.warns(RuntimeWarning, match="forward has dropped the plan used longest ago") as told:
        module.forward(Tensor([1.0, 2.0]))
    assert told[0].filename == __file__


def test_objects_that_look_the_same() -> None:
    class Same:
        def __repr__(self) -> str:
            return "Same"

    f = mc.compile(lambda x, by: x)
    for _ in range(2):
        f(Tensor([1.0]), Same())
    assert reasons(f.explain()) == ["traced because an argument is another object that looks the same"]


def test_methods_tell_of_their_function() -> None:
    class Scaled:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        @mc.compile
        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    two, three = Scaled(2.0), Scaled(3.0)
    assert two.forward(Tensor([1.0])).to_vec1() == [2.0]
    assert three.forward(x=Tensor([1.0])).to_vec1() == [3.0]
    assert (two.forward.traces, two.forward.recompiles) == (2, 1)
    assert two.forward.explain() == Scaled.forward.explain() != ""
    assert two.forward == two.forward != three.forward
    assert len({two.forward, two.forward, three.forward}) == 2
    assert (repr(two.forward), two.forward.__name__) == ("compile(forward): 2 plans of Scaled", "forward")
    assert copy.copy(two.forward) == two.forward


def test_traced_tensors_print() -> None:
    seen: list[str] = []

    @mc.compile
    def f(x: Tensor) -> Tensor:
        y = x * 2.0
        seen.extend((str(y), f"{y}", f"{LazyTensor.from_tensor(y)}"))
        return y

    f(Tensor([[1.0, 2.0, 3.0]] * 2))
    assert seen[:2] == ["Tensor[[2, 3]; f32, traced]"] * 2
    assert "lazy" in seen[2]


def test_a_look_at_a_value_is_named() -> None:
    for look, name in (
        (lambda x: x.to_scalar(), "to_scalar"),
        (lambda x: 1.0 if x > 0.0 else 2.0, "bool"),
        (lambda x: float(x), "float"),
        (lambda x: f"{x:.2f}", "format"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.unsqueeze(0).to_vec1(), "to_vec1"),
        (lambda x: Var(x), "Var"),
    ):
        with pytest.raises(mc.NotEvaluatedError, match=f"^{name}: a function that compile is tracing .* where_cond$"):
            mc.compile(look)(Tensor(1.0))


def test_what_escapes_says_where_it_was_made() -> None:
    kept: list[Tensor] = []

    @mc.compile
    def leaky(x: Tensor) -> Tensor:
        kept.extend((x, Tensor.rand(0.0, 1.0, (2,)) * 2.0))
        return x

    leaky(Tensor([1.0]))
    for tensor in kept:
        for use in (tensor.to_vec1, lambda: tensor * 2.0, lambda: leaky(tensor)):  # noqa: B023
            with pytest.raises(mc.NotEvaluatedError, match="was made while compile traced leaky has no value; takes"):
                use()
