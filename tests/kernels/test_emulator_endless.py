"""A kernel that does not end is ended: by patience, or by the user."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from emulator import Emulator, Fault, available, native
from given import Given, how

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

BODIES = {
    "through a barrier": """\
const uint t = thread_position_in_threadgroup.x;
for (;;) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (x[t] < -1.0f) {
    break;
  }
}
y[t] = 1.0f;
""",
    "through a simdgroup operation": """\
const uint t = thread_position_in_threadgroup.x;
float v = x[t];
while (v > -1.0f) {
  v = simd_max(v);
}
y[t] = v;
""",
    "alone": """\
uint i = thread_position_in_grid.x;
while (i < 100) {
  i ^= 1;
}
y[i] = x[0];
""",
}
WAITS = {
    "through a barrier": r"threadgroup 0 goes on .*: 64 at threadgroup_barrier at line 3 of the body",
    "through a simdgroup operation": r"threadgroup 0 goes on .*: 64 at simd_max at line 4 of the body",
    "alone": r"thread 0 of threadgroup 0 goes on",
}
ways = pytest.mark.parametrize(("name", "checked"), [(name, checked) for name in BODIES for checked in (True, False)])


def run(body: str, patience: float, checked: bool = True) -> mx.array:
    program = Given("endless", ("x",), ("y",), body=body)
    launch = how(((64,), mx.float32), grid=64, threadgroup=64)
    (y,) = Emulator(checked=checked, patience=patience).launch(program, [mx.zeros((64,))], launch)
    return y


def assert_usable(checked: bool) -> None:
    assert mx.array_equal(run("y[thread_position_in_grid.x] = 2.0f;\n", 10, checked), mx.full((64,), 2.0))


@ways
def test_patience_ends(name: str, checked: bool) -> None:
    with pytest.raises(Fault, match=WAITS[name]) as raised:
        run(BODIES[name], 0.1, checked)
    assert raised.value.kind == "endless"
    assert_usable(checked)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Timer]:
    """SIGINT to the process after the first launch has begun."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    timer, launch = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)), native.launch

    def first(*arguments: Any) -> Any:
        monkeypatch.setattr(native, "launch", launch)
        timer.start()
        return launch(*arguments)

    monkeypatch.setattr(native, "launch", first)
    yield timer
    timer.join()
    signal.signal(signal.SIGINT, before)


@ways
@pytest.mark.usefixtures("interrupt")
def test_the_user_ends_it(name: str, checked: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(BODIES[name], 300, checked)
    assert_usable(checked)


def test_a_handler_that_returns_lets_it_go_on(interrupt: threading.Timer) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with pytest.raises(Fault):
            run(BODIES["alone"], 0.6)
        interrupt.join()  # it comes before the handler goes, however late
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]


def test_a_wait_for_another_thread_is_a_race() -> None:
    body = """\
threadgroup int flag[1];
const uint t = thread_position_in_threadgroup.x;
if (t == 40) {
  flag[0] = 1;
}
while (flag[0] != 1) {
}
y[t] = 1.0f;
"""
    for order in ("forward", "backward"):
        program = Given("spin", ("x",), ("y",), body=body)
        with pytest.raises(Fault, match="index 0 of flag") as raised:
            Emulator(order, patience=0.1).launch(
                program, [mx.zeros((64,))], how(((64,), mx.float32), grid=64, threadgroup=64)
            )
        assert raised.value.kind == "race"


def test_no_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="patience 0"):
        Emulator(patience=0)
