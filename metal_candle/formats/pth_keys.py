"""The keys of a PyTorch checkpoint's dictionaries, and what the tensors below them are called.

Keys come from the file: they are never hashed or shown whole unless that is known to be cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .pth_records import Global, Opaque, Pairs

NAME_LIMIT = 4096
"""Longest name of a tensor, in characters."""

KEY_LIMIT = 200
"""Most characters that a key other than a text or a number adds to a name."""

_SCALARS = (str, bytes, int, float, type(None))


def entries(pairs: Pairs) -> list[tuple[Any, Any]]:
    """A dictionary's entries in order; of equal texts or numbers the last one counts."""
    found: dict[Any, tuple[Any, Any]] = {}
    for key, value in pairs.items:
        found[key if isinstance(key, _SCALARS) else ("", id(key))] = key, value
    return list(found.values())


def key_name(key: Any) -> str:
    """A key in a tensor's name: a text as it is, ``None``, numbers and tuples as Python shows them.

    Of other keys the kind, ``<torch.Size>``. Takes time in proportion to the result, however a tuple is nested.
    """
    if isinstance(key, str):
        return key
    text = ""
    for piece in _pieces(key):
        text += piece
        if len(text) > KEY_LIMIT and not isinstance(key, int):
            return text[:KEY_LIMIT] + "…"
    return text


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, tuple) and not isinstance(value, Global):
        yield "("
        for index, part in enumerate(value):
            if index:
                yield ", "
            yield from _pieces(part)
        yield ",)" if len(value) == 1 else ")"
    elif isinstance(value, (str, bytes)):
        yield repr(value[: KEY_LIMIT + 1])
    elif isinstance(value, _SCALARS):
        yield repr(value)
    elif isinstance(value, Global):
        yield f"<{value}>"
    elif isinstance(value, Opaque):
        yield f"<{value.made_by}>" if value.made_by else "<?>"
    else:
        yield f"<{type(value).__name__}>"
