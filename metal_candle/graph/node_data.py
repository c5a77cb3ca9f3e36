"""What a node holds: metal-candle's ``NodeData`` and ``NodeId``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..error import NotEvaluatedError


class NodeId(int):
    """A number that names a node."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"NodeId({int(self)})"


@dataclass(frozen=True)
class NodeData:
    """``NodeData.Concrete(tensor)`` of a leaf, ``NodeData.Lazy``, ``NodeData.Available(tensor)`` once computed."""

    variant: str
    tensor: Any = None

    Lazy: ClassVar[NodeData]
    # The layer of tensors puts its eager tensor here; below it a value is a node's bare array.
    tensor_of: ClassVar[Callable[[Any], Any]] = staticmethod(lambda node: node.value)

    @staticmethod
    def Concrete(tensor: Any) -> NodeData:
        """The data of a leaf."""
        return NodeData("Concrete", tensor)

    @staticmethod
    def Available(tensor: Any) -> NodeData:
        """The data of a node that has been computed."""
        return NodeData("Available", tensor)

    def is_available(self) -> bool:
        """Whether there is a tensor."""
        return self.variant != "Lazy"

    def as_tensor(self) -> Any:
        """The tensor. Raises ``NotEvaluatedError`` for ``Lazy``."""
        if self.variant == "Lazy":
            raise NotEvaluatedError("node: its tensor is not yet available; eval() what depends on it")
        return self.tensor

    take_tensor = as_tensor


NodeData.Lazy = NodeData("Lazy")
