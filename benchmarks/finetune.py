"""One LoRA training step of SmolLM2-135M: this package, mlx-lm and PEFT, in turn, on the same numbers.

    pip install ".[interop]" && python benchmarks/finetune.py

Each implementation runs in a process of its own and makes one step when it is told to, so that the steps
alternate and a noisy moment meets all three. All start from the same weights and adapters (every linear
layer, rank 8, float32), see the same tokens and use AdamW; the losses of every step are compared. mlx-lm
gets the same BLAS as this package. Peak memory is the process's resident set.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RANK, ALPHA, RATE = 8, 16.0, 1e-4
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {"1x128": (1, 128), "4x128": (4, 128), "1x512": (1, 512)}
NEEDS = {"metal-candle": "metal_candle", "mlx-lm": "mlx_lm", "peft": "peft"}
# Two float32 implementations of 30 layers drift apart by rounding; a wrong gradient shows at the second step.
LOSS_TOLERANCE = 2e-3


def write_batch(folder: Path, case: str, masked: bool) -> None:
    """Inputs, targets and mask, (b, t) each: the packaged text, tokenised; masked: only the last half counts."""
    from metal_candle.models.load import load_tokenizer
    from metal_candle.training.data import find_data, read_rows

    rows, length = CASES[case]
    conversations = [row.content for row in read_rows(find_data("field-guide").train)]
    text = "\n".join(message.content for conversation in conversations for message in conversation.messages)
    ids = np.array(load_tokenizer("smollm2").encode(text)[: rows * (length + 1)], np.int32).reshape(rows, length + 1)
    mask = np.ones((rows, length), bool)
    if masked:
        mask[:, : length // 2] = False
    np.savez(folder / "batch.npz", inputs=ids[:, :-1], targets=ids[:, 1:], mask=mask)


def read_batch(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What ``write_batch`` wrote: workers read a file, so that torch's process never loads this package."""
    stored = np.load(Path(folder) / "batch.npz")
    return stored["inputs"], stored["targets"], stored["mask"]


def factors(shape: tuple[int, int], index: int) -> tuple[np.ndarray, np.ndarray]:
    """A (in, rank) and B (rank, out) of the index-th adapted layer, the same for everyone; B is not zero."""
    rng = np.random.default_rng(index)
    out, inp = shape
    a = rng.uniform(-1, 1, (inp, RANK)) / np.sqrt(inp)
    return a.astype(np.float32), (0.01 * rng.standard_normal((RANK, out))).astype(np.float32)


# --- the three implementations: each returns a function that makes one step and gives the loss ----


def ours(folder: str) -> Callable[[], float]:
    """This package's trainer."""
    from metal_candle import Tensor
    from metal_candle.models.load import load_model
    from metal_candle.models.target_module import TargetModule
    from metal_candle.nn.optim import ParamsAdamW
    from metal_candle.training.adapter import LoRAAdapter, LoRAAdapterConfig
    from metal_candle.training.config import TrainingConfig
    from metal_candle.training.data import Batch
    from metal_candle.training.schedule import LRScheduler
    from metal_candle.training.trainer import AdapterTrainer

    model = load_model(folder).model
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(RANK, ALPHA, 0.0, tuple(TargetModule)))
    for index, (_, layer) in enumerate(adapter.layers()):
        a, b = factors((layer.out_features(), layer.in_features()), index)
        layer.lora_a().set(Tensor.from_numpy(a))
        layer.lora_b().set(Tensor.from_numpy(b))
    config = TrainingConfig(
        lr_scheduler=LRScheduler.constant(RATE), optimizer_config=ParamsAdamW(lr=RATE), max_grad_norm=None
    )
    trainer = AdapterTrainer(model, adapter, config)
    group = [Batch(*read_batch(folder))]
    return lambda: trainer.train_step(group).loss


def mlx_lm(folder: str) -> Callable[[], float]:
    """mlx-lm's model and LoRA layers, its loss and optimizer."""
    import metal_candle  # noqa: F401  loads the BLAS before mlx.core

    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    model.freeze()
    keys = [f"{'mlp' if name in TARGETS[4:] else 'self_attn'}.{name}" for name in TARGETS]
    settings = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, len(model.layers), settings)
    index = 0
    for layer in model.layers:
        for name in TARGETS:
            module = getattr(layer.mlp if name in TARGETS[4:] else layer.self_attn, name)
            module.lora_a, module.lora_b = map(mx.array, factors(module.linear.weight.shape, index))
            index += 1
    model.train()
    mx.eval(model.parameters())
    inputs, targets, mask = map(mx.array, read_batch(folder))
    optimizer = optim.AdamW(RATE, bias_correction=True)

    def loss(model: Any, inputs: Any, targets: Any) -> Any:
        return (nn.losses.cross_entropy(model(inputs), targets) * mask).astype(mx.float32).sum() / mask.sum()

    value_and_grad = nn.value_and_grad(model, loss)

    def step() -> float:
        value, grads = value_and_grad(model, inputs, targets)
        optimizer.update(model, grads)
        mx.eval(value, model.trainable_parameters(), optimizer.state)
        return float(value.item())

    return step


def peft(folder: str) -> Callable[[], float]:
    """Transformers' model under PEFT, with torch's AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    )
    index = 0
    for layer in model.base_model.model.model.layers:
        for name in TARGETS:
            module = getattr(layer.mlp if name in TARGETS[4:] else layer.self_attn, name)
            a, b = factors(tuple(module.weight.shape), index)
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(torch.from_numpy(a.T.copy()))
                module.lora_B["default"].weight.copy_(torch.from_numpy(b.T.copy()))
            index += 1
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.01)
    inputs, targets, mask = (torch.from_numpy(array.copy()) for array in read_batch(folder))
    labels = torch.where(mask, targets.long(), -100).reshape(-1)

    def step() -> float:
        logits = model(input_ids=inputs.long()).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


WORKERS = {"metal-candle": ours, "mlx-lm": mlx_lm, "peft": peft}


def work(name: str, folder: str) -> None:
    """A worker: makes a step for each line it reads, and answers with its time, loss and peak memory."""
    step = WORKERS[name](folder)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": seconds, "loss": loss, "peak": peak}), flush=True)


class Worker:
    """A process that makes steps when asked."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.answers = name, list[dict[str, float]]()
        command = [sys.executable, __file__, "--worker", name, "--folder", folder]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := self._process.stdout.readline()) != "ready\n":  # libraries may print while they load
            if not line:
                raise SystemExit(f"{name}: its process ended before it was ready")

    def step(self) -> None:
        """One step; its answer is kept."""
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.startswith("{"):
            raise SystemExit(f"{self.name}: its process ended during a step")
        self.answers.append(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def median(self) -> float:
        """Median seconds of the steps after the first two."""
        return statistics.median(answer["seconds"] for answer in self.answers[2:])


def compare(folder: str, case: str, masked: bool, names: list[str], steps: int) -> list[str]:
    """Rows of the table for one case. Ends the program if the losses differ."""
    write_batch(Path(folder), case, masked)
    workers = [Worker(name, folder) for name in names]
    for _ in range(steps + 2):
        for worker in workers:
            worker.step()
    for answers in zip(*(worker.answers for worker in workers)):
        losses = [answer["loss"] for answer in answers]
        if max(losses) - min(losses) > LOSS_TOLERANCE:
            raise SystemExit(f"{case}: the losses differ: {dict(zip(names, losses))}")
    for worker in workers:
        worker.close()
    base = next((worker.median() for worker in workers if worker.name == "mlx-lm"), workers[0].median())
    label = f"{case}{' masked' if masked else ''}"
    return [
        f"| {label} | {worker.name} | {worker.median():.2f} | {worker.median() / base:.2f} | "
        f"{max(answer['peak'] for answer in worker.answers) / 2**20:.0f} | {worker.answers[0]['seconds']:.2f} |"
        for worker in workers
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="steps whose median counts; two more warm up")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--worker", choices=WORKERS)
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.folder)
        return
    names = [name for name in arguments.only if importlib.util.find_spec(NEEDS[name])]
    for name in set(arguments.only) - set(names):
        print(f"{name} is not installed and is left out")
    from metal_candle.models.load import load_model
    from metal_candle.models.save import save_model

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        loaded = load_model("smollm2")
        save_model(folder, loaded.model, loaded.tokenizer, "f32")
        del loaded
        print(
            "| batch | implementation | s/step | ratio to mlx-lm | peak MB | first step s |\n|---|---|---|---|---|---|"
        )
        for case in arguments.cases:
            for masked in (False, True):
                for row in compare(str(folder), case, masked, names, arguments.steps):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
