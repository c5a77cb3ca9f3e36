"""Several adapters on SmolLM2-135M: switching between them, and a different one for each row of a batch.

    pip install ".[interop]" && python benchmarks/adapters.py [--rounds 21] [--only switch] [--csv]

Adapters have rank 8 in every projection. "switch" is ``AdapterRegistry.activate`` with 1, 8 and 64 adapters registered,
in turn through all of them, by itself and with the forward of a prompt behind it; mlx-lm's is an update of the factors
of its LoRA layers from arrays in memory. "apply" compares the ways to another adapter: activate one that is registered,
read its file and apply it, and add the deltas to a copy of the weights, as without adapters that act in a model.
"rows" continues 8 prompts with 4 adapters in one batch, against one adapter for all, none, the prompts one by one with
a switch before each, and a batch for each adapter. mlx-lm has no adapter by row: its batch goes through one, and 4
adapters take 4 batches of it. In each round every side takes one turn, in random order; before that their logits or
tokens are compared. Tables hold medians with the 20th and 80th percentiles, ratios are to the first side, round by
round.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor  # before mlx.core: it loads the BLAS
from metal_candle.inference import BatchGenerator, GeneratorConfig
from metal_candle.models.load import load_model
from metal_candle.models.save import save_model
from metal_candle.training import AdapterRegistry, LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.adapter import merged_weights

import mlx.core as mx
import numpy as np
from generation import OURS, expect_same, ours, prompts_of
from generation_sides import Answer, Prompts, mlx_lm, mlx_lm_model
from measure import Side, Times, alternate, append, commit, device, head, load, repeats_for, row, rows_of, versions

REGISTERED = (1, 8, 64)
ROWS, LENGTH, TOKENS = 8, 34, 24
NAMES = ("a", "b", "c", "d")
FILE = "adapters.safetensors"  # as mlx-lm calls it
# Logits of two float32 implementations of 30 layers.
TOLERANCE = 5e-3

Find = tuple[str, dict[str, Side]]


def adapter_for(model: Any, seed: int) -> LoRAAdapter:
    """An adapter whose B is large enough to change what the model says."""
    made = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=8, alpha=16.0, target_modules=tuple(TargetModule)))
    Device.default().set_seed(seed)
    for _, layer in made.layers():
        layer.lora_b().set(Tensor.randn(0.0, 0.01, layer.lora_b().shape))
    return made


def registry_of(model: Any, count: int) -> AdapterRegistry:
    """So many adapters by the names "0", "1" …"""
    registry = AdapterRegistry(model)
    for i in range(count):
        registry.add_adapter(str(i), adapter_for(model, i))
    return registry


def load_file(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file."""
    found = mx.load(str(file))
    assert isinstance(found, dict)
    return found


class Theirs:
    """mlx-lm's model with LoRA layers, and the factors of adapters by name."""

    def __init__(self, folder: Path, adapters: Mapping[str, LoRAAdapter]) -> None:
        from mlx_lm.tuner.utils import load_adapters

        self.files = {name: folder / name / FILE for name in adapters}
        for name, adapter in adapters.items():
            adapter.save(folder / name, format="mlx-lm")
        first = self.files[next(iter(adapters))].parent
        self.model = load_adapters(mlx_lm_model(folder / "model"), str(first))
        self.model.eval()
        self._factors = {name: list(load_file(file).items()) for name, file in self.files.items()}
        mx.eval([array for pairs in self._factors.values() for _, array in pairs])
        self.generate = mlx_lm(self.model)

    def switch(self, name: str) -> None:
        """Let an adapter act whose factors are in memory."""
        self.model.load_weights(self._factors[name], strict=False)

    def read(self, name: str) -> None:
        """Let an adapter act from its file."""
        self.model.load_weights(str(self.files[name]), strict=False)
        mx.eval(self.model.parameters())

    def logits(self, prompt: list[int]) -> mx.array:
        """Those after a prompt."""
        found: mx.array = self.model(mx.array(prompt)[None])[0, -1]
        mx.eval(found)
        return found


def expect_close(case: str, want: np.ndarray, got: np.ndarray) -> None:
    """End the program where logits differ."""
    error = float(np.abs(want - got).max())
    if not error <= TOLERANCE:
        raise SystemExit(f"{case}: the logits differ by {error:g}")


class Bench:
    """The model, its adapters and mlx-lm's, and the cases."""

    def __init__(self, name: str, folder: Path, with_mlx_lm: bool) -> None:
        loaded = load_model(name)
        self.model = loaded.model
        self.prompts = prompts_of(name, (LENGTH,) * ROWS)
        self.adapters = {each: adapter_for(self.model, i) for i, each in enumerate(NAMES)}
        self._folder, self.theirs = folder, None
        if with_mlx_lm:
            save_model(folder / "model", loaded.model, loaded.tokenizer, "f32")
            self.theirs = Theirs(folder, self.adapters)

    def logits(self) -> np.ndarray:
        """Those after the first prompt, with what acts now."""
        ids = Tensor.new([self.prompts[0]], dtype=DType.U32)
        found: np.ndarray = self.model.forward(LazyTensor.from_tensor(ids)).eval().numpy()[0, -1]
        return found

    def switches(self, forward: bool) -> Find:
        """Switching, by the number of adapters that are registered; with the forward of a prompt behind it."""
        after: Callable[[], object] = self.logits if forward else lambda: None
        runs: dict[str, Callable[[], object]] = {}
        for count in REGISTERED:
            registry = registry_of(self.model, count)
            runs[f"{count} registered"] = switching(registry, after)
        if forward:
            self.model.remove_adapter()
            fixed = adapter_for(self.model, 0)

            def without() -> None:
                if not self.model.has_adapter():
                    self.model.apply_adapter(fixed)
                self.logits()

            runs["no switch"] = without
        if self.theirs is not None:
            theirs, names = self.theirs, cycle(NAMES)
            self.expect_as_mlx_lm()

            def update() -> None:
                theirs.switch(next(names))
                if forward:
                    theirs.logits(self.prompts[0])

            runs["mlx-lm, update"] = update
        name = f"switch{f' and forward of {LENGTH} tokens' if forward else ''}"
        most = 3 if forward else 500
        return name, {side: Side(run, repeats_for(run, 5e-3, most)) for side, run in runs.items()}

    def expect_as_mlx_lm(self) -> None:
        """End the program where an adapter's logits are others than mlx-lm's."""
        assert self.theirs is not None
        for name, adapter in self.adapters.items():
            self.theirs.switch(name)
            self.model.apply_adapter(adapter)
            expect_close(f"adapter {name}", np.array(self.theirs.logits(self.prompts[0])), self.logits())

    def ways(self) -> Find:
        """From one adapter to another."""
        registry = AdapterRegistry(self.model)
        for name, adapter in self.adapters.items():
            registry.add_adapter(name, adapter)
            adapter.save(self._folder / "peft" / name)
        mine, theirs_names, merged_names = cycle(NAMES), cycle(NAMES), cycle(NAMES)

        def read() -> None:
            self.model.apply_adapter(LoRAAdapter.load(self._folder / "peft" / next(mine), self.model))

        def merge() -> None:
            found = merged_weights(self.model, self.adapters[next(merged_names)])
            mx.eval([tensor.mlx() for tensor in found.values()])

        runs: dict[str, Callable[[], object]] = {
            "activate": switching(registry, lambda: None),
            "read a file and apply": read,
            "merge into a copy": merge,
        }
        registry.activate("a")
        want = self.logits()
        read()
        expect_close("an adapter from its file", want, self.logits())
        if self.theirs is not None:
            theirs = self.theirs
            runs["mlx-lm, read a file"] = lambda: theirs.read(next(theirs_names))
        return "apply", {name: Side(run, repeats_for(run, 5e-3, 500)) for name, run in runs.items()}

    def rows(self) -> Find:
        """Tokens of a batch, each row with its adapter."""
        names = [NAMES[i % len(NAMES)] for i in range(ROWS)]
        config = GeneratorConfig(max_tokens=TOKENS, stop_on_eos=False)
        batch, generate = BatchGenerator(self.model, config, self.adapters), ours(self.model)

        def together(rows: Sequence[str | None], prompts: Prompts = self.prompts) -> list[list[int]]:
            return [ids[LENGTH:] for ids in batch.generate(prompts, rows)]

        def by_adapter(run: Callable[[str, Prompts], list[list[int]]]) -> list[list[int]]:
            found: list[list[int]] = [[] for _ in names]
            for name in NAMES:
                places = [i for i, each in enumerate(names) if each == name]
                for i, ids in zip(places, run(name, [self.prompts[i] for i in places])):
                    found[i] = ids
            return found

        def one_by_one() -> list[list[int]]:
            found = []
            for name, prompt in zip(names, self.prompts):
                self.model.apply_adapter(self.adapters[name])
                found += generate([prompt], TOKENS).ids
            self.model.remove_adapter()
            return found

        runs: dict[str, Callable[[], list[list[int]]]] = {
            "4 adapters": lambda: together(names),
            "1 adapter": lambda: together(["a"] * ROWS),
            "no adapter": lambda: together([None] * ROWS),
            "one by one, switching": one_by_one,
            "a batch for each adapter": lambda: by_adapter(lambda name, own: together([name] * len(own), own)),
        }
        same = ["4 adapters", "one by one, switching", "a batch for each adapter"]
        if self.theirs is not None:
            theirs = self.theirs

            def switched(name: str, prompts: Prompts) -> list[list[int]]:
                theirs.switch(name)
                return theirs.generate(prompts, TOKENS).ids

            runs["mlx-lm, 1 adapter"] = lambda: theirs.generate(self.prompts, TOKENS).ids
            runs["mlx-lm, a batch for each adapter"] = lambda: by_adapter(switched)
            same.append("mlx-lm, a batch for each adapter")
        self.model.remove_adapter()
        self.expect_rows(names, {side: runs[side]() for side in same}, runs["no adapter"]())
        calls = ROWS * TOKENS
        return f"rows: {ROWS} prompts of {LENGTH}, {TOKENS} tokens each, per token", {
            name: Side(run, calls=calls) for name, run in runs.items()
        }

    def expect_rows(self, names: list[str], found: Mapping[str, list[list[int]]], without: list[list[int]]) -> None:
        """End the program where sides disagree on a row's tokens, or where the adapters change nothing."""
        own = found["4 adapters"]
        if own == without:
            raise SystemExit("rows: the adapters change no token")
        for i, name in enumerate(names):
            self.model.apply_adapter(self.adapters[name])
            rows = {side: Answer(0.0, 0.0, [ids[i]]) for side, ids in found.items()}
            expect_same(f"row {i}", self.model, [self.prompts[i]], {OURS: rows["4 adapters"], **rows})
        self.model.remove_adapter()


def switching(registry: AdapterRegistry, after: Callable[[], object]) -> Callable[[], None]:
    """A run that lets the next of a registry's adapters act."""
    names = cycle(registry.list_adapters())

    def run() -> None:
        registry.activate(next(names))
        after()

    return run


def table(case: str, times: Mapping[str, Times]) -> str:
    """Rows of the table, a side each."""
    base, lines = next(iter(times.values())), []
    for name, each in times.items():
        low, high = each.range()
        ratio, least, most = each.ratio(base)
        spread = f"{1e3 * each.median():.3f} ({1e3 * low:.3f}–{1e3 * high:.3f})"
        lines.append(row([case, name, spread, f"{ratio:.2f} ({least:.2f}–{most:.2f})"]))
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="turns each side takes; of rows a third")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these words")
    parser.add_argument("--model", default="smollm2", help="a folder or a GGUF file instead")
    results = Path(__file__).with_name("results.csv")
    parser.add_argument("--csv", type=Path, nargs="?", const=results, help=f"append rows (default: {results.name})")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes 1 or more")
    print(f"{device()}\n{versions()}; commit {commit()}\n{load()}")
    there = importlib.util.find_spec("mlx_lm") is not None
    print("mlx-lm has no adapter by row" if there else "mlx-lm: not installed, left out")
    print("\n" + head(["case", "side", "ms", "ratio"], ["side"]))
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.model, Path(scratch), there)
        for name, make in {
            "switch": lambda: bench.switches(False),
            "switch, forward": lambda: bench.switches(True),
            "apply": bench.ways,
            "rows": bench.rows,
        }.items():
            if not any(word in name for word in options.only):
                continue
            case, sides = make()
            times = alternate(sides, max(1, options.rounds // 3) if name == "rows" else options.rounds)
            print(table(case, times), flush=True)
            if options.csv:
                append(options.csv, rows_of("adapters", case, times, sides, next(iter(times))))
    print("\n" + load())


if __name__ == "__main__":
    main()
