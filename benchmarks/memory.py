"""The planned peak memory of a LoRA step of SmolLM2-135M against the one MLX measures.

    python benchmarks/memory.py [--only 1x128 4x128] [--packed] [--csv]

Every linear layer is adapted with rank 8. Each case is planned from the configuration alone, or from the model where
its weights stay packed as the file has them (4 bits); then the model takes two steps, and the larger peak counts,
weights included. Rows of the CSV file have bytes, and as ratio that to the measured.
"""

from __future__ import annotations

import argparse
import datetime
import gc
from pathlib import Path

import metal_candle  # noqa: F401  before mlx.core: it loads the BLAS
from metal_candle.models.load import load_config, load_model
from metal_candle.training import AdapterTrainer, LoRAAdapter, LoRAAdapterConfig, TargetModule, TrainingConfig
from metal_candle.training.memory import batch_of, plan_memory

import mlx.core as mx
from measure import append, commit, device, head, load, row, versions

CASES = {"1x128": (1, 128), "4x128": (4, 128), "1x512": (1, 512), "8x64": (8, 64)}
LORA = LoRAAdapterConfig(8, 16.0, 0.0, tuple(TargetModule))


def planned(dtype: str, packed: bool, training: TrainingConfig, size: tuple[int, int]) -> int:
    """The peak that is planned, with the weights."""
    model = load_model("smollm2", dtype, quantize="keep").model if packed else load_config("smollm2")
    return plan_memory(model, LORA, training, batch_of(*size), dtype).peak


def measured(dtype: str, packed: bool, training: TrainingConfig, size: tuple[int, int]) -> int:
    """The peak of two steps, with the weights."""
    gc.collect()  # the model of the plan
    before = mx.get_active_memory()
    model = load_model("smollm2", dtype, quantize="keep" if packed else None).model
    trainer = AdapterTrainer(model, LoRAAdapter.for_model(model, LORA), training)
    peaks = []
    for _ in range(2):
        mx.clear_cache()
        mx.reset_peak_memory()
        trainer.train_step([batch_of(*size)])
        peaks.append(mx.get_peak_memory() - before)
    return max(peaks)


def main() -> None:
    """Plan, measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these sizes, rows x tokens")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of the frozen weights")
    parser.add_argument("--packed", action="store_true", help="keep the weights packed")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}\n")
    print(head(["case", "planned MiB", "measured MiB", "planned / measured"]))
    for name in options.only:
        for on in (False, True):
            training = TrainingConfig(gradient_checkpointing=on)
            plan = planned(options.dtype, options.packed, training, CASES[name])
            peak = measured(options.dtype, options.packed, training, CASES[name])
            packed = ", packed" if options.packed else ""
            case = f"{name}, {options.dtype}{packed}{', gradient checkpointing' if on else ''}"
            print(row([case, f"{plan / 2**20:.0f}", f"{peak / 2**20:.0f}", f"{plan / peak:.2f}"]), flush=True)
            if options.csv:
                where = {
                    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    "device": device(),
                    "versions": versions(),
                    "commit": commit(),
                    "benchmark": "memory",
                    "case": case,
                }
                sides = {"plan": plan, "measured": peak}
                append(
                    options.csv,
                    [
                        {**where, "side": side, "bytes": size, "ratio": f"{size / peak:.4f}"}
                        for side, size in sides.items()
                    ],
                )


if __name__ == "__main__":
    main()
