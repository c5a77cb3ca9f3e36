"""Bases that stay quantised: exactly the numbers of their floats, less memory, the same losses and gradients."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.error import ModelError, UnexpectedShapeError
from metal_candle.formats import safetensors
from metal_candle.models import LoadedModel, load_model
from metal_candle.models.decoder import Decoder
from metal_candle.models.quantization import Packer, described
from metal_candle.models.quantize_options import QuantizeOptions
from metal_candle.models.save import save_model
from metal_candle.nn.quantized_linear import QuantizedLinear, QuantizedWeight
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import Types, metadata, write_gguf
from quantised_folders import SIZES, quantised_folder

ModelDir = Callable[..., Path]
IDS = [1, 9, 20, 33, 7, 7, 41]
# The same numbers multiplied in another order: float32's rounding of logits of about 1.
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def gguf_of(tmp_path: Path, tiny_metadata: dict[str, Any]) -> Callable[..., Path]:
    """A function that writes a folder as a GGUF that ``load_model`` takes."""

    return lambda folder, kind: write_gguf(tmp_path / "model.gguf", folder, kind, metadata(tiny_metadata))


def table_of_8_bits(name: str) -> Types:
    """What SmolLM2's file has."""
    return Types.Q8_0 if "token_embd" in name else Types.Q4_1


def logits(model: Any) -> Any:
    return model.forward(LazyTensor.new(np.array([IDS], np.uint32))).numpy()


def losses_and_gradients(model: Any) -> list[Any]:
    """Losses of every position, and the gradients of an adapter that acts in all projections."""
    Device.default().set_seed(3)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, tuple(TargetModule)))
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.randn(0.0, 0.1, layer.lora_b().shape))
    model.apply_adapter(adapter)
    ids = Tensor.new(np.array([IDS], np.uint32))
    rows = Tensor.new(np.arange(len(IDS) - 1, dtype=np.uint32))
    losses = model.row_losses(ids, rows, Tensor.new(np.array(IDS[1:], np.uint32)))
    grads = losses.mean_all().backward()
    model.remove_adapter()
    return [losses.numpy(), *(grads[var].numpy() for var in adapter.trainable_variables())]


def assert_same_training(quantised: Any, dense: Any) -> None:
    for got, wanted in zip(losses_and_gradients(quantised), losses_and_gradients(dense)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def numbers(model: Decoder) -> dict[str, Any]:
    """Every weight as floats."""
    quantised = model.quantized_weights()
    parts = {part for name, weight in quantised.items() for part in weight.tensors(name)}
    found = {name: tensor.numpy() for name, tensor in model.weights().items() if name not in parts}
    return {**found, **{name: weight.dequantize().numpy() for name, weight in quantised.items()}}


def assert_same_numbers(one: Decoder, other: Decoder) -> None:
    found, wanted = numbers(one), numbers(other)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# --- GGUF -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("Q4_0", "llama"), ("Q5_0", "llama"), ("Q5_1", "qwen2"), ("Q8_0", "qwen2"), ("mixed", "llama")],
)
def test_a_gguf_stays_as_it_is(
    tiny_model_dir: ModelDir, gguf_of: Callable[..., Path], kind: str, model_type: str
) -> None:
    folder = tiny_model_dir(model_type, tie_word_embeddings=model_type == "llama", **SIZES)
    path = gguf_of(folder, table_of_8_bits if kind == "mixed" else getattr(Types, kind))
    dense, kept = load_model(path), load_model(path, quantize="keep")
    assert dense.note == ""
    assert not dense.model.quantized_weights()
    assert len(kept.model.quantized_weights()) == (15 if model_type == "llama" else 16)
    assert {weight.group_size for weight in kept.model.quantized_weights().values()} == {32}
    assert_same_numbers(kept.model, dense.model)
    assert kept.model.num_parameters() == dense.model.num_parameters()
    np.testing.assert_allclose(logits(kept.model), logits(dense.model), **NEAR)
    if kind == "mixed":
        bits = [weight.bits for weight in kept.model.quantized_weights().values()]
        assert sorted(set(bits)) == [4, 8]
        assert_same_training(kept.model, dense.model)


def test_a_projection_answers_for_its_weight(tiny_model_dir: ModelDir, gguf_of: Callable[..., Path]) -> None:
    path = gguf_of(tiny_model_dir(**SIZES), Types.Q4_0)
    kept, dense = (load_model(path, quantize=wish).model for wish in ("keep", "dense"))
    for one, other in zip(kept.projections(), dense.projections()):
        assert isinstance(one.linear, QuantizedLinear)
        assert (one.path, one.in_features, one.out_features) == (other.path, other.in_features, other.out_features)
        np.testing.assert_array_equal(one.dense_weight().numpy(), other.dense_weight().numpy())


def test_bits_quantise_what_has_more(tiny_model_dir: ModelDir, gguf_of: Callable[..., Path]) -> None:
    def kind(name: str) -> Types:
        return Types.Q4_1 if "attn" in name else Types.F16 if "down" in name else Types.Q8_0

    model = load_model(gguf_of(tiny_model_dir(**SIZES), kind), quantize=4, group_size=128).model
    found = {name.split(".")[-2]: weight.packing() for name, weight in model.quantized_weights().items()}
    kept, anew = (4, 32, "affine"), (4, 128, "affine")
    assert found == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), kept),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), anew),
    }, "the table has more bits, but is an embedding"


def test_what_mlx_cannot_hold_is_named() -> None:
    packer = Packer(QuantizeOptions("keep"), DType.F32, Device.default())
    rows = np.zeros((2, 210), np.uint8)
    assert packer.from_blocks("lm_head.weight", rows, "Q6_K") is None
    assert packer.from_blocks("model.layers.0.input_layernorm.weight", rows, "F32") is None
    kept = packer.from_blocks("model.layers.0.mlp.up_proj.weight", np.zeros((2, 144), np.uint8), "Q4_K")
    assert kept.packing() == (4, 32, "affine")
    assert tuple(kept.shape) == (2, 256)
    assert described([], packer.widened, DType.F32) == (
        "widened to f32, as MLX has no such blocks: lm_head.weight Q6_K"
    )


@pytest.fixture
def measured_peak() -> Callable[[Callable[[], Any]], int]:
    """A function that runs another and gives the most bytes that MLX held meanwhile, beyond those before."""

    def measure(run: Callable[[], Any]) -> int:
        gc.collect()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        held = run()
        peak = mx.get_peak_memory() - before
        del held
        return int(peak)

    return measure


def test_loading_never_widens_all(
    tiny_model_dir: ModelDir, gguf_of: Callable[..., Path], measured_peak: Callable[..., int]
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, "num_hidden_layers": 6}
    folder = tiny_model_dir(**sizes)
    path = gguf_of(folder, Types.Q4_0)
    dense = measured_peak(lambda: load_model(path))
    # 4 bits and half a bit of scale and bias each, of 32; and MLX holds no tensor of them twice.
    assert measured_peak(lambda: load_model(path, quantize="keep")) < 0.18 * dense
    # One float weight beside what is quantised, of 43.
    assert measured_peak(lambda: load_model(folder, quantize=4)) < 0.3 * dense


# --- folders that MLX quantised ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [
        *[(bits, 64, "affine") for bits in (2, 3, 4, 5, 6, 8)],
        (4, 32, "affine"),
        (4, 128, "affine"),
        (4, 32, "mxfp4"),
        (8, 32, "mxfp8"),
        (4, 16, "nvfp4"),
    ],
)
def test_a_folder_of_mlx(tiny_model_dir: ModelDir, bits: int, group: int, mode: str) -> None:
    folder = quantised_folder(tiny_model_dir(**SIZES), bits, group, mode)
    kept, dense = load_model(folder), load_model(folder, quantize="dense")
    assert {weight.packing() for weight in kept.model.quantized_weights().values()} == {(bits, group, mode)}
    assert len(kept.model.quantized_weights()) == 15
    assert not dense.model.quantized_weights()
    assert dense.model.config.quantization is None
    assert_same_numbers(kept.model, dense.model)
    np.testing.assert_allclose(logits(kept.model), logits(dense.model), **NEAR)
    if (bits, group) in ((3, 64), (4, 128)) or mode == "mxfp4":
        assert_same_training(kept.model, dense.model)


def test_layers_with_packings_of_their_own_and_half_scales(tiny_model_dir: ModelDir) -> None:
    own: dict[str, Any] = {"down_proj": (8, 32), "embed_tokens": (6, 128)}
    folder = quantised_folder(tiny_model_dir(**SIZES), 4, 64, dtype=mx.bfloat16, **own)
    loaded = load_model(folder, quantize="keep")
    found = {name.split(".")[-2]: weight for name, weight in loaded.model.quantized_weights().items()}
    assert (found["down_proj"].packing(), found["embed_tokens"].packing()) == ((8, 32, "affine"), (6, 128, "affine"))
    assert found["q_proj"].scales.dtype is DType.BF16
    assert loaded.note == (
        "12 weights in 4 bits (groups of 64); 1 weight in 6 bits (groups of 128); 2 weights in 8 bits (groups of 32)"
    )
    assert_same_numbers(loaded.model, load_model(folder, quantize="dense").model)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_halves(tiny_model_dir: ModelDir, dtype: str) -> None:
    folder = quantised_folder(tiny_model_dir(**SIZES), dtype=getattr(mx, {"bf16": "bfloat16", "f16": "float16"}[dtype]))
    half = logits(load_model(folder, dtype).model)
    np.testing.assert_allclose(half, logits(load_model(folder).model), atol=0.05)


# --- quantised while loading ------------------------------------------------------------------


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.5), (8, 0.02)])
def test_floats_are_quantised(tiny_model_dir: ModelDir, bits: int, tolerance: float, embeddings: bool) -> None:
    folder = tiny_model_dir("qwen3", tie_word_embeddings=False, **SIZES)
    floats, model = load_model(folder).model, load_model(folder, quantize=bits, quantize_embeddings=embeddings).model
    held = model.quantized_weights()
    assert ("lm_head.weight" in held) == ("model.embed_tokens.weight" in held) == embeddings
    assert len(held) == 14 + 2 * embeddings
    name = "model.layers.1.mlp.up_proj.weight"
    parts = mx.quantize(floats.weights()[name].mlx(), group_size=64, bits=bits)
    for part, wanted in zip(held[name].parts(), parts):
        np.testing.assert_array_equal(part.numpy(), np.array(wanted))
    assert 0 < np.abs(logits(model) - logits(floats)).max() < tolerance * np.abs(logits(floats)).max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"quantize": "nf4"}, "quantize is 'nf4'; takes bits, 'keep', 'dense' or None"),
        ({"quantize": True}, "quantize is True; takes bits, 'keep', 'dense' or None"),
        ({"quantize": 7}, "quantize: got bits 7; takes 2, 3, 4, 5, 6 or 8"),
        ({"quantize": 4, "group_size": 48}, "quantize: got group_size 48; takes 32, 64 or 128"),
        ({"group_size": 32}, "group_size is for weights that are quantised while loading"),
        ({"quantize": "keep", "quantize_embeddings": True}, "quantize_embeddings is for weights that are quantised"),
        ({"quantize": "keep"}, "holds no quantised weights to keep; takes quantize 4 or 8"),
        (
            {"quantize": 8, "group_size": 128},
            "group_size 128 does not divide the rows of model.layers.0.mlp.down_proj.weight (32, 64), ",
        ),
    ],
)
def test_wishes_that_make_no_sense(tiny_model_dir: ModelDir, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError.InvalidConfig) as caught:
        load_model(tiny_model_dir(), **arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        (
            {"hidden_size": 32, "intermediate_size": 96},
            {"quantize": 4},
            "group_size 64 does not divide the rows of model.layers.0.mlp.down_proj.weight (32, 96), "
            "model.layers.0.mlp.gate_proj.weight (96, 32), ",
        ),
        ({"hidden_size": 32, "intermediate_size": 96}, {"quantize": 4}, "; takes 32"),
        (
            {"hidden_size": 64, "head_dim": 16, "intermediate_size": 192},
            {"quantize": 4, "group_size": 128},
            "; takes 32 or 64",
        ),
        ({"hidden_size": 64, "intermediate_size": 80}, {"quantize": 4}, "; no group size divides the rows of all"),
        (
            {"hidden_size": 16, "head_dim": 4, "intermediate_size": 64},
            {"quantize": 4, "quantize_embeddings": True},
            "; no group size divides the rows of all",
        ),
    ],
)
def test_the_groups_that_fit_are_named(
    tiny_model_dir: ModelDir, settings: dict[str, int], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError.InvalidConfig) as caught:
        load_model(tiny_model_dir(**settings), **arguments)
    said = str(caught.value)
    assert said.endswith(words) if words.startswith(";") else words in said


def test_a_wish_is_checked_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_candle.models.load.resolve", lambda *given: pytest.fail("fetched"))
    with pytest.raises(ModelError.InvalidConfig, match="got bits 7"):
        load_model("smollm2", quantize=7)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"bits": 8}, "does not fit what config.json says of its quantization"),
        ({"bits": 7}, "got bits 7; takes 2, 3, 4, 5, 6 or 8"),
        ({"group_size": 16}, "got group_size 16; takes 32, 64 or 128"),
        ({"mode": "nf4"}, "got mode 'nf4'; takes affine, mxfp4, mxfp8 or nvfp4"),
        ({"quant_method": "gptq"}, "quantization of method 'gptq' is not supported; takes MLX's"),
    ],
)
def test_a_config_that_does_not_fit(tiny_model_dir: ModelDir, entry: dict[str, Any], words: str) -> None:
    folder = quantised_folder(tiny_model_dir(**SIZES))
    config = json.loads((folder / "config.json").read_text())
    config["quantization"].update(entry)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert words in str(caught.value)


def test_folders_that_contradict_themselves(tiny_model_dir: ModelDir) -> None:
    folder = quantised_folder(tiny_model_dir(**SIZES))
    with pytest.raises(ModelError.InvalidConfig, match=r"is quantised already, its config\.json says so"):
        load_model(folder, quantize=4)
    config = json.loads((folder / "config.json").read_text())
    weights = safetensors.load_file(folder / "model.safetensors")
    mx.eval(weights)
    biases = weights.pop("model.layers.0.mlp.up_proj.biases")
    safetensors.save(folder / "model.safetensors", weights, safetensors.PT)
    with pytest.raises(ModelError.InvalidFormat, match=r"model.layers.0.mlp.up_proj.biases missing"):
        load_model(folder)
    weights["model.layers.0.mlp.up_proj.biases"] = biases
    weights["model.layers.9.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.layers.9.mlp.up_proj.scales"] = weights["model.layers.0.mlp.up_proj.scales"]
    weights["model.layers.9.mlp.up_proj.biases"] = biases
    safetensors.save(folder / "model.safetensors", weights, safetensors.PT)
    with pytest.raises(ModelError.InvalidFormat, match=r"has no place for: model.layers.9.mlp.up_proj.weight"):
        load_model(folder)
    del config["quantization"], config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError.InvalidConfig, match=r"scales is there, but config.json has no quantization"):
        load_model(folder)


def test_a_quantised_weight_of_another_shape(tiny_model_dir: ModelDir) -> None:
    folder = quantised_folder(tiny_model_dir(**SIZES))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ModelError.ShapeMismatch, match=r"model.layers.0.mlp.gate_proj.weight"):
        load_model(folder)


# --- saved ------------------------------------------------------------------------------------


def save(loaded: LoadedModel, folder: Path, **options: Any) -> Path:
    save_model(folder, loaded.model, loaded.tokenizer, **options)
    return folder


def test_saved_as_it_is(tiny_model_dir: ModelDir, gguf_of: Callable[..., Path], tmp_path: Path) -> None:
    path = gguf_of(tiny_model_dir(**SIZES), table_of_8_bits)
    loaded = load_model(path, quantize="keep")
    again = load_model(save(loaded, tmp_path / "saved"))
    assert again.note == loaded.note
    assert_same_numbers(again.model, loaded.model)
    entry = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization"]
    usual = {"group_size": 32, "mode": "affine"}
    assert entry == {"bits": 4, **usual, "model.embed_tokens": {"bits": 8, **usual}}
    half = load_model(save(loaded, tmp_path / "half", dtype="f16")).model
    for name, weight in loaded.model.quantized_weights().items():  # GGUF's scales are halves
        held = half.quantized_weights()[name]
        assert held.scales.dtype is DType.F16
        np.testing.assert_array_equal(held.dequantize().numpy(), weight.dequantize().numpy())
    widened = save(load_model(path), tmp_path / "widened")
    assert "quantization" not in json.loads((widened / "config.json").read_text())


def test_overrides_are_floats_or_quantised(tiny_model_dir: ModelDir, tmp_path: Path) -> None:
    loaded = load_model(tiny_model_dir(**SIZES), quantize=4)
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    place = next(place for place in loaded.model.projections() if f"{place.path}.weight" == second)
    assert isinstance(place.linear, QuantizedLinear)
    doubled = place.dense_weight() * 2.0
    overrides = {first: doubled, second: place.linear.quantized_weight().requantize(doubled)}
    model = load_model(save(loaded, tmp_path / "merged", overrides=overrides)).model
    assert first not in model.quantized_weights()
    np.testing.assert_array_equal(model.weights()[first].numpy(), doubled.numpy())
    assert model.quantized_weights()[second].packing() == (4, 64, "affine")
    # Half a step of 15 in a range of at most 2 · 0.4 · 2, and MLX's choice of a grid through 0.
    np.testing.assert_allclose(model.quantized_weights()[second].dequantize().numpy(), doubled.numpy(), atol=0.1)
    other = QuantizedWeight.quantize(Tensor.new(np.ones((4, 64), np.float32)))
    with pytest.raises(UnexpectedShapeError):
        save(loaded, tmp_path / "no", overrides={first: other})


# --- the real model ---------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_trains_as_if_it_were_widened(measured_peak: Callable[..., int]) -> None:
    found: dict[str, list[Any]] = {}

    def step(wish: Any) -> Any:
        model = load_model("smollm2", quantize=wish).model
        found[wish] = losses_and_gradients(model)
        return model

    peaks = {wish: measured_peak(lambda wish=wish: step(wish)) for wish in ("dense", "keep")}
    for got, wanted in zip(found["keep"], found["dense"]):
        # 30 layers of float32 products in another order.
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(found["keep"][0], found["dense"][0], atol=1e-4)
    assert peaks["keep"] < 0.6 * peaks["dense"]
