"""Adam and AdamW (``AdamUpdate``) by hand, against their definition in float64, mlx's, and candle's own numbers."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn

import numpy as np
import pytest
from optimizing import GRADIENTS, HOW, NEAR, START, after, by_mlx
from tolerance import VALUE

PARAMS = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1}
MAKE: dict[str, Any] = {
    "Adam": lambda vars: nn.Adam(vars, nn.ParamsAdam(**PARAMS)),
    "AdamW": lambda vars: nn.AdamW(vars, nn.ParamsAdamW(**PARAMS)),
}


def reference(name: str, count: int, start: Any = START) -> Any:
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2; in float64."""
    lr, beta1, beta2, eps, decay = PARAMS.values()
    w, m, v = np.asarray(start, np.float64), 0.0, 0.0
    for t, gradient in enumerate(GRADIENTS[:count], 1):
        g = gradient.astype(np.float64) + (decay * w if name == "Adam" else 0)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - (lr * decay * w if name == "AdamW" else 0)
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", MAKE)
def test_steps(name: str, how: str) -> None:
    for count in (1, 2, 20):
        np.testing.assert_allclose(after(MAKE[name], count, how), reference(name, count), **NEAR)


def test_the_first_steps_by_hand() -> None:
    # g = 0.1, 0.3 from w = 1 with lr 0.1, beta 0.9 and 0.999, eps 0: the first move is lr whatever g is. Then
    # m = 0.9·0.01 + 0.1·0.3 = 0.039, over 1 - 0.81 is 0.2052632; v = 0.999e-5 + 9e-5 = 9.999e-5, over 1 - 0.998001 is
    # 0.0500200; the second move is 0.1 · 0.2052632 / 0.2236515 = 0.0917781.
    w = Var(1.0)
    adam = nn.Adam([w], nn.ParamsAdam(lr=0.1, eps=1e-12))
    adam.step({w: Tensor(0.1)})
    assert w.to_scalar() == pytest.approx(0.9, abs=1e-7)
    adam.step({w: Tensor(0.3)})
    assert w.to_scalar() == pytest.approx(0.9 - 0.0917781, abs=2e-7)
    state = adam.state()
    assert state["0.m"].to_scalar() == pytest.approx(0.039, rel=1e-6)
    assert state["0.v"].to_scalar() == pytest.approx(9.999e-5, rel=1e-6)
    assert adam.step_count() == state["step"].to_scalar() == 2


@pytest.mark.parametrize(
    ("name", "weight", "bias"), [("adamw", [[2.7257, 0.7097]], 0.7873), ("sgd", [[2.9983196, 0.99790204]], -1.9796902)]
)
def test_a_linear_regression_as_candle_tests_it(name: str, weight: list[list[float]], bias: float) -> None:
    # y = 3 x0 + x1 - 2; the numbers after 100 and 1000 steps are those that candle's own tests ask for.
    xs = Tensor([[2.0, 1.0], [7.0, 4.0], [-4.0, 12.0], [5.0, 8.0]])
    ys = xs.matmul(Tensor([[3.0], [1.0]])) - 2.0
    w, b = Var([[0.0, 0.0]]), Var(0.0)
    optimizer: Any = nn.AdamW([w, b], nn.ParamsAdamW(lr=0.1)) if name == "adamw" else nn.SGD.new([w, b], 0.004)
    layer = nn.Linear(w.as_tensor(), b.as_tensor())

    def step() -> None:
        optimizer.backward_step((layer.forward(xs) - ys).sqr().sum_all())

    run = mc.compile(step)
    for _ in range(100 if name == "adamw" else 1000):
        run()
    np.testing.assert_allclose(w.numpy(), weight, atol=5e-5)
    np.testing.assert_allclose(b.numpy(), bias, atol=5e-5)


@pytest.mark.parametrize("name", MAKE)
def test_mlx_takes_the_same_steps(name: str) -> None:
    from mlx import optimizers

    betas, eps = [PARAMS["beta1"], PARAMS["beta2"]], PARAMS["eps"]
    if name == "Adam":
        ours = after(lambda vars: nn.Adam(vars, nn.ParamsAdam(**{**PARAMS, "weight_decay": 0.0})), 20)
        theirs: Any = optimizers.Adam(PARAMS["lr"], betas, eps, bias_correction=True)
    else:
        ours = after(MAKE[name], 20)
        theirs = optimizers.AdamW(PARAMS["lr"], betas, eps, PARAMS["weight_decay"], bias_correction=True)
    np.testing.assert_allclose(ours, by_mlx(theirs, 20), **NEAR)


def test_the_correction_is_exact_where_mlx_loses_digits() -> None:
    from mlx import optimizers

    # 1 - 0.999 in float32 is 0.00100000005 rounded from 0.99900001: off by 1e-5, and so is the first move's root.
    one, gradient = np.ones((1,), np.float32), [np.ones((1,), np.float32)]
    w = Var(one)
    nn.Adam.new_lr([w], 1.0).step({w: Tensor(gradient[0])})
    theirs = by_mlx(optimizers.Adam(1.0, bias_correction=True), 1, one, gradient)
    assert abs(float(w.numpy()[0])) < 2e-7 < 2e-6 < abs(float(theirs[0]))


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_halves_are_stepped_in_float32(dtype: DType) -> None:
    got = after(MAKE["AdamW"], 20, dtype=dtype)
    # Each step rounds the variable once; twenty roundings hardly add up.
    relative, absolute = VALUE[dtype]
    np.testing.assert_allclose(got, reference("AdamW", 20), rtol=10 * relative, atol=10 * absolute)
    var = Var.from_tensor(Tensor(START).to_dtype(dtype))
    assert nn.AdamW([var]).state()["0.m"].dtype is DType.F32


def test_float64_is_stepped_in_float64() -> None:
    wide, narrow = Var(START.astype(np.float64)), Var(START)
    optimizer = nn.AdamW([wide, narrow], nn.ParamsAdamW(**PARAMS))
    for gradient in GRADIENTS:
        optimizer.step({wide: Tensor(gradient.astype(np.float64)), narrow: Tensor(gradient)}, max_norm=1e9)
    np.testing.assert_allclose(wide.numpy(), reference("AdamW", 20), rtol=1e-12)
    np.testing.assert_allclose(narrow.numpy(), reference("AdamW", 20), **NEAR)
    assert [wide.dtype, optimizer.state()["0.v"].dtype] == [DType.F64] * 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lr", -1.0, "AdamW: lr is -1.0; takes at least 0"),
        ("beta1", 1.0, "AdamW: beta1 is 1.0; takes 0 <= it < 1"),
        ("eps", 0.0, "AdamW: eps is 0.0; takes more than 0"),
        ("weight_decay", float("nan"), "AdamW: weight_decay is nan; takes at least 0"),
    ],
)
def test_parameters_outside_their_range(name: str, value: float, text: str) -> None:
    with pytest.raises(mc.TrainingError, match=text):
        nn.AdamW([], nn.ParamsAdamW(**{name: value}))


def test_parameters_are_candles_and_can_be_set() -> None:
    assert nn.ParamsAdamW.default() == nn.ParamsAdamW(1e-3, 0.9, 0.999, 1e-8, 0.01)
    w = Var([1.0])
    optimizer = nn.AdamW.new([w], nn.ParamsAdamW.default())
    optimizer.set_learning_rate(0.25)
    assert optimizer.params() == nn.ParamsAdamW(lr=0.25)
    optimizer.set_params(nn.ParamsAdamW(lr=0.5, beta1=0.0, beta2=0.0, weight_decay=0.0))
    assert optimizer.learning_rate() == 0.5
    optimizer.step({w: Tensor([3.0])})
    assert w.to_vec1() == pytest.approx([0.5])  # without memory a step is the rate, in the gradient's direction
    with pytest.raises(mc.Error, match=r"^set_params: got a ParamsAdam; takes ParamsAdamW$"):
        optimizer.set_params(nn.ParamsAdam())  # type: ignore[arg-type]
    with pytest.raises(
        mc.Error, match=r"^AdamW: got a ParamsAdam for the configuration; takes ParamsAdamW, or a learning rate"
    ):
        nn.AdamW([w], nn.ParamsAdam())  # type: ignore[arg-type]


def test_a_compiled_step_keeps_its_parameters() -> None:
    w = Var([1.0])
    optimizer = nn.AdamW([w])
    step = mc.compile(lambda x: optimizer.backward_step((w * x).sum_all()))
    step(Tensor([1.0]))
    optimizer.set_params(nn.ParamsAdamW(lr=0.5))  # the rate alone, which a compiled step reads
    text = (
        "set_params: what is not the learning rate would be unknown to a step that was compiled before; takes another "
        "optimizer, which load_state gives this one's state"
    )
    with pytest.raises(mc.TrainingError.StateError, match=text):
        optimizer.set_params(nn.ParamsAdamW(lr=0.5, weight_decay=0.2))
    assert step(Tensor([1.0])) is None
    assert w.to_vec1()[0] < 0.6
    assert step.traces == 1
