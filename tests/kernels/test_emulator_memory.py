"""Memory that is no scalar of the buffer's type: parts of elements, structures, vectors."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from emulator import Emulator, Fault, available
from emulator.launcher import ORDERS
from given import Given, how

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

START = "const uint t = thread_position_in_threadgroup.x;\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
X = mx.arange(64).astype(mx.float32)
ONE_GROUP = how(((64,), mx.float32), grid=64, threadgroup=64)


def run(body: str, header: str = "", x: mx.array = X, how_: object = ONE_GROUP, **emulator: object) -> mx.array:
    """y of a body over x, the same in every order."""
    program = Given("memory", ("x",), ("y",), header=header, body=START + body)
    found = [Emulator(order, 1, **emulator).launch(program, [x], how_)[0] for order in ORDERS]  # type: ignore[arg-type]
    assert all(mx.array_equal(y, found[0]) for y in found)
    return found[0]


def test_threads_write_bytes_of_one_element() -> None:
    y = run("((device uchar*)y)[t] = uchar(t);\n", how_=how(((16,), mx.uint32), grid=64, threadgroup=64))
    np.testing.assert_array_equal(np.array(y).view(np.uint8), np.arange(64))


def test_a_byte_of_an_element_that_another_thread_writes_whole() -> None:
    with pytest.raises(Fault, match="index 3 of y") as raised:
        run("y[t] = x[t];\nif (t == 9) {\n  ((device uchar*)y)[13] = 1;\n}\n")
    assert raised.value.kind == "race"


def test_structures_in_threadgroup_memory() -> None:
    header = "struct Pair {\n  float value;\n  int place;\n};\n"
    body = (
        f"threadgroup Pair part[64];\nPair mine;\nmine.value = x[t];\nmine.place = int(t);\npart[t] = mine;\n{BARRIER}"
    )
    y = run(f"{body}const Pair other = part[63 - t];\ny[t] = other.value + float(other.place);\n", header)
    np.testing.assert_array_equal(np.array(y), 2 * np.arange(63, -1, -1))


@pytest.mark.parametrize("members", ["float value;\n  uchar kind;", "uchar kind;\n  int64_t value;\n  uchar other;"])
def test_padding_of_a_copied_structure_is_nobodys(members: str) -> None:
    header = f"struct Odd {{\n  {members}\n}};\n"
    fill = "part[t].other = 1;\n" if "other" in members else ""
    body = f"""\
threadgroup Odd part[64];
threadgroup Odd copy[64];
part[t].value = x[t];
part[t].kind = 3;
{fill}{BARRIER}copy[t] = part[63 - t];
y[t] = float(copy[t].value) + float(copy[t].kind);
"""
    np.testing.assert_array_equal(np.array(run(body, header)), np.arange(63, -1, -1) + 3)


def test_vectors_where_the_buffer_lies_as_on_a_gpu() -> None:
    body = "if (t < 16) {\n  ((device float4*)y)[t] = ((const device float4*)x)[t];\n}\n"
    assert mx.array_equal(run(body), X)
    with pytest.raises(Fault, match="no multiple of 16") as raised:
        run(body, x=mx.arange(65).astype(mx.float32)[1:])
    assert raised.value.kind == "bounds"


def test_without_the_type_check() -> None:
    body = "y[t] = float(popcount(uint(t)));\n"  # which the check's header lacks, as CUDA does
    with pytest.raises(Fault, match="popcount") as raised:
        run(body)
    assert raised.value.kind == "type"
    np.testing.assert_array_equal(np.array(run(body, type_check=False)), [bin(t).count("1") for t in range(64)])


def test_complex_numbers_are_refused_in_words() -> None:
    with pytest.raises(Fault, match=r"^memory: got complex64 for y; the emulator takes no complex numbers$"):
        run("y[t] = x[t];\n", how_=how(((64,), mx.complex64), grid=64, threadgroup=64))
