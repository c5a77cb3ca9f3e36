"""The training modes that a compiled function depends on: those of the modules that were asked for theirs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any


class Modes:
    """Modules, with an ``is_training()`` each, whose answers are part of which plan is replayed."""

    def __init__(self) -> None:
        self._modules: list[weakref.ref[Any]] = []

    def now(self) -> tuple[bool | None, ...]:
        """Whether each is in training mode; ``None`` for one that is gone."""
        return tuple([None if (module := ref()) is None else module.is_training() for ref in self._modules])

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
                name = f"training mode of {type(module).__name__}"
                found[name if name not in found else f"{name} {number}"] = "on" if module.is_training() else "off"
        return found
