"""Constructors that lazy and eager tensors share: candle's ``Tensor::new``, ``zeros``, ``randn`` …"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ArgumentValueError, UnexpectedNumberOfDimsError
from ..graph.evaluate import on_device
from ..graph.node import GraphNode, leaf, record
from ..graph.operations.counts import number
from ..graph.operations.random import Normal, Uniform, random_key
from ..shape import DimLike, Shape, ShapeLike
from . import shaping
from .base import TensorBase
from .data import as_array
from .from_data import FromData
from .memory import check_room
from .ranges import numbers

__all__ = ["Constructors", "as_array"]

C = TypeVar("C", bound="Constructors")


class Constructors(FromData):
    """Static constructors; ``device`` is last but for a ``dtype`` that candle has no place for, and optional.

    A device is a ``Device`` or its name, a dtype a ``DType``, its name or an ``mx.Dtype``. Each raises
    ``UnsupportedDTypeForOpError`` for F64 off the CPU, ``Error`` for more elements than memory holds.
    """

    __slots__ = ()

    @classmethod
    def _made(cls: type[C], op: str, shape: ShapeLike, dtype: DTypeLike, device: DeviceLike, make: _Make) -> C:
        return cls._from_node(_made(op, Shape.of(shape, op), DType.of(dtype), Device.of(device), make))

    # --- constants ----------------------------------------------------------------------------

    @classmethod
    def zeros(cls: type[C], shape: ShapeLike, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Zeros.

        candle: ``Tensor::zeros<S: Into<Shape>>(shape: S, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("zeros", shape, dtype, device, mx.zeros)

    @classmethod
    def ones(cls: type[C], shape: ShapeLike, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Ones.

        candle: ``Tensor::ones<S: Into<Shape>>(shape: S, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("ones", shape, dtype, device, mx.ones)

    @classmethod
    def empty(cls: type[C], shape: ShapeLike, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """A tensor whose values do not matter. candle leaves them undefined; here they are zeros.

        candle: ``Tensor::empty<S: Into<Shape>>(shape: S, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("empty", shape, dtype, device, mx.zeros)

    def zeros_like(self: C) -> C:
        """Zeros of the same shape, dtype and device, without a gradient.

        candle: ``Tensor::zeros_like(&self) -> Result<Self>``
        """
        return self._wrap(_made("zeros_like", self.shape, self.dtype, self.device, mx.zeros))

    def ones_like(self: C) -> C:
        """Ones of the same shape, dtype and device, without a gradient.

        candle: ``Tensor::ones_like(&self) -> Result<Self>``
        """
        return self._wrap(_made("ones_like", self.shape, self.dtype, self.device, mx.ones))

    def empty_like(self: C) -> C:
        """A tensor of the same shape, dtype and device whose values do not matter: zeros.

        candle: ``Tensor::empty_like(&self) -> Result<Self>``
        """
        return self._wrap(_made("empty_like", self.shape, self.dtype, self.device, mx.zeros))

    @classmethod
    def full(
        cls: type[C], value: Any, shape: ShapeLike, device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> C:
        """One number everywhere, in the dtype the number has in ``new``, unless ``dtype`` is given.

        Raises ``UnexpectedNumberOfDimsError`` for anything but one number.

        candle: ``Tensor::full<D: WithDType, S: Into<Shape>>(value: D, shape: S, device: &Device) -> Result<Self>``
        """
        filling = as_array(value, dtype, "full")
        if filling.ndim:
            raise UnexpectedNumberOfDimsError("full", 0, tuple(filling.shape))
        return cls._made("full", shape, filling.dtype, device, lambda sizes, kind: mx.full(sizes, filling, kind))

    @classmethod
    def eye(cls: type[C], n: int, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """The identity matrix of n rows, ``(n, n)``.

        candle: ``Tensor::eye(n: usize, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("eye", (n, n), dtype, device, lambda sizes, kind: mx.eye(sizes[0], dtype=kind))

    @classmethod
    def tril2(cls: type[C], n: int, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Ones on and below the diagonal of an ``(n, n)`` matrix, zeros above.

        candle: ``Tensor::tril2(n: usize, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("tril2", (n, n), dtype, device, lambda sizes, kind: mx.tri(sizes[0], dtype=kind))

    @classmethod
    def triu2(cls: type[C], n: int, dtype: DTypeLike = DType.F32, device: DeviceLike = None) -> C:
        """Ones on and above the diagonal of an ``(n, n)`` matrix, zeros below.

        candle: ``Tensor::triu2(n: usize, dtype: DType, device: &Device) -> Result<Self>``
        """
        return cls._made("triu2", (n, n), dtype, device, lambda sizes, kind: mx.triu(mx.ones(sizes, kind)))

    @classmethod
    def arange(cls: type[C], start: Any, end: Any, device: DeviceLike = None, dtype: DTypeLike | None = None) -> C:
        """``start``, ``start + 1`` … up to but not including ``end``, 1-D; see ``arange_step``.

        candle: ``Tensor::arange<D: WithDType>(start: D, end: D, device: &Device) -> Result<Self>``
        """
        return cls._range("arange", start, end, 1, device, dtype)

    @classmethod
    def arange_step(
        cls: type[C], start: Any, end: Any, step: Any, device: DeviceLike = None, dtype: DTypeLike | None = None
    ) -> C:
        """``start``, ``start + step`` … up to but not including ``end``, 1-D; a negative step goes down.

        I64 if all three are integers, else F32, unless ``dtype`` is given. The step is added again and again in
        that dtype, as candle does, so that rounding decides how many numbers there are. Raises
        ``ShapeMismatchError`` for a step of 0, ``Error`` where adding the step changes nothing any more (candle
        never ends there) and for numbers the dtype does not hold.

        candle: ``Tensor::arange_step<D: WithDType>(start: D, end: D, step: D, device: &Device) -> Result<Self>``
        """
        return cls._range("arange_step", start, end, step, device, dtype)

    @classmethod
    def _range(
        cls: type[C], op: str, start: Any, end: Any, step: Any, device: DeviceLike, dtype: DTypeLike | None
    ) -> C:
        found, kind = numbers(start, end, step, None if dtype is None else DType.of(dtype), op)
        return cls._made(op, found.shape, kind, device, lambda _, mlx: mx.array(found, mlx))

    # --- random -------------------------------------------------------------------------------

    @classmethod
    def rand(
        cls: type[C],
        lo: float,
        up: float,
        shape: ShapeLike,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
    ) -> C:
        """Uniform in ``[lo, up)``, drawn once from the generator that ``Device.set_seed`` seeds.

        MLX draws with 24 bits, in F32, for every dtype. Raises ``UnsupportedDTypeForOpError`` for an integer
        dtype, ``Error`` unless ``lo < up`` and both are finite.

        candle: ``Tensor::rand<S: Into<Shape>, T: FloatDType>(lo: T, up: T, s: S, device: &Device)``
        """
        return cls._from_node(_uniform("rand", lo, up, Shape.of(shape, "rand"), DType.of(dtype), Device.of(device)))

    def rand_like(self: C, lo: float, up: float) -> C:
        """Uniform in ``[lo, up)``, of the same shape, dtype and device, without a gradient. Raises as ``rand``.

        candle: ``Tensor::rand_like(&self, lo: f64, up: f64) -> Result<Self>``
        """
        return self._wrap(_uniform("rand_like", lo, up, self.shape, self.dtype, self.device))

    @classmethod
    def randn(
        cls: type[C],
        mean: float,
        std: float,
        shape: ShapeLike,
        device: DeviceLike = None,
        dtype: DTypeLike = DType.F32,
    ) -> C:
        """Normal with this mean and standard deviation, drawn once from the generator that ``set_seed`` seeds.

        MLX draws in F32 for every dtype. Raises ``UnsupportedDTypeForOpError`` for an integer dtype, ``Error``
        unless both are finite and ``std >= 0``; candle takes a negative one for its absolute value.

        candle: ``Tensor::randn<S: Into<Shape>, T: FloatDType>(mean: T, std: T, s: S, device: &Device)``
        """
        return cls._from_node(_normal("randn", mean, std, Shape.of(shape, "randn"), DType.of(dtype), Device.of(device)))

    def randn_like(self: C, mean: float, stdev: float) -> C:
        """Normal, of the same shape, dtype and device, without a gradient. Raises as ``randn``.

        candle: ``Tensor::randn_like(&self, mean: f64, stdev: f64) -> Result<Self>``
        """
        return self._wrap(_normal("randn_like", mean, stdev, self.shape, self.dtype, self.device))

    # --- joined -------------------------------------------------------------------------------

    @classmethod
    def cat(cls: type[C], args: Sequence[TensorBase], dim: DimLike) -> C:
        """Tensors joined along a dim; of ``LazyTensor`` a lazy one, also of eager tensors.

        candle: ``Tensor::cat<A: AsRef<Tensor>, D: Dim>(args: &[A], dim: D) -> Result<Self>``
        """
        joined: C = shaping.cat(args, dim, cls.__new__(cls)._lift)  # the kind decides, not a tensor
        return joined

    @classmethod
    def stack(cls: type[C], args: Sequence[TensorBase], dim: DimLike) -> C:
        """Tensors of one shape along a new dim; of ``LazyTensor`` a lazy one, also of eager tensors.

        candle: ``Tensor::stack<A: AsRef<Tensor>, D: Dim>(args: &[A], dim: D) -> Result<Self>``
        """
        joined: C = shaping.stack(args, dim, cls.__new__(cls)._lift)
        return joined


_Make = Callable[[Shape, mx.Dtype], mx.array]


def _made(op: str, shape: Shape, dtype: DType, device: Device, make: _Make) -> GraphNode:
    """A leaf that MLX fills on its device."""
    check_room(op, shape, dtype, device)
    with on_device(device):
        return leaf(make(shape, dtype.mlx_), device)


def _uniform(op: str, lo: Any, up: Any, shape: Shape, dtype: DType, device: Device) -> GraphNode:
    low, high = _finite(op, "lo", lo), _finite(op, "up", up)
    if low >= high:
        raise ArgumentValueError(f"{op}: got lo {lo}, up {up}; takes lo < up")
    check_room(op, shape, dtype, device)
    return record(Uniform(low, high, shape, dtype), (random_key(device),))


def _normal(op: str, mean: Any, std: Any, shape: Shape, dtype: DType, device: Device) -> GraphNode:
    center, width = _finite(op, "mean", mean), _finite(op, "std", std)
    if width < 0:
        raise ArgumentValueError(f"{op}: got std {std}; takes std >= 0")
    check_room(op, shape, dtype, device)
    return record(Normal(center, width, shape, dtype), (random_key(device),))


def _finite(op: str, name: str, value: Any) -> float:
    found = number(op, name, value, "a finite number")
    if math.isfinite(found):
        return found
    raise ArgumentValueError(f"{op}: got {found} for {name}; takes a finite number")
