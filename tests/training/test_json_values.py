"""NumPy's numbers in notes, callbacks' states and metrics are written as Python's; what JSON lacks is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.error import ArgumentTypeError, CheckpointError
from metal_candle.training import MetricsLog, TrainingCallback, TrainingState, read_metrics
from metal_candle.training.json_values import json_value

import mlx.core as mx
import numpy as np
import pytest
from resumed_runs import fresh

NUMBERS: dict[str, Any] = {
    "half": np.float16(0.5),
    "single": np.float32(0.25),
    "double": np.float64(0.1),
    "long": np.int64(2**60),
    "byte": np.uint8(255),
    "flag": np.bool_(True),
    "text": np.str_("a"),
    "array": np.array(3.5, np.float32),
    "mlx": mx.array(7),
    "inside": [{"a": (np.int32(1), None)}],
}
PLAIN = {
    "half": 0.5,
    "single": 0.25,
    "double": 0.1,
    "long": 2**60,
    "byte": 255,
    "flag": True,
    "text": "a",
    "array": 3.5,
    "mlx": 7,
    "inside": [{"a": [1, None]}],
}
TAKES = "takes what JSON can hold: numbers, texts, lists, dicts"
WRONG = [
    ({"a": {"b": [1, Tensor([1.0])]}}, f"notes['a']['b'][1] is a Tensor; {TAKES}"),
    ({"a": np.ones(2)}, f"notes['a'] is an ndarray; {TAKES}"),
    ({"a": np.complex64(1j)}, f"notes['a'] is 1j; {TAKES}"),
    ({"a": {1, 2}}, f"notes['a'] is a set; {TAKES}"),
    ({"a": {(1, 2): 3}}, "notes['a'] has the key a tuple; takes texts and Python's numbers"),
]


class Counts(TrainingCallback):
    def state(self) -> dict[str, Any]:
        return {"count": np.int64(4)}


def test_numbers_become_pythons() -> None:
    plain = json_value(NUMBERS, "notes")
    assert plain == PLAIN
    assert json.loads(json.dumps(plain)) == PLAIN


@pytest.mark.parametrize(("notes", "words"), WRONG)
def test_what_json_cannot_hold_is_named(notes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        json_value(notes, "notes")
    assert str(caught.value) == words


def test_what_holds_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ArgumentTypeError, match=r"^notes is nested too deeply, or holds itself$"):
        json_value(endless, "notes")


def test_a_state_keeps_them(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    trainer = fresh(tiny_model_dir(), [Counts()])
    trainer.save_state(tmp_path / "state", NUMBERS)
    state = TrainingState.load(tmp_path / "state")
    assert state.notes == PLAIN
    assert state.callbacks == {"Counts": {"count": 4}}
    for notes, words in WRONG:
        with pytest.raises(CheckpointError.SaveFailed) as caught:
            trainer.save_state(tmp_path / "state", notes)
        assert str(caught.value) == f"failed to save: {tmp_path / 'state'}: {words}"
    assert TrainingState.load(tmp_path / "state").notes == PLAIN


def test_a_log_keeps_them(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "log") as log:
        log.write(NUMBERS)
        log.write({"loss": np.float32("nan")})
        with pytest.raises(ArgumentTypeError, match=r"^MetricsLog.write: record\['a'\] is an ndarray; takes what JSON"):
            log.write({"a": np.ones(2)})
    assert read_metrics(tmp_path / "log") == [PLAIN, {"loss": None}]
