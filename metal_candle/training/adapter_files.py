"""Between a ``LoRAAdapter`` and what files hold: every module keeps its own rank and scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..error import CheckpointError
from ..graph.evaluate import on_device
from ..models.adaptable import AdaptableModel
from ..models.places import Place
from ..models.target_module import TargetModule
from .formats.stored import Factors, StoredAdapter, ends_with, in_order, widened_together
from .lora import LoRAConfig, LoRALayer


def stored_from(
    layers: Mapping[str, LoRALayer], targets: Sequence[str], dropout: float, num_layers: int, base_model: str | None
) -> StoredAdapter:
    """What files hold of layers by module path. The general rank and scale are the commonest ones."""
    factors = {
        path: Factors(layer.lora_a().mlx(), layer.lora_b().mlx(), layer.config().scaling())
        for path, layer in layers.items()
    }
    if not factors:
        raise CheckpointError.InvalidFormat(reason="an adapter needs at least one module's factors; this one has none")
    (rank, scale), _ = Counter((each.rank, each.scale) for each in factors.values()).most_common(1)[0]
    stored = StoredAdapter(rank, scale, factors, dropout, tuple(sorted(targets)), base_model=base_model)
    adapted = stored.adapted_layers()
    if adapted and adapted != tuple(range(num_layers)):
        return StoredAdapter(rank, scale, factors, dropout, stored.targets, adapted, base_model=base_model)
    return stored


def layers_for(stored: StoredAdapter, model: AdaptableModel) -> dict[str, LoRALayer]:
    """A layer for each module that has factors, on the model's device and in its order.

    Raises ``CheckpointError.InvalidFormat``, naming the first module that does not fit: one that the model does not
    have or has in another size, one that the files say they adapt and hold no factors for, one whose factors hold
    infinities or NaN.
    """
    places = model.projections()
    _check_places(stored, places, model.num_layers())
    for place in places:
        if (factors := stored.factors.get(place.path)) is None:
            continue
        found, wanted = (factors.a.shape[0], factors.b.shape[1]), (place.in_features, place.out_features)
        if found != wanted:
            reason = f"{place.path} maps {found[0]} to {found[1]} there, {wanted[0]} to {wanted[1]} here"
            raise _of_another_model(stored, reason)
    with on_device(model.device):
        widened = widened_together(stored.factors)
    layers: dict[str, LoRALayer] = {}
    configs: dict[tuple[int, float], LoRAConfig] = {}
    for place in places:
        if (factors := widened.get(place.path)) is None:
            continue
        if not factors.is_finite():
            reason = f"{stored.source}: the factors of {place.path} hold numbers that are not finite"
            raise CheckpointError.InvalidFormat(reason=reason)
        # alpha over rank is the scale in force, also where the file says so by another rule.
        like = factors.rank, factors.alpha
        if like not in configs:
            configs[like] = LoRAConfig(*like, stored.dropout, "uniform")
        sizes, pair = (place.in_features, place.out_features), (factors.a, factors.b)
        layers[place.path] = LoRALayer.for_factors(*sizes, configs[like], model.device, pair)
    return layers


def _check_places(stored: StoredAdapter, places: Sequence[Place], num_layers: int) -> None:
    """Every module of the files is one of the model's, and none that they say they adapt is missing."""
    by_path = {place.path: place for place in places}
    if unknown := next((path for path in sorted(stored.factors, key=in_order) if path not in by_path), None):
        raise _of_another_model(stored, f"this one has no {unknown}")
    if stored.targets is None:
        return
    layers = stored.chosen_layers(num_layers)
    last = max(by_path[path].layer for path in stored.factors)
    for place in places:
        chosen = layers is None or place.layer in layers
        if not chosen or place.path in stored.factors or not ends_with(place.path, stored.targets):
            continue
        if place.layer > last:
            raise _of_another_model(stored, f"it spans {last + 1} layers, this one has {num_layers}")
        reason = f"{stored.source}: adapts {', '.join(stored.targets)}, but holds no factors for {place.path}"
        raise CheckpointError.InvalidFormat(reason=reason)


def _of_another_model(stored: StoredAdapter, reason: str) -> CheckpointError:
    return CheckpointError.InvalidFormat(reason=f"{stored.source}: the adapter is for another model: {reason}")


def targets_of(paths: Iterable[str], places: Sequence[Place]) -> tuple[TargetModule | str, ...]:
    """The shortest ends of module paths that, in the adapted blocks, name these modules and no others."""
    adapted = set(paths)
    blocks = {place.layer for place in places if place.path in adapted}
    within = [place.path for place in places if place.layer in blocks]
    for length in range(1, 1 + max(path.count(".") + 1 for path in adapted)):
        names = dict.fromkeys(".".join(path.split(".")[-length:]) for path in within if path in adapted)
        if all(path in adapted for path in within if ends_with(path, names)):
            break
    known = [target for target in TargetModule if target.value in names]
    return (*known, *(name for name in names if TargetModule.from_name(name) is None))
