"""The eager interface of v1: tensors with values, and the functions that were there from the start."""

from ..tensor.eager import Tensor
from ..tensor.eager_chains import EagerPerformanceWarning, warn_eager_chains
from ..tensor.var import Var
from .functions import layer_norm, rms_norm, softmax

__all__ = ["EagerPerformanceWarning", "Tensor", "Var", "layer_norm", "rms_norm", "softmax", "warn_eager_chains"]
