"""The portable dialect: every source keeps to it, and every rule finds what it is for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import metal_candle.kernels
from metal_candle.kernels import custom

import emulator
import pytest
from emulator import dialect

SOURCES = sorted(entry.name for entry in (files(metal_candle.kernels) / "source").iterdir())
PORTABLE = dialect.vocabulary(custom.source("as_cuda.h"))
SHIMS = sorted(path for path in Path(emulator.__file__).parent.rglob("as_*cpp.h"))


@pytest.mark.parametrize("name", [name for name in SOURCES if name.endswith(".metal")])
def test_each_body_keeps_to_the_dialect(name: str) -> None:
    assert dialect.lint_body(custom.source(name), custom.source("shared.h"), PORTABLE) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name.endswith(".h") and name != "as_cuda.h"])
def test_each_header_keeps_to_the_dialect(name: str) -> None:
    assert dialect.lint_header(custom.source(name), PORTABLE) == []


def test_every_source_is_a_body_or_a_header() -> None:
    assert [name for name in SOURCES if not name.endswith((".metal", ".h"))] == []
    assert "shared.h" in SOURCES


def test_the_check_knows_the_functions_that_cuda_has() -> None:
    checked = next(path for path in SHIMS if path.name == "as_checked_cpp.h")
    assert dialect.vocabulary(checked.read_text("utf-8")).functions == PORTABLE.functions
    assert "exp" in PORTABLE.functions["metal::fast"]
    assert "simd_sum" in PORTABLE.functions[""]
    assert "thread_index_in_simdgroup" in PORTABLE.attributes
    assert "quadgroups_per_threadgroup" not in PORTABLE.attributes


BREACHES = [
    ("threadgroup float* p = part;", "a pointer to it is `auto`"),
    ("const device float* p = x;", "`device` and `constant` are not written"),
    ("const constant float& p = x[0];", "`device` and `constant` are not written"),
    ("uint thread = 1;", "are no names"),
    ("float uint = 1.0f;", "are no names"),
    ("int threadgroup[3];", "are no names"),
    ("auto p = (float*)x;", "no cast makes a pointer"),
    ("auto p = (const T *)(x + 1);", "no cast makes a pointer"),
    ("auto p = reinterpret_cast<uint>(v);", "no cast reads other bits"),
    ("float v = as_type<float>(1u);", "no cast reads other bits"),
    ("if constexpr (N > 1) {\n}", "`if constexpr` is C++17"),
    ("auto f = [&](int i) { return i; };", "Metal has no lambda"),
    ("auto f = [] { return 1; };", "Metal has no lambda"),
    ("double d = 1.0f;", "lacks this word: `double`"),
    ("goto end;", "lacks this word: `goto`"),
    ("static int n;", "lacks this word: `static`"),
    ("unsigned long n = 1;", "`long` has 64 bits"),
    ("std::min(1, 2);", "there is no standard library"),
    ("#include <cmath>", "there is no standard library"),
    ("atomic_fetch_add(x, 1);", "atomics"),
    ("float4 v;", "no arithmetic on vectors"),
    ("bfloat2 v;", "no arithmetic on vectors"),
    ("uint2 v;", "no arithmetic on vectors"),
    ("float v = Limits<float>::max;", "not on every back-end"),
    ("float v = metal::numeric_limits<float>::max();", "not on every back-end"),
    ("float v = ceildiv(3, 2);", "not on every back-end"),
    ("float v = 0.5;", "is a double: `0.5`"),
    ("float v = 1e-3;", "is a double: `1e-3`"),
    ("float v = 1. + .5;", "is a double: `1.`"),
    ("float v = 0.5h;", "no suffix `h`"),
    ("uint i = threadIdx.x;", "one back-end alone: `threadIdx`"),
    ("__syncthreads();", "one back-end alone: `__syncthreads`"),
    ("float v = metal::erf(1.0f);", "as_cuda.h has no `metal::erf`"),
    ("float v = metal::fast::clamp(1.0f, 0.0f, 1.0f);", "as_cuda.h has no `metal::fast::clamp`"),
    ("float v = exp(1.0f);", "say `metal::exp`"),
    ("float v = simd_product(1.0f);", "as_cuda.h has no `simd_product`"),
    ("uint q = quadgroups_per_threadgroup;", "as_cuda.h has no `quadgroups_per_threadgroup`"),
    ("if (N > 1) {\n  threadgroup float part[32];\n}", "at the top of the body, in no block"),
    ("threadgroup float part[2] = {0.0f, 1.0f};", "declared as `threadgroup T name[CONSTANT];`"),
    ("threadgroup float one;", "declared as `threadgroup T name[CONSTANT];`"),
    ("threadgroup float one[2], other[2];", "declared as `threadgroup T name[CONSTANT];`"),
    ("if (i > n) {\n  return;\n}\nv = simd_sum(v);", "no return before a barrier"),
    ("if (i > n) return;\nthreadgroup_barrier(mem_flags::mem_device);", "no return before a barrier"),
    ("if (i > n) return;\nv = mc_outer(v);", "no return before a barrier"),
    ("// for thread_position_in_grid\n", "because a comment says the word"),
]
HEADER = """
template <typename Part>
inline float mc_inner(float value, Part part) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return value;
}
inline float mc_outer(float value) {
  return mc_inner(value, 1);
}
"""


@pytest.mark.parametrize(("text", "expected"), BREACHES, ids=[text for text, _ in BREACHES])
def test_each_rule_of_bodies(text: str, expected: str) -> None:
    found = dialect.lint_body(f"// first line\n{text}", HEADER, PORTABLE)
    assert any(expected in rule for _, rule in found), found
    last = 2 + text.rstrip("\n").count("\n")
    assert all(2 <= line <= last for line, _ in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inline float square(float x) {\n  return x * x;\n}", "start with mc_, not `square`"),
        ("#define SQUARE(x) x * x", "start with mc_, not `SQUARE`"),
        ("struct Pair {\n  float a;\n};", "start with mc_, not `Pair`"),
        ("inline uint mc_lane() {\n  return thread_index_in_simdgroup;\n}", "passed, not `thread_index_in_simdgroup`"),
        ("inline void mc_f() {\n  threadgroup float part[3];\n}", "passed, not `threadgroup`"),
        ("inline int mc_f(int i) {\n  return i > 0 ? mc_f(i - 1) : i;\n}", "no recursion: `mc_f`"),
        ("inline float mc_f(float x) {\n  return x * 0.5;\n}", "is a double"),
    ],
)
def test_each_rule_of_headers(text: str, expected: str) -> None:
    found = dialect.lint_header(text, PORTABLE)
    assert any(expected in rule for _, rule in found), found


def test_what_is_allowed() -> None:
    body = """
// device, constant, 0.5, exp(1), "threadgroup float* p" and return in comments
threadgroup float part[32];
threadgroup T rows[4][N * (N <= 2 ? 1 : 3)];
const uint3 at = thread_position_in_grid;
const uint lane = thread_index_in_simdgroup;
auto line = x + size_t(at.x) * x_shape[1];
float values[4];
for (uint i = 0; i < 4; i++) {
  values[i] = float(line[i]) * 0.5f + 1e-5f - 3.0e+2f + 2;
}
auto p = part + lane;
int64_t n = (n + 1) * (lane);
float sum = mc_outer(simd_sum(values[0]) / float(n));
threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
if (sum > 0.0f) {
  y[lane] = T(metal::precise::exp(sum));
  return;
}
"""
    assert dialect.lint_body(body, HEADER, PORTABLE) == []
    assert dialect.lint_header(HEADER, PORTABLE) == []
    cuda = "#ifdef MC_FOURS\nstruct Four {\n  double value[4];\n};\n#endif\n"
    assert dialect.lint_header(cuda + HEADER, PORTABLE) == []
    assert [line for line, _ in dialect.lint_header(f"{cuda}double x;", PORTABLE)] == [6]
