"""``benchmarks/kernels.py``: bytes by hand, sides that agree, rows, verdicts on made-up numbers. No time is judged."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from metal_candle.kernels import custom
from metal_candle.kernels.kernel import Kernel
from metal_candle.kernels.variant import differentiated_by_mlx

import emulator
import mlx.core as mx
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import kernel_bytes  # noqa: E402
import kernel_run  # noqa: E402
import kernel_tables  # noqa: E402
from kernel_case import NAMES, Case, chain, choice, input_sets, timed  # noqa: E402
from kernel_cases import SUBJECTS, ordered  # noqa: E402
from kernel_grid import Grid  # noqa: E402
from kernel_rows import last_run  # noqa: E402
from kernel_run import run  # noqa: E402
from kernel_verdict import AIMS, Outcome, advice, faster_missed, judged, mean, slower_chosen, suggested  # noqa: E402
from measure import COLUMNS, Times, append  # noqa: E402

LORA = (3, 8, 4, 2)  # tokens, width, out, rank


@pytest.mark.parametrize(
    ("counted", "by_hand"),
    [
        # x 3·8, A 8·2, B 2·4, result 3·4: 60 halves; the base is 12 more.
        (kernel_bytes.lora(*LORA, 2), 120),
        (kernel_bytes.add_lora(*LORA, 2), 144),
        # cotangent 12, x and its gradient 48, factors and theirs 48.
        (kernel_bytes.lora_gradient(*LORA, 2), 216),
        # x 24, factors of rank 2 and 5: 12·7 = 84, base and result 24: 132 floats, and 3 adapters' numbers.
        (kernel_bytes.grouped_lora(3, 8, 4, [2, 5], 4), 132 * 4 + 12),
        (kernel_bytes.softmax(5, 7, 4), 280),
        (kernel_bytes.masked_softmax(8, 7, 2, 4), 2 * 224 + 56),
        # Of 2 queries and 3 keys the first sees 2, the last 3: 5 read and 6 written by each of 4 heads.
        (kernel_bytes.causal_softmax(4, 2, 3, 2), 88),
        (kernel_bytes.row_gradient(5, 7, 2), 210),
        (kernel_bytes.norm(5, 7, 1, 4), 280 + 28),
        (kernel_bytes.norm(5, 7, 2, 4), 280 + 56),
        (kernel_bytes.add_norm(5, 7, 1, 4), 560 + 28),
        (kernel_bytes.add_norm_gradient(5, 7, 4), 560),
        # 2 heads of 3 tokens of 4 in and out: 48; 3·2 cosines and as many sines.
        (kernel_bytes.rope(2, 3, 4, 2), 120),
        (kernel_bytes.rope_gradient(2, 3, 4, 2), 120),
        (kernel_bytes.swiglu(5, 7, 2), 210),
        (kernel_bytes.swiglu_gradient(5, 7, 2), 350),
        # 5 rows with a target and a loss of 4 bytes each.
        (kernel_bytes.cross_entropy(5, 7, 2), 70 + 40),
        (kernel_bytes.cross_entropy_gradient(5, 7, 2), 140 + 60),
        # hidden 5·3, head 7·3.
        (kernel_bytes.head_cross_entropy(5, 3, 7, 2), 72 + 40),
        # Those, and the gradient of 5·3.
        (kernel_bytes.head_cross_entropy_gradient(5, 3, 7, 2), 102 + 40),
    ],
)
def test_bytes_by_hand(counted: int, by_hand: int) -> None:
    assert counted == by_hand


def smallest(gradient: bool) -> list[Case]:
    """The smallest case of each group for a CPU."""
    found: dict[str, Case] = {}
    for case in ordered(Grid(False, [mx.float32], tokens=4)):
        if bool(case.wrt) == gradient and (case.group not in found or case.floor < found[case.group].floor):
            found[case.group] = case
    return list(found.values())


CASES = [*smallest(gradient=False), *smallest(gradient=True)]
NAMED = [f"{case.group}{' and gradient' if case.wrt else ''}" for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=NAMED)
def test_sides_agree_and_rows_are_complete(case: Case) -> None:
    found = run(case, 1e9, False, 1, 0.0)
    outcome, rows = found.outcome, found.rows
    assert found.wrong == {}
    assert outcome is not None
    assert outcome.seconds > 0
    assert outcome.speedup > 0
    assert not outcome.launched
    assert outcome.label == case.label
    assert {row["side"] for row in rows} == {"ours", *case.rivals}
    for row in rows:
        assert list(row) == COLUMNS
        assert row["benchmark"] == f"kernels.{case.group}"
        assert row["bytes"] == str(case.floor)
        assert float(str(row["copy_share"])) >= 0
        assert float(str(row["p20_us"])) <= float(str(row["median_us"])) <= float(str(row["p80_us"]))
        assert bool(row["choice"]) == (row["side"] == "ours")
        assert row["side"] != outcome.mlx or row["ratio"] == "1.0000"


def one(subject: str, dtype: mx.Dtype = mx.float32, gradient: bool = False, place: int = 0) -> Case:
    """The smallest case of a subject's kernel, ``place`` among them."""
    cases = [case for case in SUBJECTS[subject](Grid(False, [dtype], tokens=4)) if bool(case.wrt) == gradient]
    groups = list(dict.fromkeys(case.group for case in cases))
    return min((case for case in cases if case.group == groups[place]), key=lambda case: case.floor)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("subject", ["lora", "softmax", "norms", "rope", "swiglu", "cross_entropy"])
def test_halves_agree(subject: str, dtype: mx.Dtype) -> None:
    assert run(one(subject, dtype), 1e9, False, 1, 0.0).wrong == {}


def test_floors_are_what_the_arrays_hold() -> None:
    for case in ordered(Grid(False, [mx.float16], tokens=4)):
        # A causal mask is not read, nor what it hides; of grouped factors only those in use, and those not twice.
        if case.group in ("causal_softmax", "grouped_lora") or case.wrt:
            continue
        inputs = case.make()
        results = case.kernel.reference(*case.arguments(*inputs))
        assert case.floor == held(inputs) + held(results), case.group


def held(results: Any) -> int:
    return sum(each.nbytes for each in (results if isinstance(results, tuple) else (results,)))


def test_the_grid_for_a_gpu_is_the_whole_one() -> None:
    cases = ordered(Grid(True, list(NAMES)))
    labels = [(case.group, case.label) for case in cases]
    assert len(set(labels)) == len(labels)
    assert [case.level for case in cases] == sorted(case.level for case in cases)

    def sizes(group: str, axis: str) -> set[int]:
        return {case.axes[axis] for case in cases if case.group == group and not case.wrt}

    for group in ("lora", "add_lora"):
        assert sizes(group, "width") == {576, 1024, 2048, 4096}
        assert sizes(group, "rank") == {4, 8, 16, 32, 64}
        assert sizes(group, "tokens") == {1, 2, 4, 8, 16, 32, 64}
    for group in ("softmax", "masked_softmax", "causal_softmax", "log_softmax", "rms_norm", "add_rms_norm"):
        assert {min(sizes(group, "rows")), max(sizes(group, "rows"))} == {1, 4096}
        assert {min(sizes(group, "width")), max(sizes(group, "width"))} == {64, 49152}
    assert {case.dtype for case in cases} == set(NAMES)
    # What the aims are about comes among the first.
    first = {case.group for case in cases[:40]}
    assert {"add_lora", "add_rms_norm", "masked_softmax", "causal_softmax"} <= first


def test_what_differs_is_named_and_not_timed() -> None:
    good = one("swiglu")

    def half(gate: mx.array, up: mx.array) -> mx.array:
        return gate * mx.sigmoid(gate) * up * 0.5

    def nothing(gate: mx.array, up: mx.array) -> mx.array:
        return up * mx.nan

    def fewer(gate: mx.array, up: mx.array) -> mx.array:
        return up[:, :1]

    def refused(gate: mx.array, up: mx.array) -> mx.array:
        raise ValueError("not on this device")

    bad = {"half": half, "nothing": nothing, "fewer": fewer, "refused": refused}
    case = replace(good, rivals={**good.rivals, **bad})
    found = run(case, 1e9, False, 1, 0.0)
    assert found.outcome is not None
    assert {row["side"] for row in found.rows} == {"ours", *good.rivals}
    assert set(found.wrong) == set(bad)
    assert found.wrong["half"].startswith("is off by ")
    assert found.wrong["nothing"].startswith("is off by nan of ")
    assert found.wrong["fewer"].startswith("gives (1, 1) where the definition gives (1, ")
    assert found.wrong["refused"] == "fails: not on this device"


def test_a_kernel_that_is_wrong_has_no_outcome() -> None:
    case = one("swiglu")

    def twice(gate: mx.array, up: mx.array) -> mx.array:
        return case.kernel.reference(gate, up) * 2

    wrong = Kernel("wrong", case.kernel.reference, lambda *given: (differentiated_by_mlx("twice", twice), ""), arity=2)
    found = run(replace(case, kernel=wrong), 1e9, False, 1, 0.0)
    assert found.outcome is None
    assert found.rows == []
    assert set(found.wrong) == {"ours"}


def test_a_chain_takes_what_the_call_before_gives() -> None:
    case = replace(one("norms"), links={0: 0}, make=lambda: (mx.zeros((2,)), mx.ones((2,))))
    seen: list[list[float]] = []

    def add(x: mx.array, weight: mx.array) -> list[mx.array]:
        seen.append([float(x[0]), float(weight[0])])
        return [x + weight]

    sets = input_sets(case, 3, ())
    assert len(sets) == 3
    assert sets[0][1] is not sets[1][1]
    chain(case, add, sets)()
    assert seen == [[0, 1], [1, 1], [2, 1]]
    seen.clear()
    chain(replace(case, links={}), add, sets)()
    assert seen == [[0, 1], [0, 1], [0, 1]]


def test_compiled_sides_agree() -> None:
    # One case: on a CPU MLX calls the C++ compiler.
    case = one("norms")
    sides = timed(case, choice(case, case.make()), True)
    assert set(sides) == {name + more for name in ("ours", *case.rivals) for more in ("", ", compiled")}
    assert kernel_run.differing(case, sides, case.make()) == {}


@pytest.mark.parametrize("gradient", [False, True], ids=["result", "gradient"])
def test_a_launch_is_measured_where_there_is_one(gradient: bool) -> None:
    present, reason = emulator.available()
    if not present:
        pytest.skip(reason)
    case = one("norms", place=1, gradient=gradient)
    assert case.group == "add_rms_norm"
    with custom.using(emulator.Emulator()):
        found = run(case, 1e9, False, 1, 0.0)
    outcome = found.outcome
    assert found.wrong == {}
    assert outcome is not None
    assert outcome.launched
    (text,) = [row["choice"] for row in found.rows if row["side"] == "ours"]
    assert f"rule chooses: {'yes' if outcome.rule else 'no'}" in str(text)
    assert f"| {'yes' if outcome.rule else 'no'} |" in kernel_tables.line(outcome)


def outcome(speedup: float, rule: bool = True, group: str = "add_lora", **more: Any) -> Outcome:
    known = {
        "axes": {"tokens": 1, "width": 64, "rank": 8},
        "dtype": "float16",
        "gradient": False,
        "floor": 2**28,
        "seconds": 1e-5,
        "share": 0.5,
        "launched": True,
    }
    return Outcome(group=group, speedup=speedup, low=speedup * 0.9, high=speedup * 1.1, rule=rule, **{**known, **more})


def test_aims() -> None:
    lora, norm, softmax, copy = AIMS
    measured = [
        outcome(1.6),
        outcome(1.5, group="lora"),
        outcome(1.0, axes={"tokens": 8, "width": 64, "rank": 8}),  # not for one token
        outcome(1.0, gradient=True),
        outcome(1.3, group="add_rms_norm", axes={"rows": 1, "width": 64}, share=0.79),
        outcome(1.2, group="add_rms_norm", axes={"rows": 4, "width": 64}, share=0.9),
        outcome(1.4, group="masked_softmax", share=0.2, floor=2**20),  # too small for the copy's aim
    ]
    found = judged(lora, measured)
    assert (found.cases, found.met, found.text, found.least) == (2, 2, "met", 1.5)
    assert found.mean == pytest.approx((1.6 * 1.5) ** 0.5)
    found = judged(norm, measured)
    assert found.text == "met in 1 of 2"
    assert found.where == "add_rms_norm, rows 4, width 64, float16"
    assert judged(softmax, measured).text == "missed"
    assert judged(copy, measured).text == "met in 1 of 2"
    assert judged(softmax, []).text == "not measured"


def test_rules_that_choose_the_slower_side() -> None:
    measured = [
        slow := outcome(0.8),
        outcome(0.95),  # slower by less than the spread
        outcome(2.0),
        missed := outcome(1.3, rule=False),
        outcome(1.05, rule=False),
        outcome(0.7, rule=False),
        outcome(0.5, launched=False),
    ]
    assert slower_chosen(measured) == [slow]
    assert faster_missed(measured) == [missed]
    text = kernel_tables.verdict(measured)
    assert "The rule chooses ours and MLX is faster: 1\n- add_lora, tokens 1, width 64, rank 8, float16: 0.80" in text
    assert "The rule does not choose ours, which is faster: 1\n" in text


def test_without_launches_no_aim_is_judged() -> None:
    measured = [outcome(0.5, launched=False, variant="reference"), outcome(2.0, launched=False, variant="rational")]
    assert kernel_tables.verdict(measured) == "no launches here: aims not judged"
    assert "met in 1 of 3" in kernel_tables.verdict([*measured, outcome(0.5)])
    text = "\n".join([kernel_tables.titles(), *map(kernel_tables.line, measured)])
    assert "| reference | no launch |" in text
    assert "ours" not in text.split("\n\n")[1]
    explained = text.split("\n\n")[0]
    assert "variant: " in explained
    assert "rule: " in explained
    assert "\n" not in explained


def grid(speedup: Callable[[int, int], float], rule: bool = True) -> list[Outcome]:
    return [
        outcome(speedup(tokens, rank), rule=rule, axes={"tokens": tokens, "rank": rank})
        for tokens in (1, 2, 4, 8)
        for rank in (4, 8, 16)
    ]


@pytest.mark.parametrize(
    ("speedup", "rule"),
    [
        (lambda tokens, rank: 1.5, "always"),
        (lambda tokens, rank: 0.9, "never"),
        (lambda tokens, rank: 2.0 if tokens <= 2 else 0.5, "tokens <= 2"),
        (lambda tokens, rank: 2.0 if rank >= 8 else 0.5, "rank >= 8"),
        (lambda tokens, rank: 2.0 if tokens * rank <= 16 else 0.5, "tokens · rank <= 16"),
        # One case of twelve that a rule loses two thousandths by is not worth a bound.
        (lambda tokens, rank: 0.975 if (tokens, rank) == (8, 16) else 1.5, "always"),
    ],
)
def test_suggested_rules(speedup: Callable[[int, int], float], rule: str) -> None:
    found = suggested(grid(speedup))
    assert found.text == rule
    assert found.loss < 1.003


def test_advice_tells_what_the_rule_of_today_loses() -> None:
    measured = [*grid(lambda tokens, rank: 2.0 if tokens == 1 else 0.5), outcome(3.0, launched=False, dtype="float32")]
    (found,) = advice(measured)
    # It is wrong, by a factor of two, in nine of twelve.
    assert found.now == pytest.approx(2 ** (9 / 12))
    assert (found.group, found.dtype, found.cases, found.better.text) == ("add_lora", "float16", 12, "tokens <= 1")
    assert found.better.loss == 1


def test_geometric_mean() -> None:
    assert mean([1, 4]) == pytest.approx(2)


def test_quickest_side() -> None:
    times = {"ours": Times([3.0]), "ours, compiled": Times([2.0]), "chosen": Times([0.5]), "addmm": Times([1.0])}
    assert kernel_run.quickest(times, ours=True) == "ours, compiled"
    # What the rule chooses instead is neither ours nor a rival.
    assert kernel_run.quickest(times, ours=False) == "addmm"


def test_outcomes_from_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    chosen = [one("norms"), one("norms", gradient=True), one("softmax")]
    copy = kernel_run.copied(1)
    # With eleven rounds the median and the percentiles are rounds, not between two, of a ratio and its inverse alike.
    found = [run(case, copy.rate, False, 11, 0.0) for case in chosen]
    append(path, [*copy.rows, *found[2].rows])
    append(path, copy.rows)
    for each in found[:2]:
        append(path, each.rows)
    outcomes, title = last_run(path)
    assert str(copy.rows[0]["device"]) in title
    assert len(outcomes) == 2
    for got, each in zip(outcomes, found):
        want = each.outcome
        assert want is not None
        numbers = ("seconds", "mlx_seconds", "speedup", "low", "high")
        # As precise as what is written: hundredths of a microsecond, four digits of a ratio.
        for name in numbers:
            assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-2), name
        assert got.share == pytest.approx(want.share, abs=1e-4)
        assert replace(got, **dict.fromkeys((*numbers, "share"), 0.0)) == replace(
            want, **dict.fromkeys((*numbers, "share"), 0.0)
        )
    with pytest.raises(SystemExit, match=r"no run of kernels\.py on H200"):
        last_run(path, on="H200")


def test_names_of_cases() -> None:
    grid = Grid(False, [mx.float32], tokens=4)
    assert {case.group for case in ordered(grid, ["norms"])} == {
        "rms_norm",
        "add_rms_norm",
        "layer_norm",
        "add_layer_norm",
    }
    assert {case.group for case in ordered(grid, ["log_softmax", "rope"])} == {"log_softmax", "rope"}
    with pytest.raises(ValueError, match="no cases named softmaxes; there are lora, "):
        ordered(grid, ["softmaxes"])


def test_whole_run(tmp_path: Path) -> None:
    rows_file, chart = tmp_path / "results.csv", tmp_path / "kernels.png"
    options = ["--only", "norms", "swiglu", "--level", "0", "--rounds", "2", "--commit", "0123abc"]
    command = [sys.executable, BENCHMARKS / "kernels.py", *options, "--csv", rows_file, "--plot", chart]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "GB/s, read and written" in result.stdout
    assert "### Verdict" in result.stdout
    with rows_file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS
    assert rows[0]["benchmark"] == "kernels.copy"
    assert {row["benchmark"] for row in rows[1:]} >= {"kernels.add_rms_norm"}
    assert {row["commit"] for row in rows} == {"0123abc"}
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_rows_in_the_repository_have_these_columns() -> None:
    with (BENCHMARKS / "results.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == COLUMNS
    assert {len(row) for row in rows} == {len(COLUMNS)}
