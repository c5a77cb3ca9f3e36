"""A model's ``config.json``: what it says, and whether a network here can be built from it.

Parsing checks types only, as the original does; ``validate`` checks meaning. Unknown keys are ignored.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

from ..error import ModelError
from ..error.expect import PATH, a, expect
from ..error.text import shown
from ..files import parse_json_object, read_json_object

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""The supported ``model_type``s, each with the name transformers gives its network."""

ROPE_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The supported kinds of RoPE scaling, each with the numbers it needs."""

_LAYER_TYPES = ("full_attention", "sliding_attention")

# What transformers assumes when the key is absent and that differs from our own default.
_ABSENT_MEANS: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": 4096},
    "qwen3": {"head_dim": 128},
}


def _invalid(reason: str) -> ModelError:
    return ModelError.InvalidConfig(reason=reason)


@dataclass(kw_only=True)
class ModelConfig:
    """The sizes and switches of a decoder, with the names of ``config.json``.

    ``explicit_head_dim`` is the file's ``head_dim``; the method ``head_dim()`` gives the one in force.
    ``rope_scaling`` is ``None`` or has a ``rope_type``, whichever spelling the file used. ``quantization`` is MLX's:
    ``bits``, ``group_size``, ``mode``, and such an entry under the path of each module that has its own.
    """

    architectures: list[str] = field(default_factory=list)
    model_type: str = ""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    explicit_head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    torch_dtype: str | None = None
    quantization: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value, takes = getattr(self, item.name), str(item.type)
            if value is not None or not takes.endswith("| None"):
                setattr(self, item.name, typed(value, takes, item.name))
        if not self.model_type:
            names = {name: kind for kind, name in ARCHITECTURES.items()}
            first = self.architectures[0] if self.architectures else "llama"
            self.model_type = names.get(first, first)
        if not self.architectures and self.model_type in ARCHITECTURES:
            self.architectures = [ARCHITECTURES[self.model_type]]
        if self.rope_scaling is not None:
            scaling = dict(self.rope_scaling)
            kind = scaling.pop("type", "default")
            scaling = {"rope_type": str(scaling.pop("rope_type", kind)), **scaling}
            self.rope_scaling = None if scaling["rope_type"] == "default" else scaling

    # --- reading and writing ------------------------------------------------------------------

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read the text of a ``config.json``. Raises ``ModelError.InvalidConfig``; does not ``validate``."""
        expect("ModelConfig", text, a(str, "the text of a config.json"))
        return cls.from_dict(parse_json_object(text, "config", _invalid), "config")

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> ModelConfig:
        """Read a ``config.json``. Raises ``ModelError.InvalidConfig``; does not ``validate``."""
        expect("ModelConfig", path, PATH)
        return cls.from_dict(read_json_object(path, _invalid), str(path))

    @classmethod
    def from_directory(cls, path: str | PathLike[str]) -> ModelConfig:
        """Read and ``validate`` the ``config.json`` of a Hugging Face folder.

        Raises ``ModelError.FileNotFound`` when the folder has none, ``ModelError.InvalidConfig`` else.
        """
        expect("ModelConfig", path, PATH)
        file = Path(path) / "config.json"
        if not os.path.isfile(file):
            raise ModelError.FileNotFound(path=f"{shown(file, 300)}; a Hugging Face model folder has one")
        return cls.from_file(file).validated(str(file))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> ModelConfig:
        """Read the object of a ``config.json``; ``source`` names it in errors. Does not ``validate``."""
        expect("ModelConfig", values, a(dict, "the object of a config.json, a dict"))
        values = {**_ABSENT_MEANS.get(str(values.get("model_type")), {}), **values}
        values["explicit_head_dim"] = values.get("head_dim")
        values.setdefault("torch_dtype", values.get("dtype"))  # the newer name of the same thing
        values.setdefault("quantization", values.get("quantization_config"))  # MLX's tools write both
        rope = values.get("rope_parameters")  # newer transformers: rope_theta and rope_scaling in one
        if isinstance(rope, dict):
            values["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
            values.update({key: rope[key] for key in ("rope_theta",) if key in rope})
        if missing := [name for name in _REQUIRED if values.get(name) is None]:
            raise _invalid(f"{source}: {', '.join(missing)} missing")
        given = {item.name: (values[item.name], str(item.type)) for item in fields(cls) if item.name in values}
        return cls(
            **{
                name: typed(value, takes, f"{source}: {name}")
                for name, (value, takes) in given.items()
                if value is not None
            }
        )

    def to_json(self) -> str:
        """The text of a ``config.json`` that transformers and mlx-lm read; ``head_dim`` is always said."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["explicit_head_dim"] = None
        values["head_dim"] = self.head_dim()
        said = _ABSENT_MEANS.get(self.model_type, {})  # where null is not the same as absent
        return json.dumps({k: v for k, v in values.items() if v is not None or k in said}, indent=2) + "\n"

    # --- meaning ------------------------------------------------------------------------------

    def head_dim(self) -> int:
        """Width of one head: the one given, else ``hidden_size / num_attention_heads``."""
        return self.explicit_head_dim or self.hidden_size // self.num_attention_heads

    def num_kv_heads(self) -> int:
        """Number of key and value heads: the one given, else one per query head."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether the q, k and v projections have a bias: in qwen2 always, else by ``attention_bias``."""
        return self.model_type == "qwen2" or self.attention_bias

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias: never in qwen2."""
        return self.model_type != "qwen2" and self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether each head of q and k goes through an RMS norm before RoPE, as in qwen3."""
        return self.model_type == "qwen3"

    def window(self, layer: int) -> int | None:
        """How many positions, its own included, a query of this layer sees; ``None`` for all before it."""
        if self.sliding_window is None or self.model_type == "llama":
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        if self.model_type == "mistral":
            return self.sliding_window
        first = self.num_hidden_layers if self.max_window_layers is None else self.max_window_layers
        return self.sliding_window if self.use_sliding_window and layer >= first else None

    def eos_token_ids(self) -> frozenset[int]:
        """The ids that end a text, possibly none."""
        ids = self.eos_token_id
        return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)

    def validate(self) -> None:
        """Raise ``ModelError.InvalidConfig`` unless a network can be built from these numbers."""
        if self.model_type not in ARCHITECTURES:
            raise _invalid(f"unknown architecture {self.model_type!r}; takes {', '.join(ARCHITECTURES)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise _invalid(f"{name.removeprefix('explicit_')} is {value}; takes more than 0")
        heads, kv_heads = self.num_attention_heads, self.num_kv_heads()
        if self.explicit_head_dim is None and self.hidden_size % heads:
            raise _invalid(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}")
        if heads % kv_heads:
            raise _invalid(f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
        if self.head_dim() % 2:
            raise _invalid(f"head_dim is {self.head_dim()}; takes an even number, RoPE turns pairs")
        if self.hidden_act not in ("silu", "swish"):
            raise _invalid(f"hidden_act is {self.hidden_act!r}; takes 'silu'")
        if self.partial_rotary_factor != 1.0:
            raise _invalid(f"partial_rotary_factor is {self.partial_rotary_factor}; takes 1.0")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise _invalid(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        unknown = [kind for kind in self.layer_types or () if kind not in _LAYER_TYPES]
        if unknown and self.model_type != "llama":  # which pays no regard to them
            raise _invalid(f"layer_types has {unknown[0]!r}; takes {', '.join(_LAYER_TYPES)}")
        self._validate_rope()
        if self.quantization is not None and (method := self.quantization.get("quant_method")) is not None:
            raise _invalid(f"quantization of method {method!r} is not supported; takes MLX's, which mlx-lm writes")

    def validated(self, source: str) -> ModelConfig:
        """This configuration, after ``validate``; ``source`` names the file in the error."""
        try:
            self.validate()
        except ModelError.InvalidConfig as error:
            raise _invalid(f"{source}: {error.reason}") from error
        return self

    def _validate_rope(self) -> None:
        if self.rope_scaling is None:
            return
        kind = self.rope_scaling["rope_type"]
        if kind not in ROPE_FIELDS:
            raise _invalid(f"rope_scaling type {kind!r} is not supported; takes default, {', '.join(ROPE_FIELDS)}")
        for name in ROPE_FIELDS[kind]:
            value = self.rope_scaling.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise _invalid(f"rope_scaling of type {kind!r}: {name} is {value!r}; takes a number above 0")


_REQUIRED = tuple(item.name for item in fields(ModelConfig) if item.default is item.default_factory is MISSING)
_POSITIVE = (
    *_REQUIRED,
    *("num_key_value_heads", "explicit_head_dim", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "sliding_window"),
)
_PLAIN: dict[str, type] = {"bool": bool, "str": str, "dict[str, Any]": dict}


def typed(value: Any, takes: str, name: str) -> Any:
    """``value`` as the annotation ``takes`` wants it, or ``ModelError.InvalidConfig`` naming ``name``."""
    for kind in takes.split(" | "):
        if kind == "int" and isinstance(value, Integral | float) and not isinstance(value, bool):
            if isinstance(value, Integral) or value.is_integer():
                return int(value)
        elif kind == "float" and isinstance(value, Integral | float) and not isinstance(value, bool):
            return float(value)
        elif kind in _PLAIN and isinstance(value, _PLAIN[kind]):
            return value
        elif kind.startswith("list") and isinstance(value, list):
            return [typed(entry, kind[5:-1], name) for entry in value]
    raise _invalid(f"{name} is {value!r}; takes {takes.removesuffix(' | None')}")
