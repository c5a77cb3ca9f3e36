"""Adapters travel: the real PEFT and the real mlx-lm load what this package writes, and the other way round.

All logits are float32 and computed by three programs whose sums run in different orders: ATOL is ten times the
largest difference seen, and a hundredth of what the adapter changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError
from metal_candle.models.load import load_model
from metal_candle.tensor.eager import Tensor
from metal_candle.training import LoRAAdapter
from metal_candle.training.formats import mlx_lm, peft
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.recognise import read, write
from metal_candle.training.formats.stored import Factors

import mlx.core as mx
import numpy as np
import pytest
from adapters import RANK, SIZES, change_config, random_adapter, random_factors, same_factors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # torch's, transformers' and PEFT's own
]

ATOL = 2e-5
IDS = np.arange(3, 15)[None]
Q0 = "model.layers.0.self_attn.q_proj"
Folder = Callable[..., Path]
Logits = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Folder) -> Path:
    return tiny_model_dir()


def ours(folder: Path, adapter: Path | None) -> Logits:
    """The logits of this package."""
    model = load_model(folder).model
    if adapter is not None:
        loaded = LoRAAdapter.load(adapter, model)
        loaded.set_training(False)
        model.apply_adapter(loaded)
    found: Logits = model.forward(Tensor.new(IDS)).numpy()
    return found


def with_peft(folder: Path, adapter: Path, save_to: Path | None = None) -> Logits:
    """The logits of transformers with PEFT, which may write the adapter again."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    real = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    model = real.PeftModel.from_pretrained(base, str(adapter)).eval()
    if save_to is not None:
        model.save_pretrained(str(save_to))
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(IDS)).logits.numpy())


def with_mlx_lm(folder: Path, adapter: Path, save_to: Path | None = None) -> Logits:
    """The logits of mlx-lm, whose trained parameters may be written again as its trainer does."""
    pytest.importorskip("mlx_lm")
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    model, _ = load_theirs(folder)
    model = load_adapters(model, str(adapter))
    model.eval()
    if save_to is not None:
        save_to.mkdir()
        model.freeze()
        every: dict[str, Any] = dict(tree_flatten(model.parameters()))
        leaves = {name: x for name, x in every.items() if name.endswith(("lora_a", "lora_b"))}
        mx.save_safetensors(str(save_to / mlx_lm.WEIGHTS), leaves)
        (save_to / CONFIG).write_text((adapter / CONFIG).read_text())
        change_config(save_to, lambda config: config.pop("layers_to_transform", None))  # which mlx-lm does not know
    return np.array(model(mx.array(IDS)).astype(mx.float32))


def different(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """The factors with scales of their own, powers of two apart."""
    return {path: Factors(x.a, x.b, x.scale * 2.0 ** (i % 3)) for i, (path, x) in enumerate(factors.items())}


CASES = {
    "all projections": lambda: random_adapter(random_factors(tuple(SIZES))),
    "the last block": lambda: random_adapter(random_factors(tuple(SIZES), layers=(1,)), layers=(1,)),
    "the first block": lambda: random_adapter(random_factors(layers=(0,)), layers=(0,)),
    "own ranks": lambda: random_adapter(random_factors(ranks={Q0: 2})),
    "own scales": lambda: random_adapter(different(random_factors(tuple(SIZES)))),
}


@pytest.mark.parametrize("case", list(CASES))
def test_all_three_programs_give_the_same_logits(tmp_path: Path, folder: Path, case: str) -> None:
    adapter = CASES[case]()
    places = {format: tmp_path / format for format in ("peft", "mlx-lm")}
    for format, place in places.items():
        write(place, adapter, format)
    write(tmp_path / "ours.safetensors", adapter, "metal-candle")
    expected = ours(folder, tmp_path / "ours.safetensors")
    assert np.abs(expected - ours(folder, None)).max() > 100 * ATOL
    for logits in (
        ours(folder, places["peft"]),
        ours(folder, places["mlx-lm"]),
        with_peft(folder, places["peft"], tmp_path / "from peft"),
        with_mlx_lm(folder, places["mlx-lm"], tmp_path / "from mlx-lm"),
    ):
        np.testing.assert_allclose(logits, expected, atol=ATOL, rtol=0)
    # What they write again is read again, bit for bit.
    assert same_factors(read(tmp_path / "from peft").factors, adapter.factors)
    theirs, given = (read(place).factors for place in (tmp_path / "from mlx-lm", places["mlx-lm"]))
    assert all(same_factors({path: theirs[path]}, {path: given[path]}) for path in given)
    zero = [path for path in theirs if path not in given]  # mlx-lm fills its last blocks, B at zero
    assert all(not mx.any(theirs[path].b).item() for path in zero)
    np.testing.assert_allclose(ours(folder, tmp_path / "from peft"), expected, atol=ATOL, rtol=0)


def test_an_adapter_that_peft_made_with_rslora_and_patterns(tmp_path: Path, folder: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    real = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    config = real.LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 6},
        alpha_pattern={"1.mlp.down_proj": 32},
        init_lora_weights=False,  # B is not zero
        task_type="CAUSAL_LM",
    )
    model = real.get_peft_model(base, config).eval()
    model.save_pretrained(str(tmp_path / "theirs"))
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(ours(folder, tmp_path / "theirs"), expected, atol=ATOL, rtol=0)
    loaded = load_model(folder).model
    LoRAAdapter.load(tmp_path / "theirs", loaded).save(tmp_path / "again")
    np.testing.assert_allclose(with_peft(folder, tmp_path / "again"), expected, atol=ATOL, rtol=0)
    write(tmp_path / "mlx", read(tmp_path / "theirs"), "mlx-lm", fold_scales=True)
    np.testing.assert_allclose(with_mlx_lm(folder, tmp_path / "mlx"), expected, atol=ATOL, rtol=0)


def test_an_adapter_that_mlx_lm_made(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("mlx_lm")
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model as load_theirs

    model, _ = load_theirs(folder)
    model.freeze()
    parameters = {"rank": 3, "scale": 20.0, "dropout": 0.1}  # no keys: every linear map
    linear_to_lora_layers(model, 1, parameters)
    mx.random.seed(0)
    model.update(tree_map(lambda x: mx.random.normal(x.shape, scale=0.1), model.trainable_parameters()))
    model.eval()
    expected = np.array(model(mx.array(IDS)))
    (tmp_path / "theirs").mkdir()
    mx.save_safetensors(str(tmp_path / "theirs" / mlx_lm.WEIGHTS), dict(tree_flatten(model.trainable_parameters())))
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters, "model": str(folder)}
    (tmp_path / "theirs" / CONFIG).write_text(json.dumps(config))
    np.testing.assert_allclose(ours(folder, tmp_path / "theirs"), expected, atol=ATOL * 10, rtol=0)  # larger deltas
    write(tmp_path / "as peft", read(tmp_path / "theirs"), "peft")
    np.testing.assert_allclose(with_peft(folder, tmp_path / "as peft"), expected, atol=ATOL * 10, rtol=0)


def test_dora_of_the_real_peft_is_refused(tmp_path: Path, folder: Path) -> None:
    transformers, real = pytest.importorskip("transformers"), pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
    config = real.LoraConfig(r=RANK, target_modules=["q_proj"], use_dora=True)
    real.get_peft_model(base, config).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError.InvalidFormat, match=r"use_dora is True \(DoRA\), which is not supported"):
        read(tmp_path)
    change_config(tmp_path, lambda fields: fields.update(use_dora=False))
    with pytest.raises(CheckpointError.InvalidFormat, match="is a magnitude of DoRA, which is not supported"):
        peft.load(tmp_path)
