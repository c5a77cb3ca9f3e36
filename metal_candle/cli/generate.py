"""``metal-candle generate``: text from a model, with or without an adapter, as it comes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..error import CheckpointError, InferenceError
from .options import ALPHA, GroupSize, Quantize, QuantizeEmbeddings
from .paths import to_read


def base_model_of(adapter: Path) -> str:
    """The model an adapter names. Raises ``CheckpointError`` where it names none."""
    from ..training.formats.recognise import base_model

    named = base_model(adapter)
    if not named:
        raise CheckpointError.InvalidFormat(reason=f"{adapter} names no base model; give it with --model")
    return named


def generate(
    prompt: Annotated[
        Optional[str], typer.Argument(help="What to say to the model; read from standard input if absent.")  # noqa: UP045
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Folder, .gguf file, hub id, or smollm2; by default the adapter's base model."),
    ] = None,
    adapter: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(parser=to_read("--adapter"), help="Adapter of finetune, PEFT, mlx-lm or metal-candle."),
    ] = None,
    alpha: Annotated[Optional[float], typer.Option(help=ALPHA)] = None,  # noqa: UP045
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens to generate.")] = 200,
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="0 takes the likeliest token each time; the default, or 1 with --top-k, --top-p or --min-p."),
    ] = None,
    top_k: Annotated[Optional[int], typer.Option(help="Draw from the k likeliest tokens only.")] = None,  # noqa: UP045
    top_p: Annotated[
        Optional[float], typer.Option(help="Draw from the fewest tokens that reach this probability.")  # noqa: UP045
    ] = None,
    min_p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Draw from the tokens of at least this part of the likeliest one's probability."),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens of the prompt and the answer so far less likely; 1 is none.")
    ] = 1.0,
    seed: Annotated[Optional[int], typer.Option(help="Makes drawing repeatable.")] = None,  # noqa: UP045
    stop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Text that ends the answer and is left out; may be given several times."),
    ] = None,
    max_kv_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Remember only the first 4 and the last tokens, so many in all: bounded memory for any length."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text without the chat template (where the model has one).")
    ] = False,
    system: Annotated[Optional[str], typer.Option(help="System message of the chat.")] = None,  # noqa: UP045
    chat: Annotated[bool, typer.Option("--chat", help="Talk in turns; an empty line ends.")] = False,
    dtype: Annotated[str, typer.Option(help="f32, bf16 or f16.")] = "f32",
    quantize: Quantize = None,
    group_size: GroupSize = None,
    quantize_embeddings: QuantizeEmbeddings = False,
) -> None:
    """Generate text, shown as it comes.

    Example: metal-candle generate --adapter adapter "How does a stapler work?"
    """
    from ..inference.chat import TextGenerator
    from ..inference.prompt_cache import PromptCache
    from ..models.decoder import Decoder
    from ..models.quantize_options import QuantizeOptions
    from ..training.adapter import LoRAAdapter
    from .options import check_adapter, load_with_progress, parse_dtype

    target, held = parse_dtype(dtype), QuantizeOptions.parse(quantize, group_size, quantize_embeddings)
    config = generator_config(
        max_tokens, temperature, top_k, top_p, min_p, seed, stop or (), max_kv_size, repetition_penalty
    )
    if adapter is not None:
        check_adapter(adapter)
    elif alpha is not None:
        raise InferenceError.InvalidConfig(reason="--alpha is an adapter's; give one with --adapter")
    name = model
    if name is None:
        name = base_model_of(adapter) if adapter is not None else "smollm2"
    for flag, needs in (("--system", system), ("--chat", chat)):
        if raw and needs:
            raise InferenceError.InvalidConfig(reason=f"--raw leaves out the chat template, which {flag} needs")
    if chat and not sys.stdin.isatty() and prompt is None:
        raise InferenceError.InvalidConfig(reason="--chat talks on a terminal, which standard input here is not")
    if prompt is None and not chat:
        prompt = "" if sys.stdin.isatty() else piped_prompt()
    if prompt is not None and not prompt:
        raise InferenceError.InvalidConfig(reason="there is no prompt; give one as an argument or on standard input")
    loaded = load_with_progress(name, target, held)
    if adapter is not None:
        deltas = LoRAAdapter.load(adapter, loaded.model, alpha)
        print(f"{adapter}: {deltas.report()}", file=sys.stderr, flush=True)
        loaded.model.apply_adapter(deltas)
    generator = TextGenerator(loaded, config)
    if raw or not (loaded.tokenizer.chat_template or chat or system):
        print_stream(generator.stream(prompt or ""))
        return
    messages = [{"role": "system", "content": system}] if system else []
    # A model of mlx-lm keeps its own kinds of caches, which are read anew in each turn.
    read = PromptCache() if isinstance(loaded.model, Decoder) else None
    while True:
        if prompt is None:
            try:
                prompt = input("> ").strip()
            except EOFError:
                break
            if not prompt:
                break
        messages.append({"role": "user", "content": prompt})
        answer = print_stream(generator.stream(messages, prompt_cache=read))
        messages.append({"role": "assistant", "content": answer})
        prompt = None
        if not chat:
            break


def piped_prompt() -> str:
    """What standard input holds. Raises ``InferenceError.InvalidConfig`` where that is no text."""
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        raise InferenceError.InvalidConfig(reason=f"standard input is not {error.encoding.upper()}: {where}") from error


def generator_config(
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    stop: Sequence[str],
    max_kv_size: int | None,
    repetition_penalty: float = 1.0,
) -> Any:
    """The generator's configuration for these flags. Raises ``InferenceError`` for values out of range."""
    from ..inference.config import GeneratorConfig
    from ..inference.sampling import SamplingStrategy

    if temperature is None:
        temperature = 0.0 if top_k is None and top_p is None and min_p is None else 1.0
    if temperature < 0:
        raise InferenceError.InvalidSampling(reason=f"temperature is {temperature}; takes at least 0")
    sampling = SamplingStrategy.Temperature(temperature=temperature) if temperature else SamplingStrategy.Greedy
    config = GeneratorConfig(
        max_tokens=max_tokens,
        sampling=sampling,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        cache="growing" if max_kv_size is None else "rotating",
        max_kv_size=max_kv_size,
    )
    config.validate()  # before the model is loaded
    return config


def print_stream(answer: Iterable[str]) -> str:
    """Print an answer piece by piece and return it whole."""
    pieces = []
    for piece in answer:
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return "".join(pieces)
