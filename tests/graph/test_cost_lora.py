"""What low-rank updates cost: the order of products that runs, forward and backward."""

from __future__ import annotations

from itertools import product

from metal_candle import DType
from metal_candle.graph.operation import Operation
from metal_candle.kernels import fused_lora

import mlx.core as mx
import pytest
from costs import flops, meta


def test_lora_and_its_gradient() -> None:
    t, width, rank, out = 10, 7, 2, 5
    x, a, b = meta(2, 5, width), meta(width, rank), meta(rank, out)
    forward = 2 * t * rank * (width + out) + t * rank
    assert flops(Operation.LoRA(0.5), x, a, b) == forward
    assert flops(Operation.AddLoRA(0.5), meta(2, 5, out), x, a, b) == forward + t * out
    narrow, wide = 2 * t * rank * width, 2 * t * rank * out
    want = {
        (True, False, False): wide + narrow,
        (False, True, False): wide + narrow,
        (True, True, False): wide + 2 * narrow,
        (False, False, True): narrow + wide,
        (True, True, True): 2 * wide + 3 * narrow,
        (False, False, False): 0,
    }
    output = meta(2, 5, out)
    for needs, count in want.items():
        assert Operation.LoRA(0.5).vjp_flops((x, a, b), output, needs) == count
        assert Operation.AddLoRA(0.5).vjp_flops((output, x, a, b), output, (True, *needs)) == count


def test_lora_where_another_order_takes_fewer_multiplications() -> None:
    t, width, rank, out = 50, 7, 20, 5
    for dtype in (DType.F32, DType.BF16):
        x, a, b = meta(t, width, dtype=dtype), meta(width, rank, dtype=dtype), meta(rank, out, dtype=dtype)
        output = meta(t, out, dtype=dtype)
        merged = 2 * width * rank * out + 2 * t * width * out
        assert flops(Operation.LoRA(0.5), x, a, b) == merged + width * out
        assert flops(Operation.AddLoRA(0.5), output, x, a, b) == merged + width * out + t * out
        for needs, count in (
            ((True, False, False), merged),  # g · (A · B)ᵀ
            ((False, True, False), merged),  # (xᵀ · g) · Bᵀ
            ((False, True, True), merged + 2 * width * rank * out),  # xᵀ · g is shared
            ((True, True, True), 2 * merged + 2 * width * rank * out),
        ):
            assert Operation.LoRA(0.5).vjp_flops((x, a, b), output, needs) == count
            assert Operation.AddLoRA(0.5).vjp_flops((output, x, a, b), output, (True, *needs)) == count


def test_lora_of_f16_goes_through_the_rank() -> None:
    t, width, rank, out = 50, 7, 20, 5
    x, a, b = (meta(*shape, dtype=DType.F16) for shape in ((t, width), (width, rank), (rank, out)))
    assert flops(Operation.LoRA(0.5), x, a, b) == 2 * t * rank * (width + out) + t * rank
    narrow, wide = 2 * t * rank * width, 2 * t * rank * out
    count = Operation.LoRA(0.5).vjp_flops((x, a, b), meta(t, out, dtype=DType.F16), (True, True, True))
    assert count == 3 * narrow + 2 * wide


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("sizes", [(5, 40, 4, 36), (64, 8, 6, 9), (50, 7, 20, 5), (9, 6, 6, 30), (40, 30, 16, 4)])
def test_lora_costs_the_products_that_run(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int], dtype: DType
) -> None:
    rows, width, rank, out = sizes
    shapes = ((rows, width), (width, rank), (rank, out))
    x, a, b = (mx.zeros(shape, dtype.mlx()) for shape in shapes)
    run: list[int] = []

    def counting(one: mx.array, other: mx.array) -> mx.array:
        run.append(2 * one.shape[0] * one.shape[1] * other.shape[1])
        return one @ other

    monkeypatch.setattr(fused_lora, "matmul", counting)
    operation, metas, output = Operation.LoRA(0.5), [meta(*shape, dtype=dtype) for shape in shapes], (rows, out)
    operation.lower(x, a, b)
    scaling = flops(operation, *metas) - sum(run)
    assert scaling in (rows * rank, width * out)
    for needs in product((True, False), repeat=3):
        run.clear()
        operation.vjp(mx.zeros(output, dtype.mlx()), (x, a, b), None, needs)
        assert operation.vjp_flops(metas, meta(*output, dtype=dtype), needs) == sum(run)
