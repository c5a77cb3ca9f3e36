"""Tensors: candle's methods, written once, on lazy and eager tensors."""

from .. import settings
from .compiled import Compiled, compile
from .eager import Tensor
from .grad_store import GradStore
from .lazy import LazyTensor, eval_all
from .var import Var

__all__ = ["Compiled", "GradStore", "LazyTensor", "Tensor", "Var", "compile", "eval_all"]

if settings.WARN_EAGER.value == "1":
    from .eager_chains import warn_eager_chains

    warn_eager_chains().__enter__()
