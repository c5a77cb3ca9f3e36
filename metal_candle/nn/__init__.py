"""Layers, optimizers and variables, as candle-nn has them."""

from . import init, kv_cache, ops
from .embedding import Embedding, embedding
from .init import Init
from .linear import Linear, linear, linear_b, linear_no_bias
from .module import Func, Module, Sequential, seq
from .norm import RmsNorm, rms_norm
from .optim import AdamW, ParamsAdamW, clip_factor, global_norm
from .var_builder import VarBuilder
from .var_map import VarMap

__all__ = [
    "AdamW",
    "Embedding",
    "Func",
    "Init",
    "Linear",
    "Module",
    "ParamsAdamW",
    "RmsNorm",
    "Sequential",
    "VarBuilder",
    "VarMap",
    "clip_factor",
    "embedding",
    "global_norm",
    "init",
    "kv_cache",
    "linear",
    "linear_b",
    "linear_no_bias",
    "ops",
    "rms_norm",
    "seq",
]
