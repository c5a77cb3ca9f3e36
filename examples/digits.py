"""candle's MNIST training, on scikit-learn's 1,797 digits of 8 x 8 pixels.

    pip install ".[examples]"
    python examples/digits.py mlp     # over 97 % of the held-out digits
    python examples/digits.py cnn     # over 98 %; --save and --load take a safetensors file, as upstream

The order of classes, names and calls is that of candle-examples/examples/mnist-training, whose tensors are
``(batch, 784)``; ``linear`` is its third model. What differs: pictures and layers are smaller, and because there are
so few pictures SGD has momentum, the rate falls, and the pictures are moved about.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

import metal_candle as candle
from metal_candle import D, Device, DType, Tensor
from metal_candle import nn as candle_nn
from metal_candle.nn import Dropout, Linear, VarBuilder, VarMap, loss, ops

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_DIM = 64
LABELS = 10


def linear_z(in_dim: int, out_dim: int, vs: VarBuilder) -> Linear:
    ws = vs.get_with_hints((out_dim, in_dim), "weight", candle_nn.init.ZERO)
    bs = vs.get_with_hints(out_dim, "bias", candle_nn.init.ZERO)
    return Linear.new(ws, bs)


class LinearModel(candle_nn.Module):
    def __init__(self, vs: VarBuilder) -> None:
        self.linear = linear_z(IMAGE_DIM, LABELS, vs)

    def forward(self, xs: Any) -> Any:
        return self.linear.forward(xs)


class Mlp(candle_nn.Module):
    def __init__(self, vs: VarBuilder) -> None:
        self.ln1 = candle_nn.linear(IMAGE_DIM, 256, vs.pp("ln1"))
        self.ln2 = candle_nn.linear(256, LABELS, vs.pp("ln2"))

    def forward(self, xs: Any) -> Any:
        xs = self.ln1.forward(xs)
        xs = xs.relu()
        return self.ln2.forward(xs)


class ConvNet(candle_nn.ModuleT):
    def __init__(self, vs: VarBuilder) -> None:
        config = candle_nn.Conv2dConfig(padding=1)
        self.conv1 = candle_nn.conv2d(1, 32, 3, config, vs.pp("c1"))
        self.conv2 = candle_nn.conv2d(32, 64, 3, config, vs.pp("c2"))
        self.fc1 = candle_nn.linear(1024, 256, vs.pp("fc1"))
        self.fc2 = candle_nn.linear(256, LABELS, vs.pp("fc2"))
        self.dropout = Dropout.new(0.5)

    def forward_t(self, xs: Any, train: bool) -> Any:
        b_sz, _img_dim = xs.dims2()
        xs = (
            xs.reshape((b_sz, 1, 8, 8))
            .apply(self.conv1)
            .relu()
            .apply(self.conv2)
            .relu()
            .max_pool2d(2)
            .flatten_from(1)
            .apply(self.fc1)
            .relu()
        )
        return self.dropout.forward(xs, train).apply(self.fc2)


@dataclass
class Dataset:
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Dataset:
    """Pixels from 0 to 1; every fifth digit is held out, with each class's share."""
    pixels, digits = load_digits(return_X_y=True)
    images, labels = (pixels / 16.0).astype(np.float32), digits.astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return Dataset(Tensor.new(train_x), Tensor.new(train_y), Tensor.new(test_x), Tensor.new(test_y))


def shifted(images: Tensor) -> Tensor:
    """The pictures moved by up to a pixel: a thousand are few for a network of this size."""
    dx, dy = random.randrange(3), random.randrange(3)
    xs = images.reshape((-1, 8, 8)).pad_with_zeros(1, 1, 1).pad_with_zeros(2, 1, 1)
    return xs.narrow(1, dy, 8).narrow(2, dx, 8).flatten_from(1)


def training_loop_cnn(m: Dataset, args: argparse.Namespace) -> None:
    BSIZE = 64

    dev = Device.cuda_if_available(0)

    train_images = m.train_images.to_device(dev)
    train_labels = m.train_labels.to_dtype(DType.U32).to_device(dev)

    varmap = VarMap.new()
    vs = VarBuilder.from_varmap(varmap, DType.F32, dev)
    model = ConvNet.new(vs)

    if args.load:
        print(f"loading weights from {args.load}")
        varmap.load(args.load)

    adamw_params = candle_nn.ParamsAdamW(lr=args.learning_rate)
    opt = candle_nn.AdamW.new(varmap.all_vars(), adamw_params)
    test_images = m.test_images.to_device(dev)
    test_labels = m.test_labels.to_dtype(DType.U32).to_device(dev)
    n_batches = train_images.dim(0) // BSIZE
    batch_idxs = list(range(n_batches))
    for epoch in range(1, args.epochs + 1):
        sum_loss = 0.0
        opt.set_learning_rate(args.learning_rate * (1 - (epoch - 1) / args.epochs))
        random.shuffle(batch_idxs)
        for batch_idx in batch_idxs:
            images = train_images.narrow(0, batch_idx * BSIZE, BSIZE)
            labels = train_labels.narrow(0, batch_idx * BSIZE, BSIZE)
            logits = model.forward_t(shifted(images), True)
            log_sm = ops.log_softmax(logits, D.Minus1)
            l = loss.nll(log_sm, labels)  # noqa: E741
            opt.backward_step(l)
            sum_loss += l.to_vec0()
        avg_loss = sum_loss / n_batches

        test_logits = model.forward_t(test_images, False)
        sum_ok = test_logits.argmax(D.Minus1).eq(test_labels).to_dtype(DType.F32).sum_all().to_scalar()
        test_accuracy = sum_ok / test_labels.dims1()
        print(f"{epoch:4} train loss {avg_loss:8.5f} test acc: {100 * test_accuracy:5.2f}%")
    if args.save:
        print(f"saving trained weights in {args.save}")
        varmap.save(args.save)


def training_loop(Model: type[candle_nn.Module], m: Dataset, args: argparse.Namespace) -> None:
    dev = Device.cuda_if_available(0)

    train_images = m.train_images.to_device(dev)
    train_labels = m.train_labels.to_dtype(DType.U32).to_device(dev)

    varmap = VarMap.new()
    vs = VarBuilder.from_varmap(varmap, DType.F32, dev)
    model = Model.new(vs)

    if args.load:
        print(f"loading weights from {args.load}")
        varmap.load(args.load)

    # Upstream gives the rate alone, as one may here: candle_nn.SGD.new(vars, 0.05).
    sgd_params = candle_nn.ParamsSGD(lr=args.learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-3)
    sgd = candle_nn.SGD.new(varmap.all_vars(), sgd_params)
    test_images = m.test_images.to_device(dev)
    test_labels = m.test_labels.to_dtype(DType.U32).to_device(dev)
    for epoch in range(1, args.epochs + 1):
        logits = model.forward(train_images)
        log_sm = ops.log_softmax(logits, D.Minus1)
        l = loss.nll(log_sm, train_labels)  # noqa: E741
        sgd.backward_step(l)

        test_logits = model.forward(test_images)
        sum_ok = test_logits.argmax(D.Minus1).eq(test_labels).to_dtype(DType.F32).sum_all().to_scalar()
        test_accuracy = sum_ok / test_labels.dims1()
        print(f"{epoch:4} train loss: {l.to_scalar():8.5f} test acc: {100 * test_accuracy:5.2f}%")
    if args.save:
        print(f"saving trained weights in {args.save}")
        varmap.save(args.save)


def main() -> None:
    parser = argparse.ArgumentParser(description="candle's MNIST training, on small digits.")
    parser.add_argument("model", choices=["linear", "mlp", "cnn"], nargs="?", default="linear")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--save", help="the file to save the trained weights in, in safetensors format")
    parser.add_argument("--load", help="the file to load trained weights from, in safetensors format")
    parser.add_argument("--seed", type=int, default=299792458)
    args = parser.parse_args()

    random.seed(args.seed)
    Device.cuda_if_available(0).set_seed(args.seed)

    m = load()
    print(f"train-images: {m.train_images.shape}")
    print(f"train-labels: {m.train_labels.shape}")
    print(f"test-images: {m.test_images.shape}")
    print(f"test-labels: {m.test_labels.shape}")

    default_learning_rate, default_epochs = {"linear": (0.2, 200), "mlp": (0.2, 500), "cnn": (0.002, 20)}[args.model]
    args.learning_rate = default_learning_rate if args.learning_rate is None else args.learning_rate
    args.epochs = default_epochs if args.epochs is None else args.epochs
    try:
        if args.model == "cnn":
            training_loop_cnn(m, args)
        else:
            training_loop({"linear": LinearModel, "mlp": Mlp}[args.model], m, args)
    except candle.Error as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
