"""Recurrent nets. candle: ``candle_nn::rnn``.

A sequence is one product for the inputs' part of all steps, one operation for the steps, and a view for each state
that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from ..constructors import Default, New
from ..error import ArgumentTypeError
from ..error.expect import expect_config
from ..error.text import described
from ..graph.node import record
from ..graph.operations.binary import Add
from ..graph.operations.counts import integer
from ..graph.operations.linalg import Linear
from ..graph.operations.recurrent import GRU as GRUOperation
from ..graph.operations.recurrent import LSTM as LSTMOperation
from ..graph.operations.structure import Pick
from ..graph.scopes import scoped
from ..shape import expect_rank
from ..tensor.eager import Tensor
from ..tensor.lazy import LazyTensor
from .init import DEFAULT_KAIMING_UNIFORM, ZERO, Init
from .module import Module, T
from .var_builder import VarBuilder

S = TypeVar("S")


class RNN(Module, Generic[S]):
    """Base of recurrent nets, with states of the type S. A subclass defines ``zero_state``, ``step`` and
    ``states_to_tensor``. candle: ``candle_nn::RNN``.
    """

    def zero_state(self, batch_dim: int) -> S:
        """The state that a sequence starts from, for ``batch_dim`` sequences: zeros."""
        raise AssertionError(f"{type(self).__name__} defines no zero_state")

    def step(self, xs: Any, state: S) -> S:
        """The state after one input ``(b, features)``."""
        raise AssertionError(f"{type(self).__name__} defines no step")

    def states_to_tensor(self, states: Sequence[S]) -> Any:
        """What states are as one tensor. Raises ``OpRequiresAtLeastOneTensorError`` for none."""
        raise AssertionError(f"{type(self).__name__} defines no states_to_tensor")

    def seq(self, xs: Any) -> list[S]:
        """The state after each step of ``(b, t, features)``, from ``zero_state`` on: none of a t of 0.

        Raises ``UnexpectedNumberOfDimsError`` for another rank.
        """
        expect_rank(xs.shape, 3, "seq")
        return self.seq_init(xs, self.zero_state(xs.shape[0]))

    def seq_init(self, xs: Any, state: S) -> list[S]:
        """As ``seq``, from a given state on."""
        expect_rank(xs.shape, 3, "seq_init")
        states: list[S] = []
        for place in range(xs.shape[1]):
            state = self.step(xs.narrow(1, place, 1).squeeze(1), state)
            states.append(state)
        return states

    def forward(self, xs: T) -> T:
        """``states_to_tensor`` of ``seq``; candle's nets are no modules."""
        result: T = self.states_to_tensor(self.seq(xs))
        return result


class _State(New):
    """One or two tensors ``(b, n)``, each given, or one step of ``(b, t, n)``, which is taken when it is asked for."""

    def __init__(self, *tensors: Any) -> None:
        self._tensors: list[Any] = list(tensors)
        self._steps: tuple[Any, ...] = ()
        self._place = 0

    def _tensor(self, index: int) -> Any:
        if self._tensors[index] is None:
            steps = self._steps[index]
            step = steps if steps.shape[1] == 1 else steps.narrow(1, self._place, 1)
            self._tensors[index] = step.squeeze(1)
        return self._tensors[index]

    def __repr__(self) -> str:
        shown = []
        for name, tensor, steps in zip("hc", self._tensors, self._steps or self._tensors):
            like = steps if tensor is None else tensor
            shown.append(f"{name} {[like.shape[0], like.shape[-1]]} {like.dtype}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def h(self) -> Any:
        """The hidden state ``(b, n)``, which is also the output."""
        return self._tensor(0)


class LSTMState(_State):
    """The state of an LSTM. candle: ``candle_nn::rnn::LSTMState``."""

    def __init__(self, h: Any, c: Any) -> None:
        super().__init__(h, c)

    def c(self) -> Any:
        """The cell's state ``(b, n)``."""
        return self._tensor(1)


class GRUState(_State):
    """The state of a GRU. candle: ``candle_nn::rnn::GRUState``."""

    def __init__(self, h: Any) -> None:
        super().__init__(h)


St = TypeVar("St", bound=_State)


class Direction(Enum):
    """Which weights of a bidirectional net: those of ``Backward`` have "_reverse" after their names.

    As in candle that is all: to run backwards, the caller flips the input in time, and then the states.
    """

    Forward = ""
    Backward = "_reverse"


@dataclass(frozen=True)
class LSTMConfig(Default):
    """How the weights start, ``None`` for no bias, and what they are called. candle: ``candle_nn::LSTMConfig``."""

    w_ih_init: Init = DEFAULT_KAIMING_UNIFORM
    w_hh_init: Init = DEFAULT_KAIMING_UNIFORM
    b_ih_init: Init | None = ZERO
    b_hh_init: Init | None = ZERO
    layer_idx: int = 0
    direction: Direction = Direction.Forward

    @staticmethod
    def default_no_bias() -> LSTMConfig:
        """The default without biases."""
        return LSTMConfig(b_ih_init=None, b_hh_init=None)


@dataclass(frozen=True)
class GRUConfig(Default):
    """How the weights start, ``None`` for no bias. candle: ``candle_nn::GRUConfig``."""

    w_ih_init: Init = DEFAULT_KAIMING_UNIFORM
    w_hh_init: Init = DEFAULT_KAIMING_UNIFORM
    b_ih_init: Init | None = ZERO
    b_hh_init: Init | None = ZERO

    @staticmethod
    def default_no_bias() -> GRUConfig:
        """The default without biases."""
        return GRUConfig(b_ih_init=None, b_hh_init=None)


class _Gated(RNN[St]):
    """What LSTM and GRU share: weights for so many gates, and a sequence as one operation."""

    _states: type[St]

    def __init__(
        self, gates: int, sizes: tuple[int, int], config: LSTMConfig | GRUConfig, name: str, vb: VarBuilder
    ) -> None:
        in_dim, self._hidden_dim = sizes
        rows = gates * self._hidden_dim
        self._device, self._dtype = vb.device(), vb.dtype()
        self._w_ih = vb.get_with_hints((rows, in_dim), f"weight_ih_{name}", config.w_ih_init)
        self._w_hh = vb.get_with_hints((rows, self._hidden_dim), f"weight_hh_{name}", config.w_hh_init)
        self._b_ih, self._b_hh = (
            None if init is None else vb.get_with_hints((rows,), f"bias_{part}_{name}", init)
            for part, init in (("ih", config.b_ih_init), ("hh", config.b_hh_init))
        )

    def _zeros(self, batch_dim: int) -> Tensor:
        return Tensor.zeros((batch_dim, self._hidden_dim), self._dtype, self._device)

    @scoped
    def step(self, xs: Any, state: St) -> St:
        """The state after one input ``(b, features)``, of the net's dtype.

        Raises ``UnexpectedNumberOfDimsError`` and ``ShapeMismatchBinaryOpError`` where input and state do not fit.
        """
        expect_rank(xs.shape, 2, "step")
        return self.seq_init(xs.unsqueeze(1), state)[0]

    @scoped
    def seq_init(self, xs: Any, state: St) -> list[St]:
        """The state after each step of ``(b, t, features)``, of the net's dtype; halves are rounded at the end only.

        Raises ``UnexpectedNumberOfDimsError`` and ``ShapeMismatchBinaryOpError`` where input and state do not fit.
        """
        expect_rank(xs.shape, 3, "seq_init")
        px = xs._record(Linear(), xs._lift(self._w_ih))
        if not xs.shape[1]:
            return []
        steps = self._run(px, state)
        return [self._state_of(steps, place) for place in range(xs.shape[1])]

    def _run(self, px: Any, state: St) -> tuple[Any, ...]:
        raise AssertionError(f"{type(self).__name__} defines no _run")

    def _state_of(self, steps: tuple[Any, ...], place: int) -> St:
        state = self._states(*[None] * len(steps))
        state._steps, state._place = steps, place
        return state

    def _whole(self, states: Sequence[St]) -> Any:
        """The hidden states ``(b, t, n)`` that these are all steps of, if there are such."""
        steps = states[0]._steps if states else ()
        if not steps or len(states) != steps[0].shape[1]:
            return None
        ordered = all(state._steps is steps and state._place == place for place, state in enumerate(states))
        return steps[0] if ordered else None


def _kind(states: Sequence[_State]) -> Any:
    return LazyTensor if states and isinstance(states[0].h(), LazyTensor) else Tensor


class LSTM(_Gated[LSTMState]):
    """Long short-term memory: gates i, f, o = σ(·) and g = tanh(·) of x·W_ihᵀ + b_ih + h·W_hhᵀ + b_hh, in the order
    i, f, g, o; then c' = f·c + i·g and h' = o·tanh(c'). Weights ``(4n, in)``, ``(4n, n)``, biases ``(4n,)``.

    Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735. candle: ``candle_nn::LSTM``.
    """

    _states = LSTMState

    def __init__(self, in_dim: int, hidden_dim: int, config: LSTMConfig, vb: VarBuilder) -> None:
        direction = expect_config("lstm", config, LSTMConfig).direction
        if not isinstance(direction, Direction):
            raise ArgumentTypeError(
                f"lstm: got direction {described(direction)}; takes Direction.Forward or Direction.Backward"
            )
        layer = integer("lstm", "layer_idx", config.layer_idx, 0)
        super().__init__(4, (in_dim, hidden_dim), config, f"l{layer}{direction.value}", vb)
        self._config = config

    def config(self) -> LSTMConfig:
        """What it was made with."""
        return self._config

    def zero_state(self, batch_dim: int) -> LSTMState:
        """Zeros, eager."""
        zeros = self._zeros(batch_dim)
        return LSTMState(zeros, zeros)

    def _run(self, px: Any, state: LSTMState) -> tuple[Any, ...]:
        # Both biases meet in one sum.
        biases = [px._lift(bias) for bias in (self._b_ih, self._b_hh) if bias is not None]
        if biases:
            px = px._record(Add(), biases[0] if len(biases) == 1 else biases[0].add(biases[1]))
        given = [px, *[px._lift(each) for each in (state.h(), state.c(), self._w_hh)]]
        both = record(LSTMOperation(), tuple(each._node for each in given))
        return px._wrap(record(Pick(0), (both,))), px._wrap(record(Pick(1), (both,)))

    def states_to_tensor(self, states: Sequence[LSTMState]) -> Any:
        """The hidden states, stacked: ``(b, t, n)``. Raises ``OpRequiresAtLeastOneTensorError`` for none."""
        whole = self._whole(states)
        return _kind(states).stack([state.h() for state in states], 1) if whole is None else whole


class GRU(_Gated[GRUState]):
    """Gated recurrent unit: gates r, z = σ(x·W_ihᵀ + b_ih + h·W_hhᵀ + b_hh), n = tanh(x·W_ihᵀ + b_ih + r·(h·W_hhᵀ +
    b_hh)), in the order r, z, n; then h' = z·h + (1 - z)·n. Weights ``(3n, in)``, ``(3n, n)``, biases ``(3n,)``.

    Cho et al. 2014, https://arxiv.org/abs/1406.1078. candle: ``candle_nn::GRU``.
    """

    _states = GRUState

    def __init__(self, in_dim: int, hidden_dim: int, config: GRUConfig, vb: VarBuilder) -> None:
        super().__init__(3, (in_dim, hidden_dim), expect_config("gru", config, GRUConfig), "l0", vb)
        self._config = config

    def config(self) -> GRUConfig:
        """What it was made with."""
        return self._config

    def zero_state(self, batch_dim: int) -> GRUState:
        """Zeros, eager."""
        return GRUState(self._zeros(batch_dim))

    def _run(self, px: Any, state: GRUState) -> tuple[Any, ...]:
        if self._b_ih is not None:
            px = px._record(Add(), px._lift(self._b_ih))
        beside = [self._w_hh] if self._b_hh is None else [self._w_hh, self._b_hh]
        return (px._record(GRUOperation(), *[px._lift(each) for each in (state.h(), *beside)]),)

    def states_to_tensor(self, states: Sequence[GRUState]) -> Any:
        """The hidden states side by side, as in candle: ``(b, t · n)``. Raises ``OpRequiresAtLeastOneTensorError``
        for none.
        """
        whole = self._whole(states)
        if whole is None:
            return _kind(states).cat([state.h() for state in states], 1)
        b, steps, size = whole.shape
        return whole.reshape((b, steps * size))


def lstm(in_dim: int, hidden_dim: int, config: LSTMConfig, vb: VarBuilder) -> LSTM:
    """A net from ``vb``'s ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0`` and ``bias_hh_l0``, where 0 is
    ``config.layer_idx``; of ``Direction.Backward`` with "_reverse" behind. candle: ``candle_nn::lstm``.
    """
    return LSTM(in_dim, hidden_dim, config, vb)


def gru(in_dim: int, hidden_dim: int, config: GRUConfig, vb: VarBuilder) -> GRU:
    """A net from ``vb``'s ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0`` and ``bias_hh_l0``.

    candle: ``candle_nn::gru``.
    """
    return GRU(in_dim, hidden_dim, config, vb)
