"""Switches: what they are called, where a wrong name is noticed, blocks and decorated functions, and what is logged."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import metal_candle as mc
from metal_candle import LazyTensor, Tensor, features, settings
from metal_candle.graph.rewrites import PASSES
from metal_candle.training import LoRALayer

import numpy as np
import pytest


def low_rank() -> LazyTensor:
    rng = np.random.default_rng(0)
    x, a, b, base = (
        LazyTensor.new(rng.standard_normal(shape).astype(np.float32)) for shape in ((5, 16), (16, 4), (4, 16), (5, 16))
    )
    return base + x.matmul(a).matmul(b) * 0.5


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("rewrit", "the nearest is rewrite; there are graph, custom-metal, rewrite, and rewrite.<name>"),
        ("grahp", "the nearest is graph; "),
        ("rewrite.lorra", "rewrite.lora"),
        ("rewrite.lora;graph", "rewrite.lora"),
        ("rewrite.lora.softmax", "rewrite.softmax.softmax"),
        ("everything", "there are graph, custom-metal, rewrite"),
    ],
)
def test_a_wrong_name_in_the_variable_is_an_error_of_one_line(word: str, near: str) -> None:
    y = low_rank()
    for use in (
        lambda: y.eval(),
        lambda: y.explain(),
        lambda: LazyTensor.new([1.0]),
        lambda: Tensor.ones((2, 3)).softmax(-1),
    ):
        with settings.DISABLE.override(f"custom-metal, {word}"), pytest.raises(mc.ArgumentValueError) as caught:
            use()
        assert str(caught.value).startswith(f"METAL_CANDLE_DISABLE: no feature {word!r}; ")
        assert near in str(caught.value)
        assert "\n" not in str(caught.value)
    assert y.eval().dims() == [5, 16], "nothing stays wrong"


@pytest.mark.parametrize(("word", "near"), [("grahp", "the nearest is graph; "), ("all", "")])
def test_a_wrong_topic_in_the_variable_is_an_error_of_one_line(word: str, near: str) -> None:
    text = f"METAL_CANDLE_DEBUG: no topic {word!r}; {near}there are graph, rewrite, kernel, compile"
    y = low_rank()
    for use in (lambda: y.eval(), lambda: Tensor.ones((2, 3)).softmax(-1)):
        with settings.DEBUG.override(word), pytest.raises(mc.ArgumentValueError) as caught:
            use()
        assert str(caught.value) == text


def test_the_reference_kernels_do_not_hide_a_wrong_name() -> None:
    x, wrong = Tensor.ones((2, 3)), "METAL_CANDLE_DISABLE: no feature 'rewrit'"
    with settings.KERNELS.override("reference"), settings.DISABLE.override("rewrit"):
        with pytest.raises(mc.ArgumentValueError, match=wrong) as caught:
            x.softmax(-1)
        assert "nearest is rewrite" in str(caught.value)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **variables}, timeout=120
    )


def test_no_rule_is_imported_to_read_the_variable() -> None:
    code = (
        "import sys, metal_candle as mc; mc.Tensor.ones((2, 3)).softmax(-1)\n"
        "assert not mc.features.enabled('custom-metal')\n"
        "assert 'metal_candle.graph.rewrites' not in sys.modules"
    )
    assert run(code, METAL_CANDLE_DISABLE="custom-metal").stderr == ""


def test_the_command_line_says_a_wrong_name_in_one_line() -> None:
    pytest.importorskip("typer")
    code = "from metal_candle.cli import main; import sys; sys.argv = ['metal-candle', 'doctor']; main()"
    done = run(code, METAL_CANDLE_DISABLE="rewrite.lorra")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: METAL_CANDLE_DISABLE: no feature 'rewrite.lorra'; the nearest ")


def test_passes_and_rules_have_names_of_their_own() -> None:
    names = features.names()
    assert names[:3] == ("graph", "custom-metal", "rewrite")
    assert len(set(names)) == len(names)
    assert {f"rewrite.{each.name}" for each in PASSES} == {name for name in names if name.count(".") == 1}
    rules = {f"rewrite.{each.name}.{rule.name}" for each in PASSES for rule in each.rules}
    assert rules == {name for name in names if name.count(".") == 2}
    assert "rewrite.lora.lora" in rules


@pytest.mark.parametrize("name", [name for name in features.names() if name != "rewrite"])
def test_every_name_switches_off_itself(name: str) -> None:
    others = {other for other in features.names() if not f"{other}.".startswith(f"{name}.")}
    assert features.enabled(name)
    with features.disabled(name):
        assert not features.enabled(name)
        assert all(features.enabled(other) for other in others)
    assert features.enabled(name)


def test_all_of_rewriting_switches_off_its_parts() -> None:
    with features.disabled("rewrite"):
        assert not any(features.enabled(name) for name in features.names() if name.startswith("rewrite"))
    with features.disabled("rewrite.add_lora"):
        assert features.enabled("rewrite.lora")
        assert not features.enabled("rewrite.lora.add_lora")


def test_a_single_rule_rests_and_the_others_of_its_pass_go_on() -> None:
    assert " lora at " in low_rank().explain().replace("\n", " ")
    for off in ("rewrite.lora.add_lora", "rewrite.add_lora"):
        with features.disabled(off):
            text = low_rank().explain()
            assert "= add_lora(" not in text
            assert "= lora(" in text
    with features.disabled("rewrite.lora.lora"):
        assert "= lora(" not in low_rank().explain()


def test_disabled_around_functions() -> None:
    @features.disabled("custom-metal")
    def plain(depth: int) -> list[bool]:
        inner = plain(depth - 1) if depth else []
        return [*inner, features.enabled("custom-metal")]

    @features.disabled("custom-metal")
    async def later() -> bool:
        await asyncio.sleep(0)
        return features.enabled("custom-metal")

    async def both() -> list[bool]:
        outside = asyncio.create_task(asyncio.sleep(0, features.enabled("custom-metal")))
        return [*await asyncio.gather(later(), later()), await outside, features.enabled("custom-metal")]

    assert plain(2) == [False] * 3
    assert plain.__name__ == "plain"
    assert asyncio.run(both()) == [False, False, True, True]
    assert features.enabled("custom-metal")


def test_one_block_is_entered_often_and_by_several_threads() -> None:
    off = features.disabled("custom-metal")
    entered, leave = threading.Barrier(2), threading.Barrier(2)
    seen = []

    def work() -> None:
        with off:
            entered.wait(60)
            seen.append(features.enabled("custom-metal"))
            leave.wait(60)
        seen.append(features.enabled("custom-metal"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [False, False, True, True]
    with off, features.disabled("graph"), off:
        assert not features.enabled("graph")
    with pytest.raises(KeyError), off:
        raise KeyError("a block ends by an error too")
    assert features.enabled("custom-metal")
    assert features.enabled("graph")


def test_disabled_takes_names_and_functions_only() -> None:
    def function() -> None:
        pass

    def steps() -> Iterator[int]:
        yield 1

    async def later_steps() -> AsyncIterator[int]:
        yield 1

    wrong: Any = function
    with pytest.raises(mc.ArgumentTypeError, match=r"^features: got a function for a name; takes names: disabled\("):
        features.disabled(wrong)
    with pytest.raises(
        mc.ArgumentValueError, match=r"^features: no feature 'rewrite.lorra'; the nearest are rewrite\.l"
    ):
        features.disabled("graph", "rewrite.lorra")
    for generator in (steps, later_steps):
        with pytest.raises(
            mc.ArgumentTypeError, match=r"^features.disabled: got the generator function .*steps; use a w"
        ):
            features.disabled("graph")(generator)
    wrong = Tensor
    with pytest.raises(mc.ArgumentTypeError, match=r"^features.disabled: got the class Tensor; takes a function$"):
        features.disabled("graph")(wrong)


def test_a_setting_around_an_async_function() -> None:
    @settings.KERNELS.override("reference")
    async def later() -> str:
        await asyncio.sleep(0)
        return settings.KERNELS.value

    assert asyncio.run(later()) == "reference"
    assert settings.KERNELS.value != "reference"


@pytest.mark.parametrize(
    ("configured", "lines"),
    [
        ("", ["planned 1 nodes"]),
        ("logging.basicConfig(format='mine %(message)s')", ["mine planned"]),
        ("logging.getLogger('metal_candle.graph').addHandler(logging.StreamHandler(sys.stdout))", []),
    ],
)
def test_a_line_is_printed_once(configured: str, lines: list[str]) -> None:
    code = f"import logging, sys, metal_candle as mc\n{configured}\nmc.LazyTensor.new([1.0]).exp().eval()"
    done = run(code, METAL_CANDLE_DEBUG="graph")
    found = done.stderr.splitlines()
    assert [line[: len(start)] for line, start in zip(found, lines)] == [
        line.replace("1 nodes", "2 nodes") for line in lines
    ]
    assert len(found) == len(lines)
    assert done.stdout.count("planned") == (not lines)


def test_a_method_of_a_feature_is_not_found_while_it_is_off() -> None:
    layer = LoRALayer(8, 8)
    assert hasattr(layer, "forward_lazy")
    with features.disabled("graph"):
        assert not hasattr(layer, "forward_lazy")
        with pytest.raises(mc.MethodNotFoundError) as told:
            layer.forward_lazy(Tensor.ones((1, 8)))  # type: ignore[arg-type]
        assert layer.forward(Tensor.ones((1, 8))).shape == (1, 8)
    assert str(told.value) == (
        "no method named `forward_lazy` found for LoRALayer: feature `graph` not enabled; remove it from "
        'METAL_CANDLE_DISABLE or leave features.disabled("graph"); `forward` works without'
    )
    assert LoRALayer.forward_lazy.__doc__ is not None
