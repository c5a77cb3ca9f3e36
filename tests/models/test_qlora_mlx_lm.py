"""Quantised folders in mlx-lm: the same logits, its folders here and ours there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import LazyTensor
from metal_candle.models import load_model
from metal_candle.models.save import save_model

import mlx.core as mx
import numpy as np
import pytest
from quantised_folders import SIZES, quantised_folder

ModelDir = Callable[..., Path]
IDS = [1, 9, 20, 33, 7, 7, 41]
# The same numbers multiplied in another order: float32's rounding.
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def logits(model: Any) -> Any:
    return model.forward(LazyTensor.new(np.array([IDS], np.uint32))).numpy()


@pytest.mark.parametrize(("bits", "group", "mode"), [(4, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")])
def test_the_same_logits(tiny_model_dir: ModelDir, tmp_path: Path, bits: int, group: int, mode: str) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    own: dict[str, Any] = {"down_proj": (8, 32), "embed_tokens": (6, 128)} if mode == "affine" else {}
    folder = quantised_folder(tiny_model_dir(**SIZES), bits, group, mode, **own)
    ours = load_model(folder)
    theirs, _ = mlx_lm.load(str(folder))
    np.testing.assert_allclose(np.array(theirs(mx.array([IDS]))), logits(ours.model), **NEAR)
    save_model(tmp_path / "saved", ours.model, ours.tokenizer)
    again, _ = mlx_lm.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(np.array(again(mx.array([IDS]))), logits(ours.model), **NEAR)


def test_a_folder_of_mlx_lms_own_converter(tiny_model_dir: ModelDir, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    target = tmp_path / "converted"
    mlx_lm.convert(str(tiny_model_dir(**SIZES)), str(target), quantize=True, q_bits=4, q_group_size=64)
    theirs, _ = mlx_lm.load(str(target))
    ours = load_model(target)
    assert ours.note == "15 weights in 4 bits (groups of 64)"
    found = np.array(theirs(mx.array([IDS])).astype(mx.float32))
    # mlx-lm computes in the halves of the scales.
    np.testing.assert_allclose(found, logits(ours.model), atol=0.05)


@pytest.mark.slow
def test_smollm2_saved_as_it_is(tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    loaded = load_model("smollm2", quantize="keep")
    save_model(tmp_path / "saved", loaded.model, loaded.tokenizer)
    theirs, _ = mlx_lm.load(str(tmp_path / "saved"))
    # Logits of about 20 after 30 layers.
    np.testing.assert_allclose(np.array(theirs(mx.array([IDS]))), logits(loaded.model), atol=1e-3)
