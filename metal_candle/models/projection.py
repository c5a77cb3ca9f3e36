"""The linear maps of our models' blocks: each is frozen, and an adapter may act in it."""

from __future__ import annotations

from typing import Any

from ..dtype import DType
from ..nn.module import Module, T
from ..nn.quantized_linear import QuantizedLinear
from ..tensor.eager import Tensor
from .frozen import FrozenLinear
from .places import Adapter
from .target_module import TargetModule


class Projection(Module):
    """A frozen linear layer together with the adapter that acts in it, if any."""

    def __init__(self, linear: FrozenLinear, layer: int, target: TargetModule) -> None:
        self.linear, self.layer, self.target = linear, layer, target
        self.path = f"model.layers.{layer}.{target.parent}.{target.value}"
        """Its Hugging Face path: "model.layers.0.self_attn.q_proj"."""
        self.adapter: Adapter | None = None

    @property
    def in_features(self) -> int:
        """The size it takes."""
        linear = self.linear
        return linear.in_features if isinstance(linear, QuantizedLinear) else int(linear.weight().dim(1))

    @property
    def out_features(self) -> int:
        """The size it gives."""
        linear = self.linear
        return linear.out_features if isinstance(linear, QuantizedLinear) else int(linear.weight().dim(0))

    def dense_weight(self) -> Tensor:
        """The frozen weight ``(out, in)`` in F32; of a quantised one a copy that is unpacked."""
        linear = self.linear
        if isinstance(linear, QuantizedLinear):
            return linear.dense_weight()
        return linear.weight().detach().to_dtype(DType.F32)

    def forward(self, xs: T) -> T:
        """``(…, in)`` to ``(…, out)``. A compiled function has a plan for each adapter that it meets here."""
        self._asked()
        base = self.linear.forward(xs)
        if self.adapter is None:
            return base
        adapted: T = self.adapter.apply(base, xs)
        return adapted

    def _mode(self) -> Any:
        return self.adapter
