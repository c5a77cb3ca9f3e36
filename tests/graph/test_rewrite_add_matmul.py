"""Products with what is added to them: layers, residuals, what is held, and where one call does not pay."""

from __future__ import annotations

from metal_candle import LazyTensor, Tensor, Var, features
from metal_candle.kernels.kernel import on_cpu
from metal_candle.nn.linear import Linear

import numpy as np
import pytest
from rewriting import applied, lowered

cpu_only = pytest.mark.skipif(not on_cpu(), reason="the rule was measured on a CPU")


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0, dtype: str = "f32") -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed, dtype=dtype))


def test_a_layer_with_a_bias_on_one_token() -> None:
    layer = Linear(tensor(24, 16), tensor(24, seed=1))
    y = layer.forward(lazy(1, 1, 16, seed=2))
    assert lowered(y) == ["transpose", "add_matmul"]
    want = tensor(1, 1, 16, seed=2).numpy() @ tensor(24, 16).numpy().T + tensor(24, seed=1).numpy()
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-5)


@cpu_only
@pytest.mark.parametrize(
    ("shapes", "dtype", "because"),
    [
        (((5, 13), (13, 7), (7,)), "f32", "one row added to more than 4 rows of float32"),
        (((5, 13), (13, 7), (5, 1)), "f32", "is repeated along some dims"),
        (((5, 13), (13, 7), (5, 7)), "bf16", "fewer than 4096 elements"),
        (((128, 13), (13, 64), (64,)), "bf16", "one row added to bfloat16"),
        (((5, 13), (13, 7), (5, 7)), "f64", "float64 is computed by parts"),
    ],
)
def test_where_one_call_is_slower_the_parts_stay(shapes: tuple[tuple[int, ...], ...], dtype: str, because: str) -> None:
    a, b, c = (lazy(*shape, dtype=dtype) for shape in shapes)
    y = a @ b + c
    names, reason = applied(y, rule="add_matmul")
    assert names == ["matmul", "add"]
    assert because in reason


def test_a_vector_through_a_layer_stays() -> None:
    layer = Linear(tensor(24, 16), tensor(24, seed=1))
    y = layer.forward(lazy(16))
    names, reason = applied(y, rule="add_matmul")
    assert names == ["linear", "add"]
    assert "[16] is a vector" in reason


def test_a_residual() -> None:
    x, up, down = lazy(5, 16), lazy(16, 24, seed=1), lazy(24, 16, seed=2)
    y = x + (x @ up).relu() @ down
    assert lowered(y) == ["matmul", "relu", "add_matmul"]
    want = x.numpy() + np.maximum(x.numpy() @ up.numpy(), 0) @ down.numpy()
    np.testing.assert_allclose(y.numpy(), want, rtol=0, atol=1e-4)


def test_two_products_added_are_one_call_each() -> None:
    y = lazy(5, 16) @ lazy(16, 7) + lazy(5, 9) @ lazy(9, 7)
    assert sorted(lowered(y)) == ["add_matmul", "matmul"]


def test_a_product_that_is_held_is_not_computed_twice() -> None:
    a, b, c = lazy(5, 13), lazy(13, 7), lazy(5, 7)
    product = a @ b
    y = product + c
    assert lowered(y) == ["matmul", "add"]
    del product
    assert lowered(y) == ["add_matmul"]


def test_a_scaled_summand_that_is_held_stays_one() -> None:
    a, b, c = lazy(5, 13), lazy(13, 7), lazy(5, 7)
    scaled = c * 2.0
    y = a @ b + scaled
    assert lowered(y) == ["affine", "add_matmul"]


def test_low_rank_updates_come_first() -> None:
    y = lazy(5, 16) + lazy(5, 16) @ lazy(16, 2) @ lazy(2, 16) * 0.5
    assert lowered(y) == ["add_lora"]


def test_gradients_through_a_layer() -> None:
    found = []
    for off in (False, True):
        weight, bias, x = (Var.from_tensor(tensor(*shape)) for shape in ((24, 16), (24,), (3, 16)))
        y = Linear(weight, bias).forward(LazyTensor.from_tensor(x)) * 0.5 + lazy(3, 24)
        if off:
            with features.disabled("rewrite"):
                grads = y.sqr().sum_all().backward()
        else:
            grads = y.sqr().sum_all().backward()
        found.append([grads[variable].numpy() for variable in (weight, bias, x)])
    for got, want in zip(*found):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_square_layer() -> None:
    """Its weight is transposed, though either way would fit."""
    weight, x, c = tensor(24, 24), tensor(3, 24, seed=1), tensor(3, 24, seed=2)
    y = Linear(weight).forward(LazyTensor.from_tensor(x)) * 0.5 + LazyTensor.from_tensor(c)
    assert [name for name in lowered(y) if name != "transpose"] == ["add_matmul"]
    want = 0.5 * x.numpy() @ weight.numpy().T + c.numpy()
    np.testing.assert_allclose(y.eval().numpy(), want, rtol=0, atol=1e-5)
