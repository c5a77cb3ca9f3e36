"""The emulator runs right kernels right: in every order, checked or not, and leaves no trace."""

from __future__ import annotations

import faulthandler
import signal
import threading

from metal_candle.kernels import custom

import mlx.core as mx
import numpy as np
import pytest
from emulator import Emulator, Fault, available
from emulator.launcher import ORDERS, Order
from given import Given, how
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from launched import normal

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])

ways = pytest.mark.parametrize(
    ("order", "checked"), [(order, checked) for order in ORDERS for checked in (True, False)]
)

SOFTMAX = Given(
    "softmax",
    ("x",),
    ("y",),
    header=custom.source("shared.h"),
    body="""\
threadgroup float part[32];
const uint n = x_shape[1];
const uint t = thread_position_in_threadgroup.x, step = threads_per_threadgroup.x;
const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup, groups = step / 32;
const uint start = threadgroup_position_in_grid.x * n;
float largest = -FLT_MAX;
for (uint i = t; i < n; i += step) {
  largest = metal::max(largest, float(x[start + i]));
}
largest = mc_max(largest, part, lane, group, groups);
float sum = 0.0f;
for (uint i = t; i < n; i += step) {
  sum += metal::exp(float(x[start + i]) - largest);
}
sum = mc_sum(sum, part, lane, group, groups);
for (uint i = t; i < n; i += step) {
  y[start + i] = T(metal::exp(float(x[start + i]) - largest) / sum);
}
""",
)


def softmax(x: mx.array, threads: int, emulator: Emulator) -> mx.array:
    launch = how((x.shape, x.dtype), grid=len(x) * threads, threadgroup=threads, template=(("T", x.dtype),))
    (y,) = emulator.launch(SOFTMAX, [x], launch)
    return y


def run(
    body: str, inputs: list[mx.array], launch: custom.Launch, *, emulator: Emulator | None = None
) -> list[mx.array]:
    """The outputs y0, y1 … of a body over inputs x0, x1 …"""
    inputs_named = tuple(f"x{i}" for i in range(len(inputs)))
    outputs_named = tuple(f"y{i}" for i in range(len(launch.shapes)))
    return (emulator or Emulator()).launch(Given("tried", inputs_named, outputs_named, body=body), inputs, launch)


# One rounding of a result below 1 (2^-12, 2^-9); float32: exp and a sum of 301 terms.
@ways
@pytest.mark.parametrize(("dtype", "within"), [(mx.float32, 1e-6), (mx.float16, 2.5e-4), (mx.bfloat16, 2e-3)])
def test_a_kernel_with_barriers(order: Order, checked: bool, dtype: mx.Dtype, within: float) -> None:
    x = normal(5, 301, dtype=dtype)
    wanted = np.array(mx.softmax(x.astype(mx.float32), axis=-1))
    for threads in (32, 96, 1024):
        y = softmax(x, threads, Emulator(order, seed=3, checked=checked))
        np.testing.assert_allclose(np.array(y.astype(mx.float32)), wanted, rtol=0, atol=within)


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 140),
    st.sampled_from([32, 64, 128]),
    st.integers(0, 2**40),
    st.sampled_from(ORDERS),
)
def test_neither_order_nor_checks_change_a_result(rows: int, width: int, threads: int, seed: int, order: Order) -> None:
    x = normal(rows, width, key=seed % 1000)
    plain = softmax(x, threads, Emulator())
    for checked in (True, False):
        assert mx.array_equal(softmax(x, threads, Emulator(order, seed, checked)), plain)


@ways
def test_a_grid_of_three_axes(order: Order, checked: bool) -> None:
    body = """\
const uint3 at = thread_position_in_grid, all = threads_per_grid, here = thread_position_in_threadgroup;
const uint3 size = threads_per_threadgroup, group = threadgroup_position_in_grid;
const uint i = (at.z * all.y + at.y) * all.x + at.x;
y0[i] = int(at.x + 100 * at.y + 10000 * at.z);
y1[i] = int(here.x + size.x * (here.y + size.y * here.z)) - int(thread_index_in_threadgroup);
y2[i] = int(group.x * size.x + here.x == at.x && threadgroups_per_grid.y * size.y == all.y &&
            simdgroup_index_in_threadgroup * threads_per_simdgroup + thread_index_in_simdgroup ==
                thread_index_in_threadgroup && simdgroups_per_threadgroup == 1);
"""
    shape = ((6, 4, 16), mx.int32)
    launch = how(shape, shape, shape, grid=(16, 4, 6), threadgroup=(8, 2, 2))
    at, index, agree = run(body, [mx.zeros((9,))], launch, emulator=Emulator(order, 5, checked))
    z, y, x = np.indices((6, 4, 16))
    np.testing.assert_array_equal(np.array(at), x + 100 * y + 10000 * z)
    assert not np.array(index).any()
    assert np.array(agree).all()


def test_orders_differ() -> None:
    # The thread that comes last leaves its number: a race, which only the checks forbid.
    def last(order: Order, seed: int = 0) -> int:
        launch = how(((1,), mx.int32), grid=256, threadgroup=64)
        (y,) = run("y0[0] = int(thread_position_in_grid.x);\n", [], launch, emulator=Emulator(order, seed, False))
        return int(y.item())

    assert last("forward") == 255
    assert last("backward") == 0
    shuffled = [last("shuffled", seed) for seed in range(8)]
    assert len(set(shuffled)) > 1
    assert shuffled == [last("shuffled", seed) for seed in range(8)]


@pytest.mark.parametrize("checked", [True, False])
def test_inputs_that_are_not_contiguous(checked: bool) -> None:
    body = "const uint i = thread_position_in_grid.x;\ny0[i] = x0[(i / 8) * x0_strides[0] + (i % 8) * x0_strides[1]];\n"
    launch = how(((4, 8), mx.bfloat16), grid=32)
    base = mx.arange(96).astype(mx.bfloat16)
    views = {
        "transposed": base[:32].reshape(8, 4).T,
        "every third row": base.reshape(12, 8)[::3],
        "one row for all": mx.broadcast_to(base[:8], (4, 8)),
        "one number for all": mx.broadcast_to(base[5], (4, 8)),
        "rows from last to first": base[:32].reshape(4, 8)[::-1],
        "columns from last to first": base[:32].reshape(4, 8)[:, ::-1],
        "every third from last to first": base.reshape(12, 8)[::-3, ::-1],
        "columns from last to first, of one row": mx.broadcast_to(base[7::-1], (4, 8)),
    }
    for name, view in views.items():
        for contiguous in (True, False):
            program = Given("strided", ("x0",), ("y0",), contiguous=contiguous, body=body)
            (y,) = Emulator(checked=checked).launch(program, [view], launch)
            assert mx.array_equal(y, view), (name, contiguous)


def test_the_ends_of_a_view_from_last_to_first() -> None:
    """MLX passes the address of its first element; the lowest in memory is its last."""
    view, launch = mx.arange(96.0).reshape(12, 8)[9:2:-3, ::-1], how(((1,), mx.float32))

    def program(index: str) -> Given:
        body = f"if (thread_index_in_threadgroup == 0) {{\n  y0[0] = x0[{index}];\n}}\n// x0_strides"
        return Given("ends", ("x0",), ("y0",), contiguous=False, body=body)

    for index, want in ((-2 * 24 - 7, 24.0), (0, 79.0)):
        (y,) = Emulator().launch(program(f"{index}"), [view], launch)
        assert y.item() == want
    for index in (-2 * 24 - 8, 1):
        with pytest.raises(Fault, match=rf"thread 0 .* reads index {index} of x0 .*x0 has indices -55 to 0"):
            Emulator().launch(program(f"{index}"), [view], launch)


def test_every_dtype_comes_back_as_it_was() -> None:
    values = [0, 1, 2, 100]
    for dtype in (mx.bool_, mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64):
        x = mx.array(values * 8).astype(dtype)
        (y,) = run("y0[thread_position_in_grid.x] = x0[thread_position_in_grid.x];\n", [x], how(((32,), dtype)))
        assert y.dtype == dtype
        assert mx.array_equal(x, y)


def test_scalars_small_and_empty_inputs() -> None:
    body = "const uint i = thread_position_in_grid.x;\ny0[i] = x0 + x1[i % 3] + float(x2_shape[0]) + float(x2_ndim);\n"
    inputs = [mx.array(0.5), mx.array([1.0, 2.0, 3.0]), mx.zeros((0, 4))]
    (y,) = run(body, inputs, how(((32,), mx.float32)))
    np.testing.assert_array_equal(np.array(y), [2.5 + 1 + i % 3 for i in range(32)])


def test_an_unused_output_may_stay_unwritten() -> None:
    launch = how(((32,), mx.float32), ((1,), mx.float32), unused=("y1",))
    y, unused = run("y0[thread_position_in_grid.x] = 1.0f;\n", [], launch)
    assert np.array(y).all()
    assert np.isnan(np.array(unused)).all()


def test_neighbouring_bytes_of_threadgroup_memory_are_different_places() -> None:
    body = """\
threadgroup bool odd[64];
threadgroup float wide[64];
const uint t = thread_position_in_threadgroup.x;
wide[t] = float(t);
odd[t] = t % 2 == 1;
threadgroup_barrier(mem_flags::mem_threadgroup);
y0[t] = odd[63 - t] ? wide[63 - t] : 0.0f;
"""
    (y,) = run(body, [], how(((64,), mx.float32), grid=64, threadgroup=64))
    np.testing.assert_array_equal(np.array(y), [float(63 - t) if (63 - t) % 2 else 0.0 for t in range(64)])


def test_a_table_of_constants_beside_threadgroup_memory() -> None:
    header = "template <typename P> inline float at(P table, uint i) { return table[i]; }\n"
    body = """\
threadgroup float part[32];
const float table[5] = {1.5f, 2.5f, 3.5f, 4.5f, 5.5f};
const uint t = thread_position_in_threadgroup.x;
part[t] = at(table, t % 5);
y[t] = part[t] + table[(t + 1) % 5];
"""
    (y,) = Emulator().launch(Given("table", (), ("y",), header=header, body=body), [], how(((32,), mx.float32)))
    np.testing.assert_array_equal(np.array(y), [3.0 + t % 5 + (t + 1) % 5 for t in range(32)])


def test_a_simdgroup_barrier_orders_its_simdgroup() -> None:
    body = """\
threadgroup float part[64];
const uint t = thread_position_in_threadgroup.x;
float v = float(t);
for (uint k = 0; k < 3; k++) {
  part[t] = v;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  v = part[t ^ 31] + 1.0f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
}
y0[t] = v;
"""
    for order in ORDERS:
        (y,) = run(body, [], how(((64,), mx.float32), grid=64, threadgroup=64), emulator=Emulator(order, 2))
        np.testing.assert_array_equal(np.array(y), [float(t ^ 31) + 3 for t in range(64)])


def test_threads_of_a_threadgroup_share_an_output_across_a_device_barrier() -> None:
    body = """\
const uint t = thread_position_in_threadgroup.x;
y0[t] = float(t);
threadgroup_barrier(mem_flags::mem_device);
const float other = y0[63 - t];
threadgroup_barrier(mem_flags::mem_device);
y0[t] = other;
"""
    (y,) = run(body, [], how(((64,), mx.float32), grid=64, threadgroup=64))
    np.testing.assert_array_equal(np.array(y), np.arange(63, -1, -1))


@pytest.mark.parametrize("checked", [True, False])
def test_a_fault_leaves_the_emulator_as_it_was(checked: bool) -> None:
    emulator = Emulator(checked=checked)
    x = normal(2, 40)
    before = softmax(x, 64, emulator)
    for body in (
        "y0[thread_position_in_grid.x + 100000] = 1.0f;\n",
        "if (thread_index_in_simdgroup) simd_sum(1.0f);\n",
    ):
        with pytest.raises(Fault):
            run(body, [], how(((32,), mx.float32)), emulator=emulator)
        assert mx.array_equal(softmax(x, 64, emulator), before)


def test_without_checks_the_machine_reports_what_it_can() -> None:
    fast = Emulator(checked=False)
    x = mx.zeros((32,))
    faults = {
        "y0[thread_position_in_grid.x + 1] = 1.0f;\n": ("bounds", "index 32 of y0"),
        "y0[int(thread_position_in_grid.x) - 1] = 1.0f;\n": ("bounds", "index -1 of y0"),
        "y0[thread_position_in_grid.x] = x0[thread_position_in_grid.x + 1];\n": ("bounds", "index 32 of x0"),
        "((device float*)x0)[0] = 1.0f;\n": ("read-only", "index 0 of x0"),
        "y0[0] = *(device float*)ulong(64);\n": ("memory", "thread 0 of threadgroup 0"),
    }
    for body, (kind, words) in faults.items():
        with pytest.raises(Fault, match=words) as raised:
            run(body, [x], how(((32,), mx.float32)), emulator=fast)
        assert raised.value.kind == kind, str(raised.value)


@pytest.mark.parametrize("checked", [True, False])
def test_a_loop_without_end_ends(checked: bool) -> None:
    body = "uint i = thread_position_in_grid.x;\nwhile (i < 100) {\n  i ^= 1;\n}\ny0[i] = 1.0f;\n"
    with pytest.raises(Fault, match="thread 0 of threadgroup 0 goes on") as raised:
        run(body, [], how(((32,), mx.float32)), emulator=Emulator(checked=checked, patience=0.1))
    assert raised.value.kind == "endless"


def test_two_calls_of_one_helper_are_two_places() -> None:
    header = "template <typename P> inline float both(P part) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
    header += "  return part[0];\n}\n"
    body = """\
threadgroup float part[32];
part[thread_index_in_simdgroup] = 1.0f;
const uint t = thread_position_in_threadgroup.x;
if (t < 16) {
  y[t] = both(part);
} else {
  y[t] = both(part) + 1.0f;
}
"""
    program = Given("twice", (), ("y",), header=header, body=body)
    with pytest.raises(Fault, match=r"16 at .*line 2 of the header.*line 5 .*16 at .*line 2 of the header.*line 7 "):
        Emulator().launch(program, [], how(((32,), mx.float32)))


def test_signal_handlers_are_put_back() -> None:
    enabled = faulthandler.is_enabled()
    marker = signal.signal(signal.SIGFPE, signal.SIG_IGN)
    try:
        softmax(normal(2, 8), 32, Emulator())
        with pytest.raises(Fault):
            run("y0[thread_position_in_grid.x + 100000] = 1.0f;\n", [], how(((32,), mx.float32)))
        assert signal.getsignal(signal.SIGFPE) is signal.SIG_IGN
        assert faulthandler.is_enabled() == enabled
    finally:
        signal.signal(signal.SIGFPE, marker)


def test_threads_of_the_caller_take_turns() -> None:
    x = normal(8, 500)
    expected = softmax(x, 64, Emulator())
    results: list[mx.array] = []

    def work() -> None:
        results.extend(softmax(x, 64, Emulator("shuffled", seed)) for seed in range(10))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 30
    assert all(mx.array_equal(result, expected) for result in results)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        Emulator("sideways")  # type: ignore[arg-type]
