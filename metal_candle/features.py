"""Feature switches of the original crate: ``graph`` and ``custom-metal``, both on.

``METAL_CANDLE_DISABLE=graph,custom-metal`` switches off from outside, ``disabled`` for a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import settings
from .error import FeatureDisabledError

NAMES = ("graph", "custom-metal")


def enabled(name: str) -> bool:
    """Whether the feature is on. Raises ``ValueError`` for a name that is no feature."""
    if name not in NAMES:
        raise ValueError(f"features: no feature {name!r}; there are {', '.join(NAMES)}")
    return name not in settings.DISABLE.words


def require(name: str) -> None:
    """Raise ``FeatureDisabledError`` if the feature is off."""
    if not enabled(name):
        raise FeatureDisabledError(name)


@contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Switch features off inside the block or the decorated function."""
    for name in names:
        enabled(name)
    with settings.DISABLE.override(",".join(settings.DISABLE.words | set(names))):
        yield
