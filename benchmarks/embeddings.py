"""Sentence embeddings with all-MiniLM-L6-v2: sentences per second, and one sentence's latency.

    pip install ".[interop]" && python benchmarks/embeddings.py [--rounds 31] [--only 64] [--csv]

Sides: "metal-candle" is ``EmbeddingModel.encode``, "transformers" is ``BertModel`` with torch, the mean over the tokens
and unit length, in a process of its own. Both tokenise, take the longest texts first, ``--batch-size`` at a time, and
compute in float32. Texts are questions and answers of the data that comes along. In each round both take one turn, in
random order; before that their values are compared. Tables hold medians with the 20th and 80th percentiles; ratios are
to transformers (where it is not installed: to metal-candle), round by round.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from metal_candle.embeddings import EmbeddingModel, EmbeddingModelType  # before mlx.core: it loads the BLAS
from metal_candle.embeddings.loader import download_model
from metal_candle.training.data import Conversation, find_data, read_rows

import numpy as np
from generation_process import Process
from measure import Side, Times, alternate, append, commit, device, head, load, row, rows_of, versions

OURS, TORCH = "metal-candle", "transformers"
# Six float32 layers, on unit rows: two implementations differ by some 1e-6.
TOLERANCE = 1e-5


def field_guide(count: int) -> list[str]:
    """Questions of a line and answers of three in turn, evenly from the data."""
    contents = [each.content for each in read_rows(find_data("field-guide").train)]
    texts = [message.content for each in contents if isinstance(each, Conversation) for message in each.messages]
    return [texts[i * len(texts) // count] for i in range(count)]


@dataclass(frozen=True)
class Clocked(Side):
    """A side that gives its own seconds."""

    def sample(self) -> float:
        """Seconds of one call."""
        return cast(float, self.run())


def sides_of(texts: list[str], size: int, model: EmbeddingModel, process: Process | None) -> dict[str, Side]:
    """The sides, once their values agree. Ends the program where they do not."""

    def ours() -> float:
        start = time.perf_counter()
        model.encode(texts, size).numpy()
        return time.perf_counter() - start

    sides: dict[str, Side] = {OURS: Clocked(ours)}
    if process is not None:
        theirs = process
        want = np.array(theirs.ask([texts, size, True])[1], np.float32)
        error = float(np.abs(model.encode(texts, size).numpy() - want).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{len(texts)} texts: differs from transformers by {error:g}")
        sides[TORCH] = Clocked(lambda: theirs.ask([texts, size, False])[0])
    return sides


def table(case: str, count: int, times: Mapping[str, Times], base: str) -> str:
    """Rows of the table, a side each."""
    lines = []
    for name, each in times.items():
        low, high = each.range()
        ratio, least, most = each.ratio(times[base])
        spread = f"{1e3 * each.median():.1f} ({1e3 * low:.1f}–{1e3 * high:.1f})"
        rate = f"{count / each.median():.0f}"
        lines.append(row([case, name, spread, rate, f"{ratio:.2f} ({least:.2f}–{most:.2f})"]))
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="turns each side takes")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these words")
    parser.add_argument("--batch-size", type=int, default=32, help="texts computed at once")
    parser.add_argument("--model", help="a folder of a BERT instead")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds < 1 or options.batch_size < 1:
        parser.error("--rounds and --batch-size take 1 or more")
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}")
    named = options.model or EmbeddingModelType.AllMiniLmL6V2
    model, process = EmbeddingModel.from_pretrained(named), None
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        process = Process("embeddings_sides.py", download_model(named))
    else:
        print(f"{TORCH}: not installed, left out")
    base = OURS if process is None else TORCH
    print("\n" + head(["case", "side", "ms", "sentences/s", f"ratio to {base}"], ["side"]))
    texts = field_guide(64)
    longest = max(texts, key=len)
    cases = {
        f"64 sentences, {options.batch_size} at a time": texts,
        "1 short sentence": [min(texts, key=len)],
        "1 long sentence": [longest],
    }
    for case, chosen in cases.items():
        if not any(word in case for word in options.only):
            continue
        sides = sides_of(chosen, options.batch_size, model, process)
        times = alternate(sides, options.rounds)
        print(table(case, len(chosen), times, base), flush=True)
        if options.csv:
            append(options.csv, rows_of("embeddings", case, times, sides, base))
    if process is not None:
        process.close()
    print("\n" + load())


if __name__ == "__main__":
    main()
