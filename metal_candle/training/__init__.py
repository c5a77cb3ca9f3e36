"""LoRA training: layers, adapters, data, schedules, optimizers, trainers, checkpoints."""

from ..models.adaptable import ApplyAdapter
from ..models.target_module import TargetModule
from ..nn.optim import ParamsAdamW
from .adamw import AdamW, AdamWConfig
from .adapter import LoRAAdapter, LoRAAdapterConfig, merged_weights
from .adapter_report import AdapterReport
from .callbacks import EarlyStopping, TrainingCallback
from .checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from .config import TrainingConfig
from .curves import plot_loss, render_curve
from .eager_trainer import Trainer
from .events import EvalMetrics, StepMetrics
from .lora import LoRAConfig, LoRALayer
from .losses import cross_entropy_loss, cross_entropy_loss_with_smoothing
from .memory import plan_memory
from .memory_plan import MemoryPlan
from .merge import Merged, MergeWarning, merge_adapter
from .metrics import MetricsLog, read_metrics
from .progress import ProgressBar
from .registry import AdapterRegistry
from .saving import SaveBest, SaveState
from .schedule import LRScheduler
from .state import TrainingState
from .step import TrainingStep
from .trainer import AdapterTrainer

__all__ = [
    "AdamW",
    "AdamWConfig",
    "AdapterRegistry",
    "AdapterReport",
    "AdapterTrainer",
    "ApplyAdapter",
    "CheckpointMetadata",
    "EarlyStopping",
    "EvalMetrics",
    "LRScheduler",
    "LoRAAdapter",
    "LoRAAdapterConfig",
    "LoRAConfig",
    "LoRALayer",
    "MemoryPlan",
    "MergeWarning",
    "Merged",
    "MetricsLog",
    "ParamsAdamW",
    "ProgressBar",
    "SaveBest",
    "SaveState",
    "StepMetrics",
    "TargetModule",
    "Trainer",
    "TrainingCallback",
    "TrainingConfig",
    "TrainingState",
    "TrainingStep",
    "cross_entropy_loss",
    "cross_entropy_loss_with_smoothing",
    "load_checkpoint",
    "merge_adapter",
    "merged_weights",
    "plan_memory",
    "plot_loss",
    "read_metrics",
    "render_curve",
    "save_checkpoint",
]
