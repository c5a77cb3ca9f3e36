"""State: out, into a file and back, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn, safetensors

import numpy as np
import pytest
from checking import normal
from optimizing import ALL, steps

SHAPES = [(4, 3), (2, 5), (3, 2, 2)]
ROWS = [[normal(*shape, seed=10 * step + i) for i, shape in enumerate(SHAPES)] for step in range(10)]


def variables(dtype: DType) -> list[Var]:
    return [Var.from_tensor(Tensor(normal(*shape)).to_dtype(dtype)) for shape in SHAPES]


def make(name: str, vars: list[Var], grouped: bool) -> nn.Optimizer[Any]:
    return ALL[name]([nn.ParamGroup(vars[1:2], lr=0.0123), nn.ParamGroup([vars[0], vars[2]])] if grouped else vars)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("name", ALL)
def test_a_run_goes_on_from_a_file_bit_for_bit(name: str, how: str, grouped: bool, tmp_path: Path) -> None:
    dtype = DType.BF16 if grouped else DType.F32
    whole, parted, path = variables(dtype), variables(dtype), tmp_path / "state.safetensors"
    steps(make(name, whole, grouped), whole, ROWS, how)
    first = make(name, parted, grouped)
    steps(first, parted, ROWS[:5], how)
    first.save(path)
    second = make(name, parted, grouped)
    second.load(path)
    assert second.step_count() == 5
    assert second.learning_rate() == first.learning_rate()
    steps(second, parted, ROWS[5:], how)
    for a, b in zip(whole, parted):
        np.testing.assert_array_equal(a.to_dtype(DType.F32).numpy(), b.to_dtype(DType.F32).numpy())


def test_entries_are_by_variable() -> None:
    vars = variables(DType.F32)
    optimizer = nn.AdamW(vars, nn.ParamsAdamW(lr=0.25))
    steps(optimizer, vars, ROWS[:1])
    state = optimizer.state()
    assert list(state) == ["step", "learning_rate", "0.m", "0.v", "1.m", "1.v", "2.m", "2.v"]
    assert (state["step"].to_scalar(), state["learning_rate"].to_scalar()) == (1.0, 0.25)
    for i, gradient in enumerate(ROWS[0]):
        np.testing.assert_allclose(state[f"{i}.m"].numpy(), 0.1 * gradient, rtol=1e-6)
        np.testing.assert_allclose(state[f"{i}.v"].numpy(), 0.001 * gradient**2, rtol=1e-5)
    steps(optimizer, vars, ROWS[1:2])
    assert state["step"].to_scalar() == 1.0  # a copy


def test_cells_are_what_a_step_sets() -> None:
    vars = variables(DType.F32)
    optimizer = nn.AdamW(vars)
    steps(optimizer, vars, ROWS[:1])
    held = [(var, var.copy()) for var in (*vars, *optimizer.cells())]
    steps(optimizer, vars, ROWS[1:2])
    after = [var.numpy() for var in vars]
    for var, value in held:
        var.set(value)
    assert optimizer.step_count() == 1
    steps(optimizer, vars, ROWS[1:2])
    for var, value in zip(vars, after):
        np.testing.assert_array_equal(var.numpy(), value)


def test_a_rate_that_was_loaded_is_in_force() -> None:
    w = Var([1.0])
    a, b = nn.SGD([w], 0.1), nn.SGD([w], 0.5)
    b.load_state(a.state())
    assert b.learning_rate() == float(np.float32(0.1))
    step = mc.compile(lambda x: b.backward_step((w * x).sum_all()))
    step(Tensor([1.0]))
    assert w.to_vec1() == pytest.approx([0.9])


def test_what_does_not_fit_is_listed_and_nothing_is_set(tmp_path: Path) -> None:
    vars = variables(DType.F32)
    optimizer = nn.AdamW(vars)
    good = optimizer.state()
    bad: dict[str, Any] = {name: tensor for name, tensor in good.items() if name not in ("0.m", "2.v")}
    bad |= {
        "step": Tensor(7.0),
        "3.m": Tensor(1.0),
        "0.v": Tensor([1.0]),
        "1.m": good["1.m"].to_dtype(DType.F16),
        "1.v": 5,
    }
    with pytest.raises(mc.TrainingError.StateError) as raised:
        optimizer.load_state(bad)
    assert str(raised.value) == (
        "training state error: AdamW.load_state: missing 0.m, 2.v; unknown 3.m; 0.v has shape [1], takes [4, 3], "
        "1.m is f16, takes f32, 1.v is 5, takes a tensor"
    )
    assert optimizer.step_count() == 0
    many = nn.SGD([Var([1.0]) for _ in range(12)], nn.ParamsSGD(0.1, momentum=0.9))
    with pytest.raises(mc.TrainingError.StateError, match=r"missing 0.v, 1.v, .*, 7.v and 4 more$"):
        many.load_state({name: value for name, value in many.state().items() if "v" not in name})
    with pytest.raises(mc.Error, match=r"load_state: got a list; takes a dict of tensors, as state\(\) gives"):
        many.load_state([])  # type: ignore[arg-type]
    safetensors.save({"weight": Tensor([1.0])}, tmp_path / "model.safetensors")
    with pytest.raises(mc.TrainingError.StateError, match="missing step, learning_rate; unknown weight"):
        nn.SGD([], 0.1).load(tmp_path / "model.safetensors")
