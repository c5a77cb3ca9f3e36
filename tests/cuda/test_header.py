"""The header that spells Metal's names in CUDA: each name compiles, and mistakes are found that it cannot prevent."""

from __future__ import annotations

from metal_candle.kernels import custom

import mlx.core as mx
import pytest
from compilation import Compiled, Compiler
from cuda_text import Text, text_of
from emulator import dialect
from given import Given, how

HEADER = custom.source("as_cuda.h")
PORTABLE = dialect.vocabulary(HEADER)
FLOATS = (mx.float32, mx.float16, mx.bfloat16)
TWO = {"pow", "fmod", "atan2", "copysign", "fmin", "fmax", "min", "max"}
THREE = {"clamp", "fma"}
SIMD_WITH_LANE = {"simd_shuffle", "simd_shuffle_down", "simd_shuffle_up", "simd_shuffle_xor", "simd_broadcast"}
BOOLEAN = {"simd_all", "simd_any", "metal::isnan", "metal::isinf", "metal::isfinite"}
BARRIERS = {"threadgroup_barrier", "simdgroup_barrier"}


def text(body: str, dtype: mx.Dtype = mx.float32) -> Text:
    """A kernel with inputs ``x`` of this dtype and ``i`` of integers, and an output ``y`` of floats."""
    program = Given("given", ("x", "i"), ("y",), body=body, header=custom.source("shared.h"))
    return text_of(program, [((64,), dtype), ((64,), mx.int32)], how(((64,), mx.float32), template=(("T", dtype),)))


def call(space: str, name: str) -> str:
    """An expression that calls the function with floats."""
    full = f"{space}::{name}" if space else name
    if full == "metal::select":
        return "metal::select(v, w, v < w)"
    if name in SIMD_WITH_LANE:
        return f"{full}(v, ushort(1))"
    if full in ("simd_all", "simd_any"):
        return f"({full}(v > w) ? 1.0f : 0.0f)"
    arguments = ["v", "w", "v + w"][: 3 if name in THREE else 2 if name in TWO else 1]
    return f"({full}({', '.join(arguments)}) ? 1.0f : 0.0f)" if full in BOOLEAN else f"{full}({', '.join(arguments)})"


def vector(attribute: str) -> bool:
    """Whether an attribute has three parts."""
    return "uint3" in HEADER.partition(f"#define {attribute} ")[2].split("#define")[0]


CALLS = [
    f"sum += {call(space, name)};"
    for space, names in sorted(PORTABLE.functions.items())
    for name in sorted(names - BARRIERS)
]
PLACES = [f"{name}.x + {name}.y + {name}.z" for name in sorted(PORTABLE.attributes) if vector(name)]
NUMBERS = [name for name in sorted(PORTABLE.attributes) if not vector(name)]
IN_THREADGROUP = """
threadgroup T part[64];
const uint at = thread_index_in_threadgroup;
part[at] = x[at];
threadgroup_barrier(mem_flags::mem_threadgroup);
auto from = part + (63 - at);
y[at] = float(*from);
"""
BODIES = {
    "functions": "\n".join(["float v = x[0];", "float w = x[1];", "float sum = 0.0f;", *CALLS, "y[0] = sum;"]),
    "attributes": f"const uint3 at = thread_position_in_grid;\ny[at.x] = float({' + '.join([*PLACES, *NUMBERS])});",
    "the rest": """
threadgroup float part[32];
const uint lane = thread_index_in_simdgroup;
int n = metal::clamp(metal::min(i[0], 3), -metal::abs(i[1]), metal::max(i[2], 4));
uint m = metal::clamp(metal::min(uint(i[0]), 3u), lane, metal::max(lane, 4u));
n = simd_sum(n) + simd_max(n) + simd_min(n) + simd_shuffle_xor(n, ushort(3));
m = simd_sum(m) + simd_max(m) + simd_min(m) + simd_broadcast_first(m) + uint(metal::select(1, 2, n > 3));
part[lane] = float(n) + float(m) + INFINITY - NAN + FLT_MAX + FLT_MIN + FLT_EPSILON;
threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
simdgroup_barrier(mem_flags::mem_none);
ulong wide = 1;
uchar narrow = 2;
bfloat brain = bfloat(part[0]);
bfloat16_t other = bfloat16_t(1.0f);
float16_t small = half(part[31 - lane]);
y[lane] = float(brain) + float(other) + float(small) + float(wide) + float(narrow);
""",
    "too many for registers": """
float v[300];
_Pragma("unroll")
for (int k = 0; k < 300; k++) {
  v[k] = float(x[k]);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
_Pragma("unroll")
for (int k = 0; k < 300; k++) {
  y[k] = v[k] * v[299 - k] + v[(7 * k) % 300];
}
""",
    "an array by index": """
float v[4];
for (int k = 0; k < 4; k++) {
  v[i[k]] = float(x[k]);
}
y[0] = v[i[5]];
""",
}


@pytest.fixture(scope="module")
def found(compiling: Compiler) -> dict[str, Compiled]:
    """The bodies, compiled."""
    texts = {name: text(body) for name, body in BODIES.items()}
    texts |= {str(dtype): text(IN_THREADGROUP, dtype) for dtype in FLOATS}
    return dict(zip(texts, compiling.compile_all(list(texts.values()))))


def test_every_name_compiles(found: dict[str, Compiled]) -> None:
    assert len(CALLS) > 100
    assert (len(PLACES), len(NUMBERS)) == (6, 6)
    assert {name: compiled.said for name, compiled in found.items() if compiled.said} == {}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_threadgroup_memory_of_each_dtype_is_shared(found: dict[str, Compiled], dtype: mx.Dtype) -> None:
    assert found[str(dtype)].shared == 64 * dtype.size
    assert found["the rest"].shared == 128


def test_what_does_not_fit_into_registers_is_reported(found: dict[str, Compiled]) -> None:
    assert found["too many for registers"].spilled > 0
    assert found["an array by index"].spilled == 0
    assert found["an array by index"].stack == 16


HALVES = "const T v = x[0];\n"
REFUSED = {
    "a half and a float added": (HALVES + "y[0] = v + 1.0f;", "more than one operator"),
    "a pointer into threadgroup memory": ("threadgroup float part[32];\nthreadgroup float* p = part;", ""),
    "a simdgroup operation on halves": (HALVES + "y[0] = float(simd_sum(v));", "simdgroup operations take float"),
    "a name that is not portable": ("y[0] = metal::erf(1.0f);", "has no member"),
    "a variable that nobody set": ("float sum;\ny[0] = sum;", "used before its value is set"),
}


def test_mistakes_are_told(compiling: Compiler) -> None:
    texts = [text(body, mx.float16) for body, _ in REFUSED.values()]
    for what, compiled in zip(REFUSED, compiling.compile_all(texts, most=1)):
        assert compiled.said != "", what
        assert REFUSED[what][1] in compiled.said


def test_a_mistake_is_told_apart_from_its_neighbour(compiling: Compiler) -> None:
    wrong, right = compiling.compile_all([text("y[0] = nothing;"), text("y[0] = x[0];")])
    assert wrong.failed
    assert "nothing" in wrong.said
    assert (right.failed, right.said) == (False, "")
    assert right.registers > 0
