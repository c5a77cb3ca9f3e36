"""Parts of stored tensors, for the ranks of a process group. candle: ``var_builder::{Shard, ShardedSafeTensors}``."""

from __future__ import annotations

from dataclasses import dataclass

from ..constructors import Default
from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import (
    ArgumentTypeError,
    ArgumentValueError,
    DimOutOfRangeError,
    ShapeMismatchSplitError,
    UnexpectedShapeError,
)
from ..error.text import described, shown
from ..shape import Shape
from ..tensor.eager import Tensor
from .backends import Backend, fitted
from .init import ZERO
from .missing import missing
from .stored import SafeTensorWithRouting
from .var_builder_args import VarBuilderArgs
from .weight_files import Paths, open_weights


@dataclass(frozen=True)
class Shard(Default):
    """The part ``rank`` of ``world_size`` equal ones along ``dim``; by default all of it.

    candle: ``var_builder::Shard``.
    """

    dim: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.dim < 0 or not 0 <= self.rank < self.world_size:
            raise ArgumentValueError(
                f"Shard: got dim {self.dim}, rank {self.rank} of {self.world_size}; "
                "takes dim >= 0, 0 <= rank < world_size"
            )


class ShardedSafeTensors(Backend[Shard]):
    """Parts of the tensors of safetensors files; along dim 0 only the part's bytes are read.

    candle's takes dims 0 and 1, this any. Its get takes any shape for a part, this the part's or the whole tensor's.
    candle: ``var_builder::ShardedSafeTensors``.
    """

    Hints = Shard

    def __init__(self, tensors: SafeTensorWithRouting) -> None:
        self._tensors = tensors

    @staticmethod
    def var_builder(paths: Paths, dtype: DTypeLike, dev: DeviceLike = None) -> ShardedVarBuilder:
        """A builder whose hints are ``Shard``s. Takes paths as, and raises as, ``from_mmaped_safetensors``."""
        return ShardedVarBuilder.new_with_args(ShardedSafeTensors(open_weights("var_builder", paths)), dtype, dev)

    def get(self, shape: Shape, name: str, hints: Shard, dtype: DType, dev: Device) -> Tensor:
        """A part of the tensor of that name.

        Raises ``ShapeMismatchSplitError`` where the dim does not divide, ``DimOutOfRangeError``, and as ``get`` of
        whole tensors.
        """
        if not isinstance(hints, Shard):
            raise ArgumentTypeError(f"get {shown(name)}: got {described(hints)} for the hints; takes a Shard")
        if hints.world_size == 1:
            return self._tensors.get(shape, name, ZERO, dtype, dev)
        if not self._tensors.contains_tensor(name):
            raise missing(name, self._tensors.names())
        whole, dim = self._tensors.view(name).shape, hints.dim
        if dim >= len(whole):
            raise DimOutOfRangeError(f"get {shown(name)}", whole, dim)
        size, rest = divmod(whole[dim], hints.world_size)
        if rest:
            raise ShapeMismatchSplitError(whole, dim, hints.world_size)
        part = Shape((*whole[:dim], size, *whole[dim + 1 :]))
        if tuple(shape) not in (tuple(part), tuple(whole)):
            raise UnexpectedShapeError(f"{name}, part {hints.rank} of {hints.world_size}", shape, part)
        start = hints.rank * size
        return fitted(self._tensors.load_part(name, dim, start, start + size, dev), name, dtype, dev)

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """Raises ``ArgumentValueError``: which part is said by hints."""
        raise ArgumentValueError(
            f"get_unchecked {shown(name)}: parts have hints; takes get_with_hints(shape, name, shard)"
        )

    def contains_tensor(self, name: str) -> bool:
        """Whether a file holds it."""
        return self._tensors.contains_tensor(name)

    def unused(self) -> list[str]:
        """The names of tensors that nobody has taken a part of."""
        return self._tensors.unused()


class ShardedVarBuilder(VarBuilderArgs[Shard]):
    """A builder whose ``get_with_hints(shape, name, shard)`` gives parts. candle: ``ShardedVarBuilder``."""
