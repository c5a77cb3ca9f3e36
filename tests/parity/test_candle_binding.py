"""Every method of candle's own Python binding beside ours: same values, shapes, dtypes, and errors where it raises.

Where ours is meant to differ, ``test_candle_differences.py`` says why.
"""

from __future__ import annotations

import itertools

from metal_candle import Device, DType

import numpy as np
import pytest
from both import Case, Operand, candle, counted, f32, i64, u8, u32, zeros

INF, NAN = float("inf"), float("nan")


A, B = f32([[1.0, -2.0, 0.5], [4.0, 0.25, -0.0]]), f32([[2.0, 3.0, -1.0], [0.5, 8.0, 7.0]])
ROW, POSITIVE = f32([1.0, 2.0, 4.0]), f32([[1.0, 2.0], [0.5, 9.0]])

# At least one call of everything the binding's Tensor has.
CASES: dict[str, list[Case]] = {
    "shape": [
        Case(lambda t: t.shape, (A,)),
        Case(lambda t: t.shape, (f32(1.0),)),
        Case(lambda t: t.shape, (zeros(0, 2),)),
    ],
    "stride": [
        Case(lambda t: t.stride, (counted(2, 3, 4),)),
        Case(lambda t: t.t().stride, (counted(2, 3, 4),)),
        Case(lambda t: t.narrow(1, 1, 2).stride, (counted(2, 3, 4),)),
        Case(lambda t: t.get(1).stride, (counted(2, 3, 4),)),
        Case(lambda t: t.transpose(0, 2).contiguous().stride, (counted(2, 3, 4),)),
    ],
    "nelement": [Case(lambda t: t.nelement, (A,)), Case(lambda t: t.nelement, (zeros(0, 2),))],
    "rank": [Case(lambda t: t.rank, (A,)), Case(lambda t: t.rank, (f32(1.0),))],
    "dtype": [Case(lambda t: str(t.dtype).lower(), (operand,)) for operand in (A, u8([1]), u32([1]), i64([1]))],
    "device": [Case(lambda t: t.device, (A,), lambda t: str(t.device.kind.value))],
    "values": [
        Case(lambda t: t.values(), (operand,), lambda t: t.tolist())
        for operand in (A, f32(2.5), counted(2, 1, 3), u8([1, 255]), i64(-3), zeros(0), zeros(2, 0))
    ],
    "abs": [
        Case(lambda t: t.abs(), (A,)),
        Case(lambda t: t.abs(), (i64([-3, 2]),)),
        Case(lambda t: t.abs(), (u8([3]),)),
    ],
    "sin": [Case(lambda t: t.sin(), (A,), ulps=4)],
    "cos": [Case(lambda t: t.cos(), (A,), ulps=4)],
    "log": [Case(lambda t: t.log(), (A,), ulps=4)],
    "sqr": [Case(lambda t: t.sqr(), (A,))],
    "sqrt": [Case(lambda t: t.sqrt(), (A,), ulps=1)],
    "recip": [Case(lambda t: t.recip(), (A,), ulps=1)],
    "exp": [Case(lambda t: t.exp(), (A,), ulps=4)],
    "powf": [Case(lambda t: t.powf(3.0), (A,), ulps=4), Case(lambda t: t.powf(2.0), (u32([1, 2]),))],
    "broadcast_add": [
        Case(lambda t, o: t.broadcast_add(o), (A, ROW)),
        Case(lambda t, o: t.broadcast_add(o), (A, POSITIVE)),
    ],
    "broadcast_sub": [
        Case(lambda t, o: t.broadcast_sub(o), (A, ROW)),
        Case(lambda t, o: t.broadcast_sub(o), (A, u32([1]))),
    ],
    "broadcast_mul": [Case(lambda t, o: t.broadcast_mul(o), (A, ROW)), Case(lambda t: t.broadcast_mul(2.0), (A,))],
    "broadcast_div": [
        Case(lambda t, o: t.broadcast_div(o), (A, ROW)),
        Case(lambda t, o: t.broadcast_div(o), (u32([[7]]), u32([2, 3]))),
    ],
    "matmul": [
        Case(lambda t, o: t.matmul(o), (A, counted(3, 2)), ulps=2),
        Case(lambda t, o: t.matmul(o), (A, B)),
        Case(lambda t, o: t.matmul(o), (A, ROW)),
        Case(lambda t, o: t.matmul(o), (counted(2, 2, 3), counted(2, 3, 1))),
        Case(lambda t, o: t.matmul(o), (counted(1, 2, 3), counted(2, 3, 1))),
        # Only the number of matrices has to be the same.
        Case(lambda t, o: t.matmul(o), (counted(2, 3, 1, 2), counted(3, 2, 2, 1))),
        Case(lambda t, o: t.matmul(o), (zeros(2, 0), zeros(0, 3))),
        Case(lambda t, o: t.matmul(o), (zeros(0, 2), zeros(2, 3))),
        Case(lambda t, o: t.matmul(o), (u32([[1, 2]]), u32([[1], [2]]))),
        Case(lambda t, o: t.matmul(o), (Operand([[1.0, 2.0]], DType.F16), Operand([[1.0], [2.0]], DType.F16))),
        Case(lambda t, o: t.matmul(o), (Operand([[1.0, 2.0]], DType.F64), Operand([[1.0], [2.0]], DType.F64))),
        Case(lambda t, o: t.matmul(o), (A, Operand(np.ones((3, 2)), DType.F64))),
    ],
    "where_cond": [
        Case(lambda c, t, o: c.where_cond(t, o), (condition, A, B))
        for condition in (
            u8([[1, 0, 1], [0, 0, 255]]),
            u32([[0, 2, 0], [1, 1, 0]]),
            i64([[0, -2, 0], [1, 1, 0]]),
            f32([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
            u8([1, 0, 1]),
        )
    ]
    + [Case(lambda c, t, o: c.where_cond(t, o), (u8([1]), f32([1.0]), u32([1])))],
    "index_select": [
        Case(lambda t, ids: t.index_select(ids, 0), (A, u32([1, 1, 0]))),
        Case(lambda t, ids: t.index_select(ids, 1), (A, i64([2, 0]))),
        Case(lambda t, ids: t.index_select(ids, -1), (A, u8([2]))),
        Case(lambda t, ids: t.index_select(ids, 2), (A, u8([0]))),
        Case(lambda t, ids: t.index_select(ids, 0), (A, u32([2]))),
        Case(lambda t, ids: t.index_select(ids, 0), (A, i64([-1]))),
        Case(lambda t, ids: t.index_select(ids, 0), (A, f32([1.0]))),
        Case(lambda t, ids: t.index_select(ids, 0), (A, u32([[1]]))),
        Case(lambda t, ids: t.index_select(ids, 1), (A, u32(np.zeros(0)))),
    ],
    "gather": [
        Case(lambda t, ids: t.gather(ids, 1), (A, u32([[2, 2], [0, 1]]))),
        Case(lambda t, ids: t.gather(ids, 0), (A, i64([[1, 0, 1]]))),
        Case(lambda t, ids: t.gather(ids, -1), (A, u8([[0], [2]]))),
        Case(lambda t, ids: t.gather(ids, 1), (A, u32([[3], [0]]))),
        Case(lambda t, ids: t.gather(ids, 1), (A, i64([[-1], [0]]))),
        Case(lambda t, ids: t.gather(ids, 1), (A, u32([0, 1]))),
        Case(lambda t, ids: t.gather(ids, 1), (A, u32([[0], [1], [1]]))),
        Case(lambda t, ids: t.gather(ids, 2), (A, u32([[0], [1]]))),
        Case(lambda t, ids: t.gather(ids, 1), (A, f32([[0.0], [1.0]]))),
    ],
    "reshape": [
        Case(lambda t, s=shape: t.reshape(s), (A,))
        for shape in [(3, 2), (6,), (-1,), (2, -1), (2, 3, -1), (4,), (5, -1), (2, 3, 1), (), (-1, -1)]
    ]
    + [
        Case(lambda t: t.reshape(3, 2), (A,), lambda t: t.reshape((3, 2))),
        Case(lambda t: t.reshape(()), (f32([1.0]),)),
    ],
    "broadcast_as": [
        Case(lambda t, s=shape: t.broadcast_as(s), (ROW,)) for shape in [(3,), (2, 3), (2, 1, 3), (3, 2), (6,), ()]
    ]
    + [Case(lambda t: t.broadcast_as((2, 2, 3)), (f32([[1.0], [2.0]]),))],
    "broadcast_left": [Case(lambda t, s=shape: t.broadcast_left(s), (ROW,)) for shape in [(2,), (2, 1), ()]],
    "squeeze": [Case(lambda t, d=dim: t.squeeze(d), (f32([[[1.0], [2.0]]]),)) for dim in range(-3, 4)],
    "unsqueeze": [Case(lambda t, d=dim: t.unsqueeze(d), (A,)) for dim in range(4)],
    "get": [Case(lambda t, i=index: t.get(i), (A,)) for index in range(3)],
    "transpose": [
        Case(lambda t, d=dims: t.transpose(*d), (counted(2, 3, 4),)) for dims in itertools.product(range(4), repeat=2)
    ],
    "narrow": [
        Case(lambda t, at=at: t.narrow(*at), (counted(3, 4),))
        for at in [(0, 0, 3), (0, 1, 2), (1, 3, 1), (1, 3, 2), (0, 4, 1), (0, 0, 0), (-1, 1, 2), (2, 0, 1)]
    ],
    "sum_keepdim": [
        Case(lambda t, d=dims: t.sum_keepdim(d), (counted(2, 3, 4),))
        for dims in [0, 2, 3, [0, 1], [2, 0], [1, 1], [0, 3], [], [0, 1, 2]]
    ]
    + [Case(lambda t: t.sum_keepdim(0), (u8([200, 100]),)), Case(lambda t: t.sum_keepdim(1), (zeros(2, 0),))],
    "sum_all": [
        Case(lambda t: t.sum_all(), (operand,))
        for operand in (A, f32(3.0), zeros(0, 2), u8([200, 100]), i64([-3, 1]), u32([2**32 - 1, 2]))
    ],
    "mean_all": [Case(lambda t: t.mean_all(), (operand,), ulps=1) for operand in (A, f32(3.0), zeros(0, 2))],
    **{
        f"{name}_keepdim": [
            Case(lambda t, d=dim, n=name: getattr(t, f"{n}_keepdim")(d), (operand,))
            for operand in (f32([[1.0, 3.0, 3.0], [-INF, 0.0, -0.0]]), u8([[5, 2, 5], [0, 255, 0]]), i64([[-1], [4]]))
            for dim in (-1, 0, 1, 2)
        ]
        + [Case(lambda t, n=name: getattr(t, f"{n}_keepdim")(1), (zeros(2, 0),))]
        for name in ("max", "min", "argmax", "argmin")
    },
    "flatten_from": [Case(lambda t, d=dim: t.flatten_from(d), (counted(2, 3, 4),)) for dim in range(-3, 4)],
    "flatten_to": [Case(lambda t, d=dim: t.flatten_to(d), (counted(2, 3, 4),)) for dim in range(-3, 4)],
    "flatten_all": [
        Case(lambda t: t.flatten_all(), (operand,)) for operand in (counted(2, 3, 4), f32(1.0), zeros(0, 2))
    ],
    "t": [Case(lambda t: t.t(), (operand,)) for operand in (A, counted(2, 3, 4), ROW, f32(1.0))],
    "is_contiguous": [
        Case(lambda t: t.is_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.t().is_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.t().contiguous().is_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.narrow(0, 1, 1).is_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.narrow(1, 1, 1).is_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.broadcast_left((2,)).is_contiguous(), (counted(2, 3),)),
    ],
    "is_fortran_contiguous": [
        Case(lambda t: t.is_fortran_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.t().is_fortran_contiguous(), (counted(2, 3),)),
        Case(lambda t: t.is_fortran_contiguous(), (counted(3),)),
    ],
    "contiguous": [Case(lambda t: t.t().contiguous(), (A,))],
    "detach": [Case(lambda t: t.detach(), (A,))],
    "copy": [Case(lambda t: t.copy(), (A,)), Case(lambda t: t.t().copy(), (A,))],
    "to_dtype": [
        Case(lambda t, d=str(dtype): t.to_dtype(d), (f32([1.5, -1.5, 300.7, NAN, INF, -INF, 1e30]),))
        for dtype in (DType.U8, DType.U32, DType.I64, DType.BF16, DType.F16, DType.F32, DType.F64)
    ]
    + [Case(lambda t: t.to_dtype("f99"), (A,))],
    "to_device": [Case(lambda t: t.to_device("cpu"), (A,), lambda t: t.to_device(Device.Cpu))],
    "quantize": [],  # in test_candle_files.py
    "to_torch": [],  # in tests/tensor/test_python.py, by DLPack
    "to": [],  # below
}


def test_every_method_of_the_binding_has_a_case() -> None:
    assert set(CASES) == {name for name in dir(candle.Tensor) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
)
def test_methods(name: str, number: int) -> None:
    CASES[name][number].check()
