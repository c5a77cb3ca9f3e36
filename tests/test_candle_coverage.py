"""``docs/candle_coverage.md`` leaves nothing of candle out: every name is here, or has a reason not to be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metal_candle import DType, Error, LazyTensor, Tensor, Var
from metal_candle.graph.operations.comparison import CmpOp

import mlx.core as mx
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("candle_coverage", DOCS / "candle_coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


coverage = _load()
KINDS, SECTIONS = coverage.read()


def test_every_name_is_where_the_list_says() -> None:
    assert coverage.missing(SECTIONS) == []


def test_every_name_of_the_crate_is_where_the_list_says() -> None:
    assert coverage.missing(coverage.read(*coverage.CRATE_NAMES)[1]) == []


def test_the_page_is_up_to_date() -> None:
    assert coverage.main(["--check"]) == 0, "python docs/candle_coverage.py"


def test_constructors_and_values_are_written_as_one_writes_them() -> None:
    for place, text in (
        ("nn.Linear.new", "nn.Linear.new(weight, bias=None)"),
        ("nn.Conv2d.new", "nn.Conv2d.new(weight, bias=None, config=Conv2dConfig())"),
        ("nn.encoding.one_hot", "nn.encoding.one_hot(indices, depth, on_value, off_value, *, dtype=None)"),
        ("nn.Activation.Gelu", "nn.Activation.Gelu"),
        ("nn.Activation.Elu", "nn.Activation.Elu(alpha)"),
        ("shape.DimLike", "shape.DimLike"),
    ):
        assert coverage.written(coverage.Name(place, place)) == text
    assert "(*args, **kwargs)" not in coverage.PAGE.read_text("utf-8")


def test_all_of_candles_tensor_is_listed() -> None:
    counted = [name.name for section in SECTIONS if section.counted for name in section.names]
    # candle 0.11's inherent public methods of Tensor.
    assert len(counted) == len(set(counted)) == 216


@pytest.mark.parametrize("path", [*coverage.NAMES, *coverage.CRATE_NAMES], ids=lambda path: path.stem)
def test_a_name_that_is_listed_twice_in_a_section_is_one_mistake(path: Path) -> None:
    # YAML keeps the last of two equal keys without a word.
    for line, text in enumerate(lines := path.read_text("utf-8").splitlines()):
        if text.startswith("- title"):
            seen: set[str] = set()
        elif text.startswith("    "):
            name = text.strip().split(": ")[0].rstrip(":")
            assert name not in seen, f"line {line + 1}: {name}"
            seen.add(name)
    assert lines


def test_every_kind_of_reason_is_used() -> None:
    assert {name.kind for section in SECTIONS for name in section.names if name.why} == set(KINDS)


LIST = """
kinds: {rust: Rust's own machinery}
sections:
- title: Some
  candle: candle_core::Tensor
  here: Tensor
  tensor: true
  names: {NAMES}
"""


def _listed(tmp_path: Path, names: str) -> Path:
    path = tmp_path / "names.yaml"
    path.write_text(LIST.replace("{NAMES}", names), "utf-8")
    return path


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("{add: , no_such_method: }", "Some: no_such_method is not at Tensor.no_such_method"),
        ("{no_such_method: }", "Some: no_such_method is not at LazyTensor.no_such_method"),
        # What only the eager tensor has is noticed where the entry does not say so, and the other way round.
        ("{zero_set: }", "Some: zero_set is not at LazyTensor.zero_set"),
        ("{add: {eager: yes}}", "Some: add is said to be eager only, but LazyTensor.add exists"),
        ("{read: {at: safetensors.no_such_function}}", "Some: read is not at safetensors.no_such_function"),
        ("{read: {at: no_such_module.load}}", "Some: read is not at no_such_module.load"),
    ],
)
def test_a_name_that_is_not_there_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, told: str
) -> None:
    target = tmp_path / "page.md"
    assert coverage.main([], _listed(tmp_path, names), target) == 1
    assert told in capsys.readouterr().err.splitlines()
    assert not target.exists()


def test_a_stale_page_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, target = _listed(tmp_path, "{add: , gone: {kind: rust, why: It is a macro.}}"), tmp_path / "page.md"
    assert coverage.main(["--check"], names, target) == 1
    assert "stale" in capsys.readouterr().err
    assert coverage.main([], names, target) == 0
    text = target.read_text("utf-8")
    assert "**2 names, 1 of them here**" in text
    assert "| `add` | `Tensor.add(rhs)` | yes |" in text
    assert "| `gone` | – | – | *not here:* It is a macro. |" in text
    assert coverage.main(["--check"], names, target) == 0
    target.write_text(text + "\n", "utf-8")
    assert coverage.main(["--check"], names, target) == 1


@pytest.mark.parametrize("entry", ["{why: No kind.}", "{kind: rust}", "{kind: other, why: It is.}"])
def test_a_reason_has_a_kind_and_a_sentence(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ValueError, match="a `why` goes with a `kind`"):
        coverage.read(_listed(tmp_path, f"{{gone: {entry}}}"))


def test_a_name_has_a_place_or_a_reason_not_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a place and a reason to have none"):
        coverage.read(_listed(tmp_path, "{gone: {kind: rust, why: It is., at: Tensor.add}}"))


class Doubled:
    """A module, and a custom operation with a backward."""

    def name(self) -> str:
        return "doubled"

    def forward(self, x: Any, *others: Any) -> Any:
        return x + x

    def forward_t(self, x: Any, train: bool) -> Any:
        return x + x

    def backward(self, args: Any, res: Any, grad: Any) -> Any:
        return (grad * 2, *[None] * (len(args) - 1))


# How to call what the page says about gradients without an operation's record to tell it. Others are records.
CALLS: dict[str, Callable[[Any], Any]] = {
    "zeros_like": lambda t: t.zeros_like(),
    "ones_like": lambda t: t.ones_like(),
    "empty_like": lambda t: t.empty_like(),
    "rand_like": lambda t: t.rand_like(0.0, 1.0),
    "randn_like": lambda t: t.randn_like(0.0, 1.0),
    "meshgrid": lambda t: type(t).meshgrid([t.get(0), t.get(1)], False)[0],
    "cat": lambda t: type(t).cat([t, t], 0),
    "stack": lambda t: type(t).stack([t, t], 0),
    "to_device": lambda t: t.to_device(t.device),
    "clamp": lambda t: t.clamp(-10.0, 10.0),
    "cmp": lambda t: t.cmp(1.0, CmpOp.Lt).to_dtype(t.dtype),
    "matmul": lambda t: t.matmul(t),
    "dot": lambda t: t.get(0).dot(t.get(1)),
    "mv": lambda t: t.mv(t.get(0)),
    "slice_assign": lambda t: t.slice_assign((slice(0, 1), slice(0, 1)), t.narrow(0, 0, 1).narrow(1, 0, 1)),
    "broadcast_left": lambda t: t.broadcast_left(2),
    "get": lambda t: t.get(0),
    "get_on_dim": lambda t: t.get_on_dim(1, 0),
    "chunk": lambda t: t.chunk(2, 0)[0],
    "detach": lambda t: t.detach(),
    "sort_last_dim": lambda t: t.sort_last_dim(True)[0],
    "apply": lambda t: t.apply(Doubled()),
    "apply_t": lambda t: t.apply_t(Doubled(), True),
    "apply_op1": lambda t: t.apply_op1(Doubled()),
    "apply_op2": lambda t: t.apply_op2(t.detach(), Doubled()),
    "apply_op3": lambda t: t.apply_op3(t.detach(), t.detach(), Doubled()),
    "apply_op1_arc": lambda t: t.apply_op1_arc(Doubled()),
    "apply_op2_arc": lambda t: t.apply_op2_arc(t.detach(), Doubled()),
    "apply_op3_arc": lambda t: t.apply_op3_arc(t.detach(), t.detach(), Doubled()),
    "apply_op1_no_bwd": lambda t: t.apply_op1_no_bwd(Doubled()),
    "apply_op2_no_bwd": lambda t: t.apply_op2_no_bwd(t.detach(), Doubled()),
    "apply_op3_no_bwd": lambda t: t.apply_op3_no_bwd(t.detach(), t.detach(), Doubled()),
    "i": lambda t: t.i(0),
    "__getitem__": lambda t: t[0],
}


def test_the_page_says_of_every_written_method_whether_a_gradient_passes() -> None:
    said = {
        name.at.removeprefix("Tensor.")
        for section in SECTIONS
        if section.tensor
        for name in section.names
        if name.gradient is not None and name.at.startswith("Tensor.")
    }
    assert said == set(CALLS)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("method", CALLS)
def test_a_gradient_passes_where_the_page_says_so(method: str, lazy: bool) -> None:
    at = f"Tensor.{method}"
    names = [name for section in SECTIONS if section.tensor for name in section.names if name.at == at]
    var = Var.new([[1.0, 2.0], [3.0, 4.0]], "cpu")
    result = CALLS[method](LazyTensor.from_tensor(var) if lazy else var)
    found = None
    if result.track_op():
        found = result.sum_all().backward().get(var)
    for name in names:
        assert (found is not None) is coverage.gradient(name), name.name
    if found is not None:
        assert mx.any(found.mlx() != 0).item()


# Differences that the page states and no other test of candle's behaviour asserts.
def test_stated_differences_are_there(tmp_path: Path) -> None:
    assert Tensor.new([1, 2], "cpu").dtype is DType.I64
    assert Tensor.new([1.0], "cpu").dtype is DType.F32
    assert Tensor.empty((2,), DType.F32, "cpu").tolist() == [0.0, 0.0]
    with pytest.raises(Error, match="std"):
        Tensor.randn(0.0, -1.0, (2,), "cpu")
    with pytest.raises(Error, match="arange_step"):
        Tensor.arange_step(1e8, 2e8, 1.0, "cpu", DType.F32)
    ids = Tensor.new([1, 0], "cpu", DType.I32)
    assert Tensor.new([1.0, 2.0], "cpu").index_select(ids, 0).tolist() == [2.0, 1.0]
    assert Tensor.new([[1.0], [2.0]], "cpu").embedding(Tensor.new([[0, 1]], "cpu")).shape == (1, 2, 1)
