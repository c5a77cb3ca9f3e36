"""Tensors in ggml's blocks. candle: ``candle_core::quantized::QTensor``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..device import Device, DeviceLike
from ..dtype import DType
from ..error import Error, UnsupportedDTypeForOpError
from ..formats.ggml_affine import AFFINE, repack
from ..formats.ggml_blocks import Bytes, byte_count, decode
from ..formats.ggml_encode import encode
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, leaf, record
from ..graph.operations.quantized import QuantizedEmbedding
from ..kernels.quantized_linear import DENSE
from ..shape import Shape, ShapeLike, expect_rank
from ..tensor import Tensor
from ..tensor.base import TensorBase
from .ggml_dtype import GgmlDType

T = TypeVar("T", bound=TensorBase)


class QTensor:
    """A tensor in ggml's blocks; it does not change, and has no gradient.

    The blocks are kept in memory as they are in a file. ``shape``, ``rank``, ``dtype`` and ``device`` are methods
    here, as in Rust, where those of tensors are properties.
    """

    def __init__(self, data: Bytes, shape: Shape, dtype: GgmlDType, device: Device) -> None:
        self._data, self._shape, self._dtype, self._device = data, shape, dtype, device
        self._affine: tuple[tuple[GraphNode, ...], int] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """For ``pickle`` and ``copy.deepcopy``: its blocks; what is kept beside them is made again."""
        return _restored, (self._data, tuple(self._shape), self._dtype, self._device)

    def __copy__(self) -> QTensor:
        return self  # it does not change

    # --- making one ---------------------------------------------------------------------------

    @staticmethod
    def from_data(
        data: bytes | bytearray | memoryview | Bytes,
        shape: ShapeLike,
        dtype: GgmlDType | str,
        device: DeviceLike = None,
    ) -> QTensor:
        """A tensor of blocks as they stand in a file, which are copied.

        Raises ``Error`` for a scalar, a last dim that is no multiple of the block, or a wrong number of bytes.
        candle: ``QStorage::from_data`` and ``QTensor::new``.
        """
        kind, sizes = GgmlDType.of(dtype), Shape.of(shape)
        _check_shape("from_data", sizes, kind)
        if not isinstance(data, (bytes, bytearray, memoryview, np.ndarray)):
            raise Error(f"from_data: got {type(data).__name__} for the blocks; takes bytes or an array of them")
        if isinstance(data, np.ndarray) and data.dtype.hasobject:
            raise Error(f"from_data: got an array of {data.dtype} for the blocks; takes one of uint8")
        held = np.array(data if isinstance(data, np.ndarray) else bytearray(data)).reshape(-1).view(np.uint8)
        wanted = byte_count(kind.ggml_name, sizes.elem_count())
        if held.size != wanted:
            raise Error(f"from_data: got {held.size} bytes; {kind} of shape {tuple(sizes)} takes {wanted}")
        return QTensor(held, sizes, kind, Device.of(device))

    @staticmethod
    def quantize(src: TensorBase, dtype: GgmlDType | str) -> QTensor:
        """A float tensor's numbers, through float32, in blocks of ``dtype``; a lazy tensor is evaluated.

        Rounded as ggml's reference quantisation rounds. Raises ``Error`` for a scalar, for a last dim that is no
        multiple of the block, and for K-quants, which are only read; ``UnsupportedDTypeForOpError`` for integers.
        candle: ``QTensor::quantize``.
        """
        expect_tensor("quantize", src)
        return _quantize("quantize", src, dtype, src.device)

    @staticmethod
    def quantize_onto(src: TensorBase, dtype: GgmlDType | str, dev: DeviceLike = None) -> QTensor:
        """``quantize`` of a tensor on the CPU, to be used on ``dev``. Raises ``Error`` for a tensor elsewhere, too.

        candle: ``QTensor::quantize_onto``.
        """
        _expect_cpu("quantize_onto", src)
        return _quantize("quantize_onto", src, dtype, Device.of(dev))

    @staticmethod
    def quantize_imatrix(src: TensorBase, imatrix_weights: Sequence[float], dtype: GgmlDType | str) -> QTensor:
        """Refused: an importance matrix weighs the roundings of K-quants alone, in candle too, and those are only read.

        Raises ``Error``: for weights that are not as many as the last dim, and otherwise saying so. candle:
        ``QTensor::quantize_imatrix``.
        """
        raise _no_imatrix("quantize_imatrix", src, imatrix_weights, dtype)

    @staticmethod
    def quantize_imatrix_onto(
        src: TensorBase, imatrix_weights: Sequence[float], dtype: GgmlDType | str, dev: DeviceLike = None
    ) -> QTensor:
        """Refused, as ``quantize_imatrix``. candle: ``QTensor::quantize_imatrix_onto``."""
        _expect_cpu("quantize_imatrix_onto", src)
        raise _no_imatrix("quantize_imatrix_onto", src, imatrix_weights, dtype)

    # --- what it is ---------------------------------------------------------------------------

    def dtype(self) -> GgmlDType:
        """Its element type."""
        return self._dtype

    def device(self) -> Device:
        """Where it is used."""
        return self._device

    def rank(self) -> int:
        """Its number of dims."""
        return len(self._shape)

    def shape(self) -> Shape:
        """The sizes of its dims."""
        return self._shape

    def storage_size_in_bytes(self) -> int:
        """Bytes of its blocks."""
        return self._data.size

    def data(self) -> bytes:
        """Its blocks, row after row, as they stand in a file."""
        return self._data.tobytes()

    def blocks(self) -> Bytes:
        """``data`` without a copy: flat uint8, not to be written to."""
        view: Bytes = self._data.view()
        view.flags.writeable = False
        return view

    # --- numbers out of it --------------------------------------------------------------------

    def dequantize(self, device: DeviceLike = None) -> Tensor:
        """Its numbers as F32, on ``device`` or its own.

        Raises ``Error`` for a K-quant where the ``gguf`` package is missing. candle: ``QTensor::dequantize``.
        """
        numbers = decode(self._data[None, :], self._dtype.ggml_name).reshape(self._shape)
        return Tensor.new(numbers, device or self._device, DType.F32)

    def dequantize_f16(self, device: DeviceLike = None) -> Tensor:
        """``dequantize`` rounded to F16. candle: ``QTensor::dequantize_f16``."""
        numbers = decode(self._data[None, :], self._dtype.ggml_name).reshape(self._shape)
        with np.errstate(over="ignore"):  # beyond 65504 is infinity in F16
            return Tensor.new(numbers.astype(np.float16), device or self._device, DType.F16)

    def embedding(self, ids: T) -> T:
        """The rows of a ``(rows, n)`` tensor that ids of any shape name, as F32: ``(…)`` to ``(…, n)``.

        Rows that stay quantised until then, except of K-quants and floats. Raises ``UnexpectedNumberOfDimsError``
        unless this has two dims, and ``InvalidIndexError`` for an id outside when it is evaluated (the largest one
        of its dtype, which means a row of zeros elsewhere, too). candle: ``QTensor::embedding``.
        """
        expect_tensor("embedding", ids)
        expect_rank(self._shape, 2, "embedding")
        nodes, bits = self.packed()
        return ids._wrap(record(QuantizedEmbedding(bits), (ids._node, *nodes)))

    def packed(self) -> tuple[tuple[GraphNode, ...], int]:
        """Leaves that operations on a ``(rows, n)`` tensor take, made once, and their bits per code.

        Codes, scales and biases of MLX's affine quantisation with the very numbers of the blocks; where those cannot
        be repacked (floats, K-quants, infinite scales) one leaf of F32 numbers, and 32 bits. They are kept beside
        the blocks.
        """
        with self._lock:
            if self._affine is None:
                self._affine = self._pack()
            return self._affine

    def _pack(self) -> tuple[tuple[GraphNode, ...], int]:
        rows = self._data.reshape(self._shape[0], -1) if self._data.size else None
        affine = None if rows is None or self._dtype.ggml_name not in AFFINE else repack(rows, self._dtype.ggml_name)
        if affine is None:
            return (self.dequantize()._node,), DENSE
        with on_device(self._device):
            arrays = [mx.array(part) for part in affine[:3]]
            return tuple(leaf(array, self._device) for array in arrays), affine.bits

    def __repr__(self) -> str:
        where = "" if self._device.is_cpu() else f", {self._device}"
        return f"QTensor[{list(self._shape)}; {self._dtype}{where}]"


def _restored(data: Bytes, shape: tuple[int, ...], dtype: GgmlDType, device: Device) -> QTensor:
    return QTensor(data, Shape(shape), dtype, device)


def expect_tensor(op: str, given: object) -> None:
    """Raise ``Error`` for what is no tensor: a list, a NumPy array, a ``QTensor``."""
    if not isinstance(given, TensorBase):
        raise Error(f"{op}: got {type(given).__name__}; takes a Tensor or LazyTensor")


def _quantize(op: str, src: TensorBase, dtype: GgmlDType | str, device: Device) -> QTensor:
    kind = GgmlDType.of(dtype)
    if not src.dtype.is_float_:
        raise UnsupportedDTypeForOpError(op, src.dtype, "bf16, f16, f32 or f64")
    _check_shape(op, src.shape, kind)
    with np.errstate(over="ignore"):
        numbers = src.numpy().astype(np.float32, copy=False)
    return QTensor(encode(numbers, kind.ggml_name), src.shape, kind, device)


def _check_shape(op: str, shape: Shape, kind: GgmlDType) -> None:
    if not shape:
        raise Error(f"{op}: got a scalar; takes one dim or more")
    if shape[-1] % kind.block_size():
        raise Error(f"{op}: got shape {tuple(shape)}; {kind} takes a last dim that {kind.block_size()} divides")


def _expect_cpu(op: str, src: TensorBase) -> None:
    expect_tensor(op, src)
    if not src.device.is_cpu():
        raise Error(f"{op}: got a tensor on {src.device}; takes one on Device.Cpu")


def _no_imatrix(op: str, src: TensorBase, weights: Sequence[float], dtype: GgmlDType | str) -> Error:
    expect_tensor(op, src)
    row = src.dim(-1)
    if len(weights) != row:
        return Error(f"{op}: got {len(weights)} weights for a last dim of {row}; takes as many")
    return Error(f"{op}: {GgmlDType.of(dtype)}: only K-quants are weighted, and those are only read; use quantize")
