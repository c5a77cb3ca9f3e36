"""LoRA training: layers, adapters, data, schedules, the trainer."""

from ..models.projection import TargetModule
from ..nn.optim import ParamsAdamW
from .adapter import LoRAAdapter, LoRAAdapterConfig, merged_weights
from .config import TrainingConfig
from .lora import LoRAConfig, LoRALayer
from .metrics import MetricsLog, plot_loss, read_metrics, render_curve
from .schedule import LRScheduler
from .trainer import AdapterTrainer, EvalMetrics, StepMetrics

__all__ = [
    "AdapterTrainer",
    "EvalMetrics",
    "LRScheduler",
    "LoRAAdapter",
    "LoRAAdapterConfig",
    "LoRAConfig",
    "LoRALayer",
    "MetricsLog",
    "ParamsAdamW",
    "StepMetrics",
    "TargetModule",
    "TrainingConfig",
    "merged_weights",
    "plot_loss",
    "read_metrics",
    "render_curve",
]
