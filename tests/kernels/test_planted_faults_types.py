"""Planted faults that a compiler of Metal would refuse: address spaces, constness, halves, names and C++17."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from emulator.launcher import Order
from given import how
from planted import BARRIER, BF16, F16, F32, START, Arrays, Planted, build, in_every_order

SMALL: Arrays = (((3,), F32),)
LARGE: Arrays = (((64,), F32),)
SCALAR: Arrays = (((), F32),)


def of(dtype: mx.Dtype, wrong: str, right: str, *says: str) -> Planted:
    """From an input of this dtype to an output of it."""
    arrays: Arrays = (((64,), dtype),)
    return typed(wrong, right, *says, inputs=arrays, launch=how(*arrays, grid=64, threadgroup=64))


def typed(wrong: str, right: str, *says: str, **how_it_runs: Any) -> Planted:
    """A body of one line or several after ``t``; the order of threads means nothing to a compiler."""
    return Planted("type", f"{START}{wrong}\n", (wrong, right), says, orders=("forward",), **how_it_runs)


TYPES = {
    "device pointer to a small input": typed(
        "const device float* p = x;  // <-\ny[t] = p[0];",
        "auto p = x;\ny[t] = p[0];",
        r"device",
        r"constant",
        inputs=SMALL,
    ),
    "the same with a small input where a large one fits": Planted(
        "type",
        f"{START}const device float* p = x;  // <-\ny[t] = p[0];\n",
        says=(r"device", r"constant"),
        inputs=SMALL,
        given=LARGE,
        orders=("forward",),
    ),
    "constant pointer to a large input": typed(
        "const constant float* p = x;  // <-\ny[t] = p[0];", "auto p = x;\ny[t] = p[0];", r"device", r"constant"
    ),
    "threadgroup pointer to a device array": typed(
        "threadgroup float* p = y;  // <-\np[t] = 1.0f;", "auto p = y;\np[t] = 1.0f;", r"pointer to threadgroup memory"
    ),
    "thread pointer to a device array": typed(
        "const float* p = x;  // <-\ny[t] = p[t];", "auto p = x;\ny[t] = p[t];", r"device"
    ),
    "pointer to one of two address spaces": typed(
        "auto p = t < 3 ? x : y;  // <-\ny[t] = p[0];", "y[t] = t < 3 ? x[0] : 1.0f;", inputs=SMALL
    ),
    "write to an input": typed("x[t] = 1.0f;  // <-\ny[t] = 1.0f;", "y[t] = 1.0f;", r"read-only|const"),
    "write to a small input": typed(
        "x[0] = 1.0f;  // <-\ny[t] = 1.0f;", "y[t] = 1.0f;", r"read-only|const", inputs=SMALL
    ),
    "write to the shape": typed("x_shape[0] = 1;  // <-\ny[t] = 1.0f;", "y[t] = 1.0f;", r"read-only|const"),
    "write through a pointer to an input": typed(
        "auto p = x + t;\n*p = 1.0f;  // <-\ny[t] = 1.0f;", "auto p = y + t;\n*p = 1.0f;", r"read-only|const"
    ),
    "index of an array without dimensions": typed("y[t] = x[0];  // <-", "y[t] = x;", inputs=SCALAR),
    "array of one element without an index": typed("y[t] = x;  // <-", "y[t] = x[0];", inputs=(((1,), F32),)),
    "shape of an array without dimensions": typed(
        "y[t] = float(x_shape[0]);  // <-", "y[t] = x;", r"undeclared identifier 'x_shape'", inputs=SCALAR
    ),
    "half to float": of(
        F16, "float v = x[t];  // <-\ny[t] = half(v);", "float v = float(x[t]);\ny[t] = half(v);", r"half"
    ),
    "float to half": of(F16, "y[t] = 1.0f;  // <-", "y[t] = half(1.0f);", r"half"),
    "half times half": of(F16, "y[t] = x[t] * x[t];  // <-", "y[t] = half(float(x[t]) * float(x[t]));", r"binary"),
    "half plus float": of(F16, "y[t] = half(x[t] + 1.0f);  // <-", "y[t] = half(float(x[t]) + 1.0f);", r"binary"),
    "minus a half": of(F16, "y[t] = -x[t];  // <-", "y[t] = half(-float(x[t]));", r"unary"),
    "sum into a half": of(F16, "y[t] = x[t];\ny[t] += x[t];  // <-", "y[t] = half(2.0f * float(x[t]));", r"half"),
    "float to bfloat": of(BF16, "y[t] = 1.0f;  // <-", "y[t] = bfloat(1.0f);", r"bfloat"),
    "bfloat to float": of(BF16, "float v = x[t];  // <-\ny[t] = x[t];", "y[t] = x[t];", r"bfloat"),
    "bfloat plus bfloat": of(BF16, "y[t] = x[t] + x[t];  // <-", "y[t] = bfloat(2.0f * float(x[t]));", r"binary"),
    "half to bfloat": typed(
        "y[t] = x[t];  // <-",
        "y[t] = bfloat(float(x[t]));",
        r"bfloat",
        inputs=(((64,), F16),),
        launch=how(((64,), BF16), grid=64, threadgroup=64),
    ),
    "maximum of halves": of(
        F16, "y[t] = metal::max(x[t], x[t]);  // <-", "y[t] = half(metal::max(float(x[t]), 0.0f));"
    ),
    "simdgroup sum of halves": of(
        F16, "y[t] = simd_sum(x[t]);  // <-", "y[t] = half(simd_sum(float(x[t])));", r"simd_sum"
    ),
    "simdgroup sum of booleans": typed(
        "y[t] = float(simd_sum(x[t] > 0.0f));  // <-", "y[t] = float(simd_sum(int(x[t] > 0.0f)));", r"simd_sum"
    ),
    "maximum of an int and a uint": typed(
        "y[t] = float(metal::max(1, t));  // <-", "y[t] = float(metal::max(1u, t));", r"ambiguous"
    ),
    "function that CUDA lacks": typed("y[t] = metal::sinpi(x[t]);  // <-", "y[t] = metal::sin(x[t]);", r"sinpi"),
    "function without its namespace": typed("y[t] = exp(x[t]);  // <-", "y[t] = metal::exp(x[t]);", r"exp"),
    "helper of MLX's": typed("y[t] = log1p(x[t]);  // <-", "y[t] = metal::log(1.0f + x[t]);", r"log1p"),
    "vector of halves": typed("half4 v;  // <-\ny[t] = 1.0f;", "float4 v;\ny[t] = 1.0f;", r"half4"),
    # Legal Metal; in C++ the pointer would be a variable of threadgroup memory, and CUDA does not compile it.
    "pointer to threadgroup memory": Planted(
        "type",
        "threadgroup float part[64];\n"
        f"{START}threadgroup float* p = part;  // <-\np[t] = x[t];\n{BARRIER}\ny[t] = p[63 - t];\n",
        ("threadgroup float* p", "auto p"),
        (r"pointer to threadgroup memory", r"`auto`"),
    ),
    "if constexpr": typed(
        "if constexpr (true) {  // <-\n  y[t] = 1.0f;\n}", "if (true) {\n  y[t] = 1.0f;\n}", r"C\+\+17"
    ),
    "array of variable length": typed(
        "float r[t + 1];  // <-\nr[0] = 1.0f;\ny[t] = r[0];",
        "float r[1];\nr[0] = 1.0f;\ny[t] = r[0];",
        r"variable length",
    ),
    "number for the barrier's flags": typed(
        "threadgroup_barrier(2);  // <-\ny[t] = 1.0f;",
        "threadgroup_barrier(mem_flags::mem_threadgroup);\ny[t] = 1.0f;",
        r"threadgroup_barrier",
    ),
    "half where the template is float's": Planted(
        "type",
        f"{START}T v = T(float(x[t]));\nfloat w = v;  // <-\ny[t] = w;\n",
        ("float w = v", "float w = float(v)"),
        (r"half|float16_t",),
        launch=how(*LARGE, grid=64, threadgroup=64, template=(("T", F16),)),
        orders=("forward",),
    ),
    "several outputs after a shape without an attribute": Planted(
        "type",
        "y[0] = w[0] = float(x_shape[0]);\n",
        ("float(x_shape[0])", "x[0]"),
        inputs=SMALL,
        launch=how(((1,), F32), ((1,), F32), grid=1, threadgroup=1),
        orders=("forward",),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Everything is compiled first."""
    build(request, TYPES)


@in_every_order(TYPES)
def test_types(name: str, order: Order) -> None:
    TYPES[name].assert_reported(order)


@in_every_order(TYPES)
def test_corrected_types(name: str, order: Order) -> None:
    TYPES[name].assert_twin_passes(order)
