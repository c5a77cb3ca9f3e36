"""What generation and reports need of an mlx-lm model's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True)
class MlxLmConfig:
    """Architecture, context and end tokens; ``None`` and none where the configuration does not say."""

    model_type: str
    max_position_embeddings: int | None
    eos: frozenset[int] = frozenset()
    values: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The object of ``config.json`` itself, where it was given."""

    @classmethod
    def of(cls, model: Any, values: Mapping[str, Any] | None = None) -> MlxLmConfig:
        """From the object of a ``config.json``, else from the arguments the model was built with."""
        args = getattr(model, "args", None)
        own = dict(values) if values is not None else asdict(args) if is_dataclass(args) else {}  # type: ignore[arg-type]
        nested = own.get("text_config")
        said = {**nested, **own} if isinstance(nested, dict) else own
        context = next((said[name] for name in _CONTEXT if isinstance(said.get(name), int)), None)
        return cls(str(said.get("model_type", "")), context, _ids(said.get("eos_token_id")), values or {})

    def eos_token_ids(self) -> frozenset[int]:
        """The ids that end a text, possibly none."""
        return self.eos


def _ids(value: Any) -> frozenset[int]:
    if isinstance(value, int):
        return frozenset([value])
    return frozenset(each for each in value if isinstance(each, int)) if isinstance(value, list) else frozenset()
