"""``docs/rewrites.md``: every rewrite rule with what it makes of its examples.

    python docs/rewrites.py           writes the page
    python docs/rewrites.py --check   fails if the page is stale

The examples are those of the rules themselves, which the tests run too.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from metal_candle import LazyTensor
from metal_candle.graph.rewrite import Example, Log, Pass
from metal_candle.graph.rewrites import PASSES
from metal_candle.graph.structure import survey
from metal_candle.graph.term import TermGraph, terms_of, written

import numpy as np

PAGE = Path(__file__).with_name("rewrites.md")

HEAD = """# How graphs are rewritten

Written by `python docs/rewrites.py` from the rules' own examples: do not edit.

Before a lazy graph is computed it goes through these passes, in this order. Each is a table of rules, *pattern* becomes
*replacement*, in `metal_candle/graph/rewrites/`; what recognises a large piece comes before what would take it apart.
The rewritten plan is kept by the structure of the graph, so a loop pays for rewriting once.

A value that somebody still holds, or that another operation needs, is never computed twice: a rule whose inside is
needed elsewhere declines. `lazy.explain()` says which rules were applied and which were not, and why.

`metal_candle.features.disabled("rewrite")` switches all of it off for a block, `disabled("rewrite.<name>")` one pass or
one rule, `METAL_CANDLE_DISABLE=rewrite.lora` does so from outside: to find the rule behind a numerical difference.
"""


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *(_section(each) for each in PASSES)])


def _section(each: Pass) -> str:
    module = sys.modules[f"metal_candle.graph.rewrites.{each.name}"]
    lines = [f"## {each.name}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    if each.rules:
        lines += [f"Rules: {', '.join(f'`{rule.name}`' for rule in each.rules)}.", ""]
    lines += ["| recorded | computed |", "| --- | --- |"]
    lines += [f"| `{before}` | {after} |" for before, after in dict.fromkeys(_row(each, e) for e in each.examples)]
    return "\n".join([*lines, ""])


def _row(each: Pass, example: Example) -> tuple[str, str]:
    integers = dict(example.ids)
    tensors = [
        LazyTensor.new(np.zeros(shape, np.uint32 if i in integers else np.float32)).to_dtype(
            "u32" if i in integers else example.dtypes[0]
        )
        for i, shape in enumerate(example.shapes)
    ]
    for tensor in tensors:
        tensor.eval()
    y = example.before(*tensors)
    structure = survey([y._node])
    graph = terms_of(structure)
    names = dict(zip((tensor._node for tensor in tensors), inspect.signature(example.before).parameters))
    leaves = {leaf: names.get(structure.nodes[leaf.place or 0], "constant") for leaf in graph.leaves}
    before = written(graph.roots[0], leaves)
    unchanged = f": {example.because}" if example.because else ""
    if before != example.after:
        return before, f"`{example.after}`{unchanged}"
    was, now = _size(graph), _size(each.run(graph, Log()))
    return before, f"as recorded{unchanged}" if was == now else f"the same in {now} operations instead of {was}"


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
