"""``metal-candle merge``: an adapter into its model's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..error import ModelError


def merge(
    adapter: Annotated[Path, typer.Option(help="Adapter folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write; transformers and mlx-lm load it.")],
    model: Annotated[
        Optional[str], typer.Option(help="Model the adapter is for; by default the one its file names.")  # noqa: UP045
    ] = None,
    dtype: Annotated[str, typer.Option(help="f32, bf16 or f16.")] = "f32",
    overwrite: Annotated[bool, typer.Option(help="Replace what is in the output folder.")] = False,
) -> None:
    """Write a Hugging Face folder of the model with the adapter merged in.

    Example: metal-candle merge --adapter adapter --output merged
    """
    from ..models.decoder import Decoder
    from ..models.save import save_model
    from ..training.adapter import LoRAAdapter, merged_weights
    from .generate import base_model_of
    from .options import check_adapter, load_with_progress, parse_dtype

    target = parse_dtype(dtype)
    check_adapter(adapter)
    loaded = load_with_progress(model or base_model_of(adapter), parse_dtype("f32"))
    if not isinstance(loaded.model, Decoder):
        raise ModelError.InvalidConfig(
            reason=f"{loaded.name}: {loaded.note}, which alone writes it: `mlx_lm.fuse` merges an adapter of its format"
        )
    deltas = LoRAAdapter.load(adapter, loaded.model)
    overrides = merged_weights(loaded.model, deltas)
    save_model(output, loaded.model, loaded.tokenizer, target, overrides=overrides, overwrite=overwrite)
    print(f"{output}: {loaded.name} with {len(overrides)} merged weights, {target}")
