"""Layers, optimizers and variables, as candle-nn has them."""

from . import init, kv_cache, loss, ops
from .conv import (
    Conv1d,
    Conv1dConfig,
    Conv2d,
    Conv2dConfig,
    ConvTranspose1d,
    ConvTranspose1dConfig,
    ConvTranspose2d,
    ConvTranspose2dConfig,
    conv1d,
    conv1d_no_bias,
    conv2d,
    conv2d_no_bias,
    conv_transpose1d,
    conv_transpose1d_no_bias,
    conv_transpose2d,
    conv_transpose2d_no_bias,
)
from .embedding import Embedding, embedding
from .func import Func, FuncT, func, func_t
from .init import FanInOut, Init, NonLinearity, NormalOrUniform
from .layer_norm import RmsNorm, rms_norm
from .linear import Linear, linear, linear_b, linear_no_bias
from .module import Module, ModuleT
from .optim import AdamW, ParamsAdamW, clip_factor, global_norm
from .sequential import Sequential, seq
from .var_builder import VarBuilder
from .var_map import VarMap

__all__ = [
    "AdamW",
    "Conv1d",
    "Conv1dConfig",
    "Conv2d",
    "Conv2dConfig",
    "ConvTranspose1d",
    "ConvTranspose1dConfig",
    "ConvTranspose2d",
    "ConvTranspose2dConfig",
    "Embedding",
    "FanInOut",
    "Func",
    "FuncT",
    "Init",
    "Linear",
    "Module",
    "ModuleT",
    "NonLinearity",
    "NormalOrUniform",
    "ParamsAdamW",
    "RmsNorm",
    "Sequential",
    "VarBuilder",
    "VarMap",
    "clip_factor",
    "conv1d",
    "conv1d_no_bias",
    "conv2d",
    "conv2d_no_bias",
    "conv_transpose1d",
    "conv_transpose1d_no_bias",
    "conv_transpose2d",
    "conv_transpose2d_no_bias",
    "embedding",
    "func",
    "func_t",
    "global_norm",
    "init",
    "kv_cache",
    "linear",
    "linear_b",
    "linear_no_bias",
    "loss",
    "ops",
    "rms_norm",
    "seq",
]
