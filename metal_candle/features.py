"""Feature switches: ``graph`` and ``custom-metal`` of the original crate, ``rewrite`` and its parts. All are on.

``METAL_CANDLE_DISABLE=graph,custom-metal`` switches off from outside, ``disabled`` for a block. ``rewrite`` is all
rewriting of graphs; ``rewrite.<pass>`` one pass of it, ``rewrite.<pass>.<rule>`` a single rule, to find the one that
makes a numerical difference. ``rewrite.<rule>`` is enough where no pass has that name.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

from . import settings
from .error import ArgumentTypeError, ArgumentValueError, FeatureDisabledError, MethodNotFoundError
from .error.text import described, shown

NAMES = ("graph", "custom-metal", "rewrite")
_PART = "rewrite."
Method = TypeVar("Method", bound=Callable[..., Any])


def names() -> tuple[str, ...]:
    """Every feature, and the parts of rewriting: ``rewrite.lora`` is a pass, ``rewrite.lora.add_lora`` a rule of it."""
    return (*NAMES, *dict.fromkeys(_PART + part for part in _parts().values()))


def enabled(name: str) -> bool:
    """Whether the feature is on.

    Raises ``ArgumentValueError``, a ``ValueError``, for a name that is no feature, here or in ``METAL_CANDLE_DISABLE``.
    """
    off = _OFF.get()
    if name in NAMES:
        return name not in off
    levels = _full(_expect("features", name)).split(".")
    return not any(".".join(levels[:i]) in off for i in range(1, len(levels) + 1))


def require(name: str) -> None:
    """Raise ``FeatureDisabledError`` if the feature is off."""
    if not enabled(name):
        raise FeatureDisabledError(name)


def switched_off() -> frozenset[str]:
    """What is switched off, rules with their passes: ``rewrite.lora.add_lora``.

    Raises ``ArgumentValueError`` for a word in ``METAL_CANDLE_DISABLE`` that is no feature and for one in
    ``METAL_CANDLE_DEBUG`` that is no topic.
    """
    return _OFF.get()


class method:
    """A method that is there while a feature is on: ``@features.method("graph", instead="forward")``.

    While it is off, the method is not found: ``MethodNotFoundError``, an ``AttributeError``, so ``hasattr`` says no.
    """

    def __init__(self, feature: str, instead: str) -> None:
        self._feature, self._instead = feature, instead

    def __call__(self, function: Method) -> Method:
        self._function: Callable[..., Any] = function
        functools.update_wrapper(self, function)
        return cast("Method", self)

    def __get__(self, instance: object, owner: type) -> Any:
        """The bound method. Raises ``MethodNotFoundError`` while the feature is off."""
        if instance is None:
            return self._function
        if not enabled(self._feature):
            raise MethodNotFoundError(owner.__name__, self._function.__name__, self._feature, self._instead)
        return functools.partial(self._function, instance)


class disabled(settings.Override):
    """Switch features off inside a ``with`` block or a decorated function, which may be an ``async`` one.

    Raises ``ArgumentValueError`` for a name that is no feature, ``ArgumentTypeError`` for what is no name and for a
    generator function.
    """

    def __init__(self, *names: str) -> None:
        for name in names:
            _expect("features", name)
        super().__init__(settings.DISABLE, lambda: ",".join(sorted(settings.DISABLE.words | set(names))))

    def _named(self) -> str:
        return "features.disabled"


def _check() -> frozenset[str]:
    for word in settings.DEBUG.words:
        if word not in settings.TOPICS:
            raise _unknown(settings.DEBUG.name, "topic", word, settings.TOPICS, ", ".join(settings.TOPICS))
    return frozenset(_full(_expect(settings.DISABLE.name, word)) for word in settings.DISABLE.words)


_OFF = settings.Derived(_check, settings.DISABLE, settings.DEBUG)


def _expect(where: str, name: str) -> str:
    """The name, if it is a feature's."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f'{where}: got {described(name)} for a name; takes names: disabled("rewrite.lora")')
    if name in NAMES or (name.startswith(_PART) and name.removeprefix(_PART) in _parts()):
        return name
    known = (*NAMES, *(_PART + part for part in _parts())) if name.startswith(NAMES[-1]) else NAMES
    raise _unknown(where, "feature", name, known, f"{', '.join(NAMES)}, and {_PART}<name> for a part of the last")


def _unknown(where: str, what: str, word: str, known: Collection[str], all_of_them: str) -> ArgumentValueError:
    near = difflib.get_close_matches(word, known, n=3)
    hint = f"the nearest are {', '.join(near)}" if len(near) > 1 else f"the nearest is {near[0]}" if near else ""
    hint = f"{hint}; " if hint else ""
    return ArgumentValueError(f"{where}: no {what} {shown(word)!r}; {hint}there are {all_of_them}")


def _full(name: str) -> str:
    """A feature's name, a rule's with its pass."""
    return _PART + _parts()[name.removeprefix(_PART)] if name.startswith(_PART) else name


def _parts() -> dict[str, str]:
    # Found by name, and only where a part is named: the rules belong to a layer above, and take their time to import.
    parts: dict[str, str] = importlib.import_module("metal_candle.graph.rewrites").names()
    return parts
