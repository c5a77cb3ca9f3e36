"""``metal-candle convert``: an adapter into another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ..error import CheckpointError
from .options import ALPHA, AdapterPath
from .paths import to_write

if TYPE_CHECKING:
    from ..training.formats.stored import Format, StoredAdapter


def convert(
    adapter: AdapterPath,
    output: Annotated[
        Path,
        typer.Option(
            parser=to_write("--output"),
            help="Folder (peft, mlx-lm) or file (metal-candle, gguf) to write.",
        ),
    ],
    to: Annotated[str, typer.Option(help="peft, mlx-lm, metal-candle or gguf (for llama.cpp).")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Base model: named in the result, and asked for its heads by gguf; else the adapter's own."),
    ] = None,
    alpha: Annotated[Optional[float], typer.Option(help=ALPHA)] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option(help="Of a gguf: f32, exact, or f16.")] = "f32",
    fold_scales: Annotated[
        bool, typer.Option("--fold-scales", help="Round modules' own scales into B where the format has one for all.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at the output.")] = False,
) -> None:
    """Write an adapter in another format: the numbers stay, names and order change.

    Example: metal-candle convert --adapter adapter --output adapter.gguf --to gguf
    """
    from dataclasses import replace

    from ..training.adapter_report import report_of
    from ..training.formats.recognise import read
    from ..training.formats.stored import Format

    target = Format.of(to)
    stored = read(adapter, alpha)
    check_output(adapter, output, target, overwrite)
    named = replace(stored, base_model=model or stored.base_model)
    written = write_as(output, named, target, dtype, fold_scales)
    source = stored.format.value if stored.format is not None else "an adapter"
    print(f"{output}: {source} to {target.value}, {report_of(written.factors)}")
    for note in written.notes:
        print(f"  {note}")


def write_as(output: Path, adapter: StoredAdapter, target: Format, dtype: str, fold_scales: bool) -> StoredAdapter:
    """Write an adapter in a format; for GGUF its base model's configuration is read. Returns it as written."""
    from ..models.load import load_config
    from ..training.formats import gguf_adapter
    from ..training.formats.recognise import write
    from ..training.formats.stored import Format
    from .options import download_progress

    if target is not Format.Gguf:
        if dtype != "f32":
            reason = f"--dtype {dtype} is for gguf; {target.value} keeps the adapter's dtype"
            raise CheckpointError.InvalidFormat(reason=reason)
        return write(output, adapter, target, fold_scales=fold_scales)
    if adapter.base_model is None:
        reason = f"{adapter.source} names no base model, whose heads a GGUF adapter needs; give it with --model"
        raise CheckpointError.InvalidFormat(reason=reason)
    with download_progress(adapter.base_model) as progress:
        base = load_config(adapter.base_model, progress)
    return gguf_adapter.save(output, adapter, base, dtype, fold_scales)


def check_output(adapter: Path, output: Path, target: Format, overwrite: bool) -> None:
    """Raise ``CheckpointError.SaveFailed`` for an output that is the adapter itself, or holds something."""
    from ..training.formats.folder import CONFIG
    from ..training.formats.recognise import recognise
    from ..training.formats.stored import Format

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError.SaveFailed(reason=f"{output}: {reason}")

    is_folder = target in (Format.Peft, Format.MlxLm)
    weights = recognise(adapter).weights
    own = [adapter, weights, weights.parent / CONFIG, *([] if adapter.is_dir() else [weights.parent])]
    if output.exists() and output.resolve() in [path.resolve() for path in own]:
        raise refuse("is the adapter that is converted; give another name")
    if not output.exists() or (is_folder and output.is_dir() and not any(output.iterdir())):
        return
    if is_folder != output.is_dir():
        takes = "a folder" if is_folder else "a file, adapter.safetensors or adapter.gguf say"
        raise refuse(f"is {'a folder' if output.is_dir() else 'a file'}; {target.value} takes {takes}")
    if not overwrite:
        raise refuse("is there already; give another name, or --overwrite")
