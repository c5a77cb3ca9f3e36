"""Mistakes are reported where an operation is recorded, eager and lazy alike, in one line that says what fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import metal_candle as mc
from metal_candle import D, Device, LazyTensor, Tensor, Var

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
        mc.Error,
        "add: got 1.5 beside a tensor of i64; takes an integer from -9223372036854775808 to 9223372036854775807, "
        "or to_dtype first",
        lambda x: x.to_dtype("i64") + 1.5,
    ),
    (
        mc.Error,
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


@pytest.mark.parametrize("kind", [Tensor, LazyTensor])
@pytest.mark.parametrize(("builtin", "text", "call"), CASES, ids=[case[1].split(";")[0] for case in CASES])
def test_text_and_kind(kind: Any, builtin: type[Exception], text: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(mc.Error, match=re.escape(text)) as caught:
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
        Tensor.cat([eager, lazy], 0)  # type: ignore[list-item]
    with pytest.raises(mc.Error, match=text):
        mc.nn.Linear(Tensor([[1.0]])).forward(eager)._lift(lazy)


def test_a_lazy_operation_lifts_an_eager_operand() -> None:
    eager, lazy = Tensor([1.0, 2.0]), LazyTensor.new([3.0, 4.0])
    for result in (lazy.add(eager), lazy + eager, LazyTensor.cat([lazy, eager], 0).narrow(0, 0, 2) + eager):  # type: ignore[list-item]
        assert isinstance(result, LazyTensor)
        assert result.eval().to_vec1() == [4.0, 6.0]
    w = Var([1.0, 2.0])
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
