"""Records of recurrent nets over a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ...error import ShapeMismatchBinaryOpError, ShapeMismatchError
from ...kernels import gru, lstm
from ...shape import Shape, expect_rank
from ..operation import Arrays, Gradients, Meta, Metas, Operation, Sample
from ..work import Work, elements
from .linalg import expect_floats


class _Recurrent(Operation, abstract=True):
    """Family: what the inputs add to ``gates`` gates, ``(b, t, gates·n)`` of t >= 1 steps; then the states before."""

    work = "product"
    gates: ClassVar[int]
    # Functions that a step computes of each element of a state.
    elementary: ClassVar[int]

    def _state(self, px: Meta, states: Sequence[Meta], weight: Meta) -> Meta:
        """What ``infer`` gives for each state; raises where something does not fit."""
        expect_floats(self.key, px, *states, weight)
        expect_rank(px.shape, 3, self.key)
        b, steps, width = px.shape
        size = width // self.gates
        if not steps or width % self.gates:
            takes = f"(b, t, {self.gates} · n) of one step or more"
            raise ShapeMismatchError(f"{self.key}: got {tuple(px.shape)} for the gates; takes {takes}")
        for state in states:
            if tuple(state.shape) != (b, size):
                raise ShapeMismatchBinaryOpError(self.key, px.shape, state.shape, f"states ({b}, {size})")
        if tuple(weight.shape) != (width, size):
            raise ShapeMismatchBinaryOpError(self.key, px.shape, weight.shape, f"a weight ({width}, {size})")
        return Meta(Shape((b, steps, size)), px.dtype)

    def _products(self, inputs: Sequence[Any]) -> int:
        b, steps, width = inputs[0].shape
        return int(2 * b * steps * width * (width // self.gates))

    def steps(self, inputs: Sequence[Any], output: Metas) -> tuple[Work, int]:
        return "elementary", self.elementary * elements(inputs[0]) // self.gates

    def flops(self, inputs: Sequence[Any], output: Metas) -> int:
        # Of each element of the gates: the two parts added, its function, and what is done with it.
        return self._products(inputs) + 4 * elements(inputs[0])

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        # The gates again, back through the weight, and the weight's own gradient.
        return (2 + bool(needs[-1])) * self._products(inputs) + 12 * elements(inputs[0])


class LSTM(_Recurrent):
    """The states h and c, ``(b, t, n)`` each, of a long short-term memory after each step.

    Inputs: what x and the biases add to the gates ``(b, t, 4n)``, in the order input, forget, cell, output; the states
    h and c before, ``(b, n)``; the weight of h ``(4n, n)``. Halves are computed in float32, the results rounded once.
    Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735.
    """

    key = "lstm"
    arity = 4
    candle = "candle_nn::rnn::RNN::seq_init(&self, input: &Tensor, state: &LSTMState) -> Result<Vec<LSTMState>>"
    gates = 4
    elementary = 5

    def infer(self, px: Meta, h: Meta, c: Meta, weight: Meta) -> Metas:
        state = self._state(px, (h, c), weight)
        return state, state

    def lower(self, px: mx.array, h: mx.array, c: mx.array, weight: mx.array) -> Arrays:
        return lstm.forward(px, h, c, weight)

    @staticmethod
    def numpy(px: Any, h: Any, c: Any, weight: Any) -> Any:
        hs, cs = [], []
        for step in range(px.shape[1]):
            i, f, g, o = np.split(px[:, step] + h @ weight.T, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            hs.append(h)
            cs.append(c)
        return np.stack(hs, 1), np.stack(cs, 1)

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return lstm.vjp(tuple(cotangent), tuple(inputs), output, tuple(needs))


class GRU(_Recurrent):
    """The state ``(b, t, n)`` of a gated recurrent unit after each step.

    Inputs: what x and its bias add to the gates ``(b, t, 3n)``, in the order reset, update, new; the state h before
    ``(b, n)``; the weight of h ``(3n, n)`` and, if there is one, its bias ``(3n,)``. new is
    ``tanh(px + r · (h · Wᵀ + bias))``. Halves are computed in float32, the result rounded once.
    Cho et al. 2014, https://arxiv.org/abs/1406.1078.
    """

    key = "gru"
    arity = None
    candle = "candle_nn::rnn::RNN::seq_init(&self, input: &Tensor, state: &GRUState) -> Result<Vec<GRUState>>"
    samples = (
        Sample(((2, 3, 12), (2, 4), (12, 4))),
        Sample(((3, 1, 6), (3, 2), (6, 2), (6,))),
        Sample(((1, 5, 3), (1, 1), (3, 1), (3,))),
    )
    gates = 3
    elementary = 3

    def infer(self, px: Meta, h: Meta, weight: Meta, *bias: Meta) -> Meta:
        state = self._state(px, (h,), weight)
        expect_floats(self.key, px, *bias)
        for given in bias:
            if tuple(given.shape) != (px.shape[2],):
                raise ShapeMismatchBinaryOpError(self.key, px.shape, given.shape, f"a bias ({px.shape[2]},)")
        return state

    def lower(self, px: mx.array, h: mx.array, weight: mx.array, *bias: mx.array) -> mx.array:
        return gru.forward(px, h, weight, *bias)

    @staticmethod
    def numpy(px: Any, h: Any, weight: Any, *bias: Any) -> Any:
        hs = []
        for step in range(px.shape[1]):
            product = h @ weight.T + (bias[0] if bias else 0)
            (r, z, n), (of_r, of_z, of_n) = (np.split(part, 3, axis=1) for part in (px[:, step], product))
            r, z = _sigmoid(r + of_r), _sigmoid(z + of_z)
            h = z * h + (1 - z) * np.tanh(n + r * of_n)
            hs.append(h)
        return np.stack(hs, 1)

    def vjp_flops(self, inputs: Sequence[Any], output: Metas, needs: Sequence[bool]) -> int:
        return super().vjp_flops(inputs, output, needs[:3])

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        return gru.vjp(cotangent, tuple(inputs), output, tuple(needs))


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))
