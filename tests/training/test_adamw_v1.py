"""AdamW of v1: the documented formula in float64, ``nn.AdamW``, each parameter's own time, state out and in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metal_candle import Tensor, TrainingError, Var, compile, nn
from metal_candle.training import AdamW, AdamWConfig, ParamsAdamW

import numpy as np
import pytest

CONFIG = AdamWConfig(learning_rate=0.05, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1)

# float32 after twenty steps of a handful of roundings each, on values about 1.
CLOSE = 1e-5


def formula(p: np.ndarray, gradients: list[np.ndarray], config: AdamWConfig = CONFIG) -> np.ndarray:
    """PyTorch's documented rule, in float64."""
    p, m, v = p.astype(np.float64), np.zeros(p.shape), np.zeros(p.shape)
    for t, g in enumerate(gradients, 1):
        m = config.beta1 * m + (1 - config.beta1) * g
        v = config.beta2 * v + (1 - config.beta2) * g**2
        first, second = m / (1 - config.beta1**t), v / (1 - config.beta2**t)
        p = p - config.learning_rate * (first / (np.sqrt(second) + config.epsilon) + config.weight_decay * p)
    return p


def gradients(shape: tuple[int, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def test_steps_by_name_follow_the_formula_whatever_other_parameters_do() -> None:
    optimizer = AdamW(CONFIG)
    many, few = gradients((3, 4), 20), gradients((5,), 7, 1)
    a, b = Tensor.ones((3, 4)), Tensor.ones((5,))
    optimizer.add_parameter("a", a)
    optimizer.add_parameter("b", b)
    for i, g in enumerate(many):
        a = optimizer.step("a", a, Tensor(g))
        if i < len(few):
            b = optimizer.step("b", b, Tensor(few[i]))
    np.testing.assert_allclose(a.numpy(), formula(np.ones((3, 4)), many), atol=CLOSE)
    # Two parameters did not make time run twice as fast, as in the crate.
    np.testing.assert_allclose(b.numpy(), formula(np.ones((5,)), few), atol=CLOSE)
    assert optimizer.step_count() == 20
    with pytest.raises(TrainingError.StateError, match="step: no parameter c; knows a, b, add_parameter adds one"):
        optimizer.step("c", a, a)
    with pytest.raises(TrainingError.StateError, match="a is known already"):
        optimizer.add_parameter("a", a)


def test_step_gives_a_new_tensor_and_leaves_the_old_one() -> None:
    optimizer = AdamW(CONFIG)
    old = Tensor.ones((2,))
    optimizer.add_parameter("w", old)
    new = optimizer.step("w", old, Tensor.ones((2,)))
    again = optimizer.step("w", new, Tensor.ones((2,)))
    assert old.to_vec1() == [1.0, 1.0]
    assert old.to_vec1() > new.to_vec1() > again.to_vec1()


@pytest.mark.parametrize("count", [1, 3])
def test_step_var_counts_each_variable_by_itself(count: int) -> None:
    optimizer = AdamW(CONFIG)
    variables = [Var.ones((4,), "f32") for _ in range(count)]
    given = [gradients((4,), 10, seed) for seed in range(count)]
    for step in range(10):
        for var, own in zip(variables, given):
            optimizer.step_var(var, Tensor(own[step]))
    for var, own in zip(variables, given):
        np.testing.assert_allclose(var.numpy(), formula(np.ones((4,)), own), atol=CLOSE)
    assert optimizer.step_count() == 10
    assert [each.id() for each in optimizer.vars()] == [each.id() for each in variables]


def loss_of(variables: list[Var]) -> Tensor:
    total = Tensor.new(0.0)
    for i, var in enumerate(variables):
        total = total + (var - float(i)).sqr().sum_all() + var.sin().sum_all()
    return total


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_backward_step_equals_nn(known: bool, max_norm: float | None) -> None:
    ours, theirs = ([Var(np.full((3,), 2.0 + i, np.float32)) for i in range(3)] for _ in range(2))
    optimizer = AdamW(CONFIG, ours if known else None)
    reference = nn.AdamW(theirs, ParamsAdamW(0.05, 0.8, 0.95, 1e-6, 0.1))
    for _ in range(8):
        norm = optimizer.backward_step(loss_of(ours), max_norm)
        expected = reference.backward_step(loss_of(theirs), max_norm)
        if max_norm is not None:
            assert norm is not None
            assert expected is not None
            assert norm.to_scalar() == pytest.approx(expected.to_scalar(), rel=1e-6)
    for mine, other in zip(ours, theirs):
        assert np.array_equal(mine.numpy(), other.numpy())
    assert optimizer.step_count() == 8


def test_backward_step_changes_its_own_variables_only() -> None:
    mine, other = Var.ones((2,), "f32"), Var.ones((2,), "f32")
    AdamW(CONFIG, [mine]).backward_step((mine * other).sum_all())
    assert mine.to_vec1() != [1.0, 1.0]
    assert other.to_vec1() == [1.0, 1.0]


def test_a_variable_that_joins_late_starts_at_its_first_step() -> None:
    early, late = Var.ones((4,), "f32"), Var.ones((4,), "f32")
    optimizer = AdamW(CONFIG)
    given = gradients((4,), 6)
    for i, g in enumerate(given):
        both = (early * Tensor(g)).sum_all() + ((late * Tensor(g)).sum_all() if i >= 2 else 0.0)
        optimizer.backward_step(both)
    np.testing.assert_allclose(early.numpy(), formula(np.ones((4,)), given), atol=CLOSE)
    np.testing.assert_allclose(late.numpy(), formula(np.ones((4,)), given[2:]), atol=CLOSE)


def test_a_variable_stepped_alone_after_steps_together() -> None:
    a, b = Var.ones((4,), "f32"), Var.ones((4,), "f32")
    optimizer = AdamW(CONFIG, [a, b])
    given = gradients((4,), 6)
    for g in given[:3]:
        optimizer.step_vars({a: Tensor(g), b: Tensor(g)})
    for g in given[3:]:
        optimizer.step_var(b, Tensor(g))
    np.testing.assert_allclose(a.numpy(), formula(np.ones((4,)), given[:3]), atol=CLOSE)
    np.testing.assert_allclose(b.numpy(), formula(np.ones((4,)), given), atol=CLOSE)
    assert [optimizer.state()[f"var.{i}.step"].to_scalar() for i in (0, 1)] == [3.0, 6.0]


def run(optimizer: AdamW, variables: list[Var], steps: range) -> None:
    for step in steps:
        optimizer.backward_step(loss_of(variables))
        optimizer.step_var(variables[0], Tensor(np.full((3,), 0.1 * step, np.float32)))


@pytest.mark.parametrize("through", ["state", "file"])
def test_a_restored_state_goes_on_bit_for_bit(through: str, tmp_path: Path) -> None:
    whole, cut = ([Var(np.full((3,), 2.0 + i, np.float32)) for i in range(3)] for _ in range(2))
    run(AdamW(CONFIG, whole), whole, range(9))
    first = AdamW(CONFIG, cut)
    run(first, cut, range(4))
    first.set_lr(0.05)
    second = AdamW(AdamWConfig(learning_rate=1.0, beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1), cut)
    if through == "state":
        second.load_state(first.state())
    else:
        first.save(tmp_path / "adamw.safetensors")
        second.load(tmp_path / "adamw.safetensors")
    assert second.learning_rate() == 0.05
    run(second, cut, range(4, 9))
    for mine, other in zip(whole, cut):
        assert np.array_equal(mine.numpy(), other.numpy())


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    variables = [Var.ones((3,), "f32")]
    optimizer = AdamW(CONFIG, variables)
    optimizer.add_parameter("w", Tensor.ones((2,)))
    optimizer.backward_step(loss_of(variables))
    state = optimizer.state()
    before = {name: tensor.numpy().copy() for name, tensor in state.items()}
    wrong = {**state, "var.0.m": Tensor.ones((4,)), "var.7.m": Tensor.ones((4,))}
    del wrong["param.w.v"]
    with pytest.raises(
        TrainingError.StateError, match=r"missing param.w.v; unknown var.7.m; var.0.m has shape \[4\], takes \[3\]"
    ):
        optimizer.load_state(wrong)
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in optimizer.state().items())


def test_moments_and_reset() -> None:
    var = Var.ones((2,), "f32")
    optimizer = AdamW(CONFIG, [var])
    optimizer.add_parameter("w", Tensor.ones((2,)))
    gradient = np.array([1.0, -2.0], np.float32)
    optimizer.step_var(var, Tensor(gradient))
    m, v = optimizer.moments(var)
    np.testing.assert_allclose(m.numpy(), 0.2 * gradient, rtol=1e-6)
    np.testing.assert_allclose(v.numpy(), 0.05 * gradient**2, rtol=1e-6)
    assert not optimizer.moments("w")[0].numpy().any()
    with pytest.raises(TrainingError.StateError, match="no parameter nobody"):
        optimizer.moments("nobody")
    optimizer.reset_state()
    assert optimizer.step_count() == 0
    assert not optimizer.moments(var)[1].numpy().any()
    assert optimizer.learning_rate() == 0.05


def test_the_rate_in_force() -> None:
    var = Var.ones((2,), "f32")
    optimizer = AdamW(CONFIG, [var])
    optimizer.set_lr(0.0)
    optimizer.step_var(var, Tensor.ones((2,)))
    assert var.to_vec1() == [1.0, 1.0]  # the first step of a warm-up
    optimizer.set_lr(0.5)
    assert optimizer.config() == AdamWConfig(0.5, 0.8, 0.95, 1e-6, 0.1)
    with pytest.raises(TrainingError.InvalidConfig, match="lr is -1"):
        optimizer.set_lr(-1.0)


def test_a_compiled_step_and_one_that_meets_a_new_variable() -> None:
    plain, compiled = ([Var.ones((3,), "f32")] for _ in range(2))
    a, b = AdamW(CONFIG, plain), AdamW(CONFIG, compiled)
    step = compile(lambda: b.backward_step(loss_of(compiled), 10.0))
    for _ in range(4):
        a.backward_step(loss_of(plain), 10.0)
        step()
    np.testing.assert_allclose(plain[0].numpy(), compiled[0].numpy(), rtol=1e-6)
    new = AdamW(CONFIG)
    with pytest.raises(TrainingError.StateError, match="a compiled step meets a new variable"):
        compile(lambda: new.backward_step(loss_of(compiled)))()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AdamWConfig(learning_rate=0.0), "learning_rate is 0.0; takes more than 0"),
        (lambda: AdamWConfig(beta1=1.0), "beta1 is 1.0; takes 0 <= it < 1"),
        (lambda: AdamWConfig(beta2=-0.1), "beta2 is -0.1"),
        (lambda: AdamWConfig(epsilon=0.0), "epsilon is 0.0"),
        (lambda: AdamWConfig(weight_decay=-1.0), "weight_decay is -1.0; takes at least 0"),
        (lambda: AdamWConfig(learning_rate=float("nan")), "learning_rate is nan"),
    ],
)
def test_numbers_outside_their_ranges_are_refused(make: Callable[[], AdamWConfig], text: str) -> None:
    with pytest.raises(TrainingError.InvalidConfig, match=text):
        AdamW(make())
    assert AdamWConfig() == AdamWConfig(1e-4, 0.9, 0.999, 1e-8, 0.01)


def test_integers_are_no_parameters() -> None:
    with pytest.raises(TrainingError.StateError, match="got a parameter of i64; takes a float dtype"):
        AdamW().step_var(Var(np.ones(2, np.int64)), Tensor.ones((2,)))
