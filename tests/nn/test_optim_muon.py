"""Muon (``MuonUpdate``) against mlx's, and what it is for."""

from __future__ import annotations

import metal_candle as mc
from metal_candle import DType, Tensor, Var, nn

import numpy as np
import pytest
from checking import normal
from optimizing import HOW, after, by_mlx


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 1), (5, 1), (2, 3, 4), (3, 2, 2, 2), (0, 3)])
def test_mlx_takes_the_same_steps(shape: tuple[int, ...]) -> None:
    from mlx import optimizers

    start, gradients = normal(*shape), [normal(*shape, seed=seed) for seed in range(1, 6)]
    w = Var(start)
    optimizer = nn.Muon([w], nn.ParamsMuon(0.02, momentum=0.9, weight_decay=0.1, nesterov=shape[0] != 3))
    for gradient in gradients:
        optimizer.step({w: Tensor(gradient)})
    theirs = optimizers.Muon(0.02, 0.9, 0.1, nesterov=shape[0] != 3)
    np.testing.assert_array_equal(w.numpy(), by_mlx(theirs, 5, start, gradients))


@pytest.mark.parametrize("how", HOW)
def test_on_all_kinds_of_tensors(how: str) -> None:
    from mlx import optimizers

    got = after(lambda vars: nn.Muon(vars, 0.02), 20, how)
    # Matrix products of five iterations may be added up in another order; the moves are of size 0.02.
    np.testing.assert_allclose(got, by_mlx(optimizers.Muon(0.02), 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_halves_are_stepped_in_float32(dtype: DType) -> None:
    got, want = after(lambda vars: nn.Muon(vars, 0.02), 5, dtype=dtype), after(lambda vars: nn.Muon(vars, 0.02), 5)
    np.testing.assert_allclose(got, want, atol=0.05)  # five roundings of numbers up to 2, by 2^-8 in bfloat16


def test_moves_are_orthogonal() -> None:
    w = Var.zeros((8, 32))
    nn.Muon([w], nn.ParamsMuon(1.0, weight_decay=0.0)).step({w: Tensor(normal(8, 32))})
    singular = np.linalg.svd(w.numpy(), compute_uv=False)
    assert 0.5 < singular.min() <= singular.max() < 1.3  # how near the iteration comes to 1 in five steps


def test_vectors_are_for_another_optimizer() -> None:
    matrix, vector = Var(normal(3, 2)), Var(normal(3))
    text = r"^Muon: variable 1: got rank 1, shape \(3,\); takes rank 2 or more, AdamW the others$"
    with pytest.raises(mc.UnexpectedNumberOfDimsError, match=text):
        nn.Muon([matrix, vector], 0.02)
    muon, adamw = nn.Muon([matrix], 0.02), nn.AdamW([vector])
    before = matrix.numpy(), vector.numpy()
    grads = (matrix.sqr().sum_all() + vector.sqr().sum_all()).backward()
    muon.step(grads)
    adamw.step(grads)
    assert all((now.numpy() != then).all() for now, then in zip((matrix, vector), before))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 3, 2), (3, 0, 2)])
def test_a_matrix_of_nothing(shape: tuple[int, ...]) -> None:
    empty, matrix = Var.zeros(shape), Var.ones((2, 3))
    nn.Muon([empty, matrix], 0.02).backward_step(empty.sum_all() + matrix.sum_all())
    assert tuple(empty.shape) == shape
    assert (matrix.numpy() < 1).all()
