"""Which names mean which linear maps of a model."""

from __future__ import annotations

from ..models.adaptable import AdaptableModel, SelectiveModel
from ..models.target_module import TargetModule

ALL_NAMES = "all-linear"
"""PEFT's name for every linear map of the blocks."""


def refusal(model: AdaptableModel, name: str) -> str | None:
    """Why a model refuses a target; ``None`` where it does not."""
    return model.refused_target(name) if isinstance(model, SelectiveModel) else None


def all_linear(model: AdaptableModel, rank: int) -> tuple[TargetModule | str, ...]:
    """The shortest names that together mean every linear map of the blocks, and nothing that the model refuses.

    Maps narrower than the rank, a gate of one number say, are left out.
    """
    names: dict[str, None] = {}
    places = model.projections()
    narrow = {place.path.rpartition(".")[2] for place in places if min(place.in_features, place.out_features) < rank}
    for place in places:
        if place.path.rpartition(".")[2] in narrow:
            continue
        parts = place.path.split(".")
        count = 1
        while count < len(parts) and refusal(model, ".".join(parts[-count:])):
            count += 1
        names[".".join(parts[-count:])] = None
    return tuple(TargetModule.from_name(name) or name for name in names)
