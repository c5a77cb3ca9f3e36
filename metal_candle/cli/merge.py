"""``metal-candle merge``: an adapter into its model's weights."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..error import CheckpointError
from .options import ALPHA, QUANTIZE, AdapterPath, GroupSize
from .paths import to_write


def merge(
    adapter: AdapterPath,
    output: Annotated[
        Path,
        typer.Option(parser=to_write("--output"), help="Folder to write; transformers and mlx-lm load it."),
    ],
    model: Annotated[
        Optional[str], typer.Option(help="Model the adapter is for; by default the one its file names.")  # noqa: UP045
    ] = None,
    dtype: Annotated[str, typer.Option(help="f32, bf16 or f16.")] = "f32",
    quantize: Annotated[Optional[str], typer.Option(help=f"{QUANTIZE} The merged weights are held so too.")] = None,  # noqa: UP045
    group_size: GroupSize = None,
    alpha: Annotated[Optional[float], typer.Option(help=ALPHA)] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option(help="Replace what is in the output folder.")] = False,
) -> None:
    """Write a Hugging Face folder of the model with the adapter merged in, and say what rounding loses.

    Example: metal-candle merge --adapter adapter --output merged
    """
    from ..models.decoder import Decoder
    from ..models.quantize_options import QuantizeOptions
    from ..models.save import check_target, save_model
    from ..training.adapter import LoRAAdapter
    from ..training.merge import MergeWarning, merge_adapter
    from .generate import base_model_of
    from .options import check_adapter, load_with_progress, parse_dtype

    target, held = parse_dtype(dtype), QuantizeOptions.parse(quantize, group_size)
    check_adapter(adapter)
    base = model if model is not None else base_model_of(adapter)
    if output.is_dir() and output.resolve() == Path(base).resolve():
        raise CheckpointError.SaveFailed(
            reason=f"{output} is the model that the adapter is for, and would act twice in it; give another folder"
        )
    check_target(output, overwrite)  # before the model is loaded
    loaded = load_with_progress(base, parse_dtype("f32"), held)
    deltas = LoRAAdapter.load(adapter, loaded.model, alpha)
    print(f"{adapter}: {deltas.report()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)  # said below, in one line
        merged = merge_adapter(loaded.model, deltas, target)
    if isinstance(loaded.model, Decoder):
        save_model(output, loaded.model, loaded.tokenizer, target, overrides=merged.weights, overwrite=overwrite)
    else:
        from ..models.mlx_lm import save_mlx_lm

        save_mlx_lm(output, loaded, target, merged.weights, overwrite)
    print(f"{output}: {loaded.name}, {merged}")
    if text := merged.warning():
        print(f"warning: {text}; try --dtype f32 or --quantize dense, or keep the adapter apart", file=sys.stderr)
