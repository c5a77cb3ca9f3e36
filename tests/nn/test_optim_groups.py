"""Parameter groups: numbers of their own, and learning rates that keep their ratio."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Tensor, Var, nn

import numpy as np
import pytest
from optimizing import ALL, GRADIENTS, START


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "muon"])
def test_a_group_is_as_an_optimizer_of_its_own(name: str) -> None:
    a, b, alone_a, alone_b = (Var(START) for _ in range(4))
    kind = type(ALL[name]([]))
    base = ALL[name]([]).params()
    own = {"lr": 0.25, "weight_decay": 0.5}
    grouped = kind([nn.ParamGroup([a]), nn.ParamGroup([b], **own)], base)
    separate = kind([alone_a], base), kind([alone_b], type(base)(**{**vars(base), **own}))
    for i, gradient in enumerate(GRADIENTS[:6]):
        if i == 3:
            for each, rate in ((grouped, 0.01), (separate[0], 0.01), (separate[1], 0.25 / base.lr * 0.01)):
                each.set_learning_rate(rate)
        grouped.step({a: Tensor(gradient), b: Tensor(gradient)})
        separate[0].step({alone_a: Tensor(gradient)})
        separate[1].step({alone_b: Tensor(gradient)})
    np.testing.assert_array_equal(a.numpy(), alone_a.numpy())
    # The group's rate is the base rate times the ratio, rounded twice.
    np.testing.assert_allclose(b.numpy(), alone_b.numpy(), rtol=1e-6, atol=1e-6)


def test_rates() -> None:
    vars = [Var([1.0]) for _ in range(3)]
    optimizer = nn.SGD([{"params": vars[:1]}, {"vars": vars[1:2], "lr": 0.4}, nn.ParamGroup(vars[2:], lr=0.0)], 0.1)
    assert optimizer.learning_rate() == 0.1
    assert optimizer.learning_rates() == pytest.approx([0.1, 0.4, 0.0])
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rates() == pytest.approx([0.5, 2.0, 0.0])
    optimizer.step({var: Tensor([1.0]) for var in vars})
    assert [var.to_vec1()[0] for var in vars] == pytest.approx([0.5, -1.0, 1.0])
    assert optimizer.vars() == vars
    assert repr(nn.ParamGroup(vars, lr=0.4)) == "ParamGroup(3 vars, lr=0.4)"


def test_variables_are_numbered_across_groups_and_dtypes() -> None:
    vars = [Var(np.ones(i + 1, np.float64 if i % 2 else np.float32)) for i in range(5)]
    optimizer = nn.AdamW([nn.ParamGroup(vars[:3]), nn.ParamGroup(vars[3:], weight_decay=0.0)])
    state = optimizer.state()
    assert [state[f"{i}.m"].shape for i in range(5)] == [(i + 1,) for i in range(5)]
    assert list(state)[:4] == ["step", "learning_rate", "0.m", "0.v"]
    assert list(state)[-1] == "4.v"


def test_set_params_keeps_what_a_group_has() -> None:
    a, b = Var([1.0]), Var([1.0])
    optimizer = nn.AdamW([nn.ParamGroup([a]), nn.ParamGroup([b], weight_decay=0.0)], nn.ParamsAdamW(lr=0.5))
    optimizer.set_params(nn.ParamsAdamW(lr=0.5, weight_decay=1.0))
    optimizer.step({a: Tensor([0.0]), b: Tensor([0.0])})
    assert (a.to_vec1(), b.to_vec1()) == ([0.5], [1.0])
    sgd = nn.SGD([a], 0.1)
    with pytest.raises(mc.TrainingError.StateError, match="set_params: momentum would come or go; takes another"):
        sgd.set_params(nn.ParamsSGD(0.1, momentum=0.9))
    assert sgd.params() == nn.ParamsSGD(0.1)


def test_what_groups_refuse() -> None:
    w, other = Var([1.0]), Var([[1.0, 2.0]])
    group = nn.ParamGroup
    cases: list[tuple[Any, str]] = [
        (
            lambda: nn.SGD([group([w]), group([other, w])], 0.1),
            "SGD: a variable of shape [1] is in group 0 and in group 1; takes it in one",
        ),
        (
            lambda: nn.SGD([w, group([other])], 0.1),
            "SGD: got Vars beside ParamGroups in one list; takes Vars, or ParamGroups",
        ),
        (
            lambda: nn.SGD([group([w], beta1=0.5)], 0.1),
            "SGD: got a group with 'beta1'; takes lr, momentum, nesterov, dampening, weight_decay",
        ),
        (
            lambda: nn.SGD([{"weights": [w], "lr": 0.1}], 0.1),
            'SGD: got a group with weights, lr; takes "params" (or "vars") and numbers',
        ),
        (
            lambda: nn.SGD([group([w], lr=0.1)], 0.0),
            "SGD: got lr 0.1 for a group beside lr 0; takes a base rate above 0, which it keeps its ratio to",
        ),
        (
            lambda: nn.SGD([group([w], lr=-0.1)], 0.1),
            "invalid training configuration: SGD: lr is -0.1; takes at least 0, and finite",
        ),
        (lambda: group(w), "ParamGroup: got a Var; takes a list of Vars, as VarMap.all_vars() gives"),
        (lambda: nn.SGD(group([w]), 0.1), "SGD: got a ParamGroup; takes a list of Vars, or of ParamGroups"),
    ]
    for call, text in cases:
        with pytest.raises(mc.Error) as raised:
            call()
        assert str(raised.value) == text
