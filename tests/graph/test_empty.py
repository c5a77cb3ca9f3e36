"""Arrays without elements, from wherever they come: sums and products of nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var
from metal_candle.graph.node import record
from metal_candle.graph.operation import Operation
from metal_candle.graph.operations.fused import AddLoRA, LoRA
from metal_candle.graph.operations.linalg import Linear, Matmul
from metal_candle.graph.operations.norm import WeightedRMSNorm

import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (2, 0, 3), (0, 0)])
def test_nothing_from_numpy_or_mlx_adds_up_to_zero(kind: Any, shape: tuple[int, ...]) -> None:
    # MLX alone gives other numbers here, or none for a long time.
    for dtype in (DType.U8, DType.F16, DType.F32, DType.F64):
        array = np.zeros(shape, str(dtype.mlx()).rpartition(".")[2])
        with mx.stream(mx.cpu):
            made = mx.array(array)
        for tensor in (kind.new(array, "cpu"), kind.from_mlx(made, "cpu"), kind.new(array.tolist(), "cpu", dtype)):
            for _ in range(5):
                # Numbers in the memory that is handed out next.
                mx.eval([mx.full((n,), 7.0) for n in range(1, 9)])
                assert tensor.sum_all().to_scalar() == 0
                assert np.all(tensor.sum_keepdim(tuple(range(tensor.rank))).numpy() == 0)
                assert np.all(tensor.sum(-1).numpy() == 0)
                if dtype.is_float():
                    assert np.isnan(tensor.mean_all().to_scalar())
                    assert tensor.norm().to_scalar() == 0


# Of each product the names of its dims, its definition and, from a cotangent and the inputs, its gradients.
Product = tuple[Operation, tuple[str, ...], Callable[..., Any], Callable[..., list[Any]]]


def _rows(x: Any) -> Any:
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


def _of_linear(g: Any, x: Any, w: Any) -> list[Any]:
    return [g @ w, _rows(g).T @ _rows(x)]


def _of_lora(g: Any, x: Any, a: Any, b: Any) -> list[Any]:
    at_rank = g @ b.T
    return [at_rank @ a.T, _rows(x).T @ _rows(at_rank), _rows(x @ a).T @ _rows(g)]


PRODUCTS: dict[str, Product] = {
    "matmul": (
        Matmul(),
        ("bmk", "kn"),
        lambda x, w: x @ w,
        lambda g, x, w: [g @ w.T, _rows(x).T @ _rows(g)],
    ),
    "batched": (
        Matmul(),
        ("bmk", "bkn"),
        lambda x, w: x @ w,
        lambda g, x, w: [g @ w.swapaxes(1, 2), x.swapaxes(1, 2) @ g],
    ),
    "linear": (Linear(), ("bmk", "nk"), lambda x, w: x @ w.T, _of_linear),
    "lora": (LoRA(1.0), ("bmk", "kr", "rn"), lambda x, a, b: x @ a @ b, _of_lora),
    "add_lora": (
        AddLoRA(1.0),
        ("bmn", "bmk", "kr", "rn"),
        lambda y, x, a, b: y + x @ a @ b,
        lambda g, y, x, a, b: [g, *_of_lora(g, x, a, b)],
    ),
}


def _with_a_size_of_0() -> Iterator[Any]:
    for name, (_, dims, _, _) in PRODUCTS.items():
        for empty in sorted(set("".join(dims))):
            yield pytest.param(name, empty, id=f"{name}-{empty}")


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize(("name", "empty"), list(_with_a_size_of_0()))
def test_products_with_a_dim_of_size_0_and_their_gradients(name: str, empty: str, lazy: bool) -> None:
    operation, dims, definition, gradients = PRODUCTS[name]
    sizes = {"b": 2, "m": 3, "k": 4, "n": 5, "r": 2} | {empty: 0}
    shapes = [tuple(sizes[dim] for dim in names) for names in dims]
    # Small whole numbers: every sum is exact.
    arrays = [np.random.default_rng(i).integers(-3, 4, shape).astype(np.float32) for i, shape in enumerate(shapes)]
    for dtype in (DType.F32, DType.BF16):
        variables = [Var.from_tensor(Tensor.new(array, "cpu").to_dtype(dtype)) for array in arrays]
        operands: list[Any] = [LazyTensor.from_tensor(var) for var in variables] if lazy else list(variables)
        result = operands[0]._wrap(record(operation, tuple(operand._node for operand in operands)))
        want = definition(*arrays)
        assert (tuple(result.shape), result.dtype) == (want.shape, dtype)
        np.testing.assert_array_equal(result.to_dtype(DType.F32).numpy(), want)
        found = result.backward()
        for var, expected in zip(variables, gradients(np.ones_like(want), *arrays), strict=True):
            gradient = found[var].to_dtype(DType.F32).numpy()
            assert gradient.shape == expected.shape
            np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_a_norm_of_nothing_and_its_gradients(shape: tuple[int, ...]) -> None:
    x, weight = Var.ones(shape, DType.F32, "cpu"), Var.ones(shape[-1:], DType.F32, "cpu")
    result = x._wrap(record(WeightedRMSNorm(1e-5), (x._node, weight._node)))
    assert tuple(result.shape) == shape == result.numpy().shape
    found = result.backward()
    assert found[x].numpy().shape == shape
    np.testing.assert_array_equal(found[weight].numpy(), np.zeros(shape[-1]))
