"""The frozen layers of a model, of which some stay quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from ..error import UnexpectedShapeError
from ..nn.embedding import Embedding, embedding
from ..nn.linear import Linear, linear_b
from ..nn.quantized_linear import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from ..nn.var_builder import VarBuilder
from ..tensor.eager import Tensor

FrozenLinear = Union[Linear, QuantizedLinear]
FrozenEmbedding = Union[Embedding, QuantizedEmbedding]


@dataclass(frozen=True, repr=False)
class FrozenBuilder(VarBuilder):
    """A ``VarBuilder`` that has some weights quantised, by the names of their tensors."""

    _quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    @staticmethod
    def on(vb: VarBuilder, quantized: Mapping[str, QuantizedWeight]) -> FrozenBuilder:
        """``vb`` with these weights besides."""
        return FrozenBuilder(vb._backend, vb._dtype, vb._device, vb._path, quantized)

    def quantized(self, shape: tuple[int, int]) -> QuantizedWeight | None:
        """The weight here, if it is quantised. Raises ``UnexpectedShapeError`` for another shape."""
        name = self.path("weight")
        weight = self._quantized.get(name)
        if weight is not None and tuple(weight.shape) != shape:
            raise UnexpectedShapeError(name, shape, tuple(weight.shape))
        if weight is not None:
            self._taken.add(name)
        return weight

    def unused(self) -> list[str]:
        """As of a ``VarBuilder``, quantised weights too."""
        return [*super().unused(), *[name for name in self._quantized if name not in self._taken]]


def frozen_linear(size_in: int, size_out: int, bias: bool, vb: VarBuilder) -> FrozenLinear:
    """The linear map at ``vb``, quantised if its weight is. Raises as ``VarBuilder.get``."""
    weight = vb.quantized((size_out, size_in)) if isinstance(vb, FrozenBuilder) else None
    if weight is None:
        return linear_b(size_in, size_out, bias, vb)
    return QuantizedLinear(weight, vb.get((size_out,), "bias") if bias else None)


def frozen_embedding(count: int, size: int, vb: VarBuilder) -> FrozenEmbedding:
    """The table at ``vb``, quantised if it is. Raises as ``VarBuilder.get``."""
    table = vb.quantized((count, size)) if isinstance(vb, FrozenBuilder) else None
    return embedding(count, size, vb) if table is None else QuantizedEmbedding(table, vb.dtype())


def head_of(table: FrozenEmbedding) -> FrozenLinear:
    """The vocabulary head that shares a table."""
    if isinstance(table, QuantizedEmbedding):
        return QuantizedLinear(table.quantized_weight())
    return Linear(table.embeddings())


def quantized_weight(layer: FrozenLinear | FrozenEmbedding) -> QuantizedWeight | None:
    """The layer's weight, if it is quantised."""
    return layer.quantized_weight() if isinstance(layer, (QuantizedLinear, QuantizedEmbedding)) else None


def tensors_of(path: str, layer: FrozenLinear | FrozenEmbedding) -> dict[str, Tensor]:
    """The layer's tensors by name, for a layer at ``path``: of a quantised one codes, scales and biases."""
    name = f"{path}.weight"
    if isinstance(layer, Embedding):
        return {name: layer.embeddings()}
    named = {name: layer.weight()} if isinstance(layer, Linear) else layer.quantized_weight().tensors(name)
    bias = None if isinstance(layer, QuantizedEmbedding) else layer.bias()
    return named if bias is None else {**named, f"{path}.bias": bias}
