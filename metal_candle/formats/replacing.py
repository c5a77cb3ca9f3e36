"""Several files of a folder that take their names together, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..error import CheckpointError, IoError
from ..error.text import shown
from ..files import Target, no_new_folders_on_failure, save_errors, target_of


@contextmanager
def replace_together(folder: Path, names: Sequence[str], stale: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Give a path to write to for each of ``names``; when the block ends well, they take their names in this order.

    Before, the old files of those names and the ``stale`` ones, which get no successor, are renamed in turn from the
    last to the first, and removed after: whoever looks in between finds no last file, not a mix of old and new. When
    a rename fails, all of them are undone. Raises ``CheckpointError.SaveFailed``, which says that what was there is
    unchanged or, where undoing failed too, under which names it is; and ``IoError`` for an old file that cannot be
    removed when the new ones are in place. A process that is ended between the renames leaves the old files under
    names that end in ``.old``.
    """
    besides: dict[str, Path] = {}
    with no_new_folders_on_failure(folder):
        try:
            with save_errors(folder, "; what was there is unchanged"):
                targets = {name: target_of(folder / name) for name in names}
                for name, target in targets.items():
                    besides[name] = target.create("tmp")
            yield besides
            with save_errors(folder, "; what was there is unchanged"):
                for name, target in targets.items():
                    target.finish(besides[name])
            old = _exchange(folder, targets, besides, stale)
        finally:
            for beside in besides.values():
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
    for path in old:
        try:
            path.unlink()
        except OSError as error:
            reason = f"{error.strerror or error}; the new files are complete, this old one can be removed"
            raise IoError(path, reason) from error


def _exchange(folder: Path, targets: dict[str, Target], besides: dict[str, Path], stale: Sequence[str]) -> list[Path]:
    """Rename the old files away and the new ones into place; gives the old ones' new names."""
    away = [target.path for target in reversed(targets.values()) if target.mode is not None]
    away += [folder / name for name in stale]  # a link among them goes itself, not what it leads to
    moves = [(path, Target(path, None).beside("old")) for path in away]
    steps = moves + [(besides[name], target.path) for name, target in targets.items()]
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in steps:
            os.replace(source, place)
            done.append((source, place))
    except BaseException as error:
        left = _undo(done)
        if not isinstance(error, OSError):
            raise
        outcome = "what was there is unchanged"
        if left:
            pairs = ", ".join(f"{source.name} is now {place.name}" for source, place in left)
            outcome = f"undoing that failed: {shown(pairs, 1000)}; rename them back"
        reason = f"{shown(folder, 300)}: {error.strerror or error}; {outcome}"
        raise CheckpointError.SaveFailed(reason=reason) from error
    return [place for _, place in moves]


def _undo(done: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Take back renames, the last first; gives those that could not be taken back."""
    left = []
    for source, place in reversed(done):
        try:
            os.replace(place, source)
        except OSError:
            left.append((source, place))
    return left
