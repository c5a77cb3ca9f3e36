"""Texts as vectors: similarity, search, and what an embedding is made of.

python examples/embeddings_demo.py [--model sentence-transformers/all-MiniLM-L6-v2]

metal-candle (Rust): embeddings_demo.
"""

from __future__ import annotations

import argparse

from metal_candle import EmbeddingError, Tensor
from metal_candle.embeddings import EmbeddingConfig, EmbeddingModel, EmbeddingModelType
from metal_candle.embeddings.pooling import mean_pool, normalize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=EmbeddingModelType.AllMiniLmL6V2, help="a Hugging Face folder or a hub id")
arguments = parser.parse_args()

model = EmbeddingModel.from_pretrained(arguments.model)
print(f"{model.model_type() or arguments.model}: {model.dimension()} numbers for a text on {model.device}")

texts = ["A dog runs through the park.", "The puppy is playing outside.", "Interest rates rose again."]
embeddings = model.encode(texts)
print(f"{tuple(embeddings.shape)} {embeddings.dtype}, lengths {embeddings.sqr().sum(1).sqrt().to_vec1()}")

# Rows have length one, so that products are cosines.
for row, text in zip(embeddings.matmul(embeddings.t()).to_vec2(), texts):
    print(f"  {' '.join(f'{value:5.2f}' for value in row)}  {text}")

query = model.encode(["animals at play"])
scores = embeddings.matmul(query.t()).squeeze(1)
print(f"nearest to 'animals at play': {texts[scores.argmax(0).to_scalar()]!r}")

# Without normalising, the lengths stay; pooling takes the mean over a text's tokens, never over padding.
plain = EmbeddingModel.from_config(EmbeddingConfig(arguments.model, normalize=False, max_seq_length=128))
lengths = plain.encode(texts).sqr().sum(1).sqrt().to_vec1()
print(f"not normalised: lengths {[round(length, 1) for length in lengths]}")
hidden, mask = Tensor([[[1.0, 2.0], [3.0, 2.0], [9.0, 9.0]]]), Tensor([[1, 1, 0]])
print(f"mean_pool {mean_pool(hidden, mask).to_vec2()}, normalised {normalize(mean_pool(hidden, mask)).to_vec2()}")

try:
    model.encode([])
except EmbeddingError.EmptyInput as error:
    print(error)
