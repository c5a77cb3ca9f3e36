"""``metal-candle finetune``: a model, a data set and LoRA to an adapter."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ..error import TrainingError
from .memory_plan import planned_memory
from .options import (
    GroupSize,
    Quantize,
    QuantizeEmbeddings,
    check_adapter,
    load_with_progress,
    parse_dtype,
    parse_targets,
    read_config,
    tokenizer_with_progress,
)
from .output_folder import check_output, check_space
from .paths import to_read, to_write
from .resuming import check_length, flags_of, read_state, resumed_state
from .training_run import report, resume_command, run, what_to_do

if TYPE_CHECKING:
    from ..training.callbacks import TrainingCallback
    from ..training.schedule import LRScheduler

Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        parser=to_read("--config"),
        callback=read_config,
        is_eager=True,
        help="YAML file with the names of these flags.",
    ),
]


def finetune(
    context: typer.Context,
    config: Config = None,
    model: Annotated[str, typer.Option(help="Folder, .gguf file, hub id, or smollm2.")] = "smollm2",
    data: Annotated[
        str, typer.Option(help="JSON Lines file, folder with train.jsonl and valid.jsonl, or field-guide.")
    ] = "field-guide",
    output: Annotated[
        Path,
        typer.Option(
            parser=to_write("--output"),
            help="Folder for the adapter, the run's state, metrics and a plot.",
        ),
    ] = Path("adapter"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in the output folder.")] = False,
    resume: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=to_read("--resume"),
            callback=read_state,
            is_eager=True,
            help="Folder of a run to continue as if it had never stopped, with its flags.",
        ),
    ] = None,
    init_adapter: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(parser=to_read("--init-adapter"), help="Adapter whose weights a new run starts from."),
    ] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 8,
    alpha: Annotated[float, typer.Option(help="LoRA alpha; the delta is scaled by alpha / rank.")] = 16.0,
    dropout: Annotated[float, typer.Option(help="LoRA dropout.")] = 0.0,
    targets: Annotated[str, typer.Option(help="Projections to adapt: all, or names like q_proj,v_proj.")] = "all",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 1,
    steps: Annotated[Optional[int], typer.Option(help="End after so many updates.")] = None,  # noqa: UP045
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Batches in an update.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Rate after the warm-up.")] = 1e-3,
    warmup: Annotated[
        float, typer.Option(help="Share of the updates in which the rate rises; a cosine follows.")
    ] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.01,
    max_grad_norm: Annotated[float, typer.Option(help="Clip the gradients' global norm; 0 switches it off.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Maximum number of tokens in a row, or a packed sequence.")] = 1024,
    packing: Annotated[
        bool, typer.Option("--packing", help="Pack rows into sequences; --batch-size then counts sequences.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute each block's forward pass twice instead of keeping it: less memory.",
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Estimate the peak memory of MLX's arrays, say what would fit, and do not train."),
    ] = False,
    too_long: Annotated[str, typer.Option(help="What to do with a longer row: error, truncate or skip.")] = "error",
    mask_prompt: Annotated[bool, typer.Option(help="Train on the completion or the assistant's turns only.")] = True,
    valid_fraction: Annotated[float, typer.Option(help="Share of rows to hold out where no valid.jsonl is.")] = 0.1,
    eval_every: Annotated[int, typer.Option(help="Updates between held-out losses; 0: start and end only.")] = 25,
    save_every: Annotated[int, typer.Option(help="Updates between saves; 0: at start and end only.")] = 25,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and split.")] = 0,
    sample: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Prompt answered before and after; by default the first held-out one. '' for none."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the frozen weights: f32, bf16 or f16.")] = "f32",
    quantize: Quantize = None,
    group_size: GroupSize = None,
    quantize_embeddings: QuantizeEmbeddings = False,
) -> None:
    """Fine-tune a model with LoRA. Without arguments: SmolLM2-135M-Instruct on the data set that comes along.

    Example: metal-candle finetune --data my.jsonl --output my-adapter --epochs 2
    """
    from ..device import Device
    from ..models.quantize_options import QuantizeOptions
    from ..nn.optim import ParamsAdamW
    from ..training.adapter import LoRAAdapter, LoRAAdapterConfig
    from ..training.config import TrainingConfig
    from ..training.data import find_data, read_rows, split, tokenize
    from ..training.epochs import planned_steps
    from ..training.trainer import AdapterTrainer

    started = time.perf_counter()
    weights_dtype, held = parse_dtype(dtype), QuantizeOptions.parse(quantize, group_size, quantize_embeddings)
    modules = parse_targets(targets, model)
    lora = LoRAAdapterConfig(rank, alpha, dropout, modules)
    lora.to_lora_config().validate()
    if not 0 <= warmup < 1:
        raise TrainingError.InvalidConfig(reason=f"warmup is {warmup}; takes 0 <= warmup < 1")
    if not 0 <= seed < 2**63:
        raise TrainingError.InvalidConfig(reason=f"seed is {seed}; takes 0 to 2^63 - 1")
    if save_every < 0:
        raise TrainingError.InvalidConfig(reason=f"save_every is {save_every}; takes at least 0")
    if max_grad_norm < 0:
        raise TrainingError.InvalidConfig(reason=f"max_grad_norm is {max_grad_norm}; takes at least 0, which is off")
    if not 0 <= valid_fraction < 1:
        raise TrainingError.InvalidConfig(reason=f"valid_fraction is {valid_fraction}; takes 0 <= it < 1")
    state = resumed_state(context)
    if not plan:
        check_output(output, overwrite, resume)
    if init_adapter is not None and state is None:
        check_adapter(init_adapter)

    files = find_data(data)
    rows, held_rows = read_rows(files.train), read_rows(files.valid) if files.valid else []
    tokenizer = tokenizer_with_progress(model)
    options: dict[str, Any] = {"max_length": max_length, "mask_prompt": mask_prompt, "too_long": too_long}
    train, valid = tokenize(rows, tokenizer, **options), tokenize(held_rows, tokenizer, **options) if held_rows else []
    if not valid and valid_fraction > 0 and len(train) > 1:
        train, valid = split(train, valid_fraction, seed)

    training = TrainingConfig(
        num_epochs=epochs,
        optimizer_config=ParamsAdamW(lr=learning_rate, weight_decay=weight_decay),
        max_grad_norm=max_grad_norm or None,
        batch_size=batch_size,
        accumulation_steps=accumulation,
        max_steps=steps,
        max_length=max_length,
        packing=packing,
        gradient_checkpointing=gradient_checkpointing,
        eval_every=eval_every,
        seed=seed,
    )
    training.validate()
    if plan:
        print(planned_memory(model, weights_dtype, held, lora, training, train, tokenizer.pad_token_id or 0).table())
        return
    loaded = load_with_progress(model, weights_dtype, held)
    question = sample if sample is not None else first_question(held_rows or rows)
    before = answer(loaded, question) if question else ""
    Device.default().set_seed(seed)

    def make(callbacks: list[TrainingCallback]) -> AdapterTrainer:
        if state is not None:
            going_on = AdapterTrainer.resume(
                state, loaded.model, callbacks, num_epochs=epochs, max_steps=steps, eval_every=eval_every
            )
            check_length(context, going_on, train)
            check_space(output, going_on.adapter)
            return going_on
        adapter = (
            LoRAAdapter.for_model(loaded.model, lora)
            if init_adapter is None
            else LoRAAdapter.load(init_adapter, loaded.model)
        )
        if init_adapter is not None:
            check_same_shape(context, adapter.config(), lora, init_adapter)
        check_space(output, adapter)
        planned = replace(training, lr_scheduler=schedule_of(planned_steps(training, train), warmup, learning_rate))
        return AdapterTrainer(loaded.model, adapter, planned, tokenizer.pad_token_id or 0, callbacks)

    # A folder is named in full, so that the adapter finds its model from anywhere.
    base = str(loaded.path.resolve()) if Path(model).exists() and str(loaded.path) == str(Path(model)) else model
    trainer, outcome = run(
        make,
        train,
        valid,
        output,
        base=base,
        save_every=save_every,
        flags=flags_of(context),
        resumed=resume,
        announce=lambda trainer: announce(loaded, train, valid, trainer, starts_anew=not (resume or init_adapter)),
    )
    done = not outcome.interrupted and outcome.error is None
    try:
        report(outcome, output, question, before, answer(loaded, question) if question and done else "", started)
    except KeyboardInterrupt:
        if done:
            print(f"\nadapter of all {trainer.step} steps in {output}/", file=sys.stderr)
        raise
    if outcome.error is not None:
        raise type(outcome.error)(reason=getattr(outcome.error, "reason", "") + what_to_do(outcome, output))
    if outcome.interrupted:
        print(f"stopped after {trainer.step} steps and saved; go on with: {resume_command(output)}", file=sys.stderr)
        raise typer.Exit(130)


def schedule_of(updates: int, warmup: float, learning_rate: float) -> LRScheduler:
    """A warm-up over a share of the updates, then a cosine to a tenth of the rate."""
    from ..training.schedule import LRScheduler

    warm = max(1, round(warmup * updates))
    if updates <= warm:
        return LRScheduler.constant(learning_rate)
    return LRScheduler.warmup_cosine(warm, updates + 1, learning_rate, 0.1 * learning_rate)


def check_same_shape(context: typer.Context, kept: Any, asked: Any, folder: Path) -> None:
    """Raise ``TrainingError.InvalidLoRAConfig`` for a flag that the adapter to start from contradicts."""
    flags = {"rank": "rank", "alpha": "alpha", "dropout": "dropout", "targets": "target_modules"}
    for flag, name in flags.items():
        source = context.get_parameter_source(flag)
        mine, theirs = getattr(asked, name), getattr(kept, name)
        if flag == "targets":
            mine, theirs = sorted(asked.target_names()), sorted(kept.target_names())
            if mine == ["all-linear"]:  # which names these are, the model says; the adapter's stay
                continue
        if source is not None and source.name != "DEFAULT" and mine != theirs:
            raise TrainingError.InvalidLoRAConfig(
                reason=f"--{flag} says {mine}, the adapter in {folder} has {theirs}; leave the flag out"
            )


def announce(loaded: Any, train: Any, valid: Any, trainer: Any, starts_anew: bool) -> None:
    """Say what is about to be trained, and what would make it faster."""
    from .. import blas

    adapter = trainer.adapter
    total, trained = loaded.model.num_parameters(), adapter.num_trainable_parameters()
    config = adapter.config()
    print(f"model    {loaded.name}: {total / 1e6:.1f} M parameters, {loaded.model.device}, {loaded.model.dtype}")
    print(
        f"adapter  rank {config.rank}, alpha {config.alpha:g}, "
        f"{len(config.target_modules)} projections in {adapter.num_layers()} layers: "
        f"{trained / 1e6:.2f} M parameters ({100 * trained / total:.1f} %)"
    )
    if not starts_anew:
        print(f"deltas   {adapter.report()}")
    tokens = sum(len(example.tokens) for example in train)
    held_out, updates = len(valid) or "none", trainer.total_steps(train)
    last = trainer.config.max_steps
    early = (
        f": --epochs {trainer.config.num_epochs} ends the run before --steps {last}" if last and last > updates else ""
    )
    print(f"data     {len(train)} rows, {tokens} tokens; {held_out} held out; {updates} updates{early}", flush=True)
    if trainer.step:
        print(resumed_line(trainer, updates), flush=True)
    if loaded.model.device.is_cpu() and blas.status().advice:
        print(f"faster with: {blas.status().advice}", flush=True)


def resumed_line(trainer: Any, updates: int) -> str:
    """Where a resumed run goes on, and what its schedule was not made for."""
    scheduled = getattr(trainer.config.lr_scheduler, "total_steps", updates + 1) - 1
    line = f"resumed  after step {trainer.step} of {updates}"
    if trainer.step >= updates:
        last = trainer.config.max_steps
        flag = "--epochs" if last is None or trainer.step < last else "--steps"
        return f"{line}: the run is complete; a larger {flag} extends it"
    if updates > scheduled:
        rate = trainer.config.lr_scheduler.get_lr(updates)
        line += f"; its schedule was made for {scheduled}, after which the rate stays at {rate:g}"
    return line


def first_question(rows: Any) -> str:
    """The first user turn or prompt of the rows, to be answered before and after."""
    from ..training.data import Completion, Conversation

    for row in rows:
        if isinstance(row.content, Conversation):
            return next((m.content for m in row.content.messages if m.role == "user"), "")
        if isinstance(row.content, Completion):
            return str(row.content.prompt)
    return ""


def answer(loaded: Any, question: str) -> str:
    """The model's greedy answer, of at most 60 tokens."""
    from ..inference.chat import TextGenerator
    from ..inference.config import GeneratorConfig

    prompt: Any = [{"role": "user", "content": question}] if loaded.tokenizer.chat_template else question
    return "".join(TextGenerator(loaded, GeneratorConfig(max_tokens=60)).stream(prompt)).strip()
