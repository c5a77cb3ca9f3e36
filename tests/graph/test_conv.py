"""Convolutions and their transposes: against plain loops, PyTorch, and each other's definitions."""

from __future__ import annotations

import itertools
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.kernels import conv as kernels
from metal_candle.kernels import windows as kernel_windows
from metal_candle.kernels.variant import Variant, differentiated_by_mlx

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerance import VALUE, Tolerance, assert_near

KINDS: list[Any] = [Tensor, LazyTensor]
Array = np.ndarray[Any, Any]


def loops(x: Array, kernel: Array, padding: int, stride: int, dilation: int, groups: int) -> Array:
    """A convolution by its definition: one multiplication at a time, in float64."""
    (b, _, *size), (o, c_k, *k) = x.shape, kernel.shape
    out = [(n + 2 * padding - dilation * (m - 1) - 1) // stride + 1 for n, m in zip(size, k)]
    y = np.zeros((b, o, *out))
    for n, f in itertools.product(range(b), range(o)):
        for at in np.ndindex(*out):
            for ch, place in itertools.product(range(c_k), np.ndindex(*k)):
                source = [a * stride + p * dilation - padding for a, p in zip(at, place)]
                if all(0 <= s < limit for s, limit in zip(source, size)):
                    y[(n, f, *at)] += x[(n, f // (o // groups) * c_k + ch, *source)] * kernel[(f, ch, *place)]
    return y


def transposed_loops(
    x: Array, kernel: Array, padding: int, output_padding: int, stride: int, dilation: int, groups: int
) -> Array:
    """A transposed convolution: every element of x spreads the kernel."""
    (b, c, *size), (_, o_k, *k) = x.shape, kernel.shape
    out = [(n - 1) * stride - 2 * padding + dilation * (m - 1) + output_padding + 1 for n, m in zip(size, k)]
    y = np.zeros((b, o_k * groups, *out))
    for n, ch, f in itertools.product(range(b), range(c), range(o_k)):
        for at, place in itertools.product(np.ndindex(*size), np.ndindex(*k)):
            target = [a * stride + p * dilation - padding for a, p in zip(at, place)]
            if all(0 <= t < limit for t, limit in zip(target, out)):
                y[(n, ch // (c // groups) * o_k + f, *target)] += x[(n, ch, *at)] * kernel[(ch, f, *place)]
    return y


def values(*shape: int) -> Array:
    """Halves of small integers, the same each time."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 % 11 - 5) / 2).reshape(shape)


def weights(*shape: int) -> Array:
    return np.asarray(np.arange(int(np.prod(shape))) * 5 % 7 - 3.0).reshape(shape)


def gradients(kind: Any, method: str, x: Array, kernel: Array, *numbers: int) -> tuple[Any, Any, Any]:
    """The result, and the gradients of its sum weighted by ``weights``, in the arrays' dtype."""
    a, b = Var.new(x, Device.Cpu), Var.new(kernel, Device.Cpu)
    inputs = (a, b) if kind is Tensor else (LazyTensor.from_tensor(a), LazyTensor.from_tensor(b))
    y = getattr(inputs[0], method)(inputs[1], *numbers)
    upstream = kind.new(weights(*y.shape), Device.Cpu).to_dtype(y.dtype)
    grads = y.mul(upstream).sum_all().backward()
    return y.numpy(), grads[a].numpy(), grads[b].numpy()


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    groups, spatial = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    side = st.integers(1, 5 if spatial == 2 else 9)
    return {
        "groups": groups,
        "batch": draw(st.sampled_from([1, 1, 2, 0])),
        "inner": draw(st.integers(1, 2)),
        "outer": draw(st.integers(1, 3)),
        "size": tuple(draw(side) for _ in range(spatial)),
        "k": tuple(draw(st.integers(1, 3)) for _ in range(spatial)),
        "padding": draw(st.integers(0, 3)),
        "output_padding": draw(st.integers(0, 2)),
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
    }


def dot(a: Array, b: Array) -> float:
    return float((a.astype(np.float64) * b).sum())


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(KINDS), st.sampled_from([DType.F32, DType.F64]))
def test_conv_is_its_definition_and_its_gradients_are_its_adjoints(case: Any, kind: Any, dtype: DType) -> None:
    """Bilinear: ``<dy, conv(v, w)> = <dx, v>`` and ``<dy, conv(x, u)> = <dw, u>`` for any v and u."""
    rng = np.random.default_rng(0)
    groups, numpy = case["groups"], np.float64 if dtype is DType.F64 else np.float32
    x = rng.uniform(-1, 1, (case["batch"], groups * case["inner"], *case["size"])).astype(numpy)
    w = rng.uniform(-1, 1, (groups * case["outer"], case["inner"], *case["k"])).astype(numpy)
    numbers = (case["padding"], case["stride"], case["dilation"], groups)
    reach = case["dilation"] * (np.array(case["k"]) - 1) + 1
    assume((np.array(case["size"]) + 2 * case["padding"] >= reach).all())
    y, dx, dw = gradients(kind, f"conv{len(case['size'])}d", x, w, *numbers)
    assert y.dtype == dx.dtype == dw.dtype == numpy
    assert_near(y, loops(x, w, *numbers), VALUE[dtype])
    v, u = rng.uniform(-1, 1, x.shape), rng.uniform(-1, 1, w.shape)
    upstream = weights(*y.shape)
    # Sums of up to a thousand terms of size 3.
    near = Tolerance(1e-9, 1e-9) if dtype is DType.F64 else Tolerance(1e-4, 1e-3)
    assert_near(dot(dx, v), dot(upstream, loops(v, w, *numbers)), near)
    assert_near(dot(dw, u), dot(upstream, loops(x, u, *numbers)), near)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(KINDS), st.sampled_from([DType.F32, DType.F64]))
def test_conv_transpose_is_its_definition_and_its_gradients_are_its_adjoints(
    case: Any, kind: Any, dtype: DType
) -> None:
    rng = np.random.default_rng(0)
    spatial, numpy = len(case["size"]), np.float64 if dtype is DType.F64 else np.float32
    groups = case["groups"] if spatial == 1 else 1
    x = rng.uniform(-1, 1, (case["batch"], groups * case["inner"], *case["size"])).astype(numpy)
    w = rng.uniform(-1, 1, (groups * case["inner"], case["outer"], *case["k"])).astype(numpy)
    numbers = (case["padding"], case["output_padding"], case["stride"], case["dilation"])
    wanted = [
        (n - 1) * case["stride"] - 2 * case["padding"] + case["dilation"] * (k - 1) + case["output_padding"] + 1
        for n, k in zip(case["size"], case["k"])
    ]
    assume(min(wanted) > 0)
    given_ = (*numbers, groups) if spatial == 1 else numbers
    y, dx, dw = gradients(kind, f"conv_transpose{spatial}d", x, w, *given_)
    assert y.dtype == dx.dtype == dw.dtype == numpy
    assert_near(y, transposed_loops(x, w, *numbers, groups), VALUE[dtype])
    v, u = rng.uniform(-1, 1, x.shape), rng.uniform(-1, 1, w.shape)
    upstream = weights(*y.shape)
    near = Tolerance(1e-9, 1e-9) if dtype is DType.F64 else Tolerance(1e-4, 1e-3)
    assert_near(dot(dx, v), dot(upstream, transposed_loops(v, w, *numbers, groups)), near)
    assert_near(dot(dw, u), dot(upstream, transposed_loops(x, u, *numbers, groups)), near)


# PyTorch 2.13, float32: result, gradient of the input, gradient of the kernel; the inputs are `values`, the
# gradient of the result `weights`.
TORCH = [
    (
        "conv1d",
        ((1, 4, 5), (2, 2, 3)),
        (1, 2, 1, 2),
        [-7.25, 2.0, -10.0, 8.5, -6.25, -1.0],
        [-3, -2, 2, -2, 0, -1.5, 9.5, 1, -3, 0, 0, 10, 0, -4, 0, 1, 9.5, -1.5, -6, -0.5],
        [2, 5.5, 2, 4, 4.5, -10, -8.5, 6.5, 2, -4.5, 3, 3],
    ),
    (
        "conv2d",
        ((1, 2, 4, 3), (2, 2, 2, 2)),
        (1, 2, 2, 1),
        [1.25, -3.5, 1.5, -6.5, -2.0, -4.0, 2.25, -8.5],
        [0, 0, 0, 0, -8, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, -12, 0],
        [-1, 0, 2, -1.5, 3, 0, 2, 4.5, -1.5, -0.5, 2, 2, 4.5, 1.5, 6, -2],
    ),
    (
        "conv_transpose1d",
        ((1, 2, 3), (2, 2, 3)),
        (1, 1, 2, 1, 2),
        [
            *(-2.5, 0, 1, 1.5, -1, 1, -1.25, 6.25, 0.5, -4, -0.5, 1.5),
            *(0, -4, 0, -4, 0, 3, -1.25, -5.5, -0.25, -3.5, 0.75, 3.75),
        ],
        [-1, -9.5, 1.5, -2, 3.5, 2.5],
        [4, 4.5, -8, -3, 6.5, 4.5, -3.5, 1, 1.5, 5, 4, 1],
    ),
    (
        "conv_transpose2d",
        ((1, 2, 2, 2), (2, 1, 3, 2)),
        (1, 1, 2, 1),
        [-5.5, 2, 0.25, 1.5, -5, 4.75, 0.5, -2.5, 6.25, -3.5, 1.25, -3.75],
        [-4.5, -2, -4.5, -4, 0.5, -8, -1.5, 8.5],
        [7.5, 4.5, -5.5, 13.5, -2, 13.5, 0, -4, -3, -3.5, -4.5, -2.5],
    ),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "shapes", "numbers", "y", "dx", "dw"), TORCH, ids=[case[0] for case in TORCH])
def test_values_and_gradients_of_pytorch(
    method: str, shapes: Any, numbers: Any, y: Any, dx: Any, dw: Any, kind: Any, dtype: Any
) -> None:
    """Every value is a quarter of a small integer, so that each dtype has it exactly."""
    x, kernel = (values(*shape).astype(dtype) for shape in shapes)
    got = gradients(kind, method, x, kernel, *numbers)
    for array, want, like in zip(got, (y, dx, dw), (None, x, kernel)):
        assert array.dtype == dtype
        assert like is None or array.shape == like.shape
        assert array.ravel().tolist() == want


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_pytorch_installed_here(dtype: str, seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    p, s, d, g = int(rng.integers(3)), int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    x = rng.standard_normal((2, 2 * g, 9, 8)).astype(dtype)
    calls = {
        "conv2d": ((3 * g, 2, 3, 2), (p, s, d, g), {"padding": p, "stride": s, "dilation": d, "groups": g}),
        "conv_transpose2d": (
            (2 * g, 3, 3, 2),
            (p, s - 1, s, d),
            {"padding": p, "output_padding": s - 1, "stride": s, "dilation": d},
        ),
    }
    for method, (shape, numbers, named) in calls.items():
        kernel = rng.standard_normal(shape).astype(dtype)
        a, b = torch.tensor(x, requires_grad=True), torch.tensor(kernel, requires_grad=True)
        y = getattr(torch.nn.functional, method)(a, b, **named)
        wants = torch.autograd.grad(y, (a, b), torch.tensor(weights(*y.shape).astype(dtype)))
        got = gradients(Tensor, method, x, kernel, *numbers)
        for array, want in zip(got, (y.detach(), *wants)):
            # Float32 sums of some hundred terms of size 3, in another order.
            near = Tolerance(1e-10, 1e-10) if dtype == "float64" else Tolerance(1e-4, 1e-3)
            assert_near(array, want.numpy(), near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_added_up_in_float32(kind: Any, dtype: DType) -> None:
    """4096 ones: a sum in float16 or bfloat16 would stop at 2048 or 256."""
    x, kernel = kind.ones((1, 1, 64, 64), dtype), kind.ones((1, 1, 64, 64), dtype)
    assert float(x.conv2d(kernel, 0, 1, 1, 1)) == 4096.0
    assert float(kind.ones((1, 4096, 1), dtype).conv1d(kind.ones((1, 4096, 1), dtype), 0, 1, 1, 1)) == 4096.0
    spread = kind.ones((1, 4096, 1), dtype).conv_transpose1d(kind.ones((4096, 1, 1), dtype), 0, 0, 1, 1, 1)
    assert (float(spread), spread.dtype) == (4096.0, dtype)
    w = Var.ones((1, 1, 1, 1), dtype, Device.Cpu)
    grad = Tensor.ones((1, 1, 64, 64), dtype, Device.Cpu).conv2d(w, 0, 1, 1, 1).backward()[w]
    assert (float(grad), grad.dtype) == (4096.0, dtype)


def test_float64_is_float64() -> None:
    """MLX's own convolution computes it in float32 on the CPU."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 5, 6, 7)), rng.standard_normal((4, 5, 3, 3))
    got = Tensor.new(x, Device.Cpu).conv2d(Tensor.new(w, Device.Cpu), 1, 1, 1, 1)
    assert got.dtype is DType.F64
    assert np.abs(got.numpy() - loops(x, w, 1, 1, 1, 1)).max() < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_the_algorithm_is_taken_and_ignored(kind: Any) -> None:
    x, k = kind.new(values(1, 2, 6)), kind.new(values(3, 2, 3))
    plain = x.conv1d(k, 1, 2, 1, 1)
    for algo in ("Gemm", None, 3):
        np.testing.assert_array_equal(x.conv1d_with_algo(k, 1, 2, 1, 1, algo).numpy(), plain.numpy())
    x, k = kind.new(values(1, 2, 4, 4)), kind.new(values(3, 2, 3, 2))
    named = x.conv2d_with_algo(k, padding=1, stride=2, dilation=1, groups=1, cudnn_fwd_algo="Fft")
    np.testing.assert_array_equal(named.numpy(), x.conv2d(k, 1, 2, 1, 1).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_nothing_out(kind: Any) -> None:
    x = kind.zeros((0, 2, 5, 5), "f32")
    assert x.conv2d(kind.zeros((3, 2, 3, 3), "f32"), 0, 1, 1, 1).numpy().shape == (0, 3, 3, 3)
    no_channels = kind.zeros((2, 0, 5), "f32").conv1d(kind.zeros((3, 0, 2), "f32"), 0, 1, 1, 1)
    np.testing.assert_array_equal(no_channels.numpy(), np.zeros((2, 3, 4)))
    # No elements, but zeros around them.
    padded = kind.zeros((1, 2, 0), "f32").conv1d(kind.ones((1, 2, 2), "f32"), 1, 1, 1, 1)
    np.testing.assert_array_equal(padded.numpy(), np.zeros((1, 1, 1)))
    w = Var.ones((3, 2, 3, 3))
    assert Tensor.zeros((0, 2, 5, 5)).conv2d(w, 0, 1, 1, 1).backward()[w].numpy().sum() == 0.0


def test_nan_and_infinity_stay_where_the_kernel_reaches() -> None:
    x = np.zeros((1, 1, 9), np.float32)
    x[0, 0, 4] = np.inf
    got = Tensor.new(x).conv1d(Tensor.new(np.ones((1, 1, 3), np.float32)), 1, 1, 1, 1).numpy()[0, 0]
    assert got.tolist() == [0, 0, 0, np.inf, np.inf, np.inf, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_convolved_as_their_copies_are(kind: Any) -> None:
    x = kind.new(values(4, 6, 3, 2)).permute((3, 2, 0, 1))
    kernel = kind.new(values(3, 4, 5, 3)).transpose(1, 3).narrow(3, 1, 2)
    assert (tuple(x.shape), tuple(kernel.shape)) == ((2, 3, 4, 6), (3, 3, 5, 2))
    want = loops(x.numpy(), kernel.numpy(), 1, 1, 1, 1)
    assert_near(x.conv2d(kernel, 1, 1, 1, 1).numpy(), want, VALUE[DType.F32])


REFUSED_1D = [
    ((2, 3, 8), (4, 2, 3), (0, 1, 1, 1), r"conv1d: got input \(2, 3, 8\), kernel \(4, 2, 3\), .* into 1 groups"),
    ((2, 4, 8), (3, 2, 3), (0, 1, 1, 2), "into 2 groups"),
    ((2, 3, 2), (4, 3, 3), (0, 1, 1, 1), r"padded by 0, is no smaller than \(3,\)"),
    ((2, 3, 4), (4, 3, 3), (0, 1, 3, 1), r"no smaller than \(7,\)"),
    ((2, 3, 4), (4, 3, 0), (0, 1, 1, 1), "a kernel of 1 or more"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("x", "kernel", "numbers", "text"), REFUSED_1D)
def test_conv1d_refuses_what_does_not_fit_when_recorded(
    x: Any, kernel: Any, numbers: Any, text: str, kind: Any
) -> None:
    with pytest.raises(mc.error.Conv1dInvalidArgsError, match=text) as caught:
        kind.zeros(x, "f32").conv1d(kind.zeros(kernel, "f32"), *numbers)
    assert (caught.value.inp_shape, caught.value.k_shape) == (x, kernel)
    # The same of two dims.
    with pytest.raises(mc.error.ShapeMismatchBinaryOpError, match="conv2d: got shapes"):
        kind.zeros((*x, x[2]), "f32").conv2d(kind.zeros((*kernel, kernel[2]), "f32"), *numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_transposes_refuse_what_does_not_fit_when_recorded(kind: Any) -> None:
    def zeros(*shape: int) -> Any:
        return kind.zeros(shape, "f32")

    for x, kernel, numbers, text in [
        (zeros(1, 3, 4), zeros(2, 1, 3), (0, 0, 1, 1, 1), r"takes \(b, c_in, …\) and \(c_in, c_out / groups, …\)"),
        (zeros(1, 3, 4), zeros(3, 1, 3), (0, 0, 1, 1, 2), "into 2 groups"),
        (zeros(1, 3, 2), zeros(3, 1, 2), (2, 0, 1, 1, 1), r"leave a result; with padding 2 it is \(-1,\)"),
        (zeros(1, 3, 0), zeros(3, 1, 2), (0, 0, 1, 1, 1), "leave a result"),
    ]:
        with pytest.raises(mc.error.Conv1dInvalidArgsError, match=text):
            x.conv_transpose1d(kernel, *numbers)
    with pytest.raises(mc.error.ShapeMismatchError, match="conv_transpose2d: got shapes"):
        zeros(1, 3, 4, 4).conv_transpose2d(zeros(2, 1, 3, 3), 0, 0, 1, 1)
    with pytest.raises(mc.error.ShapeMismatchError, match="leave a result"):
        zeros(1, 2, 1, 4).conv_transpose2d(zeros(2, 1, 1, 1), 1, 0, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_dtypes_and_numbers_are_refused_when_recorded(kind: Any) -> None:
    x, k = kind.zeros((1, 2, 5), "f32"), kind.zeros((3, 2, 3), "f32")
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match="conv2d: got rank 3"):
        x.conv2d(k, 0, 1, 1, 1)
    with pytest.raises(mc.error.UnexpectedNumberOfDimsError, match=r"conv1d: kernel: got rank 2"):
        x.conv1d(k.reshape((6, 3)), 0, 1, 1, 1)
    with pytest.raises(mc.error.DTypeMismatchBinaryOpError, match="conv1d: dtypes differ, lhs f32, rhs f16"):
        x.conv1d(k.to_dtype("f16"), 0, 1, 1, 1)
    with pytest.raises(mc.error.UnsupportedDTypeForOpError, match="conv_transpose1d: got dtype u32"):
        x.to_dtype("u32").conv_transpose1d(k.to_dtype("u32"), 0, 0, 1, 1, 1)
    for numbers, text in [
        ((-1, 1, 1, 1), "padding -1"),
        ((0, 0, 1, 1), "stride 0"),
        ((0, 1, 0, 1), "dilation 0"),
        ((0, 1, 1, 0), "groups 0"),
        ((0, 1.5, 1, 1), "stride 1.5"),
    ]:
        expected = mc.error.ArgumentTypeError if "1.5" in text else mc.error.ShapeMismatchError
        with pytest.raises(expected, match=f"conv1d: got {text}"):
            x.conv1d(k, *numbers)
    with pytest.raises(mc.error.ShapeMismatchError, match="takes sizes up to"):
        x.conv1d(k, 10**12, 1, 1, 1)
    with pytest.raises(mc.error.ShapeMismatchError, match="output_padding -1"):
        x.conv_transpose1d(k, 0, -1, 1, 1, 1)
    with pytest.raises(TypeError, match="5 arguments"):
        x.conv1d(k)


PLAIN = differentiated_by_mlx("definition", kernels.conv.reference)
PLAIN_TRANSPOSED = differentiated_by_mlx("definition", kernels.conv_transpose.reference)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_every_variant_is_the_definition(case: Any) -> None:
    """Also MLX's convolution, which is chosen on a GPU: what it computes does not depend on the device."""
    groups = case["groups"]
    x = mx.random.normal((max(case["batch"], 1), groups * case["inner"], *case["size"]), key=mx.random.key(0))
    numbers = (case["padding"], case["stride"], case["dilation"], groups)
    k = mx.random.normal((groups * case["outer"], case["inner"], *case["k"]), key=mx.random.key(1))
    windows = kernels.windows_of(case["k"], *numbers[:3])
    if min(windows.count(case["size"])) > 0:
        _agree(PLAIN, [kernels.COLUMNS, kernels.MLX], x, k, numbers)
    turned = mx.random.normal((groups * case["inner"], case["outer"], *case["k"]), key=mx.random.key(2))
    numbers = (case["padding"], case["output_padding"], *numbers[1:])
    if min(kernels.transposed_size(case["size"], windows, case["output_padding"])) > 0:
        _agree(PLAIN_TRANSPOSED, [kernels.TRANSPOSED_COLUMNS, kernels.TRANSPOSED_MLX], x, turned, numbers)


def _agree(definition: Variant, variants: list[Variant], x: mx.array, kernel: mx.array, numbers: Any) -> None:
    (want,) = definition.forward(x, kernel, *numbers)
    upstream = mx.random.normal(want.shape, key=mx.random.key(3))
    wants = definition.vjp(upstream, (x, kernel), (want,), (True, True), *numbers)
    for variant in variants:
        found = variant.forward(x, kernel, *numbers)
        grads = variant.vjp(upstream, (x, kernel), found, (True, True), *numbers)
        for got, expected in zip((*found, *grads), (want, *wants)):
            assert got is not None
            assert expected is not None
            # Float32 sums of up to some hundred terms of size 1.
            assert_near(np.array(got), np.array(expected), Tolerance(1e-4, 1e-4))


@pytest.mark.parametrize("piece", [1, 200, 700])
def test_in_pieces_as_in_one(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches are worked on some samples at a time."""
    x, w, t = values(5, 4, 6, 5), values(6, 2, 3, 3), values(4, 3, 3, 2)
    whole = [gradients(Tensor, "conv2d", x, w, 1, 2, 1, 2), gradients(Tensor, "conv_transpose2d", x, t, 1, 0, 2, 1)]
    monkeypatch.setattr(kernel_windows, "PIECE", piece)
    parts = [gradients(Tensor, "conv2d", x, w, 1, 2, 1, 2), gradients(Tensor, "conv_transpose2d", x, t, 1, 0, 2, 1)]
    for a, b in zip(itertools.chain(*whole), itertools.chain(*parts)):
        assert_near(b, a, VALUE[DType.F64])


@pytest.mark.parametrize("numbers", [(1, 1, 1, 1), (0, 2, 1, 1), (2, 1, 2, 1), (1, 1, 1, 2)])
def test_values_and_gradients_whichever_way_they_are_multiplied(numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input's as a convolution or not, the kernel's, and the result, in one product or one for each image."""
    x, w = values(5, 4, 6, 5), values(6, 4 // numbers[3], 3, 3)
    found = []
    for wider, few, small in ((0, 10**9, 0), (10**9, 0, 10**9)):
        monkeypatch.setattr(kernels, "WIDER", wider)
        monkeypatch.setattr(kernels, "FEW", few)
        monkeypatch.setattr(kernels, "SMALL", small)
        found.append(gradients(Tensor, "conv2d", x, w, *numbers))
    for a, b in zip(*found):
        assert_near(b, a, VALUE[DType.F64])


def test_the_definition_can_be_chosen() -> None:
    x, w = values(2, 3, 5, 4), values(2, 3, 3, 2)
    fast = gradients(LazyTensor, "conv2d", x, w, 1, 2, 1, 1)
    with mc.settings.KERNELS.override("reference"):
        plain = gradients(LazyTensor, "conv2d", x, w, 1, 2, 1, 1)
        assert kernels.conv.last is not None
        assert kernels.conv.last[0] == "reference"
    for a, b in zip(fast, plain):
        assert_near(a, b, VALUE[DType.F64])
