"""Cross entropy of a large vocabulary: time and peak memory, given the logits and given the hidden states.

    pip install . && python benchmarks/loss.py

Each side runs in a process of its own, twice: forward alone, then forward and backward. Its peak of memory is what
MLX allocated beyond the operands (``mx.get_peak_memory``), for all the process's largest resident set, less what it was
when the operands were there. Given the logits, the gradient is that of the logits; given the hidden states, theirs and,
with ``--head``, that of the head's weight. The losses of all sides are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# What a run gives: the loss and the gradients asked for, computed.
Run = Callable[[bool], tuple[float, Any]]
# Two float32 means over thousands of rows; results in bfloat16 have 8 bits, and torch rounds before it adds.
AGREE = {"f32": 1e-4, "bf16": 0.2}

# MLX's products of halves take minutes on a CPU: the last is for a GPU.
CASES = ["f32-logits", "f32-hidden", "bf16-logits", "bf16-hidden"]


def operands(rows: int, words: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, the head's weight and targets; the logits' deviation is about 1."""
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((rows, width), np.float32), rng.standard_normal((words, width), np.float32)
    return hidden, weight / np.sqrt(np.float32(width)), rng.integers(0, words, rows)


def _mlx(dtype: str, given: str, head: bool, size: tuple[int, int, int]) -> tuple[Any, ...]:
    """MLX's ``(inputs, logits of the inputs, targets, which inputs are differentiated)``."""
    import mlx.core as mx

    hidden, weight, targets = map(mx.array, operands(*size))
    kind, targets = {"f32": mx.float32, "bf16": mx.bfloat16}[dtype], targets.astype(mx.int32)
    if given == "hidden":
        hidden, weight = hidden.astype(kind), weight.astype(kind)
        mx.eval(hidden, weight, targets)
        return [hidden, weight], lambda h, w: h @ w.T, targets, (0, 1) if head else (0,)
    logits = (hidden @ weight.T).astype(kind)
    mx.eval(logits, targets)
    return [logits], lambda x: x, targets, (0,)


def _by_mlx(of_logits: Callable[[Any, Any], Any], *case: Any) -> Run:
    import mlx.core as mx

    inputs, logits, targets, places = _mlx(*case)

    def loss(*inputs: Any) -> Any:
        return of_logits(logits(*inputs), targets)

    def run(backward: bool) -> tuple[float, Any]:
        found = mx.value_and_grad(loss, argnums=places)(*inputs) if backward else (loss(*inputs), None)
        mx.eval(found)
        return found[0].item(), found[1]

    return run


def naive(*case: Any) -> Run:
    """log-softmax, gathered."""

    def loss(logits: Any, targets: Any) -> Any:
        import mlx.core as mx

        log_probabilities = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return -mx.take_along_axis(log_probabilities, targets[:, None], axis=-1).astype(mx.float32).mean()

    return _by_mlx(loss, *case)


def mlx_nn(*case: Any) -> Run:
    """``mlx.nn.losses.cross_entropy``."""

    def loss(logits: Any, targets: Any) -> Any:
        import mlx.core as mx
        import mlx.nn as nn

        return nn.losses.cross_entropy(logits, targets).astype(mx.float32).mean()

    return _by_mlx(loss, *case)


def mx_fast(*case: Any) -> Run:
    """``mx.fast.cross_entropy``."""

    def loss(logits: Any, targets: Any) -> Any:
        import mlx.core as mx

        return mx.fast.cross_entropy(logits, targets).mean()

    return _by_mlx(loss, *case)


def _ours(linear: bool, *case: Any) -> Run:
    inputs, _, targets, places = _mlx(*case)
    from metal_candle import LazyTensor, Tensor, Var, eval_all
    from metal_candle.nn import loss

    given = [Tensor.from_mlx(each) for each in inputs]
    variables = [Var.from_tensor(each) if place in places else each for place, each in enumerate(given)]
    target = Tensor.from_mlx(targets)

    def run(backward: bool) -> tuple[float, Any]:
        chosen = variables if backward else [each.detach() for each in variables]
        lazy = [LazyTensor.from_tensor(each) for each in chosen]
        if linear:
            found = loss.linear_cross_entropy(*lazy, target)
        else:
            rows = lazy[0] if len(lazy) == 1 else lazy[0].matmul(lazy[1].t())
            found = loss.cross_entropy(rows, target)
        del lazy
        if not backward:
            return found.to_scalar(), None
        grads = found.backward()
        gradients = [grads[variables[place]] for place in places]
        eval_all([found, *gradients])
        return found.to_scalar(), gradients

    return run


def ours(*case: Any) -> Run:
    """``metal_candle.nn.loss.cross_entropy``."""
    return _ours(False, *case)


def ours_linear(*case: Any) -> Run:
    """``metal_candle.nn.loss.linear_cross_entropy``."""
    return _ours(True, *case)


def torch(dtype: str, given: str, head: bool, size: tuple[int, int, int]) -> Run:
    """``torch.nn.functional.cross_entropy``."""
    import torch

    hidden, weight, targets = map(torch.from_numpy, operands(*size))
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    logits = None if given == "hidden" else (hidden @ weight.T).to(kind)
    hidden, weight = hidden.to(kind), weight.to(kind)

    def run(backward: bool) -> tuple[float, Any]:
        inputs = [hidden, weight][: 1 + head] if logits is None else [logits]
        for each in inputs:
            each.grad = None
            each.requires_grad_(backward)
        found = torch.nn.functional.cross_entropy(hidden @ weight.T if logits is None else logits, targets)
        if backward:
            found.backward()
        return found.item(), [each.grad for each in inputs]

    return run


SIDES: dict[str, tuple[str, Callable[..., Run]]] = {
    "log-softmax in MLX": ("mlx", naive),
    "mlx.nn.losses": ("mlx", mlx_nn),
    "mx.fast": ("mlx", mx_fast),
    "cross_entropy": ("mlx", ours),
    "linear_cross_entropy": ("mlx", ours_linear),
    "torch": ("torch", torch),
}


def resident() -> int:
    """Bytes of memory that the process has now; its largest so far where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text("utf-8").partition("VmRSS:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Watch(threading.Thread):
    """The most memory that the process has had while it watches, looked at each 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ends = 0, threading.Event()

    def run(self) -> None:
        while not self._ends.wait(0.005):
            self.most = max(self.most, resident())

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self.join()


def work(side: str, dtype: str, given: str, head: bool, size: tuple[int, int, int], repeats: int) -> None:
    """A process: prints a line with the times, the peaks and the loss of both passes."""
    module, made = SIDES[side]
    if module == "mlx":
        import metal_candle  # noqa: F401  loads the BLAS before mlx.core
    run, answer = made(dtype, given, head, size), {}
    for backward in (False, True):
        seconds, allocated, peak = [], 0, 0
        for _ in range(repeats):
            if module == "mlx":
                import mlx.core as mx

                mx.clear_cache()
                active = mx.get_active_memory()
                mx.reset_peak_memory()
            before = resident()
            with Watch() as watch:
                start = time.perf_counter()
                loss, gradients = run(backward)
                seconds.append(time.perf_counter() - start)
            del gradients
            if module == "mlx":
                allocated = max(allocated, mx.get_peak_memory() - active)
            peak = max(peak, watch.most - before)
        answer["backward" if backward else "forward"] = {
            "seconds": seconds,
            "allocated": allocated if module == "mlx" else None,
            "resident": peak,
            "loss": loss,
        }
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Print a table for each case; with ``--csv`` add the times to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--words", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES[:-1])
    parser.add_argument("--head", action="store_true", help="the head's weight is trained, too")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="add rows to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.rows, arguments.words, arguments.width)
    if arguments.worker:
        work(*arguments.worker, arguments.head, size, arguments.repeats)
        return
    names = [name for name in arguments.only if importlib.util.find_spec(SIDES[name][0])]
    for case in arguments.cases:
        dtype, _, given = case.partition("-")
        compare(names, dtype, given, arguments.head and given == "hidden", size, arguments.repeats, arguments.csv)


def compare(
    names: list[str], dtype: str, given: str, head: bool, size: tuple[int, int, int], repeats: int, csv: Path | None
) -> None:
    """One case: a table, rows of the file, and the end of the program if the losses differ."""
    import measure
    from measure import Side, Times

    rows, words, width = size
    case = f"{dtype}, {rows} tokens, {words} words, " + (
        f"width {width}{', head trained' if head else ''}" if given == "hidden" else "logits given"
    )
    found = {}
    for name in names:
        if name == "linear_cross_entropy" and given == "logits":
            continue
        sizes = ["--rows", str(rows), "--words", str(words), "--width", str(width), "--repeats", str(repeats)]
        command = [sys.executable, __file__, "--worker", name, dtype, given, *sizes, *["--head"] * head]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{name}, {case}: its process ended with {ended.returncode}")
        found[name] = json.loads(ended.stdout.splitlines()[-1])
    losses = {name: answer[key]["loss"] for name, answer in found.items() for key in answer}
    if max(losses.values()) - min(losses.values()) > AGREE[dtype]:
        raise SystemExit(f"{case}: the losses differ: {losses}")
    print(f"\n{case}; {measure.device()}; {measure.versions()}; {measure.load()}\n")
    titles = ("", "forward, MiB", "resident, MiB", "s", "with gradient, MiB", "resident, MiB", "s")
    print(measure.head(titles))
    for name, answer in found.items():
        cells = [name]
        for key in ("forward", "backward"):
            part = answer[key]
            allocated = "" if part["allocated"] is None else f"{part['allocated'] / 2**20:.0f}"
            cells += [allocated, f"{part['resident'] / 2**20:.0f}", f"{np.median(part['seconds']):.2f}"]
        print(measure.row(cells), flush=True)
    if csv is None:
        return
    for key in ("forward", "backward"):
        times = {name: Times(answer[key]["seconds"]) for name, answer in found.items()}
        sides = {name: Side(lambda: None) for name in times}
        peaks = {
            name: (str(answer[key]["allocated"] or answer[key]["resident"]), "", "bytes are the peak of memory")
            for name, answer in found.items()
        }
        label = f"{case}, {'loss and gradient' if key == 'backward' else 'loss'}"
        measure.append(csv, measure.rows_of("loss", label, times, sides, next(iter(times)), peaks))


if __name__ == "__main__":
    main()
