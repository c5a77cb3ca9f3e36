"""Where adapters act: what they and training need of a model, as protocols, and our models' projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from ..device import Device
from ..dtype import DType
from ..error import ModelError
from ..error.expect import expect, wrong
from ..nn.module import Module, T
from ..nn.quantized_linear import QuantizedLinear, QuantizedWeight
from ..tensor.eager import Tensor
from .frozen import FrozenLinear
from .layout import Layout


class TargetModule(Enum):
    """The projections of a block. metal-candle: ``metal_candle::training::TargetModule``."""

    QProj = "q_proj"
    KProj = "k_proj"
    VProj = "v_proj"
    OProj = "o_proj"
    GateProj = "gate_proj"
    UpProj = "up_proj"
    DownProj = "down_proj"

    def name(self) -> str:  # type: ignore[override]
        """Its name in a checkpoint: "q_proj"."""
        return str(self.value)

    @staticmethod
    def from_name(s: str) -> TargetModule | None:
        """The member of that name, or ``None``."""
        expect("TargetModule.from_name", s, str, "a name")
        return next((member for member in TargetModule if member.value == s), None)

    @property
    def parent(self) -> str:
        """The part of the block it stands in: "self_attn" or "mlp"."""
        return "mlp" if self.value in ("gate_proj", "up_proj", "down_proj") else "self_attn"


class Adapter(Protocol):
    """What may act in a projection."""

    def apply(self, base: Any, x: Any) -> Any:
        """The projection's result, given what the frozen layer makes of ``x``."""


class AdapterSource(Protocol):
    """What holds an adapter for each place of a model."""

    def num_layers(self) -> int:
        """How many blocks it spans."""

    def layer_at(self, path: str) -> Adapter | None:
        """The adapter of the linear map at a module path, or ``None``."""


class Place(Protocol):
    """A linear map of a model that an adapter may act in."""

    @property
    def path(self) -> str:
        """Its module path in Hugging Face's names: "model.layers.0.self_attn.q_proj"."""

    @property
    def layer(self) -> int:
        """The block it stands in."""

    @property
    def in_features(self) -> int:
        """The size it takes."""

    @property
    def out_features(self) -> int:
        """The size it gives."""

    def dense_weight(self) -> Tensor:
        """Its frozen weight ``(out, in)``, widened to F32 where it is quantised."""


@runtime_checkable
class ApplyAdapter(Protocol):
    """A model that an adapter can act in. metal-candle: ``metal_candle::training::ApplyAdapter``."""

    def apply_adapter(self, adapter: AdapterSource) -> None:
        """Let an adapter act in every place it targets, in place of any before it.

        All or nothing: raises a kind of ``Error`` for an adapter of another number of blocks.
        """

    def remove_adapter(self) -> None:
        """Leave every place as it is without an adapter."""

    def has_adapter(self) -> bool:
        """Whether an adapter acts."""


@runtime_checkable
class ActingModel(Protocol):
    """A model that shows what acts in it."""

    def acting(self) -> Sequence[Adapter]:
        """What acts in the places that are adapted."""


@runtime_checkable
class AdaptableModel(ApplyAdapter, Protocol):
    """What adapters and the trainer need of a model; ``Decoder`` has it, and so has every other base."""

    device: Device
    dtype: DType

    def num_layers(self) -> int:
        """How many blocks there are."""

    def projections(self) -> Sequence[Place]:
        """Every place an adapter may act in, first block first."""

    def row_losses(self, ids: Any, rows: Any, targets: Any) -> Any:
        """The cross entropy ``(n,)`` at positions ``rows`` of ids ``(b, t)``, counted through ``b · t``."""

    def vocab_size(self) -> int:
        """How many tokens there are."""

    def num_parameters(self) -> int:
        """How many numbers the model has, without adapters."""


@runtime_checkable
class MergeableModel(AdaptableModel, Protocol):
    """A model into whose weights an adapter can be merged."""

    def quantized_weights(self) -> Mapping[str, QuantizedWeight]:
        """The weights that are quantised, by name: that of a place is its path and "weight"."""


@runtime_checkable
class PackableModel(Protocol):
    """A model to which the layout of a call's tokens can be told, so that rows can be packed into sequences."""

    def packed(self, segments: Any, positions: Any) -> Layout:
        """The layout of packed rows: the number of each token's row and its place there, integers ``(b, t)``.

        Where no row is longer than one of n blocks of the sequence, they may be ``(b, n, t / n)``.
        """

    def row_losses(self, ids: Any, rows: Any, targets: Any, layout: Layout | None = None) -> Any:
        """As ``AdaptableModel.row_losses``, of tokens that stand as ``layout`` says."""


@runtime_checkable
class WeighingModel(Protocol):
    """A model that gives loss and gradient from one pass where the loss is a weighted sum: one that MLX differentiates
    as a whole, and would otherwise compute twice."""

    def weighted_loss(self, ids: Any, rows: Any, targets: Any, weights: Any) -> Any:
        """The sum of ``row_losses`` times ``weights`` ``(n,)``, a number."""


def expect_spans(adapter: AdapterSource, blocks: int) -> None:
    """Raise ``ArgumentTypeError`` for no adapter, ``ModelError.InvalidConfig`` for one of another number of blocks."""
    if not all(hasattr(adapter, name) for name in ("num_layers", "layer_at")):
        raise wrong("apply_adapter", adapter, "an adapter: a LoRAAdapter")
    if adapter.num_layers() != blocks:
        reason = f"the adapter spans {adapter.num_layers()} layers, the model has {blocks}"
        raise ModelError.InvalidConfig(reason=reason)


def expect_sizes(place: Place, adapter: Adapter | None) -> None:
    """Raise ``ModelError.InvalidConfig`` for an adapter of other sizes than the place; not all adapters say theirs."""
    said = getattr(adapter, "in_features", None), getattr(adapter, "out_features", None)
    if said[0] is None or said[1] is None:
        return
    own, wanted = (said[0](), said[1]()), (place.in_features, place.out_features)
    if own != wanted:
        raise ModelError.InvalidConfig(
            reason=f"the adapter of {place.path} maps {own[0]} to {own[1]}, the model {wanted[0]} to {wanted[1]}; "
            "LoRAAdapter.for_model takes the model's sizes"
        )


@runtime_checkable
class RecomputableModel(Protocol):
    """A model with gradient checkpointing: the backward pass can recompute blocks instead of keeping activations."""

    def gradient_checkpointing(self, on: bool = True) -> bool:
        """Switch it on or off; returns the setting before."""


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
