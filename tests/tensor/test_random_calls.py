"""Every derived method with random operands and arguments, right and wrong.

Either the call is refused where it is recorded, by an error of ours with one line; or evaluating gives what was
promised when it was recorded, lazily and eagerly, and so do the gradients. MLX never has the last word.
"""

from __future__ import annotations

import inspect
from typing import Any

import metal_candle as mc
from metal_candle import D, DType, LazyTensor, Tensor, Var
from metal_candle.tensor.derive import method_table

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHAPES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 4]), max_size=4).map(tuple)
DTYPES = st.sampled_from([DType.F32, DType.F32, DType.F32, DType.F64, DType.F16, DType.BF16, DType.I64, DType.U8])
DIMS = st.one_of(st.integers(-5, 5), st.sampled_from([D.Minus1, D.Minus2]))
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "DimLike": DIMS,
    "DimsLike": st.one_of(DIMS, st.lists(DIMS, max_size=4).map(tuple)),
    "ShapeLike": st.one_of(st.integers(-1, 5), st.lists(st.integers(-1, 6), max_size=4).map(tuple)),
    "int": st.integers(-2, 5),
    "float": st.sampled_from([0.0, 0.5, 1.0, -2.0, 1e30, float("nan"), float("inf")]),
    "bool": st.booleans(),
    "Sequence[int]": st.one_of(st.lists(st.integers(-1, 3), max_size=3), st.integers(0, 2)),
    "Sequence[float]": st.lists(st.sampled_from([0.0, 1.0, -2.0, float("nan")]), max_size=3),
    "object": st.none(),
    "DTypeLike": st.one_of(st.sampled_from(list(DType)), st.sampled_from(["f32", "nonsense"])),
}
METHODS = method_table()


@st.composite
def arrays(draw: st.DrawFn, like: np.ndarray | None = None) -> np.ndarray:
    """An array, often of the shape and dtype of ``like``, now and then ids."""
    shape = like.shape if like is not None and draw(st.integers(0, 2)) else draw(SHAPES)
    values = np.arange(1, int(np.prod(shape)) + 1).reshape(shape) % 5
    kind = draw(st.integers(0, 3))
    if like is not None and kind:
        return values.astype(like.dtype)
    return values.astype(np.float32 if kind == 1 else np.int64)


def same(a: Any, b: Any) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("name", sorted(METHODS))
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_call_is_refused_at_once_or_keeps_its_promise(name: str, data: st.DataObject) -> None:
    array = data.draw(arrays(np.zeros((2, 3), np.float32)))
    dtype = data.draw(DTYPES) if array.dtype == np.float32 else DType.I64
    start = Tensor.new(array, dtype=dtype)
    if dtype.is_float():
        start = Var.from_tensor(start)
    arguments: list[Any] = []
    for parameter in list(inspect.signature(METHODS[name][1]).parameters.values())[1:]:
        if "TensorBase" in parameter.annotation:
            operand = Tensor.new(data.draw(arrays(array)))
            same_dtype = operand.dtype.is_float() and dtype.is_float() and data.draw(st.booleans())
            arguments.append(operand.to_dtype(dtype) if same_dtype else operand)
        else:
            arguments.append(data.draw(ARGUMENTS[parameter.annotation]))

    def lazy(x: Any) -> Any:
        return LazyTensor.from_tensor(x) if isinstance(x, Tensor) else x

    try:
        recorded = getattr(lazy(start), name)(*map(lazy, arguments))
    except mc.Error as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert "\n" not in str(refusal)
        assert ": " in str(refusal)
        with pytest.raises(type(refusal)):
            getattr(start, name)(*arguments)
        return
    try:
        value = recorded.eval()
    except mc.error.InvalidIndexError:
        # Only the values of ids are not known when recording.
        assert any(isinstance(x, Tensor) and not x.dtype.is_float() for x in (start, *arguments))
        with pytest.raises(mc.error.InvalidIndexError):
            getattr(start, name)(*arguments)
        return
    assert value.mlx().shape == tuple(recorded.shape)
    assert value.mlx().dtype == recorded.dtype.mlx_
    same(getattr(start, name)(*arguments), value)
    for loss in (recorded, getattr(start, name)(*arguments)):
        grads = loss.backward() if loss.dtype.is_float() else None
        gradient = grads.get(start) if grads is not None else None
        if gradient is not None:
            assert (gradient.shape, gradient.dtype) == (start.shape, start.dtype)
            same(loss.backward()[start], gradient)
