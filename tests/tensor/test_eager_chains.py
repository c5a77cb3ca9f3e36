"""The warning for eager chains: who asks for it gets it once, at the line, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from metal_candle import ArgumentValueError, LazyTensor, Tensor, compat, compile
from metal_candle.compat import EagerPerformanceWarning, warn_eager_chains
from metal_candle.tensor import eager

import pytest


def chain(x: Tensor) -> Tensor:
    return (x * 2.0).exp().softmax(-1)


@dataclass
class Step:
    """A loop's body that keeps its result for the next pass."""

    x: Tensor

    def __call__(self, _: Tensor) -> Tensor:
        self.x = self.x + 1.0
        return self.x


def repeat(body: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> None:
    with warn_eager_chains(calls=calls):
        for _ in range(30):
            body(x)


def test_a_hot_eager_chain_is_warned_about_once_at_its_line() -> None:
    with pytest.warns(EagerPerformanceWarning) as told:
        repeat(chain, Tensor.ones((2, 3)), calls=5)
    (warning,) = told
    assert warning.filename == __file__
    assert warning.lineno == chain.__code__.co_firstlineno + 1
    line = chain.__code__.co_firstlineno + 1
    assert str(warning.message) == (
        f"line {line} of chain has made a chain of 3 eager operations 5 times (affine -> exp -> softmax), each "
        "evaluated on its own; LazyTensor.from_tensor(x) before it and .eval() after it evaluate them together, "
        "metal_candle.compile replays the whole function"
    )


def test_a_chain_that_goes_on_from_pass_to_pass_counts() -> None:
    x = Tensor.ones(3)
    with pytest.warns(EagerPerformanceWarning, match="chain of 10 eager operations 10 times"):
        repeat(Step(x), x, calls=10)


def test_what_is_lazy_compiled_short_or_seldom_is_not_warned_about() -> None:
    x = Tensor.ones((2, 3))
    compiled = compile(chain)
    with warn_eager_chains(calls=5):
        for _ in range(20):
            LazyTensor.from_tensor(x).affine(2.0, 0.0).exp().softmax(-1).eval()
            compiled(x)
            (x * 2.0).exp()
        for _ in range(4):
            chain(x)


def test_nobody_is_watched_unasked_nor_afterwards() -> None:
    x = Tensor.ones(3)
    assert eager._evaluate is eager.evaluate_one
    with warn_eager_chains(calls=1000):
        assert eager._evaluate is not eager.evaluate_one
        with warn_eager_chains(calls=1000):
            chain(x)
        assert eager._evaluate is not eager.evaluate_one
    assert eager._evaluate is eager.evaluate_one


def test_it_decorates_a_function() -> None:
    @warn_eager_chains(calls=3)
    def loop() -> None:
        for _ in range(5):
            chain(Tensor.ones(3))

    with pytest.warns(EagerPerformanceWarning, match="3 times"):
        loop()


def test_results_are_let_go() -> None:
    with warn_eager_chains(calls=1000):
        result = chain(Tensor.ones(3))
        node = weakref.ref(result._node)
        del result
        assert node() is None


def test_the_environment_switches_it_on() -> None:
    program = (
        "from metal_candle import Tensor\nx = Tensor.ones(3)\nfor _ in range(100): y = (x * 2.0).exp().softmax(-1)\n"
    )
    for value, said in (("1", True), ("", False)):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=_environment(value), check=True
        )
        assert ("EagerPerformanceWarning" in done.stderr) is said


def _environment(value: str) -> dict[str, str]:
    return {**os.environ, "METAL_CANDLE_WARN_EAGER": value}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"calls": 0}, "got calls 0; takes an integer from 1"), ({"length": 1}, "got length 1; takes an integer from 2")],
)
def test_wrong_numbers_are_refused(arguments: dict[str, int], text: str) -> None:
    with pytest.raises(ArgumentValueError, match=text):
        warn_eager_chains(**arguments)


def test_compat_names_it() -> None:
    assert compat.EagerPerformanceWarning is EagerPerformanceWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EagerPerformanceWarning)
        with warn_eager_chains(calls=1):
            chain(Tensor.ones(3))
