"""What benchmarks/nn.py measures: networks of ours and of ``mlx.nn`` with the same weights, layers, a cache.

Ours are channels first, as candle's, MLX's channels last; both get their inputs and weights in their own layout, and
each is written as its user would write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import metal_candle as mc  # before mlx.core: it loads the BLAS
from metal_candle import D, Device, DType, Tensor, Var, nn
from metal_candle.nn import VarBuilder, VarMap, loss, ops

import mlx.core as mx
import mlx.nn
import mlx.optimizers
import numpy as np
from mlx.utils import tree_unflatten

RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """``sides(False)`` gives what is compared, ``sides(True)``, with dropout, what is timed; a run gives its results,
    the same of all sides, and has then computed all it changes. A run is ``calls`` calls."""

    label: str
    sides: Callable[[bool], dict[str, Callable[[], Sequence[Any]]]]
    calls: int = 1


# --- training steps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """``ours(vb, p)`` and ``theirs(p)`` make the network, p being dropout's share; ``weights`` makes theirs of ours.

    ``inputs`` and ``targets`` are ours; theirs are the inputs through ``layout``. Targets that are integers are class
    ids, others are what the output is to be.
    """

    ours: Callable[[VarBuilder, float], Any]
    theirs: Callable[[float], Any]
    weights: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    inputs: np.ndarray
    targets: np.ndarray
    layout: Callable[[np.ndarray], np.ndarray] = lambda x: x

    def sides(self, timed: bool) -> dict[str, Callable[[], Sequence[Any]]]:
        """A training step of each."""
        dropped = 0.5 if timed else 0.0
        starts: dict[str, np.ndarray] = {}
        eager, compiled = self._step(dropped, starts), self._step(dropped, starts)
        replay = mc.compile(compiled)
        xs, targets = Tensor(self.inputs), Tensor(self.targets)
        model = self.theirs(dropped)
        given = {name: mx.array(value) for name, value in self.weights(starts).items()}
        model.update(tree_unflatten(list(given.items())), strict=True)
        mx.eval(model.parameters())
        optimizer = mlx.optimizers.AdamW(RATE, bias_correction=True)
        theirs, ids = mx.array(self.layout(self.inputs)), mx.array(self.targets)
        of_outputs = mlx.nn.losses.cross_entropy if ids.dtype == mx.uint32 else mlx.nn.losses.mse_loss

        def computed(model: Any, xs: mx.array, targets: mx.array) -> mx.array:
            return of_outputs(model(xs), targets, reduction="mean")

        loss_and_gradients = mlx.nn.value_and_grad(model, computed)

        def raw() -> Sequence[Any]:
            found, gradients = loss_and_gradients(model, theirs, ids)
            optimizer.update(model, gradients)
            mx.eval(found, model.parameters(), optimizer.state)
            return [found]

        return {
            "mlx": raw,
            "eager": lambda: [eager(xs, targets).mlx()],
            "compiled": lambda: [replay(xs, targets).mlx()],
        }

    def _step(self, dropped: float, starts: dict[str, np.ndarray]) -> Callable[[Tensor, Tensor], Tensor]:
        """A step of a network of our own; the first one made fills ``starts``, the others start there."""
        varmap = VarMap.new()
        net = self.ours(VarBuilder.from_varmap(varmap, DType.F32, Device.Cpu), dropped)
        for name, var in varmap.data().items():
            if name in starts:
                var.set(Tensor(starts[name]))
            else:
                starts[name] = np.array(var.numpy())
        optimizer = nn.AdamW.new(varmap.all_vars(), nn.ParamsAdamW(lr=RATE))
        classes = self.targets.dtype == np.uint32

        def step(xs: Tensor, targets: Tensor) -> Tensor:
            outputs = net(xs)
            found = loss.nll(ops.log_softmax(outputs, D.Minus1), targets) if classes else loss.mse(outputs, targets)
            optimizer.backward_step(found)
            return found

        return step


class ConvNet(nn.ModuleT):
    """The CNN of examples/digits.py for pictures of any side and kernels of any size that keeps it."""

    def __init__(self, vb: VarBuilder, side: int, kernel: int, dropped: float) -> None:
        config = nn.Conv2dConfig(padding=kernel // 2)
        self.conv1 = nn.conv2d(1, 32, kernel, config, vb.pp("conv1"))
        self.conv2 = nn.conv2d(32, 64, kernel, config, vb.pp("conv2"))
        self.fc1 = nn.linear(64 * (side // 2) ** 2, 256, vb.pp("fc1"))
        self.fc2 = nn.linear(256, 10, vb.pp("fc2"))
        self.dropout = nn.Dropout.new(dropped)

    def forward_t(self, xs: Any, train: bool) -> Any:
        xs = xs.apply(self.conv1).relu().apply(self.conv2).relu().max_pool2d(2)
        xs = xs.flatten_from(1).apply(self.fc1).relu()
        return self.dropout.forward(xs, train).apply(self.fc2)


class MlxConvNet(mlx.nn.Module):  # type: ignore[misc]
    """The same, channels last."""

    def __init__(self, side: int, kernel: int, dropped: float) -> None:
        super().__init__()
        self.conv1 = mlx.nn.Conv2d(1, 32, kernel, padding=kernel // 2)
        self.conv2 = mlx.nn.Conv2d(32, 64, kernel, padding=kernel // 2)
        self.fc1 = mlx.nn.Linear(64 * (side // 2) ** 2, 256)
        self.fc2 = mlx.nn.Linear(256, 10)
        self.pool = mlx.nn.MaxPool2d(2, 2)
        self.dropout = mlx.nn.Dropout(dropped)

    def __call__(self, x: mx.array) -> mx.array:
        x = mlx.nn.relu(self.conv1(x))
        x = self.pool(mlx.nn.relu(self.conv2(x)))
        x = mlx.nn.relu(self.fc1(x.flatten(1)))
        return self.fc2(self.dropout(x))


def _last(array: np.ndarray) -> np.ndarray:
    """Channels, dim 1, last."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def _cnn(side: int, kernel: int) -> Network:
    def weights(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {name: _last(array) if array.ndim == 4 else array for name, array in ours.items()}
        images = ours["fc1.weight"].reshape(256, 64, side // 2, side // 2)
        return {**found, "fc1.weight": _last(images).reshape(256, -1)}

    rng = np.random.default_rng(0)
    return Network(
        lambda vb, dropped: ConvNet(vb, side, kernel, dropped),
        lambda dropped: MlxConvNet(side, kernel, dropped),
        weights,
        rng.random((64, 1, side, side), np.float32),
        rng.integers(0, 10, 64).astype(np.uint32),
        _last,
    )


def _mlp() -> Network:
    def ours(vb: VarBuilder, dropped: float) -> Any:
        net = nn.seq().add(nn.linear(64, 256, vb.pp("layers.0")))
        return net.add(nn.Activation.Relu).add(nn.linear(256, 10, vb.pp("layers.2")))

    def theirs(dropped: float) -> Any:
        return mlx.nn.Sequential(mlx.nn.Linear(64, 256), mlx.nn.ReLU(), mlx.nn.Linear(256, 10))

    rng = np.random.default_rng(0)
    inputs, targets = rng.random((64, 64), np.float32), rng.integers(0, 10, 64).astype(np.uint32)
    return Network(ours, theirs, lambda weights: dict(weights), inputs, targets)


class First(mlx.nn.Module):  # type: ignore[misc]
    """The first result of a layer: an LSTM gives its cells too."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def __call__(self, x: mx.array) -> mx.array:
        return self.layer(x)[0]


def _recurrent(kind: str, size: int) -> Network:
    batch, steps, features = 32, 64, 64

    def ours(vb: VarBuilder, dropped: float) -> Any:
        if kind == "gru":
            net: Any = nn.gru(features, size, nn.GRUConfig(), vb)
        else:
            net = nn.lstm(features, size, nn.LSTMConfig(b_hh_init=None), vb)
        return nn.func(lambda xs: net(xs).reshape((batch, steps, size)))

    def theirs(dropped: float) -> Any:
        return mlx.nn.GRU(features, size) if kind == "gru" else First(mlx.nn.LSTM(features, size))

    def weights(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wx, wh, bias = (ours[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih"))
        if kind == "gru":
            return {"Wx": wx, "Wh": wh, "b": bias, "bhn": ours["bias_hh_l0"][2 * size :]}
        return {"layer.Wx": wx, "layer.Wh": wh, "layer.bias": bias}

    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((batch, steps, features), np.float32)
    return Network(ours, theirs, weights, inputs, rng.standard_normal((batch, steps, size), np.float32))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each behind a norm and beside a residual."""

    NAMES = ("attention.query_proj", "attention.key_proj", "attention.value_proj", "attention.out_proj")

    def __init__(self, vb: VarBuilder, size: int, heads: int) -> None:
        self.heads, self.head = heads, size // heads
        self.ln1, self.ln2 = nn.layer_norm(size, 1e-5, vb.pp("ln1")), nn.layer_norm(size, 1e-5, vb.pp("ln2"))
        self.q, self.k, self.v, self.out = (nn.linear_no_bias(size, size, vb.pp(name)) for name in self.NAMES)
        self.linear1 = nn.linear(size, 4 * size, vb.pp("linear1"))
        self.linear2 = nn.linear(4 * size, size, vb.pp("linear2"))

    def forward(self, xs: Any) -> Any:
        b, t, size = xs.dims3()
        y = self.ln1(xs)
        q, k, v = (net(y).reshape((b, t, self.heads, self.head)).transpose(1, 2) for net in (self.q, self.k, self.v))
        y = ops.sdpa(q, k, v, None, False, self.head**-0.5, 1.0).transpose(1, 2).reshape((b, t, size))
        xs = xs + self.out(y)
        return xs + self.linear2(self.linear1(self.ln2(xs)).relu())


class MlxEncoderLayer(mlx.nn.TransformerEncoderLayer):  # type: ignore[misc]
    """MLX's, without a mask."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x, None)


def _encoder() -> Network:
    batch, steps, size, heads = 8, 64, 128, 4
    rng = np.random.default_rng(0)
    inputs, targets = (rng.standard_normal((batch, steps, size), np.float32) for _ in range(2))
    return Network(
        lambda vb, dropped: EncoderLayer(vb, size, heads),
        lambda dropped: MlxEncoderLayer(size, heads),
        lambda weights: dict(weights),
        inputs,
        targets,
    )


# --- layers with their gradients --------------------------------------------------------------


def _norm_sides(shape: tuple[int, ...], groups: int) -> dict[str, Callable[[], Sequence[Any]]]:
    """Group norm, or without groups batch norm: the loss, and the gradients of weight and bias; the input's is
    computed too."""
    rng = np.random.default_rng(0)
    inputs, factors = (rng.standard_normal(shape, np.float32) for _ in range(2))
    channels = shape[1]

    def of_ours() -> tuple[Callable[[Tensor, Tensor], tuple[Tensor, ...]], Var, Tensor]:
        vb = VarBuilder.from_varmap(VarMap.new(), DType.F32, Device.Cpu)
        layer: Any = nn.group_norm(groups, channels, 1e-5, vb) if groups else nn.batch_norm(channels, 1e-5, vb)
        weight, bias = (layer.weight(), layer.bias()) if groups else layer.weight_and_bias()

        def run(x: Tensor, factors: Tensor) -> tuple[Tensor, ...]:
            found = (layer.forward_t(x, True) * factors).sum_all()
            gradients = found.backward()
            return found, gradients[weight], gradients[bias], gradients[x]

        return run, Var(inputs), Tensor(factors)

    run, *given = of_ours()
    compiled, *compiled_given = of_ours()
    replay = mc.compile(compiled)
    layer = mlx.nn.GroupNorm(groups, channels, pytorch_compatible=True) if groups else mlx.nn.BatchNorm(channels)
    x, of_x = mx.array(_last(inputs)), mx.array(_last(factors))

    def computed(parameters: Any, x: mx.array) -> mx.array:
        layer.update(parameters)
        return (layer(x) * of_x).sum()

    loss_and_gradients = mx.value_and_grad(computed, argnums=(0, 1))

    def raw() -> Sequence[Any]:
        parameters = layer.trainable_parameters()
        found, (gradients, of_input) = loss_and_gradients(parameters, x)
        layer.update(parameters)
        mx.eval(found, gradients, of_input, layer.parameters())
        return [found, gradients["weight"], gradients["bias"]]

    return {
        "mlx": raw,
        "eager": lambda: [each.mlx() for each in run(*given)][:3],
        "compiled": lambda: [each.mlx() for each in replay(*compiled_given)][:3],
    }


# --- a cache ----------------------------------------------------------------------------------

TOKENS = 64


def _cache_sides(start: int, heads: int, head: int) -> dict[str, Callable[[], Sequence[Any]]]:
    """A token's keys and values behind ``start`` ones, ``TOKENS`` times; MLX's is a block that is written into, as
    mlx-lm has it."""
    rng = np.random.default_rng(0)
    past, new = (rng.standard_normal((1, heads, t, head), np.float32) for t in (start, 1))
    ours_past, ours_new = Tensor(past), Tensor(new)
    mlx_new = mx.array(new)
    blocks = [mx.zeros((1, heads, start + TOKENS, head)) for _ in range(2)]
    for block in blocks:
        block[:, :, :start] = mx.array(past)
    mx.eval(blocks)

    cache = nn.kv_cache.KvCache(2, start + TOKENS)

    def eager() -> Sequence[Any]:
        cache.reset()
        cache.append(ours_past, ours_past)
        for _ in range(TOKENS):
            keys, values = cache.append(ours_new, ours_new)
            mx.eval(keys.mlx(), values.mlx())
        return [keys.mlx(), values.mlx()]

    def raw() -> Sequence[Any]:
        for block in blocks:
            block[:, :, :start] = mx.array(past)
        for end in range(start + 1, start + TOKENS + 1):
            found = []
            for block in blocks:
                block[:, :, end - 1 : end] = mlx_new
                found.append(block[:, :, :end])
            mx.eval(found)
        return found

    return {"mlx": raw, "eager": eager}


CASES = [
    Case("digits MLP, training step", lambda timed: _mlp().sides(timed)),
    Case("digits CNN, training step", lambda timed: _cnn(8, 3).sides(timed)),
    Case("MNIST CNN, training step", lambda timed: _cnn(28, 5).sides(timed)),
    Case("LSTM of 128, training step", lambda timed: _recurrent("lstm", 128).sides(timed)),
    Case("LSTM of 512, training step", lambda timed: _recurrent("lstm", 512).sides(timed)),
    Case("GRU of 128, training step", lambda timed: _recurrent("gru", 128).sides(timed)),
    Case("GRU of 512, training step", lambda timed: _recurrent("gru", 512).sides(timed)),
    Case("encoder layer, training step", lambda timed: _encoder().sides(timed)),
    Case("batch norm 32 x 64 x 28 x 28, gradients", lambda timed: _norm_sides((32, 64, 28, 28), 0)),
    Case("group norm 32 x 64 x 28 x 28, gradients", lambda timed: _norm_sides((32, 64, 28, 28), 8)),
    Case("KvCache of 512 tokens, one more", lambda timed: _cache_sides(512, 8, 64), TOKENS),
]
