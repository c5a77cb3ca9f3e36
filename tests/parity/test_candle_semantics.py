"""What candle's tensors do where MLX's, NumPy's or PyTorch's would surprise a porter: ten things, lazy and eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var, error, nn

import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])
INF, NAN = float("inf"), float("nan")
FLOATS = [DType.BF16, DType.F16, DType.F32, DType.F64]
INTS = [DType.U8, DType.I16, DType.U32, DType.I32, DType.I64]


def of(kind: Any, data: Any, dtype: DType = DType.F32) -> Any:
    return kind.new(data, "cpu", dtype)


def values(tensor: Any) -> Any:
    return tensor.numpy().tolist()


def gradient(kind: Any, function: Callable[[Any], Any], *data: Any) -> Any:
    """The gradients of a function's sum, ``None`` where there is no path; of one variable not in a list."""
    variables = [Var.new(numbers, "cpu", DType.F32) for numbers in data]
    operands = [LazyTensor.from_tensor(var) if kind is LazyTensor else var for var in variables]
    grads = function(*operands).backward()
    found = [None if (g := grads.get(var)) is None else values(g) for var in variables]
    return found[0] if len(found) == 1 else found


# --- 1. No promotion, no broadcasting in named methods; numbers take the tensor's dtype -------

NAMED = ["add", "sub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"]


@KINDS
@pytest.mark.parametrize("name", NAMED)
def test_named_methods_want_equal_shapes_and_dtypes(kind: Any, name: str) -> None:
    x, row = of(kind, [[1.0, 2.0], [3.0, 4.0]]), of(kind, [1.0, 2.0])
    with pytest.raises(error.ShapeMismatchBinaryOpError, match=name):
        getattr(x, name)(row)
    for dtype in (DType.F16, DType.F64, DType.I64, DType.U8):
        with pytest.raises(error.DTypeMismatchError):
            getattr(x, name)(x.to_dtype(dtype))
        with pytest.raises(error.DTypeMismatchError):
            getattr(x, f"broadcast_{name}")(row.to_dtype(dtype))
    assert getattr(x, f"broadcast_{name}")(row).shape == (2, 2)
    with pytest.raises(error.ShapeMismatchBinaryOpError, match=f"broadcast_{name}"):
        getattr(x, f"broadcast_{name}")(of(kind, [1.0, 2.0, 3.0]))


@KINDS
def test_products_do_not_broadcast_either(kind: Any) -> None:
    one, three = kind.ones((1, 2, 2), DType.F32, "cpu"), kind.ones((3, 2, 2), DType.F32, "cpu")
    with pytest.raises(error.ShapeMismatchBinaryOpError, match="broadcast_matmul"):
        one.matmul(three)
    assert one.broadcast_matmul(three).shape == (3, 2, 2)
    with pytest.raises(error.ShapeMismatchBinaryOpError):
        three.matmul(kind.ones((2, 2), DType.F32, "cpu"))
    # Leading dims need the same number of matrices only; the result has the left's.
    left, right = kind.ones((2, 3, 1, 2), DType.F32, "cpu"), kind.ones((3, 2, 2, 1), DType.F32, "cpu")
    assert left.matmul(right).shape == (2, 3, 1, 1)
    condition = of(kind, [1, 0], DType.U8)
    with pytest.raises(error.ShapeMismatchBinaryOpError):
        condition.where_cond(of(kind, [[1.0, 2.0]]), of(kind, [[1.0, 2.0]]))
    with pytest.raises(error.DTypeMismatchError):
        condition.where_cond(of(kind, [1.0, 2.0]), of(kind, [1, 2], DType.I64))
    with pytest.raises(error.DTypeMismatchError):
        kind.cat([of(kind, [1.0]), of(kind, [1], DType.I64)], 0)


@KINDS
@pytest.mark.parametrize("dtype", FLOATS + INTS, ids=str)
def test_numbers_take_the_tensors_dtype(kind: Any, dtype: DType) -> None:
    x = of(kind, [6, 7], dtype)
    for result, want in [(x + 1, [7, 8]), (1 + x, [7, 8]), (x - 1, [5, 6]), (8 - x, [2, 1]), (x * 2, [12, 14])]:
        assert result.dtype is dtype
        assert values(result) == want
    assert (x / 2).dtype is dtype
    assert values(x / 2) == ([3, 3] if dtype.is_int() else [3.0, 3.5])
    assert values(x.affine(0.5, 0.0)) == ([0, 0] if dtype.is_int() else [3.0, 3.5])
    if dtype.is_int():
        # candle gives zeros without a word.
        for refused in (lambda: x * 0.5, lambda: x / 2.5, lambda: x + 0.5, lambda: x.mean(0), lambda: x.mean_all()):
            with pytest.raises(error.Error):
                refused()


@KINDS
def test_integer_division_truncates(kind: Any) -> None:
    x, y = of(kind, [-7, 7, -7, 7, 6], DType.I64), of(kind, [2, -2, -2, 2, 3], DType.I64)
    assert values(x.div(y)) == [-3, -3, 3, 3, 2]
    assert values(x / y) == [-3, -3, 3, 3, 2]
    assert values(x / 2) == [-3, 3, -3, 3, 3]


# --- 2. Casts ---------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("start", FLOATS, ids=str)
@pytest.mark.parametrize("end", INTS, ids=str)
def test_floats_become_integers_by_truncation_and_saturate(kind: Any, start: DType, end: DType) -> None:
    limits = np.iinfo(str(end.mlx()).rpartition(".")[2])
    x = of(kind, [1.75, -1.75, 0.25, NAN, INF, -INF, 254.0], start)
    low = max(limits.min, -1)
    assert values(x.to_dtype(end)) == [1, low, 0, 0, limits.max, limits.min, 254]


@KINDS
def test_the_first_float_beyond_a_range_saturates(kind: Any) -> None:
    for dtype, edge in [(DType.U32, 2.0**32), (DType.I32, 2.0**31), (DType.I64, 2.0**63), (DType.U8, 256.0)]:
        top = int(edge) - 1
        assert values(of(kind, [edge, edge * 2], DType.F32).to_dtype(dtype)) == [top, top]


@KINDS
def test_integers_wrap_around(kind: Any) -> None:
    assert values(of(kind, [300, -1, 256], DType.I64).to_dtype(DType.U8)) == [44, 255, 0]
    assert values(of(kind, [2**32 + 5, -1], DType.I64).to_dtype(DType.U32)) == [5, 2**32 - 1]
    assert values(of(kind, [200, 100], DType.U8).sum_all()) == 44
    assert values(of(kind, [200], DType.U8) + of(kind, [100], DType.U8)) == [44]


# --- 3. Ids -----------------------------------------------------------------------------------


def computed(call: Callable[[], Any]) -> Any:
    return values(call())


@KINDS
@pytest.mark.parametrize("dtype", [DType.U8, DType.U32, DType.I64], ids=str)
def test_the_largest_id_means_zeros_or_nothing(kind: Any, dtype: DType) -> None:
    top = np.iinfo(str(dtype.mlx()).rpartition(".")[2]).max
    x, ids = of(kind, [[1.0, 2.0], [3.0, 4.0]]), of(kind, [1, int(top)], dtype)
    assert values(x.index_select(ids, 0)) == [[3.0, 4.0], [0.0, 0.0]]
    assert values(x.embedding(ids)) == [[3.0, 4.0], [0.0, 0.0]]
    grid = ids.reshape((2, 1))
    assert values(x.gather(grid, 1)) == [[2.0], [0.0]]
    source = of(kind, [[10.0], [20.0]])
    assert values(x.scatter(grid, source, 1)) == [[1.0, 10.0], [3.0, 4.0]]
    assert values(x.scatter_add(grid, source, 1)) == [[1.0, 12.0], [3.0, 4.0]]
    assert values(x.index_add(ids, of(kind, [[5.0, 5.0], [9.0, 9.0]]), 0)) == [[1.0, 2.0], [8.0, 9.0]]


@KINDS
@pytest.mark.parametrize("bad", [-1, -3, 2, 100])
def test_other_ids_outside_raise(kind: Any, bad: int) -> None:
    x = of(kind, [[1.0, 2.0], [3.0, 4.0]])
    ids, grid, source = of(kind, [0, bad], DType.I64), of(kind, [[0], [bad]], DType.I64), of(kind, [[1.0], [1.0]])
    for call in [
        lambda: x.index_select(ids, 0),
        lambda: x.embedding(ids),
        lambda: x.gather(grid, 1),
        lambda: x.scatter(grid, source, 1),
        lambda: x.scatter_add(grid, source, 1),
        lambda: x.index_add(ids, x, 0),
    ]:
        with pytest.raises(error.InvalidIndexError):
            computed(call)


@KINDS
def test_ids_are_integers(kind: Any) -> None:
    x = of(kind, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(error.UnsupportedDTypeForOpError):
        x.index_select(of(kind, [0.0]), 0)
    with pytest.raises(error.UnsupportedDTypeForOpError):
        x.gather(of(kind, [[0.0], [1.0]]), 1)
    with pytest.raises(error.ShapeMismatchBinaryOpError):
        x.index_select(of(kind, [[0]], DType.U32), 0)


# --- 4. and 5. Rounding, gelu -----------------------------------------------------------------


@KINDS
def test_halves_are_rounded_away_from_zero(kind: Any) -> None:
    x = of(kind, [0.5, 1.5, 2.5, -0.5, -2.5, 0.49999997, 8388609.0, -0.0])
    got = x.round().numpy()
    assert got.tolist() == [1.0, 2.0, 3.0, -1.0, -3.0, 0.0, 8388609.0, 0.0]
    assert values(of(kind, [0.125, -0.125, 1.5]).round_to(2)) == pytest.approx([0.13, -0.13, 1.5])
    assert values(of(kind, [15.0, -25.0, 149.0]).round_to(-1)) == [20.0, -30.0, 150.0]


@KINDS
def test_gelu_is_the_tanh_form_and_the_activation_the_erf_form(kind: Any) -> None:
    x = of(kind, [1.0, -2.0], DType.F64)
    tanh_form, erf_form = [0.8411919906082768, -0.045402305912225855], [0.8413447460685429, -0.04550026389635842]
    assert values(x.gelu()) == pytest.approx(tanh_form, rel=1e-12)
    assert values(x.gelu_erf()) == pytest.approx(erf_form, rel=1e-12)


# --- 6. A variable is a cell ------------------------------------------------------------------


def test_what_shares_a_variables_storage_sees_it_set() -> None:
    var = Var.new([1.0, 2.0], "cpu")
    shared, detached, first, copied = var.as_tensor(), var.as_detached_tensor(), var.narrow(0, 0, 1), var.copy()
    layer = nn.Linear(Var.from_tensor(var).unsqueeze(0), None)
    before = LazyTensor.from_tensor(var) * 10.0
    evaluated = (LazyTensor.from_tensor(var) * 10.0).eval()
    var.set(Tensor.new([5.0, 6.0], "cpu"))
    for tensor in (var, shared, detached):
        assert values(tensor) == [5.0, 6.0]
    assert values(first) == [5.0]
    assert values(copied) == [1.0, 2.0]
    assert values(layer.forward(Tensor.new([[1.0, 1.0]], "cpu"))) == [[11.0]]
    assert values(evaluated) == [10.0, 20.0]
    # What was recorded reads the value of its time.
    assert values(before) == [10.0, 20.0]


def test_set_takes_the_variables_shape_and_dtype_and_no_view_of_it() -> None:
    var = Var.new([1.0, 2.0], "cpu")
    with pytest.raises(error.ShapeMismatchBinaryOpError):
        var.set(Tensor.new([1.0], "cpu"))
    with pytest.raises(error.DTypeMismatchError):
        var.set(Tensor.new([1, 2], "cpu"))
    with pytest.raises(error.CannotSetVarError):
        var.set(var.as_tensor())
    with pytest.raises(error.CannotSetVarError):
        var.set(var.narrow(0, 0, 2))
    var.set(var + var)
    assert values(var) == [2.0, 4.0]


# --- 7. Gradients: no path, no entry; kinks and ties ------------------------------------------


@KINDS
@pytest.mark.parametrize(
    "cut",
    [
        lambda v: v.round(),
        lambda v: v.floor(),
        lambda v: v.ceil(),
        lambda v: v.sign(),
        lambda v: v.detach(),
        lambda v: v.gt(1.0).to_dtype(DType.F32),
        lambda v: v.argmax(0).to_dtype(DType.F32),
        lambda v: v.arg_sort_last_dim(True).to_dtype(DType.F32),
        lambda v: v.zeros_like(),
        lambda v: v.to_dtype(DType.I64).to_dtype(DType.F32),
    ],
)
def test_without_a_path_there_is_no_gradient(kind: Any, cut: Callable[[Any], Any]) -> None:
    assert gradient(kind, lambda v, w: cut(v) + w.sum_all().broadcast_as(cut(v).shape), [1.0, 2.0], [3.0])[0] is None


@KINDS
@pytest.mark.parametrize(
    ("function", "data", "want"),
    [
        (lambda v: v.abs(), [0.0, -1.0, 2.0], [1.0, -1.0, 1.0]),
        (lambda v: v.relu(), [0.0, -1.0, 2.0], [1.0, 0.0, 1.0]),
        # Every tie of an extreme has the full gradient.
        (lambda v: v.max(0), [2.0, 1.0, 2.0], [1.0, 0.0, 1.0]),
        (lambda v: v.min_all(), [1.0, 1.0, 2.0], [1.0, 1.0, 0.0]),
        # Half at a bound, nothing outside.
        (lambda v: v.clamp(0.0, 1.0), [0.0, 0.5, 1.0, 3.0], [0.5, 1.0, 0.5, 0.0]),
        # Views, indices and ids; a place that is used twice has both.
        (lambda v: v.i([0, 0, 2]), [1.0, 1.0, 1.0], [2.0, 0.0, 1.0]),
        (lambda v: v.narrow(0, 1, 2) * v.narrow(0, 0, 2), [1.0, 2.0, 3.0], [2.0, 4.0, 2.0]),
        (lambda v: v.repeat((2, 2)), [[1.0, 2.0]], [[4.0, 4.0]]),
        (lambda v: v.broadcast_as((3, 2)), [1.0, 2.0], [3.0, 3.0]),
        (lambda v: v.unfold(0, 2, 1), [1.0, 2.0, 3.0], [1.0, 2.0, 1.0]),
        (lambda v: v.sort_last_dim(True)[0].narrow(0, 0, 1), [3.0, 1.0, 2.0], [0.0, 1.0, 0.0]),
        (lambda v: v.cumsum(0), [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),
        (lambda v: v.sqr() * v, [1.0, 2.0], [3.0, 12.0]),
    ],
)
def test_gradients(kind: Any, function: Callable[[Any], Any], data: Any, want: Any) -> None:
    assert gradient(kind, function, data) == want


@KINDS
def test_gradients_of_two(kind: Any) -> None:
    assert gradient(kind, lambda a, b: a.maximum(b), [1.0, 5.0, 2.0], [1.0, 2.0, 5.0]) == [
        [0.5, 1.0, 0.0],
        [0.5, 0.0, 1.0],
    ]
    assert gradient(kind, lambda a, b: a.minimum(b), [1.0, 5.0], [1.0, 2.0]) == [[0.5, 0.0], [0.5, 1.0]]
    condition = of(kind, [1, 0], DType.U8)
    assert gradient(kind, lambda a, b: condition.where_cond(a, b), [1.0, 2.0], [3.0, 4.0]) == [[1.0, 0.0], [0.0, 1.0]]
    # The correct rules, which candle has exchanged: what is overwritten has none, what is added to keeps it.
    ids = of(kind, [0], DType.U32)
    assert gradient(kind, lambda a, b: a.scatter(ids, b, 0), [1.0, 2.0], [3.0]) == [[0.0, 1.0], [1.0]]
    assert gradient(kind, lambda a, b: a.scatter_add(ids, b, 0), [1.0, 2.0], [3.0]) == [[1.0, 1.0], [1.0]]
    assert gradient(kind, lambda a, b: a.broadcast_mul(b), [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]) == [
        [[5.0, 6.0], [5.0, 6.0]],
        [4.0, 6.0],
    ]
    assert gradient(kind, lambda a, b: a.matmul(b), [[1.0, 2.0]], [[3.0], [4.0]]) == [[[3.0, 4.0]], [[1.0], [2.0]]]


@KINDS
def test_a_second_backward_gives_the_same(kind: Any) -> None:
    var = Var.new([1.0, -2.0], "cpu")
    x = LazyTensor.from_tensor(var) if kind is LazyTensor else var
    loss = (x.sqr() * x.exp()).sum_all()
    first, second = loss.backward().get(var), loss.backward().get(var)
    assert first is not None
    assert second is not None
    assert values(first) == values(second)


# --- 8. Dtypes of results ---------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("dtype", FLOATS + INTS, ids=str)
def test_dtypes_of_results(kind: Any, dtype: DType) -> None:
    x = of(kind, [[3, 1], [1, 3]], dtype)
    assert x.sum(0).dtype is x.sum_all().dtype is x.max(0).dtype is dtype
    for result in (x.eq(x), x < 2, x.broadcast_ge(x.narrow(0, 0, 1)), x.ne(1)):
        assert result.dtype is DType.U8
        assert set(np.unique(result.numpy())) <= {0, 1}
    for result in (x.argmax(1), x.argmin_keepdim(0), x.arg_sort_last_dim(True), x.sort_last_dim(False)[1]):
        assert result.dtype is DType.U32
    assert values(of(kind, [5, 5, 1], dtype).argmax(0)) == 0
    assert values(x.argmin(1)) == [1, 0]
    assert x.index_select(of(kind, [0], DType.U32), 0).dtype is dtype


# --- 9. Bounds are checked when recorded; squeeze, repeat, chunk ------------------------------


@KINDS
def test_bounds_are_checked_when_recorded(kind: Any) -> None:
    x = kind.zeros((2, 3), DType.F32, "cpu")
    for dim, start, length in [(0, 0, 3), (0, 3, 0), (1, 3, 1), (1, -1, 1), (1, 0, -1), (1, 2, 2**40)]:
        with pytest.raises(error.NarrowInvalidArgsError):
            x.narrow(dim, start, length)
    assert x.narrow(1, 3, 0).shape == (2, 0)
    for call in [
        lambda: x.sum(2),
        lambda: x.sum(-3),
        lambda: x.squeeze(2),
        lambda: x.unsqueeze(3),
        lambda: x.transpose(0, 2),
        lambda: x.flatten(0, 2),
        lambda: x.narrow(2, 0, 1),
        lambda: x.cumsum(2),
        lambda: x.chunk(2, 2),
        lambda: x.roll(1, 2),
        lambda: kind.cat([x, x], 2),
        lambda: kind.stack([x, x], 3),
        lambda: x.dim(2),
    ]:
        with pytest.raises(error.DimOutOfRangeError):
            call()
    with pytest.raises(error.InvalidIndexError):
        x.i(2)
    with pytest.raises(error.InvalidIndexError):
        x.i((0, -4))
    with pytest.raises(error.NarrowInvalidArgsError):
        x.get(2)
    with pytest.raises(error.DimOutOfRangeError):
        x.i((0, 0, 0))
    for dims in [(0, 0), (1, -1)]:
        with pytest.raises(error.DuplicateDimIndexError):
            x.sum(dims)
        with pytest.raises(error.DuplicateDimIndexError):
            x.permute(dims)


@KINDS
def test_shapes_of_views(kind: Any) -> None:
    x = kind.arange(0, 6, "cpu").reshape((2, 3))
    assert x.squeeze(0).shape == (2, 3)
    assert x.unsqueeze(0).squeeze(0).shape == (2, 3)
    # Repeats belong to the leading dims.
    assert values(x.repeat((2,))) == values(x) * 2  # the rows, twice
    assert x.repeat((1, 2)).shape == (2, 6)
    assert [part.dims() for part in kind.arange(0, 7, "cpu").chunk(3, 0)] == [[3], [2], [2]]
    assert [part.dims() for part in kind.arange(0, 2, "cpu").chunk(5, 0)] == [[1], [1]]
    assert kind.new(1.0, "cpu").flatten_all().shape == (1,)
    assert values(x.get_on_dim(1, 2)) == [2, 5]
    assert values(x.t()) == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(error.UnexpectedNumberOfDimsError):
        kind.arange(0, 3, "cpu").t()
    grids = kind.meshgrid([kind.arange(0, n, "cpu") for n in (1, 2, 3)], True)
    assert [grid.dims() for grid in grids] == [[3, 2, 1]] * 3
    assert x.reshape((-1, 2)).shape == (3, 2)
    for shape in [(4, -1), (-1, -1), (7,), (-1, 0)]:
        with pytest.raises(error.ShapeMismatchError):
            x.reshape(shape)


@KINDS
def test_to_scalar_wants_rank_0_and_to_vec_its_rank(kind: Any) -> None:
    assert of(kind, 2.5).to_scalar() == 2.5
    for tensor in (of(kind, [2.5]), of(kind, [[2.5]])):
        with pytest.raises(error.UnexpectedNumberOfDimsError):
            tensor.to_scalar()
    with pytest.raises(error.UnexpectedNumberOfDimsError):
        of(kind, [[1.0]]).to_vec1()
    assert of(kind, [[1.0, 2.0]]).to_vec2() == [[1.0, 2.0]]


@KINDS
def test_empty_tensors(kind: Any) -> None:
    x = kind.zeros((2, 0), DType.F32, "cpu")
    assert x.exp().shape == (2, 0)
    assert values(x.sum(1)) == [0.0, 0.0]
    assert values(x.matmul(kind.zeros((0, 3), DType.F32, "cpu"))) == [[0.0] * 3] * 2
    for name in ("max", "min", "argmax", "argmin"):
        with pytest.raises(error.EmptyTensorError):
            getattr(x, name)(1)
    assert np.isnan(x.mean_all().to_scalar())


# --- 10. Nothing drops a gradient -------------------------------------------------------------


FUSED: dict[str, Callable[[Any, Any], Any]] = {
    "softmax_last_dim": lambda x, w: nn.ops.softmax_last_dim(x),
    "rms_norm with a weight": lambda x, w: nn.ops.rms_norm(x, w, 1e-5),
    "RmsNorm": lambda x, w: nn.RmsNorm(Tensor.new(WEIGHT, "cpu", DType.F64), 1e-5).forward(x),
    "rms_norm": lambda x, w: x.rms_norm(1e-5),
    "layer_norm": lambda x, w: x.layer_norm(1e-5),
    "softmax": lambda x, w: x.softmax(-1),
    "log_softmax": lambda x, w: x.log_softmax(-1),
    "silu": lambda x, w: nn.ops.silu(x),
    "rope": lambda x, w: nn.rotary_emb.rope(
        x.reshape((1, 1, 4, 4)), *[w.reshape((2, 2)).repeat((2, 1)) * n for n in (1, 2)]
    ),
    "sdpa": lambda x, w: nn.ops.sdpa(*[(x * n).reshape((1, 2, 2, 4)) for n in (1.0, 0.5, 2.0)], scale=0.5),
    "causal sdpa": lambda x, w: nn.ops.sdpa(*[x.reshape((1, 1, 4, 4))] * 3, do_causal=True),
}
WEIGHT = [1.0, 0.5, 2.0, -1.0]
DATA = [[0.5, -1.0, 2.0, 0.3], [1.0, 3.0, -2.0, 0.7], [0.1, 0.2, 0.9, -0.4], [-1.5, 0.6, 0.8, 1.1]]
SCALE = [[1.0, -2.0, 3.0, 0.5], [0.5, 1.0, 1.5, -1.0], [2.0, -1.0, 0.5, 0.25], [-0.5, 1.0, 2.0, 3.0]]


@KINDS
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("name", FUSED)
def test_fused_operations_have_gradients(kind: Any, contiguous: bool, name: str) -> None:
    weight, scale = of(kind, WEIGHT, DType.F64), of(kind, SCALE, DType.F64)

    def loss(var: Any) -> Any:
        x = LazyTensor.from_tensor(var) if kind is LazyTensor else var
        x = x if contiguous else x.t()
        return (FUSED[name](x, weight).reshape((4, 4)) * scale).sum_all()

    data = np.array(DATA)
    var = Var.new(data, "cpu", DType.F64)
    found = loss(var).backward().get(var)
    assert found is not None
    slope = np.zeros_like(data)
    for place in np.ndindex(*data.shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = data.copy()
            moved[place] += step
            ends.append(loss(Var.new(moved, "cpu", DType.F64)).to_scalar())
        slope[place] = (ends[0] - ends[1]) / 2e-6
    # Central differences in float64: their own error is near 1e-9.
    np.testing.assert_allclose(found.numpy(), slope, rtol=1e-6, atol=1e-8)
