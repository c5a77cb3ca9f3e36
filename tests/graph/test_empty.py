"""Arrays without elements, from wherever they come: sums and products of nothing."""

from __future__ import annotations

from typing import Any

from metal_candle import DType, LazyTensor, Tensor, Var

import mlx.core as mx
import numpy as np
import pytest


@pytest.mark.parametrize("kind", [Tensor, LazyTensor, Var])
@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (2, 0, 3), (0, 0)])
def test_nothing_from_numpy_or_mlx_adds_up_to_zero(kind: Any, shape: tuple[int, ...]) -> None:
    # MLX alone gives other numbers here, or none for a long time.
    for dtype in (DType.U8, DType.F16, DType.F32, DType.F64):
        array = np.zeros(shape, str(dtype.mlx()).rpartition(".")[2])
        with mx.stream(mx.cpu):
            made = mx.array(array)
        for tensor in (kind.new(array, "cpu"), kind.from_mlx(made, "cpu"), kind.new(array.tolist(), "cpu", dtype)):
            for _ in range(5):
                # Numbers in the memory that is handed out next.
                mx.eval([mx.full((n,), 7.0) for n in range(1, 9)])
                assert tensor.sum_all().to_scalar() == 0
                assert np.all(tensor.sum_keepdim(tuple(range(tensor.rank))).numpy() == 0)
                assert np.all(tensor.sum(-1).numpy() == 0)
                if dtype.is_float():
                    assert np.isnan(tensor.mean_all().to_scalar())
                    assert tensor.norm().to_scalar() == 0
