"""Adapter folders in PEFT's layout: what is written, what is read, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError
from metal_candle.formats import safetensors
from metal_candle.training.formats import peft
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.recognise import read
from metal_candle.training.formats.stored import Factors, Format, StoredAdapter

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


def save(folder: Path, factors: dict[str, tuple[mx.array, mx.array]] | None = None, **changes: Any) -> None:
    scale = changes.pop("scale", 2.0)
    pairs = random_factors() if factors is None else factors
    options: dict[str, Any] = {
        "rank": RANK,
        "scale": scale,
        "dropout": 0.05,
        "targets": ("v_proj", "q_proj"),
        "base_model": "some/model",
        "factors": {path: Factors(a, b, scale) for path, (a, b) in pairs.items()},
    }
    peft.save(folder, StoredAdapter(**{**options, **changes}))


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config.update(fields)
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


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
    assert sorted(contents(tmp_path)) == [CONFIG, peft.WEIGHTS]
    with safe_open(tmp_path / peft.WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(file.keys()) == 2 * len(PATHS)
        for path, (a, b) in factors.items():
            stored_a = file.get_tensor(f"base_model.model.{path}.lora_A.weight")
            stored_b = file.get_tensor(f"base_model.model.{path}.lora_B.weight")
            assert stored_a.dtype == stored_b.dtype == np.float32
            np.testing.assert_array_equal(stored_a, np.array(a).T)
            np.testing.assert_array_equal(stored_b, np.array(b).T)
    config = json.loads((tmp_path / CONFIG).read_text())
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
    save(tmp_path, factors, scale=6.5 / RANK, base_model=None, layers=(0, 1))
    adapter = peft.load(tmp_path)
    assert (adapter.rank, adapter.alpha, adapter.scale, adapter.dropout) == (RANK, 6.5, 6.5 / RANK, 0.05)
    assert adapter.targets == ("q_proj", "v_proj")
    assert (adapter.base_model, adapter.layers, adapter.format) == (None, (0, 1), Format.Peft)
    assert list(adapter.factors) == sorted(PATHS)
    for path, (a, b) in factors.items():
        found = adapter.factors[path]
        assert (found.rank, found.alpha, found.scale) == (RANK, 6.5, 6.5 / RANK)
        assert mx.array_equal(found.a, a)
        assert mx.array_equal(found.b, b)


def test_modules_with_a_rank_and_a_scale_of_their_own_become_patterns(tmp_path: Path) -> None:
    own = random_factors(rank=2)[PATHS[0]]
    pairs = {**random_factors(), PATHS[0]: own}
    scales = dict(zip(PATHS, (0.3, 2.0, 1 / 3, 2.0)))
    peft.save(tmp_path, StoredAdapter(RANK, 2.0, {path: Factors(*pairs[path], scales[path]) for path in PATHS}))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["rank_pattern"] == {PATHS[0]: 2}
    assert list(config["alpha_pattern"]) == [PATHS[0], PATHS[2]]
    found = peft.load(tmp_path).factors
    assert {path: each.scale for path, each in found.items()} == scales
    assert [found[path].rank for path in PATHS] == [2, RANK, RANK, RANK]


def test_half_precision_factors_stay_so(tmp_path: Path) -> None:
    halves = {path: (a.astype(mx.bfloat16), b.astype(mx.bfloat16)) for path, (a, b) in random_factors().items()}
    save(tmp_path, halves)
    found = peft.load(tmp_path).factors[PATHS[0]]
    assert found.a.dtype == mx.bfloat16
    assert mx.array_equal(found.a, halves[PATHS[0]][0])


def test_a_failed_write_leaves_the_old_adapter_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    before = contents(tmp_path)

    def full(path: object, *_: object) -> None:
        Path(str(path)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "save", full)
        with pytest.raises(CheckpointError.SaveFailed) as raised:
            save(tmp_path, random_factors(2), rank=2)
    assert str(raised.value) == (
        f"failed to save: adapter {tmp_path}: No space left on device; an adapter that was there is unchanged"
    )
    assert contents(tmp_path) == before

    replace = os.replace

    def weights_only(source: Any, target: Any) -> None:
        if Path(target).name == peft.WEIGHTS and Path(source).suffix == ".tmp":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", weights_only)
        with pytest.raises(CheckpointError.SaveFailed, match="Permission denied"):
            save(tmp_path, random_factors(2), rank=2)
    assert contents(tmp_path) == before


def test_factors_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError.InvalidFormat, match="at least one module"):
        save(tmp_path, factors={})
    (tmp_path / "adapters.safetensors").touch()
    with pytest.raises(CheckpointError.SaveFailed, match=r"holds adapters\.safetensors, an adapter of another format"):
        save(tmp_path)
    assert list(contents(tmp_path)) == ["adapters.safetensors"]


# --- reading ----------------------------------------------------------------------------------


def test_the_fewest_fields_that_peft_takes(tmp_path: Path) -> None:
    save(tmp_path)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_modules": "all-linear", "unknown": 1}
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    adapter = peft.load(tmp_path)
    assert (adapter.scale, adapter.dropout) == (0.5, 0.0)
    assert (adapter.targets, adapter.target_names()) == (None, ("q_proj", "v_proj"))


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    save(tmp_path)
    change_config(tmp_path, use_rslora=True)
    adapter = peft.load(tmp_path)
    assert adapter.notes == ("rank-stabilised scale",)
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
    assert [factors[path].alpha for path in PATHS] == [16, 1, 16, 1]  # alpha over the module's own rank is its scale
    assert [factors[path].scale for path in PATHS] == [8, 0.25, 4, 0.25]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": ...}, "peft_type is None; takes 'LORA'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": ...}, "r is missing; takes an integer above 0"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": ...}, "lora_alpha is missing; takes a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0; takes a number above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; takes 0 <= dropout < 1"),
        ({"layers_to_transform": "last"}, "layers_to_transform is 'last'; takes numbers of layers"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"use_dora": True}, "use_dora is True (DoRA), which is not supported"),
        ({"modules_to_save": ["norm"]}, "modules_to_save is ['norm'] (whole trained modules), which is not supported"),
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
            "is a magnitude of DoRA, which is not supported",
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": mx.ones((4, 50))}),
            "adapts an embedding, which is not supported",
        ),
        (lambda t: t.update({f"{FIRST}.lora_B.bias": mx.ones(24)}), "is a bias (lora_bias), which is not supported"),
        (
            lambda t: t.update({"base_model.model.model.norm.weight": mx.ones(24)}),
            "is a whole weight (modules_to_save, or full fine-tuning), which is not supported",
        ),
        (lambda t: t.update({f"{FIRST}.lora_C.weight": mx.ones(4)}), "is not a LoRA factor of a linear"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": mx.ones((4, 24), mx.int32)}), "is I32; takes F32"),
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
    assert "no adapter_config.json and no adapter_model.safetensors; an adapter folder has" in says()
    (folder / "adapter_model.bin").touch()
    assert "adapter_model.bin, a pickle, is not read: save with safe_serialization=True" in says()
    (folder / "adapter_model.bin").unlink()
    save(folder)
    whole = (folder / peft.WEIGHTS).read_bytes()
    (folder / peft.WEIGHTS).write_bytes(whole[:-1])
    assert "truncated" in says()
    (folder / peft.WEIGHTS).write_bytes(whole[:20])
    assert str(folder / peft.WEIGHTS) in says()
    (folder / peft.WEIGHTS).write_bytes(whole)
    (folder / CONFIG).write_text('{"r": 4,\n')
    assert "broken JSON at line" in says()
    (folder / CONFIG).unlink()
    assert "no adapter_config.json; " in says()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target_modules": ["q_proj"]}, f"{PATHS[1]} has factors, but it says it adapts q_proj"),
        ({"layers_to_transform": [0]}, f"{PATHS[2]} has factors, but it says it adapts the layers 0"),
    ],
)
def test_factors_that_the_configuration_does_not_list(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    save(tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        read(tmp_path)
    assert says in str(raised.value)


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
    save(tmp_path / "ours", factors)

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
    assert theirs.targets == ("q_proj", "v_proj")
    for path, (a, b) in factors.items():
        assert mx.array_equal(theirs.factors[path].a, a)
        assert mx.array_equal(theirs.factors[path].b, b)
