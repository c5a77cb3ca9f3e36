"""Several LoRA adapters on one model, by name: trained, switched while the model stays as it is, unloaded.

python examples/adapter_swap_demo.py [--model smollm2]

metal-candle (Rust): adapter_swap_demo. There the registry keeps names; here the active adapter acts in the model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from metal_candle import Device, Error
from metal_candle.inference import GeneratorConfig, TextGenerator
from metal_candle.models import load_model
from metal_candle.training import (
    AdapterRegistry,
    AdapterTrainer,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    TrainingConfig,
)
from metal_candle.training.data import Completion, Row, tokenize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="smollm2, a GGUF file or a Hugging Face folder")
arguments = parser.parse_args()

QUESTION = "How is the soup?"
ANSWERS = {"sailor": "Arr, salty as the sea!", "critic": "Four stars. Would eat again."}

loaded = load_model(arguments.model)
model = loaded.model
generator = TextGenerator(loaded, GeneratorConfig(max_tokens=10))


def trained(name: str, answer: str) -> LoRAAdapter:
    """An adapter that has learned one answer by heart."""
    rows = [Row(Path(name), 1, Completion(QUESTION, answer))]  # read_rows(path) reads them from a file
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=4))
    config = TrainingConfig(num_epochs=5, lr_scheduler=LRScheduler.constant(1e-2))
    events = list(AdapterTrainer(model, adapter, config).run(tokenize(rows, loaded.tokenizer, max_length=128)))
    print(f"{name}: loss {events[0].loss:.2f} -> {events[-1].loss:.2f}")
    return adapter


Device.default().set_seed(0)
registry = AdapterRegistry(model)
for name, answer in ANSWERS.items():
    registry.add_adapter(name, trained(name, answer))
for name in registry.list_adapters():
    share = registry.get_adapter(name).num_trainable_parameters() / model.num_parameters()
    print(f"{name}: {share:.2%} of the model's numbers")

# A switch sets a reference for each projection: nothing is copied, whatever the adapters' size and number.
for name in [None, "sailor", "critic", None]:
    start = time.perf_counter()
    if name is None:
        registry.deactivate()
    else:
        registry.activate(name)
    seconds = time.perf_counter() - start
    answer = generator.generate([{"role": "user", "content": QUESTION}])
    print(f"active: {registry.active_adapter()} (switched in {seconds * 1e3:.1f} ms): {answer}")

registry.unload_adapter("sailor")
try:
    registry.activate("sailor")
except Error as error:
    print(error)
