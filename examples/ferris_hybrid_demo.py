"""Search that is hybrid twice: by meaning and by words; documents on the default device, queries on the CPU.

python examples/ferris_hybrid_demo.py [--weight 0.7] [query ...]

A GPU is good at many texts at once, a CPU at a single one; both give the same vectors. An embedding finds what is meant
in other words, a score of words finds names and codes: of the two queries below, each misleads one of them.
metal-candle (Rust): ferris_hybrid_demo, whose hybrid is the one of devices.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter

from metal_candle import Device
from metal_candle.embeddings import EmbeddingModel, EmbeddingModelType

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("query", nargs="*", default=["code that runs without waiting", "E0499 although nothing moves"])
parser.add_argument("--weight", type=float, default=0.7, help="of the meaning, from 0 to 1; the rest is of the words")
arguments = parser.parse_args()

DOCUMENTS = [
    "The borrow checker frees what is no longer used, without a garbage collector.",
    "Error E0382: a value was used after it had been moved.",
    "Error E0499: a second mutable reference to the same value.",
    "Cargo builds packages and fetches what they depend on.",
    "Traits describe behaviour that several types share.",
    "Pattern matching takes values apart and covers every case.",
    "Async functions wait for input without blocking a thread.",
]


def words(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return re.findall(r"\w+", text.lower())


counts = [Counter(words(text)) for text in DOCUMENTS]
average = sum(sum(count.values()) for count in counts) / len(counts)


def word_scores(query: str, k1: float = 1.2, b: float = 0.75) -> list[float]:
    """BM25 of each document, divided by the best: Robertson and Zaragoza 2009, https://doi.org/10.1561/1500000019."""
    scores = [0.0] * len(counts)
    for word in words(query):
        found = sum(word in count for count in counts)
        rarity = math.log(1 + (len(counts) - found + 0.5) / (found + 0.5))
        for i, count in enumerate(counts):
            length = 1 - b + b * sum(count.values()) / average
            scores[i] += rarity * count[word] * (k1 + 1) / (count[word] + k1 * length)
    return [score / (max(scores) or 1.0) for score in scores]


device = Device.default()
model = EmbeddingModel.from_pretrained(EmbeddingModelType.AllMiniLmL6V2, device)
query_model = model if device.is_cpu() else EmbeddingModel.from_pretrained(EmbeddingModelType.AllMiniLmL6V2, Device.Cpu)
index = model.encode(DOCUMENTS).to_device(Device.Cpu)  # once, for all queries
print(f"{len(DOCUMENTS)} documents on {device}, queries on {query_model.device}")

for query in arguments.query:
    meaning = index.matmul(query_model.encode([query]).t()).squeeze(1).to_vec1()
    by_words = word_scores(query)
    both = [arguments.weight * m + (1 - arguments.weight) * w for m, w in zip(meaning, by_words)]
    print(f"\n{query}\n   both meaning words")
    for i in sorted(range(len(both)), key=lambda i: -both[i])[:3]:
        print(f"  {both[i]:5.2f}   {meaning[i]:5.2f} {by_words[i]:5.2f}  {DOCUMENTS[i]}")
