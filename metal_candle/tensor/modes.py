"""The modes that a compiled function depends on: those of the modules that were asked for theirs."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Any


class Modes:
    """Modules whose modes are part of which plan is replayed: training or not, or the adapter that acts in one."""

    def __init__(self) -> None:
        self._modules: list[weakref.ref[Any]] = []

    def now(self) -> tuple[Hashable, ...]:
        """The mode of each; ``None`` for one that is gone."""
        return tuple([None if (module := ref()) is None else module._mode() for ref in self._modules])

    def add(self, asked: Iterable[weakref.ref[Any]]) -> bool:
        """Take modules that a trace has asked; whether there were new ones. Those made by the trace are gone."""
        new = [ref for ref in asked if ref() is not None and ref not in self._modules]
        self._modules += new
        return bool(new)

    def in_words(self) -> dict[str, str]:
        """The modes by class and number, as ``explain`` tells them: "training mode of Dropout": "on"."""
        found: dict[str, str] = {}
        for number, ref in enumerate(self._modules):
            module = ref()
            if module is not None:
                mode = module._mode()
                name = f"{'training mode' if isinstance(mode, bool) else 'adapter'} of {type(module).__name__}"
                found[name if name not in found else f"{name} {number}"] = _in_words(mode)
        return found


def _in_words(mode: Hashable) -> str:
    if isinstance(mode, bool):
        return "on" if mode else "off"
    return "none" if mode is None else f"{type(mode).__name__} at {id(mode):#x}"
