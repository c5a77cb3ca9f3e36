"""Fine-tune SmolLM2-135M-Instruct with LoRA through the Python API: what `metal-candle finetune` does.

python examples/finetune_lora.py [steps]
"""

import sys
from pathlib import Path

from metal_candle import Device
from metal_candle.inference import GeneratorConfig, TextGenerator
from metal_candle.models import load_model
from metal_candle.nn import ParamsAdamW
from metal_candle.training import (
    AdapterTrainer,
    EvalMetrics,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    TargetModule,
    TrainingConfig,
)
from metal_candle.training.data import find_data, read_rows, tokenize

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
QUESTION = [{"role": "user", "content": "How does a stapler work?"}]


def answer(loaded) -> str:
    return "".join(TextGenerator(loaded, GeneratorConfig(max_tokens=60)).stream(QUESTION))


Device.default().set_seed(0)
loaded = load_model("smollm2")
files = find_data("field-guide")
train, valid = (tokenize(read_rows(path), loaded.tokenizer, max_length=512) for path in (files.train, files.valid))

before = answer(loaded)
adapter = LoRAAdapter.for_model(loaded.model, LoRAAdapterConfig(rank=8, alpha=16, target_modules=tuple(TargetModule)))
config = TrainingConfig(
    num_epochs=1,
    max_steps=STEPS,
    batch_size=4,
    lr_scheduler=LRScheduler.warmup_cosine(max(1, STEPS // 10), STEPS + 1, 1e-3, 1e-4),
    optimizer_config=ParamsAdamW(lr=1e-3),
)
trainer = AdapterTrainer(loaded.model, adapter, config, pad_id=loaded.tokenizer.pad_token_id or 0)
for event in trainer.run(train, valid[:8]):
    what = "held-out loss" if isinstance(event, EvalMetrics) else "loss"
    print(f"step {event.step}: {what} {event.loss:.4f}")

adapter.save(Path("runs/field-guide"), base_model="smollm2")
print(f"\nbefore: {before}\n\nafter: {answer(loaded)}\n\nadapter in runs/field-guide")
