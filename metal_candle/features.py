"""Feature switches: ``graph`` and ``custom-metal`` of the original crate, ``rewrite`` and its parts. All are on.

``METAL_CANDLE_DISABLE=graph,custom-metal`` switches off from outside, ``disabled`` for a block. ``rewrite`` is all
rewriting of graphs; ``rewrite.<name>`` one pass or rule of it, to find the one that makes a numerical difference.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from . import settings
from .error import ArgumentValueError, FeatureDisabledError

NAMES = ("graph", "custom-metal", "rewrite")
_PART = "rewrite."


def names() -> tuple[str, ...]:
    """Every feature, the passes and rules of rewriting among them."""
    # Found by name: the rules belong to a layer above.
    rules: dict[str, str] = importlib.import_module("metal_candle.graph.rewrites").names()
    return (*NAMES, *(_PART + rule for rule in rules))


def enabled(name: str) -> bool:
    """Whether the feature is on. Raises ``ArgumentValueError``, a ``ValueError``, for a name that is no feature."""
    _expect(name)
    off = settings.DISABLE.words
    return name not in off and not (name.startswith(_PART) and "rewrite" in off)


def require(name: str) -> None:
    """Raise ``FeatureDisabledError`` if the feature is off."""
    if not enabled(name):
        raise FeatureDisabledError(name)


@contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Switch features off inside the block or the decorated function."""
    for name in names:
        _expect(name)
    with settings.DISABLE.override(",".join(sorted(settings.DISABLE.words | set(names)))):
        yield


def _expect(name: str) -> None:
    if name in NAMES or (isinstance(name, str) and name.startswith(_PART) and name in names()):
        return
    if isinstance(name, str) and name.startswith("rewrite"):
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ArgumentValueError(f"features: no feature {name!r}{hint}")
    raise ArgumentValueError(
        f"features: no feature {name!r}; there are {', '.join(NAMES)}, and {_PART}<name> for a part of the last"
    )
