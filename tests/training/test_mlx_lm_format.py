"""Adapter folders in mlx-lm's layout: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError
from metal_candle.training.formats import mlx_lm
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.stored import Format

import mlx.core as mx
import numpy as np
import pytest
from adapters import RANK, SCALE, change_config, change_tensors, random_adapter, random_factors, same_factors
from safetensors import safe_open

Q0, V0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


# --- writing ----------------------------------------------------------------------------------


def test_keys_shapes_and_config_are_mlx_lms(tmp_path: Path) -> None:
    adapter = random_adapter()
    mlx_lm.save(tmp_path, adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, "adapters.safetensors"]
    with safe_open(tmp_path / mlx_lm.WEIGHTS, "np") as file:
        assert file.metadata() is None
        assert len(file.keys()) == 2 * len(adapter.factors)
        for path, factors in adapter.factors.items():
            np.testing.assert_array_equal(file.get_tensor(f"{path}.lora_a"), np.array(factors.a))
            np.testing.assert_array_equal(file.get_tensor(f"{path}.lora_b"), np.array(factors.b))
    assert config_of(tmp_path) == {
        "fine_tune_type": "lora",
        "model": "some/model",
        "num_layers": 2,
        "lora_parameters": {
            "rank": RANK,
            "scale": 2,
            "dropout": 0.05,
            "keys": ["self_attn.q_proj", "self_attn.v_proj"],
        },
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    halves = random_factors(dtype=mx.bfloat16)
    mlx_lm.save(tmp_path, random_adapter(halves))
    found = mlx_lm.load(tmp_path)
    assert (found.rank, found.scale, found.alpha, found.dropout) == (RANK, SCALE, SCALE * RANK, 0.05)
    assert (found.targets, found.base_model, found.format) == (("q_proj", "v_proj"), "some/model", Format.MlxLm)
    assert same_factors(found.factors, halves)


@pytest.mark.parametrize(
    ("layers", "num_layers", "written", "chosen"),
    [
        ((0, 1), 2, 2, None),
        ((2, 3), 4, 2, (2, 3)),
        ((2, 3), None, -1, (2, 3)),
        ((0, 2), 4, -1, (0, 2)),
        ((0, 1), 4, -1, (0, 1)),
    ],
)
def test_num_layers_counts_from_the_last_block(
    tmp_path: Path, layers: tuple[int, ...], num_layers: int | None, written: int, chosen: tuple[int, ...] | None
) -> None:
    limited = None if layers == (0, 1) and num_layers == 2 else layers
    mlx_lm.save(tmp_path, random_adapter(random_factors(layers=layers), layers=limited), num_layers)
    assert config_of(tmp_path)["num_layers"] == written
    assert mlx_lm.load(tmp_path).chosen_layers(num_layers) == chosen


def test_smaller_ranks_are_padded_with_zeros(tmp_path: Path) -> None:
    factors = random_factors(ranks={Q0: 2})
    said = mlx_lm.save(tmp_path, random_adapter(factors))
    assert said.notes == ("1 of 4 modules padded with zeros to rank 4",)
    found = mlx_lm.load(tmp_path).factors[Q0]
    assert mx.array_equal(found.a, mx.concatenate([factors[Q0].a, mx.zeros((32, 2))], axis=1))
    assert mx.array_equal(found.b, mx.concatenate([factors[Q0].b, mx.zeros((2, 32))]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_scales_that_are_powers_of_two_apart_go_into_b_exactly(tmp_path: Path, dtype: mx.Dtype) -> None:
    factors = random_factors(scales={Q0: SCALE / 8, V0: SCALE * 4}, dtype=dtype)
    said = mlx_lm.save(tmp_path, random_adapter(factors))
    assert said.notes == ("the scales of 2 modules are in their B, exactly (by powers of two)",)
    found = mlx_lm.load(tmp_path).factors
    assert {each.scale for each in found.values()} == {SCALE}
    assert mx.array_equal(found[Q0].b * 8, factors[Q0].b)
    assert mx.array_equal(found[V0].b, factors[V0].b * 4)


def test_other_scales_are_refused_or_rounded_once(tmp_path: Path) -> None:
    factors = random_factors(scales={Q0: SCALE / 3})
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        mlx_lm.save(tmp_path, random_adapter(factors))
    assert f"{Q0} has scale 0.666667, others 2; mlx-lm holds one for all" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    said = mlx_lm.save(tmp_path, random_adapter(factors), fold_scales=True)
    assert said.notes == ("the scales of 1 modules are in their B, rounded once in F32",)
    exact = np.array(factors[Q0].b).astype(np.float64) / 3
    # half a unit in the last place of float32
    np.testing.assert_allclose(np.array(mlx_lm.load(tmp_path).factors[Q0].b), exact, rtol=2.0**-23, atol=0)


def test_a_module_outside_the_blocks_is_refused(tmp_path: Path) -> None:
    factors = random_factors()
    factors["lm_head"] = factors[Q0]
    with pytest.raises(CheckpointError.InvalidFormat, match="lm_head stands outside the blocks"):
        mlx_lm.save(tmp_path, random_adapter(factors))


def test_an_adapter_of_peft_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError.SaveFailed, match="an adapter of another format; give another folder"):
        mlx_lm.save(tmp_path, random_adapter())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_model.safetensors"]


# --- reading ----------------------------------------------------------------------------------


def test_the_fewest_fields_and_no_keys(tmp_path: Path) -> None:
    mlx_lm.save(tmp_path, random_adapter())
    fields = {"num_layers": -1, "lora_parameters": {"rank": RANK, "scale": 20.0}}
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    found = mlx_lm.load(tmp_path)
    assert (found.scale, found.dropout, found.targets) == (20.0, 0.0, None)
    assert found.target_names() == ("q_proj", "v_proj")


def test_an_alpha_that_agrees_with_the_scale(tmp_path: Path) -> None:
    mlx_lm.save(tmp_path, random_adapter())
    change_config(tmp_path, lambda c: c["lora_parameters"].update(alpha=SCALE * RANK))
    assert mlx_lm.load(tmp_path).scale == SCALE


def lora(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["lora_parameters"].update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(fine_tune_type="dora"), "fine_tune_type is 'dora', which is not supported; takes 'lora'"),
        (lambda c: c.update(fine_tune_type="full"), "fine_tune_type is 'full', which is not supported"),
        (lambda c: c.pop("lora_parameters"), "lora_parameters is None; takes an object"),
        (lambda c: c.pop("num_layers"), "num_layers is missing; takes a number of blocks, or -1 for all"),
        (lambda c: c.update(num_layers=1), "factors for blocks 0 to 1, adapter_config.json says num_layers 1"),
        (lora(rank=0), "lora_parameters.rank is 0; takes an integer above 0"),
        (lora(rank=8), "lora_a is (32, 4), adapter_config.json asks for rank 8: (in, 8)"),
        (lora(scale=None), "lora_parameters.scale is missing; takes a number above 0"),
        (lora(scale=None, alpha=8), "has an alpha and no scale; mlx-lm multiplies by the scale alone"),
        (lora(scale=10.0, alpha=16), "alpha 16 over rank 4 is 4, scale is 10: they contradict each other"),
        (lora(scale=-1.0), "lora_parameters.scale is -1.0; takes a number above 0"),
        (lora(dropout=2), "lora_parameters.dropout is 2; takes 0 <= dropout < 1"),
        (lora(keys="q_proj"), "lora_parameters.keys is 'q_proj'; takes a list"),
        (lora(keys=["self_attn.q_proj"]), f"{V0} has factors, but adapter_config.json lists self_attn.q_proj"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, change: Callable[[Any], object], says: str) -> None:
    mlx_lm.save(tmp_path, random_adapter())
    change_config(tmp_path, change)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        mlx_lm.load(tmp_path)
    assert says in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"{Q0}.lora_b"), f"{Q0} has lora_A but no lora_B"),
        (lambda t: t.update({f"{Q0}.m": mx.ones(32)}), f"tensor {Q0}.m is a magnitude of DoRA, which is not supported"),
        (lambda t: t.update({f"{Q0}.lora_b": mx.ones((3, 32))}), "lora_b is (3, 32)"),
        (lambda t: t.update({f"{Q0}.weight": mx.ones((32, 32))}), "is a whole weight"),
        (lambda t: t.clear(), "holds no LoRA factors"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[Any], object], says: str) -> None:
    mlx_lm.save(tmp_path, random_adapter())
    change_tensors(tmp_path / mlx_lm.WEIGHTS, change)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        mlx_lm.load(tmp_path)
    assert says in str(raised.value)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    def says() -> str:
        with pytest.raises(CheckpointError.LoadFailed) as raised:
            mlx_lm.load(tmp_path / "adapter")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "no such adapter folder" in says()
    mlx_lm.save(tmp_path / "adapter", random_adapter())
    file = tmp_path / "adapter" / mlx_lm.WEIGHTS
    whole = file.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert str(file) in says()
    file.unlink()
    assert "no adapters.safetensors; an mlx-lm adapter has" in says()
