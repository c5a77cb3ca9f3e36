"""How much memory a training run will take, before it begins; metal-candle has no counterpart.

The step of the run is recorded for its longest batch, rewritten and differentiated as it will be, and turned into
MLX's graph; then that graph's evaluation is gone through in MLX's order, adding up what is allocated and given back
(see ``allocation``). Nothing is computed. So the plan has whatever the architecture does: which activations a gradient
keeps, the blocks of attention, the head's logits, what gradient checkpointing computes again. For a model given by its
configuration not even weights are made. The plan is that of the CPU's kernels; a GPU's fused ones keep no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import Device
from ..dtype import DType, DTypeLike
from ..error import TrainingError
from ..error.expect import FLAG, INTEGER, Kind, a, optional
from ..error.takes import takes
from ..graph.operations.random import next_key
from ..models.adaptable import AdaptableModel, RecomputableModel
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..nn.backends import Zeros
from ..nn.init import Init
from ..nn.var_builder import VarBuilder
from ..shape import Shape
from ..tensor.base import TensorBase
from ..tensor.containers import skeleton
from ..tensor.eager import Tensor
from ..tensor.memory import device_memory
from ..tensor.program import trace
from .adapter import LoRAAdapter, LoRAAdapterConfig
from .allocation import Usage, usage
from .batch_loss import targets_of
from .bounds import at_least
from .config import TrainingConfig
from .data.batching import Batch
from .data.tokenizing import EXAMPLES, Example
from .epochs import largest_batch
from .memory_plan import SHARE, MemoryPlan
from .state import random_key, set_random_key
from .tape import tape_of
from .trainer import AdapterTrainer

BITS, GROUP = 4, 64
"""A base of 4 bits has a scale and a bias for each group of weights."""


DEPTHS = (2, 4)
"""Blocks of the networks from which other settings of a deep one are estimated: each further block takes the same."""


@takes(
    model=Kind("a ModelConfig, or a model", lambda model: isinstance(model, (ModelConfig, AdaptableModel))),
    lora=a(LoRAAdapterConfig),
    training=a(TrainingConfig),
    batch=a(Batch),
    what_fits=FLAG,
)
def plan_memory(
    model: ModelConfig | AdaptableModel,
    lora: LoRAAdapterConfig,
    training: TrainingConfig,
    batch: Batch,
    dtype: DTypeLike = DType.F32,
    what_fits: bool = False,
) -> MemoryPlan:
    """The peak memory of training with batches up to ``batch``; see ``longest_batch`` and ``batch_of``.

    ``model`` is a configuration, of a model with weights in ``dtype``, or a model, which an adapter is applied to for
    the moment. ``what_fits`` also finds the largest batch and the longest rows that fit, and the peaks with gradient
    checkpointing and with a base of 4 bits; it takes a few times as long. The estimate is within 20 % of what MLX
    measures. The random state is left as it was. Raises ``TrainingError.InvalidConfig`` for a model that an adapter
    acts in, and as ``LoRAAdapter.for_model`` and ``AdapterTrainer``.
    """
    if not isinstance(model, ModelConfig) and model.has_adapter():
        raise TrainingError.InvalidConfig(reason="plan_memory: an adapter acts in the model; remove_adapter() first")
    key = random_key()
    try:
        if not isinstance(model, ModelConfig):
            return _Planner(model, lora, training).plan(batch, what_fits)
        shallow = [_without_weights(_with_depth(model, depth), dtype) for depth in DEPTHS]
        deep = model.num_hidden_layers > sum(DEPTHS)
        return _Planner(_without_weights(model, dtype), lora, training, shallow if deep else ()).plan(batch, what_fits)
    finally:
        set_random_key(key)


@takes(training=a(TrainingConfig), examples=EXAMPLES, pad_id=INTEGER)
def longest_batch(training: TrainingConfig, examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """The batch that needs the most memory in the run: the one of most tokens, then longest, then most trained tokens.

    All epochs are looked through, as each puts other rows together: in one the longest row may be in the last batch,
    with few others. Raises ``TrainingError.InvalidConfig`` for no examples.
    """
    if not examples:
        raise TrainingError.InvalidConfig(reason="longest_batch: there are no examples to train on")
    # An epoch's last update may take fewer batches: these are a few more than the run's.
    most = None if training.max_steps is None else training.max_steps * training.accumulation_steps
    return largest_batch(training, examples, pad_id, most)


@takes(rows=INTEGER, length=INTEGER, trained=optional(INTEGER), packed=FLAG, longest=optional(INTEGER))
def batch_of(
    rows: int, length: int, trained: int | None = None, packed: bool = False, longest: int | None = None
) -> Batch:
    """A batch of ``rows`` rows of ``length`` tokens, of which the last ``trained`` positions are trained, or all.

    ``packed`` makes the rows sequences of packed ones, each ``longest`` tokens long but for the last, or one each.
    """
    count = rows * length if trained is None else trained
    at_least("batch_of", 1, rows=rows, length=length, longest=longest or length)
    at_least("batch_of", 0, trained=count)
    mask = np.arange(rows * length).reshape(rows, length) >= rows * length - count
    ids = np.zeros((rows, length), np.int32)
    if not packed:
        return Batch(ids, ids, mask)
    numbers, positions = np.divmod(np.arange(length, dtype=np.int32), longest or length)
    return Batch(ids, ids, mask, *(np.broadcast_to(each, (rows, length)) for each in (numbers + 1, positions)))


class _Nothing(Zeros):
    """Weights of any shape that take no memory: one zero, seen as often as needed."""

    def get(self, shape: Shape, name: str, hints: Init, dtype: DType, dev: Device) -> Tensor:
        return Tensor.from_mlx(mx.broadcast_to(mx.zeros((), dtype.mlx_), tuple(shape)), dev)


def _with_depth(config: ModelConfig, depth: int) -> ModelConfig:
    kinds = config.layer_types
    return replace(config, num_hidden_layers=depth, layer_types=None if kinds is None else kinds[:depth])


def _without_weights(config: ModelConfig, dtype: DTypeLike) -> Decoder:
    return Decoder(config, VarBuilder.from_backend(_Nothing(), dtype, Device.Cpu))


class _Planner:
    def __init__(
        self, model: Any, lora: LoRAAdapterConfig, training: TrainingConfig, shallow: Sequence[Any] = ()
    ) -> None:
        self.model, self.lora, self.training, self.shallow = model, lora, training, shallow

    def plan(self, batch: Batch, what_fits: bool) -> MemoryPlan:
        rows, length = batch.inputs.shape
        with self._trainer(self.training) as trainer:
            used, least = self._step(trainer, batch), self._step(trainer, _with_least_targets(batch))
            variables = trainer.optimizer.vars()
            adapter = sum(_size(var) for var in variables)
            state = sum(_size(cell) for cell in trainer.optimizer.cells()) + sum(map(_size, trainer.update.sums))
            shapes = {tuple(var.shape) for var in variables}
        weights = self._weights()
        head = max(0, used.peak - least.peak)
        gradients = min(sum(size for shape, size in used.parts.items() if shape in shapes), used.peak - head)
        plan = MemoryPlan(
            rows,
            length,
            batch.trained_tokens,
            weights,
            adapter,
            state,
            gradients,
            head,
            used.peak - head - gradients,
            device_memory(),
            self.training.gradient_checkpointing,
        )
        return self._with_what_fits(plan, batch) if what_fits else plan

    # --- what would fit -----------------------------------------------------------------------

    def _with_what_fits(self, plan: MemoryPlan, batch: Batch) -> MemoryPlan:
        held = plan.weights + plan.adapter + plan.optimizer
        room = SHARE * plan.device - held
        share = plan.targets / (plan.rows * plan.length)
        longest_row = None if batch.positions is None else int(batch.positions.max()) + 1

        def peak(rows: int, length: int) -> int:
            trained = max(1, round(share * rows * length))
            return self._peak(self.training, batch_of(rows, length, trained, longest_row is not None, longest_row))

        here = plan.peak - held
        other = 1 if plan.rows > 1 else 2
        each = (peak(other, plan.length) - here) / (other - plan.rows)
        start = here - each * plan.rows
        # Attention's scores grow with the square, all else in proportion.
        lengths = [plan.length, 2 * plan.length, 4 * plan.length]
        peaks = [here, *(peak(plan.rows, length) for length in lengths[1:])]
        square, linear, constant = np.polyfit(lengths, peaks, 2)
        if square < 0:
            square, (linear, constant) = 0.0, np.polyfit(lengths, peaks, 1)
        largest_length = _largest(lambda n: square * n * n + linear * n + constant <= room, plan.length)
        config = getattr(self.model, "config", None)
        alternatives = {}
        if isinstance(self.model, RecomputableModel):
            turned = not plan.checkpointing
            name = "with gradient checkpointing" if turned else "without gradient checkpointing"
            alternatives[name] = held + self._peak(replace(self.training, gradient_checkpointing=turned), batch)
        four = self._weights_of_four_bits()
        if four < plan.weights:
            alternatives["on a base of 4 bits"] = plan.peak - plan.weights + four
        return replace(
            plan,
            largest_rows=max(0, int((room - start) // each)) if each > 0 else plan.rows,
            largest_length=min(largest_length, getattr(config, "max_position_embeddings", largest_length)),
            alternatives=alternatives,
        )

    # --- the step -----------------------------------------------------------------------------

    def _peak(self, training: TrainingConfig, batch: Batch) -> int:
        if not self.shallow:
            with self._trainer(training) as trainer:
                return self._step(trainer, batch).peak
        few, more = (_Planner(model, self.lora, training)._peak(training, batch) for model in self.shallow)
        each = (more - few) / (DEPTHS[1] - DEPTHS[0])
        return int(more + each * (self.model.num_layers() - DEPTHS[1]))

    @contextmanager
    def _trainer(self, training: TrainingConfig) -> Iterator[AdapterTrainer]:
        """A trainer of a new adapter, which leaves the model as it was."""
        adapter = LoRAAdapter.for_model(self.model, self.lora)
        try:
            trainer = AdapterTrainer(self.model, adapter, training)
            if training.accumulation_steps > 1:
                trainer.update.make_sums()
            yield trainer
        finally:
            self.model.remove_adapter()

    @staticmethod
    def _step(trainer: AdapterTrainer, batch: Batch) -> Usage:
        """What one batch takes beside what the run holds throughout."""
        tensors = list(targets_of(batch, max(1, batch.trained_tokens), trainer.model.device).tensors())
        found: list[TensorBase] = []
        program = trace(trainer.update.of_batch(), "plan_memory", skeleton((tensors, {}), found, "an argument"), found)
        given: list[Any] = [tensor.mlx() for tensor in found]
        given += [next_key() for _ in range(program.keys)]
        given += [variable.node.value for variable in program.reads]
        return usage(tape_of(program.replay.run(given)))

    # --- sizes --------------------------------------------------------------------------------

    def _weights(self) -> int:
        weights = getattr(self.model, "weights", None)
        if weights is None:
            return int(self.model.num_parameters() * self.model.dtype.size_in_bytes())
        return sum(_size(weight) for weight in weights().values())

    def _weights_of_four_bits(self) -> int:
        inside = sum(place.in_features * place.out_features for place in self.model.projections())
        each = self.model.dtype.size_in_bytes()
        return int(inside * (BITS / 8 + 2 * each / GROUP) + (self.model.num_parameters() - inside) * each)


def _size(tensor: Any) -> int:
    return int(math.prod(tensor.shape) * tensor.dtype.size_in_bytes())


def _with_least_targets(batch: Batch) -> Batch:
    """The batch with a single trained position: what the head takes more is the head's."""
    mask = np.zeros_like(batch.mask)
    mask.reshape(-1)[-1] = True
    return replace(batch, mask=mask)


def _largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest number that fits, of a condition that holds up to some number; 0 if 1 does not."""
    low, high = 0, max(start, 1)
    while fits(high) and high < 1 << 24:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
