"""Several adapters by name, one of them at work. metal-candle: ``metal_candle::training::AdapterRegistry``."""

from __future__ import annotations

from os import PathLike

from ..constructors import Default, New
from ..error import TrainingError
from ..error.expect import TEXT, a, optional
from ..error.takes import takes
from ..error.text import shown
from ..models.adaptable import ActingModel, ApplyAdapter
from .adapter import LoRAAdapter
from .checkpoint import load_checkpoint


class AdapterRegistry(New, Default):
    """Named adapters, of which at most one is active.

    With a ``model``, the active adapter is the one that acts in it: ``activate`` applies it, ``deactivate`` takes it
    out, and the model's weights are never touched. A switch sets one reference for each projection of the model,
    however many adapters there are and whatever their size. A function that ``compile`` made keeps a plan for each
    adapter it has met. Without a model the registry remembers which adapter is active, for ``get_active()``.

    What a trainer, another registry or ``apply_adapter`` put into the model counts: active is the registered adapter
    that acts there, and none is while one acts that is not registered.
    """

    @takes(model=optional(a(ApplyAdapter, "a model with apply_adapter, remove_adapter and has_adapter")))
    def __init__(self, model: ApplyAdapter | None = None) -> None:
        self._model = model
        self._adapters: dict[str, LoRAAdapter] = {}
        # The one that was activated last; another may act in the model since.
        self._activated: str | None = None

    def __repr__(self) -> str:
        return f"AdapterRegistry({len(self)} adapters, active: {self.active_adapter()!r})"

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._adapters

    def is_empty(self) -> bool:
        """Whether there are no adapters."""
        return not self._adapters

    @takes(name=TEXT, adapter=a(LoRAAdapter))
    def add_adapter(self, name: str, adapter: LoRAAdapter) -> None:
        """Register an adapter. Raises ``TrainingError.InvalidConfig`` for a name that is taken."""
        self._expect_free(name)
        self._adapters[name] = adapter

    @takes(name=TEXT)
    def load_adapter_from_checkpoint(self, name: str, adapter: LoRAAdapter, path: str | PathLike[str]) -> None:
        """Fill an adapter from a checkpoint, as ``load_checkpoint``, and register it; when that fails, neither.

        Raises as ``load_checkpoint`` and ``add_adapter``.
        """
        self._expect_free(name)
        load_checkpoint(adapter, path)
        self.add_adapter(name, adapter)

    @takes(name=TEXT)
    def unload_adapter(self, name: str) -> None:
        """Forget an adapter, and deactivate it if it is active. Raises ``TrainingError.InvalidConfig``."""
        self._expect_known(name)
        if name == self.active_adapter():
            self.deactivate()
        if name == self._activated:
            self._activated = None
        del self._adapters[name]

    @takes(name=TEXT)
    def activate(self, name: str) -> None:
        """Make an adapter the active one. Raises ``TrainingError.InvalidConfig`` for an unknown name.

        Raises as the model's ``apply_adapter``, too; the previous adapter then stays active.
        """
        self._expect_known(name)
        if self._model is not None:
            self._model.apply_adapter(self._adapters[name])
        self._activated = name

    def deactivate(self) -> None:
        """Make none active, and remove what acts in the model, also where a trainer or another registry applied it."""
        if self._model is not None:
            self._model.remove_adapter()
        self._activated = None

    def active_adapter(self) -> str | None:
        """The active adapter's name.

        A model that does not show what acts in it, by ``acting()``, is asked only whether an adapter does.
        """
        if self._model is None:
            return self._activated
        if not isinstance(self._model, ActingModel):
            return self._activated if self._model.has_adapter() else None
        acting = {id(layer) for layer in self._model.acting()}
        names = dict.fromkeys([self._activated, *self._adapters] if acting else [self._activated])
        return next((name for name in names if name is not None and self._layers(name) == acting), None)

    def _layers(self, name: str) -> set[int]:
        adapter = self._adapters[name]
        return {id(adapter.layer_at(path)) for path in adapter.paths()}

    def get_active(self) -> LoRAAdapter | None:
        """The active adapter."""
        name = self.active_adapter()
        return None if name is None else self._adapters[name]

    @takes(name=TEXT)
    def get_adapter(self, name: str) -> LoRAAdapter | None:
        """The adapter of that name, or ``None``."""
        return self._adapters.get(name)

    def list_adapters(self) -> list[str]:
        """The names, in the order they were registered."""
        return list(self._adapters)

    def _expect_free(self, name: str) -> None:
        if name in self._adapters:
            reason = f"adapter {shown(name)} is registered already; takes another name, or unload_adapter first"
            raise TrainingError.InvalidConfig(reason=reason)

    def _expect_known(self, name: str) -> None:
        if name not in self._adapters:
            known = ", ".join(map(shown, self._adapters)) or "none"
            raise TrainingError.InvalidConfig(reason=f"no adapter {shown(name)}; registered: {known}")
