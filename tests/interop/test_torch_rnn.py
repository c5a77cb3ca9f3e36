"""LSTM and GRU against PyTorch's, whose names and layout of weights candle's are."""

from __future__ import annotations

from typing import Any

from metal_candle import Device, DType, Tensor, Var, nn

import numpy as np
import pytest

torch = pytest.importorskip("torch")

NETS = pytest.mark.parametrize("name", ["LSTM", "GRU"])
CASES = pytest.mark.parametrize(("b", "steps", "features", "size"), [(2, 5, 3, 4), (1, 1, 2, 3), (4, 7, 1, 6)])


def of_torch(theirs: Any, name: str, **config: Any) -> Any:
    """Our net with their weights, by their names, as variables."""
    tensors = {key: Var.new(value.detach().numpy()) for key, value in theirs.named_parameters()}
    vb = nn.VarBuilder.from_tensors(tensors, DType.F32, Device.Cpu)
    kind = nn.LSTMConfig if name == "LSTM" else nn.GRUConfig
    made = kind() if theirs.bias else kind.default_no_bias()
    net = getattr(nn, name)(theirs.input_size, theirs.hidden_size, type(made)(**{**made.__dict__, **config}), vb)
    return net, tensors


def inputs(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@CASES
@NETS
def test_sequence_and_gradients(name: str, b: int, steps: int, features: int, size: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(features, size, bias=bias, batch_first=True)
    net, tensors = of_torch(theirs, name)
    x = inputs(b, steps, features)
    given, ours = torch.tensor(x, requires_grad=True), Var.new(x)
    want, last = theirs(given)
    states = net.seq(ours)
    got = net.states_to_tensor(states).reshape((b, steps, size))
    np.testing.assert_allclose(got.numpy(), want.detach().numpy(), 2e-5, 2e-6)
    if name == "LSTM":
        np.testing.assert_allclose(states[-1].c().numpy(), last[1][0].detach().numpy(), 2e-5, 2e-6)
    upstream = inputs(b, steps, size)
    (want * torch.tensor(upstream)).sum().backward()
    grads = (got * Tensor.new(upstream)).sum_all().backward()
    np.testing.assert_allclose(grads[ours].numpy(), given.grad.numpy(), 2e-4, 2e-5)
    for key, value in theirs.named_parameters():
        np.testing.assert_allclose(grads[tensors[key]].numpy(), value.grad.numpy(), 2e-4, 2e-5)


@NETS
def test_cells(name: str) -> None:
    """``LSTMCell`` and ``GRUCell``, step by step from a state of one's own."""
    torch.manual_seed(1)
    theirs = getattr(torch.nn, f"{name}Cell")(3, 4)
    tensors = {f"{key}_l0": Tensor.new(value.detach().numpy()) for key, value in theirs.named_parameters()}
    vb = nn.VarBuilder.from_tensors(tensors, DType.F32, Device.Cpu)
    h, c = inputs(2, 4), inputs(2, 4) * 0.5
    net: Any
    if name == "LSTM":
        net, state = nn.lstm(3, 4, nn.LSTMConfig(), vb), nn.rnn.LSTMState(Tensor.new(h), Tensor.new(c))
        want = (torch.tensor(h), torch.tensor(c))
    else:
        net, state = nn.gru(3, 4, nn.GRUConfig(), vb), nn.rnn.GRUState(Tensor.new(h))  # type: ignore[assignment]
        want = torch.tensor(h)
    for x in inputs(5, 2, 3):
        state, want = net.step(Tensor.new(x), state), theirs(torch.tensor(x), want)
        hidden = want[0] if name == "LSTM" else want
        np.testing.assert_allclose(state.h().numpy(), hidden.detach().numpy(), 2e-5, 2e-6)
    if name == "LSTM":
        np.testing.assert_allclose(state.c().numpy(), want[1].detach().numpy(), 2e-5, 2e-6)


def test_two_layers_in_both_directions() -> None:
    """By ``layer_idx`` and ``Direction``: backwards, the caller flips the input, and the states back."""
    torch.manual_seed(2)
    theirs = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    tensors = {key: Tensor.new(value.detach().numpy()) for key, value in theirs.named_parameters()}
    vb = nn.VarBuilder.from_tensors(tensors, DType.F32, Device.Cpu)
    x = inputs(2, 5, 3)
    out = Tensor.new(x)
    for layer in range(2):
        both = []
        for direction in nn.rnn.Direction:
            config = nn.LSTMConfig(layer_idx=layer, direction=direction)
            net = nn.lstm(out.dim(2), 4, config, vb)
            backward = direction is nn.rnn.Direction.Backward
            hidden = net.states_to_tensor(net.seq(out.flip((1,)) if backward else out))
            both.append(hidden.flip((1,)) if backward else hidden)
        out = Tensor.cat(both, 2)
    np.testing.assert_allclose(out.numpy(), theirs(torch.tensor(x))[0].detach().numpy(), 2e-5, 2e-6)
