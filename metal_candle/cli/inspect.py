"""``metal-candle inspect model | adapter | data``: what a file holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Show what a model, an adapter or a data set holds.", no_args_is_help=True)


def _console() -> Any:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(soft_wrap=True, highlight=False, no_color=not terminal, markup=False)


@app.command()
def model(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file, hub id, or smollm2.")] = "smollm2",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with its shape.")] = False,
) -> None:
    """A model's architecture, sizes and tokenizer.

    Example: metal-candle inspect model smollm2
    """
    from ..dtype import DType
    from .options import load_with_progress, print_table

    loaded = load_with_progress(model, DType.F32)
    config, network = loaded.model.config, loaded.model
    rows: list[tuple[str, object]] = [
        ("path", loaded.path),
        ("architecture", config.model_type),
        ("parameters", f"{network.num_parameters():,}"),
        ("layers", config.num_hidden_layers),
        ("hidden size", f"{config.hidden_size}, MLP {config.intermediate_size}"),
        ("heads", f"{config.num_attention_heads} of {config.head_dim()}, {config.num_kv_heads()} for keys and values"),
        ("vocabulary", f"{config.vocab_size:,}, head {'tied' if config.tie_word_embeddings else 'its own'}"),
        ("context", f"{config.max_position_embeddings} tokens, RoPE base {config.rope_theta:g}"),
        ("chat template", "yes" if loaded.tokenizer.chat_template else "no"),
        ("ends at", ", ".join(map(str, sorted(loaded.tokenizer.eos_token_ids)))),
    ]
    print_table(rows)
    if tensors:
        for name, tensor in network.weights().items():
            print(f"{name}  {tuple(tensor.shape)}")


@app.command()
def adapter(adapter: Annotated[Path, typer.Argument(help="Adapter folder.")]) -> None:
    """An adapter's rank, scale, targets and size.

    Example: metal-candle inspect adapter adapter
    """
    import mlx.core as mx

    from ..training.formats import peft
    from .options import check_adapter, print_table

    check_adapter(adapter)
    stored = peft.load(adapter)
    parameters = sum(factors.a.size + factors.b.size for factors in stored.factors.values())
    norms = [float(mx.linalg.norm(f.a @ f.b)) * f.scale for f in stored.factors.values()]
    rows: list[tuple[str, object]] = [
        ("base model", stored.base_model or "not named"),
        ("rank", f"{stored.rank}, alpha {stored.alpha:g}, scale {stored.scale:g}, dropout {stored.dropout:g}"),
        ("targets", ", ".join(stored.target_modules)),
        ("modules", len(stored.factors)),
        ("parameters", f"{parameters:,}"),
        ("norm of the deltas", f"{min(norms):.3g} to {max(norms):.3g}"),
    ]
    print_table(rows)


@app.command()
def data(
    data: Annotated[
        str, typer.Argument(help="JSON Lines file, a folder with train.jsonl, or field-guide.")
    ] = "field-guide",
    model: Annotated[str, typer.Option(help="Model whose tokenizer is used.")] = "smollm2",
    rows: Annotated[int, typer.Option(help="How many rows to show.")] = 3,
    max_length: Annotated[int, typer.Option(help="Most tokens of a row.")] = 1024,
    mask_prompt: Annotated[bool, typer.Option(help="Train on the completion or the assistant's turns only.")] = True,
    too_long: Annotated[str, typer.Option(help="A longer row: error, truncate or skip.")] = "error",
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
