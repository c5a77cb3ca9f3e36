"""Tensors as text in candle's format, and the options that shape it; candle's ``candle_core::display``.

``format_tensor`` is candle's ``Display``, ``debug`` its ``Debug``. Both look only at what they show: of a
tensor with more than ``threshold`` elements, the first and last ``edge_items`` along each dim.

In scientific notation candle leaves the precision and the columns of F16 and BF16 out of account; here they
are written as F32 is.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np

from .device import Device
from .dtype import DType, DTypeLike
from .error import Error

_DEBUG_ELEMENTS = 10  # of a 1-D tensor with fewer, ``debug`` shows the values


@dataclass(frozen=True)
class PrinterOptions:
    """How ``str`` shows a tensor. candle: ``candle_core::display::PrinterOptions``.

    ``precision``: digits after the point of numbers that are not whole. ``threshold``: with more elements, only
    the edges are shown. ``edge_items``: how many at each edge. ``line_width``: characters in a line of values.
    ``sci_mode``: scientific notation always or never; ``None`` chooses by the values.
    """

    precision: int = 4
    threshold: int = 1000
    edge_items: int = 3
    line_width: int = 80
    sci_mode: bool | None = None

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            value = getattr(self, field.name)
            try:
                number = -1 if isinstance(value, bool) else operator.index(value)
            except TypeError:
                number = -1
            if number < 0:
                raise Error(f"print options: got {field.name} {value!r}; takes an integer that is not negative")
        if self.sci_mode not in (None, True, False):
            raise Error(f"print options: got sci_mode {self.sci_mode!r}; takes True, False or None")


_options = PrinterOptions()
_FULL = PrinterOptions(threshold=sys.maxsize)


def print_options() -> PrinterOptions:
    """The options in use."""
    return _options


def set_print_options(options: PrinterOptions) -> None:
    """Use these options from now on, in every thread. Raises ``Error`` for anything else than ``PrinterOptions``."""
    global _options
    if not isinstance(options, PrinterOptions):
        raise Error(f"set_print_options: got {type(options).__name__}; takes PrinterOptions")
    _options = options


def set_print_options_default() -> None:
    """Four digits, 3 elements at each edge above 1000, 80 characters a line."""
    set_print_options(PrinterOptions())


def set_print_options_short() -> None:
    """Two digits, 2 elements at each edge above 1000."""
    set_print_options(PrinterOptions(precision=2, edge_items=2))


def set_print_options_full() -> None:
    """Every element, however many there are."""
    set_print_options(_FULL)


def set_line_width(line_width: int) -> None:
    """Characters in a line of values. Raises ``Error`` unless it is an integer that is not negative."""
    set_print_options(replace(_options, line_width=line_width))


def set_precision(precision: int) -> None:
    """Digits after the point. Raises ``Error`` unless it is an integer that is not negative."""
    set_print_options(replace(_options, precision=precision))


def set_edge_items(edge_items: int) -> None:
    """Elements shown at each edge of a long dim. Raises ``Error`` unless it is an integer that is not negative."""
    set_print_options(replace(_options, edge_items=edge_items))


def set_threshold(threshold: int) -> None:
    """How many elements are shown in full. Raises ``Error`` unless it is an integer that is not negative."""
    set_print_options(replace(_options, threshold=threshold))


def set_sci_mode(sci_mode: bool | None) -> None:
    """Scientific notation always, never, or (``None``) where the values' range asks for it."""
    set_print_options(replace(_options, sci_mode=sci_mode))


# --- the text ---------------------------------------------------------------------------------


def format_tensor(
    array: Any, dtype: DTypeLike | None = None, device: Device | None = None, options: PrinterOptions | None = None
) -> str:
    """A NumPy or MLX array as candle displays a tensor: its values, then ``Tensor[[2, 3], f32, metal:0]``.

    ``dtype`` is the tensor's, where the array's differs, as a BF16 tensor's in a float32 array does; ``device``
    is named unless it is the CPU; ``options`` are ``print_options()`` by default.

    candle: ``impl std::fmt::Display for Tensor``
    """
    options = options or _options
    where, shape = device or Device.Cpu, tuple(array.shape)
    kind = DType.of(array.dtype if dtype is None else dtype)
    values = _shown(array, options, where)
    show = _float_formatter(values, kind, options) if kind.is_float() else str
    text = [show(value) for value in values.reshape(-1).tolist()]
    width = max(map(len, text), default=1)
    if not shape:
        body = f"[{text[0]}]"
    else:
        cells = np.array([item.rjust(width) for item in text], object).reshape(values.shape)
        body = _nested(cells, shape, 1, max(1, options.line_width // (width + 2)), options)
    return f"{body}\nTensor[{list(shape)}, {kind}{_location(where)}]"


def debug(array: Any, dtype: DTypeLike | None = None, device: Device | None = None) -> str:
    """A NumPy or MLX array as candle shows a tensor for debugging, in one line.

    ``Tensor[1, 2.5; f32]`` of rank 0 and of 1-D tensors with fewer than 10 elements, else
    ``Tensor[dims 2, 3; f32, metal:0]``.

    candle: ``impl std::fmt::Debug for Tensor``
    """
    where, shape = device or Device.Cpu, tuple(array.shape)
    kind = DType.of(array.dtype if dtype is None else dtype)
    if not shape or (len(shape) == 1 and shape[0] < _DEBUG_ELEMENTS):
        text = ", ".join(_shortest(value, kind) for value in _shown(array, _FULL, where).reshape(-1))
    else:
        text = f"dims {', '.join(map(str, shape))}"
    return f"Tensor[{text}; {kind}{_location(where)}]"


def _location(device: Device) -> str:
    return "" if device.is_cpu() else f", {device.location()}"


def _shown(array: Any, options: PrinterOptions, device: Device) -> np.ndarray[Any, Any]:
    """The elements that are shown: all, or of many those at the edges of each dim."""
    many = math.prod(array.shape) > options.threshold
    if not isinstance(array, mx.array):
        array = np.asarray(array)
        return _numpy(_edges(array, options.edge_items, 0, np.concatenate) if many else array)
    with mx.stream(device.mlx()):
        return _numpy(_edges(array, options.edge_items, 0, mx.concatenate) if many else array)


def _edges(array: Any, edge: int, axis: int, join: Callable[[list[Any], int], Any]) -> Any:
    """The first and last ``edge`` entries of each dim from ``axis`` on that has more than both.

    All dims are cut before anything is joined, so that nothing but what is shown is ever copied.
    """
    if axis == array.ndim:
        return array
    size, before = array.shape[axis], (slice(None),) * axis
    if size <= 2 * edge:
        return _edges(array, edge, axis + 1, join)
    ends = [(*before, slice(0, edge)), (*before, slice(size - edge, size))]
    return join([_edges(array[end], edge, axis + 1, join) for end in ends], axis)


def _numpy(array: Any) -> np.ndarray[Any, Any]:
    """The values; bfloat16, which NumPy lacks, as float32, and booleans as the U8 that they are here."""
    if isinstance(array, mx.array):
        array = np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
    return np.asarray(array.astype(np.uint8) if array.dtype == np.bool_ else array)


def _nested(
    cells: np.ndarray[Any, Any], shape: Sequence[int], indent: int, per_line: int, options: PrinterOptions
) -> str:
    """The cells in brackets, a line per row; ``shape`` is the tensor's, of which ``cells`` may be the edges."""
    cut = len(cells) < shape[0]
    if len(shape) > 1:
        rows = [_nested(part, shape[1:], indent + 1, per_line, options) for part in cells]
        gap = "\n" + " " * indent
        if not cut:
            return f"[{f',{gap}'.join(rows)}]"
        edge = len(rows) // 2
        head, tail = (f",{gap}".join(part) for part in (rows[:edge], rows[edge:]))
        return f"[{head},{gap}...{gap}{tail}]" if rows else "[...]"
    row = cells.tolist()
    if cut:
        edge = len(row) // 2
        return f"[{', '.join([*row[:edge], '...', *row[edge:]])}]"
    lines = [", ".join(row[start : start + per_line]) for start in range(0, len(row), per_line)]
    return f"[{(',' + chr(10) + ' ' * indent).join(lines)}]"


# --- numbers ----------------------------------------------------------------------------------


def _float_formatter(values: np.ndarray[Any, Any], dtype: DType, options: PrinterOptions) -> Callable[[float], str]:
    """How these floats are written: "42." if all are whole, with decimals, or in scientific notation."""
    scientific, whole = False, True
    magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
    if magnitudes.size:
        whole = bool(np.all(np.ceil(magnitudes) == magnitudes))
        low, high = magnitudes.min(), magnitudes.max()
        with np.errstate(over="ignore"):
            ratio, most, least = (_rounded(x, dtype) for x in (high / low, 1e8, 1e-4))
        scientific = bool(ratio > 1000 or high > most or low < least)
    if options.sci_mode is not None:
        scientific = options.sci_mode
    precision = options.precision

    def in_scientific(value: float) -> str:
        mantissa, _, exponent = f"{value:.{precision}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"

    def finite(value: float) -> str:
        if scientific:
            return in_scientific(value)
        return f"{value:.0f}." if whole else f"{value:.{precision}f}"

    return lambda value: finite(value) if np.isfinite(value) else _not_finite(value)


def _rounded(value: Any, dtype: DType) -> Any:
    """A number as ``dtype`` holds it: candle compares in the tensor's own dtype."""
    if dtype is DType.BF16:
        return mx.array(float(value), mx.bfloat16).item()
    return {DType.F16: np.float16, DType.F32: np.float32, DType.F64: np.float64}[dtype](value)


def _not_finite(value: float) -> str:
    return "NaN" if value != value else "inf" if value > 0 else "-inf"


def _shortest(value: Any, dtype: DType) -> str:
    """The fewest digits that give the number back, never with an exponent, as Rust writes it."""
    if dtype.is_int():
        return str(value)
    if not np.isfinite(value):
        return _not_finite(value)
    # Rust writes half-precision numbers as the float32 they are widened to.
    wide = value if dtype is DType.F64 else np.float32(value)
    return np.format_float_positional(wide, unique=True, trim="-")
