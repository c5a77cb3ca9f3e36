"""Planted faults of the launch: what Metal refuses at evaluation, or CUDA runs with other threads."""

from __future__ import annotations

import pytest
from emulator.launcher import Order
from given import how
from planted import F32, Planted, build, in_every_order

WRITE = "y[thread_index_in_threadgroup] = 1.0f;\n"


def launched(wrong: object, right: object, *says: str, body: str = WRITE) -> Planted:
    """A launch and its correction, of one body."""
    return Planted("launch", body, says=says, launch=wrong, fixed=right, orders=("forward",))  # type: ignore[arg-type]


LAUNCHES = {
    "ragged grid": launched(
        how(((64,), F32), grid=100, threadgroup=64), how(((64,), F32), grid=64, threadgroup=64), r"\b100\b", r"\b64\b"
    ),
    "ragged second axis": launched(
        how(((64,), F32), grid=(32, 3, 1), threadgroup=(32, 2, 1)),
        how(((64,), F32), grid=(32, 2, 1), threadgroup=(32, 2, 1)),
        r"\b3\b",
        r"\b2\b",
    ),
    "threadgroup of no threads": launched(
        how(((64,), F32), grid=64, threadgroup=0), how(((64,), F32), grid=64, threadgroup=64), r"at least 1"
    ),
    "too many threads": launched(
        how(((2048,), F32), grid=2048, threadgroup=2048),
        how(((1024,), F32), grid=1024, threadgroup=1024),
        r"2,?048",
        r"1,?024",
    ),
    "too many threads in two axes": launched(
        how(((2048,), F32), grid=(64, 32, 1), threadgroup=(64, 32, 1)),
        how(((1024,), F32), grid=(32, 32, 1), threadgroup=(32, 32, 1)),
        r"1,?024",
    ),
    "no threads": Planted(
        "uncovered",
        WRITE,
        says=(r"index 0 of y",),
        launch=how(((32,), F32), grid=0),
        fixed=how(((32,), F32)),
        orders=("forward",),
    ),
    "33 KiB": Planted(
        "launch",
        """\
threadgroup float part[8448];
const uint t = thread_position_in_threadgroup.x;
part[t * 100] = 1.0f;
y[t] = part[t * 100];
""",
        ("8448", "8192"),
        (r"33,?792", r"32,?768|32 KiB"),
        orders=("forward",),
    ),
    "33 KiB in two arrays": Planted(
        "launch",
        """\
threadgroup float one[4096];
threadgroup float two[4352];
const uint t = thread_position_in_threadgroup.x;
one[t] = two[t] = 1.0f;
y[t] = one[t] + two[t];
""",
        ("4352", "4096"),
        (r"33,?792", r"32,?768|32 KiB"),
        orders=("forward",),
    ),
    "part of a simdgroup": launched(
        how(((48,), F32), grid=48, threadgroup=48),
        how(((64,), F32), grid=64, threadgroup=64),
        r"simd_sum|simdgroup",
        r"\b32\b",
        body="y[thread_index_in_threadgroup] = simd_sum(1.0f);\n",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Everything is compiled first."""
    build(request, LAUNCHES)


@in_every_order(LAUNCHES)
def test_launches(name: str, order: Order) -> None:
    LAUNCHES[name].assert_reported(order)


@in_every_order(LAUNCHES)
def test_corrected_launches(name: str, order: Order) -> None:
    LAUNCHES[name].assert_twin_passes(order)
