"""``metal-candle finetune --plan``: the memory of a run, from the configuration alone where that says it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..dtype import DType
from .options import load_with_progress

if TYPE_CHECKING:
    from ..models.quantize_options import QuantizeOptions
    from ..training.adapter import LoRAAdapterConfig
    from ..training.config import TrainingConfig
    from ..training.data import Example
    from ..training.memory_plan import MemoryPlan


def planned_memory(
    model: str,
    dtype: DType,
    held: QuantizeOptions,
    lora: LoRAAdapterConfig,
    training: TrainingConfig,
    train: Sequence[Example],
    pad_id: int,
) -> MemoryPlan:
    """The plan of a run over ``train``. A quantised base is loaded; of any other the configuration is enough."""
    from ..models.load import load_config
    from ..training.memory import longest_batch, plan_memory

    base: Any = load_config(model)
    if held.how is not None or base.quantization is not None:
        base = load_with_progress(model, dtype, held).model
    return plan_memory(base, lora, training, longest_batch(training, train, pad_id), dtype, what_fits=True)
