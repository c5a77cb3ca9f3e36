"""Generated text: greedy and drawn, filters, repetition penalty, what ends it, and a model of one's own.

python examples/generate_text.py [--model smollm2] [--prompt "How do I keep bread fresh?"] [--max-tokens 16]

metal-candle (Rust): generate_text, whose only model is the last one here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from metal_candle import Device, Tensor
from metal_candle.inference import Generator, GeneratorConfig, SamplingStrategy, StreamToken, TextGenerator
from metal_candle.models import load_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="smollm2, a GGUF file or a Hugging Face folder")
parser.add_argument("--prompt", default="How do I keep bread fresh?")
parser.add_argument("--max-tokens", type=int, default=16)
arguments = parser.parse_args()

loaded = load_model(arguments.model)
messages = [{"role": "user", "content": arguments.prompt}]
base = GeneratorConfig(max_tokens=arguments.max_tokens, seed=1)
configs = {
    "greedy": base,
    "top-k 10": replace(base, sampling=SamplingStrategy.TopK(k=10)),
    "top-p 0.9": replace(base, sampling=SamplingStrategy.TopP(p=0.9)),
    "temperature 0.7, top-p 0.9": replace(base, sampling=SamplingStrategy.Temperature(temperature=0.7), top_p=0.9),
    "repetition penalty 1.3": replace(base, repetition_penalty=1.3),
    'until ","': replace(base, stop=[","]),
}
for name, config in configs.items():
    print(f"{name}: {TextGenerator(loaded, config).generate(messages)!r}")


class Falling:
    """A model of one's own, which counts down: after 50 comes 49. ``Generator`` takes any class with these names."""

    device = Device.default()

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Logits ``(1, t, 100)`` of ids ``(1, t)``."""
        wanted = (input_ids.to_dtype("f32") - 1.0).unsqueeze(2)
        return (Tensor.arange(0.0, 100.0, self.device) - wanted).sqr().neg()

    def vocab_size(self) -> int:
        """How many tokens there are."""
        return 100


# On ids: the result begins with the prompt; the token that ends it is kept.
print(Generator(Falling(), GeneratorConfig(max_tokens=4)).generate([50]))
print(Generator(Falling(), GeneratorConfig(eos_token_id=45)).generate([50]))
print(Generator(Falling(), GeneratorConfig(stop_tokens=[48, 44])).generate([50]))


def until_47(token: StreamToken) -> bool:
    """Seen for each token as it comes; ``False`` ends it."""
    print(f"{token.token_id} ({token.probability:.0%})", end=" ")
    return token.token_id > 47


print(Generator(Falling()).generate_stream([50], until_47))
