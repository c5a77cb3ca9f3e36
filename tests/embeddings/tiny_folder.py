"""A random embedding model as a Hugging Face folder, with a tokenizer of letters."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from metal_candle.formats import safetensors
from metal_candle.models import bert, mpnet

import mlx.core as mx
import plain_encoder
import tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 60,
}


def tokenizer() -> tokenizers.Tokenizer:
    """A token for each letter, between [CLS] and [SEP]; like many files it says to cut and to pad."""
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(9)
    made.enable_padding(length=9)
    return made


def write(
    folder: Path, kind: str = "bert", modules: list[str] | None = None, pooling: Any = None, **settings: Any
) -> dict[str, Any]:
    """Write the folder; the weights by name. ``modules`` are the kinds in ``modules.json``."""
    made = tokenizer()
    sizes = {**SIZES, "vocab_size": made.get_vocab_size(), "pad_token_id": 0, **settings}
    config = {"bert": bert.Config, "mpnet": mpnet.Config}[kind](**sizes)
    weights: dict[str, Any] = plain_encoder.random_weights(kind, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**vars(config), "model_type": kind}))
    safetensors.save(folder / "model.safetensors", {k: mx.array(v) for k, v in weights.items()}, safetensors.PT)
    made.save(str(folder / "tokenizer.json"))
    if modules is not None:
        entries = [
            {"idx": i, "path": "" if i == 0 else f"{i}_{name}", "type": f"sentence_transformers.models.{name}"}
            for i, name in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return weights
