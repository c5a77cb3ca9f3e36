"""Embeddings on the default device against those on the CPU: the same vectors, and how much sooner.

python examples/metal_embeddings_test.py [--model sentence-transformers/all-MiniLM-L6-v2]

Ends with 1 where they differ by more than float32 explains. metal-candle (Rust): metal_embeddings_test.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

from metal_candle import Device, Tensor
from metal_candle.embeddings import EmbeddingModel, EmbeddingModelType

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=EmbeddingModelType.AllMiniLmL6V2, help="a Hugging Face folder or a hub id")
arguments = parser.parse_args()

TEXTS = ["A systems programming language", "Machine learning on a laptop", "Retrieval and generation together"] * 4
LIMIT = 1e-4  # float32, summed in another order


def time_ratio(one: EmbeddingModel, other: EmbeddingModel) -> float:
    """One's median time by the other's; they take turns, and the first turn, which records plans, does not count."""
    samples: list[tuple[float, float]] = []
    for _ in range(6):
        times = []
        for model in (one, other):
            start = time.perf_counter()
            model.encode(TEXTS).to_vec2()  # reading the values waits for them
            times.append(time.perf_counter() - start)
        samples.append((times[0], times[1]))
    return median(first for first, _ in samples[1:]) / median(second for _, second in samples[1:])


def difference(one: Tensor, other: Tensor) -> float:
    """The largest of any element."""
    return (one.to_device(Device.Cpu) - other.to_device(Device.Cpu)).abs().max_all().to_scalar()


device = Device.default()
cpu = EmbeddingModel.from_pretrained(arguments.model, Device.Cpu)
model = cpu if device.is_cpu() else EmbeddingModel.from_pretrained(arguments.model, device)
expected, found = cpu.encode(TEXTS, batch_size=1), model.encode(TEXTS)
if device.is_cpu():
    print("the default device is the CPU: it is compared with itself, a batch with texts one by one")
else:
    print(f"{device} takes {time_ratio(model, cpu):.2f} of the CPU's time for {len(TEXTS)} texts")

largest = difference(found, expected)
print(f"{tuple(expected.shape)}: largest difference {largest:.1e}, allowed {LIMIT:.0e}")
sys.exit(0 if largest <= LIMIT else 1)
