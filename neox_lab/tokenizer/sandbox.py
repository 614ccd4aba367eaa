"""Chat templates: Jinja programs from the hub, run where they can do no harm.

A checkpoint of a chat model brings a template, a small program that writes a conversation as the
text the model was trained on. It is other people's code, so it runs in Jinja's immutable sandbox
and sees plain data only. The environment is the one that transformers promises to authors of
templates: blocks leave no blank lines, loops have ``break`` and ``continue``, and there are
``raise_exception``, ``strftime_now``, a ``tojson`` that keeps quotes, and the tag
``{% generation %}`` around what the assistant says.

This module needs jinja2 and is imported when the first template is written out.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import NoReturn, TypeAlias

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import numpy as np

from neox_lab.errors import TokenizerError

Data: TypeAlias = (
    "bool | int | float | str | list[Data] | tuple[Data, ...] | dict[Data, Data] | None"
)
"""What a template sees: the types of JSON, and tuples."""

Span = tuple[int, int]
"""First character and the one behind the last."""

# What surrounds the assistant's words while they are being looked for; else nothing does. The
# marks are drawn anew each time, so no message can hold them.
_MARKS: contextvars.ContextVar[tuple[str, str]] = contextvars.ContextVar("_MARKS", default=("", ""))


class ChatTemplateError(TokenizerError, jinja2.TemplateError):
    """A template is no template, reaches for what it must not have, or refuses a conversation."""


def write(template: str, variables: Mapping[str, object]) -> str:
    """The text that ``template`` makes of ``variables``.

    Raises:
        ChatTemplateError: the template is wrong, forbidden, or raises by itself.
    """
    try:
        return _compiled(template).render({name: plain(v) for name, v in variables.items()})
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"The chat template cannot be written out: {error}") from error


def write_marked(template: str, variables: Mapping[str, object]) -> tuple[str, list[Span]]:
    """The text, and where in it the template's ``{% generation %}`` blocks stand.

    Raises:
        ChatTemplateError: as ``write`` does.
    """
    key = str(secrets.randbelow(10**18))  # digits, which no filter changes
    opening, closing = marks = f"\ue000{key}<", f"\ue000{key}>"
    token = _MARKS.set(marks)
    try:
        text = write(template, variables)
    finally:
        _MARKS.reset(token)
    parts: list[str] = []
    spans: list[Span] = []
    open_at: list[int] = []
    length = 0
    for part in re.split(f"({opening}|{closing})", text):
        if part == opening:
            open_at.append(length)
        elif part == closing:
            spans.append((open_at.pop() if open_at else 0, length))
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), spans


def literal_text(template: str) -> str:
    """What stands in a template as text or as a string, pieces apart by a null character.

    Raises:
        ChatTemplateError: it is no template.
    """
    try:
        tree = _environment().parse(template)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"The chat template cannot be read: {error}") from error
    pieces = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    constants = [node.value for node in tree.find_all(jinja2.nodes.Const)]
    return "\0".join([*pieces, *(value for value in constants if isinstance(value, str))])


def plain(value: object) -> Data:
    """``value`` rebuilt from plain data.

    Objects have methods that the sandbox does not know to be dangerous, so none reach a template:
    mappings, dataclasses and Pydantic models become dictionaries, and anything else that is no
    data becomes its type's name, as ``"<Tensor>"``.
    """
    if value is None or type(value) in (bool, str, int, float):
        return value  # type: ignore[return-value]  # narrowed by the exact type
    # Subclasses, such as enumerations and NumPy's floats, are stripped of what they add.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump())
    return f"<{type(value).__name__}>"


class _Generation(jinja2.ext.Extension):
    """The tag ``{% generation %}``, which leaves what it surrounds as it is."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # a set there

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Read the tag and what stands up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        opening, closing = _MARKS.get()
        return f"{opening}{caller()}{closing}"


class _MakeDict:
    """``dict`` as templates know it; the class itself would lead them into Python's insides."""

    def __call__(self, *args: Iterable[object], **kwargs: object) -> dict[object, object]:
        made: dict[object, object] = dict(*args)
        return made | {**kwargs}

    def fromkeys(self, keys: Iterable[object], value: object = None) -> dict[object, object]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without names that begin with an underscore, for the same reason."""

    def __init__(*args: object, **kwargs: object) -> None:  # a template may give self=
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace has no attributes that begin with an underscore, such as {name!r}"
        )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter writes it for web pages, where quotes are other signs."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _MakeDict(),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)
