"""An adapter as a folder of a configuration and one file of tensors: PEFT's and mlx-lm's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...error import CheckpointError
from ...files import write_atomically
from ...formats import safetensors

CONFIG = "adapter_config.json"


def save_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: str,
    tensors: Mapping[str, mx.array],
    metadata: Mapping[str, str] | None = None,
    others: tuple[str, ...] = (),
) -> None:
    """Write ``adapter_config.json`` and the file ``weights``; both are on disk before either replaces an old one.

    Raises ``CheckpointError.SaveFailed`` if they cannot be written, and for a folder that holds one of the files
    ``others``: its configuration would be replaced by one of another format.
    """
    if other := next((name for name in others if (folder / name).exists()), None):
        raise CheckpointError.SaveFailed(
            reason=f"adapter {folder}: holds {other}, an adapter of another format; give another folder"
        )
    try:
        # The outer block renames last: a failure in the inner one leaves both old files.
        with write_atomically(folder / CONFIG) as config_beside:
            config_beside.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            with write_atomically(folder / weights) as weights_beside:
                safetensors.save(weights_beside, tensors, metadata)
    except CheckpointError.SaveFailed as error:  # it names a file beside the one that was asked for
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        reason = f"adapter {folder}: {why}; an adapter that was there is unchanged"
        raise CheckpointError.SaveFailed(reason=reason) from cause


def plain_number(value: float) -> float | int:
    """A whole number as an integer, as other programs write theirs."""
    return int(value) if float(value).is_integer() else value
