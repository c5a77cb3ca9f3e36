"""What a builder says of names that are not there, other names for tensors, and sources of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_candle import Device, DType, Tensor, error, nn
from metal_candle.npy import NpzTensors

import numpy as np
import pytest
from stored_weights import (
    from_safetensors,
)

# --- names that are not there -----------------------------------------------------------------

GPT2 = [f"transformer.h.{i}.{name}" for i in range(12) for name in ("ln_1.weight", "attn.c_attn.weight")]
GPT2 += ["transformer.wte.weight", "transformer.ln_f.weight"]
MISSING = [
    (["model.norm.weight"], "model.norm.weigth", "; nearest: model.norm.weight"),
    (["model.norm.weight"], "model.norm.zzzzzzzzzzzzzzzzzzzzzz", "; model.norm has weight"),
    ([], "a.b", "; there are no tensors"),
    (["a", "b"], "zzzz", "; there are a, b"),
    (
        GPT2,
        "model.layers.0.self_attn.q_proj.weight",
        "; nothing is below model; there are transformer.h, transformer.ln_f, transformer.wte",
    ),
    (
        GPT2,
        "transformer.h.12.ln_1.weight",
        "; nearest: transformer.h.0.ln_1.weight, transformer.h.1.ln_1.weight, transformer.h.2.ln_1.weight"
        "; nothing is below transformer.h.12; transformer.h has 0, 1, 2, 3, 4, 5, …, 11",
    ),
    (
        GPT2,
        "h.3.attn.c_attn.weight",
        "; nearest: transformer.h.3.attn.c_attn.weight; nothing is below h; "
        "there are transformer.h, transformer.ln_f, transformer.wte",
    ),
    (
        ["wte.weight", "h.0.w"],
        "transformer.wte.weight",
        "; nearest: wte.weight; nothing is below transformer; there are",
    ),
    ([""], "weight", '; there are ""'),
    (["a.b.weight", "a.c.weight"], "a.d.weight", "; nearest: a.c.weight, a.b.weight"),
]


@pytest.mark.parametrize(("names", "asked", "told"), MISSING)
def test_a_missing_tensor_is_named_with_what_there_is(names: list[str], asked: str, told: str) -> None:
    vb = nn.VarBuilder.from_tensors({name: Tensor([1.0]) for name in names}, "f32")
    with pytest.raises(KeyError) as caught:
        vb.get(1, asked)
    assert isinstance(caught.value, error.CannotFindTensorError)
    assert str(caught.value).startswith(f"cannot find tensor {asked}{told}")
    assert "\n" not in str(caught.value)
    assert caught.value.path == asked


def test_the_nearest_of_very_many_names() -> None:
    names = [f"model.layers.{i}.experts.{j}.{part}" for i in range(20) for j in range(100) for part in ("w1", "w2")]
    vb = nn.VarBuilder.from_tensors(dict.fromkeys(names), "f32")
    near = r"nearest: model\.layers\.3\.experts\.7\.w2, model\.layers\.3\.experts\.7\.w1$"
    with pytest.raises(KeyError, match=near):
        vb.get(1, "model.layers.3.experts.7.w3")
    # Prefixes that are not there, and files of unlike names.
    with pytest.raises(
        KeyError, match=r"; nearest: model\.layers\.3\.experts\.7\.w2; nothing is below language; there"
    ):
        vb.get(1, "language.model.layers.3.experts.7.w2")
    with pytest.raises(
        KeyError, match=r"^cannot find tensor zzz; there are model\.layers\.0, .*, …, model\.layers\.19$"
    ):
        vb.get(1, "zzz")


# --- other names ------------------------------------------------------------------------------


class Gamma(nn.var_builder.Renamer):
    def rename(self, v: str) -> str:
        return v.replace("gamma", "weight")


def test_renaming(tmp_path: Path) -> None:
    vb = from_safetensors(tmp_path)
    named = vb.rename_f(lambda name: name.replace("encoder", "model"))
    assert named.contains_tensor("encoder.norm.weight")
    assert named.contains_tensor("model.norm.weight")
    assert not named.contains_tensor("decoder.norm.weight")
    assert named.pp("encoder").pp("norm").get(4, "weight").dims() == [4]
    twice = named.rename(Gamma())
    assert twice.pp("encoder.norm").get(4, "gamma").dims() == [4]
    assert twice.pp("encoder.norm").get_unchecked("gamma").dims() == [4]
    assert "model.norm.weight" not in twice.unused()
    assert set(twice.unused()) == set(vb.unused())
    # Below the root candle would put the prefix in front once more.
    assert vb.pp("model").rename_f(lambda name: name.replace("n0rm", "norm")).get(4, "n0rm.weight").dims() == [4]
    assert named.to_dtype("f16").get(4, "encoder.norm.weight").dtype is DType.F16
    inner = nn.var_builder.Rename.new(vb.pp("model"), lambda name: name.upper().lower())
    assert nn.VarBuilder.from_backend(inner, "f32").get(4, "norm.weight").dims() == [4]
    varmap = nn.VarMap()
    nn.rms_norm(4, 1e-5, nn.VarBuilder.from_varmap(varmap, "f32").rename(Gamma()).pp("gamma"))
    assert list(varmap.data()) == ["weight.weight"]


def test_errors_show_the_name_before_and_after_renaming() -> None:
    vb = nn.VarBuilder.from_tensors({"model.norm.weight": Tensor([1.0])}, "f32")
    named = vb.rename_f(lambda name: name.replace("encoder", "model"))
    with pytest.raises(error.CannotFindTensorError) as caught:
        named.get(1, "encoder.norm.weigth")
    want = "cannot find tensor model.norm.weigth, asked for as encoder.norm.weigth; nearest: model.norm.weight"
    assert str(caught.value) == want
    assert (caught.value.path, caught.value.asked) == ("model.norm.weigth", "encoder.norm.weigth")
    with pytest.raises(error.UnexpectedShapeError) as shape:
        named.rename_f(lambda name: name.replace("e.", "encoder.")).get(2, "e.norm.weight")
    want = "model.norm.weight, asked for as e.norm.weight: expected shape (2,), got (1,)"
    assert str(shape.value) == want
    with pytest.raises(error.CannotFindTensorError, match=r"^cannot find tensor other; there are model\.norm\.weight$"):
        named.get_unchecked("other")
    with pytest.raises(error.ArgumentTypeError, match=r"^rename a: the renamer gave None; takes a name, a str$"):
        vb.rename_f({}.get).get(1, "a")  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match=r"^rename: got 3; takes a function of a name, or a Renamer$"):
        vb.rename(3)  # type: ignore[arg-type]


# --- a source of one's own --------------------------------------------------------------------


class Doubled:
    """What merges adapters, say: another builder's tensors, changed. Derived from nothing."""

    def __init__(self, base: nn.VarBuilder) -> None:
        self.base = base
        self.asked: list[tuple[Any, ...]] = []

    def get(self, shape: Any, name: str, hints: nn.Init, dtype: DType, dev: Device) -> Tensor:
        self.asked.append((shape, name, hints, dtype, dev))
        return self.base.get_with_hints_dtype(shape, name, hints, dtype) * 2.0

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        return self.base.get_unchecked_dtype(name, dtype) * 2.0

    def contains_tensor(self, name: str) -> bool:
        return self.base.contains_tensor(name)


def test_a_source_of_ones_own() -> None:
    own = Doubled(nn.VarBuilder.from_tensors({"a.weight": Tensor([[1.0, 2.0]])}, "f32"))
    vb = nn.VarBuilder.from_backend(own, "f16", "cpu")
    layer = nn.linear_no_bias(2, 1, vb.pp("a"))
    assert layer.weight().to_vec2() == [[2.0, 4.0]]
    assert own.asked == [((1, 2), "a.weight", nn.init.DEFAULT_KAIMING_NORMAL, DType.F16, Device.Cpu)]
    assert vb.pp("a").get_unchecked("weight").to_vec2() == [[2.0, 4.0]]
    assert vb.contains_tensor("a.weight")
    assert not vb.contains_tensor("a.bias")
    assert vb.unused() == []
    vb.get((1, 2), "a.weight")
    assert own.asked[-1][2] == nn.Init.default()


def test_what_is_no_source() -> None:
    class Half:
        def get(self) -> None: ...

    with pytest.raises(
        error.ArgumentTypeError,
        match=r"^from_backend: got a Half, which has no get_unchecked and no contains_tensor; takes an object "
        r"with get, get_unchecked and contains_tensor$",
    ):
        nn.VarBuilder.from_backend(Half(), "f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^from_backend: got a type, a class; takes an object"):
        nn.VarBuilder.from_backend(Doubled, "f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^from_varmap: got a dict; takes a VarMap$"):
        nn.VarBuilder.from_varmap({}, "f32")  # type: ignore[arg-type]
    with pytest.raises(
        error.ArgumentTypeError, match=r"^from_tensors: got a Tensor; takes a dict of names to tensors$"
    ):
        nn.VarBuilder.from_tensors(Tensor([1.0]), "f32")  # type: ignore[arg-type]

    class Incomplete(nn.var_builder.SimpleBackend):
        def contains_tensor(self, name: str) -> bool:
            return True

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()  # type: ignore[abstract]


def test_what_candle_makes_sources_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.float32([1, 2]))
    sources: list[Any] = [{"a": Tensor([1.0, 2.0])}, NpzTensors.new(tmp_path / "a.npz")]
    for source in sources:
        assert nn.VarBuilder.from_backend(source, "f32").get(2, "a").to_vec1() == [1.0, 2.0]
    varmap = nn.VarMap()
    nn.VarBuilder.from_backend(varmap, "f32").get(2, "a")
    assert list(varmap.data()) == ["a"]


def test_arguments_in_the_wrong_order() -> None:
    vb = nn.VarBuilder.zeros("f32")
    with pytest.raises(error.ArgumentTypeError, match=r"^get: got 'weight' for the shape; takes \(shape, name\)$"):
        vb.get("weight", (3, 4))  # type: ignore[arg-type]
    with pytest.raises(
        error.ArgumentTypeError, match=r"^get: got 4 for the name; takes \(shape, name\), the name a str$"
    ):
        vb.get(3, 4)  # type: ignore[arg-type]
    with pytest.raises(error.ArgumentTypeError, match="for the name"):
        vb.contains_tensor(3)  # type: ignore[arg-type]
