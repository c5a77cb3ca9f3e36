"""Normalisation over a batch. candle: ``candle_nn::batch_norm``."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from ..constructors import Default
from ..error import ArgumentTypeError, ArgumentValueError, ShapeMismatchBinaryOpError, ShapeMismatchError
from ..error.text import described
from ..graph.evaluate import evaluate, evaluate_one
from ..graph.node import GraphNode, current_trace, record
from ..graph.operation import Operation
from ..graph.operations.batch_norm import BatchNorm as BatchNormOperation
from ..graph.operations.batch_norm import RunningBatchNorm, RunningStatistic
from ..graph.operations.counts import epsilon, number
from ..graph.operations.structure import Detach, Pick
from ..graph.scopes import scoped
from ..kernels.batch_norm import values_per_channel
from ..tensor.arguments import boolean, expect_tensor
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from ..tensor.var import Var
from .init import ONE, ZERO
from .module import ModuleT, T
from .var_builder import VarBuilder

MOMENTUM = 0.1
MOST_WAITING = 16
"""After so many lazy forwards without a computed result the statistics are computed, and the batches let go."""
_first, _second, _third, _detach = Pick(0), Pick(1), Pick(2), Detach()


@dataclass(frozen=True)
class BatchNormConfig(Default):
    """What ``batch_norm`` makes: what is added to the variance, whether the mean is removed, whether there are weight
    and bias, and how much of a batch's statistics goes into the running ones.

    candle: ``candle_nn::BatchNormConfig``.
    """

    eps: float = 1e-5
    remove_mean: bool = True
    affine: bool = True
    momentum: float = MOMENTUM


class BatchNorm(ModuleT):
    """``(x - mean) / sqrt(variance + eps) · weight + bias`` for each channel, dim 1 of ``(b, c, …)``.

    In training mean and biased variance are the batch's, and the running ones become
    ``running · (1 - momentum) + batch · momentum``, of the unbiased variance; otherwise they are the running ones.
    Weight, bias and statistics are ``(c,)``; halves are computed in float32. The statistics may be of another float
    dtype than x: in bfloat16 they stop moving where a step is less than 1/256.

    The running statistics are variables that get no gradient. A training forward sets them: of an eager tensor when it
    returns, inside ``compile`` when the plan has run. Of a lazy tensor the update is recorded, and computed when
    somebody reads the statistics, from what computing the output or the loss has left: nothing is computed twice for
    it. Reading them before computes the batch up to here. A picture of the graph computes nothing and sets nothing.

    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. candle: ``candle_nn::BatchNorm``, where a batch of one
    value per channel makes the running variance NaN; here it raises, as in PyTorch.
    """

    _remove_mean = True

    def __init__(
        self, num_features: int, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> None:
        self._set_up(num_features, running_mean, running_var, (weight, bias), eps, MOMENTUM)

    @classmethod
    def new_with_momentum(
        cls,
        num_features: int,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        momentum: float,
    ) -> BatchNorm:
        """A layer with another momentum than 0.1."""
        return _made(num_features, running_mean, running_var, (weight, bias), eps, momentum)

    @classmethod
    def new_no_bias(cls, num_features: int, running_mean: Tensor, running_var: Tensor, eps: float) -> BatchNorm:
        """A layer without weight and bias."""
        return _made(num_features, running_mean, running_var, None, eps, MOMENTUM)

    @classmethod
    def new_no_bias_with_momentum(
        cls, num_features: int, running_mean: Tensor, running_var: Tensor, eps: float, momentum: float
    ) -> BatchNorm:
        """A layer without weight and bias, with another momentum than 0.1."""
        return _made(num_features, running_mean, running_var, None, eps, momentum)

    def _set_up(
        self,
        num_features: int,
        running_mean: Tensor,
        running_var: Tensor,
        weight_and_bias: tuple[Tensor, Tensor] | None,
        eps: float,
        momentum: float,
    ) -> None:
        eps, momentum = epsilon("batch_norm", eps), number("batch_norm", "momentum", momentum)
        if not 0 <= momentum <= 1:
            raise ArgumentValueError(f"batch_norm: got momentum {momentum}; takes a number from 0 to 1")
        named = {"running_mean": running_mean, "running_var": running_var}
        if weight_and_bias is not None:
            named["weight"], named["bias"] = weight_and_bias
        for name, tensor in named.items():
            expect_tensor("batch_norm", tensor, name)
            if tuple(tensor.shape) != (num_features,):
                raise ShapeMismatchError(
                    f"batch_norm: got {name} of shape {tuple(tensor.shape)}; takes ({num_features},)"
                )
        self._running_mean, self._running_var = Var.from_tensor(running_mean), Var.from_tensor(running_var)
        self._weight_and_bias, self._eps, self._momentum = weight_and_bias, eps, momentum
        self._waiting = 0  # lazy forwards whose results were not computed when the next one came

    def running_mean(self) -> Tensor:
        """The running mean, ``(c,)``; the tensor sees later updates."""
        return self._running_mean.as_tensor()

    def running_var(self) -> Tensor:
        """The running variance, ``(c,)``, unbiased; the tensor sees later updates."""
        return self._running_var.as_tensor()

    def eps(self) -> float:
        """What is added to the variance."""
        return self._eps

    def momentum(self) -> float:
        """How much of a batch's statistics goes into the running ones."""
        return self._momentum

    def weight_and_bias(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias, each ``(c,)``, if there are any."""
        return self._weight_and_bias

    def forward_t(self, xs: T, train: bool) -> T:
        """The normalised tensor, of the same shape and dtype.

        Raises ``UnexpectedNumberOfDimsError`` for fewer than two dims, ``ShapeMismatchBinaryOpError`` for other
        channels, ``DTypeMismatchError`` where dtypes differ; in training ``ShapeMismatchError`` for a channel that has
        fewer than two values.
        """
        shape, channels = xs.shape, self._running_mean.shape
        if len(shape) > 1 and shape[1] != channels[0]:
            raise ShapeMismatchBinaryOpError("batch_norm", shape, channels, "(b, c, …) and statistics (c,)")
        affine = [xs._lift(tensor)._node for tensor in self._weight_and_bias or ()]
        if not train:
            statistics = [_constant(each) for each in self._statistics(False)]
            return xs._wrap(record(RunningBatchNorm(self._eps), (xs._node, *statistics, *affine)))
        node = record(BatchNormOperation(self._eps, self._remove_mean), (xs._node, *affine))
        batch = [record(_second, (node,)), record(_third, (node,))]
        lazy = isinstance(xs, LazyTensor) or current_trace() is not None
        if not lazy:
            for each in (node, *batch):
                evaluate_one(each)
        mean, variance = self._statistics(lazy)
        if self._remove_mean:
            _set(self._running_mean, record(RunningStatistic(self._momentum, 1.0), (mean, batch[0])), lazy)
        count = values_per_channel(shape)
        unbiased = RunningStatistic(self._momentum, count / (count - 1))
        _set(self._running_var, record(unbiased, (variance, batch[1])), lazy)
        return xs._wrap(record(_first, (node,)))

    @scoped
    def forward_train(self, xs: T) -> T:
        """``forward_t(xs, True)``. candle: ``BatchNorm::forward_train``."""
        return self.forward_t(xs, True)

    def _statistics(self, may_wait: bool) -> tuple[GraphNode, GraphNode]:
        """The nodes of the running statistics, computed unless they may wait for a batch that is not."""
        nodes = self._running_mean._node, self._running_var._node
        if current_trace() is None and (nodes[0].value is None or nodes[1].value is None):
            self._waiting += 1
            if not (may_wait and self._waiting < MOST_WAITING and _waits_for_a_batch(nodes[1])):
                try:
                    evaluate(nodes)
                except BaseException:
                    # What could not be computed is told once more; then the statistics are what they were before.
                    for node in nodes:
                        _restore(node)
                    raise
                finally:
                    self._waiting = 0
        return nodes


def _waits_for_a_batch(node: GraphNode) -> bool:
    """Whether computing a statistic's update would compute a batch's result, which the loss may not want so soon."""
    if node.value is not None:
        return False
    _, batch = node.inputs[0].inputs
    return batch.value is None and batch.inputs[0].value is None


def _restore(node: GraphNode) -> None:
    variable = node.variable
    while node.value is None:
        node = node.inputs[0].inputs[0]
    if variable is not None:
        variable.restore(node)


def _set(running: Var, new: GraphNode, lazy: bool) -> None:
    if lazy:
        running._variable.assign_node(new)
    else:
        evaluate_one(new)
        running._variable.assign(new.value)  # type: ignore[arg-type]


def _constant(node: GraphNode) -> GraphNode:
    """A statistic as a node that gradients end at."""
    if current_trace() is not None:
        return record(_detach, (node,))
    return GraphNode(Operation.Input, (), node.meta, node.device, value=node.value)


def _made(
    num_features: int,
    running_mean: Tensor,
    running_var: Tensor,
    weight_and_bias: tuple[Tensor, Tensor] | None,
    eps: float,
    momentum: float,
) -> BatchNorm:
    layer = BatchNorm.__new__(BatchNorm)
    layer._set_up(num_features, running_mean, running_var, weight_and_bias, eps, momentum)
    return layer


def batch_norm(num_features: int, config: BatchNormConfig | float, vb: VarBuilder) -> BatchNorm:
    """A layer from ``vb``'s ``running_mean``, ``running_var`` and, if it is to have them, ``weight`` and ``bias``.

    New ones start at 0, 1, 1 and 0. A number is taken as eps. The running statistics are variables of ``vb`` if it
    makes variables, fresh ones otherwise. Raises ``ArgumentTypeError`` for another config.
    """
    if not isinstance(config, BatchNormConfig):
        if not isinstance(config, Real):
            raise ArgumentTypeError(
                f"batch_norm: got config {described(config)}; takes a BatchNormConfig or eps, a number"
            )
        config = BatchNormConfig(float(config))
    affine = boolean("batch_norm", "affine", config.affine)
    remove_mean = boolean("batch_norm", "remove_mean", config.remove_mean)
    shape = (num_features,)
    mean, var = vb.get_with_hints(shape, "running_mean", ZERO), vb.get_with_hints(shape, "running_var", ONE)
    pair = (vb.get_with_hints(shape, "weight", ONE), vb.get_with_hints(shape, "bias", ZERO)) if affine else None
    layer = _made(num_features, mean, var, pair, config.eps, config.momentum)
    layer._remove_mean = remove_mean
    return layer
