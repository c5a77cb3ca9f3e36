"""Checkpoints of PyTorch and transformers by name through ``VarBuilder``, and ours in theirs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import metal_candle as mc
from metal_candle import DType, Tensor, error, nn

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "u8": torch.uint8,
    "u32": torch.uint32,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}
SHAPES = {"matrix": (2, 3), "scalar": (), "empty": (0, 4), "with.many.dots": (1,), "a/slash and é": (3,)}
# float32 through differently ordered sums, of hidden states of about 1
HIDDEN = 2e-5


def theirs() -> dict[str, Any]:
    """Numbers that every dtype has, under names that say which it is."""
    return {
        f"{dtype}.{name}": torch.arange(math.prod(shape)).reshape(shape).to(kind)
        for dtype, kind in DTYPES.items()
        for name, shape in SHAPES.items()
    }


def agrees(vb: nn.VarBuilder) -> None:
    """Each of ``theirs()`` is there in its own dtype, and in the builder's, f32."""
    for name, tensor in theirs().items():
        assert vb.contains_tensor(name)
        dtype = DType.of(name.partition(".")[0])
        kept = vb.get_with_hints_dtype(tuple(tensor.shape), name, nn.init.ZERO, dtype)
        assert kept.dtype is dtype
        want = tensor.double().numpy()
        np.testing.assert_array_equal(kept.to_dtype("f64").numpy(), want)
        converted = vb.get(tuple(tensor.shape), name)
        assert converted.dtype is DType.F32
        np.testing.assert_array_equal(converted.numpy(), want)


def test_safetensors_of_torch(tmp_path: Path) -> None:
    safetensors_torch.save_file(theirs(), tmp_path / "a.safetensors")
    agrees(nn.VarBuilder.from_mmaped_safetensors([tmp_path / "a.safetensors"], "f32", "cpu"))
    agrees(nn.VarBuilder.from_buffered_safetensors(safetensors_torch.save(theirs()), "f32", "cpu"))


@pytest.mark.parametrize("key", [None, "state_dict"])
def test_pth_files(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "a.pth"
    stored = {name: tensor for name, tensor in theirs().items() if not name.startswith("u32.")}
    torch.save(stored if key is None else {key: stored, "epoch": 3, "opt": {"lr": torch.tensor(0.1)}}, path)
    if key is None:
        vb = nn.VarBuilder.from_pth(path, "f32", "cpu")
    else:
        vb = nn.VarBuilder.from_pth_with_state(path, "f32", key, "cpu")
    for name, tensor in stored.items():
        got = vb.get(tuple(tensor.shape), name)
        np.testing.assert_array_equal(got.numpy(), tensor.double().numpy())
    assert vb.unused() == []
    with pytest.raises(error.UnexpectedShapeError, match=r"^f32\.matrix: expected shape \(3, 2\), got \(2, 3\)$"):
        vb.get((3, 2), "f32.matrix")
    with pytest.raises(error.CannotFindTensorError, match=r"nearest: f32\.matrix"):
        vb.pp("f32").get((3, 2), "matrx")
    if key is not None:
        # Without its key the dictionary is a prefix.
        vb = nn.VarBuilder.from_pth(path, "f32").pp("state_dict")
        assert vb.get((2, 3), "f32.matrix").to_vec2()[1] == [3.0, 4.0, 5.0]


def test_what_a_map_saves_torch_loads(tmp_path: Path) -> None:
    varmap = nn.VarMap()
    for name, tensor in theirs().items():
        dtype = DType.of(name.partition(".")[0])
        varmap.data()[name] = mc.Var.from_tensor(Tensor.new(tensor.double().numpy(), "cpu").to_dtype(dtype))
    varmap.save(tmp_path / "a.safetensors")
    read = safetensors_torch.load_file(tmp_path / "a.safetensors")
    assert set(read) == set(theirs())
    for name, tensor in theirs().items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].double(), tensor.double())
    safetensors_torch.save_file({name: tensor.clone() for name, tensor in read.items()}, tmp_path / "b.safetensors")
    varmap.load(tmp_path / "b.safetensors")


def test_a_module_of_torch_goes_on_here_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2, bias=False))
    safetensors_torch.save_model(module, tmp_path / "a.safetensors")

    varmap = nn.VarMap()
    vb = nn.VarBuilder.from_varmap(varmap, "f32")
    layers = nn.seq().add(nn.linear(4, 8, vb.pp(0))).add(nn.layer_norm(8, 1e-5, vb.pp(1)))
    model = layers.add(nn.linear_no_bias(8, 2, vb.pp(2)))
    varmap.load(tmp_path / "a.safetensors")
    xs = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.from_numpy(xs)).numpy()
    np.testing.assert_allclose(model.forward(Tensor.new(xs)).numpy(), want, atol=HIDDEN)

    optimizer = nn.AdamW.new_lr(varmap.all_vars(), 0.05)
    for _ in range(3):
        optimizer.backward_step(model.forward(Tensor.new(xs)).sqr().sum_all())
    varmap.save(tmp_path / "b.safetensors")
    safetensors_torch.load_model(module, tmp_path / "b.safetensors")
    with torch.no_grad():
        got = module(torch.from_numpy(xs)).numpy()
    assert np.abs(got - want).max() > 0.01
    np.testing.assert_allclose(got, model.forward(Tensor.new(xs)).numpy(), atol=HIDDEN)


# --- models of transformers -------------------------------------------------------------------


class BertAttention:
    """As candle's models are written."""

    def __init__(self, hidden: int, heads: int, vb: nn.VarBuilder) -> None:
        self.heads, self.size = heads, hidden // heads
        own = vb.pp("self")
        self.query, self.key, self.value = (nn.linear(hidden, hidden, own.pp(s)) for s in ("query", "key", "value"))
        self.dense = nn.linear(hidden, hidden, vb.pp("output.dense"))
        self.norm = nn.layer_norm(hidden, 1e-12, vb.pp("output").pp("LayerNorm"))

    def forward(self, xs: Tensor) -> Tensor:
        batch, length, hidden = xs.dims3()

        def split(layer: nn.Linear) -> Tensor:
            return layer.forward(xs).reshape((batch, length, self.heads, self.size)).transpose(1, 2).contiguous()

        scores = split(self.query).matmul(split(self.key).t()) / math.sqrt(self.size)
        context = nn.ops.softmax_last_dim(scores).matmul(split(self.value))
        context = context.transpose(1, 2).reshape((batch, length, hidden))
        return self.norm.forward(self.dense.forward(context) + xs)


class BertLayer:
    def __init__(self, hidden: int, heads: int, inner: int, vb: nn.VarBuilder) -> None:
        self.attention = BertAttention(hidden, heads, vb.pp("attention"))
        self.intermediate = nn.linear(hidden, inner, vb.pp("intermediate.dense"))
        self.output = nn.linear(inner, hidden, vb.pp("output.dense"))
        self.norm = nn.layer_norm(hidden, 1e-12, vb.pp("output.LayerNorm"))

    def forward(self, xs: Tensor) -> Tensor:
        xs = self.attention.forward(xs)
        return self.norm.forward(self.output.forward(self.intermediate.forward(xs).gelu_erf()) + xs)


class Bert:
    def __init__(self, config: dict[str, Any], vb: nn.VarBuilder) -> None:
        hidden = config["hidden_size"]
        own = vb.pp("embeddings")
        self.words = nn.embedding(config["vocab_size"], hidden, own.pp("word_embeddings"))
        self.positions = nn.embedding(config["max_position_embeddings"], hidden, own.pp("position_embeddings"))
        self.types = nn.embedding(config["type_vocab_size"], hidden, own.pp("token_type_embeddings"))
        self.norm = nn.layer_norm(hidden, config["layer_norm_eps"], own.pp("LayerNorm"))
        self.layers = [
            BertLayer(hidden, config["num_attention_heads"], config["intermediate_size"], vb.pp("encoder.layer").pp(i))
            for i in range(config["num_hidden_layers"])
        ]
        pooler = vb.pp("pooler.dense")
        self.pooler = nn.linear(hidden, hidden, pooler) if pooler.contains_tensor("weight") else None

    def forward(self, ids: Tensor) -> Tensor:
        places = Tensor.arange(0, ids.dim(1)).unsqueeze(0)
        xs = self.words.forward(ids).broadcast_add(self.positions.forward(places))
        xs = self.norm.forward(xs + self.types.forward(ids.zeros_like()))
        for layer in self.layers:
            xs = layer.forward(xs)
        return xs


def tiny_bert() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    return transformers.BertModel(config).eval()


IDS = [[5, 7, 39, 0, 2], [1, 1, 30, 12, 8]]


def hidden_of(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).last_hidden_state.float().numpy()


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_bert(tmp_path: Path, shard_size: str) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "10GB")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    vb = nn.VarBuilder.from_mmaped_safetensors([tmp_path], DType.F32)
    here = Bert(config, vb)
    assert here.pooler is not None
    assert vb.unused() == []
    np.testing.assert_allclose(here.forward(Tensor(IDS)).numpy(), hidden_of(model), atol=HIDDEN)


def test_bert_under_other_names(tmp_path: Path) -> None:
    model = tiny_bert()
    # As checkpoints of before PyTorch have them, with a prefix and without the pooler.
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.state_dict().items()
        if not name.startswith("pooler")
    }
    torch.save({"model": old, "step": 7}, tmp_path / "pytorch_model.bin")
    config = model.config.to_dict()

    def stored(name: str) -> str:
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    vb = nn.VarBuilder.from_pth_with_state(tmp_path / "pytorch_model.bin", DType.F32, "model").rename_f(stored)
    here = Bert(config, vb)
    assert here.pooler is None
    assert vb.unused() == []
    np.testing.assert_allclose(here.forward(Tensor(IDS)).numpy(), hidden_of(model), atol=HIDDEN)
    unnamed = nn.VarBuilder.from_pth_with_state(tmp_path / "pytorch_model.bin", DType.F32, "model")
    want = (
        r"^cannot find tensor embeddings\.word_embeddings\.weight; nearest: bert\.embeddings\.word_embeddings\.weight; "
        r"nothing is below embeddings; there are bert\.embeddings, bert\.encoder$"
    )
    with pytest.raises(error.CannotFindTensorError, match=want):
        Bert(config, unnamed)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_bert_in_half_precision(tmp_path: Path, dtype: str) -> None:
    model = tiny_bert().to(DTYPES[dtype])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    # The halves in float32 are what torch computes with when it is given them in float32.
    here = Bert(config, nn.VarBuilder.from_mmaped_safetensors([tmp_path], DType.F32))
    np.testing.assert_allclose(here.forward(Tensor(IDS)).numpy(), hidden_of(model.float()), atol=HIDDEN)
    half = Bert(config, nn.VarBuilder.from_mmaped_safetensors([tmp_path], dtype)).forward(Tensor(IDS))
    assert half.dtype is DType.of(dtype)
    # Three digits at most, through two layers whose hidden states are up to 4.
    np.testing.assert_allclose(half.to_dtype("f32").numpy(), hidden_of(model), atol=0.1 if dtype == "bf16" else 0.01)


def test_what_a_map_saves_transformers_loads(tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    varmap = nn.VarMap()
    here = Bert(config, _Everything.of(varmap))
    for var in varmap.all_vars():
        var.set(var.affine(0.5, 0.01))
    before = hidden_of(model)
    varmap.save(tmp_path / "model.safetensors")
    loaded = type(model).from_pretrained(tmp_path).eval()
    after = hidden_of(loaded)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(here.forward(Tensor(IDS)).numpy(), after, atol=HIDDEN)
    for var in varmap.all_vars():
        var.set(var.zeros_like())
    model.save_pretrained(tmp_path)
    varmap.load(tmp_path)
    np.testing.assert_allclose(here.forward(Tensor(IDS)).numpy(), before, atol=HIDDEN)


class _Everything:
    """A source that has each name, and makes its variable."""

    @staticmethod
    def of(varmap: nn.VarMap) -> nn.VarBuilder:
        return nn.VarBuilder.from_backend(_Everything(varmap), "f32")

    def __init__(self, varmap: nn.VarMap) -> None:
        self.varmap = varmap

    def get(self, *args: Any) -> Tensor:
        return self.varmap.get(*args)

    def get_unchecked(self, *args: Any) -> Tensor:
        return self.varmap.get_unchecked(*args)

    def contains_tensor(self, name: str) -> bool:
        return True
