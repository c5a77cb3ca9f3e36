"""What asynchronous evaluation leaves behind: no nodes, no threads, no hanging interpreter."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

from metal_candle import Device
from metal_candle.error import InvalidIndexError
from metal_candle.graph import AsyncExecutor

import pytest
from held import (
    LONG,
    bad,
    busy,
    four_workers,  # noqa: F401
    held,
    lazy,
    release,
    until,
)


def test_nobody_holds_the_evaluation_or_the_tensor() -> None:
    x, op = held()
    x.eval_async()
    gc.collect()
    op.let_go.set()
    until(x.is_evaluated)
    y, op = held()
    node = weakref.ref(y._node)
    evaluation = y.eval_async()
    assert op.begun.wait(LONG)
    del y
    gc.collect()
    op.let_go.set()
    assert evaluation.wait(LONG).to_vec1() == [2.0]
    assert node() is not None
    del evaluation
    until(lambda: node() is None)


def test_nodes_are_freed_without_the_cycle_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        with AsyncExecutor(Device.Cpu, max_in_flight=4) as executor:
            alive: list[weakref.ref[Any]] = []
            for i in range(6):
                x = bad() if i == 5 else lazy(float(i)) * 2.0
                alive.append(weakref.ref(x._node))
                evaluation = executor.submit(x)
                alive.append(weakref.ref(evaluation))
                if i == 5:
                    with pytest.raises(InvalidIndexError):
                        evaluation.wait(LONG)
                else:
                    evaluation.wait(LONG)
                del x, evaluation
        before = busy()
        x = lazy() * 3.0
        alive.append(weakref.ref(x._node))
        evaluation = x.eval_async()
        alive.append(weakref.ref(evaluation))
        evaluation.cancel()
        release(before)
        del x, evaluation
        alive += [weakref.ref(pair[1]) for pair in before]
        del before
        alive.append(weakref.ref(executor))
        del executor
        until(lambda: [ref for ref in alive if ref() is not None] == [])
    finally:
        gc.enable()


def test_values_on_the_way_are_not_kept() -> None:
    x = lazy(*[0.5] * 4)
    inner = x * 3.0
    node = weakref.ref(inner._node)
    output = inner.exp()
    del inner
    output.eval_async().wait(LONG)
    until(lambda: node() is None)


def test_executors_leave_no_threads() -> None:
    before = threading.enumerate()  # other tests' among them
    for i in range(20):
        with AsyncExecutor(Device.Cpu) as executor:
            assert executor.submit(lazy(float(i)) * 2.0).wait(LONG).to_vec1() == [2.0 * i]
    new = [thread for thread in threading.enumerate() if thread not in before]
    assert {thread.name.rpartition("_")[0] for thread in new} == {"metal-candle-eval-cpu"}
    assert len(new) <= 4


def run(program: str) -> str:
    """What a program prints, which has to end by itself, and well."""
    start = "import metal_candle as mc, sys, os, threading\nfrom metal_candle import LazyTensor, Tensor\n"
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_program_ends_with_work_in_flight() -> None:
    program = (
        "from metal_candle.graph import AsyncExecutor\n"
        "ending = threading.Event()\n"
        "threading._register_atexit(ending.set)\n"  # before the pools', which wait for their threads
        "class UntilTheEnd:\n"
        "    def infer(self, x): return x.shape, x.dtype\n"
        "    def forward(self, x): ending.wait(); return x\n"
        "x = LazyTensor.randn(0.0, 1.0, (64, 64))\n"
        "y = x.apply_op1(UntilTheEnd())\n"
        "for i in range(200): y = y.matmul(x).tanh()\n"
        "ends = [y.eval_async(), (y + 1.0).eval_async()]\n"  # the second waits for the first
        "ends += [(x * float(i)).exp().eval_async() for i in range(200)]\n"
        "executor = AsyncExecutor('cpu', 1000)\n"
        "ends += [executor.submit(x * float(i)) for i in range(50)]\n"
        "ends[1].add_done_callback(lambda end: print('last', end.exception()))\n"
        "print('main')\n"
    )
    assert run(program).splitlines() == ["main", "last None"]


def test_the_program_ends_by_an_error_with_work_in_flight() -> None:
    program = (
        "x = LazyTensor.randn(0.0, 1.0, (64, 64))\n"
        "ends = [(x * float(i)).exp().eval_async() for i in range(100)]\n"
        "sys.exit(0)\n"
    )
    assert run(program) == ""


def test_evaluating_while_the_interpreter_ends() -> None:
    program = (
        "import atexit\n"
        "x = LazyTensor.new([1.0]) * 2.0\n"
        "LazyTensor.new([1.0]).exp().eval_async().wait()\n"
        "atexit.register(lambda: print(x.eval_async().wait().to_vec1()))\n"
    )
    assert run(program) == "[2.0]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process with threads; Metal cannot")
def test_a_forked_process_has_workers_of_its_own() -> None:
    program = (
        "import warnings\n"
        "from metal_candle.graph import AsyncExecutor\n"
        "from metal_candle.tensor import workers\n"
        "workers.count = lambda device: 1\n"  # all of them are at work when it forks
        "warnings.simplefilter('ignore')\n"
        "go = threading.Event()\n"
        "class Held:\n"
        "    def infer(self, x): return x.shape, x.dtype\n"
        "    def forward(self, x): begun.set(); go.wait(30); return x + 1\n"
        "begun, executor = threading.Event(), AsyncExecutor('cpu', 1)\n"
        "x, y = LazyTensor.new([1.0]).apply_op1(Held()), LazyTensor.new([1.0]) * 2.0\n"
        "held = executor.submit(x)\n"
        "begun.wait(30)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    go.set()\n"
        "    try: held.wait()\n"
        "    except mc.Error as error: print(error)\n"
        "    print(executor.in_flight(), executor.submit(y).wait().to_vec1(), x.eval_async().wait().to_vec1())\n"
        "    sys.stdout.flush(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "go.set()\n"
        "print(held.wait().to_vec1())\n"
    )
    assert run(program).splitlines() == [
        "wait: the evaluation runs in the process that this one was forked from; evaluate again here",
        "0 [2.0] [2.0]",
        "[2.0]",
    ]
