"""The examples that the crate has, too, run and print what they say they show; all are listed in the README there.

They run in this process, one after the other, and share SmolLM2.
"""

from __future__ import annotations

import ast
import functools
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metal_candle.models
from metal_candle import Device
from metal_candle.embeddings import EmbeddingModel, EmbeddingModelType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TWINS = (
    *("adapter_swap_demo", "embeddings_demo", "ferris_hybrid_demo", "forward_pass", "generate_text"),
    *("inference_demo", "load_model", "lora_layer_bench", "metal_embeddings_test", "rmsnorm_bench"),
    *("softmax_bench", "streaming_demo", "train_lora"),
)
Run = Callable[..., list[str]]

cached_load = functools.lru_cache(maxsize=1)(metal_candle.models.load_model)


@pytest.fixture(scope="module", autouse=True)
def _drop_the_model() -> Any:
    yield
    cached_load.cache_clear()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs an example with arguments, and gives the lines it prints; it leaves no files behind."""

    def run_example(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.setattr(metal_candle.models, "load_model", cached_load)
        monkeypatch.syspath_prepend(EXAMPLES)  # as where a script is run
        monkeypatch.chdir(tmp_path)
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as error:
            assert error.code == 0, capsys.readouterr().out  # noqa: PT017
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out.splitlines()

    return run_example


def line_with(lines: list[str], start: str) -> str:
    """What follows ``start`` in the one line that begins with it."""
    (found,) = (line.removeprefix(start) for line in lines if line.startswith(start))
    return found


# --- what the files say -------------------------------------------------------------------------


def test_the_readme_names_every_example_once() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\(([\w.]+)\) \| \S", (EXAMPLES / "README.md").read_text("utf-8"), re.M)
    assert all(name == target for name, target in listed)
    files = [path.name for pattern in ("*.py", "*.ipynb") for path in EXAMPLES.glob(pattern)]
    assert sorted(name for name, _ in listed) == sorted(files)


@pytest.mark.parametrize("name", TWINS)
def test_each_says_how_it_is_run_and_whose_twin_it_is(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    documentation = ast.get_docstring(ast.parse(text)) or ""
    assert re.match(rf"python examples/{name}\.py( |$)", documentation.splitlines()[2])
    assert re.search(rf"metal-candle\s\(Rust\):\s{name}\b", documentation)
    assert len(text.splitlines()) <= 100
    assert not re.search(r"\.(?!__)_\w", text), "a private attribute"


# --- what they print ----------------------------------------------------------------------------


@pytest.mark.slow
def test_load_model(run: Run) -> None:
    lines = run("load_model")
    assert "['Qwen2ForCausalLM']: 2 layers, head_dim 16" in lines
    assert "model.embed_tokens.weight (256, 64)" in lines
    assert "27 tensors of f16" in lines
    assert line_with(lines, "ShapeMismatch: ").endswith("the configuration asks for (256, 1)")


@pytest.mark.slow
def test_forward_pass(run: Run) -> None:
    lines = run("forward_pass")
    assert "llama: 30 layers of 576, 134,515,008 numbers" in lines
    assert "ids (1, 5) -> logits (1, 5, 49152)" in lines
    likeliest = [line for line in lines if "%" in line]
    assert likeliest[0].endswith("' Paris'")
    shares = [float(line.split("%")[0]) for line in likeliest]
    assert shares == sorted(shares, reverse=True)
    # Logits near 20, float32, summed in another order.
    assert float(line_with(lines, "cache of 6 tokens;").split()[-1]) < 1e-3


@pytest.mark.slow
def test_generate_text(run: Run) -> None:
    lines = run("generate_text", "--max-tokens", "8", "--prompt", "Name the planets.")
    greedy, until = (ast.literal_eval(line_with(lines, start)) for start in ("greedy: ", 'until ",": '))
    assert until == greedy.partition(",")[0] != greedy
    drawn = {line_with(lines, start) for start in ("top-k 10: ", "top-p 0.9: ", "temperature 0.7, top-p 0.9: ")}
    assert all(len(ast.literal_eval(text)) > 5 for text in drawn)
    assert drawn != {repr(greedy)}
    assert lines[-4:-1] == ["[50, 49, 48, 47, 46]", "[50, 49, 48, 47, 46, 45]", "[50, 49, 48]"]
    assert re.fullmatch(r"49 \(56%\) 48 \(56%\) 47 \(56%\) \[50, 49, 48, 47\]", lines[-1])


@pytest.mark.slow
def test_streaming_demo(run: Run) -> None:
    lines = run("streaming_demo")
    answer = line_with(lines, "a loop over pieces of text: ")
    assert answer.startswith("The planets are: Earth, Mars")
    assert "  prompt: 34 of 34 tokens" in lines
    tokens = [line for line in lines if "probability" in line]
    assert "".join(ast.literal_eval(re.findall(r"'.*?'", line)[0]) for line in tokens) == "The planets are:"
    assert answer.startswith(ast.literal_eval(line_with(lines, "a callback on ids: ")))
    assert line_with(lines, "async: ") == f"{answer!r}; the event loop ran on: True"
    assert line_with(lines, "cancelled after 3 pieces: ") == "'The planets are'"


@pytest.mark.slow
def test_inference_demo(run: Run) -> None:
    lines = run("inference_demo")
    cache = line_with(lines, "KVCache(position=6 of 8, 2 of 2 layers); keys (1, 4, 6, 16);")
    assert float(cache.split()[-1]) < 1e-5  # float32 sums of six products
    assert "trimmed: 4 tokens of 8, 2 layers" in lines
    assert "KV-cache full: position 10 of 8" in lines
    drawn = {
        name: {int(token): float(share) for token, share in re.findall(r"(\d+): ([\d.]+) %", line_with(lines, name))}
        for name in ("greedy ", "top-k 3 ", "top-p 0.9 ", "temperature 0.5 ", "temperature 2 ")
    }
    assert drawn["greedy "] == {1: 100}
    assert set(drawn["top-k 3 "]) == {1, 6, 2}
    assert set(drawn["top-p 0.9 "]) == {1, 6, 2, 9}
    assert len(drawn["temperature 2 "]) > len(drawn["top-p 0.9 "])
    assert drawn["temperature 0.5 "][1] > drawn["top-k 3 "][1] > drawn["temperature 2 "][1]
    assert "token 1: logit 5.0, probability 0.58, end: True" in lines
    assert "repetition penalty 2: 2.5, 2.0; greedy takes 2" in lines


@pytest.mark.slow
def test_train_lora(run: Run) -> None:
    lines = run("train_lora")
    assert "trained 17,408 numbers, frozen 86,720" in lines
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)", "\n".join(lines), re.M)]
    assert len(losses) == 7
    assert losses[-1] < 0.1 < 2 < losses[0]
    assert line_with(lines, "loaded: step ") == f"60, loss {losses[-1]:.4f}"
    assert line_with(lines, "after 7, 8, 9 comes ") == line_with(lines, "loaded: after 7, 8, 9 comes ") == "10"
    assert line_with(lines, "untrained: after 7, 8, 9 comes ") != "10"


@pytest.mark.slow
def test_adapter_swap_demo(run: Run) -> None:
    lines = run("adapter_swap_demo")
    for name in ("sailor", "critic"):
        before, after = map(float, re.findall(r"[\d.]+", line_with(lines, f"{name}: loss ")))
        assert after < before / 2
        assert line_with(lines, f"{name}: 0").endswith("% of the model's numbers")
    switched = re.findall(r"^active: (\w+) \(switched in [\d.]+ ms\): (.*)$", "\n".join(lines), re.M)
    names, (base, sailor, critic, again) = zip(*switched)
    assert names == ("None", "sailor", "critic", "None")
    assert ast.literal_eval(sailor).startswith("The soup is salty as the sea")
    assert ast.literal_eval(critic).startswith("The soup is worth four stars")
    assert base == again
    assert len({base, sailor, critic}) == 3
    assert lines[-1] == "invalid training configuration: no adapter sailor; registered: critic"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "tolerance"),
    # Relative to the largest number. Float32 sums of up to 49152 exponentials and of 16384 squares, plainly added.
    [("softmax_bench", 4, 3e-5), ("rmsnorm_bench", 4, 1e-5), ("lora_layer_bench", 9, 1e-5)],
)
def test_benches(run: Run, name: str, rows: int, tolerance: float) -> None:
    first, heading, *table = run(name, "--rounds", "2")
    assert first == f"{Device.default()}; medians of 2"
    assert heading.endswith("compiled / mlx   difference")
    assert len(table) == rows
    for line in table:
        *times, difference = map(float, line.split()[-5:])
        assert min(times) > 0
        assert difference <= tolerance


@pytest.mark.slow
def test_embeddings_demo(run: Run) -> None:
    lines = run("embeddings_demo")
    assert lines[0] == f"EmbeddingModelType.AllMiniLmL6V2: 384 numbers for a text on {Device.default()}"
    rows = [[float(value) for value in re.findall(r"-?\d\.\d\d", line)] for line in lines[2:5]]
    assert [rows[i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    assert rows[0][1] > 0.3 > rows[0][2]
    assert "nearest to 'animals at play': 'The puppy is playing outside.'" in lines
    assert all(float(length) > 2 for length in re.findall(r"[\d.]+", line_with(lines, "not normalised: lengths ")))
    assert line_with(lines, "mean_pool ").startswith("[[2.0, 2.0]], normalised [[0.707")
    assert lines[-1] == "cannot encode empty text"


@pytest.mark.slow
def test_ferris_hybrid_demo(run: Run) -> None:
    lines = run("ferris_hybrid_demo")
    assert lines[0] == f"7 documents on {Device.default()}, queries on Device.Cpu"

    def ranking(query: str) -> list[tuple[float, float, float, str]]:
        at = lines.index(query) + 2
        rows = [line.split(maxsplit=3) for line in lines[at : at + 3]]
        return [(float(both), float(meaning), float(words), text) for both, meaning, words, text in rows]

    by_meaning, by_words = ranking("code that runs without waiting"), ranking("E0499 although nothing moves")
    assert by_meaning[0][3].startswith("Async functions")
    assert by_meaning[0][2] < max(words for _, _, words, _ in by_meaning)
    assert by_words[0][3].startswith("Error E0499")
    assert by_words[0][1] < max(meaning for _, meaning, _, _ in by_words)
    for both, meaning, words, _ in by_meaning + by_words:
        assert both == pytest.approx(0.7 * meaning + 0.3 * words, abs=0.011)  # two decimals each


@pytest.mark.slow
def test_ferris_hybrid_demo_on_a_query_of_ones_own(run: Run) -> None:
    lines = run("ferris_hybrid_demo", "--weight", "1", "Who fetches dependencies?")
    assert lines[4].endswith("Cargo builds packages and fetches what they depend on.")
    assert lines[4].split()[0] == lines[4].split()[1]


@pytest.mark.slow
def test_metal_embeddings_test(run: Run) -> None:
    lines = run("metal_embeddings_test")
    if Device.default().is_cpu():
        assert lines[0].startswith("the default device is the CPU: it is compared with itself")
    assert 0 < float(re.findall(r"largest difference (\S+),", line_with(lines, "(12, 384): "))[0]) <= 1e-4


@pytest.mark.slow
def test_metal_embeddings_test_ends_with_1_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = EmbeddingModel.encode

    def damaged(self: EmbeddingModel, texts: list[str], batch_size: int = 32) -> Any:
        found = encode(self, texts, batch_size)
        return found if batch_size == 1 else found * 1.01

    monkeypatch.setattr(EmbeddingModel, "encode", damaged)
    monkeypatch.setattr(sys, "argv", ["metal_embeddings_test.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "metal_embeddings_test.py"), run_name="__main__")
    assert ended.value.code == 1


@pytest.mark.slow
def test_metal_embeddings_tests_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that only a machine with a GPU comes to."""
    monkeypatch.setattr(sys, "argv", ["metal_embeddings_test.py"])
    monkeypatch.setattr(sys, "exit", lambda code: None)
    names = runpy.run_path(str(EXAMPLES / "metal_embeddings_test.py"))
    model = EmbeddingModel.from_pretrained(EmbeddingModelType.AllMiniLmL6V2)
    assert names["time_ratio"](model, model) > 0
