"""The real all-MiniLM-L6-v2, from the package on PyPI, against what transformers gives in float32."""

from __future__ import annotations

from pathlib import Path

from metal_candle.embeddings import EmbeddingModel, EmbeddingModelType
from metal_candle.embeddings.loader import MINILM, download_model

import numpy as np
import pytest

TEXTS = [
    "Hello world",
    "The cat sits on the mat.",
    "A cat is on a mat.",
    "Straße, naïve café: 你好, 12.5 °C!",
    "",
    "word " * 400,
]
# The first elements of each, by transformers 5.23 on torch 2.13 (CPU): the mean of BertModel's last hidden states over
# the tokens, of at most 256, divided by its norm.
WANTED = [
    [-0.03447727, 0.03102326, 0.00673499, 0.02610897, -0.03936200, -0.16030249],
    [0.13417712, -0.03290031, -0.02480374, 0.04143902, -0.03634766, 0.04181423],
    [0.10763808, -0.02044430, -0.01816501, 0.03133767, -0.05174923, 0.02817657],
    [0.04846939, 0.03386994, -0.02682909, 0.06658988, -0.00242840, -0.00592642],
    [-0.11883842, 0.04829866, -0.00254807, -0.01101118, 0.05195080, 0.01029181],
    [-0.00812368, -0.09558596, -0.03867312, 0.04966193, -0.04379378, 0.02371978],
]
SIMILARITY = [1.0, -0.068836, -0.026757, 0.122664, 0.333787, 0.187805]
"""Of the first text to each."""
# Both are float32 and some 2e-7 apart.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def folder() -> Path:
    return download_model(EmbeddingModelType.AllMiniLmL6V2)


@pytest.mark.slow
def test_embeddings_are_those_of_transformers(folder: Path) -> None:
    model = EmbeddingModel.from_pretrained(EmbeddingModelType.AllMiniLmL6V2)
    assert (model.dimension(), model.model_type()) == (384, EmbeddingModelType.AllMiniLmL6V2)
    assert repr(model) == "EmbeddingModel(sentence-transformers/all-MiniLM-L6-v2, 384 elements, at most 256 tokens)"
    found = model.encode(TEXTS).numpy()
    np.testing.assert_allclose(found[:, :6], WANTED, atol=CLOSE)
    np.testing.assert_allclose(found @ found[0], SIMILARITY, atol=2e-6)
    assert found[1] @ found[2] > 0.89
    alone = model.encode(TEXTS[:4], batch_size=1).numpy()
    np.testing.assert_allclose(alone, found[:4], atol=CLOSE)


@pytest.mark.slow
def test_the_package_is_known_by_its_hashes(folder: Path) -> None:
    assert MINILM.is_whole(folder)
    assert MINILM.is_genuine(folder)
    assert download_model("sentence-transformers/all-MiniLM-L6-v2") == folder
    assert EmbeddingModel.from_pretrained(folder).model_type() is None


@pytest.mark.slow
def test_all_elements_are_those_of_transformers(folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="transformers runs on torch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = network(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).float()
    wanted = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1).numpy()
    found = EmbeddingModel.from_pretrained(folder).encode(TEXTS).numpy()
    np.testing.assert_allclose(found, wanted, atol=CLOSE)
