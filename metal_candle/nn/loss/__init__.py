"""Losses. candle: ``candle_nn::loss``.

As in candle all give the mean, rank 0, in the dtype of their first argument. The keywords are PyTorch's:

- ``reduction``: ``"mean"``; ``"sum"``; ``"none"`` for the loss of each element, or row of classes.
- ``ignore_index``: rows with this target do not count. None by default; PyTorch's is -100.
- ``mask``: a weight of each loss, 0 or 1 or any number from 0 on, of any dtype and of a shape that broadcasts to that
  of the losses; ``"mean"`` divides by the sum of the weights. What has weight 0 does not count, whatever it is: targets
  there name no class, inputs there may be NaN, and nothing there has a gradient, neither the input nor the weight.
- ``label_smoothing``: ε of the target distribution ``(1 - ε) · onehot + ε / classes``.

Sums are taken in F32, of F64 in F64, and rounded once. A mean over nothing is 0 and has no gradient, where candle and
PyTorch give NaN: a batch in which nothing is to be predicted shall not end a training. Shapes are not broadcast.
"""

from .classes import cross_entropy, linear_cross_entropy, nll
from .elementwise import binary_cross_entropy_with_logit, huber, mse
from .reduction import Reduction

__all__ = [
    "Reduction",
    "binary_cross_entropy_with_logit",
    "cross_entropy",
    "huber",
    "linear_cross_entropy",
    "mse",
    "nll",
]
