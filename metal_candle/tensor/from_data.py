"""Constructors from data that lazy and eager tensors share: candle's ``Tensor::new``, ``from_vec`` …"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ArgumentTypeError
from ..error.text import described
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, leaf
from ..shape import Shape, ShapeLike, expect_rank, fill_hole
from .data import as_array, of_buffer, of_dlpack
from .memory import check_room
from .written import WrittenMethods

F = TypeVar("F", bound="FromData")


class FromData(WrittenMethods):
    """Static constructors from what is there; ``device`` comes last but for a ``dtype``, and is optional.

    Each raises ``UnsupportedDTypeForOpError`` for F64 off the CPU.
    """

    __slots__ = ()

    @classmethod
    def _from_node(cls: type[F], node: GraphNode) -> F:
        raise AssertionError("a tensor class defines _from_node")

    @classmethod
    def _from_array(cls: type[F], array: mx.array, device: DeviceLike, op: str = "new") -> F:
        where = Device.of(device)
        check_room(op, Shape(array.shape), DType.of(array.dtype), where)
        return cls._from_node(leaf(array, where))

    @classmethod
    def new(cls: type[F], data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> F:
        """A tensor of a number, nested lists, a NumPy, MLX or DLPack array, which is copied or cannot change.

        Ints become I64, floats F32, booleans U8; an array keeps its dtype; ``dtype`` overrides. ``[]`` has shape
        ``(0,)``. Raises ``ShapeMismatchError`` for ragged lists, ``DTypeParseError`` for elements of other types,
        ``Error`` for integers that do not fit.

        candle: ``Tensor::new<A: NdArray>(array: A, device: &Device) -> Result<Self>``
        """
        return cls._from_array(as_array(data, dtype), device)

    @classmethod
    def from_vec(
        cls: type[F], data: Sequence[Any], shape: ShapeLike, device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> F:
        """A flat list in a shape, which may have one hole, ``-1`` or ``()``.

        Raises ``ShapeMismatchError`` where the count does not fit, ``UnexpectedNumberOfDimsError`` for nested lists.

        candle: ``Tensor::from_vec<S: ShapeWithOneHole, D: WithDType>(data: Vec<D>, shape: S, device: &Device)``
        """
        return cls._from_flat("from_vec", data, shape, device, dtype)

    @classmethod
    def from_slice(
        cls: type[F], data: Sequence[Any], shape: ShapeLike, device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> F:
        """The same as ``from_vec``: a flat list in a shape, which may have one hole.

        candle: ``Tensor::from_slice<S: ShapeWithOneHole, D: WithDType>(array: &[D], shape: S, device: &Device)``
        """
        return cls._from_flat("from_slice", data, shape, device, dtype)

    @classmethod
    def _from_flat(
        cls: type[F], op: str, data: Any, shape: ShapeLike, device: DeviceLike, dtype: DTypeLike | None
    ) -> F:
        array = as_array(data, dtype, op)
        expect_rank(array.shape, 1, op)
        with on_device(Device.Cpu):
            return cls._from_array(array.reshape(fill_hole(shape, array.size, op)), device, op)

    @classmethod
    def from_iter(
        cls: type[F], iterable: Iterable[Any], device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> F:
        """A 1-D tensor of the numbers an iterable gives. Raises ``UnexpectedNumberOfDimsError`` if it gives lists.

        candle: ``Tensor::from_iter<D: WithDType>(iter: impl IntoIterator<Item = D>, device: &Device)``
        """
        if not isinstance(iterable, Iterable) or isinstance(iterable, (str, bytes)):
            raise ArgumentTypeError(f"from_iter: got {described(iterable)}; takes an iterable of numbers")
        array = as_array(list(iterable), dtype, "from_iter")
        expect_rank(array.shape, 1, "from_iter")
        return cls._from_array(array, device, "from_iter")

    @classmethod
    def from_raw_buffer(cls: type[F], data: Any, dtype: DTypeLike, shape: ShapeLike, device: DeviceLike = None) -> F:
        """Little-endian bytes in row-major order. Raises ``ShapeMismatchError`` where their number does not fit.

        candle: ``Tensor::from_raw_buffer(data: &[u8], dtype: DType, shape: &[usize], device: &Device)``
        """
        array = of_buffer(data, DType.of(dtype), "from_raw_buffer")
        with on_device(Device.Cpu):
            array = array.reshape(fill_hole(Shape.of(shape, "from_raw_buffer"), array.size, "from_raw_buffer"))
            return cls._from_array(array, device, "from_raw_buffer")

    @classmethod
    def from_numpy(cls: type[F], array: Any, device: DeviceLike = None) -> F:
        """A copy of a NumPy array of any layout and byte order; its dtype is kept, booleans are U8, uint16 is U32.

        Raises ``DTypeParseError`` for a dtype candle lacks, ``Error`` for what is no NumPy array.
        """
        if not isinstance(array, (np.ndarray, np.generic)):
            raise ArgumentTypeError(f"from_numpy: got {type(array).__name__}; takes a NumPy array, new takes lists")
        return cls._from_array(as_array(array, op="from_numpy"), device, "from_numpy")

    @classmethod
    def from_mlx(cls: type[F], array: mx.array, device: DeviceLike = None) -> F:
        """An MLX array, whose memory is shared until MLX changes it in place; booleans are U8, uint16 is U32.

        Raises ``DTypeParseError`` for a dtype candle lacks, ``Error`` for what is no MLX array.
        """
        if not isinstance(array, mx.array):
            raise ArgumentTypeError(f"from_mlx: got {type(array).__name__}; takes an mx.array")
        return cls._from_array(as_array(array, op="from_mlx"), device, "from_mlx")

    @classmethod
    def from_dlpack(cls: type[F], array: Any, device: DeviceLike = None) -> F:
        """A copy of an array of another library on the CPU, a torch tensor say; its dtype is kept.

        Booleans are U8, uint16 is U32. Raises ``DTypeParseError`` for a dtype candle lacks, ``Error`` for what is
        not on the CPU or requires a gradient, which would end here.
        """
        return cls._from_array(of_dlpack(array), device, "from_dlpack")
