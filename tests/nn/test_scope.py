"""Which module a node was recorded in: ``GraphNode.scope``, by ``nn.Module`` and by ``graph.scope``."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
from typing import Any

import metal_candle as mc
from metal_candle import Device, DType, LazyTensor, Tensor
from metal_candle.graph import ComputationGraph, scope
from metal_candle.graph.scopes import _outside, _Place
from metal_candle.models.config import ModelConfig
from metal_candle.models.decoder import Decoder
from metal_candle.nn import Func, Module, Sequential, VarBuilder, VarMap

import pytest


class Exp(Module):
    """exp(x)."""

    def forward(self, xs: Any, times: int = 1) -> Any:
        """Applied ``times`` times."""
        for _ in range(times):
            xs = xs.exp()
        return xs


class Heir(Exp):
    def forward(self, xs: Any, times: int = 1) -> Any:
        return super().forward(xs.neg(), times)


class Block(Module):
    def __init__(self, *inner: Module) -> None:
        self._first, self.rest = Exp(), list(inner)
        self.by_name = {"one": Exp(), "pair": (Exp(), Exp())}

    def forward(self, xs: Any) -> Any:
        xs = self._first(xs).sqr()
        for inner in self.rest:
            xs = inner.forward(xs)
        return self.by_name["pair"][1](self.by_name["one"](xs))  # type: ignore[index, operator]


class Failing(Module):
    def forward(self, xs: Any) -> Any:
        raise KeyError("no")


def x() -> LazyTensor:
    return LazyTensor.new([1.0, 2.0])


def scopes(y: Any) -> list[str]:
    """Of all operations, without leaves."""
    return [node.scope for node in ComputationGraph(y).nodes() if node.inputs]


def test_names_are_attributes_indices_and_keys() -> None:
    assert scopes(Block(Exp(), Heir())(x())) == [
        "Block.first",
        "Block",
        "Block.rest.0",
        "Block.rest.1",
        "Block.rest.1",
        "Block.by_name.one",
        "Block.by_name.pair.1",
    ]


def test_calling_and_forward_are_the_same() -> None:
    block = Block(Block())
    called = scopes(block(x()))
    assert called == scopes(block.forward(x())) == scopes(Block.forward(block, x()))
    assert "Block.rest.0.by_name.one" in called
    assert scopes(x().exp()) == [""]


def test_a_method_of_the_same_module_stays() -> None:
    assert scopes(Heir()(x())) == ["Heir", "Heir"]
    assert scopes(Heir().forward(xs=x(), times=2)) == ["Heir"] * 3
    assert scopes(Heir()(x(), 2)) == ["Heir"] * 3


def test_sequences_and_functions() -> None:
    layers = Sequential().add(Exp()).add_fn(lambda xs: xs.neg())
    expected = ["Sequential.layers.0", "Sequential.layers.1"]
    assert scopes(layers(x())) == expected
    assert [node for y in layers.forward_all(x()) for node in scopes(y)] == [expected[0], *expected]


def test_a_module_held_deeper_or_not_at_all() -> None:
    class Reaching(Module):
        def __init__(self) -> None:
            self.block = Block(Exp())

        def forward(self, xs: Any) -> Any:
            return Exp()(self.block.rest[0](xs))

    assert scopes(Reaching()(x())) == ["Reaching.block.rest.0", "Reaching.Exp"]
    hidden = Exp()
    assert scopes(Func(lambda xs: hidden(xs).neg())(x())) == ["Func.Exp", "Func"]


def test_a_shared_module_has_the_path_it_was_called_by() -> None:
    shared = Exp()
    found = scopes(Block(shared, Block(shared))(x()))
    assert [path for path in found if path.endswith("rest.0")] == ["Block.rest.0", "Block.rest.1.rest.0"]


def test_a_forward_from_outside_of_modules() -> None:
    class Mixin:
        def forward(self, xs: Any) -> Any:
            return xs.exp()

    class Mixed(Mixin, Module):  # type: ignore[misc]
        pass

    class Borrowed(Module):
        forward = Exp.forward

    assert scopes(Mixed()(x())) == ["Mixed"]
    assert scopes(Borrowed()(x())) == ["Borrowed"]
    assert Borrowed.forward is Exp.forward, "wrapped once"
    assert not hasattr(Mixin.forward, "is_scoped"), "another's class is left as it is"


def test_signature_and_docstring() -> None:
    assert list(inspect.signature(Exp.forward).parameters) == ["self", "xs", "times"]
    assert list(inspect.signature(Exp().forward).parameters) == ["xs", "times"]
    assert Exp.forward.__doc__ == "Applied ``times`` times."
    assert Exp.forward.__qualname__ == "Exp.forward"
    with pytest.raises(TypeError, match=r"forward\(\) missing 1 required positional argument: 'xs'"):
        Exp().forward()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'time'"):
        Exp().forward(x(), time=1)  # type: ignore[call-arg]


def test_a_subclass_without_forward_says_so() -> None:
    class Empty(Module):
        pass

    with pytest.raises(AssertionError, match="Empty defines no forward"):
        Empty()(x())


def test_copies_and_pickles() -> None:
    block = Block(Exp())
    block(x())
    for other in (copy.copy(block), copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert scopes(other(x())) == scopes(block(x()))
    assert pickle.loads(pickle.dumps(Exp.forward)) is Exp.forward


def test_an_exception_restores_the_scope() -> None:
    block = Block(Failing())
    with pytest.raises(KeyError):
        block(x())
    with pytest.raises(ZeroDivisionError), scope("outer"):
        _ = 1 // 0
    assert scopes(x().exp()) == [""]
    assert scopes(Exp()(x())) == ["Exp"]


def places(place: _Place) -> int:
    """How many are remembered below a place."""
    return len(place.children) + sum(map(places, place.children.values()))


def test_places_are_forgotten_with_the_modules() -> None:
    gc.collect()
    before = places(_outside)
    blocks = [Block(Exp(), Block()) for _ in range(3)]
    for block in blocks:
        block(x())
        block(x())
    # Each outer Block, five that it calls, and three that the inner one calls.
    assert places(_outside) == before + 3 * (1 + 5 + 3)
    blocks[0].rest.pop()
    gc.collect()
    assert places(_outside) == before + 3 * (1 + 5 + 3) - 4
    del block, blocks
    gc.collect()
    assert places(_outside) == before


def test_names_without_end_are_not_remembered() -> None:
    module = Exp()
    for i in range(1000):
        with scope("training"), scope(f"step_{i}"):
            y = module(x())
    assert scopes(y) == ["training.step_999.Exp"]
    assert len(_outside.children["training"].children) <= 256


def test_scope_without_modules() -> None:
    with scope("encoder"):
        y = x().exp()
        with scope("layers.0"):
            y = Block()(y)
        y = y.neg()
    assert scopes(y.sqr()) == [
        "encoder",
        "encoder.layers.0.Block.first",
        "encoder.layers.0.Block",
        "encoder.layers.0.Block.by_name.one",
        "encoder.layers.0.Block.by_name.pair.1",
        "encoder",
        "",
    ]


def test_scope_inside_a_module_and_as_a_decorator() -> None:
    class Parts(Module):
        def __init__(self) -> None:
            self.inner = Exp()

        def forward(self, xs: Any) -> Any:
            with scope("half"):
                return self.inner(xs).neg()

    @scope("twice")
    def twice(y: LazyTensor, again: bool = True) -> LazyTensor:
        y = y.exp()
        return twice(y, False) if again else y

    assert scopes(Parts()(x())) == ["Parts.half.inner", "Parts.half"]
    assert scopes(twice(x())) == ["twice", "twice.twice"]


@pytest.mark.parametrize("name", ["", ".", "a..b", "a.", 3, None])
def test_scope_refuses(name: Any) -> None:
    with pytest.raises(mc.Error, match=r"scope: got .*; takes a name such as 'attention'"), scope(name):
        pass


def test_each_thread_has_its_own() -> None:
    inside, go = threading.Event(), threading.Event()
    found: list[list[str]] = []

    class Waiting(Module):
        def forward(self, xs: Any) -> Any:
            inside.set()
            assert go.wait(30)
            return xs.exp()

    thread = threading.Thread(target=lambda: found.append(scopes(Waiting()(x()))))
    thread.start()
    assert inside.wait(30)
    assert scopes(Exp()(x())) == ["Exp"]
    go.set()
    thread.join()
    assert found == [["Waiting"]]


def test_a_decoder() -> None:
    config = ModelConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    model = Decoder(config, VarBuilder.from_varmap(VarMap(), DType.F32, Device.Cpu))
    ids = LazyTensor(Tensor.new([[1, 2]], Device.Cpu, DType.U32)._node)
    found = scopes(model(ids))
    assert set(found[:4]) == {
        "Decoder.embed_tokens",
        "Decoder.layers.0.input_layernorm",
        "Decoder.layers.0.self_attn.q_proj.linear",
        "Decoder.layers.0.self_attn",
    }
    assert "Decoder.layers.1.mlp.down_proj.linear" in found
    assert found[-2:] == ["Decoder.norm", "Decoder.lm_head"]
    assert scopes(model.hidden(ids)) == found[:-1]
