"""Convolution layers: values, gradients, starts, errors, ``mlx.nn``'s layers, and candle's own numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import metal_candle as mc
from metal_candle import DType, LazyTensor, Tensor, Var, nn
from metal_candle.nn.conv import Convolution

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from tolerance import VALUE, assert_near

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
# What a layer is made with, its input's shape and its weight's: strides, paddings, dilations, groups, an empty batch.
FORWARD: list[tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] = [
    (nn.Conv1d, nn.Conv1dConfig(), (2, 3, 7), (4, 3, 3)),
    (nn.Conv1d, nn.Conv1dConfig(padding=2, stride=3, dilation=2), (1, 4, 8), (6, 4, 2)),
    (nn.Conv1d, nn.Conv1dConfig(padding=1, groups=2), (3, 4, 5), (6, 2, 3)),
    (nn.Conv1d, nn.Conv1dConfig(), (0, 3, 7), (4, 3, 1)),
    (nn.Conv2d, nn.Conv2dConfig(), (2, 2, 5, 4), (3, 2, 3, 2)),
    (nn.Conv2d, nn.Conv2dConfig(padding=1, stride=2, dilation=2), (1, 4, 5, 6), (2, 4, 2, 3)),
    (nn.Conv2d, nn.Conv2dConfig(padding=1, groups=3), (2, 3, 4, 4), (3, 1, 3, 3)),
    (nn.Conv2d, nn.Conv2dConfig(), (1, 3, 3, 2), (2, 3, 1, 1)),
]
TRANSPOSED: list[tuple[Any, Any, tuple[int, ...], tuple[int, ...]]] = [
    (nn.ConvTranspose1d, nn.ConvTranspose1dConfig(), (2, 3, 4), (3, 2, 3)),
    (
        nn.ConvTranspose1d,
        nn.ConvTranspose1dConfig(padding=1, output_padding=1, stride=2, dilation=2),
        (1, 2, 3),
        (2, 3, 2),
    ),
    (nn.ConvTranspose1d, nn.ConvTranspose1dConfig(groups=2, stride=2), (2, 4, 3), (4, 3, 2)),
    (nn.ConvTranspose2d, nn.ConvTranspose2dConfig(), (2, 2, 3, 2), (2, 3, 2, 3)),
    (nn.ConvTranspose2d, nn.ConvTranspose2dConfig(1, 1, 2, 1), (1, 3, 2, 3), (3, 2, 3, 2)),
]


def named(cases: list[tuple[Any, Any, tuple[int, ...], tuple[int, ...]]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[f"{case[0].__name__}{list(case[2])}" for case in cases])


def channels_out(case: Any) -> int:
    kind, config, _, weight = case
    return int(weight[0] if kind in (nn.Conv1d, nn.Conv2d) else weight[1] * getattr(config, "groups", 1))


def arrays(case: Any) -> tuple[Any, Any, Any]:
    return normal(*case[2], seed=1), normal(*case[3], seed=2), normal(channels_out(case), seed=3)


def numbers(config: Any) -> dict[str, int]:
    return {name: value for name, value in vars(config).items() if name != "cudnn_fwd_algo"}


def by_mlx(case: Any, x: Any, weight: Any, bias: Any) -> Any:
    """The layer of ``mlx.nn``, channels last, as an MLX array with channels first."""
    kind, config, _, _ = case
    if kind is nn.ConvTranspose1d and config.groups > 1:
        # mlx.nn's has no groups: a layer for each.
        one = kind, replace(config, groups=1), (), ()
        parts = zip(mx.split(x, config.groups, 1), mx.split(weight, config.groups), mx.split(bias, config.groups))
        return mx.concatenate([by_mlx(one, *part) for part in parts], 1)
    theirs = getattr(mlx.nn, kind.__name__)(1, 1, 1)
    for name, value in numbers(config).items():
        setattr(theirs, name, value)
    # (in, out, k) to (out, k, in), or (out, in, k) to (out, k, in)
    weight = weight.swapaxes(0, 1) if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d) else weight
    theirs.weight, theirs.bias = mx.moveaxis(weight, 1, -1), bias
    return mx.moveaxis(theirs(mx.moveaxis(x, 1, -1)), -1, 1)


# --- values -----------------------------------------------------------------------------------


def loops(case: Any, x: Any, weight: Any, bias: Any) -> Any:
    """The layer by its definition, an addition for each element of the kernel and each place, in float64."""
    kind, config, _, _ = case
    n = {"groups": 1, "output_padding": 0, **numbers(config)}
    padding, stride, dilation, groups = n["padding"], n["stride"], n["dilation"], n["groups"]
    transposed = kind in (nn.ConvTranspose1d, nn.ConvTranspose2d)
    size, k = x.shape[2:], weight.shape[2:]
    if transposed:
        out = [(s - 1) * stride - 2 * padding + dilation * (m - 1) + n["output_padding"] + 1 for s, m in zip(size, k)]
    else:
        out = [(s + 2 * padding - dilation * (m - 1) - 1) // stride + 1 for s, m in zip(size, k)]
    y = np.zeros((len(x), len(bias), *out)) + bias.astype(np.float64).reshape(-1, *[1] * len(out))
    c_in, c_out = x.shape[1] // groups, len(bias) // groups
    for group in range(groups):
        ins, outs = slice(group * c_in, (group + 1) * c_in), slice(group * c_out, (group + 1) * c_out)
        for place in np.ndindex(*k):
            matrix = weight[(ins, slice(None), *place)] if transposed else weight[(outs, slice(None), *place)].T
            for small in np.ndindex(*(size if transposed else out)):
                large = tuple(s * stride + p * dilation - padding for s, p in zip(small, place))
                if all(0 <= at < limit for at, limit in zip(large, out if transposed else size)):
                    source, target = (small, large) if transposed else (large, small)
                    y[(slice(None), outs, *target)] += x[(slice(None), ins, *source)] @ matrix
    return y


@named(FORWARD + TRANSPOSED)
@pytest.mark.parametrize("bias", [True, False])
def test_values_in_every_dtype(case: Any, bias: bool) -> None:
    x, weight, of_bias = arrays(case)
    kind, config, _, _ = case

    def function(x: Any, weight: Any, bias: Any = None) -> Any:
        return kind(weight, bias, config).forward(x)

    def reference(x: Any, weight: Any, bias: Any = None) -> Any:
        return loops(case, x, weight, np.zeros(len(of_bias)) if bias is None else bias)

    check_dtypes(function, (x, weight, *([of_bias] if bias else [])), reference)


@named([case for case in FORWARD + TRANSPOSED if 0 not in case[2]])
def test_the_same_as_mlx_nn(case: Any) -> None:
    """float32, sums of up to some ten terms in another order; and the gradients where MLX has the right ones.

    MLX's convolution refuses an empty batch.
    """
    x, weight, bias = arrays(case)
    inputs = [mx.array(array) for array in (x, weight, bias)]
    variables = [Var(array) for array in (x, weight, bias)]
    kind, config, _, _ = case
    got = kind(variables[1], variables[2], config).forward(variables[0])
    assert_near(got.numpy(), np.array(by_mlx(case, *inputs)), VALUE[DType.F32])
    if getattr(config, "output_padding", 0):
        return  # MLX 0.32.4 shapes these gradients wrongly; the slopes below test them.
    upstream = normal(*got.shape, seed=4)
    grads = got.mul(Tensor(upstream)).sum_all().backward()
    wanted = mx.grad(lambda *given: (by_mlx(case, *given) * mx.array(upstream)).sum(), (0, 1, 2))(*inputs)
    for variable, want in zip(variables, wanted):
        assert_near(grads[variable].numpy(), np.array(want), VALUE[DType.F32])


@named(FORWARD + TRANSPOSED)
def test_gradients_are_slopes(case: Any) -> None:
    kind, config, _, _ = case
    x, weight, bias = arrays(case)
    if x.size:
        assert_slopes(lambda x, weight, bias: kind(weight, bias, config).forward(x), x, weight, bias)
        assert_slopes(lambda x, weight: kind(weight, None, config).forward(x), x, weight)


@KINDS
def test_an_empty_batch_gives_empty_gradients(kind: Any) -> None:
    weight, bias = Var(normal(4, 3, 2, 2)), Var(normal(4))
    y = nn.Conv2d(weight, bias).forward(kind.new(np.zeros((0, 3, 5, 5), np.float32)))
    assert y.dims() == [0, 4, 4, 4]
    grads = y.sum_all().backward()
    assert (grads[weight].numpy() == 0).all()
    assert grads[bias].to_vec1() == [0.0] * 4


@KINDS
def test_views(kind: Any) -> None:
    """A transposed input and weights that are every other channel of others."""
    x, weight = normal(3, 2, 6, 5, seed=1), normal(8, 2, 3, 3, seed=2)
    layer = nn.Conv2d(Tensor(weight)[::2], Tensor(normal(8))[::2])
    got = layer.forward(kind.new(x.swapaxes(2, 3).copy()).transpose(2, 3))
    case = (nn.Conv2d, nn.Conv2dConfig(), (), ())
    assert_near(got.numpy(), loops(case, x, weight[::2], normal(8)[::2]), VALUE[DType.F32])


T1 = np.array(
    [
        *(0.4056, -0.8689, -0.0773, -1.5630, 1.2279, -0.9287, -1.7030, 0.1370, 0.1866, 0.4145),
        *(1.8025, -0.1536, 2.2013, -0.6836, 0.2477, 1.3127, -0.6957, 0.3278, -1.0124, 0.5599),
    ],
    np.float32,
).reshape(1, 4, 5)
W1 = np.array(
    [
        *(-0.8404, -0.3490, 0.0130, 1.3123, 0.1763, -1.9249, 1.4270, 0.9421, 0.8670, -0.7181, -1.1111, 0.8869),
        *(-1.2429, 1.8357, 1.6052, -1.3844, 0.3951, -1.2036, 0.6686, 1.6261, -0.6451, -0.0840, -1.4247, 0.5512),
    ],
    np.float32,
).reshape(2, 4, 3)
T2 = np.array([0.4056, -0.8689, 0.6843, 0.2395, 1.2279, -0.9287, -1.7030, 0.1370, 0.1866], np.float32)
T2 = np.concatenate([T2, np.array([0.4145, -0.6266, 0.3529, 2.2013, -0.6836, 0.2477, 1.3127, -0.6957, 0.3278])])
T2 = T2.astype(np.float32).reshape(1, 2, 3, 3)
W2 = np.array([-0.9259, 1.3017], np.float32).reshape(1, 2, 1, 1)
# candle-core/tests/conv_tests.rs, which has them from PyTorch, to four places.
PUBLISHED = [
    (nn.Conv1d, nn.Conv1dConfig(), T1, W1, (1, 2, 3), [2.6357, -1.3336, 4.1393, -1.1784, 3.5675, 0.5069]),
    (
        *(nn.Conv1d, nn.Conv1dConfig(padding=1), T1, W1, (1, 2, 5)),
        [2.4509, 2.6357, -1.3336, 4.1393, 0.5657, 1.8091, -1.1784, 3.5675, 0.5069, 3.3352],
    ),
    (
        *(nn.Conv2d, nn.Conv2dConfig(), T2, W2, (1, 1, 3, 3)),
        [0.164, -0.0111, -0.1742, 2.6437, -2.0268, 1.1823, 3.2855, -1.0324, 0.2539],
    ),
    (
        *(nn.ConvTranspose2d, nn.ConvTranspose2dConfig(), T2, W2.swapaxes(0, 1), (1, 1, 3, 3)),
        [0.164, -0.0111, -0.1742, 2.6437, -2.0268, 1.1823, 3.2855, -1.0324, 0.2539],
    ),
    (
        *(nn.ConvTranspose2d, nn.ConvTranspose2dConfig(), T2[:, :1], W2, (1, 2, 3, 3)),
        [
            *(-0.3755, 0.8045, -0.6336, -0.2218, -1.1369, 0.8599, 1.5768, -0.1268, -0.1728),
            *(0.528, -1.131, 0.8908, 0.3118, 1.5984, -1.2089, -2.2168, 0.1783, 0.2429),
        ],
    ),
]


@pytest.mark.parametrize(("kind", "config", "x", "weight", "shape", "want"), PUBLISHED)
def test_the_numbers_of_candles_tests(kind: Any, config: Any, x: Any, weight: Any, shape: Any, want: Any) -> None:
    check(lambda x, w: kind(w, None, config).forward(x).round_to(4), (x, weight), np.reshape(want, shape))


# --- layers and configs -----------------------------------------------------------------------


def test_getters_and_configs() -> None:
    weight, bias = Tensor(normal(2, 1, 3)), Tensor(normal(2))
    config = nn.Conv1dConfig(padding=1)
    layer = nn.Conv1d.new(weight, bias, config)
    assert (layer.weight() is weight, layer.bias() is bias, layer.config() is config) == (True, True, True)
    assert nn.Conv2d(weight, None, nn.Conv2dConfig()).bias() is None
    assert nn.Conv1dConfig.default() == nn.Conv1dConfig(0, 1, 1, 1, None)
    assert nn.Conv2dConfig.default() == nn.Conv2dConfig(padding=0, stride=1, dilation=1, groups=1, cudnn_fwd_algo=None)
    transposed = nn.ConvTranspose1dConfig(padding=0, output_padding=0, stride=1, dilation=1, groups=1)
    assert nn.ConvTranspose1dConfig.default() == transposed
    assert nn.ConvTranspose2dConfig.default() == nn.ConvTranspose2dConfig(0, 0, 1, 1)
    for kind in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d):
        assert issubclass(kind, Convolution)
        assert kind(weight).config() == type(kind(weight).config()).default()


def test_an_algorithm_is_ignored() -> None:
    x, weight = Tensor(normal(1, 2, 5, 5)), Tensor(normal(3, 2, 2, 2, seed=1))
    named = nn.Conv2d(weight, None, nn.Conv2dConfig(cudnn_fwd_algo="Fft")).forward(x)
    assert (named.numpy() == nn.Conv2d(weight).forward(x).numpy()).all()


def drawn(make: Any, *sizes: int, config: Any) -> tuple[dict[str, Any], Any]:
    mc.Device.Cpu.set_seed(0)
    varmap = nn.VarMap()
    layer = make(*sizes, config, nn.VarBuilder.from_varmap(varmap, DType.F32).pp("conv"))
    return {name: var.numpy() for name, var in varmap.data().items()}, layer


def assert_uniform(values: Any, bound: float) -> None:
    """Of 300 numbers or more: the deviation of a uniform distribution to 10 %, four standard errors, and its ends."""
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.95 * bound
    assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("groups", [1, 4])
def test_how_convolutions_start(groups: int) -> None:
    for make, without, config, kernel in (
        (nn.conv1d, nn.conv1d_no_bias, nn.Conv1dConfig(padding=1, groups=groups), (5,)),
        (nn.conv2d, nn.conv2d_no_bias, nn.Conv2dConfig(padding=1, groups=groups), (5, 5)),
    ):
        tensors, layer = drawn(make, 16, 400, 5, config=config)
        shape = (400, 16 // groups, *kernel)
        assert {name: array.shape for name, array in tensors.items()} == {"conv.weight": shape, "conv.bias": (400,)}
        fan = shape[1] * math.prod(kernel)
        # 8000 numbers or more: a standard error of 0.8 %, four of them.
        assert tensors["conv.weight"].std() == pytest.approx(math.sqrt(2 / fan), rel=0.032)
        assert_uniform(tensors["conv.bias"], 1 / math.sqrt(16))
        assert layer.config() is config
        tensors, layer = drawn(without, 16, 400, 5, config=config)
        assert {name: array.shape for name, array in tensors.items()} == {"conv.weight": shape}
        assert layer.bias() is None


def test_how_transposed_convolutions_start() -> None:
    one, two = nn.ConvTranspose1dConfig(groups=2), nn.ConvTranspose2dConfig(stride=2)
    for make, without, config, shape in (
        (nn.conv_transpose1d, nn.conv_transpose1d_no_bias, one, (4, 200, 3)),
        (nn.conv_transpose2d, nn.conv_transpose2d_no_bias, two, (4, 400, 3, 3)),
    ):
        tensors, layer = drawn(make, 4, 400, 3, config=config)
        assert {name: array.shape for name, array in tensors.items()} == {"conv.weight": shape, "conv.bias": (400,)}
        bound = 1 / math.sqrt(400 * 3) if len(shape) == 3 else 1 / (math.sqrt(400) * 3)
        assert_uniform(tensors["conv.weight"], bound)
        assert_uniform(tensors["conv.bias"], bound)
        assert layer.config() is config
        tensors, layer = drawn(without, 4, 400, 3, config=config)
        assert {name: array.shape for name, array in tensors.items()} == {"conv.weight": shape}
        assert layer.bias() is None


def test_from_tensors() -> None:
    tensors = {"weight": Tensor(normal(4, 3, 2, 2)), "bias": Tensor(normal(4))}
    vb = nn.VarBuilder.from_tensors(tensors, DType.F16)
    assert nn.conv2d(3, 4, 2, nn.Conv2dConfig(), vb).weight().dtype is DType.F16
    with pytest.raises(
        mc.error.UnexpectedShapeError, match=r"weight: expected shape \(4, 3, 3, 3\), got \(4, 3, 2, 2\)"
    ):
        nn.conv2d(3, 4, 3, nn.Conv2dConfig(), vb)


# --- errors -----------------------------------------------------------------------------------


@KINDS
def test_refuses_inputs(kind: Any) -> None:
    one, two = nn.Conv1d(Tensor(normal(4, 3, 2))), nn.Conv2d(Tensor(normal(4, 3, 2, 2)))
    with pytest.raises(mc.error.Conv1dInvalidArgsError, match="conv1d"):
        one.forward(kind.new(normal(1, 2, 5)))
    with pytest.raises(mc.error.ShapeMismatchError, match=r"conv2d: got shapes \(1, 2, 5, 5\) and \(4, 3, 2, 2\)"):
        two.forward(kind.new(normal(1, 2, 5, 5)))
    with pytest.raises(mc.error.ShapeMismatchError, match="no smaller than"):
        two.forward(kind.new(normal(1, 3, 1, 1)))
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match="conv2d"):
        two.forward(kind.new(normal(3, 5, 5)))
    with pytest.raises(mc.error.DTypeMismatchError, match="conv2d: dtypes differ, lhs f16, rhs f32"):
        two.forward(kind.new(normal(1, 3, 5, 5)).to_dtype("f16"))
    with pytest.raises(mc.error.ShapeMismatchError, match="conv_transpose2d"):
        nn.ConvTranspose2d(Tensor(normal(4, 3, 2, 2))).forward(kind.new(normal(1, 3, 5, 5)))
    with pytest.raises(mc.error.ShapeMismatchError, match="stride"):
        nn.Conv1d(Tensor(normal(4, 3, 2)), None, nn.Conv1dConfig(stride=0)).forward(kind.new(normal(1, 3, 5)))


@KINDS
def test_refuses_biases(kind: Any) -> None:
    weight, x = Tensor(normal(4, 3, 2, 2)), kind.new(normal(1, 3, 5, 5))
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match=r"dims1.*\(1, 4\)"):
        nn.Conv2d(weight, Tensor(normal(1, 4))).forward(x)
    with pytest.raises(mc.error.ShapeMismatchError, match=r"add: got shapes \(1, 4, 4, 4\) and \(1, 3, 1, 1\)"):
        nn.Conv2d(weight, Tensor(normal(3))).forward(x)


def test_refuses_groups_that_do_not_divide() -> None:
    vb = nn.VarBuilder.from_varmap(nn.VarMap(), DType.F32)
    for groups in (2, 0):
        with pytest.raises(mc.error.ArgumentValueError) as found:
            nn.conv2d(3, 4, 3, nn.Conv2dConfig(groups=groups), vb)
        got = f"conv: got 3 channels in, 4 out and {groups} groups"
        assert str(found.value) == f"{got}; takes groups that divide both"
    with pytest.raises(mc.error.ArgumentValueError):
        nn.conv_transpose1d(4, 3, 3, nn.ConvTranspose1dConfig(groups=2), vb)


# --- in a network -----------------------------------------------------------------------------


class ConvNet(nn.Module):
    """candle's MNIST example, smaller."""

    def __init__(self, vs: nn.VarBuilder) -> None:
        self.conv1 = nn.conv2d(1, 4, 3, nn.Conv2dConfig(padding=1), vs.pp("c1"))
        self.conv2 = nn.conv2d(4, 8, 3, nn.Conv2dConfig.default(), vs.pp("c2"))
        self.fc = nn.linear(8, 2, vs.pp("fc"))

    def forward(self, xs: Any) -> Any:
        xs = xs.reshape((-1, 1, 8, 8)).apply(self.conv1).max_pool2d(2).apply(self.conv2).relu()
        return xs.max_pool2d(2).flatten_from(1).apply(self.fc)


@KINDS
def test_a_small_network_tells_stripes_apart(kind: Any) -> None:
    """Rows from columns, with noise: gradient descent in 30 steps; and the compiled network agrees."""
    mc.Device.Cpu.set_seed(1)
    rng = np.random.default_rng(0)
    stripes = np.tile([1.0, -1.0], 4)
    labels = rng.integers(0, 2, 32)
    images = np.where(labels[:, None, None], stripes[:, None], stripes) + 0.3 * rng.standard_normal((32, 8, 8))
    varmap = nn.VarMap()
    model = ConvNet(nn.VarBuilder.from_varmap(varmap, DType.F32))
    x, target = kind.new(images.astype(np.float32)), kind.new(np.eye(2, dtype=np.float32)[labels])
    for _ in range(30):
        loss = model.forward(x).log_softmax(1).mul(target).sum_all().neg() / 32.0
        grads = loss.backward()
        assert all(grads.get(var) is not None for var in varmap.all_vars())
        for var in varmap.all_vars():
            var.set(var.as_detached_tensor() - grads[var] * 0.1)
    logits = model.forward(x)
    assert isinstance(logits, kind)
    assert (logits.argmax(1).numpy() == labels).all()
    compiled = mc.compile(model.forward)(Tensor(images.astype(np.float32)))
    assert_near(compiled.numpy(), logits.numpy(), VALUE[DType.F32])


@pytest.mark.parametrize("dims", ["1d", "2d"])
@pytest.mark.parametrize("kind", ["conv", "conv_transpose"])
def test_configurations_of_another_kind_are_named(kind: str, dims: str) -> None:
    vb = nn.VarBuilder.zeros(DType.F32)
    layer = {"conv": "Conv", "conv_transpose": "ConvTranspose"}[kind] + dims
    other = nn.Conv2dConfig() if dims == "1d" else nn.Conv1dConfig()
    for wrong, got in (({"padding": 1}, "a dict"), (vb, "a VarBuilder"), (None, "None"), (other, "a Conv.dConfig")):
        for name in (f"{kind}{dims}", f"{kind}{dims}_no_bias"):
            with pytest.raises(mc.error.ArgumentTypeError, match=f"^{name}: got config {got}; takes a {layer}Config$"):
                getattr(nn, name)(1, 2, 3, wrong, vb)
        with pytest.raises(mc.error.ArgumentTypeError, match=f"^{layer}: got config {got}; takes a {layer}Config$"):
            getattr(nn, layer).new(Tensor.zeros((1, 1, 3), "f32"), None, wrong)
