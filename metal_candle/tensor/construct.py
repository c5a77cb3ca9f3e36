"""Constructors that lazy and eager tensors share: candle's ``Tensor::new``, ``zeros``, ``randn`` …"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import DTypeParseError, ShapeMismatchError, UnsupportedDTypeForOpError
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, leaf, record
from ..graph.operation import Meta
from ..graph.operations.random import Normal, Uniform, random_key
from ..shape import DimLike, Shape, ShapeLike, fill_hole
from . import shaping
from .written import WrittenMethods

C = TypeVar("C", bound="Constructors")


def as_array(data: Any, dtype: DTypeLike | None = None) -> mx.array:
    """``data`` as an MLX array in a dtype that candle has.

    Python ints become I64, floats F32, booleans U8; a NumPy array keeps its dtype. Raises
    ``ShapeMismatchError`` for ragged lists and ``DTypeParseError`` for other elements.
    """
    if isinstance(data, mx.array):
        array = data
    elif isinstance(data, (np.ndarray, np.generic)):
        with on_device(Device.Cpu):  # float64 exists there only
            array = mx.array(np.asarray(data), DType.of(data.dtype).mlx_)
    elif hasattr(data, "mlx"):
        array = data.mlx()
    else:
        try:
            values = np.asarray(data)
        except ValueError as error:
            raise ShapeMismatchError("new: got lists of different lengths; takes a rectangular nesting") from error
        if values.dtype.kind not in "biuf":
            raise DTypeParseError(values.dtype)
        natural = {"b": mx.uint8, "i": mx.int64, "u": mx.int64, "f": mx.float32}[values.dtype.kind]
        target = natural if dtype is None else DType.of(dtype).mlx_
        array = mx.array(values, target)
    wanted = DType.of(array.dtype if dtype is None else dtype)
    return array if array.dtype == wanted.mlx_ else array.astype(wanted.mlx_)


class Constructors(WrittenMethods):
    """Static constructors; ``device`` is last and optional."""

    __slots__ = ()

    @classmethod
    def _from_node(cls: type[C], node: GraphNode) -> C:
        raise AssertionError("a tensor class defines _from_node")

    @classmethod
    def _from_array(cls: type[C], array: mx.array, device: DeviceLike) -> C:
        where = device or Device.default()
        dtype = DType.of(array.dtype)
        if dtype is DType.F64 and not where.is_cpu():
            raise UnsupportedDTypeForOpError("new", "f64", f"f64 on Device.Cpu only, got {where}")
        return cls._from_node(leaf(array, where))

    @classmethod
    def new(cls: type[C], data: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> C:
        """A tensor of a number, nested lists, a NumPy or MLX array."""
        return cls._from_array(as_array(data, dtype), device)

    @classmethod
    def from_slice(
        cls: type[C], data: Sequence[Any], shape: ShapeLike, device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> C:
        """A flat list in a shape, which may have one hole ``-1``."""
        array = as_array(data, dtype)
        return cls._from_array(array.reshape(fill_hole(shape, array.size, "from_slice")), device)

    from_vec = from_slice

    @classmethod
    def from_iter(cls: type[C], iterable: Iterable[Any], device: DeviceLike = None) -> C:
        """A 1-D tensor of what an iterable gives."""
        return cls.new(list(iterable), device)

    @classmethod
    def from_numpy(cls: type[C], array: Any, device: DeviceLike = None) -> C:
        """A NumPy array; its dtype is kept."""
        return cls.new(np.asarray(array), device)

    @classmethod
    def from_mlx(cls: type[C], array: mx.array, device: DeviceLike = None) -> C:
        """An MLX array, shared; a boolean one becomes U8."""
        return cls.new(array, device)

    @classmethod
    def zeros(cls: type[C], shape: ShapeLike, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Zeros."""
        return cls._from_array(mx.zeros(Shape.of(shape), DType.of(dtype).mlx_), device)

    @classmethod
    def ones(cls: type[C], shape: ShapeLike, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Ones."""
        return cls._from_array(mx.ones(Shape.of(shape), DType.of(dtype).mlx_), device)

    def zeros_like(self: C) -> C:
        """Zeros of the same shape, dtype and device, without a gradient."""
        return self._wrap(leaf(mx.zeros(self.shape, self.dtype.mlx_), self.device))

    def ones_like(self: C) -> C:
        """Ones of the same shape, dtype and device, without a gradient."""
        return self._wrap(leaf(mx.ones(self.shape, self.dtype.mlx_), self.device))

    @classmethod
    def full(cls: type[C], value: Any, shape: ShapeLike, device: DeviceLike = None) -> C:
        """One number everywhere, in the dtype the number would have in ``new``."""
        return cls._from_array(mx.broadcast_to(as_array(value), Shape.of(shape)), device)

    @classmethod
    def arange(cls: type[C], start: Any, end: Any, device: DeviceLike = None) -> C:
        """``start``, ``start + 1`` … up to but not including ``end``."""
        return cls.arange_step(start, end, 1, device)

    @classmethod
    def arange_step(cls: type[C], start: Any, end: Any, step: Any, device: DeviceLike = None) -> C:
        """``start``, ``start + step`` … up to but not including ``end``. Raises for a step of 0."""
        if step == 0:
            raise ShapeMismatchError("arange_step: got step 0; takes any other")
        return cls.new(np.arange(start, end, step), device, None if isinstance(start, int) else DType.F32)

    @classmethod
    def eye(cls: type[C], n: int, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """The identity matrix of n rows."""
        return cls._from_array(mx.eye(n, dtype=DType.of(dtype).mlx_), device)

    @classmethod
    def rand(
        cls: type[C],
        lo: float,
        up: float,
        shape: ShapeLike,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
    ) -> C:
        """Uniform in ``[lo, up)``, drawn once from the generator that ``set_seed`` seeds."""
        meta = Meta(Shape.of(shape), DType.of(dtype))
        return cls._from_node(record(Uniform(float(lo), float(up), *meta), (random_key(device or Device.default()),)))

    @classmethod
    def randn(
        cls: type[C],
        mean: float,
        std: float,
        shape: ShapeLike,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
    ) -> C:
        """Normal with this mean and standard deviation, drawn once."""
        meta = Meta(Shape.of(shape), DType.of(dtype))
        return cls._from_node(record(Normal(float(mean), float(std), *meta), (random_key(device or Device.default()),)))

    @classmethod
    def cat(cls: type[C], args: Sequence[C], dim: DimLike) -> C:
        """Tensors joined along a dim."""
        joined: C = shaping.cat(list(args), dim)
        return joined

    @classmethod
    def stack(cls: type[C], args: Sequence[C], dim: DimLike) -> C:
        """Tensors of one shape along a new dim."""
        joined: C = shaping.stack(list(args), dim)
        return joined
