"""Greedy generation with SmolLM2-135M: time to the first token, tokens per second, batches, packed weights.

    pip install ".[interop]" && python benchmarks/generation.py [--rounds 5] [--only "prompt of 34" batch] [--csv]

Sides: "metal-candle"; "mlx-lm" in the same process, so with the BLAS that this package loads; "mlx-lm as installed" in
a process of its own without it, for the short prompt only, as the others take minutes; "transformers" with torch in a
process of its own. Cases "4-bit" have the blocks of the GGUF file, not widened, which mlx-lm reads from a folder
written here; all others float32. Batches are of prompts of unequal length, read and continued; "one by one" is a
``Generator`` for each prompt. In each round every side takes one turn, in random order; before that all have to give
the same tokens, except where two logits are as good as equal. Tables hold medians with the 20th and 80th percentiles;
ratios are to mlx-lm (where it is not installed: to metal-candle), round by round.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from metal_candle import DType, Tensor  # before mlx.core: it loads the BLAS
from metal_candle.inference import BatchGenerator, Generator, GeneratorConfig
from metal_candle.models import LoadedModel, load_model, load_tokenizer
from metal_candle.models.save import save_model
from metal_candle.training.data import Conversation, find_data, read_rows

from generation_process import Process
from generation_sides import Answer, Generate, Prompts, mlx_lm, mlx_lm_model
from measure import Side, Times, alternate, append, commit, device, head, load, row, rows_of, versions

OURS, MLX_LM, INSTALLED, TORCH, SINGLY = (
    *("metal-candle", "mlx-lm", "mlx-lm as installed", "transformers", "metal-candle, one by one"),
)
# Logits of two float32 implementations of 30 layers differ by some 1e-4; nearer ones may change places.
TIE = 2e-3


class Case(NamedTuple):
    """Prompts by their lengths, how many tokens follow each, and whether the weights are packed."""

    name: str
    lengths: tuple[int, ...]
    tokens: int
    packed: bool = False


def batch(rows: int) -> tuple[int, ...]:
    """Unequal lengths from 20 to 55."""
    return tuple(20 + 5 * i for i in range(8))[:: 8 // rows]


CASES = (
    Case("prompt of 34", (34,), 33),
    Case("prompt of 128", (128,), 9),
    Case("prompt of 512", (512,), 17),
    Case("batch of 4", batch(4), 24),
    Case("batch of 8", batch(8), 24),
    Case("4-bit, prompt of 34", (34,), 17, True),
)


def field_guide() -> list[str]:
    """The texts that come along: questions and answers."""
    contents = [each.content for each in read_rows(find_data("field-guide").train)]
    return [message.content for each in contents if isinstance(each, Conversation) for message in each.messages]


def loaded_of(model: str, packed: bool) -> LoadedModel:
    """In float32, or with packed weights: a GGUF file's as they are, a folder's quantised to 4 bits."""
    if not packed:
        return load_model(model)
    return load_model(model, quantize=4, group_size=32) if Path(model).is_dir() else load_model(model, quantize="keep")


def prompts_of(model: str, lengths: Sequence[int]) -> Prompts:
    """Tokens of the texts that come along, of another place for each prompt."""
    text = "\n".join(field_guide())
    ids = load_tokenizer(model).encode(text[: 40 * sum(lengths)])
    ids *= -(-sum(lengths) // len(ids))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [ids[end - length : end] for length, end in zip(lengths, ends)]


def ours(model: Any) -> Generate:
    """This package: a ``Generator`` for one prompt, a ``BatchGenerator`` for several."""

    def generate(prompts: Prompts, count: int) -> Answer:
        config = GeneratorConfig(max_tokens=count, stop_on_eos=False)
        rows: list[list[int]] = [[] for _ in prompts]
        first = 0.0
        start = time.perf_counter()
        if len(prompts) == 1:
            stream = ((0, token) for token in Generator(model, config).stream(prompts[0]))
        else:
            stream = ((each.row, each.token) for each in BatchGenerator(model, config).stream(prompts))
        for known, (place, token) in enumerate(stream, 1):
            rows[place].append(token.token_id)
            if known == len(prompts):
                first = time.perf_counter() - start
        return Answer(first, time.perf_counter() - start, rows)

    return generate


def singly(generate: Generate) -> Generate:
    """Each prompt by itself, one after the other."""

    def each(prompts: Prompts, count: int) -> Answer:
        start = time.perf_counter()
        answers = [generate([prompt], count) for prompt in prompts]
        first = sum(answer.total for answer in answers[:-1]) + answers[-1].first
        return Answer(first, time.perf_counter() - start, [answer.ids[0] for answer in answers])

    return each


def elsewhere(process: Process) -> Generate:
    """What a process serves."""
    return lambda prompts, count: Answer(*process.ask([prompts, count]))


@dataclass(frozen=True)
class Turns(Side):
    """A side that takes its own times: a turn is one generation, of which all answers are kept."""

    answers: list[Answer] = field(default_factory=list)

    def sample(self) -> float:
        """Seconds to the first token."""
        answer = cast(Answer, self.run())
        self.answers.append(answer)
        return answer.first


def expect_same(case: str, model: Any, prompts: Prompts, found: Mapping[str, Answer]) -> None:
    """End the program where a side's tokens are others than ours, unless the two logits are as good as equal there."""
    own = found[OURS].ids
    for name, answer in found.items():
        for prompt, want, got in zip(prompts, own, answer.ids):
            if len(got) != len(want):
                raise SystemExit(f"{case}: {name} gave {len(got)} tokens, not {len(want)}")
            place = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b), None)
            if place is None:
                continue
            ids = Tensor.new([[*prompt, *want[:place]]], dtype=DType.U32)
            logits = model.forward(ids).numpy()[0, -1]
            apart = float(logits[want[place]] - logits[got[place]])
            if not abs(apart) <= TIE:
                raise SystemExit(f"{case}: {name} gave other tokens, at {place} one whose logit is lower by {apart:g}")


def measured(case: Case, prompts: Prompts, sides: Mapping[str, Generate], model: Any, rounds: int) -> dict[str, Turns]:
    """Each side's answers, round by round, once the tokens agree."""
    expect_same(case.name, model, prompts, {name: side(prompts, case.tokens) for name, side in sides.items()})

    def turns(side: Generate) -> Turns:
        return Turns(lambda: side(prompts, case.tokens))

    found = {name: turns(side) for name, side in sides.items()}
    alternate(found, rounds)
    return found


def quantities(case: Case, turns: Mapping[str, Turns]) -> dict[str, dict[str, Times]]:
    """What is reported of a case, by its words: the sides' times."""

    def times(seconds: Any) -> dict[str, Times]:
        return {name: Times([seconds(answer) for answer in each.answers]) for name, each in turns.items()}

    rows = len(case.lengths)
    if rows > 1:
        name = (
            f"{case.name} prompts of {min(case.lengths)} to {max(case.lengths)}, {case.tokens} tokens each, per token"
        )
        return {name: times(lambda answer: answer.total / (rows * case.tokens))}
    return {
        f"{case.name}, to the first token": times(lambda answer: answer.first),
        f"{case.name}, per token of {case.tokens - 1} after it": times(
            lambda answer: (answer.total - answer.first) / (case.tokens - 1)
        ),
    }


def table(case: str, times: Mapping[str, Times]) -> str:
    """Rows of the table, a side each."""
    base = times[MLX_LM if MLX_LM in times else OURS]
    lines = []
    for name, each in times.items():
        low, high = each.range()
        ratio, least, most = each.ratio(base)
        spread = f"{1e3 * each.median():.1f} ({1e3 * low:.1f}–{1e3 * high:.1f})"
        lines.append(row([case, name, spread, f"{1 / each.median():.1f}", f"{ratio:.2f} ({least:.2f}–{most:.2f})"]))
    return "\n".join(lines)


def sides_of(case: Case, model: Any, shared: Generate | None, processes: Mapping[str, Generate]) -> dict[str, Generate]:
    """The sides that take part in a case."""
    found = {OURS: ours(model)}
    if len(case.lengths) > 1:
        found[SINGLY] = singly(ours(model))
    if shared is not None:
        found[MLX_LM] = shared
    if TORCH in processes and not case.packed:
        found[TORCH] = processes[TORCH]
    if INSTALLED in processes and case.lengths == CASES[0].lengths and not case.packed:
        found[INSTALLED] = processes[INSTALLED]
    return found


def run(options: argparse.Namespace, cases: Sequence[Case], loaded: LoadedModel, there: set[str]) -> None:
    """Measure some cases, all of the same weights."""
    prompts = [prompts_of(options.model, case.lengths) for case in cases]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_model(folder, loaded.model, loaded.tokenizer, "f32")
        shared = mlx_lm(mlx_lm_model(folder)) if "mlx_lm" in there else None
        processes = {}
        if not cases[0].packed:
            if "mlx_lm" in there and any(case.lengths == CASES[0].lengths for case in cases):
                processes[INSTALLED] = Process("generation_sides.py", "mlx-lm", folder)
            if "transformers" in there:
                processes[TORCH] = Process("generation_sides.py", "transformers", folder)
        others = {name: elsewhere(process) for name, process in processes.items()}
        for case, given in zip(cases, prompts):
            sides = sides_of(case, loaded.model, shared, others)
            turns = measured(case, given, sides, loaded.model, options.rounds)
            for name, times in quantities(case, turns).items():
                print(table(name, times), flush=True)
                if options.csv:
                    base = MLX_LM if MLX_LM in times else OURS
                    append(options.csv, rows_of("generation", name, times, turns, base))
        for process in processes.values():
            process.close()


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns each side takes")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these words")
    parser.add_argument("--model", default="smollm2", help="a folder or a GGUF file instead")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}")
    needs = {"mlx_lm": [MLX_LM, INSTALLED], "transformers": [TORCH]}
    there = {name for name in needs if importlib.util.find_spec(name)}
    for name in needs.keys() - there:
        print(f"{' and '.join(needs[name])}: not installed, left out")
    print("\n" + head(["case", "side", "ms", "tokens/s", "ratio to mlx-lm"], ["side"]))
    for packed in (False, True):
        cases = [case for case in CASES if case.packed is packed and any(word in case.name for word in options.only)]
        if cases:
            run(options, cases, loaded_of(options.model, packed), there)
    print("\n" + load())


if __name__ == "__main__":
    main()
