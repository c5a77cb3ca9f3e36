"""A tour of the tensor for who knows candle: views and storage, indexing, gradients, files, quantised weights.

    python examples/tensors.py

Every line runs on ``Tensor``, which computes at once, and but for the in-place ones on ``LazyTensor``, which records.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import metal_candle as mc
from metal_candle import D, DType, LazyTensor, Tensor, Var
from metal_candle.quantized import GgmlDType, QMatMul, QTensor

import mlx.core as mx

# Named methods are strict, as candle's; broadcast_* and the operators broadcast. Nothing is promoted.
x = Tensor.arange(0.0, 12.0).reshape((3, -1))
row = Tensor([1.0, 10.0, 100.0, 1000.0])
print(x.broadcast_mul(row).sum(D.Minus1), (x * row).argmax(1))
try:
    x.mul(row)
except mc.Error as error:
    print(error)

# Indexing takes ints, slices with steps, `...`, None and tensors of ids; `i` and brackets are one.
print(x.i((slice(None), 1)), x[::-1, ::2], x[..., None].dims(), x[Tensor([2, 0])])

# A view shares its parent's storage: what is written through one is seen by all.
view = x.narrow(0, 1, 1)
view.zero_set()
x[:, 3] = -1.0
print(x, view.is_contiguous(), x.t().stride)

# A variable is a cell: layers and views made from it see what is set later. Gradients pass through everything.
w = Var.randn(0.0, 1.0, (4, 2))
turned = w.t()
loss = x.matmul(w).gelu().broadcast_sub(Tensor([0.5, -0.5])).sqr().mean_all()
grads = loss.backward()
w.set(w - grads[w] * 0.1)
assert turned.to_vec2() == w.t().to_vec2()
print(loss, grads[w].dims())

# The same code records, when it starts from a lazy tensor; shapes and dtypes are known before anything is computed.
lazy = LazyTensor.from_tensor(x).matmul(LazyTensor.from_tensor(w)).softmax(D.Minus1)
print(lazy)
print(lazy.eval())


class Softplus(mc.CustomOp1):
    """An operation of one's own, on MLX arrays, with its gradient."""

    def forward(self, x: mx.array) -> mx.array:
        return mx.logaddexp(x, 0.0)

    def backward(self, args: tuple[mx.array, ...], res: mx.array, grad: mx.array) -> mx.array:
        return grad * mx.sigmoid(args[0])


print(w.apply_op1(Softplus()).sum_all().backward()[w].dims())

# Files of candle's kinds; whole or not at all.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "weights.safetensors"
    mc.safetensors.save({"w": w, "half": w.to_dtype(DType.BF16)}, path, {"made by": "a tour"})
    print(mc.safetensors.MmapedSafetensors.new(path).load("half", mc.Device.Cpu).dtype)
    w.write_npy(Path(folder) / "w.npy")
    assert Tensor.read_npy(Path(folder) / "w.npy").to_vec2() == w.to_vec2()

# Weights that stay quantised: 18 bytes for 32 numbers.
weight = Tensor.randn(0.0, 1.0, (8, 64))
packed = QTensor.quantize(weight, GgmlDType.Q4_0)
inputs = Tensor.randn(0.0, 1.0, (2, 64))
difference = QMatMul.from_qtensor(packed).forward(inputs) - inputs.matmul(weight.t())
print(packed.storage_size_in_bytes(), difference.abs().max_all())
