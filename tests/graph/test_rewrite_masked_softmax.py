"""A factor and a mask in one launch with the softmax: from a lazy tensor to the kernel, and where it must not be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from metal_candle import LazyTensor, Tensor, Var, features, settings
from metal_candle.kernels import custom

import emulator
import numpy as np
import pytest
from rewriting import Gpu, applied, lowered

SHAPE = (2, 3, 5, 33)
# Of values of about 1: a few roundings.
TOLERANCE = {"f32": 1e-5, "bf16": 3e-2, "f16": 4e-3}
LAUNCH = "one launch, emulator: unmeasured: 1 launch to 2"


@pytest.fixture
def launching() -> Iterator[None]:
    """Launches kernels of ours by their rules, on the emulator."""
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    with custom.using(emulator.Emulator()):
        yield


def tensor(*shape: int, seed: int = 0, dtype: str = "f32") -> Tensor:
    return Tensor(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)).to_dtype(dtype)


def lazy(*shape: int, seed: int = 0) -> LazyTensor:
    return LazyTensor.from_tensor(tensor(*shape, seed=seed))


def hidden(scores: Any, mask: Any, fill: float = -math.inf) -> Any:
    """candle's ``masked_fill``."""
    on_true = LazyTensor.new(fill).to_dtype(scores.dtype).broadcast_as(scores.shape)
    return mask.broadcast_as(scores.shape).where_cond(on_true, scores)


def upper(rows: int, columns: int) -> LazyTensor:
    return LazyTensor.new(np.triu(np.ones((rows, columns), np.uint8), columns - rows + 1))


SPELLED: dict[str, Callable[[Any, Any], Any]] = {
    "scaled": lambda x, m: (x / 4.0).softmax(-1),
    "added": lambda x, m: (x * 0.5).broadcast_add(m).softmax(-1),
    "added_first": lambda x, m: (m.broadcast_as(SHAPE) + x * 0.5).softmax(-1),
    "hidden": lambda x, m: hidden(x * 0.5, upper(5, 33)).softmax(-1),
    "hidden_rows": lambda x, m: hidden(x, upper(5, 33).t().contiguous().t().flip([1])).softmax(-1),
    "filled": lambda x, m: hidden(x * 0.5, upper(5, 33), -9e3).softmax(-1),
}


def with_gradients(function: Callable[..., Any], tensors: list[Tensor], rewriting: bool) -> list[np.ndarray[Any, Any]]:
    variables = [Var.from_tensor(tensor) for tensor in tensors]
    off = () if rewriting else ("rewrite",)
    with features.disabled(*off):
        y = function(*[LazyTensor.from_tensor(variable) for variable in variables])
        weights = LazyTensor.from_tensor(tensor(*y.shape, seed=9)).to_dtype(y.dtype)
        grads = (y * weights).sum_all().backward()
        found = [y.eval(), *[grads.get(variable) for variable in variables]]
    return [result.to_dtype("f64").numpy() for result in found if result is not None]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("spelled", list(SPELLED))
def test_values_and_gradients(launching: None, spelled: str, dtype: str) -> None:
    tensors = [tensor(*SHAPE), tensor(5, 33, seed=1)]
    expected = with_gradients(SPELLED[spelled], tensors, rewriting=False)
    with settings.captured("kernel") as lines:
        found = with_gradients(SPELLED[spelled], [each.to_dtype(dtype) for each in tensors], rewriting=True)
    assert any(line.startswith("softmax_backward ") and ": one launch, emulator" in line for line in lines), lines
    used = [line for line in lines if line.startswith("softmax ")]
    # Scores that are filled with another number are softmaxed by themselves, which MLX does as well.
    assert all((LAUNCH in line) is (spelled != "filled") for line in used), used
    assert used
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(want).max()))


def test_rows_that_see_nothing(launching: None) -> None:
    """NaN as spelled; the scores that nobody sees have no gradient, spelled so or not."""
    mask = LazyTensor.new(np.repeat(np.array([[0], [1]], np.uint8), 7, axis=1))
    for number in (-math.inf, -9e3):
        function = lambda x, number=number: hidden(x, mask, number).softmax(-1)  # noqa: E731
        found, expected = (with_gradients(function, [tensor(2, 7)], rewriting) for rewriting in (True, False))
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)
        assert np.isnan(found[0][1]).all() == (number == -math.inf)
        assert np.isfinite(found[1]).all()


def test_the_number_that_is_filled_in_has_a_gradient(launching: None) -> None:
    mask = upper(3, 7)

    def function(x: Any, fill: Any) -> Any:
        return mask.where_cond(fill.broadcast_as((3, 7)), x * 0.5).softmax(-1)

    tensors = [tensor(3, 7), tensor(1, seed=2)]
    found, expected = (with_gradients(function, tensors, rewriting) for rewriting in (True, False))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert abs(float(found[2].item())) > 1e-3


def test_explain_names_the_launch(launching: None) -> None:
    x = (lazy(*SHAPE) * 0.5).broadcast_add(lazy(5, 33, seed=1)).softmax(-1)
    told = str(x.explain())
    assert "masked_softmax" in told
    assert f"softmax [(2, 3, 5, 33), (5, 33)]: {LAUNCH}" in told


def test_without_a_launch_nothing_is_rewritten() -> None:
    x = (lazy(*SHAPE) * 0.5).softmax(-1)
    names, reasons = applied(x, rule="masked_softmax")
    assert names == ["affine", "softmax"]
    assert "no kernel of ours is launched here" in reasons
    double = (lazy(*SHAPE).to_dtype("f64") * 0.5).softmax(-1)
    wide = (lazy(2, 9000) * 0.5).softmax(-1)
    with custom.using(Gpu()):
        assert "masked_softmax" in lowered(x)
        assert "float64" in applied(double, rule="masked_softmax")[1]
        assert "2 rows of 9000, read twice" in applied(wide, rule="masked_softmax")[1]
        with features.disabled("custom-metal"):
            assert lowered(x) == ["affine", "softmax"]
        with settings.KERNELS.override("custom"):
            assert "masked_softmax" in lowered(wide)


def test_attention_comes_first() -> None:
    q, k, v = lazy(2, 3, 5, 4), lazy(2, 3, 7, 4, seed=1), lazy(2, 3, 7, 6, seed=2)
    scores = hidden(q @ k.t() * 0.5, upper(5, 7))
    attended = scores.softmax(-1) @ v
    del scores
    with custom.using(Gpu()):
        assert [name for name in lowered(attended) if "s" in name and name.endswith(("sdpa", "softmax"))] == [
            "filled_sdpa"
        ]


def test_weights_that_somebody_holds() -> None:
    """Attention then declines, and the mask still goes in one pass with the softmax."""
    q, k, v = lazy(2, 3, 5, 4), lazy(2, 3, 7, 4, seed=1), lazy(2, 3, 7, 6, seed=2)
    weights = hidden(q @ k.t() * 0.5, upper(5, 7)).softmax(-1)
    attended = weights @ v
    with custom.using(Gpu()):
        names = lowered(attended, weights)
    assert "filled_softmax" in names
    assert not {"where_cond", "softmax", "filled_sdpa"} & set(names)
