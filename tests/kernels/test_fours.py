"""Four neighbours in one access, as on CUDA: the same results wherever a row begins, and never beside the address."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from metal_candle import settings
from metal_candle.kernels import custom
from metal_candle.kernels.add_layer_norm import add_layer_norm
from metal_candle.kernels.add_rms_norm import add_rms_norm
from metal_candle.kernels.cross_entropy import cross_entropy
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.layer_norm import layer_norm
from metal_candle.kernels.rms_norm import _PROGRAM, rms_norm
from metal_candle.kernels.rope import rope
from metal_candle.kernels.softmax import log_softmax, softmax
from metal_candle.kernels.swiglu import swiglu

import emulator
import mlx.core as mx
import pytest
from launched import BACKWARD, FORWARD, assert_near, check, check_gradients, normal

# Whole fours and not, of a simdgroup, of a threadgroup, and beyond what is held.
WIDTHS = (3, 4, 8, 36, 127, 128, 513, 516, 1000, 8196)
ROWS = 3


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    launcher = emulator.Emulator(defines=("MC_FOURS",))
    with settings.KERNELS.override("custom"), custom.using(launcher):
        yield


def rows(width: int, dtype: mx.Dtype, key: int, behind: int) -> mx.array:
    """Rows that begin so many elements behind an address that allows every access."""
    flat = normal(ROWS * width + behind, dtype=dtype, key=key)
    mx.eval(flat)
    return flat[behind:].reshape(ROWS, width)


Arguments = Callable[[Callable[[int], mx.array], Callable[[int], mx.array]], tuple[Sequence[Any], tuple[Any, ...]]]

CASES: dict[str, tuple[Kernel, Arguments]] = {
    "rms_norm": (rms_norm, lambda x, row: ((x(0), row(1)), (1e-5,))),
    "layer_norm": (layer_norm, lambda x, row: ((x(0), row(1), row(2)), (1e-5,))),
    "add_rms_norm": (add_rms_norm, lambda x, row: ((x(0), x(1), row(2)), (1e-5,))),
    "add_layer_norm": (add_layer_norm, lambda x, row: ((x(0), x(1), row(2), row(3)), (1e-5,))),
    "softmax": (softmax, lambda x, row: ((x(0),), (0.5,))),
    "masked_softmax": (softmax, lambda x, row: ((x(0),), (0.5, x(1)))),
    "causal_softmax": (softmax, lambda x, row: ((x(0),), (0.5, "causal"))),
    "log_softmax": (log_softmax, lambda x, row: ((x(0),), ())),
}


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, width: int, dtype: mx.Dtype, behind: int) -> None:
    kernel, arguments = CASES[name]
    inputs, params = arguments(
        lambda key: rows(width, dtype, key, behind), lambda key: rows(width, dtype, key, behind)[0]
    )
    check(kernel, inputs, *params)


def ids(n: int) -> mx.array:
    return (mx.arange(ROWS) * 7 + n - 1) % n


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses(smoothing: float, width: int, dtype: mx.Dtype, behind: int) -> None:
    x, targets = rows(width, dtype, 0, behind), ids(width)
    outputs = cross_entropy.forward(x, targets, smoothing)
    assert cross_entropy.last is not None
    assert cross_entropy.last[0] == "one reading"
    assert_near(outputs[0], cross_entropy.reference(x, targets, smoothing), FORWARD[mx.float32])
    cotangent = normal(ROWS)
    found = cross_entropy.vjp(cotangent, (x, targets), outputs, (True, False), smoothing)[0]
    wanted = mx.vjp(lambda x: cross_entropy.reference(x, targets, smoothing), [x.astype(mx.float32)], [cotangent])[1]
    assert found is not None
    assert_near(found, wanted[0], BACKWARD[dtype])


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_gated_activation(width: int, dtype: mx.Dtype, behind: int) -> None:
    mx.disable_compile()  # to the same values, but for a second of the CPU's compiler each
    try:
        check_gradients(swiglu, [rows(width, dtype, key, behind) for key in range(2)])
    finally:
        mx.enable_compile()


@pytest.mark.parametrize("behind", [0, 1])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("transposed", [False, True], ids=["heads", "positions"])
@pytest.mark.parametrize("width", [2, 8, 16, 24, 72])
def test_rotary_embedding(width: int, transposed: bool, interleaved: bool, dtype: mx.Dtype, behind: int) -> None:
    heads, positions = 5, 3
    flat = normal(2 * heads * positions * width + behind, dtype=dtype)[behind:]
    x = flat.reshape(2, positions, heads, width) if transposed else flat.reshape(2, heads, positions, width)
    angles = normal(positions, width // 2, key=7)
    tables = [mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)]
    check(rope, [mx.swapaxes(x, 1, 2) if transposed else x, *tables], interleaved)


PATH = "return end % 4 == 0 && reinterpret_cast<size_t>(row) % sizeof(mc_four<T>) == 0;"


def test_an_access_that_the_address_does_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PATH in _PROGRAM.header
    monkeypatch.setitem(_PROGRAM.__dict__, "header", _PROGRAM.header.replace(PATH, "return end % 4 == 0;"))
    check(rms_norm, [rows(128, mx.float32, 0, 0), None], 1e-5)
    with pytest.raises(emulator.Fault, match="rms_norm") as caught:
        check(rms_norm, [rows(128, mx.float32, 0, 1), None], 1e-5)
    assert caught.value.kind == "bounds"
    assert "at an address that is no multiple of 8" in str(caught.value)


def test_an_access_past_the_end_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_PROGRAM.__dict__, "header", _PROGRAM.header.replace(PATH, "return true;"))
    with pytest.raises(emulator.Fault, match="rms_norm") as caught:
        check(rms_norm, [rows(6, mx.float32, 0, 0), None], 1e-5)
    assert caught.value.kind in ("bounds", "race")
