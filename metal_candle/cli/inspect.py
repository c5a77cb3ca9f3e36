"""``metal-candle inspect model | adapter | data``: what a file holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from ..training.formats.stored import StoredAdapter

from .options import ADAPTER, ALPHA, Quantize
from .paths import to_read

app = typer.Typer(help="Show what a model, an adapter or a data set holds.", no_args_is_help=True)


def _console() -> Any:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(soft_wrap=True, highlight=False, no_color=not terminal, markup=False)


@app.command()
def model(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file, hub id, or smollm2.")] = "smollm2",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with its shape.")] = False,
    quantize: Quantize = None,
) -> None:
    """A model's architecture, sizes and tokenizer.

    Example: metal-candle inspect model smollm2
    """
    from ..dtype import DType
    from ..models.decoder import Decoder
    from ..models.quantize_options import QuantizeOptions
    from .options import load_with_progress, print_table

    loaded = load_with_progress(model, DType.F32, QuantizeOptions.parse(quantize))
    config, network = loaded.model.config, loaded.model
    if not isinstance(network, Decoder):  # another library's, which names its own sizes otherwise
        print_table([("path", loaded.path), *network.facts()])
        return
    rows: list[tuple[str, object]] = [
        ("path", loaded.path),
        ("architecture", config.model_type),
        ("parameters", f"{network.num_parameters():,}"),
        ("layers", config.num_hidden_layers),
        ("hidden size", f"{config.hidden_size}, MLP {config.intermediate_size}"),
        ("heads", f"{config.num_attention_heads} of {config.head_dim()}, {config.num_kv_heads()} for keys and values"),
        ("vocabulary", f"{config.vocab_size:,}, head {'tied' if config.tie_word_embeddings else 'its own'}"),
        ("context", f"{config.max_position_embeddings} tokens, RoPE base {config.rope_theta:g}"),
        ("quantised", loaded.note or _widened(loaded.path) or "no"),
        ("chat template", "yes" if loaded.tokenizer.chat_template else "no"),
        ("ends at", ", ".join(map(str, sorted(loaded.tokenizer.eos_token_ids)))),
    ]
    print_table(rows)
    if tensors:
        for name, tensor in network.weights().items():
            print(f"{name}  {tuple(tensor.shape)}")


def _widened(path: Path) -> str:
    """What of a GGUF file's blocks was widened, in words; "" of what is none, or has none."""
    from collections import Counter

    from ..formats.gguf import read_gguf_header

    if path.is_dir():
        return ""
    types = Counter(tensor.type for tensor in read_gguf_header(path).tensors.values())
    blocks = ", ".join(f"{count} x {name}" for name, count in types.most_common() if "Q" in name)
    return f"in the file ({blocks}), here widened to f32; --quantize keep keeps it" if blocks else ""


@app.command()
def adapter(
    adapter: Annotated[
        Path,
        typer.Argument(
            parser=to_read("adapter"),
            help=ADAPTER,
        ),
    ],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Model to compare with: does it fit, how large are the deltas beside the weights."),
    ] = None,
    alpha: Annotated[Optional[float], typer.Option(help=ALPHA)] = None,  # noqa: UP045
    modules: Annotated[
        bool, typer.Option("--modules", help="List every module with its rank, scale and norm.")
    ] = False,
) -> None:
    """An adapter's format, rank, scale, targets, size, and the norms of its deltas.

    Example: metal-candle inspect adapter adapter
    """
    from ..dtype import DType
    from ..models.quantize_options import QuantizeOptions
    from ..training.adapter_files import layers_for
    from ..training.adapter_report import report_of
    from ..training.formats.recognise import read
    from .options import load_with_progress, print_table

    stored = read(adapter, alpha)
    network = load_with_progress(model, DType.F32, QuantizeOptions()).model if model is not None else None
    if network is not None:
        layers_for(stored, network)
    report = report_of(stored.factors, network)
    assert stored.format is not None, "what was read has a format"
    ranks = sorted({module.rank for module in report.modules})
    scales = sorted({module.scale for module in report.modules})
    blocks = stored.adapted_layers()
    rows: list[tuple[str, object]] = [
        ("format", ", ".join([stored.format.value, *stored.notes])),
        ("base model", stored.base_model or "not named"),
        ("rank", f"{_span(ranks)}, alpha {stored.alpha:g}, scale {_span(scales)}, dropout {stored.dropout:g}"),
        ("targets", ", ".join(stored.target_names())),
        ("modules", f"{len(stored.factors)} in {len(blocks)} layers" + (f", {_runs(blocks)}" if blocks else "")),
        ("parameters", f"{stored.num_parameters():,}, {' and '.join(_dtypes(stored))}"),
        ("deltas", report),
    ]
    print_table(rows)
    if modules:
        for module in report.modules:
            share = "" if module.relative is None else f", {100 * module.relative:.2g} % of the weight's"
            print(f"{module.path}  rank {module.rank}, scale {module.scale:g}, norm {module.norm:.3g}{share}")


def _span(values: Sequence[float]) -> str:
    """The one value, or the smallest and the largest."""
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _runs(numbers: Sequence[int]) -> str:
    """Whole numbers in order, those one behind the other as "first-last"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _dtypes(stored: StoredAdapter) -> list[str]:
    from ..dtype import DType

    return sorted({str(DType.of(each.dtype)) for factors in stored.factors.values() for each in (factors.a, factors.b)})


@app.command()
def data(
    data: Annotated[
        str, typer.Argument(help="JSON Lines file, a folder with train.jsonl, or field-guide.")
    ] = "field-guide",
    model: Annotated[str, typer.Option(help="Model whose tokenizer is used.")] = "smollm2",
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    max_length: Annotated[int, typer.Option(help="Maximum number of tokens in a row.")] = 1024,
    mask_prompt: Annotated[bool, typer.Option(help="Train on the completion or the assistant's turns only.")] = True,
    too_long: Annotated[str, typer.Option(help="What to do with a longer row: error, truncate or skip.")] = "error",
) -> None:
    """A data set's size, and its first rows with the trained tokens marked.

    Example: metal-candle inspect data my.jsonl --rows 2
    """
    from ..training.data import (
        find_data,
        read_rows,
        render_inspection,
        render_inspection_plain,
        render_summary,
        summarize,
        tokenize,
    )
    from .options import tokenizer_with_progress

    files = find_data(data)
    tokenizer = tokenizer_with_progress(model)
    options: dict[str, Any] = {"max_length": max_length, "mask_prompt": mask_prompt, "too_long": too_long}
    console = _console()
    for path in (files.train, files.valid):
        if path is None:
            continue
        examples = tokenize(read_rows(path), tokenizer, **options)
        console.print(f"{path}\n{render_summary(summarize(examples))}\n")
        if path is files.train:
            for example in examples[:rows]:
                if sys.stdout.isatty():
                    console.print(render_inspection(example, tokenizer))
                else:
                    print(render_inspection_plain(example, tokenizer))
                print()
