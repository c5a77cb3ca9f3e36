"""Planted faults: barriers that are missing, of the wrong kind or not reached by all, and races they would prevent."""

from __future__ import annotations

import pytest
from emulator.launcher import Order
from given import how
from planted import BARRIER, F32, START, Planted, build, in_every_order

ANY_THREAD = r"thread \d+ of threadgroup 0"

# Threads exchange values within a threadgroup. The barrier in question is the second.
EXCHANGE = f"""\
threadgroup float part[64];
const uint t = thread_position_in_threadgroup.x;
part[t] = 0.0f;
{BARRIER}
part[t] = float(x[t]);  // <-
BETWEEN
y[t] = part[63 - t];  // <-
"""
# The same through an output, which is device memory.
THROUGH_OUTPUT = """\
const uint t = thread_position_in_threadgroup.x;
y[t] = float(x[t]);
threadgroup_barrier(mem_flags::mem_device);
const float other = y[63 - t];  // <-
BETWEEN
y[t] = other;  // <-
"""
# Two lanes of one simdgroup.
NEIGHBOURS = f"""\
threadgroup float part[64];
const uint t = thread_position_in_threadgroup.x;
part[t] = 0.0f;
{BARRIER}
part[t] = float(x[t]);  // <-
BETWEEN
y[t] = part[t ^ 1];  // <-
"""
# Two outputs, y and w, and two threadgroups.
ACROSS_GROUPS = """\
const uint i = thread_position_in_grid.x;
y[i] = float(x[i]);
threadgroup_barrier(mem_flags::mem_device);
w[i] = y[i ^ OTHER];  // <-
"""


def between(body: str, wrong: str, right: str) -> Planted:
    """A race on threadgroup memory or, with an output, on device memory."""
    says = (f"{ANY_THREAD} .* {ANY_THREAD}", rf"index \d+ of {'part' if 'part' in body else 'y'}\b")
    marked = f"{wrong}  // between"
    return Planted("race", body.replace("BETWEEN", marked), (marked, right), says)


def diverging(wrong: str, right: str, *says: str) -> Planted:
    """A body of one threadgroup whose threads part; each writes its output there or after it."""
    end = "" if "y[t] =" in wrong else "\ny[t] = 1.0f;"
    return Planted("divergence", f"{START}{wrong}{end}", (wrong, right), (r"threadgroup 0", *says))


RACES = {
    "missing barrier": between(EXCHANGE, "", BARRIER),
    "simdgroup barrier between simdgroups": between(
        EXCHANGE, "simdgroup_barrier(mem_flags::mem_threadgroup);", BARRIER
    ),
    "barrier for device memory only": between(EXCHANGE, "threadgroup_barrier(mem_flags::mem_device);", BARRIER),
    "barrier for no memory": between(EXCHANGE, "threadgroup_barrier(mem_flags::mem_none);", BARRIER),
    "simdgroup operation as a barrier": between(
        NEIGHBOURS, "const float s = simd_sum(1.0f);", "simdgroup_barrier(mem_flags::mem_threadgroup);"
    ),
    "simdgroup barrier for device memory only": between(
        NEIGHBOURS,
        "simdgroup_barrier(mem_flags::mem_device);",
        "simdgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);",
    ),
    "output read and written": between(THROUGH_OUTPUT, "", "threadgroup_barrier(mem_flags::mem_device);"),
    "output, barrier for threadgroup memory only": between(
        THROUGH_OUTPUT, BARRIER, "threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);"
    ),
    "no barrier, and nothing written before": Planted(
        "race",
        f"threadgroup float part[64];\n{START}part[t] = float(x[t]);  // <-\n// between\ny[t] = part[63 - t];  // <-\n",
        ("// between", BARRIER),
        (ANY_THREAD, r"index \d+ of part"),
    ),
    "no barrier, and what is read is an index": Planted(
        "race",
        f"threadgroup int part[64];\n{START}part[t] = int(t);  // <-\n// between\ny[t] = x[part[63 - t]];  // <-\n",
        ("// between", BARRIER),
        (ANY_THREAD, r"index \d+ of part"),
    ),
    "both on one line": Planted(
        "race",
        f"threadgroup float part[64];\n{START}part[t] = x[t]; y[t] = part[63 - t];  // <-\n",
        ("x[t];", f"x[t]; {BARRIER}"),
        (r"line 3, column 9, .*line 3, column 24,",),
    ),
    "a member of a structure": Planted(
        "race",
        "struct Pair { float value; int place; };\nthreadgroup Pair part[64];\n"
        f"{START}part[t].value = x[t];\npart[t].place = int(t);\n{BARRIER}\n"
        "if (t == 5) part[7].place = 3;  // <-\nPair p = part[63 - t];  // <-\ny[t] = p.value + float(p.place);\n",
        ("if (t == 5)", "if (t > 64)"),
        (ANY_THREAD, r"byte 60 of part \(in element 7 of 64\)|index 7 of part"),
    ),
    "reuse in a loop": Planted(
        "race",
        f"""\
threadgroup float part[2];
const uint t = thread_position_in_threadgroup.x;
float sum = 0.0f;
for (uint round = 0; round < 3; round++) {{
  if (t % 32 == 0) {{
    part[t / 32] = float(x[t + round]);  // <-
  }}
  {BARRIER}
  sum += part[0] + part[1];  // <-
}}
y[t] = sum;
""",
        ("part[1];  // <-", f"part[1];  // <-\n  {BARRIER}"),
        (ANY_THREAD,),
    ),
    "two threads write one place": Planted(
        "race",
        f"""\
threadgroup float part[64];
const uint t = thread_position_in_threadgroup.x;
part[t / 2] = float(x[t]);  // <-
{BARRIER}
y[t] = part[t / 2];
""",
        ("part[t / 2] = float", "if (t % 2 == 0) part[t / 2] = float"),
        (ANY_THREAD,),
    ),
    "two threads write one output": Planted(
        "race",
        """\
const uint t = thread_position_in_threadgroup.x;
y[t / 2] = float(x[t]);  // <-
y[32 + t / 2] = 1.0f;
""",
        ("y[t / 2] = float(x[t]);  // <-\ny[32 + t / 2] = 1.0f;", "y[t] = float(x[t]);"),
        (ANY_THREAD, r"\by\b"),
    ),
    "all threads write one output, the same value": Planted(
        "race",
        """\
const uint t = thread_position_in_threadgroup.x;
y[0] = 1.0f;  // <-
""",
        ("y[0]", "if (t == 0) y[0]"),
        (ANY_THREAD, r"index 0 of y"),
        launch=how(((1,), F32), grid=64, threadgroup=64),
    ),
    "two threadgroups write one output": Planted(
        "race",
        """\
y[thread_position_in_threadgroup.x] = x[0];  // <-
""",
        ("thread_position_in_threadgroup", "thread_position_in_grid"),
        (r"thread \d+ of threadgroup [01]", r"which thread \d+ of threadgroup [01] ", r"index \d+ of y"),
        launch=how(((32,), F32), grid=64),
        fixed=how(((64,), F32), grid=64),
    ),
    "a threadgroup reads what an earlier one wrote": Planted(
        "race",
        ACROSS_GROUPS.replace("OTHER", "(threadgroup_position_in_grid.x == 1 ? 33 : 1)"),
        ("(threadgroup_position_in_grid.x == 1 ? 33 : 1)", "1"),
        (r"thread \d+ of threadgroup [01]", r"which thread \d+ of threadgroup [01] ", r"index \d+ of y"),
        launch=how(((64,), F32), ((64,), F32), grid=64),
    ),
    "threadgroups read each other's output": Planted(
        "race",
        ACROSS_GROUPS.replace("OTHER", "33"),
        ("33", "1"),
        (r"thread \d+ of threadgroup \d", r"\by\b"),
        launch=how(((64,), F32), ((64,), F32), grid=64),
    ),
}

DIVERGENCES = {
    "barrier after a simdgroup returned": diverging(
        "if (t >= 32) return;\nthreadgroup_barrier(mem_flags::mem_threadgroup);  // <-",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        r"32 at threadgroup_barrier",
        r"32 finished",
    ),
    "barrier after one lane returned": diverging(
        "if (t == 5) return;\nthreadgroup_barrier(mem_flags::mem_device);  // <-",
        "threadgroup_barrier(mem_flags::mem_device);",
        r"63 at threadgroup_barrier",
        r"1 finished",
        r"thread 5\b",
    ),
    "barrier under a condition": diverging(
        "if (t < 32) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);  // <-\n}",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        r"32 at threadgroup_barrier",
    ),
    "two barriers in two branches": diverging(
        "if (t < 32) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);  // <-\n} else {\n"
        "  threadgroup_barrier(mem_flags::mem_threadgroup);  // <-\n}",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        r"32 at threadgroup_barrier.*32 at threadgroup_barrier",
    ),
    "barrier in a ragged loop": diverging(
        "for (uint k = t; k < 80; k += 64) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);  // <-\n}",
        "for (uint k = 0; k < 80; k += 64) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);\n}",
        r"16 at threadgroup_barrier",
        r"48 finished",
    ),
    "simdgroup barrier after one lane returned": diverging(
        "if (t == 40) return;\nsimdgroup_barrier(mem_flags::mem_threadgroup);  // <-",
        "simdgroup_barrier(mem_flags::mem_threadgroup);",
        r"simdgroup 1 of threadgroup 0",
        r"31 at simdgroup_barrier",
        r"1 finished",
    ),
    "simdgroup operation after one lane returned": diverging(
        "if (t == 40) return;\nconst float s = simd_max(float(x[t]));  // <-\ny[t] = s;",
        "y[t] = simd_max(float(x[t]));",
        r"simdgroup 1 of threadgroup 0",
        r"31 at simd_max",
        r"1 finished",
    ),
    "simdgroup operation under a condition": diverging(
        "float s = 0.0f;\nif (t < 16) {\n  s = simd_sum(float(x[t]));  // <-\n}\ny[t] = s;",
        "y[t] = simd_sum(t < 16 ? float(x[t]) : 0.0f);",
        r"simdgroup 0 of threadgroup 0",
        r"16 at simd_sum",
        r"16 finished",
    ),
    "simdgroup operation in a ragged loop": diverging(
        "float s = 0.0f;\nfor (uint k = t; k < 40; k += 64) {\n  s += simd_sum(float(x[k]));  // <-\n}\ny[t] = s;",
        "float s = 0.0f;\nfor (uint k = 0; k < 40; k += 64) {\n"
        "  s += simd_sum(k + t < 40 ? float(x[k + t]) : 0.0f);\n}\ny[t] = s;",
        r"simdgroup 1 of threadgroup 0",
        r"8 at simd_sum",
        r"24 finished",
    ),
    "two simdgroup operations in two branches": diverging(
        "float s = 1.0f;\nif (t % 2 == 0) {\n  s = simd_sum(s);  // <-\n} else {\n  s = simd_min(s);  // <-\n}\n"
        "y[t] = s;",
        "const float a = simd_sum(1.0f);\nconst float b = simd_min(1.0f);\ny[t] = t % 2 == 0 ? a : b;",
        r"16 at simd_sum",
        r"16 at simd_min",
    ),
    "one call more of the same operation": diverging(
        "float s = 1.0f;\nfor (uint k = t / 8 % 2; k < 2; k++) {\n  s = simd_shuffle_xor(s, 1);  // <-\n}\ny[t] = s;",
        "float s = 1.0f;\nfor (uint k = 0; k < 2; k++) {\n  s = simd_shuffle_xor(s, 1);\n}\ny[t] = s;",
        r"16 at simd_shuffle_xor",
        r"16 finished",
    ),
    "simdgroup operation and barrier": diverging(
        "float s = 1.0f;\nif (t < 48) {\n  s = simd_sum(s);  // <-\n}\n"
        "threadgroup_barrier(mem_flags::mem_threadgroup);  // <-\ny[t] = s;",
        "const float s = simd_sum(1.0f);\nthreadgroup_barrier(mem_flags::mem_threadgroup);\ny[t] = s;",
        r"simdgroup 1 of threadgroup 0",
        r"16 at simd_sum",
        r"16 at threadgroup_barrier",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Everything is compiled first."""
    build(request, RACES, DIVERGENCES)


@in_every_order(RACES)
def test_races(name: str, order: Order) -> None:
    RACES[name].assert_reported(order)


@in_every_order(RACES)
def test_corrected_races(name: str, order: Order) -> None:
    RACES[name].assert_twin_passes(order)


@in_every_order(DIVERGENCES)
def test_divergences(name: str, order: Order) -> None:
    DIVERGENCES[name].assert_reported(order)


@in_every_order(DIVERGENCES)
def test_corrected_divergences(name: str, order: Order) -> None:
    DIVERGENCES[name].assert_twin_passes(order)
