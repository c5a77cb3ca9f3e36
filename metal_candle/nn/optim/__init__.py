"""Optimizers over variables, and clipping. candle: ``candle_nn::optim``."""

from .adam import Adam, AdamW
from .clip import clip_factor, clip_grad_norm, clip_grad_value, global_norm
from .muon import Muon
from .optimizer import Optimizer
from .param_group import ParamGroup
from .params import Params, ParamsAdam, ParamsAdamW, ParamsMuon, ParamsSGD
from .sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Muon",
    "Optimizer",
    "ParamGroup",
    "Params",
    "ParamsAdam",
    "ParamsAdamW",
    "ParamsMuon",
    "ParamsSGD",
    "clip_factor",
    "clip_grad_norm",
    "clip_grad_value",
    "global_norm",
]
