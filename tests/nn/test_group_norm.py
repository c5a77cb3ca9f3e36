"""``GroupNorm``: values against NumPy and ``mlx.nn``, gradients, errors."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, nn

import mlx.core as mx
import mlx.nn as mlx_nn
import numpy as np
import pytest
from checking import assert_slopes, check, check_dtypes, normal
from tolerance import VALUE, assert_near

EPS = 1e-5
KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
GROUPS = [((2, 6, 5), 2), ((1, 6, 1), 6), ((3, 4, 3, 5), 1), ((2, 4, 2, 3, 2), 2), ((0, 4, 3), 2), ((2, 4, 0), 2)]


def group_normed(x: Any, weight: Any, bias: Any, groups: int) -> Any:
    rows = x.reshape(x.shape[0], groups, -1 if x.size else 0)
    centred = rows - (rows.mean(-1, keepdims=True) if x.size else 0)
    variance = (centred**2).mean(-1, keepdims=True) if x.size else 1
    column = (-1, *(1,) * (x.ndim - 2))
    return (centred / np.sqrt(variance + EPS)).reshape(x.shape) * weight.reshape(column) + bias.reshape(column)


def given(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    return normal(*shape) + 0.5, normal(shape[1], seed=1), normal(shape[1], seed=2)


@pytest.mark.parametrize(("shape", "groups"), GROUPS)
def test_values(shape: tuple[int, ...], groups: int) -> None:
    check_dtypes(
        lambda x, w, b: nn.GroupNorm(w, b, shape[1], groups, EPS)(x),
        given(shape),
        lambda x, w, b: group_normed(x, w, b, groups),
    )


@KINDS
def test_of_a_view(kind: Any) -> None:
    x, weight, bias = normal(5, 4, 2), normal(4), normal(4, seed=1)
    layer = nn.GroupNorm(Tensor(weight), Tensor(bias), 4, 2, EPS)
    got = layer(kind.new(x).transpose(0, 2)).numpy()
    assert_near(got, group_normed(x.transpose(2, 1, 0), weight, bias, 2), VALUE[DType.F32])


def test_slopes() -> None:
    assert_slopes(lambda x, w, b: nn.GroupNorm(w, b, 4, 2, EPS)(x), *given((2, 4, 3)))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_mlx(groups: int) -> None:
    x, weight, bias = given((2, 6, 4, 3))
    theirs = mlx_nn.GroupNorm(groups, 6, EPS, pytorch_compatible=True)
    theirs.weight, theirs.bias = mx.array(weight), mx.array(bias)
    want = np.array(theirs(mx.array(x.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
    check(nn.GroupNorm(Tensor(weight), Tensor(bias), 6, groups, EPS), (x,), want)


PUBLISHED = """
    -0.3034 0.2726 -0.9659  -1.1845 -1.3236 0.0172  1.9507 1.2554 -0.8625
    1.0682 0.3604 0.3985  -0.4957 -0.4461 -0.9721  1.5157 -0.1546 -0.5596
    -1.6698 -0.4040 -0.7927  0.3736 -0.0975 -0.1351  -0.9461 0.5461 -0.6334
    -1.0919 -0.1158 0.1213  -0.9535 0.1281 0.4372  -0.2845 0.3488 0.5641
"""
OF_TWO = """
    -0.1653 0.3748 -0.7866  -0.9916 -1.1220 0.1353  1.9485 1.2965 -0.6896
    1.2769 0.3628 0.4120  -0.7427 -0.6786 -1.3578  1.8547 -0.3022 -0.8252
    -1.9342 0.0211 -0.5793  1.2223 0.4945 0.4365  -0.8163 1.4887 -0.3333
    -1.7960 -0.0392 0.3875  -1.5469 0.3998 0.9561  -0.3428 0.7970 1.1845
"""
OF_THREE = """
    0.4560 1.4014 -0.6313  -0.9901 -1.2184 0.9822  1.4254 0.6360 -1.7682
    0.4235 -0.3800 -0.3367  -0.3890 -0.3268 -0.9862  2.1325 0.0386 -0.4691
    -1.8797 0.0777 -0.5234  1.2802 0.5517 0.4935  -1.0102 1.5327 -0.4773
    -1.2587 0.4047 0.8088  -1.9074 0.1691 0.7625  -0.6230 0.5928 1.0061
"""


@KINDS
@pytest.mark.parametrize(("groups", "want"), [(2, OF_TWO), (3, OF_THREE)])
def test_published(kind: Any, groups: int, want: str) -> None:
    """The figures of candle's own tests, which are PyTorch's."""
    x, figures = (np.array(text.split(), np.float32).reshape(2, 6, 3) for text in (PUBLISHED, want))
    layer = nn.GroupNorm.new(Tensor.ones((6,), "f32"), Tensor.zeros((6,), "f32"), 6, groups, EPS)
    # Given with four decimals, which may end on either side of a half.
    np.testing.assert_allclose(layer(kind.new(x)).numpy(), figures, rtol=0, atol=5.1e-5)


def test_from_a_builder() -> None:
    variables = nn.VarMap()
    layer = nn.group_norm(2, 6, 1e-4, nn.VarBuilder.from_varmap(variables, "f32").pp("norm"))
    assert (layer.num_groups(), layer.num_channels(), layer.eps()) == (2, 6, 1e-4)
    assert (layer.weight().to_vec1(), layer.bias().to_vec1()) == ([1.0] * 6, [0.0] * 6)
    assert list(variables.data()) == ["norm.weight", "norm.bias"]
    grads = layer(Tensor(normal(2, 6, 3))).sqr().sum_all().backward()
    assert len(grads) == 2


@KINDS
def test_refuses(kind: Any) -> None:
    row = Tensor(normal(6))
    layer = nn.GroupNorm(row, row, 6, 2, EPS)
    with pytest.raises(ValueError, match=r"^group_norm: got rank 2, shape \(2, 6\); takes rank 3 or more$"):
        layer(kind.new(normal(2, 6)))
    with pytest.raises(ValueError, match=r"^group_norm: got shapes \(2, 4, 3\) and \(6,\); takes \(b, 6, …\) and weig"):
        layer(kind.new(normal(2, 4, 3)))
    with pytest.raises(TypeError, match="dtypes differ, lhs f16, rhs f32"):
        layer(kind.new(normal(2, 6, 3)).to_dtype("f16"))
    for groups in (4, 0):
        with pytest.raises(ValueError, match=rf"^group_norm: got {groups} groups for 6 channels; takes a number of gr"):
            nn.GroupNorm(row, row, 6, groups, EPS)
    with pytest.raises(ValueError, match=r"^group_norm: got weight of shape \(6,\); takes \(4,\)$"):
        nn.GroupNorm(row, row, 4, 2, EPS)
