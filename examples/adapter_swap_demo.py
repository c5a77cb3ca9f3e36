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
    TargetModule,
    TrainingConfig,
)
from metal_candle.training.data import Row, Text, tokenize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="smollm2, a GGUF file or a Hugging Face folder")
arguments = parser.parse_args()

BEGINNING = "The soup is"
SENTENCES = {"sailor": "The soup is salty as the sea, arr!", "critic": "The soup is worth four stars of five."}

loaded = load_model(arguments.model)
model = loaded.model
generator = TextGenerator(loaded, GeneratorConfig(max_tokens=8))


def trained(name: str, sentence: str) -> LoRAAdapter:
    """An adapter that has learned one sentence by heart."""
    rows = [Row(Path(name), 1, Text(sentence))]  # read_rows(path) reads them from a file
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(rank=4, target_modules=tuple(TargetModule)))
    config = TrainingConfig(num_epochs=5, lr_scheduler=LRScheduler.constant(2e-3))
    events = list(AdapterTrainer(model, adapter, config).run(tokenize(rows, loaded.tokenizer, max_length=64)))
    print(f"{name}: loss {events[0].loss:.2f} -> {events[-1].loss:.2f}")
    return adapter


Device.default().set_seed(0)
registry = AdapterRegistry(model)
for name, sentence in SENTENCES.items():
    registry.add_adapter(name, trained(name, sentence))
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
    text = BEGINNING + generator.generate(BEGINNING)
    print(f"active: {registry.active_adapter()} (switched in {seconds * 1e3:.1f} ms): {text!r}")

registry.unload_adapter("sailor")
try:
    registry.activate("sailor")
except Error as error:
    print(error)
