"""Functions as JSON schemas, which is how chat templates tell a model what tools there are.

    def weather(city: str, days: int = 1) -> str: ...

    schema_of(weather)["function"]["parameters"]["required"]  # ["city"]

Names and types come from the signature, descriptions from a docstring in Google's style; the result
is the one that transformers' ``get_json_schema`` gives.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from neox_lab.errors import TokenizerError

Schema: TypeAlias = dict[str, Any]

_NAMES: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SCALARS = (int, float, str, bool, type(None))
_SECTION = r"[\n\s]*(?:Args:|Returns:|Raises:|\Z)"
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schemas(tools: Sequence[object] | None) -> list[Schema] | None:
    """Each tool as a schema: dictionaries as they are, functions by ``schema_of``.

    Raises:
        TokenizerError: a tool is neither, or a function does not say enough about itself.
    """
    if tools is None:
        return None
    schemas = []
    for tool in tools:
        if isinstance(tool, dict):
            schemas.append(tool)
        elif inspect.isfunction(tool) or inspect.ismethod(tool):
            schemas.append(schema_of(tool))
        else:
            raise TokenizerError(
                f"A tool is a JSON schema (a dictionary) or a function with type hints and a "
                f"docstring, and {tool!r:.60} is {type(tool).__name__}."
            )
    return schemas


def schema_of(function: Callable[..., object]) -> Schema:
    """The JSON schema of a function's call.

    Raises:
        TokenizerError: an argument has no type hint or no description, or its type has no form in
            JSON.
    """
    name = function.__name__
    text = (inspect.getdoc(function) or "").strip()
    if not text:
        raise TokenizerError(f"The tool {name} has no docstring to describe it by.")
    described = _described_arguments(text)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        if parameters[0].annotation is inspect.Parameter.empty:
            parameters = parameters[1:]
    hints = typing.get_type_hints(function)
    properties: dict[str, Schema] = {}
    for parameter in parameters:
        if parameter.name not in hints:
            raise TokenizerError(f"The tool {name} has no type hint for {parameter.name!r}.")
        if parameter.name not in described:
            raise TokenizerError(
                f"The docstring of the tool {name} has no description of {parameter.name!r} in "
                "its section 'Args:'."
            )
        schema = _schema_of_type(hints[parameter.name], f"{parameter.name!r} of the tool {name}")
        properties[parameter.name] = _with_description(schema, described[parameter.name])
    body: Schema = {"type": "object", "properties": properties}
    if required := [p.name for p in parameters if p.default is inspect.Parameter.empty]:
        body["required"] = required
    summary = re.split(_SECTION, text, maxsplit=1)[0].strip()
    result: Schema = {"name": name, "description": summary, "parameters": body}
    if "return" in hints:
        result |= _returned(hints["return"], text)
    return {"type": "function", "function": result}


def _returned(hint: object, text: str) -> Schema:
    """What the function gives back, left out where JSON has no form for it."""
    try:
        schema = _schema_of_type(hint, "the result")
    except TokenizerError:
        return {}
    found = re.search(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(?:Raises:|\Z)", text, re.DOTALL)
    return {"return": schema | ({"description": found.group(1)} if found else {})}


def _described_arguments(text: str) -> dict[str, str]:
    """Descriptions by argument, from the section ``Args:`` of a docstring."""
    section = re.search(r"\n\s*Args:\n(.*?)[\n\s]*(?:Returns:|Raises:|\Z)", text, re.DOTALL)
    if section is None:
        return {}
    lines = "\n".join(line for line in section.group(1).split("\n") if line.strip())
    entries = _entries(lines)
    return {name: re.sub(r"\s*\n+\s*", " ", words.strip()) for name, words in entries}


def _entries(lines: str) -> list[tuple[str, str]]:
    """``name: words`` of each entry; lines that are indented deeper go on with it."""
    entries: list[tuple[str, str]] = []
    depth: int | None = None
    for line in lines.split("\n"):
        head = re.match(r"([ \t]*)(\w+):\s*(.*)", line)
        if head is not None and (depth is None or len(head.group(1)) <= depth):
            depth = len(head.group(1))
            entries.append((head.group(2), head.group(3)))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]}\n{line}")
    return entries


def _with_description(schema: Schema, words: str) -> Schema:
    """``schema`` with its description, whose end may list choices: ``(choices: ["a", "b"])``."""
    if found := _CHOICES.search(words):
        choices = json.loads(found.group(1))
        schema["enum"] = [c.strip() if isinstance(c, str) else c for c in choices]
        words = words[: found.start()].strip()
    return schema | {"description": words}


def _schema_of_type(hint: object, where: str) -> Schema:
    """The schema of a type hint.

    Raises:
        TokenizerError: it has no form in JSON.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _NAMES or (origin in _NAMES and not arguments):
        return {"type": _NAMES[origin or hint]}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _schema_of_values([member.value for member in hint], where)
    if origin is typing.Literal:
        return _schema_of_values(list(arguments), where)
    if origin is typing.Union or origin is types.UnionType:
        return _schema_of_union(arguments, where)
    if origin is list:
        return {"type": "array", "items": _schema_of_type(arguments[0], where)}
    if origin is tuple and len(arguments) > 1 and ... not in arguments:
        return {"type": "array", "prefixItems": [_schema_of_type(a, where) for a in arguments]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of_type(arguments[1], where)}
    raise TokenizerError(
        f"The type {hint!r} of {where} has no JSON schema. Use int, float, str, bool, "
        "enumerations, Literal, and lists, dictionaries, tuples of fixed length and unions of "
        "them, or write the "
        "schema by hand."
    )


def _schema_of_values(values: list[object], where: str) -> Schema:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise TokenizerError(f"The values {values} of {where} cannot be written in JSON.")
    kinds = list(dict.fromkeys(_NAMES[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _schema_of_union(members: tuple[object, ...], where: str) -> Schema:
    schemas = [_schema_of_type(m, where) for m in members if m is not type(None)]
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(s.keys() == {"type"} and isinstance(s["type"], str) for s in schemas):
        kinds = sorted({s["type"] for s in schemas})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": schemas}
    return schema | ({"nullable": True} if type(None) in members else {})
