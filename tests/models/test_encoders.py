"""BERT and MPNet against NumPy float64 ones and, where it is installed, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.error import ModelError, ShapeMismatchError
from metal_candle.models import bert, mpnet
from metal_candle.nn import VarBuilder, VarMap

import mlx.core as mx
import numpy as np
import plain_encoder
import pytest

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "bert": (bert.Config, bert.BertModel),
    "mpnet": (mpnet.Config, mpnet.MPNetModel),
}
each_kind = pytest.mark.parametrize("kind", KINDS)

# float32 against float64: hidden states are below 4, and some 40 roundings of 6e-8 add up on the way.
CLOSE = 5e-6

IDS = np.random.default_rng(3).integers(3, 64, (3, 150))
LENGTHS = (150, 9, 77)
MASK = np.arange(150)[None, :] < np.array(LENGTHS)[:, None]


def tiny(kind: str, dtype: str = "f32", **settings: Any) -> tuple[Any, dict[str, Any]]:
    config = KINDS[kind][0](**{**SIZES, **settings})
    weights = plain_encoder.random_weights(kind, config)
    arrays = {name: mx.array(value) for name, value in weights.items()}
    return KINDS[kind][1].from_weights(config, arrays, dtype, None), weights


def padded(model: Any) -> Tensor:
    return Tensor.from_numpy(np.where(MASK, IDS, model.config.pad_token_id).astype(np.int32))


MASK_TENSOR = Tensor.from_numpy(MASK.astype(np.uint8))


@each_kind
def test_hidden_states_are_those_of_the_plain_encoder_whatever_is_beside(kind: str) -> None:
    model, weights = tiny(kind)
    found = model.forward(padded(model), None, MASK_TENSOR).numpy()
    for row, length in enumerate(LENGTHS):
        ids = IDS[row, :length].tolist()
        wanted = plain_encoder.hidden_states(kind, model.config, weights, ids, [0] * length)
        np.testing.assert_allclose(found[row, :length], wanted, atol=CLOSE)
        alone = model.forward(Tensor.new([ids], dtype="u32")).numpy()[0]
        np.testing.assert_allclose(alone, wanted, atol=CLOSE)


@each_kind
def test_what_padding_holds_changes_no_bit(kind: str) -> None:
    model, _ = tiny(kind)
    other = Tensor.from_numpy(np.where(MASK, IDS, 7).astype(np.int32))
    found = [model.forward(ids, None, MASK_TENSOR).numpy()[MASK] for ids in (padded(model), other)]
    np.testing.assert_array_equal(*found)


@each_kind
def test_masks_of_any_dtype_and_lazy_ids(kind: str) -> None:
    model, _ = tiny(kind)
    eager = model.forward(padded(model), None, MASK_TENSOR)
    lazy = model.forward(LazyTensor.from_tensor(padded(model)), None, MASK_TENSOR.to_dtype("f32"))
    assert isinstance(lazy, LazyTensor)
    np.testing.assert_allclose(lazy.numpy(), eager.numpy(), atol=CLOSE)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@each_kind
def test_halves(kind: str, dtype: str) -> None:
    model, _ = tiny(kind, dtype)
    whole, _ = tiny(kind)
    found = model.forward(padded(model), None, MASK_TENSOR)
    assert found.dtype is DType.of(dtype)
    wanted = whole.forward(padded(whole), None, MASK_TENSOR).numpy()[MASK]
    # The norms give values of up to 4, rounded to 8 or 11 bits, and four of them follow each other.
    tolerance = 0.03 if dtype == "bf16" else 0.004
    apart = np.abs(found.to_dtype("f32").numpy()[MASK] - wanted)
    assert apart.mean() < tolerance / 3
    assert apart.max() < 5 * tolerance


def test_token_types() -> None:
    model, weights = tiny("bert")
    ids, types = IDS[0, :12].tolist(), [0] * 5 + [1] * 7
    found = model.forward(Tensor.new([ids], dtype="u32"), Tensor.new([types], dtype="u32")).numpy()[0]
    wanted = plain_encoder.hidden_states("bert", model.config, weights, ids, types)
    np.testing.assert_allclose(found, wanted, atol=CLOSE)
    model, _ = tiny("mpnet")
    with pytest.raises(ModelError.InvalidConfig, match="MPNet has no token types"):
        model.forward(Tensor.new([ids], dtype="u32"), Tensor.new([types], dtype="u32"))


def test_buckets_of_distances() -> None:
    distances = np.arange(-300, 301)
    wanted = [plain_encoder.bucket(int(distance)) for distance in distances]
    assert mpnet.relative_buckets(distances, 32).tolist() == wanted


@each_kind
def test_more_tokens_than_positions_are_refused(kind: str) -> None:
    model, _ = tiny(kind, max_position_embeddings=12)
    most = 12 if kind == "bert" else 10  # positions 0 and 1 are the padding's
    assert model.config.max_tokens() == most
    assert model.forward(Tensor.zeros((1, most), "u32")).dims() == [1, most, 32]
    with pytest.raises(ShapeMismatchError, match=f"encoder: got {most + 1} tokens; takes at most {most}"):
        model.forward(Tensor.zeros((1, most + 1), "u32"))


@each_kind
def test_gradients_reach_every_weight(kind: str) -> None:
    varmap = VarMap()
    model = KINDS[kind][1](KINDS[kind][0](**SIZES), VarBuilder.from_varmap(varmap, "f32", Device.default()))
    grads = model.forward(padded(model), None, MASK_TENSOR).sqr().sum_all().backward()
    for name, var in varmap.data().items():
        # A key's bias adds the same to all scores of a query, so that its gradient is 0 but for rounding.
        assert grads[var].abs().max_all().to_scalar() > 0 or "key.bias" in name, name
    assert len(varmap.data()) == len(plain_encoder.shapes(kind, model.config))


# --- weights and configurations ---------------------------------------------------------------


def test_prefixes_old_names_and_heads() -> None:
    model, weights = tiny("bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name: str) -> str:
        ending = ".".join(name.split(".")[-2:])
        return "bert." + name.removesuffix(ending) + old.get(ending, ending)

    stored = {renamed(name): mx.array(value) for name, value in weights.items()}
    extra = ("bert.pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.position_ids")
    stored.update({name: mx.zeros((3,)) for name in extra})
    again = bert.BertModel.from_weights(model.config, stored, "f32", None)
    ids = Tensor.new([[5, 6, 7]], dtype="u32")
    np.testing.assert_array_equal(again.forward(ids).numpy(), model.forward(ids).numpy())
    loaded = bert.BertModel.load(
        VarBuilder.from_tensors({k: mx.array(v) for k, v in weights.items()}, "f32"), model.config
    )
    np.testing.assert_array_equal(loaded.forward(ids).numpy(), model.forward(ids).numpy())


def test_weights_that_do_not_fit_are_named() -> None:
    config = bert.Config(**SIZES)
    weights = {name: mx.array(value) for name, value in plain_encoder.random_weights("bert", config).items()}
    name = "encoder.layer.1.attention.self.query.weight"

    def build(changed: dict[str, Any]) -> None:
        bert.BertModel.from_weights(config, changed, "f32", None)

    with pytest.raises(ModelError.InvalidFormat, match=rf"{name}.*do not fit config.json"):
        build({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ModelError.InvalidFormat, match=r"no place for: encoder.layer.2.output.dense.bias"):
        build({**weights, "encoder.layer.2.output.dense.bias": mx.zeros((32,))})
    with pytest.raises(ModelError.ShapeMismatch, match=rf"{name} is \(32, 31\)"):
        build({**weights, name: mx.zeros((32, 31))})


def test_the_defaults_are_bert_base_and_mpnet_base(tmp_path: Path) -> None:
    assert (bert.Config(), mpnet.Config()) == (bert.Config.from_json("{}"), mpnet.Config.from_json("{}"))
    base = bert.Config()
    assert (base.vocab_size, base.hidden_size, base.head_dim(), base.layer_norm_eps) == (30522, 768, 64, 1e-12)
    assert (mpnet.Config().pad_token_id, mpnet.Config().relative_attention_num_buckets) == (1, 32)
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 384.0, "hidden_dropout_prob": 0, "classifier_dropout": 0.1, "pad_token_id": null}')
    assert bert.Config.from_file(file) == bert.Config(hidden_size=384, hidden_dropout_prob=0.0, classifier_dropout=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"hidden_size": "x"}', "config: hidden_size is 'x'; takes int"),
        ('{"hidden_size": 1.5}', "config: hidden_size is 1.5; takes int"),
        ('{"use_cache": 1}', "config: use_cache is 1; takes bool"),
        ('{"vocab_size": true}', "config: vocab_size is True; takes int"),
        ('{"hidden_size": 0}', "hidden_size is 0; takes more than 0"),
        ('{"hidden_size": 100}', "hidden_size 100 is not divisible by num_attention_heads 12"),
        ('{"hidden_act": "gulu"}', "hidden_act: activation: got 'gulu'"),
        ('{"pad_token_id": -1}', "pad_token_id is -1; takes 0 to 30521"),
        ('{"position_embedding_type": "relative_key"}', "position_embedding_type is 'relative_key'; takes 'absolute'"),
        ("[", "config"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(ModelError.InvalidConfig, match=said):
        bert.Config.from_json(text).validate()


# --- transformers, where it is installed ------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new"])
@each_kind
def test_hidden_states_are_those_of_transformers(kind: str, activation: str) -> None:
    torch = pytest.importorskip("torch", reason="transformers runs on torch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    network = transformers.BertModel if kind == "bert" else transformers.MPNetModel
    torch.manual_seed(0)
    theirs = network(network.config_class(**SIZES, hidden_act=activation)).eval()
    config = KINDS[kind][0].from_dict(theirs.config.to_dict(), "transformers")
    weights = {name: mx.array(value.numpy()) for name, value in theirs.state_dict().items()}
    model = KINDS[kind][1].from_weights(config, weights, "f32", None)
    ids = np.where(MASK, IDS, config.pad_token_id)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids), attention_mask=torch.tensor(MASK.astype(np.int64))).last_hidden_state.numpy()
    found = model.forward(Tensor.from_numpy(ids.astype(np.int32)), None, MASK_TENSOR).numpy()
    np.testing.assert_allclose(found[MASK], wanted[MASK], atol=CLOSE)
