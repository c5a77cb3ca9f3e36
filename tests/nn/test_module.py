"""``Module``, ``ModuleT``, functions and ``Sequential``: calling, training mode, names."""

from __future__ import annotations

import weakref
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, nn

import numpy as np
import pytest

KINDS = pytest.mark.parametrize("kind", [Tensor, LazyTensor])


class Told(nn.ModuleT):
    """x + 1 in training, x otherwise."""

    def forward_t(self, xs: Any, train: bool) -> Any:
        return xs + 1.0 if train else xs


class Holder(nn.Module):
    def __init__(self) -> None:
        self.one = Told()
        self.more = [Told(), (Told(),)]
        self.by_name = {"a": Told()}
        self.again = self.one
        self._private = Told()

    def forward(self, xs: Any) -> Any:
        for _, module in self.named_modules():
            if module is not self:
                xs = module(xs)
        return xs


@KINDS
def test_mode_reaches_all_modules(kind: Any) -> None:
    holder, x = Holder(), kind.new(0.0)
    assert [name for name, _ in holder.named_modules()] == ["", "one", "more.0", "more.1.0", "by_name.a", "private"]
    assert (holder(x).to_scalar(), holder.is_training()) == (5.0, True)
    assert holder.eval() is holder
    assert (holder(x).to_scalar(), holder.one.is_training()) == (0.0, False)
    assert holder.train()(x).to_scalar() == 5.0
    assert holder.train(False)(x).to_scalar() == 0.0


@KINDS
def test_forward_t_is_told_and_leaves_the_mode(kind: Any) -> None:
    holder, x = Holder(), kind.new(0.0)
    holder.more[0].eval()  # type: ignore[union-attr]
    assert holder.forward_t(x, True).to_scalar() == 5.0
    assert holder.forward_t(x, False).to_scalar() == 0.0
    assert holder(x).to_scalar() == 4.0
    assert x.apply_t(holder, True).to_scalar() == 5.0
    assert x.apply_t(nn.func(lambda t: t * 2.0), True).to_scalar() == 0.0


def test_mode_comes_back_after_an_error() -> None:
    def fail(xs: Any) -> Any:
        raise ValueError("no")

    layers = nn.seq().add(Told()).add_fn(fail)
    with pytest.raises(ValueError, match="no"):
        layers.forward_t(Tensor.new(0.0), False)
    assert all(module.is_training() for _, module in layers.named_modules())


def test_what_is_no_tensor_is_named() -> None:
    weight = Tensor(np.ones((2, 2), np.float32))

    class Model(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(weight)

        def forward(self, xs: Any) -> Any:
            return self.layer.forward(xs)

    given: Any
    for given, got in (
        (np.ones((1, 2)), "an ndarray"),
        ([1.0, 2.0], "a list"),
        ({}, "a dict"),
        (3, "3"),
        (None, "None"),
    ):
        for module in (Model(), nn.Linear(weight), nn.Dropout(0.5), nn.Conv2d(weight), nn.Activation.Relu):
            told = f"^(?i:{type(module).__name__}): got {got}; takes a tensor$"
            with pytest.raises(mc.ArgumentTypeError, match=told):
                module(given)
    with pytest.raises(mc.ArgumentTypeError, match=r"^linear: got weight an ndarray; takes a tensor$"):
        nn.Linear(np.ones((2, 2)))  # type: ignore[arg-type]
    # A mistake of the module's own stays what it is.
    for given in (3, None, weight):
        with pytest.raises(AttributeError, match="has no attribute 'token_ids'"):
            nn.func(lambda batch: batch.token_ids)(given)


def test_a_module_that_holds_itself() -> None:
    holder = Holder()
    holder.myself = holder  # type: ignore[attr-defined]
    assert holder.eval().forward_t(Tensor.new(0.0), True).to_scalar() == 5.0


@KINDS
def test_functions(kind: Any) -> None:
    x = kind.new([1.0, 2.0])
    assert nn.func(lambda t: t * 2.0).forward(x).to_vec1() == [2.0, 4.0]
    told = nn.func_t(lambda t, train: t * (3.0 if train else 1.0))
    assert told.forward_t(x, True).to_vec1() == [3.0, 6.0]
    assert told.eval()(x).to_vec1() == [1.0, 2.0]
    assert isinstance(told, nn.FuncT)
    assert nn.Func.new(lambda t: t)(x) is x


@KINDS
def test_sequential(kind: Any) -> None:
    x = kind.new(1.0)
    layers = nn.seq().add_fn(lambda t: t * 2.0).add(Told()).add(nn.func(lambda t: t * 10.0))
    assert (len(layers), layers.len(), layers.is_empty(), nn.seq().is_empty()) == (3, 3, False, True)
    assert [each.to_scalar() for each in layers.forward_all(x)] == [2.0, 3.0, 30.0]
    assert (layers(x).to_scalar(), layers.forward_t(x, False).to_scalar()) == (30.0, 20.0)
    assert nn.seq().forward(x) is x
    assert list(layers)[1] is layers[1]
    with pytest.raises(TypeError, match="add: got a function; takes a module"):
        layers.add(lambda t: t)  # type: ignore[arg-type]


def test_a_compiled_function_notices_the_mode() -> None:
    holder, x = Holder(), Tensor.new(0.0)
    compiled = mc.compile(lambda t: holder(t))
    for mode, want in ((True, 5.0), (False, 0.0), (True, 5.0), (False, 0.0)):
        holder.train(mode)
        assert compiled(x).to_scalar() == want
    assert compiled.traces == 2
    holder.one.train()
    assert compiled(x).to_scalar() == 1.0
    assert "traced because training mode of Told is on, not off" in compiled.explain()
    # What asks no module for its mode is traced once.
    plain, layer = mc.compile(lambda t: layer(t)), nn.func(lambda t: t * 2.0)
    plain(x)
    layer.eval()
    plain(x)
    assert plain.traces == 1


def test_a_compiled_function_told_of_the_mode() -> None:
    holder = Holder()
    compiled = mc.compile(lambda t, train: holder.forward_t(t, train))
    assert [compiled(Tensor.new(0.0), train).to_scalar() for train in (True, False, True)] == [5.0, 0.0, 5.0]
    assert compiled.traces == 2
    assert all(module.is_training() for _, module in holder.named_modules())


def test_a_compiled_function_lets_modules_go() -> None:
    def fresh(xs: Any) -> Any:
        return Told()(xs)

    compiled = mc.compile(fresh)
    assert [compiled(Tensor.new(0.0)).to_scalar() for _ in range(5)] == [1.0] * 5
    assert compiled.traces == 1
    kept = Told()
    gone = weakref.ref(kept)
    compiled = mc.compile(lambda t: gone()(t))  # type: ignore[misc]
    compiled(Tensor.new(0.0))
    del kept
    assert gone() is None


class Block(nn.Module):
    def __init__(self, vb: nn.VarBuilder) -> None:
        self.inner, self._eps, self._secret = nn.linear(2, 3, vb.pp("inner")), 1e-5, 7
        self.myself = self

    def eps(self) -> float:
        return self._eps


class Net(nn.Module):
    def __init__(self, vb: nn.VarBuilder) -> None:
        self.blocks = [Block(vb.pp(f"blocks.{i}")) for i in range(3)]
        self.last = [nn.Dropout(0.5), nn.Activation.Elu(1.5), nn.func(lambda t: t)]
        self.scale = vb.get((2,), "scale")


def test_printed() -> None:
    net = Net(nn.VarBuilder.zeros("f32"))
    assert repr(net) == "\n".join(
        [
            "Net(",
            "  scale [2] f32",
            "  blocks.0 to 2: Block(",
            "    eps=1e-05",
            "    inner: Linear(weight [3, 2] f32, bias [3] f32)",
            "    myself: Block(…)",
            "  )",
            "  last.0: Dropout(drop_p=0.5)",
            "  last.1: Activation.Elu(1.5)",
            "  last.2: Func()",
            ")",
        ]
    )
    vb = nn.VarBuilder.zeros("f16")
    conv = nn.conv2d_no_bias(1, 4, 3, nn.Conv2dConfig(padding=1), vb)
    assert repr(conv) == "Conv2d(weight [4, 1, 3, 3] f16, padding=1)"
    assert repr(nn.seq()) == "Sequential()"
