"""Low-rank adaptation of a linear layer.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. metal-candle: ``metal_candle::training::LoRALayer``.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from .. import features
from ..constructors import Default
from ..device import Device, DeviceLike
from ..dtype import DType
from ..error import ArgumentTypeError, ArgumentValueError, ShapeMismatchError, TrainingError
from ..error.expect import a, expect, integer, wrong
from ..graph.node import Variable
from ..graph.operations.counts import number
from ..graph.operations.fused import AddLoRA, LoRA
from ..graph.scopes import scoped
from ..nn import ops
from ..nn.module import Module
from ..scalar import hold_python_numbers
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.eager import CellTensor, Tensor
from ..tensor.lazy import LazyTensor
from ..tensor.var import Var


@dataclass(frozen=True)
class LoRAConfig(Default):
    """Rank, alpha and dropout of an adaptation; ``scaling()`` is alpha / rank.

    ``init`` is how A starts: "normal" with standard deviation 1/sqrt(rank), metal-candle's; "uniform" in
    ±1/sqrt(in), as PEFT and mlx-lm start, so that their learning rates carry over. B starts at zero. Raises
    ``TrainingError.InvalidLoRAConfig`` for values that are not numbers; ``validate()`` checks their ranges.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    init: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        hold_python_numbers(self)
        try:
            integer("LoRAConfig", "rank", self.rank)
            for name in ("alpha", "dropout"):
                number("LoRAConfig", name, getattr(self, name))
        except (ArgumentTypeError, ArgumentValueError) as error:
            raise TrainingError.InvalidLoRAConfig(reason=str(error)) from error

    def scaling(self) -> float:
        """What the delta is multiplied by: alpha / rank."""
        return self.alpha / self.rank

    def validate(self) -> None:
        """Raise ``TrainingError.InvalidLoRAConfig`` for numbers outside their ranges."""
        if self.rank < 1:
            raise TrainingError.InvalidLoRAConfig(reason=f"rank is {self.rank}; takes at least 1")
        if not 0 < self.alpha < math.inf:
            raise TrainingError.InvalidLoRAConfig(reason=f"alpha is {self.alpha}; takes more than 0")
        if not 0 <= self.dropout < 1:
            raise TrainingError.InvalidLoRAConfig(reason=f"dropout is {self.dropout}; takes 0 <= dropout < 1")
        if self.init not in ("normal", "uniform"):
            raise TrainingError.InvalidLoRAConfig(reason=f"init is {self.init!r}; takes 'normal' or 'uniform'")


class LoRALayer(Module):
    """scaling · (drop(x · A) · B): A ``(in, rank)``, B ``(rank, out)``, both F32 variables.

    It gives the delta alone; the frozen layer's output is added by the caller, or by ``apply``. Starts in
    training mode. Raises ``TrainingError.InvalidLoRAConfig``, also for a rank above ``min(in, out)``.
    """

    def __init__(
        self, in_features: int, out_features: int, config: LoRAConfig | None = None, device: DeviceLike = None
    ) -> None:
        self._begin(in_features, out_features, LoRAConfig() if config is None else config)
        rank, where = self._config.rank, Device.default() if device is None else device
        if rank > min(in_features, out_features):
            raise TrainingError.InvalidLoRAConfig(
                reason=f"rank is {rank} for a layer of {in_features} to {out_features}; takes at most the smaller"
            )
        if self._config.init == "normal":
            self._a = Var.randn(0.0, 1 / math.sqrt(rank), (in_features, rank), where, DType.F32)
        else:
            bound = 1 / math.sqrt(in_features)
            self._a = Var.rand(-bound, bound, (in_features, rank), where, DType.F32)
        self._b = Var.zeros((rank, out_features), DType.F32, where)

    @classmethod
    def for_factors(
        cls,
        in_features: int,
        out_features: int,
        config: LoRAConfig,
        device: DeviceLike = None,
        factors: tuple[mx.array, mx.array] | None = None,
    ) -> LoRALayer:
        """A layer of factors that are there, A ``(in, rank)`` and B ``(rank, out)`` in F32: nothing is drawn.

        Without them it starts from zeros, to be set. It may have any rank, as PEFT's may: a rank above ``min(in, out)``
        adds nothing, but files have it. Raises ``TrainingError.InvalidLoRAConfig``, and ``ShapeMismatchError`` for
        factors of other sizes or dtypes.
        """
        layer = cls.__new__(cls)
        layer._begin(in_features, out_features, config)
        where = Device.default() if device is None else device
        shapes = (in_features, config.rank), (config.rank, out_features)
        if factors is None:
            layer._a, layer._b = (Var.zeros(shape, DType.F32, where) for shape in shapes)
            return layer
        if not isinstance(factors, tuple) or [type(each) for each in factors] != [mx.array] * 2:
            raise wrong("LoRALayer.for_factors", factors, "A and B as mx.arrays", "factors")
        for name, array, shape in zip("AB", factors, shapes):
            if array.shape != shape or array.dtype != mx.float32:
                raise ShapeMismatchError(
                    f"LoRALayer.for_factors: got {name} {array.shape} {DType.of(array.dtype)}; takes {shape} f32"
                )
        mx.eval(factors)  # only the thread that recorded them can
        device = Device.of(where)
        # Arrays of its own, which share the memory: who gave these may still change them in place.
        layer._a, layer._b = (Var(CellTensor(Variable(copy(array), device))) for array in factors)
        return layer

    def _begin(self, in_features: int, out_features: int, config: LoRAConfig) -> None:
        op = type(self).__name__
        expect(op, config, a(LoRAConfig), "config")
        config.validate()
        self._config = config
        self._in = integer(op, "in_features", in_features, 1)
        self._out = integer(op, "out_features", out_features, 1)

    def forward(self, xs: Any) -> Any:
        """The delta ``(…, out)`` of ``(…, in)``, in its dtype: lazy for a lazy input, eager for an eager one."""
        a, b = self._factors(xs)
        if self._drops():
            return self._hidden(xs).broadcast_matmul(b)
        return xs._record(LoRA(self._config.scaling()), a, b)

    @features.method("graph", instead="forward")
    def forward_lazy(self, xs: LazyTensor) -> LazyTensor:
        """``forward`` on a lazy tensor. Raises ``TypeError`` for an eager one."""
        expect("forward_lazy", xs, a(LazyTensor, "a LazyTensor, LazyTensor.from_tensor lifts"))
        lifted: LazyTensor = self.forward(xs)
        return lifted

    @scoped
    def apply(self, base: Any, xs: Any) -> Any:
        """``base`` plus the delta of ``xs``, in one operation; computed in F32 for half inputs' factors."""
        expect_tensor("LoRALayer.apply", base, "base")
        a, b = self._factors(xs)
        if self._drops():
            return base + self._hidden(xs).broadcast_matmul(b)
        return base._record(AddLoRA(self._config.scaling()), xs, a, b)

    def _factors(self, xs: Any) -> tuple[Any, Any]:
        """A and B as tensors of ``xs``' kind and dtype."""
        expect_tensor("LoRALayer", xs)
        a: Any = xs._lift(self._a)
        b: Any = xs._lift(self._b)
        return (a, b) if xs.dtype is DType.F32 else (a.to_dtype(xs.dtype), b.to_dtype(xs.dtype))

    def _drops(self) -> bool:
        return self._config.dropout > 0 and self.is_training()

    def _hidden(self, xs: Any) -> Any:
        """drop(x · A), scaled: at rank the scale costs nothing."""
        a = xs._lift(self._a).to_dtype(xs.dtype)
        return ops.dropout(xs.broadcast_matmul(a), self._config.dropout).mul_scalar(self._config.scaling())

    def delta_weight(self) -> Tensor:
        """scaling · (A · B)ᵀ, ``(out, in)``: what merging adds to the frozen weight."""
        return self._a.detach().matmul(self._b.detach()).t().mul_scalar(self._config.scaling())

    def num_parameters(self) -> int:
        """rank · (in + out)."""
        return self._config.rank * (self._in + self._out)

    def set_training(self, training: bool) -> None:
        """``train(training)``, as metal-candle calls it: dropout acts in training mode only."""
        self.train(boolean("set_training", "training", training))

    def lora_a(self) -> Var:
        """A, ``(in, rank)``."""
        return self._a

    def lora_b(self) -> Var:
        """B, ``(rank, out)``."""
        return self._b

    def lora_a_tensor(self) -> Tensor:
        """A as a tensor that shares the variable."""
        return self._a.as_tensor()

    def lora_b_tensor(self) -> Tensor:
        """B as a tensor that shares the variable."""
        return self._b.as_tensor()

    def trainable_variables(self) -> list[Var]:
        """``[A, B]``."""
        return [self._a, self._b]

    def config(self) -> LoRAConfig:
        """Rank, alpha, dropout."""
        return self._config

    def in_features(self) -> int:
        """The size it takes."""
        return self._in

    def out_features(self) -> int:
        """The size it gives."""
        return self._out
