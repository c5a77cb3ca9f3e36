"""The GRU and the base of recurrent nets: the equations written out, MLX's layer, gradients through time."""

from __future__ import annotations

import math
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var, nn
from metal_candle.error import (
    DTypeMismatchError,
    OpRequiresAtLeastOneTensorError,
    ShapeMismatchBinaryOpError,
    UnexpectedNumberOfDimsError,
)
from metal_candle.graph.node import record
from metal_candle.graph.operation import Operation
from metal_candle.kernels import recurrent
from metal_candle.nn.rnn import GRU, RNN, GRUConfig, GRUState, gru

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from tolerance import VALUE, assert_near

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def weights(features: int, size: int) -> tuple[Any, ...]:
    shapes = [(3 * size, features), (3 * size, size), (3 * size,), (3 * size,)]
    return tuple(0.5 * normal(*shape, seed=place + 10) for place, shape in enumerate(shapes))


def net(given: tuple[Any, ...], dtype: DType = DType.F32) -> GRU:
    """A net of arrays, without biases where there are only two."""
    tensors = {name: Tensor.new(each) for name, each in zip(NAMES, given)}
    features, size = given[0].shape[1], given[1].shape[1]
    config = GRUConfig() if len(given) == 4 else GRUConfig.default_no_bias()
    return gru(features, size, config, nn.VarBuilder.from_tensors(tensors, dtype, Device.Cpu))


def by_step(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any = 0.0, b_hh: Any = 0.0) -> Any:
    """Cho et al. 2014 with the reset gate on the product, for each step: ``(b, t, n)``."""
    hs = []
    for step in range(x.shape[1]):
        (r, z, n), (of_r, of_z, of_n) = (
            np.split(part, 3, axis=1) for part in (x[:, step] @ w_ih.T + b_ih, h @ w_hh.T + b_hh)
        )
        r, z = 1 / (1 + np.exp(-r - of_r)), 1 / (1 + np.exp(-z - of_z))
        h = z * h + (1 - z) * np.tanh(n + r * of_n)
        hs.append(h)
    return np.stack(hs, 1)


def run(size: int, x: Any, h: Any, *given: Any) -> Any:
    """All states, ``(b, t, n)``."""
    layer = GRU.__new__(GRU)
    layer._config, layer._hidden_dim = GRUConfig(), size
    layer._w_ih, layer._w_hh, layer._b_ih, layer._b_hh = (*given, None, None)[:4]
    states = layer.seq_init(x, GRUState(h))
    return layer.states_to_tensor(states).reshape((x.shape[0], x.shape[1], size))


def test_one_cell_by_hand() -> None:
    """x = 1, h = 2, gates r = σ(0), z = σ(1), n = tanh(-1 + r·(0.5·2 + 0.25)) with both biases at n."""
    zero = [0.0, 0.0]
    layer = net(
        (
            np.array([[0.0], [1.0], [-1.5]], np.float32),
            np.array([[0.0], [0.0], [0.5]], np.float32),
            np.array([*zero, 0.5], np.float32),
            np.array([*zero, 0.25], np.float32),
        )
    )
    state = layer.step(Tensor.new([[1.0]]), GRUState(Tensor.new([[2.0]])))
    z, n = 1 / (1 + math.exp(-1)), math.tanh(-1 + 0.5 * (0.5 * 2 + 0.25))
    np.testing.assert_allclose(state.h().numpy(), [[z * 2 + (1 - z) * n]], 1e-6)


@pytest.mark.parametrize("biases", [2, 1, 0])
@pytest.mark.parametrize(("b", "steps", "features", "size"), [(2, 5, 3, 4), (1, 4, 3, 5), (3, 1, 2, 2), (1, 1, 1, 1)])
def test_values(b: int, steps: int, features: int, size: int, biases: int) -> None:
    arrays = (normal(b, steps, features), normal(b, size, seed=1), *weights(features, size)[: 2 + biases])
    check(lambda *tensors: run(size, *tensors), arrays, by_step(*arrays))


def test_only_the_states_bias() -> None:
    w_ih, w_hh, _, b_hh = weights(3, 4)
    x, h = normal(2, 3, 3), normal(2, 4, seed=1)

    def function(x: Any, h: Any, w_ih: Any, w_hh: Any, b_hh: Any) -> Any:
        return run(4, x, h, w_ih, w_hh, None, b_hh)

    check(function, (x, h, w_ih, w_hh, b_hh), by_step(x, h, w_ih, w_hh, 0.0, b_hh))


def test_many_elements() -> None:
    """Enough of them for the CPU's own sigmoid and tanh."""
    arrays = (normal(270, 2, 8), normal(270, 64, seed=1), *(0.2 * each for each in weights(8, 64)))
    want = by_step(*[each.astype(np.float64) for each in arrays])
    check(lambda *tensors: run(64, *tensors), arrays, want)


def test_the_cpus_own_tanh() -> None:
    numbers = np.concatenate([np.linspace(-12, 12, 20000), [0.0, -0.0, 1e-30, -1e-6, 1e30, np.inf, -np.inf, np.nan]])
    x = numbers.astype(np.float32)
    got = np.array(recurrent.tanh(mx.array(x)))
    assert x.size > recurrent.SMALL
    np.testing.assert_allclose(got, np.tanh(x.astype(np.float64)), 5e-7, 0)


def test_dtypes() -> None:
    arrays = (normal(2, 4, 3), normal(2, 4, seed=1), *weights(3, 4))
    check_dtypes(lambda *x: run(4, *x), arrays, by_step)


def test_empty_batch_and_no_steps() -> None:
    layer = net(weights(3, 4))
    states = layer.seq(Tensor.zeros((0, 2, 3), "f32"))
    assert layer.states_to_tensor(states).shape == (0, 8)
    assert layer.seq(Tensor.zeros((2, 0, 3), "f32")) == []
    with pytest.raises(OpRequiresAtLeastOneTensorError):
        layer.states_to_tensor([])


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_states(kind: Any) -> None:
    """Side by side: candle's ``cat`` on dim 1, where the LSTM stacks."""
    given = weights(3, 4)
    layer, x = net(given), normal(2, 5, 3)
    want = by_step(x, np.zeros((2, 4)), *given)
    states = layer.seq(kind.new(x))
    for place, state in enumerate(states):
        assert isinstance(state.h(), kind)
        assert_near(state.h().numpy(), want[:, place], VALUE[DType.F32])
    for part in (states, states[1:3], states[::-1], states[:1]):
        places = [states.index(state) for state in part]
        flat = want[:, places].reshape(2, -1)
        assert_near(layer.states_to_tensor(part).numpy(), flat, VALUE[DType.F32])
    assert_near(layer(kind.new(x)).numpy(), want.reshape(2, 20), VALUE[DType.F32])
    rest = layer.seq_init(kind.new(x[:, 2:]), states[1])
    assert_near(rest[-1].h().numpy(), want[:, -1], VALUE[DType.F32])


def test_steps_are_the_sequence() -> None:
    layer, x = net(weights(3, 4)), Tensor.new(normal(2, 5, 3))
    state, states = layer.zero_state(2), layer.seq(x)
    assert (state.h().shape, state.h().dtype, float(state.h().abs().sum_all())) == ((2, 4), DType.F32, 0.0)
    for place in range(5):
        state = layer.step(x.i((slice(None), place)), state)
        assert_near(state.h().numpy(), states[place].h().numpy(), VALUE[DType.F32])


@pytest.mark.parametrize(("b", "steps"), [(2, 3), (1, 1)])
@pytest.mark.parametrize("biases", [2, 0])
def test_gradients(b: int, steps: int, biases: int) -> None:
    """Of the inputs, the state and all weights, through time."""
    assert_slopes(lambda *x: run(2, *x), normal(b, steps, 2), normal(b, 2, seed=1), *weights(2, 2)[: 2 + biases])


def test_gradients_of_the_last_state() -> None:
    def last(x: Any, *given: Any) -> Any:
        return run(2, x, *given).narrow(1, 2, 1)

    assert_slopes(last, normal(2, 3, 2), normal(2, 2, seed=1), *weights(2, 2))


def test_gradients_of_halves_are_those_of_float32() -> None:
    arrays = (normal(2, 4, 3), normal(2, 4, seed=1), *weights(3, 4))
    found = {}
    for dtype in (DType.F32, DType.BF16, DType.F16):
        variables = [Var.from_tensor(Tensor.new(x).to_dtype("bf16").to_dtype(dtype)) for x in arrays]
        grads = run(4, *variables).sum_all().backward()
        found[dtype] = [grads[variable].to_dtype("f32").numpy() for variable in variables]
    for dtype in (DType.BF16, DType.F16):
        for got, want in zip(found[dtype], found[DType.F32]):
            # Sums of a dozen terms, each off by the states' rounding: relative to the largest of them.
            assert np.abs(got - want).max() <= 4 * VALUE[dtype].relative * np.abs(want).max()


def test_as_mlx() -> None:
    """``mlx.nn.GRU``: the same gates; one bias for the inputs, and one more for the state at the new gate only."""
    theirs = mlx.nn.GRU(3, 4)
    x = normal(2, 5, 3)
    want = np.array(theirs(mx.array(x)))
    arrays = [np.array(each) for each in (theirs.Wx, theirs.Wh, theirs.b)]
    b_hh = np.concatenate([np.zeros(8, np.float32), np.array(theirs.bhn)])
    got = run(4, *(Tensor.new(each) for each in (x, np.zeros((2, 4), np.float32), *arrays, b_hh)))
    assert_near(got.numpy(), want, VALUE[DType.F32])


def test_names_and_starts() -> None:
    """Kaiming uniform with fan in and ReLU's gain: within sqrt(6 / fan); biases 0."""
    variables = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(variables, DType.F32, Device.Cpu)
    layer = nn.gru(7, 30, nn.GRUConfig(), vb.pp("a"))
    GRU.new(3, 2, GRUConfig.default_no_bias(), vb.pp("c"))
    shapes = {name: tuple(var.shape) for name, var in variables.data().items()}
    assert shapes == {
        "a.weight_ih_l0": (90, 7),
        "a.weight_hh_l0": (90, 30),
        "a.bias_ih_l0": (90,),
        "a.bias_hh_l0": (90,),
        "c.weight_ih_l0": (6, 3),
        "c.weight_hh_l0": (6, 2),
    }
    for name, fan in (("a.weight_ih_l0", 7), ("a.weight_hh_l0", 30)):
        numbers, bound = variables.data()[name].numpy(), math.sqrt(6 / fan)
        assert bound * 0.9 < np.abs(numbers).max() <= bound
    assert not variables.data()["a.bias_hh_l0"].numpy().any()
    assert layer.config() == GRUConfig.default()
    assert GRUState.new(Tensor.new(1.0)).h().to_scalar() == 1.0


def test_refusals() -> None:
    layer = net(weights(3, 4))
    state, x = layer.zero_state(2), Tensor.zeros((2, 5, 3), "f32")
    for call in (lambda: layer.seq(x.i(0)), lambda: layer.seq_init(x.i(0), state), lambda: layer.step(x, state)):
        with pytest.raises(UnexpectedNumberOfDimsError):
            call()
    with pytest.raises(ShapeMismatchBinaryOpError, match="linear"):
        layer.seq(Tensor.zeros((2, 5, 2), "f32"))
    with pytest.raises(ShapeMismatchBinaryOpError, match=r"gru: .*states \(3, 4\)"):
        layer.seq_init(Tensor.zeros((3, 5, 3), "f32"), state)
    with pytest.raises(DTypeMismatchError, match="gru"):
        layer.seq_init(x, GRUState(state.h().to_dtype("f16")))
    nodes = [Tensor.zeros(shape, "f32")._node for shape in ((2, 3, 6), (2, 2), (6, 2), (5,))]
    with pytest.raises(ShapeMismatchBinaryOpError, match=r"gru: .*a bias \(6,\)"):
        record(Operation.GRU, tuple(nodes))


class Sum(RNN[Any]):
    """The sum of the inputs so far."""

    def zero_state(self, batch_dim: int) -> Any:
        return Tensor.zeros((batch_dim, 1), "f32")

    def step(self, xs: Any, state: Any) -> Any:
        return xs._lift(state) + xs

    def states_to_tensor(self, states: Any) -> Any:
        return type(states[0]).stack(list(states), 1)


def test_a_net_of_ones_own() -> None:
    """The base goes through the steps."""
    x = normal(2, 4, 1)
    check(Sum(), (x,), x.cumsum(1))
    with pytest.raises(UnexpectedNumberOfDimsError):
        Sum().seq_init(Tensor.new(x[0]), Tensor.zeros((2, 1), "f32"))
    with pytest.raises(AssertionError, match="RNN defines no step"):
        RNN[Any]().step(Tensor.new(x[:, 0]), None)


def test_compiled_cells_are_the_plain_ones() -> None:
    """What a GPU launches at once, here as MLX's CPU compiler makes it."""
    from metal_candle.kernels import gru as gru_kernel
    from metal_candle.kernels import lstm as lstm_kernel

    gates, state = mx.array(normal(4, 2, 3)), mx.array(normal(2, 3, seed=1))
    for got, want in zip(
        lstm_kernel._compiled_cell(gates[:3], gates[3], state), lstm_kernel._cell(gates[:3], gates[3], state)
    ):
        np.testing.assert_allclose(np.array(got), np.array(want), 2e-6, 1e-7)
    parts = gates[:3], gates[1:], state
    np.testing.assert_allclose(
        np.array(gru_kernel._compiled_cell(*parts)), np.array(gru_kernel._cell(*parts)), 2e-6, 1e-7
    )


def test_learns_the_sum() -> None:
    """Of four numbers, from the last state: a training loop on lazy tensors."""
    Device.Cpu.set_seed(3)
    variables = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(variables, DType.F32, Device.Cpu)
    layer, head = nn.gru(1, 12, nn.GRUConfig(), vb.pp("gru")), nn.linear(12, 1, vb.pp("head"))
    optimizer = nn.AdamW(variables.all_vars(), nn.ParamsAdamW(lr=0.02))
    x = np.random.default_rng(0).uniform(-1, 1, (64, 4, 1)).astype(np.float32)
    inputs, targets = LazyTensor.new(x), LazyTensor.new(x.sum(1))
    losses = []
    for _ in range(100):
        loss = (head(layer.seq(inputs)[-1].h()) - targets).sqr().mean_all()
        optimizer.backward_step(loss)
        losses.append(float(loss.to_scalar()))
    assert losses[-1] < 0.02 < 0.5 < losses[0]


def test_names() -> None:
    assert mc.nn.rnn.GRU is nn.GRU
