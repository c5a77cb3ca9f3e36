"""Planted faults: reads of what nobody wrote, outputs left out, inputs written, integer arithmetic."""

from __future__ import annotations

import pytest
from emulator.launcher import Order
from given import how
from planted import BARRIER, F16, F32, START, Planted, build, in_every_order, simple

ONE_SIMDGROUP = how(((32,), F32))

UNWRITTEN = {
    "threadgroup memory that is written after the barrier": Planted(
        "uninitialised",
        f"threadgroup float part[64];\n{START}const float v = part[63 - t];  // <-\n{BARRIER}\npart[t] = float(x[t]);\n"
        "y[t] = v;\n",
        ("part[63 - t];  // <-", "x[63 - t];"),
        (r"thread \d+ of threadgroup 0", r"index \d+ of part"),
    ),
    "an index that nobody wrote": Planted(
        "uninitialised",
        f"threadgroup int part[64];\n{START}if (t % 2 == 0) {{\n  part[t] = int(t);\n}}\n{BARRIER}\n"
        "y[t] = x[part[t]];  // <-\n",
        ("t % 2 == 0", "t < 64"),
        (r"thread \d*[13579] of threadgroup 0", r"index \d+ of part"),
    ),
    "a member of a structure": Planted(
        "uninitialised",
        f"struct Pair {{ float value; int place; }};\nthreadgroup Pair part[64];\n{START}part[t].value = x[t];\n"
        f"// place\n{BARRIER}\ny[t] = float(part[63 - t].place);  // <-\n",
        ("// place", "part[t].place = 1;"),
        (r"byte \d+ of part \(in element \d+ of 64\)",),
    ),
    "slots of simdgroups that are not there": Planted(
        "uninitialised",
        f"threadgroup float part[32];\n{START}const uint lane = thread_index_in_simdgroup;\n"
        f"if (lane == 0) {{\n  part[simdgroup_index_in_threadgroup] = 1.0f;\n}}\n{BARRIER}\n"
        "y[t] = simd_sum(part[lane]);  // <-\n",
        ("part[lane]", "lane < simdgroups_per_threadgroup ? part[lane] : 0.0f"),
        (r"thread \d+ of threadgroup 0",),
    ),
    "threadgroup memory that an earlier threadgroup wrote": Planted(
        "uninitialised",
        f"threadgroup float part[32];\n{START}if (threadgroup_position_in_grid.x == 0) {{\n  part[t] = 1.0f;\n}}\n"
        "y[thread_position_in_grid.x] = part[t];  // <-\n",
        ("threadgroup_position_in_grid.x == 0", "x[0] == 0.0f"),
        (r"thread \d+ of threadgroup 1",),
        launch=how(((64,), F32), grid=64),
    ),
    "output read before it is written": simple(
        "uninitialised",
        "y[t] += float(x[t]);  // <-",
        "y[t] = float(x[t]);",
        r"thread \d+ of threadgroup 0",
        r"index \d+ of y",
    ),
}
UNWRITTEN["a private variable"] = simple(
    "uninitialised",
    "float v;\ny[t] = v + x[t];  // <-",
    "float v = 0.0f;\ny[t] = v + x[t];",
    r"variable 'v'",
    orders=("forward",),
)
UNWRITTEN["a private variable in one of two branches"] = simple(
    "uninitialised",
    "float v;\nif (x[t] > 1.0f) {  // <-\n  v = 1.0f;\n}\ny[t] = v;",
    "float v = 0.0f;\nif (x[t] > 1.0f) {\n  v = 1.0f;\n}\ny[t] = v;",
    r"variable 'v'",
    orders=("forward",),
)
UNWRITTEN["threadgroup memory of half its threads"] = Planted(
    "uninitialised",
    f"threadgroup T part[64];\n{START}if (t % 2 == 0) {{\n  part[t] = T(1.0f);\n}}\n{BARRIER}\n"
    "y[t] = float(part[t]);  // <-\n",
    ("t % 2 == 0", "t < 64"),
    (r"thread \d*[13579] of threadgroup 0",),
    launch=how(((64,), F32), grid=64, threadgroup=64, template=(("T", F16),)),
)

UNCOVERED = {
    "one element": simple("uncovered", "if (t != 7) y[t] = 1.0f;", "y[t] = 1.0f;", r"index 7 of y"),
    "the last row": Planted(
        "uncovered",
        "const uint i = thread_position_in_grid.x;\ny[i] = 1.0f;\n",
        says=(r"index 32 of y",),
        launch=how(((64,), F32)),
        fixed=how(((64,), F32), grid=64),
    ),
    "no thread at all": Planted(
        "uncovered",
        "if (x[0] == 1.0f) y[thread_position_in_grid.x] = 1.0f;\n",
        ("x[0] == 1.0f", "x[0] == 0.0f"),
        (r"index 0 of y",),
        launch=ONE_SIMDGROUP,
    ),
    "half of each element": simple(
        "uncovered",
        "auto p = (device ushort*)y;\np[2 * t] = 3;",
        "auto p = (device ushort*)y;\np[2 * t] = p[2 * t + 1] = 3;",
        r"the whole of index 0 of y; 64 of its 64 elements",
    ),
    "a second output that is a dummy": Planted(
        "uncovered",
        "y[thread_position_in_grid.x] = 1.0f;\n",
        says=(r"index 0 of w",),
        launch=how(((32,), F32), ((1,), F32)),
        fixed=how(((32,), F32), ((1,), F32), unused=("w",)),
    ),
}

READ_ONLY = {
    "an input by cast": simple(
        "read-only", "((device float*)x)[t] = 1.0f;  // <-\ny[t] = 1.0f;", "y[t] = 1.0f;", r"index \d+ of x"
    ),
    "a small input by cast": simple(
        "read-only",
        "((constant float*)x)[t % 3] = 1.0f;  // <-\ny[t] = 1.0f;",
        "y[t] = 1.0f;",
        r"index [0-2] of x",
        inputs=(((3,), F32),),
    ),
    "the shape by cast": simple(
        "read-only", "((constant int*)x_shape)[0] = 1;  // <-\ny[t] = 1.0f;", "y[t] = 1.0f;", r"index 0 of x_shape"
    ),
}

ARITHMETIC = {
    "shift by 40": simple(
        "arithmetic",
        "y[t] = float(1u << (uint(x[t]) + 40));  // <-",
        "y[t] = float(1u << (uint(x[t]) + 4));",
        r"by 4[0-6]\b",
    ),
    "shift by less than nothing": simple(
        "arithmetic",
        "y[t] = float(64u >> (int(x[t]) - 7));  // <-",
        "y[t] = float(64u >> (7 - int(x[t])));",
        r"by -[1-7]\b",
    ),
    "division by zero": simple(
        "arithmetic", "y[t] = float(100u / uint(x[t]));  // <-", "y[t] = float(100u / (uint(x[t]) + 1));", r"thread \d+"
    ),
    "remainder by zero": simple(
        "arithmetic", "y[t] = float(100 % int(x[t]));  // <-", "y[t] = float(100 % (int(x[t]) + 1));", r"thread \d+"
    ),
    "division by the length of an empty row": simple(
        "arithmetic",
        "y[t] = float(t % uint(x_shape[1]));  // <-",
        "y[t] = float(t % metal::max(uint(x_shape[1]), 1u));",
        r"thread \d+ of threadgroup 0",
        inputs=(((4, 0), F32),),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Everything is compiled first."""
    build(request, UNWRITTEN, UNCOVERED, READ_ONLY, ARITHMETIC)


@in_every_order(UNWRITTEN)
def test_unwritten(name: str, order: Order) -> None:
    UNWRITTEN[name].assert_reported(order)


@in_every_order(UNWRITTEN)
def test_corrected_unwritten(name: str, order: Order) -> None:
    UNWRITTEN[name].assert_twin_passes(order)


@in_every_order(UNCOVERED)
def test_uncovered(name: str, order: Order) -> None:
    UNCOVERED[name].assert_reported(order)


@in_every_order(UNCOVERED)
def test_corrected_uncovered(name: str, order: Order) -> None:
    UNCOVERED[name].assert_twin_passes(order)


@in_every_order(READ_ONLY)
def test_read_only(name: str, order: Order) -> None:
    READ_ONLY[name].assert_reported(order)


@in_every_order(READ_ONLY)
def test_corrected_read_only(name: str, order: Order) -> None:
    READ_ONLY[name].assert_twin_passes(order)


@in_every_order(ARITHMETIC)
def test_arithmetic(name: str, order: Order) -> None:
    ARITHMETIC[name].assert_reported(order)


@in_every_order(ARITHMETIC)
def test_corrected_arithmetic(name: str, order: Order) -> None:
    ARITHMETIC[name].assert_twin_passes(order)
