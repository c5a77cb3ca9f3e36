"""Mistakes are reported where an operation is recorded, eager and lazy alike, in one line that says what fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import D, Device, LazyTensor, Tensor, Var

import mlx.core as mx
import numpy as np
import pytest

A = np.zeros((2, 3), np.float32)
CASES: list[tuple[type[Exception], str, Callable[[Any], Any]]] = [
    (
        ValueError,
        "add: got shapes (2, 3) and (3,); takes equal shapes; broadcast_add broadcasts",
        lambda x: x.add(x[0]),
    ),
    (
        ValueError,
        "eq: got shapes (2, 3) and (3,); takes equal shapes; broadcast_eq broadcasts",
        lambda x: x.eq(x[0]),
    ),
    (
        ValueError,
        "mul: got shapes (2, 3) and (2,); takes shapes that broadcast",
        lambda x: x * x[:, 0],
    ),
    (TypeError, "sub: dtypes differ, lhs f32, rhs f16; convert one with to_dtype", lambda x: x - x.to_dtype("f16")),
    (ValueError, "matmul: got shapes (2, 3) and (2, 3); takes (…, m, k) and (…, k, n)", lambda x: x.matmul(x)),
    (
        ValueError,
        "matmul: got shapes (1, 2, 3) and (5, 3, 2); takes equal leading dims; broadcast_matmul broadcasts",
        lambda x: x.unsqueeze(0).matmul(x.t().broadcast_left(5)),
    ),
    (TypeError, "matmul: got dtype i64; takes bf16, f16, f32 or f64", lambda x: x.to_dtype("i64") @ x.to_dtype("i64")),
    (TypeError, "matmul: got list for an operand; takes a tensor", lambda x: x.matmul([1])),
    (TypeError, "add: got float for an operand; takes a tensor", lambda x: x.add(1.0)),
    (TypeError, "maximum: got str for an operand; takes a tensor or a number", lambda x: x.maximum("1")),
    (
        ValueError,
        "add: got 1.5 beside a tensor of i64; takes an integer from -9223372036854775808 to 9223372036854775807, "
        "or to_dtype first",
        lambda x: x.to_dtype("i64") + 1.5,
    ),
    (
        ValueError,
        "lt: got 300 beside a tensor of u8; takes an integer from 0 to 255, or to_dtype first",
        lambda x: x.to_dtype("u8").lt(300),
    ),
    (IndexError, "softmax: dim 2 is out of range for shape (2, 3); takes -2..1", lambda x: x.softmax(2)),
    (IndexError, "sum: dim -3 is out of range for shape (2, 3); takes -2..1", lambda x: x.sum((0, -3))),
    (ValueError, "sum: dims (1, 1) name a dimension of shape (2, 3) twice", lambda x: x.sum((1, D.Minus1))),
    (IndexError, "max: dim 0 is out of range for shape (); a scalar has no dimensions", lambda x: x.sum_all().max(0)),
    (
        ValueError,
        "max: got shape (0, 3), whose dim 0 is empty; takes an element",
        lambda x: x.narrow(0, 0, 0).max(0),
    ),
    (
        ValueError,
        "argmin: got shape (2, 0), whose dim 1 is empty; takes an element",
        lambda x: x.narrow(1, 0, 0).argmin(1),
    ),
    (TypeError, "mean: got dtype i64; takes a float dtype; to_dtype first", lambda x: x.to_dtype("i64").mean(0)),
    (TypeError, "exp: got dtype u8; takes bf16, f16, f32 or f64", lambda x: x.to_dtype("u8").exp()),
    (
        IndexError,
        "narrow: start 1, length 2 leave dim 0 of shape (2, 3); takes 0 <= start and start + length <= 2",
        lambda x: x.narrow(0, 1, 2),
    ),
    (ValueError, "reshape: 6 elements do not fit shape (4,) of 4", lambda x: x.reshape(4)),
    (ValueError, "reshape: 6 elements do not fill (4, -1)", lambda x: x.reshape((4, -1))),
    (ValueError, "reshape: got (-1, -1); takes at most one hole", lambda x: x.reshape((-1, ()))),
    (ValueError, "permute: got dims (0,) for shape (2, 3); takes every dim once", lambda x: x.permute((0,))),
    (ValueError, "t: got rank 1, shape (3,); takes rank 2 or more", lambda x: x[0].t()),
    (ValueError, "broadcast_as: cannot broadcast shape (2, 3) to (3, 3)", lambda x: x.broadcast_as((3, 3))),
    (IndexError, "unsqueeze: dim 3 is out of range for shape (2, 3); takes -3..2", lambda x: x.unsqueeze(3)),
    (
        ValueError,
        "cat: tensor 2 has shape (1, 2), the first (2, 3); takes shapes that are equal but for dim 0",
        lambda x: type(x).cat([x, x[:1, :2]], 0),
    ),
    (TypeError, "cat: dtypes differ, lhs f32, rhs u8", lambda x: type(x).cat([x, x.to_dtype("u8")], 0)),
    (ValueError, "cat: got no tensors; takes at least one", lambda x: type(x).cat([], 0)),
    (
        ValueError,
        "stack: got shapes (2, 3) and (3,); takes equal shapes",
        lambda x: type(x).stack([x, x[0]], 0),
    ),
    (ValueError, "chunk: got 0 chunks; takes at least 1", lambda x: x.chunk(0, 0)),
    (
        ValueError,
        "lora_fused: got shapes (2, 3) and (2, 3); takes x (…, in) and A (in, rank)",
        lambda x: x.lora_fused(x, x, 1.0),
    ),
    (
        ValueError,
        "lora_fused: got shapes (3, 2) and (3, 2); takes A (in, rank) and B (rank, out)",
        lambda x: x.lora_fused(x.t(), x.t(), 1.0),
    ),
    (
        ValueError,
        "add_lora: got shapes (2, 3) and (2, 2); takes a base of the delta's shape",
        lambda x: x.add_lora(x, x.t(), x[:, :2], 1.0),
    ),
    (TypeError, "index: got str; takes ints, slices, `...`, None, lists and tensors of ids", lambda x: x["a"]),
    (IndexError, "index: index 2 is out of range; takes 0..1", lambda x: x[2]),
    (IndexError, "index: dim 2 is out of range for shape (2, 3); takes -2..1", lambda x: x[0, 0, 0]),
    (ValueError, "index: got two `...`; takes one", lambda x: x[..., ...]),
]

DIM = "takes an integer or D.Minus1, D.Minus2, D.Minus(n)"
DATA = "for an operand; takes a tensor or a number; KIND"
HUGE = "got an integer of 1329 bits for"
# What stands where a number, a dim, a shape or a tensor belongs.
CASES += [
    (TypeError, "layer_norm: got 'abc' for eps; takes a number", lambda x: x.layer_norm("abc")),
    (TypeError, "layer_norm: got None for eps; takes a number", lambda x: x.layer_norm(None)),
    (ValueError, "layer_norm: got -5.0 for eps; takes a finite number from 0", lambda x: x.layer_norm(-5.0)),
    (ValueError, "rms_norm: got nan for eps; takes a finite number from 0", lambda x: x.rms_norm(float("nan"))),
    (TypeError, "rms_norm: got 1j for eps; takes a number", lambda x: x.rms_norm(1j)),
    (TypeError, "rms_norm_fused: got b'x' for eps; takes a number", lambda x: x.rms_norm_fused(b"x")),
    (TypeError, "Tensor for eps; takes a number", lambda x: x.rms_norm(x[0, 0])),
    (TypeError, "lora_fused: got None for scale; takes a number", lambda x: x.lora_fused(x.t(), x, None)),
    (TypeError, "affine: got a list for mul; takes a number", lambda x: x.affine([1.0], 0.0)),
    (TypeError, "affine: got True for add; takes a number", lambda x: x.affine(1.0, True)),
    (ValueError, f"affine: {HUGE} mul; takes a number a float holds", lambda x: x.affine(10**400, 0)),
    (ValueError, f"powf: {HUGE} e; takes a number a float holds", lambda x: x.powf(10**400)),
    (TypeError, "elu: got 'abc' for alpha; takes a number", lambda x: x.elu("abc")),
    (TypeError, "mul_scalar: got None for value; takes a number", lambda x: x.mul_scalar(None)),
    (TypeError, "powf: got an ndarray for e; takes a number", lambda x: x.powf(np.ones(1))),
    (ValueError, "pad_with_zeros: got (2147483650, 3); takes sizes up to", lambda x: x.pad_with_zeros(0, 2**31, 0)),
    (ValueError, "pad_with_same: got (9223372036854775810, 3)", lambda x: x.pad_with_same(0, 2**63, 0)),
    (ValueError, "unfold: got a step above 2147483647; takes at most that", lambda x: x.unfold(0, 1, 2**63)),
    (ValueError, "repeat: got (2, 3221225472); takes sizes up to", lambda x: x.repeat((1, 2**30))),
    (TypeError, "narrow: got start an ndarray; takes an integer", lambda x: x.narrow(0, np.array([0]), 1)),
    (TypeError, "Tensor; takes an integer", lambda x: x.narrow(0, type(x).new(0), 1)),
    (TypeError, f"softmax: got True for a dim; {DIM}", lambda x: (x.softmax(1), x.softmax(True))),
    (TypeError, f"softmax: got 1.0 for a dim; {DIM}", lambda x: (x.softmax(1), x.softmax(1.0))),
    (TypeError, f"softmax: got an ndarray for a dim; {DIM}", lambda x: x.softmax(np.array([0, 1]))),
    (TypeError, f"sum: got a dict for a dim; {DIM}", lambda x: x.sum({})),
    (TypeError, f"sum: got a list_iterator for a dim; {DIM}", lambda x: x.sum(iter([0]))),
    (TypeError, f"flip: got a dict for a dim; {DIM}", lambda x: x.flip({})),
    (TypeError, f"permute: got '10' for a dim; {DIM}", lambda x: x.permute("10")),
    (IndexError, "sum: dim an integer of 16610 bits is out of range", lambda x: x.sum(10**5000)),
    (IndexError, "sum_keepdim: dim 2 is out of range for shape (2, 3); takes -2..1", lambda x: x.sum_keepdim(2)),
    (IndexError, "stack: dim 4 is out of range for shape (2, 3); takes -3..2", lambda x: type(x).stack([x, x], 4)),
    (TypeError, "repeat: got b'x' for repeats; takes an integer or several", lambda x: x.repeat(b"x")),
    (TypeError, "reshape: got (2.0, 3) for shape; takes an integer or several", lambda x: x.reshape((2.0, 3))),
    (TypeError, "broadcast_left: got ('abc',); takes integers", lambda x: x.broadcast_left("abc")),
    (ValueError, "reshape: got (-2, 6); takes integers that are not negative", lambda x: x.reshape((-2, 6))),
    (ValueError, "expand: got (-1, 4); takes integers that are not negative", lambda x: x.expand((-1, 4))),
    (ValueError, "expand: cannot broadcast shape (2, 3) to (3, 4)", lambda x: x.expand((3, 4))),
    (ValueError, "repeat: got (-1, 1); takes integers that are not negative", lambda x: x.repeat((-1, 1))),
    (ValueError, "eye: got (-1, -1); takes integers that are not negative", lambda x: type(x).eye(-1)),
    (TypeError, "zeros: got ('ab',); takes integers that are not negative", lambda x: type(x).zeros("ab")),
    (TypeError, "sort_last_dim: got 'abc' for asc; takes True or False", lambda x: x.sort_last_dim("abc")),
    (TypeError, "arg_sort_last_dim: got None for asc; takes True or False", lambda x: x.arg_sort_last_dim(None)),
    (TypeError, "upsample_bilinear2d: got 'x' for align_corners", lambda x: x.upsample_bilinear2d(2, 2, "x")),
    (ValueError, "upsample_nearest1d: got rank 2, shape (2, 3); takes rank 3", lambda x: x.upsample_nearest1d(3)),
    (TypeError, "add: got int for an operand; takes a tensor", lambda x: x.add(1)),
    (TypeError, "cat: got None; takes a list of tensors", lambda x: type(x).cat(None, 0)),
    (TypeError, "cat: got list for an operand; takes a tensor", lambda x: type(x).cat([[1.0]], 0)),
    (TypeError, "stack: got 1.5; takes a list of tensors", lambda x: type(x).stack(1.5, 0)),
    (TypeError, "meshgrid: got 'ab'; takes a list of tensors", lambda x: type(x).meshgrid("ab", True)),
    (TypeError, "meshgrid: got 1 for xy_indexing", lambda x: type(x).meshgrid([x[0], x[0]], 1)),
    (TypeError, "slice_assign: got None for the ranges; takes slices", lambda x: x.slice_assign(None, x)),
    (TypeError, "slice_assign: got 'a' for a range; takes slices", lambda x: x.slice_assign(["a", 0], x)),
    (ValueError, "clamp: got shapes (2, 3) and (3, 2); takes equal shapes", lambda x: x.clamp(x.t(), 1.0)),
    (TypeError, "clamp: got str for an operand; takes a tensor or a number", lambda x: x.clamp(0.0, "b")),
    (TypeError, "get: got index 'a'; takes an integer", lambda x: x.get("a")),
    (IndexError, "get: start 9, length 1 leave dim 0 of shape (2, 3)", lambda x: x.get(9)),
    (IndexError, "index: index 0 is out of range; the dim is empty", lambda x: x.narrow(0, 0, 0)[0]),
    (TypeError, "index: got float; takes ints, slices", lambda x: x[1.0]),
    (ValueError, "index: got slice(None, None, 0); slice step cannot be zero", lambda x: x[::0]),
    (TypeError, "from_iter: got 5; takes an iterable of numbers", lambda x: type(x).from_iter(5)),
    (ValueError, f"rand_like: {HUGE} up; takes a number a float holds", lambda x: x.rand_like(0.0, 10**400)),
    (TypeError, "arange: got 'a' for start; takes a finite number", lambda x: type(x).arange("a", 2)),
    (ValueError, f"arange: {HUGE} end; takes a number a float holds", lambda x: type(x).arange(0, 10**400)),
    # Operators: Python would repeat a list, for a tensor can be an index.
    (TypeError, f"mul: got list {DATA}(...) makes one", lambda x: type(x).new(3) * [1.0, 2.0]),
    (TypeError, f"mul: got list {DATA}(...) makes one", lambda x: [1.0, 2.0] * type(x).new(3)),
    (TypeError, f"add: got ndarray {DATA}.from_numpy makes one", lambda x: A + x),
    (TypeError, f"add: got ndarray {DATA}.from_numpy makes one", lambda x: x + A),
    (TypeError, f"sub: got array {DATA}.from_mlx makes one", lambda x: x - mx.array(1.0)),
    (TypeError, "matmul: got ndarray for an operand; takes a tensor; KIND.from_numpy makes one", lambda x: A @ x),
    (TypeError, "matmul: got array for an operand; takes a tensor; KIND.from_mlx", lambda x: x @ mx.array([1.0])),
    (TypeError, f"eq: got list {DATA}(...) makes one", lambda x: x == [0.0]),
    (TypeError, "mul: got str for an operand; takes a tensor or a number", lambda x: x * "a"),
    (TypeError, "mul: got bytes for an operand; takes a tensor or a number", lambda x: b"a" * type(x).new(3)),
    (TypeError, "sub: got NoneType for an operand; takes a tensor or a number", lambda x: x - None),
    (TypeError, "add: got complex for an operand; takes a tensor or a number", lambda x: x + 1j),
    (TypeError, "pow: got 3 for a modulus; takes none", lambda x: pow(x, 2, 3)),
    (TypeError, "matmul: got ndarray for an operand; takes a tensor", lambda x: A @ x),
    (TypeError, "matmul: got int for an operand; takes a tensor", lambda x: x @ 2),
    (ValueError, f"mul: {HUGE} an operand; takes a number that a float holds", lambda x: x * 10**400),
    (ValueError, f"div: {HUGE} an operand; takes a number that a float holds", lambda x: x / 10**400),
    (ValueError, f"maximum: {HUGE} an operand; takes a number that a float holds", lambda x: x.maximum(10**400)),
]


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
@pytest.mark.parametrize(("builtin", "text", "call"), CASES, ids=[case[1].split(";")[0] for case in CASES])
def test_text_and_kind(kind: Any, builtin: type[Exception], text: str, call: Callable[[Any], Any]) -> None:
    # An array beside a tensor: the message names the class that makes one of it that fits.
    with pytest.raises(mc.Error, match=re.escape(text.replace("KIND", kind.__name__))) as caught:
        call(kind.new(A))
    assert isinstance(caught.value, builtin)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("builtin", "text", "call"),
    [
        (ValueError, "to_scalar: got rank 1, shape (3,); takes rank 0", lambda x: x[0].to_scalar()),
        (ValueError, "to_vec1: got rank 2, shape (2, 3); takes rank 1", lambda x: x.to_vec1()),
        (ValueError, "dims3: got rank 2, shape (2, 3); takes rank 3", lambda x: x.dims3()),
        (ValueError, "a Python number: got rank 2, shape (2, 3); takes rank 0, or one element", lambda x: float(x)),
        (ValueError, "len: got rank 0, shape (); takes rank 1 or more", lambda x: len(x.sum_all())),
        (IndexError, "dim: dim 5 is out of range for shape (2, 3)", lambda x: x.dim(5)),
    ],
)
def test_values_asked_for_wrongly(builtin: type[Exception], text: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(mc.Error, match=re.escape(text)) as caught:
        call(Tensor.new(A))
    assert isinstance(caught.value, builtin)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("narrow() takes dim, start, len; got 1 of 3 arguments", lambda x: x.narrow(0)),
        ("narrow() takes dim, start, len; got 4 of 3 arguments", lambda x: x.narrow(0, 0, 1, 1)),
        ("narrow() takes dim, start, len; got dim, dim", lambda x: x.narrow(0, dim=0)),
        ("softmax() takes dim; got axis", lambda x: x.softmax(axis=0)),
        ("where_cond() takes on_true, on_false; got 1 of 2 arguments", lambda x: x.where_cond(x)),
    ],
)
def test_calls_with_wrong_arguments(text: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        call(Tensor.new(A))


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
def test_numpy_s_numbers_and_arrays_of_rank_0_are_numbers(kind: Any) -> None:
    x = kind.new(A + 2)
    assert x.affine(np.float32(2), np.array(1)).tolist() == [[5.0] * 3] * 2
    assert x.powf(np.int64(2)).tolist() == [[4.0] * 3] * 2
    assert x.sum(np.array(0)).dims() == x.sum(np.int8(0)).dims() == x.sum((np.int8(0),)).dims() == [3]
    assert x.narrow(np.int64(1), np.array(1), np.uint8(2)).dims() == [2, 2]
    assert x.reshape(np.array([3, 2])).dims() == x.reshape((np.int64(3), ())).dims() == [3, 2]
    assert x.permute(range(1, -1, -1)).dims() == [3, 2]
    assert x.arg_sort_last_dim(np.True_).tolist() == [[0, 1, 2]] * 2


def test_operators_leave_strangers_to_python() -> None:
    class Stranger:
        def __radd__(self, other: Any) -> str:
            return "its own"

    assert Tensor.new(A) + Stranger() == "its own"  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        Tensor.new(A) * Stranger()  # type: ignore[operator]
    assert (Tensor.new(A) == "x") is False
    assert (Tensor.new(A) != None) is True  # noqa: E711


def test_an_eager_operation_refuses_a_lazy_operand_and_says_what_to_do() -> None:
    eager, lazy = Tensor([1.0]), LazyTensor.new([1.0])
    text = "got a LazyTensor beside an eager tensor; lift the eager one with LazyTensor.from_tensor or evaluate"
    for call in (lambda: eager.add(lazy), lambda: eager + lazy, lambda: eager.matmul(lazy)):
        with pytest.raises(mc.Error, match=text):
            call()
    with pytest.raises(mc.Error, match=text):
        Tensor.cat([eager, lazy], 0)
    with pytest.raises(mc.Error, match=text):
        Tensor.stack([lazy, eager], 0)
    with pytest.raises(mc.Error, match=text):
        mc.nn.Linear(Tensor([[1.0]])).forward(eager)._lift(lazy)


def test_a_lazy_operation_lifts_an_eager_operand() -> None:
    eager, lazy = Tensor([1.0, 2.0]), LazyTensor.new([3.0, 4.0])
    for result in (lazy.add(eager), lazy + eager, LazyTensor.cat([lazy, eager], 0).narrow(0, 0, 2) + eager):
        assert isinstance(result, LazyTensor)
        assert result.eval().to_vec1() == [4.0, 6.0]
    for joined in (LazyTensor.cat([eager, lazy], 0), LazyTensor.stack([eager, lazy], 0).flatten_all()):
        assert isinstance(joined, LazyTensor)
        assert joined.eval().to_vec1() == [1.0, 2.0, 3.0, 4.0]
    assert isinstance(LazyTensor.cat([eager, eager], 0), LazyTensor)
    assert isinstance(LazyTensor.stack([eager], 0), LazyTensor)
    w = Var([1.0, 2.0])
    joined_variable = Var.cat([w, eager], 0)
    assert type(joined_variable) is Tensor
    assert joined_variable.sum_all().backward()[w].to_vec1() == [1.0, 1.0]
    assert lazy.mul(w).backward()[w].to_vec1() == [3.0, 4.0]


def test_what_is_lazy_stays_so_until_it_is_looked_at() -> None:
    x = LazyTensor.new([1.0, 2.0])
    y = (x.exp() + 1.0).softmax(-1).sum_all()
    assert not y.is_evaluated()
    assert "lazy" in repr(y)
    assert isinstance(y.eval(), Tensor)
    assert y.is_evaluated()
    assert y.eval().to_scalar() == pytest.approx(1.0)
    assert re.fullmatch(r"LazyTensor\(node \d+: sum, \[\], f32, Device.Cpu, evaluated, graph of 1\)", repr(y))


def test_f64_lives_on_the_cpu() -> None:
    gpu = Device(mc.DeviceType.Cuda, 0)
    with pytest.raises(TypeError, match=r"zeros: got dtype f64; takes f64 on Device.Cpu only, got Device.Cuda\(0\)"):
        Tensor.zeros((1,), "f64", gpu)
