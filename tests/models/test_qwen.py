"""Qwen and its parts by metal-candle's names: against the NumPy decoder, masks, adapters, starts, errors."""

from __future__ import annotations

from typing import Any

from metal_candle import ArgumentTypeError, ArgumentValueError, LazyTensor, ModelError, ShapeMismatchError, Tensor, nn
from metal_candle.error import CannotFindTensorError
from metal_candle.inference.step import step_of
from metal_candle.models import LanguageModel, ModelConfig, Qwen
from metal_candle.models.qwen import QwenDecoderLayer
from metal_candle.models.transformer import MLP, Attention, RotaryEmbedding
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, TargetModule

import numpy as np
import plain_decoder
import pytest

CONFIG = ModelConfig(
    architectures=["qwen2"],
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
IDS = [[5, 17, 3, 60, 22], [9, 1, 2, 3, 44]]

# float32 against float64: a handful of roundings of 6e-8 each on logits of a few units.
CLOSE = 2e-5


def fresh(config: ModelConfig = CONFIG, seed: int = 0) -> tuple[Qwen, nn.VarMap]:
    varmap = nn.VarMap()
    model = Qwen(config, nn.VarBuilder.from_varmap(varmap, "f32"))
    rng = np.random.default_rng(seed)
    for name, var in varmap.data().items():
        var.set(Tensor((0.1 * rng.standard_normal(tuple(var.shape)) + ("norm" in name)).astype(np.float32)))
    return model, varmap


def later(t: int) -> np.ndarray:
    return np.triu(np.full((t, t), -np.inf, np.float32), 1)


def test_a_varmap_starts_norms_at_one_and_the_rest_random() -> None:
    varmap = nn.VarMap()
    model = Qwen(CONFIG, nn.VarBuilder.from_varmap(varmap, "f32"))
    data = {name: var.numpy() for name, var in varmap.data().items()}
    for name, value in data.items():
        assert (value == 1).all() if "norm" in name else value.std() > 1e-3, name
    blocks = [f"model.layers.{i}" for i in range(2)]
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    names |= {f"{block}.{norm}_layernorm.weight" for block in blocks for norm in ("input", "post_attention")}
    names |= {f"{block}.{t.parent}.{t.name()}.weight" for block in blocks for t in TargetModule}
    names |= {f"{block}.self_attn.{letter}_proj.bias" for block in blocks for letter in "qkv"}
    assert set(data) == names
    assert model.num_parameters() == sum(value.size for value in data.values())
    assert (model.num_layers(), model.vocab_size()) == (2, 64)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_plain_decoders(tied: bool) -> None:
    config = ModelConfig(**{**CONFIG.__dict__, "tie_word_embeddings": tied})
    model, varmap = fresh(config)
    weights = {name: var.numpy() for name, var in varmap.data().items()}
    logits = model.forward(Tensor(IDS, dtype="u32"))
    assert logits.shape == (2, 5, 64)
    for row, ids in zip(logits.numpy(), IDS):
        np.testing.assert_allclose(row, plain_decoder.logits(model.config, weights, ids), atol=CLOSE)
    assert ("lm_head.weight" in weights) is not tied
    lazy = model(LazyTensor.new(IDS, dtype="u32"))
    assert isinstance(lazy, LazyTensor)
    np.testing.assert_allclose(lazy.numpy(), logits.numpy(), atol=1e-6)


def test_it_is_a_language_model_and_reads_other_configurations_as_its_own() -> None:
    assert isinstance(fresh()[0], LanguageModel)
    unnamed = ModelConfig(**{**CONFIG.__dict__, "architectures": [], "model_type": ""})
    assert fresh(unnamed)[0].config.qkv_bias
    assert fresh(ModelConfig(**{**CONFIG.__dict__, "model_type": "qwen3"}))[0].config.qk_norm
    with pytest.raises(ModelError.InvalidConfig, match="hidden_size 30 is not divisible by num_attention_heads 4"):
        fresh(ModelConfig(**{**CONFIG.__dict__, "hidden_size": 30}))
    with pytest.raises(CannotFindTensorError, match=r"model\.embed_tokens\.weight"):
        Qwen(CONFIG, nn.VarBuilder.from_tensors({}, "f32"))


def test_without_a_mask_it_is_causal() -> None:
    model, _ = fresh()
    first = model.forward(Tensor(IDS)).numpy()
    changed = model.forward(Tensor([[*row[:-1], 7] for row in IDS])).numpy()
    np.testing.assert_allclose(changed[:, :-1], first[:, :-1], atol=1e-6)
    assert np.abs(changed[:, -1] - first[:, -1]).max() > 1e-2


@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 1, 5, 5), (2, 4, 5, 5)])
def test_an_additive_mask_is_added_whatever_its_dims(shape: tuple[int, ...]) -> None:
    model, _ = fresh()
    causal = Tensor(np.ascontiguousarray(np.broadcast_to(later(5), shape)))
    wanted = model.forward(Tensor(IDS)).numpy()
    np.testing.assert_allclose(model.forward(Tensor(IDS), causal).numpy(), wanted, atol=1e-6)
    lazy = model.forward(LazyTensor.new(IDS), attention_mask=causal)
    np.testing.assert_allclose(lazy.numpy(), wanted, atol=1e-6)
    both_ways = model.forward(Tensor(IDS), Tensor(np.zeros(shape, np.float32))).numpy()
    assert np.abs(both_ways[:, 0] - wanted[:, 0]).max() > 1e-2  # the first position sees the others


def test_padding_that_the_mask_hides_changes_nothing() -> None:
    model, _ = fresh()
    padded = [[*IDS[0][:3], 0, 0], IDS[1]]
    hidden = np.broadcast_to(later(5), (2, 1, 5, 5)).copy()
    hidden[0, :, :, 3:] = -np.inf
    found = model.forward(Tensor(padded), Tensor(hidden)).numpy()
    np.testing.assert_allclose(found[0, :3], model.forward(Tensor([IDS[0][:3]])).numpy()[0], atol=CLOSE)
    np.testing.assert_allclose(found[1], model.forward(Tensor([IDS[1]])).numpy()[0], atol=CLOSE)


def test_a_mask_meets_a_half_model() -> None:
    varmap = nn.VarMap()
    model = Qwen(CONFIG, nn.VarBuilder.from_varmap(varmap, "f16"))
    found = model.forward(Tensor(IDS), Tensor(later(5)))
    assert str(found.dtype) == "f16"
    wanted = model.forward(Tensor(IDS)).to_dtype("f32").numpy()
    # Half precision, by two ways of hiding.
    np.testing.assert_allclose(found.to_dtype("f32").numpy(), wanted, atol=2e-2 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("mask", "kind", "text"),
    [
        (Tensor(np.ones((2, 5), np.float32)), ShapeMismatchError, r"got \(2, 5\); takes \(t, t\), \(heads, t, t\)"),
        (Tensor(np.ones((5, 5), np.int64)), ArgumentTypeError, "got a mask of i64; takes an additive mask of floats"),
        (Tensor(np.ones((3, 1, 5, 5), np.float32)), ShapeMismatchError, "with b 2 and t 5"),
        ([0.0], ArgumentTypeError, "attention_mask: got a list"),
    ],
)
def test_what_is_no_additive_mask_is_refused(mask: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        fresh()[0].forward(Tensor(IDS), mask)


def test_a_mask_beside_caches_is_refused() -> None:
    model, _ = fresh()
    with pytest.raises(ArgumentValueError, match="got attention_mask beside caches or layout"):
        model.forward(Tensor(IDS), Tensor(later(5)), caches=model.new_caches())


def test_it_generates_with_a_cache() -> None:
    model, _ = fresh()
    step = step_of(model)
    step.feed(IDS[0][:3])
    found = [step.feed([token]) for token in IDS[0][3:]]
    np.testing.assert_allclose(np.stack(found), model.forward(Tensor(IDS)).numpy()[0, 3:], atol=CLOSE)


@pytest.mark.parametrize("target", TargetModule)
def test_an_adapter_acts_inside_each_projection(target: TargetModule) -> None:
    model, varmap = fresh()
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=[target]))
    for i, var in enumerate(adapter.trainable_variables()):
        rng = np.random.default_rng(i)
        var.set(Tensor(0.3 * rng.standard_normal(tuple(var.shape)).astype(np.float32)))
    plain = model.forward(Tensor(IDS)).numpy()
    model.apply_adapter(adapter)
    weights = {name: var.numpy() for name, var in varmap.data().items()}
    for place in model.projections():
        if place.target is target:
            layer = adapter.layer_at(place.path)
            assert layer is not None
            a, b = layer.lora_a().numpy().astype(np.float64), layer.lora_b().numpy().astype(np.float64)
            weights[f"{place.path}.weight"] = weights[f"{place.path}.weight"] + 8.0 * (a @ b).T
    found = model.forward(Tensor(IDS)).numpy()
    assert np.abs(found - plain).max() > 1e-3
    np.testing.assert_allclose(found[0], plain_decoder.logits(model.config, weights, IDS[0]), atol=5 * CLOSE)
    model.remove_adapter()
    assert np.array_equal(model.forward(Tensor(IDS)).numpy(), plain)


def test_gradients_at_the_start_are_zero_for_a_and_not_for_b() -> None:
    model, _ = fresh()
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=list(TargetModule)))
    model.apply_adapter(adapter)
    grads = model.forward(Tensor(IDS)).sqr().mean_all().backward()
    for _, layer in adapter.layers():
        assert not grads[layer.lora_a()].numpy().any()
        assert grads[layer.lora_b()].numpy().any()


def test_a_block_by_itself() -> None:
    model, varmap = fresh()
    vb = nn.VarBuilder.from_varmap(varmap, "f32")
    block = QwenDecoderLayer(CONFIG, 1, vb.pp("model.layers").pp(1))
    xs = Tensor(np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32))
    plain = block.forward(xs).numpy()
    np.testing.assert_allclose(plain, model.layers[1].forward(xs).numpy(), atol=1e-6)
    np.testing.assert_allclose(block.forward(xs, Tensor(later(5))).numpy(), plain, atol=1e-6)
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=2, target_modules=list(TargetModule)))
    for i, var in enumerate(adapter.trainable_variables()):
        var.set(Tensor(np.random.default_rng(i).standard_normal(tuple(var.shape)).astype(np.float32)))
    found = block.forward(xs, None, adapter).numpy()
    model.apply_adapter(adapter)
    np.testing.assert_allclose(found, model.layers[1].forward(xs).numpy(), rtol=1e-5, atol=1e-4)
    assert np.array_equal(block.forward(xs).numpy(), plain)  # it acted in that call alone


def test_attention_and_mlp_by_their_sizes() -> None:
    model, varmap = fresh()
    vb = nn.VarBuilder.from_varmap(varmap, "f32").pp("model.layers.0")
    xs = Tensor(np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32))
    attention = Attention(32, 4, 2, 128, 10000.0, vb.pp("self_attn"))
    assert attention.head_dim() == 8
    wanted = model.layers[0].self_attn.forward(xs).numpy()
    np.testing.assert_allclose(attention.forward(xs).numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(attention.forward(xs, Tensor(later(5))).numpy(), wanted, atol=1e-6)
    assert attention.q_proj.linear.bias() is not None
    assert attention.o_proj.linear.bias() is None
    mlp = MLP(32, 48, vb.pp("mlp"))
    np.testing.assert_allclose(mlp.forward(xs).numpy(), model.layers[0].mlp(xs).numpy(), atol=1e-6)
    assert MLP(33, 5, nn.VarBuilder.zeros("f32")).forward(Tensor.ones((1, 33))).shape == (1, 33)
    with pytest.raises(ModelError.InvalidConfig, match="num_attention_heads 4 is not divisible by num_key_value_heads"):
        Attention(32, 4, 3, 128, 10000.0, nn.VarBuilder.zeros("f32"))


@pytest.mark.parametrize("offset", [0, 3])
def test_rotary_embedding_turns_halves_from_an_offset_on(offset: int) -> None:
    rotary = RotaryEmbedding(8, 16, 500.0)
    xs = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    angles = [500.0 ** (-2 * i / 8) for i in range(4)]
    wanted = np.array(
        [[[plain_decoder.rotate(x, angles, offset + t) for x in heads] for t, heads in enumerate(row)] for row in xs]
    )
    np.testing.assert_allclose(rotary.apply_rotary_emb(Tensor(xs), 5, offset).numpy(), wanted, atol=1e-6)
    half = rotary.apply_rotary_emb(Tensor(xs).to_dtype("f16"), 5, offset)
    assert str(half.dtype) == "f16"
    with pytest.raises(ArgumentValueError, match="got positions 12 to 16; takes 0 to 15"):
        rotary.apply_rotary_emb(Tensor(xs), 5, 12)
    with pytest.raises(ShapeMismatchError, match=r"got \(2, 5, 3, 8\); takes \(b, 4, heads, 8\)"):
        rotary.apply_rotary_emb(Tensor(xs), 4)
    with pytest.raises(ModelError.InvalidConfig, match="head_dim is 7"):
        RotaryEmbedding(7)
