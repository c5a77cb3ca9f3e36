"""What adapters and the trainer need of a model, and what else it may be able to do, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ..device import Device
from ..dtype import DType
from ..nn.quantized_linear import QuantizedWeight
from .layout import Layout
from .places import Adapter, AdapterSource, Place


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


@runtime_checkable
class RecomputableModel(Protocol):
    """A model with gradient checkpointing: the backward pass can recompute blocks instead of keeping activations."""

    def gradient_checkpointing(self, on: bool = True) -> bool:
        """Switch it on or off; returns the setting before."""


@runtime_checkable
class SelectiveModel(Protocol):
    """A model that has maps which no adapter can act in, as a base of another library may."""

    def refused_target(self, name: str) -> str | None:
        """Why no adapter can act in the maps that a target names; ``None`` where it can."""
