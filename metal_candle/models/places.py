"""Where an adapter acts in a model: the linear maps, what acts in them, and whether the two fit."""

from __future__ import annotations

from typing import Any, Protocol

from ..error import ModelError
from ..error.expect import wrong
from ..tensor.eager import Tensor


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
