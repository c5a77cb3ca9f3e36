"""Below the generators: attention by hand with a KVCache, and tokens drawn from logits.

python examples/inference_demo.py

metal-candle (Rust): inference_demo.
"""

from __future__ import annotations

from collections import Counter

from metal_candle import Device, InferenceError, Tensor
from metal_candle.inference import (
    KVCache,
    KVCacheConfig,
    SamplingStrategy,
    apply_repetition_penalty,
    sample_token,
    sample_token_with_metadata,
)
from metal_candle.nn.ops import sdpa

Device.default().set_seed(0)

# --- 1: keys and values that are kept -----------------------------------------------------------

config = KVCacheConfig(max_seq_len=8, num_layers=2, num_heads=4, head_dim=16)
cache = KVCache(config)
query, key, value = (Tensor.randn(0.0, 1.0, (1, 4, 6, 16)) for _ in range(3))
scale = config.head_dim**-0.5


def attend(layer: int, start: int, count: int) -> Tensor:
    """What new tokens see: all that the cache holds, themselves included. Causal from the bottom right."""
    q, k, v = (each.narrow(2, start, count) for each in (query, key, value))
    keys, values = cache.update(layer, k, v)
    return sdpa(q, keys, values, None, True, scale, 1.0)


# Four tokens of a prompt at once, then two one by one, against all six at once.
parts = []
for start, count in [(0, 4), (4, 1), (5, 1)]:
    attended = [attend(layer, start, count) for layer in range(config.num_layers)]
    parts.append(attended[-1])
whole = sdpa(query, key, value, None, True, scale, 1.0)
difference = (Tensor.cat(parts, 2) - whole).abs().max_all().to_scalar()
print(f"{cache}; keys {tuple(cache.get(0)[0].shape)}; with and without it: largest difference {difference:.1e}")

cache.trim(4)  # another continuation of the same prompt
print(f"trimmed: {cache.position()} tokens of {cache.max_seq_len()}, {cache.num_cached_layers()} layers")
try:
    attend(0, 0, 6)
except InferenceError.CacheFull as error:
    print(error)

# --- 2: from logits to a token ------------------------------------------------------------------

logits = Tensor([1.0, 5.0, 3.0, 0.5, 2.0, 0.1, 4.0, 1.5, 0.8, 2.5])
strategies = {
    "greedy": SamplingStrategy.Greedy,
    "top-k 3": SamplingStrategy.TopK(k=3),
    "top-p 0.9": SamplingStrategy.TopP(p=0.9),
    "temperature 0.5": SamplingStrategy.Temperature(temperature=0.5),
    "temperature 2": SamplingStrategy.Temperature(temperature=2.0),
}
for name, strategy in strategies.items():
    drawn = Counter(sample_token(logits, strategy) for _ in range(500))
    print(f"{name:16}", ", ".join(f"{token}: {count / 5:.0f} %" for token, count in drawn.most_common()))

token = sample_token_with_metadata(logits, SamplingStrategy.Greedy, eos_token_id=1)
print(f"token {token.token_id}: logit {token.logit}, probability {token.probability:.2f}, end: {token.is_eos}")

# Ids that were there: positive logits divided, negative ones multiplied, each id once.
penalized = apply_repetition_penalty(logits, [1, 1, 6], 2.0)
print(f"repetition penalty 2: {penalized.to_vec1()[1]}, {penalized.to_vec1()[6]}; greedy takes", end=" ")
print(sample_token(logits, SamplingStrategy.Greedy, generated_ids=[1, 1, 6], repetition_penalty=2.0))
