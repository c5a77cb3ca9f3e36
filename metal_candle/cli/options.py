"""What commands share: loading a model with a progress bar, YAML configuration, parsing names."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..dtype import DType
from ..error import TrainingError
from ..models.architecture import foreign_architecture
from ..models.fetch import PACKAGED, resolve
from ..models.load import load_held, load_tokenizer
from ..models.loaded import LoadedModel
from ..models.quantize_options import QuantizeOptions
from ..models.target_module import TargetModule
from ..models.tokenizer import Tokenizer
from .paths import to_read


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use a YAML file's values as the defaults of the command's flags, which still win.

    Raises ``typer.BadParameter`` for a file that is missing, is no mapping, or names no flag.
    """
    import yaml

    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path}: got {type(values).__name__}; takes lines like `rank: 8`")
    known = {parameter.name or "": parameter for parameter in context.command.params}
    defaults = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known or name == "config":
            near = difflib.get_close_matches(name, [other for other in known if other != "config"], n=1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise typer.BadParameter(f"{path}: unknown key {key!r}{hint}")
        if isinstance(value, list):
            value = ",".join(map(str, value))
        flag = getattr(known[name], "is_flag", False)
        if value is None or isinstance(value, dict) or isinstance(value, bool) != flag:
            takes = "true or false" if flag else "a number or text"
            raise typer.BadParameter(f"{path}: {key} is {value!r}; takes {takes}")
        defaults[name] = value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def parse_dtype(name: str) -> DType:
    """A float dtype for weights. Raises ``TrainingError.InvalidConfig``."""
    names = {"f32": DType.F32, "float32": DType.F32, "bf16": DType.BF16, "bfloat16": DType.BF16}
    names |= {"f16": DType.F16, "float16": DType.F16}
    if name not in names:
        raise TrainingError.InvalidConfig(reason=f"dtype is {name!r}; takes f32, bf16 or f16")
    return names[name]


def parse_targets(names: str, model: str = "smollm2") -> tuple[TargetModule | str, ...]:
    """``all`` or projection names, comma separated. Raises ``TrainingError.InvalidLoRAConfig``.

    A model of an architecture that is not ours has names of its own, which are looked up when it is there.
    """
    foreign = _is_foreign(model)
    if names == "all":
        return ("all-linear",) if foreign else tuple(TargetModule)
    found: list[TargetModule | str] = []
    for name in (part.strip() for part in names.split(",")):
        target = TargetModule.from_name(name) or (name if foreign and name else None)
        if target is None:
            takes = ", ".join(["all", *(member.value for member in TargetModule)])
            raise TrainingError.InvalidLoRAConfig(reason=f"target module {name!r} does not exist; takes {takes}")
        if target not in found:
            found.append(target)
    return tuple(found)


def _is_foreign(model: str) -> bool:
    """Whether a model's architecture is not ours. One of the hub is fetched to know."""
    if Path(model).expanduser().is_dir():
        return foreign_architecture(Path(model).expanduser()) is not None
    if model in PACKAGED or model.lower().endswith(".gguf"):
        return False
    path = resolve(model)
    return path.is_dir() and foreign_architecture(path) is not None


ADAPTER = "Folder or file in PEFT's, mlx-lm's or metal-candle's format."
AdapterPath = Annotated[Path, typer.Option(parser=to_read("--adapter"), help=ADAPTER)]
ALPHA = "Alpha of an adapter's file that does not say it, as the metal-candle crate's."
QUANTIZE = "How weights are held: in 4 or 8 bits (or 2, 3, 5, 6), keep (packed as the file has them), or dense."
Quantize = Annotated[Optional[str], typer.Option(help=QUANTIZE)]  # noqa: UP045
GroupSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Numbers that share a scale where --quantize gives bits: 32, 64 or 128; by default 64."),
]
QuantizeEmbeddings = Annotated[
    bool,
    typer.Option(
        "--quantize-embeddings", help="Where --quantize gives bits, quantise the table of tokens and the head, too."
    ),
]


def load_with_progress(model: str, dtype: DType, options: QuantizeOptions) -> LoadedModel:
    """Load a model; a download shows its progress on a terminal and one line elsewhere, and so does what is unusual."""
    with download_progress(model) as progress:
        loaded = load_held(model, options, dtype, progress=progress)
    if loaded.note:
        print(f"{model}: {loaded.note}", file=sys.stderr, flush=True)
    return loaded


def tokenizer_with_progress(model: str) -> Tokenizer:
    """Load a model's tokenizer alone; a download shows its progress."""
    with download_progress(model) as progress:
        return load_tokenizer(model, progress)


@contextmanager
def download_progress(model: str) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` in bytes that shows a bar on a terminal and one line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        announced: list[int] = []

        def announce(done: int, total: int) -> None:
            if not announced:
                announced.append(total)
                print(f"fetching {model}: {total / 1e6:.0f} MB", file=sys.stderr, flush=True)

        yield announce
        return
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def check_adapter(path: Path) -> None:
    """Raise ``CheckpointError`` where there is no adapter of a format that is read."""
    from ..training.formats.recognise import recognise

    recognise(path)


def print_table(rows: list[tuple[str, object]]) -> None:
    """Names and values in two columns, however long a value is."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
