"""Planted faults: reads and writes past the ends of buffers, of threadgroup memory and of private arrays."""

from __future__ import annotations

import pytest
from emulator.launcher import Order
from given import how
from planted import BARRIER, F16, F32, START, Planted, build, in_every_order, simple


def in_threadgroup_memory(wrong: str, right: str, *says: str, kind: str = "bounds") -> Planted:
    """A body that fills two arrays of threadgroup memory, a and b, and then does what is wrong."""
    body = f"threadgroup float a[64];\nthreadgroup float b[64];\n{START}a[t] = b[t] = 1.0f;\n{BARRIER}\n{wrong}\n"
    return Planted(kind, body, (wrong, right), says)


BOUNDS = {
    "read past the end of an input": simple(
        "bounds",
        "y[t] = x[t + 1];  // <-",
        "y[t] = x[t];",
        r"thread 63 of threadgroup 0 reads index 64 of x at line 2 of the body; x has 64 elements",
    ),
    "read before an input": simple(
        "bounds", "y[t] = x[int(t) - 1];  // <-", "y[t] = x[t];", r"thread 0 of threadgroup 0", r"index -1 of x"
    ),
    "read far past the end of an input": simple(
        "bounds",
        "y[t] = x[t + 1000000];  // <-",
        "y[t] = x[t];",
        r"thread \d+ of threadgroup 0",
        r"index 1000\d\d\d of x",
    ),
    "read past the end of a half input": simple(
        "bounds",
        "y[t] = float(x[t + 1]);  // <-",
        "y[t] = float(x[t]);",
        r"thread 63 of threadgroup 0",
        r"index 64 of x",
        inputs=(((64,), F16),),
    ),
    "read past the end of a small input": simple(
        "bounds",
        "y[t] = x[t % 4];  // <-",
        "y[t] = x[t % 3];",
        r"thread \d+ of threadgroup 0",
        r"index 3 of x",
        inputs=(((3,), F32),),
    ),
    "read of an empty input": simple(
        "bounds",
        "y[t] = x[0];  // <-",
        "y[t] = x_shape[0] > 0 ? x[0] : 0.0f;",
        r"thread \d+ of threadgroup 0",
        r"index 0 of x",
        inputs=(((0,), F32),),
    ),
    "read past the dimensions": simple(
        "bounds", "y[t] = float(x_shape[1]);  // <-", "y[t] = float(x_shape[0]);", r"index 1 of x_shape"
    ),
    "read past the strides": simple(
        "bounds", "y[t] = float(x_strides[1]);  // <-", "y[t] = float(x_strides[0]);", r"index 1 of x_strides"
    ),
    "read through a pointer that walked": simple(
        "bounds",
        "auto p = x + t;\nfloat sum = 0.0f;\nfor (uint k = 0; k < 2; k++) {\n  sum += *p++;  // <-\n}\ny[t] = sum;",
        "auto p = x + t;\nfloat sum = 0.0f;\nfor (uint k = 0; k < 1; k++) {\n  sum += *p++;\n}\ny[t] = sum;",
        r"thread 63 of threadgroup 0",
        r"index 64 of x",
    ),
    "write to an address that is no buffer's": simple(
        "bounds",
        "((device float*)size_t(64))[0] = 1.0f;  // <-\ny[t] = 1.0f;",
        "y[t] = 1.0f;",
        r"thread \d+ of threadgroup 0",
        r"0x40\b",
    ),
    "more private memory than a thread has": simple(
        "bounds",
        "float r[40000];\nfor (uint k = 0; k < 40000; k++) {\n  r[k] = x[t] * float(k);\n}\ny[t] = r[uint(x[t])];",
        "float r[40];\nfor (uint k = 0; k < 40; k++) {\n  r[k] = x[t] * float(k);\n}\ny[t] = r[uint(x[t])];",
        r"thread \d+ of threadgroup 0",
        r"more private memory",
    ),
    "an unsigned index below 0": simple(
        "bounds",
        "y[t] = x[t - 1];  // <-",
        "y[t] = x[t];",
        r"thread 0 of threadgroup 0",
        r"index 4294967295 of x \(an unsigned index below 0\)",
        r"x has 64 elements",
    ),
    "an unsigned index of an output further below 0": simple(
        "bounds",
        "y[t == 3 ? t - 8 : t] = 1.0f;  // <-",
        "y[t == 3 ? t : t] = 1.0f;",
        r"thread 3 of threadgroup 0",
        r"index 4294967291 of y \(an unsigned index below 0\)",
    ),
    "write past the end of an output": simple(
        "bounds", "y[t + 1] = 1.0f;  // <-", "y[t] = 1.0f;", r"thread 63 of threadgroup 0", r"index 64 of y"
    ),
    "write before an output": simple(
        "bounds",
        "y[int(t) - 1] = 1.0f;  // <-",
        "y[t] = 1.0f;",
        r"thread 0 of threadgroup 0",
        r"index -1 of",
        r"index -1 of y",
    ),
    "write past the end of a row that the threadgroup does not divide": Planted(
        "bounds",
        "const uint i = thread_position_in_grid.x;\ny[i] = float(x[i % 5]);  // <-\n",
        ("y[i]", "if (i < 33) y[i]"),
        (r"thread \d+ of threadgroup 1", r"index (3[3-9]|[45]\d|6[0-3]) of y"),
        launch=how(((33,), F32), grid=64),
    ),
    "read past all threadgroup memory": Planted(
        "bounds",
        f"threadgroup float a[64];\n{START}a[t] = 1.0f;\n{BARRIER}\nauto p = a;\ny[t] = p[t + 64];  // <-\n",
        ("t + 64", "t"),
        (r"thread \d+ of threadgroup 0", r"index (6[4-9]|[7-9]\d|1[0-2]\d) of a\b", r"threadgroup memory"),
    ),
    "write before all threadgroup memory": Planted(
        "bounds",
        f"threadgroup float a[64];\n{START}auto p = a;\np[int(t) - 64] = 1.0f;  // <-\n{BARRIER}\ny[t] = a[t];\n",
        ("int(t) - 64", "t"),
        (r"thread \d+ of threadgroup 0", r"index -\d+ of a\b", r"threadgroup memory"),
    ),
    "read of the neighbouring array": in_threadgroup_memory(
        "y[t] = a[t + 1];  // <-", "y[t] = a[t];", r"thread 63 of threadgroup 0", r"index 64 of"
    ),
    "write to the neighbouring array": in_threadgroup_memory(
        "b[int(t) - 1] = 2.0f;  // <-\ny[t] = 1.0f;",
        "b[t] = 2.0f;\ny[t] = 1.0f;",
        r"thread 0 of threadgroup 0",
        r"index -1 of",
    ),
    "read past a private array": simple(
        "bounds",
        "float r[4] = {1.0f, 2.0f, 3.0f, float(x[t])};\nfloat sum = 0.0f;\nfor (uint k = 0; k <= 4 + t / 64; k++) {\n"
        "  sum += r[k];  // <-\n}\ny[t] = sum;",
        "float r[4] = {1.0f, 2.0f, 3.0f, float(x[t])};\nfloat sum = 0.0f;\nfor (uint k = 0; k < 4 + t / 64; k++) {\n"
        "  sum += r[k];\n}\ny[t] = sum;",
        r"thread \d+ of threadgroup 0",
        r"ends of r at .*index 4 of 'float\[4\]'",
    ),
    "write past a private array": simple(
        "bounds",
        "float r[4];\nr[x[t] >= 0.0f ? 4 : 3] = 1.0f;  // <-\ny[t] = r[3];",
        "float r[4];\nr[x[t] < 0.0f ? 4 : 3] = 1.0f;\ny[t] = r[3];",
        r"thread \d+ of threadgroup 0",
        r"ends of r at .*index 4 of 'float\[4\]'",
    ),
    "write before a private array": simple(
        "bounds",
        "float r[4] = {};\nr[int(x[t]) - 7] = 1.0f;  // <-\ny[t] = r[3];",
        "float r[4] = {};\nr[int(x[t]) / 2] = 1.0f;\ny[t] = r[3];",
        r"thread \d+ of threadgroup 0",
        r"ends of r at .*index -[1-7] of 'float\[4\]'",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Everything is compiled first."""
    build(request, BOUNDS)


@in_every_order(BOUNDS)
def test_bounds(name: str, order: Order) -> None:
    BOUNDS[name].assert_reported(order)


@in_every_order(BOUNDS)
def test_corrected_bounds(name: str, order: Order) -> None:
    BOUNDS[name].assert_twin_passes(order)
