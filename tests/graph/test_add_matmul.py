"""``AddMatmul``: a product added to something in one call, and where one call is the slower."""

from __future__ import annotations

from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor, Var
from metal_candle.graph.operations.add_matmul import AddMatmul
from metal_candle.kernels import add_matmul as module
from metal_candle.kernels.add_matmul import add_matmul, slower
from metal_candle.kernels.kernel import on_cpu

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import VALUE, assert_near

cpu_only = pytest.mark.skipif(not on_cpu(), reason="the rule was measured on a CPU")


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def recorded(a: Any, b: Any, c: Any, alpha: float = 1.0, beta: float = 1.0) -> Any:
    return a._record(AddMatmul(alpha, beta), b, c)


@st.composite
def operands(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Shapes that fit: leading dims of either factor, and dims of c, left out or 1 at random."""
    leading = draw(st.lists(st.integers(1, 3), max_size=2))
    m, k, n = (draw(st.integers(0, 9)) for _ in range(3))

    def part(dims: list[int]) -> tuple[int, ...]:
        kept = dims[draw(st.integers(0, len(dims))) :]
        return tuple(1 if draw(st.booleans()) else dim for dim in kept)

    a, b = (*part(leading), m, k), (*part(leading), k, n)
    product = np.broadcast_shapes(a[:-2], b[:-2])
    return a, b, part([*product, m, n])


@settings(deadline=None, max_examples=60)
@given(operands(), st.sampled_from([1.0, 0.5, -3.0]), st.sampled_from([1.0, 0.25]), st.sampled_from(["f32", "bf16"]))
def test_any_shapes_and_their_gradients(
    shapes: tuple[tuple[int, ...], ...], alpha: float, beta: float, dtype: str
) -> None:
    arrays = [mx.array(normal(*shape, seed=i)).astype(DType.of(dtype).mlx()) for i, shape in enumerate(shapes)]
    wide = [x.astype(mx.float32) for x in arrays]
    want = add_matmul.reference(*wide, alpha, beta)
    outputs = add_matmul.forward(*arrays, alpha, beta)
    assert outputs[0].shape == want.shape
    assert outputs[0].dtype == arrays[0].dtype
    tolerance = VALUE[DType.of(dtype)]
    assert_near(outputs[0].astype(mx.float32), want, tolerance._replace(absolute=5 * tolerance.absolute))
    if not want.size:
        return
    cotangent = mx.array(normal(*want.shape, seed=9))
    _, gradients = mx.vjp(lambda *x: add_matmul.reference(*x, alpha, beta), wide, [cotangent])
    got = add_matmul.vjp(cotangent.astype(arrays[0].dtype), arrays, outputs, (True,) * 3, alpha, beta)
    for own, plain, array in zip(got, gradients, arrays):
        assert own is not None
        assert (own.shape, own.dtype) == (array.shape, array.dtype)
        # Sums of up to 81 products of operands that were rounded.
        assert_near(own.astype(mx.float32), plain, tolerance._replace(absolute=40 * tolerance.absolute))


@pytest.mark.parametrize("c", [(40, 50), (50,), (40, 1), ()])
def test_float64_is_exact_to_its_last_digits(c: tuple[int, ...]) -> None:
    a, b = (np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate([(40, 30), (30, 50)]))
    added = np.random.default_rng(2).standard_normal(c)
    got = recorded(*(Tensor.new(x, Device.Cpu) for x in (a, b, added)), 0.1, 0.3)
    assert got.dtype is DType.F64
    # alpha and beta rounded to float32 would be off by 1e-8.
    assert_near(got.numpy(), 0.1 * (a @ b) + 0.3 * added, VALUE[DType.F64]._replace(relative=1e-13, absolute=1e-13))


@pytest.mark.parametrize("c", [(64, 96), (96,), (64, 1)])
@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16], ids=str)
def test_halves_are_rounded_once(dtype: DType, c: tuple[int, ...]) -> None:
    a, b, added = (
        Tensor.new(normal(*shape, seed=i)).to_dtype(dtype) for i, shape in enumerate([(64, 32), (32, 96), c])
    )
    wide = recorded(*(x.to_dtype(DType.F32) for x in (a, b, added)), 0.3, 0.7)
    want = wide.to_dtype(dtype).numpy().astype(np.float32)
    got = recorded(a, b, added, 0.3, 0.7).numpy().astype(np.float32)
    # Another order of the same float32 sum tips a rounding now and then.
    assert np.mean(got != want) < 0.01


def test_gradients_in_a_graph() -> None:
    a, b, c = (Var(normal(*shape, seed=i)) for i, shape in enumerate([(2, 5, 4), (4, 3), (3,)]))
    both = [
        LazyTensor.from_tensor(a)._record(AddMatmul(0.5, 2.0), LazyTensor.from_tensor(b), LazyTensor.from_tensor(c)),
        LazyTensor.from_tensor(a).broadcast_matmul(b) * 0.5 + LazyTensor.from_tensor(c).broadcast_as((2, 5, 3)) * 2.0,
    ]
    assert_near(both[0].numpy(), both[1].numpy(), VALUE[DType.F32])
    own, plain = (result.sqr().sum_all().backward() for result in both)
    for variable in (a, b, c):
        tolerance = VALUE[DType.F32]._replace(absolute=1e-4)
        assert_near(own[variable].numpy(), plain[variable].numpy(), tolerance)


def test_refusals_when_recorded() -> None:
    a, b = LazyTensor.new(normal(5, 4)), LazyTensor.new(normal(4, 3))
    for bad in ((4,), (2, 5, 3), (5, 3, 1)):
        with pytest.raises(ValueError, match=r"add_matmul: got shapes .* and \(5, 3\); takes a c that broadcasts"):
            recorded(a, b, LazyTensor.new(normal(*bad)))
    with pytest.raises(ValueError, match=r"takes \(…, m, k\) and \(…, k, n\)"):
        recorded(a, a, LazyTensor.new(normal(3)))
    with pytest.raises(mc.Error, match=r"add_matmul: .*bf16"):
        recorded(a, b, LazyTensor.new(normal(3)).to_dtype("bf16"))


@cpu_only
@pytest.mark.parametrize(
    ("a", "b", "c", "dtype", "scales", "reason"),
    [
        ((128, 64), (64, 256), (128, 256), mx.float32, (), None),
        ((1, 64), (64, 256), (256,), mx.float32, (), None),
        ((128, 64), (64, 256), (256,), mx.float32, (), "one row added"),
        ((128, 64), (64, 256), (256,), mx.float32, (0.5,), "one row added"),
        ((2, 64, 64), (64, 256), (2, 64, 256), mx.float32, (), None),
        ((2, 64, 64), (2, 64, 256), (1, 64, 256), mx.float32, (), "some dims"),
        ((2, 64, 64), (1, 64, 256), (2, 64, 256), mx.float32, (), "repeated"),
        ((8, 64), (64, 64), (8, 64), mx.bfloat16, (), "fewer than 4096"),
        ((8, 64), (64, 64), (8, 64), mx.bfloat16, (2.0,), None),
        ((128, 64), (64, 64), (128, 64), mx.bfloat16, (), None),
        ((128, 64), (64, 64), (64,), mx.bfloat16, (), "one row"),
        ((128, 64), (64, 64), (64,), mx.bfloat16, (1.0, 2.0), "one row"),
        ((128, 64), (64, 64), (64,), mx.bfloat16, (0.5,), None),
        ((8, 64), (64, 64), (64,), mx.float16, (), "fewer than 1024"),
        ((128, 64), (64, 64), (64,), mx.float16, (), None),
        ((128, 64), (64, 64), (128, 64), mx.float64, (), "parts"),
        ((0, 64), (64, 0), (0, 0), mx.float32, (), None),
    ],
)
def test_the_measured_rule(
    a: Any, b: Any, c: Any, dtype: mx.Dtype, scales: tuple[float, ...], reason: str | None
) -> None:
    said = slower(a, b, c, dtype, *scales)
    assert said is None if reason is None else reason in str(said)
    add_matmul.choose(*(mx.zeros(shape, dtype) for shape in (a, b, c)), *scales)
    assert add_matmul.last is not None
    assert (add_matmul.last[0] == "mx.addmm") == (reason is None)
    metas = [LazyTensor.new(mx.zeros(shape, dtype), Device.Cpu)._node.meta for shape in (a, b, c)]
    assert AddMatmul(*(*scales, 1.0, 1.0)[:2]).slower(*metas) == said


def test_on_a_gpu_one_call_is_never_the_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_cpu", lambda: False)
    assert slower((128, 64), (64, 256), (256,), mx.float32) is None
    assert slower((2, 8, 4), (1, 4, 4), (8, 1), mx.bfloat16) is None
