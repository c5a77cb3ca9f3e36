"""``docs/rewrites.md``: every rewrite rule with what it makes of its examples.

    python docs/rewrites.py           writes the page
    python docs/rewrites.py --check   fails if the page is stale

The examples are those of the rules themselves, which the tests run too.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from metal_candle import DType, LazyTensor
from metal_candle.graph.rewrite import Example, Log, Pass
from metal_candle.graph.rewrites import PASSES, common_subexpression
from metal_candle.graph.structure import survey
from metal_candle.graph.term import Term, TermGraph, below, called, terms_of, written
from metal_candle.kernels import custom

import numpy as np


class Gpu:
    """What a rule finds where kernels of ours are launched. It launches none."""

    name = "gpu"
    trusted = True

    def launch(self, program: custom.Program, inputs: Sequence[Any], how: custom.Launch) -> list[Any]:
        """Raises ``RuntimeError``: examples are rewritten here, not computed."""
        raise RuntimeError(f"{program.name}: no GPU is here")


WIDTH = 64
"""Longer expressions are taken apart."""
PAGE = Path(__file__).with_name("rewrites.md")

HEAD = """# How graphs are rewritten

Written by `python docs/rewrites.py` from the rules' own examples: do not edit.

Before a lazy graph is computed it goes through these passes, in this order. Each is a table of rules, *pattern* becomes
*replacement*, in `metal_candle/graph/rewrites/`; what recognises a large piece comes before what would take it apart.
The rewritten plan is kept by the structure of the graph, so a loop pays for rewriting once.

A value that somebody still holds, or that another operation needs, is never computed twice: a rule whose inside is
needed elsewhere declines. `lazy.explain()` says which rules were applied and which were not, and why.

`metal_candle.features.disabled("rewrite")` switches all of it off for a block, `disabled("rewrite.lora")` one pass,
`disabled("rewrite.lora.add_lora")` one rule of it, `METAL_CANDLE_DISABLE=rewrite.lora` does so from outside: to find
the rule behind a numerical difference. `features.names()` lists them all.

An example is the shapes of its inputs, float32 where no dtype is named, what is recorded of them, and behind `->` what
is computed. `t1`, `t2` stand for what is used twice, or too long for a line.
"""


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *(_section(each) for each in PASSES)])


def _section(each: Pass) -> str:
    module = sys.modules[f"metal_candle.graph.rewrites.{each.name}"]
    lines = [f"## {each.name}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    if each.rules:
        lines += [f"Rules: {', '.join(f'`{rule.name}`' for rule in each.rules)}.", ""]
    shown = dict.fromkeys(_shown(each, example) for example in each.examples)
    for head, changed in (("Rewritten:", True), ("Left as recorded:", False)):
        texts = [text for was_changed, text in shown if was_changed is changed]
        if texts:
            lines += [head, "", "```text", "\n\n".join(texts), "```", ""]
    return "\n".join(lines)


def _shown(each: Pass, example: Example) -> tuple[bool, str]:
    """Whether an example is rewritten, and its inputs, what is recorded of them, and what is computed or why not."""
    integers = dict(example.ids)
    tensors = [
        LazyTensor.new(np.zeros(shape, np.uint32 if i in integers else np.float32)).to_dtype(
            "u32" if i in integers else example.dtypes[0]
        )
        for i, shape in enumerate(example.shapes)
    ]
    for tensor in tensors:
        tensor.eval()
    names = list(inspect.signature(example.before).parameters)
    inputs = ", ".join(f"{name} {_described(tensor)}" for name, tensor in zip(names, tensors))
    if example.launched:
        inputs += ", on a GPU"
    y = example.before(*tensors)
    structure = survey([y._node])
    graph = terms_of(structure)
    of_node = dict(zip((tensor._node for tensor in tensors), names))
    leaves = {leaf: of_node.get(structure.nodes[leaf.place or 0], "constant") for leaf in graph.leaves}
    if each is not common_subexpression.PASS:  # the others find equal parts computed once
        graph = common_subexpression.PASS.run(graph, Log())
    recorded, was = written(graph.roots[0], leaves), _size(graph)
    lines = [inputs, *(f"    {line}" for line in _lines(graph.roots[0], leaves))]
    with custom.using(Gpu()) if example.launched else nullcontext():
        after = each.run(graph, Log())
    if written(after.roots[0], leaves) != example.after:
        raise SystemExit(f"{each.name}: {recorded} does not become {example.after}")
    changed = recorded != example.after or was != _size(after)
    if changed:
        lines += [f"{'->' if i == 0 else '  '}  {line}" for i, line in enumerate(_lines(after.roots[0], leaves))]
    elif example.because:
        lines.append(f"because: {example.because}")
    return changed, "\n".join(lines)


def _described(tensor: LazyTensor) -> str:
    dtype = "" if tensor.dtype == DType.F32 else f" {tensor.dtype}"
    return f"{tuple(tensor.shape)}{dtype}"


def _lines(root: Term, leaves: dict[Term, str]) -> list[str]:
    """A term as an expression; what is used twice, and what would make a line long, is named in a line before."""
    order = below([root])
    uses = Counter(source for term in order for source in dict.fromkeys(term.inputs))
    repeated = {source for term in order for source in term.inputs if term.inputs.count(source) > 1}
    texts, lines = dict(leaves), []
    for term in order:
        if term.operation is None:
            continue
        texts[term] = called(term.operation, [texts[source] for source in term.inputs])
        if term is not root and (uses[term] > 1 or term in repeated or len(texts[term]) > WIDTH):
            lines.append(f"t{len(lines) + 1} = {texts[term]}")
            texts[term] = f"t{len(lines)}"
    return [*lines, texts[root]]


def _size(graph: TermGraph) -> int:
    return sum(term.operation is not None for term in graph.order)


def main() -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is stale")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text("utf-8") != text:
            print("docs/rewrites.md is stale; python docs/rewrites.py writes it", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
