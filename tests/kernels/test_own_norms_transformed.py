"""Norms by our programs under MLX's transformations, and their gradients against central differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metal_candle.kernels import custom
from metal_candle.kernels.add_layer_norm import add_layer_norm
from metal_candle.kernels.add_rms_norm import add_rms_norm

import emulator
import mlx.core as mx
import numpy as np
import pytest
from exporting import Exporting
from launched import BACKWARD, FORWARD, assert_near, launched, normal
from norm_cases import EPS, NORMS, Norm

norms = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))
F32 = mx.float32


def loss(function: Any, *arrays: mx.array) -> mx.array:
    """A number that every element of every result has another share in."""
    found = function(*arrays, EPS)
    results = found if isinstance(found, tuple) else (found,)
    return sum((mx.sum(r * normal(*r.shape, key=50 + i)) for i, r in enumerate(results)), mx.array(0.0))


@norms
def test_grad_checkpoint_and_second_derivatives(device: str, norm: Norm) -> None:
    inputs = norm.operands((4, 33), F32)
    launched(norm.kernel, inputs, EPS)
    places = tuple(range(len(inputs)))

    def ours(*arrays: mx.array) -> mx.array:
        return loss(norm.kernel, *arrays)

    def plain(*arrays: mx.array) -> mx.array:
        return loss(norm.kernel.reference, *arrays)

    def curved(function: Any) -> Any:
        return lambda *arrays: mx.sum(mx.square(mx.grad(function)(*arrays)))

    wanted = mx.grad(plain, places)(*inputs)
    for function in (ours, mx.checkpoint(ours)):
        for got, want in zip(mx.grad(function, places)(*inputs), wanted):
            assert_near(got, want, BACKWARD[F32])
    for got, want in zip(mx.grad(curved(ours), places)(*inputs), mx.grad(curved(plain), places)(*inputs)):
        assert_near(got, want, BACKWARD[F32])


@norms
def test_tangents(device: str, norm: Norm) -> None:
    inputs = norm.operands((4, 33), F32)
    along = [normal(*x.shape, key=30 + i) for i, x in enumerate(inputs) if x is not None]

    def results(function: Any) -> Any:
        def listed(*arrays: mx.array) -> list[mx.array]:
            found = function(*arrays, EPS)
            return list(found) if isinstance(found, tuple) else [found]

        return listed

    ours, plain = results(norm.kernel), results(norm.kernel.reference)
    for got, want in zip(mx.jvp(ours, inputs, along)[1], mx.jvp(plain, inputs, along)[1]):
        assert_near(got, want, BACKWARD[F32])


@norms
def test_gradients_against_central_differences(device: str, norm: Norm) -> None:
    """Of the definition in float64, whose slope is good to 1e-9: what is left is float32's."""
    inputs = norm.operands((2, 5), F32)
    wide = [np.array(x, np.float64) for x in inputs]
    shares = [np.array(normal(2, 5, key=50 + i), np.float64) for i in range(norm.kernel.results)]

    def exact(values: Sequence[Any]) -> float:
        total = values[0] + values[1] if norm.tensors == 2 else values[0]
        rows = values[norm.tensors :]
        centred = total - total.mean(-1, keepdims=True) if norm.rows == 2 else total
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * rows[0]
        results = [total, normed + rows[1] if norm.rows == 2 else normed][2 - norm.kernel.results :]
        return float(sum((share * result).sum() for share, result in zip(shares, results)))

    found = mx.grad(lambda *arrays: loss(norm.kernel, *arrays), tuple(range(len(inputs))))(*inputs)
    for i, gradient in enumerate(found):
        slope = np.zeros_like(wide[i])
        for place in np.ndindex(*slope.shape):
            moved = [value.copy() for value in wide]
            moved[i][place] += 1e-5
            above = exact(moved)
            moved[i][place] -= 2e-5
            slope[place] = (above - exact(moved)) / 2e-5
        assert_near(gradient, mx.array(slope.astype(np.float32)), BACKWARD[F32])


@pytest.mark.parametrize("norm", [NORMS["add_rms"], NORMS["add_layer"]], ids=["add_rms", "add_layer"])
@pytest.mark.parametrize("unused", [0, 1])
def test_a_result_that_the_loss_does_not_use(device: str, norm: Norm, unused: int) -> None:
    """Its cotangent is ``None`` in our own reverse mode, and 0 in MLX's."""
    inputs = norm.operands((3, 12), F32)
    outputs = norm.kernel.forward(*inputs, EPS)
    g = normal(3, 12, key=9)
    needs = [True] * len(inputs)
    cotangents = (None, g) if unused == 0 else (g, None)
    found = norm.kernel.vjp(cotangents, inputs, outputs, needs, EPS)
    wanted = norm.kernel.vjp(
        tuple(mx.zeros_like(g) if c is None else c for c in cotangents), inputs, outputs, needs, EPS
    )
    by_mlx = mx.grad(lambda *a: mx.sum(norm.kernel(*a, EPS)[1 - unused] * g), tuple(range(len(inputs))))(*inputs)
    for got, want, its in zip(found, wanted, by_mlx):
        assert want is not None
        assert_near(its, want, BACKWARD[F32])
        assert_near(mx.zeros_like(want) if got is None else got, want, BACKWARD[F32])
    # Nobody asked for a gradient of the rows: none is made.
    only = norm.kernel.vjp(cotangents, inputs, outputs, [True, False, *[False] * norm.rows], EPS)
    assert [gradient is None for gradient in only] == [False, *[True] * (len(inputs) - 1)]


@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="a GPU computes it")
@pytest.mark.parametrize("norm", [NORMS["add_rms"], NORMS["add_layer"]], ids=["add_rms", "add_layer"])
def test_it_can_be_exported_without_a_gpu(tmp_path: Path, norm: Norm) -> None:
    """Its forward half: MLX exports no function with a gradient of its own."""
    path = tmp_path / "norm.mlxfn"
    with custom.using(Exporting()):
        given = norm.operands((4, 33), mx.float16)
        mx.export_function(str(path), lambda *arrays: list(norm.kernel.forward(*arrays, EPS)), *given)
    assert norm.kernel.last == ("one launch", "metal: unmeasured: 1 launch and 4 passes over the rows to 2 and 5")
    assert b"CustomKernel" in path.read_bytes()


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_whatever_runs_first(order: Any) -> None:
    """Sums over a simdgroup and over several, in rows that end within a threadgroup, whichever thread comes first."""
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    for norm in NORMS.values():
        for shape in ((5, 301), (2, 1000)):
            inputs = norm.operands(shape, mx.bfloat16)
            assert norm.kernel.own is not None
            with custom.using(emulator.Emulator(order, seed=3)):
                found = norm.kernel.own.forward(*inputs, EPS)
            wanted = norm.kernel.reference(*inputs, EPS)
            for got, want in zip(found, wanted if isinstance(wanted, tuple) else (wanted,)):
                assert_near(got, want, FORWARD[mx.bfloat16])


def test_apart_is_the_sum_and_the_norm_bit_for_bit() -> None:
    """Where nothing of ours is launched: on the CPU, and by MLX's norm on a GPU."""
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        for rows in (4, 700):
            x, residual, weight, bias = NORMS["add_layer"].operands((rows, 96), dtype)
            total = x + residual
            for kernel, beside in ((add_rms_norm, (weight,)), (add_layer_norm, (weight, bias))):
                norm = NORMS["rms" if kernel is add_rms_norm else "layer"].kernel
                found = kernel.forward(x, residual, *beside, EPS)
                assert mx.array_equal(found[0], total)
                assert mx.array_equal(found[1], norm.forward(total, *beside, EPS)[0])


def test_shapes_that_are_broadcast_are_added_by_mlx() -> None:
    x, residual = normal(4, 12), normal(12, key=1)
    total, normed = add_rms_norm(x, residual, None, EPS)
    assert add_rms_norm.last == ("reference", "the shapes are broadcast")
    assert math.prod(total.shape) == math.prod(normed.shape) == 48
    gradient = mx.grad(lambda r: mx.sum(add_rms_norm(x, r, None, EPS)[0]))(residual)
    np.testing.assert_array_equal(np.array(gradient), 4)
