"""Where downloaded models and built libraries are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import settings


def cache_folder(*parts: str) -> Path:
    """The package's cache folder, or the path of ``parts`` below it. Nothing is created.

    ``METAL_CANDLE_CACHE`` if set; else ``~/Library/Caches/metal-candle`` on macOS, else
    ``$XDG_CACHE_HOME/metal-candle``, which the XDG Base Directory Specification lets default to
    ``~/.cache``. A user without a home gets ``temporary_folder()``.
    """
    return _root().joinpath(*parts)


def temporary_folder() -> Path:
    """The user's own folder below the system's temporary one. Nothing is created."""
    import tempfile  # here: seldom wanted, and every start pays for an import

    return Path(tempfile.gettempdir()) / f"metal-candle-{os.getuid()}"


def _root() -> Path:
    if settings.CACHE.value:
        return Path(os.path.expanduser(settings.CACHE.value)).absolute()
    try:
        home = Path.home()
    except RuntimeError:  # a container's user may be in no password file and have no HOME
        return temporary_folder()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "metal-candle"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification says that a relative XDG_CACHE_HOME is to be ignored.
    return (base if base.is_absolute() else home / ".cache") / "metal-candle"
