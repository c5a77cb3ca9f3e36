"""A forward pass by hand: ids in, logits out, the likeliest next tokens; then one more token through a cache.

python examples/forward_pass.py [--model smollm2] [--prompt "The capital of France is"]

metal-candle (Rust): forward_pass, which runs a Qwen of zeros.
"""

from __future__ import annotations

import argparse

from metal_candle import D, Tensor
from metal_candle.models import load_model
from metal_candle.nn.ops import softmax_last_dim

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="smollm2, a GGUF file or a Hugging Face folder")
parser.add_argument("--prompt", default="The capital of France is")
arguments = parser.parse_args()

loaded = load_model(arguments.model)
model, tokenizer = loaded.model, loaded.tokenizer
config = model.config
print(f"{config.model_type}: {model.num_layers()} layers of {config.hidden_size}, {model.num_parameters():,} numbers")
print(f"heads: {config.num_attention_heads} for queries, {config.num_kv_heads()} for keys and values")

ids = tokenizer.encode(arguments.prompt)
xs = Tensor([ids])
logits = model.forward(xs)  # causal; (batch, tokens, vocabulary)
print(f"ids {tuple(xs.shape)} -> logits {tuple(logits.shape)}")

# The last position says what comes next.
probabilities = softmax_last_dim(logits.i((0, -1)))
for token in probabilities.arg_sort_last_dim(False).to_vec1()[:5]:
    print(f"{probabilities.i(token).to_scalar():7.1%} {tokenizer.decode([token])!r}")

# With caches, only what is new goes in: the same logits as from the whole sequence.
caches = model.new_caches()
model.forward(xs, caches)
chosen = logits.i((0, -1)).argmax(D.Minus1).to_scalar()
step = model.forward(Tensor([[chosen]]), caches).i((0, 0))
whole = model.forward(Tensor([[*ids, chosen]])).i((0, -1))
print(f"cache of {caches[0].current_seq_len()} tokens; one step of 1 token against all: ", end="")
print(f"largest difference {(step - whole).abs().max_all().to_scalar():.1e}")
