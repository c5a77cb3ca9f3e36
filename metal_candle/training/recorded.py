"""Configurations as JSON can hold them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

from ..error import CheckpointError, TrainingError
from ..models.target_module import TargetModule
from ..nn.optim import ParamsAdamW
from .adapter import LoRAAdapterConfig
from .config import TrainingConfig
from .schedule import Constant, Cosine, Linear, LRScheduler, WarmupCosine

Record = dict[str, Any]
C = TypeVar("C")

SCHEDULES: dict[str, type[LRScheduler]] = {kind.__name__: kind for kind in (Constant, Linear, Cosine, WarmupCosine)}


def record_of_schedule(schedule: LRScheduler) -> Record:
    """``{"type": "Cosine", "total_steps": …}``; of a schedule that is no dataclass its type alone."""
    own = asdict(schedule) if is_dataclass(schedule) else {}
    return {"type": type(schedule).__name__, **own}


def record_of_config(config: TrainingConfig) -> Record:
    """Every field by name."""
    record = {field.name: getattr(config, field.name) for field in fields(config)}
    record["lr_scheduler"] = record_of_schedule(config.lr_scheduler)
    record["optimizer_config"] = asdict(config.optimizer_params())
    return record


def config_of(record: Mapping[str, Any], source: str) -> TrainingConfig:
    """The configuration that gave this record. Raises ``CheckpointError.InvalidFormat`` for fields that do not exist,
    and ``TrainingError.StateError`` for a schedule of the user's own, which a record cannot make."""
    values = dict(record)
    schedule = dict(values.pop("lr_scheduler", {}))
    kind = str(schedule.pop("type", ""))
    if kind not in SCHEDULES:
        raise TrainingError.StateError(
            reason=f"{source}: the run's schedule is a {kind or 'missing one'}, which the file cannot make; takes a "
            "trainer made with it, whose load_state reads the file"
        )
    values["lr_scheduler"] = made_of(SCHEDULES[kind], schedule, source)
    values["optimizer_config"] = made_of(ParamsAdamW, values.get("optimizer_config", {}), source)
    return made_of(TrainingConfig, values, source)


def record_of_adapter(config: LoRAAdapterConfig) -> Record:
    """Every field by name, the targets by their names."""
    record = {field.name: getattr(config, field.name) for field in fields(config)}
    return {**record, "target_modules": config.target_names()}


def adapter_config_of(record: Mapping[str, Any], source: str) -> LoRAAdapterConfig:
    """The configuration that gave this record. Raises ``CheckpointError.InvalidFormat``."""
    names = record.get("target_modules", ())
    targets = tuple(TargetModule.from_name(name) or name for name in names)
    return made_of(LoRAAdapterConfig, {**record, "target_modules": targets}, source)


def made_of(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    """The dataclass of these fields. Raises ``CheckpointError.InvalidFormat`` for one that does not exist."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError.InvalidFormat(
            reason=f"{source}: {kind.__name__} has {', '.join(unknown)} there, which this version of metal-candle does "
            "not know"
        )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a field without default is missing, or none that it takes
        raise CheckpointError.InvalidFormat(reason=f"{source}: {kind.__name__}: {error}") from error


def differences(here: Mapping[str, Any], there: Mapping[str, Any], name: str = "") -> list[str]:
    """What two records do not have in common: "optimizer_config.lr is 0.1 here, 0.01 there" …"""
    found = []
    for key in dict.fromkeys([*there, *here]):
        mine, theirs, path = here.get(key), there.get(key), f"{name}{key}"
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += differences(mine, theirs, f"{path}.")
        elif _plain(mine) != _plain(theirs):
            found.append(f"{path} is {mine} here, {theirs} there")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
