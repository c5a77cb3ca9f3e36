"""Adapter folders in PEFT's layout: what is written, what is read, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError, UnexpectedShapeError
from metal_candle.formats import safetensors
from metal_candle.training.formats import peft

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

RANK = 4
PATHS = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qv"]


def random_factors(rank: int = RANK, seed: int = 0) -> dict[str, tuple[mx.array, mx.array]]:
    keys = iter(mx.random.split(mx.random.key(seed), 2 * len(PATHS)))
    widths = {path: 12 if "v_proj" in path else 24 for path in PATHS}
    return {
        path: (
            mx.random.normal((24, rank), key=next(keys)),
            mx.random.normal((rank, widths[path]), key=next(keys)),
        )
        for path in PATHS
    }


def save(folder: Path, **changes: Any) -> None:
    options: dict[str, Any] = {
        "rank": RANK,
        "alpha": 8.0,
        "dropout": 0.05,
        "target_modules": ["v_proj", "q_proj"],
        "base_model": "some/model",
    }
    peft.save(folder, changes.pop("factors", random_factors()), **{**options, **changes})


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / peft.CONFIG).read_text())
    config.update(fields)
    (folder / peft.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_tensors(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    tensors = safetensors.load_file(folder / peft.WEIGHTS)
    mx.eval(tensors)
    change(tensors)
    safetensors.save(folder / peft.WEIGHTS, tensors)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- writing ----------------------------------------------------------------------------------


def test_keys_shapes_metadata_and_config_are_pefts(tmp_path: Path) -> None:
    factors = random_factors()
    save(tmp_path, factors=factors)
    assert sorted(contents(tmp_path)) == [peft.CONFIG, peft.WEIGHTS]
    with safe_open(tmp_path / peft.WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(file.keys()) == 2 * len(PATHS)
        for path, (a, b) in factors.items():
            stored_a = file.get_tensor(f"base_model.model.{path}.lora_A.weight")
            stored_b = file.get_tensor(f"base_model.model.{path}.lora_B.weight")
            assert stored_a.dtype == stored_b.dtype == np.float32
            np.testing.assert_array_equal(stored_a, np.array(a).T)
            np.testing.assert_array_equal(stored_b, np.array(b).T)
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    wanted = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/model",
        "r": RANK,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "inference_mode": True,
    }
    assert {name: config[name] for name in wanted} == wanted


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    factors = random_factors()
    save(tmp_path, factors=factors, alpha=6.5, base_model=None, extra={"layers_to_transform": [0, 1]})
    adapter = peft.load(tmp_path)
    assert (adapter.rank, adapter.alpha, adapter.scale, adapter.dropout) == (RANK, 6.5, 6.5 / RANK, 0.05)
    assert adapter.target_modules == ("q_proj", "v_proj")
    assert adapter.base_model is None
    assert list(adapter.factors) == sorted(PATHS)
    for path, (a, b) in factors.items():
        read = adapter.factors[path]
        assert (read.rank, read.alpha, read.scale) == (RANK, 6.5, 6.5 / RANK)
        assert mx.array_equal(read.a, a)
        assert mx.array_equal(read.b, b)


def test_half_precision_factors_stay_so(tmp_path: Path) -> None:
    halves = {path: (a.astype(mx.bfloat16), b.astype(mx.bfloat16)) for path, (a, b) in random_factors().items()}
    save(tmp_path, factors=halves)
    read = peft.load(tmp_path).factors[PATHS[0]]
    assert read.a.dtype == mx.bfloat16
    assert mx.array_equal(read.a, halves[PATHS[0]][0])


def test_a_failed_write_leaves_the_old_adapter_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    before = contents(tmp_path)

    def full(path: object, *_: object) -> None:
        Path(str(path)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save", full)
        with pytest.raises(CheckpointError.SaveFailed) as raised:
            save(tmp_path, rank=2, factors=random_factors(2))
    assert str(raised.value) == (
        f"failed to save: adapter {tmp_path}: No space left on device; an adapter that was there is unchanged"
    )
    assert contents(tmp_path) == before

    replace = os.replace

    def weights_only(source: Any, target: Any) -> None:
        if Path(target).name.endswith(peft.WEIGHTS):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", weights_only)
        with pytest.raises(CheckpointError.SaveFailed, match="Permission denied"):
            save(tmp_path, rank=2, factors=random_factors(2))
    assert contents(tmp_path) == before


def test_factors_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError.InvalidFormat, match="at least one module"):
        save(tmp_path, factors={})
    with pytest.raises(UnexpectedShapeError, match=r"q_proj\.lora_A: expected shape \(24, 8\), got \(24, 4\)"):
        save(tmp_path, rank=8)
    assert contents(tmp_path) == {}


# --- reading ----------------------------------------------------------------------------------


def test_the_fewest_fields_that_peft_takes(tmp_path: Path) -> None:
    save(tmp_path)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_modules": "all-linear", "unknown": 1}
    (tmp_path / peft.CONFIG).write_text(json.dumps(fields))
    adapter = peft.load(tmp_path)
    assert (adapter.scale, adapter.dropout) == (0.5, 0.0)
    assert adapter.target_modules == ("q_proj", "v_proj")


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    save(tmp_path, extra={"use_rslora": True})
    adapter = peft.load(tmp_path)
    assert adapter.scale == adapter.factors[PATHS[0]].scale == 8.0 / 2.0


def test_rank_and_alpha_patterns_match_the_end_of_a_path(tmp_path: Path) -> None:
    save(tmp_path)
    prefix = f"base_model.model.{PATHS[0]}"
    change_tensors(
        tmp_path,
        lambda tensors: tensors.update(
            {f"{prefix}.lora_A.weight": mx.ones((2, 24)), f"{prefix}.lora_B.weight": mx.ones((24, 2))}
        ),
    )
    patterns = {"layers.0.self_attn.q_proj": 2, "proj": 9, "yers.0.self_attn.v_proj": 9}
    change_config(tmp_path, rank_pattern=patterns, alpha_pattern={r"model\.layers\.\d\..*q_proj": 16, "v_proj": 1})
    factors = peft.load(tmp_path).factors
    assert [factors[path].rank for path in PATHS] == [2, RANK, RANK, RANK]
    assert [factors[path].alpha for path in PATHS] == [16, 1, 16, 1]
    assert [factors[path].scale for path in PATHS] == [8, 0.25, 4, 0.25]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": ...}, "peft_type is None; takes 'LORA'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": ...}, "r is missing; takes an integer above 0"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": ...}, "lora_alpha is missing; takes a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"modules_to_save": ["norm"]}, "modules_to_save is ['norm'], which is not supported"),
        ({"bias": "lora_only"}, "bias is 'lora_only', which is not supported"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "whose base weights differ"),
        ({"r": 8}, "lora_A.weight is (4, 24), adapter_config.json asks for rank 8: (8, in)"),
        ({"rank_pattern": {"(": 2}}, "pattern '(' is no regular expression"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern['q_proj'] is '2'"),
        ({"alpha_pattern": [1]}, "alpha_pattern is [1]; takes an object"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    save(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        peft.load(tmp_path)
    message = str(raised.value)
    assert says in message
    assert str(tmp_path) in message
    assert "\n" not in message


FIRST = f"base_model.model.{PATHS[0]}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), f"{PATHS[0]} has lora_A but no lora_B"),
        (lambda t: t.pop(f"{FIRST}.lora_A.weight"), f"{PATHS[0]} has lora_B but no lora_A"),
        (lambda t: t.update({f"{FIRST}.lora_B.weight": mx.ones((24, 3))}), "lora_B.weight is (24, 3)"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": mx.ones(4)}), "lora_A.weight is (4,)"),
        (
            lambda t: t.update({f"{FIRST}.lora_magnitude_vector": mx.ones(24)}),
            "is not a LoRA factor of a linear",
        ),
        (lambda t: t.clear(), "holds no LoRA factors"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[Any], object], says: str) -> None:
    save(tmp_path)
    change_tensors(tmp_path, change)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        peft.load(tmp_path)
    assert says in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    def says() -> str:
        with pytest.raises(CheckpointError.LoadFailed) as raised:
            peft.load(tmp_path / "adapter")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    folder = tmp_path / "adapter"
    assert "no such adapter folder" in says()
    folder.mkdir()
    (folder / "adapters.safetensors").touch()
    assert "no adapter_config.json and no adapter_model.safetensors; adapters.safetensors is mlx-lm's" in says()
    save(folder)
    whole = (folder / peft.WEIGHTS).read_bytes()
    (folder / peft.WEIGHTS).write_bytes(whole[:-1])
    assert "truncated" in says()
    (folder / peft.WEIGHTS).write_bytes(whole[:20])
    assert str(folder / peft.WEIGHTS) in says()
    (folder / peft.WEIGHTS).write_bytes(whole)
    (folder / peft.CONFIG).write_text('{"r": 4,\n')
    assert "broken JSON at line" in says()
    (folder / peft.CONFIG).unlink()
    assert "no adapter_config.json; " in says()


# --- the real PEFT ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("peft", "torch", "transformers")),
    reason="peft, torch and transformers are not installed",
)
def test_real_peft_loads_ours_and_we_load_what_it_writes(tmp_path: Path) -> None:
    import peft as real_peft
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    base = transformers.LlamaForCausalLM(sizes).eval()
    ids = torch.arange(10)[None]
    factors = random_factors()
    save(tmp_path / "ours", factors=factors)

    # What y = W x + scale B (A x) is, by writing the change into the weights.
    by_hand = transformers.LlamaForCausalLM(sizes).eval()
    by_hand.load_state_dict(base.state_dict())
    with torch.no_grad():
        plain = base(ids).logits
        for path, (a, b) in factors.items():
            delta = torch.from_numpy(np.array(2.0 * (a @ b))).T
            by_hand.get_submodule(path).weight += delta
        expected = by_hand(ids).logits

        model = real_peft.PeftModel.from_pretrained(base, str(tmp_path / "ours"))
        assert isinstance(model, real_peft.PeftModelForCausalLM)
        logits = model(ids).logits
    assert (logits - plain).abs().max() > 1e-2
    # float32: the delta is added to the weight on one side, to the product on the other
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)

    model.save_pretrained(str(tmp_path / "theirs"))
    theirs = peft.load(tmp_path / "theirs")
    assert (theirs.rank, theirs.alpha, theirs.scale) == (RANK, 8.0, 2.0)
    assert theirs.target_modules == ("q_proj", "v_proj")
    for path, (a, b) in factors.items():
        assert mx.array_equal(theirs.factors[path].a, a)
        assert mx.array_equal(theirs.factors[path].b, b)
