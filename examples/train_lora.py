"""The crate's training loop: a Trainer with its adapter, a forward function, metrics, a checkpoint with metadata.

python examples/train_lora.py [--steps 60]

A Qwen of random weights learns to count in circles, through LoRA alone. For texts and real models see
finetune_lora.py. metal-candle (Rust): train_lora, whose logits are random numbers.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from metal_candle import Device, DType, Tensor
from metal_candle.models import ModelConfig, Qwen
from metal_candle.nn import VarBuilder, VarMap
from metal_candle.training import (
    AdamWConfig,
    CheckpointMetadata,
    LoRAAdapter,
    LoRAAdapterConfig,
    LRScheduler,
    StepMetrics,
    TargetModule,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    save_checkpoint,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=60)
arguments = parser.parse_args()

Device.default().set_seed(0)
config = ModelConfig(
    architectures=["Qwen2ForCausalLM"],
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2}
model = Qwen(config, VarBuilder.from_varmap(VarMap(), DType.F32))

lora_config = LoRAAdapterConfig(rank=8, target_modules=tuple(TargetModule))
training_config = TrainingConfig(
    num_epochs=arguments.steps,
    max_steps=arguments.steps,
    lr_scheduler=LRScheduler.warmup_cosine(max(1, arguments.steps // 10), arguments.steps + 1, 2e-2, 1e-3),
    optimizer_config=AdamWConfig(weight_decay=0.01),
    max_grad_norm=1.0,
)
trainer = Trainer(lora_config=lora_config, training_config=training_config, **sizes)
adapter = trainer.lora_adapter()
frozen = adapter.num_frozen_parameters(model.num_parameters() + adapter.num_trainable_parameters())
print(f"trained {adapter.num_trainable_parameters():,} numbers, frozen {frozen:,}")

# Rows that count upwards from different starts; each position's target is the id that follows.
counting = [[(start + i) % 32 for i in range(17)] for start in range(0, 32, 4)]
dataset = [(Tensor([row[:-1] for row in counting]), Tensor([row[1:] for row in counting]))]


def report(metrics: StepMetrics) -> None:
    """Called after each step; ``False`` would end the run."""
    if metrics.step == 1 or metrics.step % 10 == 0:
        print(f"step {metrics.step}: loss {metrics.loss:.4f}, rate {metrics.learning_rate:.1e}")


model.apply_adapter(adapter)
metrics = trainer.train(dataset, model.forward, callbacks=[report])
guess = model.forward(Tensor([[7, 8, 9]])).i((0, -1)).argmax(0).to_scalar()
print(f"after 7, 8, 9 comes {guess}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "adapter.safetensors"
    last = metrics[-1]
    save_checkpoint(adapter, path, CheckpointMetadata(last.step, last.loss, last.learning_rate))
    again = LoRAAdapter(config=lora_config, **sizes)
    metadata = load_checkpoint(again, path)
print(f"loaded: step {metadata.global_step}, loss {metadata.loss:.4f}")

without = LoRAAdapter(config=lora_config, **sizes)  # B is zero: changes nothing
for name, each in {"untrained": without, "loaded": again}.items():
    model.apply_adapter(each)
    print(f"{name}: after 7, 8, 9 comes {model.forward(Tensor([[7, 8, 9]])).i((0, -1)).argmax(0).to_scalar()}")
