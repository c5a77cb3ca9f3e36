"""Every environment variable the package reads, one object each.

A setting is read from the environment each time it is asked for, and can be overridden for a block or a
function: ``with settings.KERNELS.override("reference"): ...``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .error import ArgumentTypeError
from .error.text import described

if TYPE_CHECKING:
    import logging

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

# Kernels ask at each call. The mapping over this dict encodes every name, and raises and catches for a missing one.
_ENVIRONMENT: Mapping[bytes, bytes] = getattr(os.environ, "_data", os.environb)


class Setting:
    """One environment variable: its name, default, what it does."""

    def __init__(self, name: str, default: str, doc: str) -> None:
        self.name, self.default, self.doc = name, default, doc
        self._key = os.fsencode(name)
        self._override: ContextVar[str | None] = ContextVar(name, default=None)
        SETTINGS.append(self)

    @property
    def value(self) -> str:
        """The override of the current context, else the environment's value, else the default."""
        override = self._override.get()
        if override is not None:
            return override
        value = _ENVIRONMENT.get(self._key)
        return self.default if value is None else os.fsdecode(value)

    @property
    def words(self) -> frozenset[str]:
        """The value as a set of comma-separated words."""
        return _words(self.value)

    def override(self, value: str) -> Override:
        """Use ``value`` inside the block, or inside the decorated function, which may be an ``async`` one."""
        return Override(self, lambda: value)


class Override:
    """A setting's value for a ``with`` block or a decorated function; may be entered often and by several threads."""

    def __init__(self, setting: Setting, value: Callable[[], str]) -> None:
        self._setting, self._value = setting, value

    def __enter__(self) -> None:
        variable = self._setting._override
        # Blocks of one thread or task end in the reverse order, whichever objects they were entered by.
        _entered.set((variable.set(self._value()), _entered.get()))

    def __exit__(self, *error: object) -> None:
        token, outer = cast("_Entered", _entered.get())
        self._setting._override.reset(token)
        _entered.set(outer)

    def __call__(self, function: Function) -> Function:
        """The function with the value inside. Raises ``ArgumentTypeError`` for a generator function, whose body runs
        in pieces between its caller's, and for what is no function."""
        import inspect  # a program that decorates nothing does not wait for its import

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            name = getattr(function, "__name__", "?")
            raise ArgumentTypeError(
                f"{self._named()}: got the generator function {name}; use a with block inside of it"
            )
        if inspect.isclass(function) or not callable(function):
            raise ArgumentTypeError(f"{self._named()}: got {_what(function)}; takes a function")
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def inside_async(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("Function", inside_async)

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("Function", inside)

    def _named(self) -> str:
        return f"{self._setting.name}.override"


def _what(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else described(value)


_Entered = tuple[Token[Any], Any]
_entered: ContextVar[_Entered | None] = ContextVar("entered", default=None)


class Derived(Generic[T]):
    """What follows from some settings, worked out again only when one of them has changed."""

    def __init__(self, work_out: Callable[[], T], *settings: Setting) -> None:
        self._work_out = work_out
        self._sources = [(setting._override.get, setting._key) for setting in settings]
        # A pair, so that a thread never takes another's value for its own settings.
        self._known: tuple[list[object], T] | None = None

    def get(self) -> T:
        """The value for the settings as they are now, in this context."""
        now: list[object] = []
        for override, key in self._sources:
            now.append(override())
            now.append(_ENVIRONMENT.get(key))
        known = self._known
        if known is None or known[0] != now:
            self._known = known = (now, self._work_out())
        return known[1]


@lru_cache(64)
def _words(value: str) -> frozenset[str]:
    return frozenset(word.strip() for word in value.split(",") if word.strip())


SETTINGS: list[Setting] = []

BLAS = Setting(
    "METAL_CANDLE_BLAS",
    "auto",
    "Linux CPU: `auto` loads an optimised BLAS before MLX, `off` leaves MLX's own, a path names a library.",
)
CACHE = Setting("METAL_CANDLE_CACHE", "", "Folder for models and libraries; default: the user's cache folder.")
CACHE_LIMIT = Setting(
    "METAL_CANDLE_CACHE_LIMIT",
    "",
    "Bytes of freed memory that MLX may keep while training and generating: `512M`, `2G`, `off` for MLX's own limit; "
    "default: an eighth of the device's memory, at most 4G.",
)
DISABLE = Setting(
    "METAL_CANDLE_DISABLE",
    "",
    "Features to switch off: `graph`, `custom-metal`, `rewrite`, `rewrite.<pass or rule>`, comma separated.",
)
KERNELS = Setting(
    "METAL_CANDLE_KERNELS",
    "auto",
    "`reference` replaces every kernel by its plain MLX definition, `custom` launches ours on a GPU wherever it can.",
)
DEBUG = Setting("METAL_CANDLE_DEBUG", "", "Topics to log: `graph`, `rewrite`, `kernel`, `compile`, comma separated.")
CHECK = Setting(
    "METAL_CANDLE_CHECK", "", "`1` checks the graph after each rewrite pass, to find the one that broke it."
)
WARN_EAGER = Setting(
    "METAL_CANDLE_WARN_EAGER", "", "`1` warns of chains of eager operations in hot loops: `EagerPerformanceWarning`."
)


TOPICS = ("graph", "rewrite", "kernel", "compile")
"""What ``DEBUG`` takes."""

_captured: ContextVar[list[str] | None] = ContextVar("captured", default=None)


def log(topic: str, text: str, *values: object) -> None:
    """A line about a topic that ``DEBUG`` names, to the logger of that topic."""
    lines = _captured.get()
    if lines is not None:
        lines.append(text % values)
        return
    import logging  # a program that logs nothing does not wait for its import

    logging.getLogger(f"metal_candle.{topic}").info(text, *values)


def show_logged() -> None:
    """Print what is logged, where the program has not configured logging; its own handlers get the lines otherwise."""
    import logging

    package = logging.getLogger(__name__.partition(".")[0])
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not _handled_elsewhere(record.name, handler))
    package.addHandler(handler)
    package.setLevel(logging.INFO)


def _handled_elsewhere(name: str, handler: logging.Handler) -> bool:
    """Whether the lines of a logger reach a handler beside this one."""
    import logging

    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(other is not handler for other in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


@contextmanager
def captured(topic: str) -> Iterator[list[str]]:
    """What is logged about ``topic`` inside the block, as lines instead."""
    lines: list[str] = []
    token = _captured.set(lines)
    try:
        with DEBUG.override(topic):
            yield lines
    finally:
        _captured.reset(token)
