"""Saving a model: what comes back here, in transformers and in mlx-lm; what is refused; what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.error import (
    CannotFindTensorError,
    CheckpointError,
    UnexpectedShapeError,
    UnsupportedDTypeForOpError,
)
from metal_candle.formats import safetensors, sharded
from metal_candle.models import LoadedModel, load_model
from metal_candle.models.save import save_model

import mlx.core as mx
import numpy as np
import pytest

ModelDir = Callable[..., Path]
IDS = [5, 17, 3, 60, 22, 22, 41, 8]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, untied, rope scaled": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "mistral, window": {"model_type": "mistral", "sliding_window": 4},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
}
each_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())


def logits(model: Any) -> np.ndarray:
    found: np.ndarray = model.forward(Tensor.new([IDS], dtype="u32")).numpy()
    return found


@pytest.fixture
def loaded(tiny_model_dir: ModelDir) -> LoadedModel:
    return load_model(tiny_model_dir())


def save(loaded: LoadedModel, folder: Path, **options: Any) -> None:
    save_model(folder, loaded.model, loaded.tokenizer, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@each_kind
def test_it_comes_back_as_it_was(tiny_model_dir: ModelDir, tmp_path: Path, settings: dict[str, Any]) -> None:
    loaded = load_model(tiny_model_dir(**settings))
    save(loaded, tmp_path / "new" / "saved")
    again = load_model(tmp_path / "new" / "saved")
    np.testing.assert_array_equal(logits(again.model), logits(loaded.model))
    saved, config = vars(again.model.config), vars(loaded.model.config)
    assert saved == {**config, "torch_dtype": "float32", "explicit_head_dim": loaded.model.config.head_dim()}
    assert again.tokenizer.encode("the cat on a mat") == loaded.tokenizer.encode("the cat on a mat")
    assert again.tokenizer.eos_token_ids == loaded.tokenizer.eos_token_ids
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["saved"]


def test_a_tied_head_is_written_once(loaded: LoadedModel, tmp_path: Path) -> None:
    save(loaded, tmp_path / "saved")
    header = safetensors.read_header(tmp_path / "saved" / "model.safetensors")
    assert set(header.tensors) == set(loaded.model.weights())
    assert "lm_head.weight" not in header.tensors
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(("dtype", "stored", "named"), [("bf16", "BF16", "bfloat16"), ("f16", "F16", "float16")])
def test_halves(loaded: LoadedModel, tmp_path: Path, dtype: str, stored: str, named: str) -> None:
    save(loaded, tmp_path / "saved", dtype=dtype)
    header = safetensors.read_header(tmp_path / "saved" / "model.safetensors")
    assert {info.dtype for info in header.tensors.values()} == {stored}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == named
    for name, tensor in load_model(tmp_path / "saved").model.weights().items():
        wanted = loaded.model.weights()[name].mlx().astype(getattr(mx, named)).astype(mx.float32)
        np.testing.assert_array_equal(tensor.numpy(), np.array(wanted))


def test_shards_have_an_index(loaded: LoadedModel, tmp_path: Path) -> None:
    save(loaded, tmp_path / "saved", shard_bytes=20_000)
    index = json.loads((tmp_path / "saved" / sharded.INDEX).read_text())
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert index["metadata"]["total_size"] == 4 * loaded.model.num_parameters()
    assert all((tmp_path / "saved" / name).stat().st_size < 20_000 + 4000 for name in shards)  # and a header
    np.testing.assert_array_equal(logits(load_model(tmp_path / "saved").model), logits(loaded.model))


def test_end_tokens_of_model_and_tokenizer_are_said(tiny_model_dir: ModelDir, tmp_path: Path) -> None:
    loaded = load_model(tiny_model_dir(eos_token_id=[7, 2]))
    loaded.tokenizer.eos_token_ids = frozenset({2, 0})
    save(loaded, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert said == {"bos_token_id": 1, "eos_token_id": [0, 2, 7], "pad_token_id": 2}


def test_overrides_replace_weights(loaded: LoadedModel, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    merged = loaded.model.weights()[name] * 2.0
    save(loaded, tmp_path / "saved", overrides={name: merged})
    again = load_model(tmp_path / "saved").model
    for other, tensor in loaded.model.weights().items():
        wanted = merged if other == name else tensor
        np.testing.assert_array_equal(again.weights()[other].numpy(), wanted.numpy())


def test_overrides_that_do_not_fit(loaded: LoadedModel, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(CannotFindTensorError, match=rf"model.layers.1.mlp.up_prj.weight; nearest: {name}"):
        save(loaded, tmp_path / "saved", overrides={"model.layers.1.mlp.up_prj.weight": Tensor.zeros((64, 32))})
    with pytest.raises(UnexpectedShapeError, match=rf"{name}: expected shape \(64, 32\), got \(32, 64\)"):
        save(loaded, tmp_path / "saved", overrides={name: Tensor.zeros((32, 64))})
    with pytest.raises(UnsupportedDTypeForOpError, match="save_model: got dtype i32; takes f32, bf16 or f16"):
        save(loaded, tmp_path / "saved", dtype="i32")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_a_model_only_when_told(loaded: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    save(loaded, folder, shard_bytes=20_000)
    before = files(folder)
    with pytest.raises(CheckpointError.SaveFailed, match="saved: the folder is not empty; give another one, or over"):
        save(loaded, folder)
    assert files(folder) == before
    save(loaded, folder, dtype="bf16", overwrite=True)
    assert "model.safetensors" in files(folder)
    assert sharded.INDEX not in files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["notes.txt"], "holds notes.txt, so it is no model to overwrite"),
        (["config.json", "thesis.tex"], "holds thesis.tex, so it is no model to overwrite"),
        (["tokenizer.json"], "holds no config.json, so it is no model to overwrite"),
    ],
)
def test_other_folders_are_never_overwritten(loaded: LoadedModel, tmp_path: Path, names: list[str], text: str) -> None:
    for name in names:
        (tmp_path / name).write_text("precious")
    with pytest.raises(CheckpointError.SaveFailed, match=text):
        save(loaded, tmp_path, overwrite=True)
    assert files(tmp_path) == dict.fromkeys(names, b"precious")


def test_a_file_in_the_place_is_left(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("precious")
    with pytest.raises(CheckpointError.SaveFailed, match="a file or a link of that name; give a folder"):
        save(loaded, tmp_path / "saved", overwrite=True)
    with pytest.raises(CheckpointError.SaveFailed, match=r"saved/model: Not a directory"):
        save(loaded, tmp_path / "saved" / "model")
    assert (tmp_path / "saved").read_text() == "precious"


@pytest.mark.parametrize("failing", ["tokenizer_config.json", "model.safetensors"])
def test_a_failure_leaves_what_was_there(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = tmp_path / "saved"
    save(loaded, folder)
    before = files(folder)
    rename = __import__("os").replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        CheckpointError.SaveFailed, match=r"saved: No space left on device; what was there is unchanged"
    ):
        save(loaded, folder, dtype="bf16", overwrite=True)
    assert files(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


# --- transformers and mlx-lm, where they are installed ----------------------------------------


@each_kind
def test_transformers_loads_it(tiny_model_dir: ModelDir, tmp_path: Path, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="transformers runs on torch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    loaded = load_model(tiny_model_dir(**settings))
    loaded.tokenizer.eos_token_ids = frozenset({0, 2})
    save(loaded, tmp_path / "saved", shard_bytes=20_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        found = theirs(torch.tensor([IDS])).logits.numpy()
    # Both float32, some 1e-6 from the exact value each.
    np.testing.assert_allclose(found, logits(loaded.model), atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("the cat on a mat", add_special_tokens=False)["input_ids"] == loaded.tokenizer.encode(
        "the cat on a mat"
    )
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 2, 1)
    messages = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert theirs.generation_config.eos_token_id == [0, 2]


@each_kind
def test_mlx_lm_loads_it(tiny_model_dir: ModelDir, tmp_path: Path, settings: dict[str, Any]) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    loaded = load_model(tiny_model_dir(**settings))
    loaded.tokenizer.eos_token_ids = frozenset({0, 2})
    save(loaded, tmp_path / "saved", shard_bytes=20_000)
    theirs, tokenizer = mlx_lm.load(str(tmp_path / "saved"))
    if not settings.get("sliding_window"):  # mlx-lm's mistral has no window
        found = np.array(theirs(mx.array([IDS])))
        np.testing.assert_allclose(found, logits(loaded.model), atol=1e-5)
    assert tokenizer.encode("the cat", add_special_tokens=False) == loaded.tokenizer.encode("the cat")
    assert set(tokenizer.eos_token_ids) == {0, 2}
