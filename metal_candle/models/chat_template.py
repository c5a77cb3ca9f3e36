"""Chat templates: Jinja in a sandbox, with the names and whitespace rules of Hugging Face."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..error import ModelError


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the assistant says; as text it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Refusal(jinja2.TemplateError):
    """The template itself refused the messages."""


def _refuse(message: str) -> NoReturn:
    raise _Refusal(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _refuse, "strftime_now": _now}
    environment.globals.update(helpers)
    return environment.from_string(source)


def render(template: str, messages: Sequence[Mapping[str, Any]], **variables: object) -> str:
    """The text of ``messages`` under a template; ``variables`` are what else it may ask for.

    Raises ``ModelError.ChatTemplateFailed`` for a template that is broken, does something forbidden or
    refuses the messages.
    """
    try:
        return _compile(template).render(messages=list(messages), **variables)
    except _Refusal as error:
        raise ModelError.ChatTemplateFailed(reason=f"the template refuses the messages: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise ModelError.ChatTemplateFailed(reason=f"line {error.lineno}: {error.message}") from error
    except Exception as error:  # a template can do anything with its input: no error of it is foreseeable
        detail = " ".join(str(error).split())
        raise ModelError.ChatTemplateFailed(reason=f"{type(error).__name__}: {detail}") from error
