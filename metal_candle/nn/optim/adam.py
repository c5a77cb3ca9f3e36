"""Adam and AdamW. candle: ``candle_nn::AdamW``."""

from __future__ import annotations

from typing import Any, TypeVar, Union

from ...graph.operations.adam_update import AdamUpdate
from .optimizer import Optimizer
from .param_group import Vars
from .params import ParamsAdam, ParamsAdamW

E = TypeVar("E", bound="AdamBase[Any]")
P = TypeVar("P", bound=Union[ParamsAdam, ParamsAdamW])


class AdamBase(Optimizer[P]):
    """What Adam and AdamW share: two moments, in F32 whatever the variables' dtype, with bias correction."""

    record_type = AdamUpdate
    decoupled = False

    @classmethod
    def new_lr(cls: type[E], vars: Vars, lr: float) -> E:
        """With a learning rate and the other defaults. candle: ``AdamW::new_lr``."""
        return cls(vars, cls.config_type(lr=lr))

    def _moments(self, params: P) -> tuple[str, ...]:
        return "m", "v"

    def _numbers(self, params: P) -> tuple[Any, ...]:
        return params.beta1, params.beta2, params.eps, params.weight_decay, self.decoupled


class Adam(AdamBase[ParamsAdam]):
    """Adam. Weight decay, if any, is added to the gradient; see ``AdamW``. Kingma and Ba 2015.

    https://arxiv.org/abs/1412.6980. Ours; PyTorch: ``torch.optim.Adam``.
    """

    config_type = ParamsAdam


class AdamW(AdamBase[ParamsAdamW]):
    """Adam with weight decay that is not divided by the gradients' size. Loshchilov and Hutter 2019.

    https://arxiv.org/abs/1711.05101. The moments are kept in F32 where candle keeps them in the variable's dtype.

    candle: ``candle_nn::AdamW``.
    """

    config_type = ParamsAdamW
    decoupled = True
