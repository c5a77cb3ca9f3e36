"""``finetune --plan`` says what a run takes and trains nothing; ``--gradient-checkpointing`` trains with less."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from metal_candle.training import read_metrics

import pytest
from program import ok


def test_plan_and_gradient_checkpointing(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model, data, output = tiny_model_dir(), tmp_path / "rows.jsonl", tmp_path / "adapter"
    data.write_text("\n".join(json.dumps({"prompt": f"say {i}", "completion": "the answer"}) for i in range(8)))
    flags = ("finetune", "--model", model, "--data", data, "--output", output, "--batch-size", 2)
    shown = ok(*flags, "--plan")
    assert "longest batch: 2 x " in shown
    for part in ("frozen weights", "adapter", "optimizer", "head and loss", "activations", "peak", "largest batch"):
        assert part in shown
    assert "with gradient checkpointing" in shown
    assert "counted are MLX's arrays" in shown
    assert not output.exists()
    ended = ok(*flags, "--gradient-checkpointing", "--steps", 2, "--sample", "")
    planned, measured = (
        float(found[1].replace(",", ""))
        for text, pattern in (
            (shown, r"with gradient checkpointing +([\d,.]+) MiB"),
            (ended, r"([\d,.]+) MiB in MLX's"),
        )
        if (found := re.search(pattern, text))
    )
    # The same thing is counted; a tiny model's step is about its parts that no plan has: keys, targets, small sums.
    assert measured == pytest.approx(planned, rel=0.3)
    assert "which --plan estimates; " in ended
    assert max(record["step"] for record in read_metrics(output / "metrics.jsonl")) == 2
