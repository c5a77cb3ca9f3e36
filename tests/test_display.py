"""Tensors are displayed as candle displays them, by its own binding's word, and its options are obeyed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import metal_candle as mc
from metal_candle import Device, DeviceType, display
from metal_candle.display import PrinterOptions, debug, format_tensor

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

NUMPY = {"u8": np.uint8, "u32": np.uint32, "i64": np.int64, "f16": np.float16, "f32": np.float32, "f64": np.float64}
HALVES = ("f16", "bf16")


@pytest.fixture(autouse=True)
def default_options() -> Iterator[None]:
    yield
    display.set_print_options_default()


def candle_s_text(values: np.ndarray[Any, Any], dtype: str) -> tuple[str, str]:
    """The text of candle's binding, and ours of the same values in the same dtype."""
    candle = pytest.importorskip("candle")
    flat = candle.Tensor(values.reshape(-1).tolist()).to_dtype(getattr(candle, dtype))
    tensor = (
        flat.reshape(values.shape) if values.shape else candle.Tensor(values.item()).to_dtype(getattr(candle, dtype))
    )
    held = np.array(flat.to_dtype(candle.f64 if "f" in dtype else candle.i64).values())
    return str(tensor), format_tensor(held.astype(NUMPY.get(dtype, np.float32)).reshape(values.shape), dtype)


@pytest.mark.parametrize("dtype", [*NUMPY, "bf16"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (40,), (6, 7), (2, 3, 4), (2, 1, 2, 3)], ids=str)
def test_numbers_of_every_size(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for scale in (1.0, 100.0, 1e5, 1e-3, 1e-6, 1e9):
        plain = rng.standard_normal(shape) * scale
        odd = np.array(plain)
        odd.reshape(-1)[:3] = [np.nan, -np.inf, -0.0][: odd.size]
        for values in (plain, np.round(plain), odd):
            if "f" not in dtype:
                values = np.nan_to_num(np.round(np.abs(values) if dtype[0] == "u" else values), posinf=9, neginf=7)
            want, got = candle_s_text(np.asarray(values), dtype)
            if dtype in HALVES and re.search(r"\de-?\d", want):
                continue  # see test_scientific_halves
            assert got == want
            compared += 1
    assert compared >= 6


LAYOUTS = [(1000,), (1001,), (7, 200), (6, 200), (7, 6, 40), (3, 7, 8, 9), (4, 4, 4, 4, 4), (2000, 1), (1, 2000), (50,)]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_lines_and_edges(shape: tuple[int, ...]) -> None:
    want, got = candle_s_text((np.arange(np.prod(shape)) / 8).reshape(shape), "f32")
    assert got == want


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3), (0, 2000)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    candle = pytest.importorskip("candle")
    assert format_tensor(np.zeros(shape, np.float32)) == str(candle.zeros(*shape))


NUMBERS = [1234.0, -123.4, -1.234e-5, -1.234e11, 0.0, -0.0, 1e8, 1.00001e8, 1e-4, 9.9e-5, 0.03125, 0.15625, 3e38, 1e-45]


@pytest.mark.parametrize("number", [*NUMBERS, float("nan"), float("inf"), float("-inf")])
def test_single_numbers(number: float) -> None:
    want, got = candle_s_text(np.array(number), "f32")
    assert got == want


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=3, max_side=5),
        elements=st.floats(width=32)
        | st.integers(-50, 50).map(float)
        | st.sampled_from([0.0, -0.0, 1e-4, 1e8, 1000.0]),
    )
)
def test_any_floats(values: np.ndarray[Any, Any]) -> None:
    want, got = candle_s_text(values, "f32")
    assert got == want


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.integers(-(2**62), 2**62)))
def test_any_integers(values: np.ndarray[Any, Any]) -> None:
    want, got = candle_s_text(values, "i64")
    assert got == want


# --- what candle's tests say, where the binding is not there ----------------------------------


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.uint32(1234), "[1234]\nTensor[[], u32]"),
        (np.float32(-123.4), "[-123.4000]\nTensor[[], f32]"),
        (np.float32(-1.234e-5), "[-1.2340e-5]\nTensor[[], f32]"),
        (np.float32(0), "[0.]\nTensor[[], f32]"),
        (np.zeros(0, np.uint32), "[]\nTensor[[0], u32]"),
        (
            np.array([0.1234567, 1.0, -1.2, 4.1, np.nan]),
            "[ 0.1235,  1.0000, -1.2000,  4.1000,     NaN]\nTensor[[5], f64]",
        ),
        (np.full(11000, 42, np.float32), "[42., 42., 42., ..., 42., 42., 42.]\nTensor[[11000], f32]"),
        (np.array([[1, -2], [30, 4]], np.int16), "[[ 1, -2],\n [30,  4]]\nTensor[[2, 2], i16]"),
        (np.array([True, False]), "[1, 0]\nTensor[[2], u8]"),
        (np.array([[[1.5]]], np.float16), "[[[1.5000]]]\nTensor[[1, 1, 1], f16]"),
    ],
)
def test_text(array: Any, text: str) -> None:
    assert format_tensor(array) == text
    assert format_tensor(mx.array(array)) == text if array.dtype != np.float64 else True


def test_summary_of_several_dims() -> None:
    text = format_tensor(np.full((200, 100), 42, np.float32))
    row = "[42., 42., 42., ..., 42., 42., 42.]"
    assert text == f"[{row},\n {row},\n {row},\n ...\n {row},\n {row},\n {row}]\nTensor[[200, 100], f32]"


def test_scientific_halves() -> None:
    """candle writes them with all digits, in ragged columns, whatever the precision."""
    values = np.array([1e-5, -2.5e-5], np.float16)
    assert format_tensor(values) == "[ 1.0014e-5, -2.4974e-5]\nTensor[[2], f16]"
    assert format_tensor(mx.array(values).astype(mx.bfloat16)).endswith("e-5]\nTensor[[2], bf16]")


def test_limits_are_compared_in_the_tensor_s_dtype() -> None:
    assert "e" not in format_tensor(np.array([1e-4], np.float16)).split("\n")[0]
    assert format_tensor(np.array([60000.0], np.float16)) == "[60000.]\nTensor[[1], f16]"
    bf16 = mx.array([1e-4, 1e-2], mx.bfloat16)
    assert format_tensor(bf16) == "[0.0001, 0.0100]\nTensor[[2], bf16]"


@pytest.mark.parametrize("device", [Device(DeviceType.Metal, 0), Device(DeviceType.Cuda, 1)])
def test_other_devices_are_named(device: Device) -> None:
    name = f"{device.kind.value}:{device.index}"
    assert format_tensor(np.float32(1), device=device) == f"[1.]\nTensor[[], f32, {name}]"
    assert debug(np.float32(1), device=device) == f"Tensor[1; f32, {name}]"


def test_only_what_is_shown_is_computed() -> None:
    """The whole of these would not fit into any memory."""
    side = 2**20
    row = "[1, 1, 1, ..., 1, 1, 1]"
    for huge in (mx.broadcast_to(mx.array(1, mx.uint8), (side,) * 3), np.broadcast_to(np.uint8(1), (side,) * 3)):
        lines = format_tensor(huge).split("\n")
        assert lines[0] == f"[[{row},"
        assert lines[-1] == f"Tensor[[{side}, {side}, {side}], u8]"
        assert debug(huge) == f"Tensor[dims {side}, {side}, {side}; u8]"


# --- debug ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32(1.5), "Tensor[1.5; f32]"),
        (np.int64(-3), "Tensor[-3; i64]"),
        (
            np.array([0.1, 1e20, 1e-7, -0.0, 2.0], np.float32),
            "Tensor[0.1, 100000000000000000000, 0.0000001, -0, 2; f32]",
        ),
        (np.array([0.1, 1 / 3]), "Tensor[0.1, 0.3333333333333333; f64]"),
        (np.array([0.1], np.float16), "Tensor[0.099975586; f16]"),
        (np.array([np.nan, np.inf, -np.inf], np.float32), "Tensor[NaN, inf, -inf; f32]"),
        (np.array([True]), "Tensor[1; u8]"),
        (np.zeros(0, np.float32), "Tensor[; f32]"),
        (np.arange(9), "Tensor[0, 1, 2, 3, 4, 5, 6, 7, 8; i64]"),
        (np.arange(10), "Tensor[dims 10; i64]"),
        (np.zeros((2, 3), np.float32), "Tensor[dims 2, 3; f32]"),
    ],
)
def test_debug(array: Any, text: str) -> None:
    assert debug(array) == text


def test_debug_of_bf16() -> None:
    assert debug(mx.array([0.1, 3.0], mx.bfloat16)) == "Tensor[0.100097656, 3; bf16]"
    assert debug(np.float32(2), "bf16") == "Tensor[2; bf16]"


# --- options ----------------------------------------------------------------------------------


def test_defaults_and_presets() -> None:
    assert display.print_options() == PrinterOptions(4, 1000, 3, 80, None)
    display.set_print_options_short()
    assert display.print_options() == PrinterOptions(precision=2, edge_items=2)
    assert format_tensor(90 + np.arange(2000) / 8) == "[ 90.00,  90.12, ..., 339.75, 339.88]\nTensor[[2000], f64]"
    display.set_print_options_full()
    assert display.print_options() == PrinterOptions(threshold=sys.maxsize)
    assert "..." not in format_tensor(np.arange(1500))
    display.set_print_options_default()
    assert display.print_options() == PrinterOptions()


def test_single_options() -> None:
    values = np.array([0.5, 1.25, 2.0])
    display.set_precision(1)
    assert format_tensor(values) == "[0.5, 1.2, 2.0]\nTensor[[3], f64]"
    display.set_line_width(10)
    assert format_tensor(values) == "[0.5, 1.2,\n 2.0]\nTensor[[3], f64]"
    display.set_line_width(0)
    assert format_tensor(values) == "[0.5,\n 1.2,\n 2.0]\nTensor[[3], f64]"
    display.set_line_width(80)
    display.set_threshold(2)
    display.set_edge_items(1)
    assert format_tensor(values) == "[0.5, ..., 2.0]\nTensor[[3], f64]"
    display.set_sci_mode(True)
    assert format_tensor(values) == "[5.0e-1, ...,  2.0e0]\nTensor[[3], f64]"
    display.set_sci_mode(False)
    assert format_tensor(np.array(1e-6)) == "[0.0]\nTensor[[], f64]"
    assert display.print_options() == PrinterOptions(1, 2, 1, 80, False)
    display.set_sci_mode(None)
    assert display.print_options().sci_mode is None
    display.set_edge_items(0)
    assert format_tensor(values) == "[...]\nTensor[[3], f64]"
    assert format_tensor(np.zeros((3, 3))) == "[...]\nTensor[[3, 3], f64]"
    assert format_tensor(values, options=PrinterOptions()) == "[0.5000, 1.2500, 2.0000]\nTensor[[3], f64]"


@pytest.mark.parametrize("name", ["line_width", "precision", "edge_items", "threshold"])
@pytest.mark.parametrize("value", [-1, 1.5, True, None, "3"])
def test_options_that_are_none(name: str, value: Any) -> None:
    text = re.escape(f"print options: got {name} {value!r}; takes an integer that is not negative")
    with pytest.raises(mc.Error, match=text):
        getattr(display, f"set_{name}")(value)
    assert display.print_options() == PrinterOptions()


def test_options_of_another_kind() -> None:
    with pytest.raises(mc.Error, match="print options: got sci_mode 'e'; takes True, False or None"):
        display.set_sci_mode("e")  # type: ignore[arg-type]
    with pytest.raises(mc.Error, match="set_print_options: got dict; takes PrinterOptions"):
        display.set_print_options({})  # type: ignore[arg-type]
