"""An mlx-lm model as a folder that mlx-lm loads again."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import mlx.core as mx

from ...dtype import DType, DTypeLike
from ...error import CannotFindTensorError, ModelError, UnexpectedShapeError
from ...error.expect import PATH, a, expect
from ...error.text import described
from ...formats import sharded
from ...nn.quantized_linear import QuantizedWeight
from ...tensor.base import TensorBase
from ..loaded import LoadedModel
from ..save import model_folder, weights_dtype
from .load import mlx_lm_utils
from .model import MlxLmModel

# Beside the weights and config.json: the tokenizer, generation_config.json, code of a model's own.
_KEPT = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
# But for what speaks of other weights: an adapter would act again in the sum.
_LEFT = ("config.json", "adapter_config.json", "*.index.json")


def save_mlx_lm(
    directory: str | PathLike[str],
    loaded: LoadedModel,
    dtype: DTypeLike = DType.F32,
    overrides: Mapping[str, TensorBase | QuantizedWeight] | None = None,
    overwrite: bool = False,
    shard_bytes: int = sharded.SHARD_BYTES,
) -> None:
    """Write what ``load_mlx_lm`` loaded: the configuration and tokenizer as they were, the floats in ``dtype``.

    Floats that the architecture keeps in a dtype of their own, as its ``cast_predicate`` says, stay so; quantised
    weights, too. ``overrides`` replaces weights of linear maps by name, as merging an adapter does; a quantised one by
    one with the same packing, which the configuration says. No adapter is written. The folder is there whole or not at
    all, as of ``save_model``.

    Raises as ``save_model``, and ``ModelError.InvalidConfig`` for what ``load_mlx_lm`` did not load.
    """
    expect("save_mlx_lm", directory, PATH)
    expect("save_mlx_lm", loaded, a(LoadedModel, "what load_mlx_lm gives"), "loaded")
    model = loaded.model
    if not isinstance(model, MlxLmModel) or not model.config.values:
        raise ModelError.InvalidConfig(reason=f"save_mlx_lm: got {described(model)}; takes what load_mlx_lm gives")
    target = weights_dtype("save_mlx_lm", dtype)
    weights = _replaced(model.weights(), overrides or {})
    casts = getattr(model.module, "cast_predicate", lambda name: True)
    dtypes = {
        name: target.mlx_ if mx.issubdtype(weight.dtype, mx.floating) and casts(name) else weight.dtype
        for name, weight in weights.items()
    }

    def arrays(names: Sequence[str]) -> dict[str, mx.array]:
        return {name: weights[name].astype(dtypes[name]) for name in names}

    with model_folder(Path(directory), overwrite) as folder:
        kept, left = ({file for each in patterns for file in loaded.path.glob(each)} for patterns in (_KEPT, _LEFT))
        for file in sorted(file for file in kept - left if file.is_file()):
            shutil.copyfile(file, folder / file.name)
        mlx_lm_utils("save_mlx_lm").save_config(
            dict(model.config.values),
            folder / "config.json",
            keep_vision_config=any("vision_tower" in name.split(".") for name in weights),
        )
        sizes = {name: weight.size * dtypes[name].size for name, weight in weights.items()}
        sharded.save(folder, sizes, arrays, shard_bytes, {"format": "mlx"})


def _replaced(
    weights: dict[str, mx.array], overrides: Mapping[str, TensorBase | QuantizedWeight]
) -> dict[str, mx.array]:
    for name, weight in overrides.items():
        parts = weight.tensors(name) if isinstance(weight, QuantizedWeight) else {name: weight}
        for part, tensor in parts.items():
            if part not in weights:
                raise CannotFindTensorError(part, difflib.get_close_matches(part, list(weights), n=3))
            if tuple(tensor.shape) != weights[part].shape:
                raise UnexpectedShapeError(part, weights[part].shape, tensor.shape)
            weights[part] = tensor.mlx()
    return weights
