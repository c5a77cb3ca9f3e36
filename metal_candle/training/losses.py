"""The losses of v1: cross entropy of logits and ids, with ignored positions and smoothing.

metal-candle: ``metal_candle::training::cross_entropy_loss``, ``cross_entropy_loss_with_smoothing``.
"""

from __future__ import annotations

from typing import TypeVar

from ..error import ArgumentTypeError, TrainingError
from ..error.text import described
from ..graph.operation import to_numpy
from ..nn.loss import cross_entropy
from ..tensor.base import TensorBase

T = TypeVar("T", bound=TensorBase)


def cross_entropy_loss(logits: T, targets: TensorBase, ignore_index: int | None = None) -> T:
    """The mean of ``-log_softmax(logits)[target]`` over the positions whose target is not ``ignore_index``.

    ``logits`` ``(b, t, v)``, a float dtype; ``targets`` ``(b, t)``, integers. A scalar in the logits' dtype, summed in
    F32; lazy for lazy logits. ``ignore_index`` may be any id, in the vocabulary or not; the positions it marks have no
    gradient. With unsigned targets a negative one stands for what converting it to their dtype gives.

    Raises ``TrainingError.InvalidConfig`` for other ranks, sizes and dtypes, and where every target is ignored (of
    targets that are not computed yet, recorded ones say, the mean over nothing is 0); when it is computed,
    ``InvalidIndexError`` for a target outside the vocabulary.
    """
    return _loss("cross_entropy_loss", logits, targets, 0.0, ignore_index)


def cross_entropy_loss_with_smoothing(
    logits: T, targets: TensorBase, smoothing: float, ignore_index: int | None = None
) -> T:
    """``(1 - s) · cross_entropy_loss + s · mean(-log_softmax(logits))``, both means over the positions that count.

    That is the cross entropy with the target distribution ``(1 - s) · onehot + s / v``; Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567. Raises as ``cross_entropy_loss``, and for ``smoothing`` outside 0 <= s < 1.
    """
    op = "cross_entropy_loss_with_smoothing"
    good = isinstance(smoothing, (int, float)) and not isinstance(smoothing, bool) and 0 <= smoothing < 1
    if not good:
        raise TrainingError.InvalidConfig(reason=f"{op}: smoothing is {described(smoothing)}; takes 0 <= smoothing < 1")
    return _loss(op, logits, targets, smoothing, ignore_index)


def _loss(op: str, logits: T, targets: TensorBase, smoothing: float, ignore_index: int | None) -> T:
    _expect(op, logits, targets)
    loss = cross_entropy(logits, targets, ignore_index=ignore_index, label_smoothing=smoothing)
    if ignore_index is not None and targets._node.value is not None and not _any_kept(targets, ignore_index):
        raise TrainingError.InvalidConfig(
            reason=f"{op}: all {targets.elem_count()} targets are ignore_index {ignore_index}; takes at least one other"
        )
    return loss


def _expect(op: str, logits: object, targets: object) -> None:
    for name, tensor in (("logits", logits), ("targets", targets)):
        if not isinstance(tensor, TensorBase):
            raise ArgumentTypeError(f"{op}: got {name} {described(tensor)}; takes a tensor")
    assert isinstance(logits, TensorBase)
    assert isinstance(targets, TensorBase)
    shapes = tuple(logits.shape), tuple(targets.shape)
    got = f"{op}: got logits {shapes[0]} {logits.dtype}, targets {shapes[1]} {targets.dtype}"
    takes = "takes (b, t, v) of a float dtype and (b, t) of integers"
    if len(shapes[0]) != 3 or shapes[0][:2] != shapes[1] or not logits.dtype.is_float() or targets.dtype.is_float():
        raise TrainingError.InvalidConfig(reason=f"{got}; {takes}")
    if 0 in shapes[0]:
        raise TrainingError.InvalidConfig(reason=f"{got}; takes at least one position and one class")


def _any_kept(targets: TensorBase, ignore_index: int) -> bool:
    values = to_numpy(targets.mlx())
    # A negative index among unsigned ids is what a conversion to them has made of it.
    wanted = ignore_index % (1 << 8 * values.dtype.itemsize) if values.dtype.kind == "u" else ignore_index
    return bool((values != wanted).any())
