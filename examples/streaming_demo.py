"""Tokens as they come: a loop, a callback, an async iterator beside other work, and ways to stop.

python examples/streaming_demo.py [--model smollm2]

metal-candle (Rust): streaming_demo.
"""

from __future__ import annotations

import argparse
import asyncio

from metal_candle.inference import Cancellation, Generator, GeneratorConfig, StreamToken, TextGenerator
from metal_candle.models import load_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="smollm2, a GGUF file or a Hugging Face folder")
arguments = parser.parse_args()

loaded = load_model(arguments.model)
config = GeneratorConfig(max_tokens=12)
text = TextGenerator(loaded, config)
messages = [{"role": "user", "content": "Name the planets."}]

print("a loop over pieces of text:", end=" ")
for piece in text.stream(messages):
    print(piece, end="", flush=True)

print("\n\ntokens with what is known of each, up to the first colon:")
for token in text.stream_tokens(messages, progress=lambda done, total: print(f"  prompt: {done} of {total} tokens")):
    print(f"  {token.token_id:>5} {token.text!r:12} logit {token.logit:5.1f} probability {token.probability:4.0%}")
    if token.text == ":":
        break  # leaving the loop stops the generation


def at_most_five(token: StreamToken) -> bool:
    """A callback stops by returning ``False``; that token stays."""
    seen.append(token.token_id)
    return len(seen) < 5


seen: list[int] = []
ids = text.encode(messages)
whole = Generator(loaded.model, config).generate_stream(ids, at_most_five)
print(f"\na callback on ids: {loaded.tokenizer.decode(whole[len(ids) :])!r}")


async def ticks(count: list[int]) -> None:
    """What else the event loop does meanwhile."""
    while True:
        count[0] += 1
        await asyncio.sleep(0.001)


async def beside_other_work() -> None:
    """Each token is computed in a thread: the event loop runs on."""
    count = [0]
    other = asyncio.create_task(ticks(count))
    answer = "".join([piece async for piece in text.stream_async(messages)])
    other.cancel()
    print(f"\nasync: {answer!r}; the event loop ran on: {count[0] > 12}")


async def cancelled() -> None:
    """From anywhere: another thread, a signal handler, or here the loop's own body."""
    cancel, pieces = Cancellation(), []
    async for piece in text.stream_async(messages, cancel=cancel):
        pieces.append(piece)
        if len(pieces) == 3:
            cancel.cancel()
    print(f"cancelled after 3 pieces: {''.join(pieces)!r}")


asyncio.run(beside_other_work())
asyncio.run(cancelled())
