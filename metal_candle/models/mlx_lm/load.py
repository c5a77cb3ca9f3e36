"""From a folder or hub id to an mlx-lm model."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...device import DeviceLike
from ...dtype import DType, DTypeLike
from ...error import ModelError
from ..architecture import MLX_LM_EXTRA, foreign_architecture, unknown_architecture
from ..download import Progress
from ..fetch import resolve
from ..load_errors import model_file_errors
from ..loaded import LoadedModel
from ..tokenizer import Tokenizer
from .model import MlxLmModel


def load_mlx_lm(
    model: str | PathLike[str],
    dtype: DTypeLike | None = None,
    device: DeviceLike = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model of any of mlx-lm's architectures from a Hugging Face or MLX folder, or a hub id.

    Folders that mlx-lm quantised stay so. ``dtype`` is what the other floats become; without it they stay as the file
    has them. ``progress(done, total)`` counts the bytes of a download. Raises kinds of ``ModelError``:
    ``InvalidConfig`` also where mlx-lm is not installed or has no such architecture.
    """
    path = resolve(model, progress)
    if not path.is_dir():
        raise ModelError.InvalidConfig(reason=f"{path}: mlx-lm takes a folder with config.json, or a hub id")
    utils = mlx_lm_utils(str(path))
    target = None if dtype is None else DType.of(dtype)
    with model_file_errors():
        module, config = _loaded(utils, path)
        if target is not None:
            module.set_dtype(target.mlx_)
        # MLX reads files when their values are first needed; a file that cannot be read shall fail here.
        mx.eval(module.parameters())
    tokenizer = Tokenizer.from_directory(path)
    wrapped = MlxLmModel(module, tokenizer, config, device)
    note = f"architecture {wrapped.config.model_type!r} goes through mlx-lm {version()}"
    return LoadedModel(wrapped, tokenizer, path, str(model), note)


def mlx_lm_utils(wanted_by: str) -> Any:
    """``mlx_lm.utils``. Raises ``ModelError.InvalidConfig`` where mlx-lm is not installed or cannot be imported."""
    try:
        from mlx_lm import utils
    except ImportError as error:
        reason = "mlx-lm is not installed" if error.name == "mlx_lm" else f"mlx-lm cannot be imported: {error}"
        raise ModelError.InvalidConfig(reason=f"{wanted_by}: {reason}; {MLX_LM_EXTRA}") from error
    return utils


def version() -> str:
    """The version of mlx-lm."""
    from importlib.metadata import version as installed

    return installed("mlx-lm")


def _loaded(utils: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    if not (path / "config.json").is_file():
        raise ModelError.FileNotFound(path=f"{path / 'config.json'}; a Hugging Face model folder has one")
    try:
        module, config = utils.load_model(path, lazy=True)
    except FileNotFoundError as error:
        raise ModelError.FileNotFound(path=f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise ModelError.InvalidConfig(reason=f"{path / 'config.json'}: {error}") from error
    # What mlx-lm raises for an architecture it lacks, a configuration or weights that do not fit.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        if "not supported" in said and (name := foreign_architecture(path)) is not None:
            raise unknown_architecture(path, name, f"mlx-lm {version()} says: {said}") from error
        raise ModelError.InvalidConfig(
            reason=f"{path}: mlx-lm cannot load it: {type(error).__name__}: {said}"
        ) from error
    return module, config
