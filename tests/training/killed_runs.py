"""A run that is killed again and again, at points inside its saves and at random moments, until it is through.

    python killed_runs.py MODEL FOLDER KILLS_IN_SAVES KILLS_AT_RANDOM

The parent imports everything and computes nothing: MLX's threads would not survive a fork. Each child goes on from the
state in the run's folder, or begins where there is none. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import metal_candle
from metal_candle.formats import safetensors
from metal_candle.models import load_model
from metal_candle.training import (
    AdapterTrainer,
    EarlyStopping,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    MetricsLog,
    SaveState,
    read_metrics,
)
from metal_candle.training.state import STATE

import resumed_runs
from resumed_runs import TARGETS, TRAIN, VALID

CONFIG = replace(
    resumed_runs.CONFIG, num_epochs=3, lr_scheduler=LRScheduler.warmup_cosine(2, 10, 1e-2, 1e-3), eval_every=3
)
RUN = "killed-run"
"""What the names of the runs' folders begin with."""
TIMED = ("seconds",)
"""What a record of the metrics has that no two runs have in common."""


def train(model_folder: Path, folder: Path) -> None:
    """Go on with the run in the folder, or begin it."""
    metal_candle.Device.default().set_seed(11)
    model = load_model(model_folder).model
    state = folder / STATE
    resumed = state.exists()
    log = MetricsLog(folder / "metrics.jsonl", append=resumed)
    callbacks = [log, EarlyStopping(patience=50), SaveState(state, every=2, adapter=folder, base_model="tiny")]
    if resumed:
        metal_candle.Device.default().set_seed(99)  # which the state has to undo
        trainer = AdapterTrainer.resume(state, model, callbacks)
    else:
        adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0, 0.3, TARGETS))
        trainer = AdapterTrainer(model, adapter, CONFIG, 2, callbacks)
    for _ in trainer.run(TRAIN, VALID):
        pass


def kill_at(point: int, told: int) -> None:
    """Have this process killed at its ``point``-th write, sync, rename, open or removal in the run's folder, and the
    name of that point written to the file descriptor ``told`` first."""
    left, written = point, 0
    real_bytes, real_sync = safetensors.to_bytes, os.fsync

    def reached(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.write(told, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def to_bytes(array: Any) -> memoryview:
        nonlocal written
        written += 1
        if written % 6 == 0:  # the file is then some tensors long, and its header is written
            reached("write")
        return real_bytes(array)

    def fsync(descriptor: int) -> None:
        reached("before fsync")
        real_sync(descriptor)
        reached("after fsync")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and RUN in str(arguments[0]):
            reached(event)

    safetensors.to_bytes, os.fsync = to_bytes, fsync  # type: ignore[assignment]
    sys.addaudithook(audit)


def in_child(work: Callable[[], None]) -> int:
    """The id of a process that does the work."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def result(folder: Path) -> dict[str, Any]:
    """All that a run leaves: its files' bytes, and its metrics without the times."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "metrics.jsonl"}
    records = read_metrics(folder / "metrics.jsonl")
    return {
        "files": files,
        "metrics": [{name: value for name, value in record.items() if name not in TIMED} for record in records],
    }


class Killer:
    """Kills runs and compares what they leave with what an uninterrupted one left."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.root = model, folder
        self.random = random.Random(7)
        self.ended: list[int] = []
        self.points: dict[str, int] = {}
        self.kills = self.finished = 0
        self.different: list[str] = []
        whole = self.root / "whole"
        whole.mkdir(parents=True)
        start = time.monotonic()
        status = os.waitpid(in_child(lambda: train(model, whole)), 0)[1]
        assert status == 0, status
        self.seconds = time.monotonic() - start
        self.expected = result(whole)
        self._new()

    def _new(self) -> None:
        self.folder = self.root / f"{RUN}-{self.finished}"
        self.folder.mkdir()

    def once(self, point: int | None) -> None:
        """One process: killed at a point, or at a random moment, or it gets through."""
        reader, writer = os.pipe()

        def work() -> None:
            if point is not None:
                kill_at(point, writer)
            train(self.model, self.folder)

        process = in_child(work)
        if point is None:
            time.sleep(self.random.uniform(0, 0.7 * self.seconds))
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        os.close(writer)
        name = os.read(reader, 100).decode()
        os.close(reader)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            self.kills += 1
            name = name or "at random"
            self.points[name] = self.points.get(name, 0) + 1
            return
        assert status == 0, f"a resumed run failed: {status}"
        self.finish()

    def finish(self) -> None:
        """Compare, and begin another run."""
        found = result(self.folder)
        for name in sorted(found["files"].keys() | self.expected["files"].keys()):
            if found["files"].get(name) != self.expected["files"].get(name):
                self.different.append(f"{self.folder.name}: {name}")
        if found["metrics"] != self.expected["metrics"]:
            self.different.append(f"{self.folder.name}: metrics {found['metrics']}")
        self.finished += 1
        self._new()

    def through(self) -> None:
        """Let the run that is under way get to its end."""
        before = self.finished
        while self.finished == before:
            self.once(10**9)


def main(model: str, folder: str, in_saves: str, at_random: str) -> None:
    """See the module."""
    killer = Killer(Path(model), Path(folder))
    point = 0
    for part in range(1, 4):  # each part of the kills ends with a run that gets through
        while killer.kills < int(in_saves) * part // 3 + int(at_random) * (part - 1) // 3:
            point = point % 22 + 1
            killer.once(point)
        while killer.kills < (int(in_saves) + int(at_random)) * part // 3:
            killer.once(None)
        killer.through()
    report = {"kills": killer.kills, "finished": killer.finished, "points": killer.points}
    print(json.dumps({**report, "steps": killer.expected["metrics"][-1]["step"], "different": killer.different}))


if __name__ == "__main__":
    main(*sys.argv[1:])
