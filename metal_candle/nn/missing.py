"""What the error of a missing tensor says: the nearest names, and what there is where its prefix ends."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ..error import CannotFindTensorError
from ..error.text import shown

# Names that difflib compares: more take longer than an error may.
_COMPARED = 2000
_SHOWN = 8


def missing(path: str, names: Iterable[str]) -> CannotFindTensorError:
    """The error of ``path``, which is none of ``names``.

    A whole prefix that is not there, ``model.layers.0`` where the file has ``transformer.h.0`` say, is named with
    what there is instead.
    """
    there = list(names)
    if not there:
        return CannotFindTensorError(path, note="there are no tensors")
    parts = path.split(".")
    # The longest prefix that something is below of.
    depth, below = next(
        (depth, found)
        for depth in range(len(parts) - 1, -1, -1)
        if (found := [name for name in there if name.startswith("".join(f"{part}." for part in parts[:depth]))])
    )
    whole_prefix = depth == len(parts) - 1
    nearest = _nearest(path, parts, there, below, whole_prefix)
    if nearest and depth >= len(parts) - 2:  # at most a layer lacks, which the nearest names show
        return CannotFindTensorError(path, nearest)
    lacking = "" if whole_prefix else f"nothing is below {shown('.'.join(parts[: depth + 1]))}; "
    return CannotFindTensorError(path, nearest, lacking + _children(parts[:depth], below))


def _nearest(path: str, parts: Sequence[str], names: list[str], below: list[str], whole_prefix: bool) -> list[str]:
    if not whole_prefix:
        # Most often a prefix is too much or too little: the same end of the name is elsewhere.
        for start in range(len(parts) - 1):
            end = ".".join(parts[start:])
            found = [name for name in names if name.endswith(end) and name[: -len(end)][-1:] in ("", ".")]
            if found:
                return found[:3]
    if len(names) > _COMPARED:
        names = below[:_COMPARED]
    return difflib.get_close_matches(path, names, n=3)


def _children(prefix: Sequence[str], names: list[str]) -> str:
    """What is one level below ``prefix``; of the root, where it parts."""
    depth = len(prefix)
    split = [name.split(".") for name in names]
    while not prefix and len({tuple(parts[: depth + 1]) for parts in split}) == 1 < min(map(len, split)) - depth:
        depth += 1
    found = list(dict.fromkeys(".".join(parts[len(prefix) : depth + 1]) for parts in split))
    found.sort(key=lambda child: [(part.zfill(20) if part.isdigit() else part) for part in child.split(".")])
    if len(found) > _SHOWN:
        found = [*found[: _SHOWN - 2], "…", found[-1]]
    listed = ", ".join(shown(child) or '""' for child in found)
    return f"{shown('.'.join(prefix))} has {listed}" if prefix else f"there are {listed}"
