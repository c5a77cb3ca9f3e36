"""Adapters in any format: recognised by content, converted bit for bit, loaded whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle.error import CheckpointError
from metal_candle.formats import safetensors
from metal_candle.models.load import load_model
from metal_candle.tensor.eager import Tensor
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule
from metal_candle.training.formats import metal_candle, mlx_lm, peft
from metal_candle.training.formats.folder import CONFIG
from metal_candle.training.formats.recognise import base_model, read, recognise, write
from metal_candle.training.formats.stored import Factors, Format, alpha_for, block_of

import mlx.core as mx
import numpy as np
import pytest
from adapters import RANK, SCALE, SIZES, change_config, change_tensors, random_adapter, random_factors, same_factors
from hypothesis import given
from hypothesis import strategies as st

Q0, V0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
Folder = Callable[..., Path]


def target(folder: Path, format: str) -> Path:
    return folder / (f"{format}.safetensors" if format == "metal-candle" else format)


# --- numbers ----------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6), st.integers(1, 512))
def test_alpha_gives_the_scale_back(scale: float, rank: int) -> None:
    assert math.isclose(alpha_for(scale, rank) / rank, scale, rel_tol=2.0**-52)


def test_alpha_gives_scales_of_whole_alphas_back_exactly() -> None:
    for rank in range(1, 257):
        for alpha in (1, 7, 16, 0.3):
            assert alpha_for(alpha / rank, rank) / rank == alpha / rank


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_norm_is_that_of_the_product(dtype: mx.Dtype) -> None:
    for factors in random_factors(tuple(SIZES), dtype=dtype).values():
        a, b = (np.array(each.astype(mx.float32)).astype(np.float64) for each in (factors.a, factors.b))
        # double precision on both sides
        assert math.isclose(factors.norm(), np.linalg.norm(factors.scale * (a @ b)), rel_tol=1e-12)


def test_the_norm_of_what_is_not_finite_is_no_number() -> None:
    factors = random_factors()[Q0]
    for wrong in (math.inf, math.nan):
        assert math.isnan(replace(factors, b=mx.full(factors.b.shape, wrong)).norm())


def test_blocks_of_paths() -> None:
    assert block_of("model.layers.12.self_attn.q_proj") == (12, "self_attn.q_proj")
    assert block_of("transformer.h.3.attn.c_attn") == (3, "attn.c_attn")
    assert block_of("model.layers.2.mlp.experts.1.up") == (2, "mlp.experts.1.up")
    assert block_of("lm_head") == (None, "lm_head")


# --- metal-candle's file ----------------------------------------------------------------------


def test_names_shapes_and_header_are_metal_candles(tmp_path: Path) -> None:
    adapter = random_adapter(random_factors(("self_attn.q_proj", "mlp.down_proj")))
    metal_candle.save(tmp_path / "a.safetensors", adapter, {metal_candle.METADATA: "{}"})
    header = safetensors.read_header(tmp_path / "a.safetensors")
    assert {name: info.shape for name, info in header.tensors.items()} == {
        f"layers.{layer}.{name}": shape
        for layer in range(2)
        for name, shape in {
            "q_proj.lora_a": (32, RANK),
            "q_proj.lora_b": (RANK, 32),
            "down_proj.lora_a": (64, RANK),
            "down_proj.lora_b": (RANK, 32),
        }.items()
    }
    assert header.metadata[metal_candle.METADATA] == "{}"
    assert json.loads(header.metadata[metal_candle.HEADER]) == {
        "rank": RANK,
        "alpha": 8.0,
        "scale": 2.0,
        "dropout": 0.05,
        "target_modules": ["down_proj", "q_proj"],
        "layers": None,
        "base_model": "some/model",
        "ranks": {},
        "scales": {},
    }


def test_a_file_of_the_crate_needs_its_alpha(tmp_path: Path) -> None:
    file = tmp_path / "step_100.bin"  # the name says nothing
    factors = random_factors()
    safetensors.save(file, metal_candle.tensors_of(random_adapter(factors)), {metal_candle.METADATA: "{}"})
    with pytest.raises(CheckpointError.InvalidFormat, match=r"does not say its alpha, .* give it \(alpha=16\.0"):
        read(file)
    found = read(file, alpha=8.0)
    assert (found.rank, found.scale, found.targets, found.format) == (RANK, 2.0, None, Format.MetalCandle)
    assert same_factors(found.factors, factors)
    change_tensors(file, lambda t: t.update({"layers.0.q_proj.lora_a": mx.ones((32, 2))}))
    with pytest.raises(CheckpointError.InvalidFormat, match=r"lora_a is \(32, 2\), lora_b \(4, 32\)"):
        read(file, alpha=8.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 8, "scale": 1.0}, "layers.0.q_proj has rank 4, adapter_config says 8"),
        ({"alpha": -1}, "adapter_config.alpha is -1; takes a number above 0"),
        ({"alpha": 16}, "adapter_config contradicts itself: alpha 16 over rank 4 is 4, scale is 2"),
        ({"ranks": {"layers.0.q_proj": 2}}, "layers.0.q_proj has rank 4, adapter_config says 2"),
        ({"scales": {"layers.9.q_proj": 2.0}}, "adapter_config.scales names layers.9.q_proj, which has no factors"),
        ({"scales": [2.0]}, "adapter_config.scales is [2.0]; takes an object"),
        ({"target_modules": ["q_proj"]}, f"{V0} has factors, but it says it adapts q_proj"),
        ({"layers": [1]}, f"{Q0} has factors, but it says it adapts the layers 1"),
    ],
)
def test_headers_that_contradict_the_tensors(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = tmp_path / "a.safetensors"
    adapter = random_adapter()
    config = json.loads(metal_candle.header_of(adapter)[metal_candle.HEADER])
    header = {metal_candle.HEADER: json.dumps({**config, **change})}
    safetensors.save(file, metal_candle.tensors_of(adapter), header)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        read(file)
    assert says in str(raised.value)
    assert str(file) in str(raised.value)


# --- recognised by content --------------------------------------------------------------------


@pytest.mark.parametrize("format", list(Format)[:3])
def test_the_format_is_in_the_tensors_and_not_in_the_name(tmp_path: Path, format: Format) -> None:
    adapter = random_adapter()
    place = target(tmp_path, format.value)
    write(place, adapter, format)
    assert (recognise(place).format, base_model(place)) == (format, "some/model")
    assert same_factors(read(place).factors, adapter.factors)
    if place.is_dir():
        file = next(place.glob("*.safetensors"))
        assert same_factors(read(file).factors, adapter.factors)
        renamed = file.rename(place / "0000100_weights.safetensors")
        for each in (place, renamed):
            found = read(each)
            assert (found.format, found.scale) == (format, SCALE)
            assert same_factors(found.factors, adapter.factors)
    with pytest.raises(CheckpointError.InvalidFormat, match=r"says alpha 8.*and 3 was given; leave it out"):
        read(place, alpha=3.0)


def test_a_folder_with_two_adapters_is_ambiguous(tmp_path: Path) -> None:
    peft.save(tmp_path, random_adapter())
    (tmp_path / "adapters.safetensors").touch()
    with pytest.raises(
        CheckpointError.InvalidFormat, match=r"holds adapter_model.safetensors and adapters.safetensors"
    ):
        read(tmp_path)
    (tmp_path / "adapters.safetensors").unlink()
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "one.safetensors")
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError.InvalidFormat, match=r"holds 2 safetensors files, one.safetensors first"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_llama.a0.weight": (4, 8), "lora_llama.b0.weight": (8, 4)}, "is candle-lora's format, which is not"),
        (
            {"model.layers.0.self_attn.q_proj.weight": (8, 8)},
            "is a whole weight (modules_to_save, or full fine-tuning)",
        ),
        ({"model.layers.0.self_attn.q_proj.m": (8,)}, "is a magnitude of DoRA"),
        ({"x": (1,)}, "is no LoRA adapter of PEFT, mlx-lm or metal-candle: tensor x is not a LoRA factor"),
        ({}, "holds no LoRA factors"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, tensors: dict[str, tuple[int, ...]], says: str) -> None:
    file = tmp_path / "file.safetensors"
    safetensors.save(file, {name: mx.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        read(file)
    assert says in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_full_fine_tuning_of_mlx_lm_is_refused_by_name(tmp_path: Path) -> None:
    mlx_lm.save(tmp_path, random_adapter())
    safetensors.save(tmp_path / mlx_lm.WEIGHTS, {f"{Q0}.weight": mx.ones((32, 32))})
    change_config(tmp_path, lambda config: config.update(fine_tune_type="full"))
    with pytest.raises(CheckpointError.InvalidFormat, match="fine_tune_type is 'full', which is not supported"):
        read(tmp_path)


@pytest.mark.parametrize("start", [b"GGUF\3\0\0\0", b"PK\3\4rest", b"\x80\x02rest", b"", b"\0" * 20, b"{}"])
def test_files_that_are_no_safetensors(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "file").write_bytes(start)
    with pytest.raises(CheckpointError) as raised:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError.LoadFailed, match=r"none: no such adapter; takes a folder or a \.safetensors file"
    ):
        read(tmp_path / "none")
    with pytest.raises(
        CheckpointError.InvalidFormat, match="adapter format 'lora' does not exist; takes peft, mlx-lm,"
    ):
        write(tmp_path / "none", random_adapter(), "lora")


# --- from one to the other --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("layers", [(0, 1), (1, 2)])
def test_a_chain_of_conversions_changes_no_bit(tmp_path: Path, dtype: mx.Dtype, layers: tuple[int, ...]) -> None:
    factors = random_factors(tuple(SIZES), layers, scales=None, dtype=dtype)
    limited = None if layers == (0, 1) else layers
    adapter = random_adapter(factors, layers=limited)
    for number, format in enumerate(["peft", "mlx-lm", "metal-candle", "peft", "metal-candle", "mlx-lm", "peft"]):
        place = target(tmp_path / str(number), format)
        write(place, adapter, format)
        adapter = read(place)
        assert adapter.format is Format(format)
        assert same_factors(adapter.factors, factors)
        assert (adapter.rank, adapter.scale, adapter.dropout) == (RANK, SCALE, 0.05)
        assert (adapter.targets, adapter.base_model) == (tuple(sorted(n.split(".")[1] for n in SIZES)), "some/model")
        assert adapter.chosen_layers() == limited
    first, last = ((tmp_path / str(number) / "peft") for number in (0, 6))
    assert (first / peft.WEIGHTS).read_bytes() == (last / peft.WEIGHTS).read_bytes()
    assert (first / CONFIG).read_bytes() == (last / CONFIG).read_bytes()


def test_ranks_and_scales_of_modules_survive_where_they_can(tmp_path: Path) -> None:
    factors = random_factors(ranks={Q0: 2}, scales={V0: 16 / math.sqrt(3)})
    for format in ("peft", "metal-candle"):
        place = target(tmp_path, format)
        write(place, random_adapter(factors), format)
        assert same_factors(read(place).factors, factors)


def test_a_rank_stabilised_adapter_keeps_its_scale_in_every_format(tmp_path: Path) -> None:
    peft.save(tmp_path / "start", random_adapter())
    for alpha in (5.0, 7):
        change_config(tmp_path / "start", lambda config: config.update(lora_alpha=alpha, use_rslora=True))  # noqa: B023
        stored = read(tmp_path / "start")
        assert stored.notes == ("rank-stabilised scale",)
        for format in ("mlx-lm", "metal-candle", "peft"):
            write(target(tmp_path, format), stored, format)
            assert {each.scale for each in read(target(tmp_path, format)).factors.values()} == {alpha / 2}


# --- in and out of a model --------------------------------------------------------------------


@pytest.fixture
def model(tiny_model_dir: Folder) -> Any:
    return load_model(tiny_model_dir()).model


def trained(model: Any, config: LoRAAdapterConfig) -> LoRAAdapter:
    """An adapter whose B is not zero."""
    adapter = LoRAAdapter.for_model(model, config)
    for number, path in enumerate(adapter.paths()):
        layer = adapter.layer_at(path)
        assert layer is not None
        b = mx.random.normal(layer.lora_b().shape, scale=0.3, key=mx.random.key(number))
        layer.lora_b().set(Tensor.from_mlx(b))
    return adapter


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
def test_an_adapter_goes_out_and_in(tmp_path: Path, model: Any, format: str) -> None:
    config = LoRAAdapterConfig(3, 5.0, 0.1, (TargetModule.KProj, TargetModule.DownProj))
    adapter = trained(model, config)
    adapter.save(target(tmp_path, format), "some/model", format)
    again = LoRAAdapter.load(target(tmp_path, format), model)
    assert again.paths() == adapter.paths()
    assert again.config() == config
    assert same_factors(again.stored().factors, adapter.stored().factors)
    assert again.report() == adapter.report()


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_what_one_thread_reads_another_may_use(tmp_path: Path, model: Any, format: str, dtype: mx.Dtype) -> None:
    """MLX leaves what is not computed to the thread that recorded it."""
    factors = random_factors(dtype=dtype)
    write(target(tmp_path, format), random_adapter(factors), format)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(read, target(tmp_path, format)).result()
        adapter = pool.submit(LoRAAdapter.load, target(tmp_path, format), model).result()
    assert same_factors(found.factors, factors)
    assert math.isclose(adapter.report().norm, math.hypot(*(each.norm() for each in factors.values())))


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
def test_a_file_is_the_one_that_was_recognised(tmp_path: Path, format: str) -> None:
    """A run saves while somebody loads: the numbers belong to the header that was checked."""
    first, second = random_factors(seed=1), random_factors(seed=2)
    place = target(tmp_path, format)
    write(place, random_adapter(first), format)
    found = recognise(place)
    write(place, random_adapter(second), format)
    load = {"peft": peft.load, "mlx-lm": mlx_lm.load}.get(format)
    kept = metal_candle.load(found.file) if load is None else load(place, found.file)
    assert same_factors(kept.factors, first)
    assert same_factors(read(place).factors, second)


def test_a_file_that_is_cut_short_meanwhile_is_refused(tmp_path: Path) -> None:
    peft.save(tmp_path, random_adapter())
    found = recognise(tmp_path)
    with found.weights.open("r+b") as file:
        file.truncate(found.weights.stat().st_size - 4)
    with pytest.raises(CheckpointError.LoadFailed, match="cut short since the file was opened"):
        peft.load(tmp_path, found.file)


def test_modules_keep_their_ranks_and_scales_through_an_adapter(tmp_path: Path, model: Any) -> None:
    factors = random_factors(ranks={Q0: 2}, scales={V0: 0.7})
    peft.save(tmp_path / "a", random_adapter(factors))
    LoRAAdapter.load(tmp_path / "a", model).save(tmp_path / "b")
    assert same_factors(read(tmp_path / "b").factors, factors)


def test_the_report_says_layers_and_norms(tmp_path: Path, model: Any) -> None:
    peft.save(tmp_path, random_adapter(random_factors(layers=(1,)), layers=(1,)))
    adapter = LoRAAdapter.load(tmp_path, model)
    report = adapter.report(model)
    places = {place.path: place for place in model.projections()}
    for change in report.modules:
        layer = adapter.layer_at(change.path)
        assert layer is not None
        delta, weight = layer.delta_weight().numpy(), places[change.path].dense_weight().numpy()
        # float32 against double
        assert math.isclose(change.norm, np.linalg.norm(delta), rel_tol=1e-5)
        assert change.weight_norm is not None
        assert math.isclose(change.weight_norm, np.linalg.norm(weight), rel_tol=1e-5)
    assert (report.layers, report.num_layers, len(report.changed)) == ((1,), 2, 2)
    assert str(adapter.report()).startswith("changes 1 of 2 layers, 2 modules: norm of the deltas ")
    assert str(report).endswith(" % of the weights'")
    assert math.isclose(report.norm, math.hypot(*(change.norm for change in report.modules)))
    fresh = LoRAAdapter.for_model(model, LoRAAdapterConfig(2))
    assert str(fresh.report()) == "changes nothing: B is zero in all 4 modules"


def test_an_adapter_that_picks_modules_keeps_the_choice(tmp_path: Path, model: Any) -> None:
    """q of block 0 and v of block 1, as a regular expression may choose."""
    factors = random_factors()
    picked = {path: factors[path] for path in (Q0, V0.replace("0", "1"))}
    peft.save(tmp_path / "a", random_adapter(picked))
    expression = r".*\.(0\.self_attn\.q_proj|1\.self_attn\.v_proj)"
    change_config(tmp_path / "a", lambda config: config.update(target_modules=expression))
    adapter = LoRAAdapter.load(tmp_path / "a", model)
    assert adapter.paths() == list(picked)
    for format in ("peft", "mlx-lm", "metal-candle"):
        place = target(tmp_path / "b", format)
        adapter.save(place, format=format)
        assert LoRAAdapter.load(place, model).paths() == list(picked)


MISFITS: list[tuple[dict[str, Factors], str]] = [
    (random_factors(layers=(0, 1, 2)), "this one has no model.layers.2.self_attn.q_proj"),
    (random_factors(layers=(0,)), "it spans 1 layers, this one has 2"),
    (
        {**random_factors(), Q0: Factors(mx.ones((48, RANK)), mx.ones((RANK, 48)), SCALE)},
        f"{Q0} maps 48 to 48 there, 32 to 32 here",
    ),
]


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
@pytest.mark.parametrize(("factors", "says"), MISFITS)
def test_an_adapter_of_another_model_names_the_first_misfit(
    tmp_path: Path, model: Any, format: str, factors: dict[str, Factors], says: str
) -> None:
    write(target(tmp_path, format), random_adapter(factors), format)
    with pytest.raises(CheckpointError.InvalidFormat) as raised:
        LoRAAdapter.load(target(tmp_path, format), model)
    assert f"the adapter is for another model: {says}" in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("format", ["peft", "mlx-lm", "metal-candle"])
def test_lost_factors_and_numbers_that_are_none_are_refused(tmp_path: Path, model: Any, format: str) -> None:
    factors = random_factors()
    lost = target(tmp_path / "lost", format)
    write(lost, random_adapter(factors), format)

    def lose(tensors: dict[str, mx.array]) -> None:
        for name in [name for name in tensors if "0" in name and "v_proj" in name]:
            del tensors[name]

    change_tensors(recognise(lost).weights, lose, keep_header=True)
    with pytest.raises(CheckpointError.InvalidFormat, match=rf"adapts q_proj, v_proj, but holds no factors for {V0}"):
        LoRAAdapter.load(lost, model)
    for number in (math.nan, math.inf):
        factors[V0] = Factors(factors[V0].a, mx.full((RANK, 16), number), SCALE)
        write(target(tmp_path / str(number), format), random_adapter(factors), format)
        with pytest.raises(
            CheckpointError.InvalidFormat, match=f"the factors of {V0} hold numbers that are not finite"
        ):
            LoRAAdapter.load(target(tmp_path / str(number), format), model)


def test_the_last_blocks_of_mlx_lm_are_those_of_this_model(tmp_path: Path, tiny_model_dir: Folder) -> None:
    mlx_lm.save(tmp_path, random_adapter(random_factors(layers=(1, 2))), num_layers=3)
    four, three = (load_model(tiny_model_dir(num_hidden_layers=count)).model for count in (4, 3))
    with pytest.raises(CheckpointError.InvalidFormat, match="it spans 3 layers, this one has 4"):
        LoRAAdapter.load(tmp_path, four)
    assert len(LoRAAdapter.load(tmp_path, three).paths()) == 4
