"""Damage to files: of their bytes, and of what is written in them.

A damage is a small tuple that hypothesis draws (and makes smaller when a test fails), so that the
same tuple always makes the same file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DIGITS = "@400 digits"
DEEP = "@deep"
"""Texts that stand for what ``json.dumps`` cannot write."""

_WRITTEN = {
    DIGITS: "1" * 400,
    "@5000 digits": "1" * 5000,
    "@-400 digits": "-" + "1" * 400,
    "@1e400": "1e400",
    DEEP: "[" * 20_000 + "]" * 20_000,
    "@deep object": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "@half": '"\\ud800"',
}

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        1.5,
        -0.0,
        0.5,
        1e-320,
        1e308,
        2**31,
        2**63,
        2**64,
        -(2**63),
    ),
    *(float("nan"), float("inf"), -float("inf"), 10**8, 5000, 4096),
    *("", " ", "x", "0", "1", "true", "None", "default", "\0", "\x1b[31m", "../x", "é" * 300),
    *([], {}, [[]], [{}], [None], [1, 2], ["a", "a"], {"a": 1}, {"": {}}, {"0": "a", "1": "a"}),
    *(["a"] * 50, [[["a"]]], {"content": 1}, {"type": "x"}, {"text": None, "answer_start": 1}),
    *_WRITTEN,
)
"""What stands in a JSON file in the place of what should stand there."""

_KINDS = ("set", "set", "set", "set", "remove", "rename", "copy", "wrap", "twice", "text")
Damage = tuple[str, int, Any]

damage_of_json = st.lists(
    st.tuples(st.sampled_from(_KINDS), st.integers(0, 4095), st.sampled_from(VALUES)),
    min_size=1,
    max_size=3,
)
damage_of_bytes = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "insert", "remove", "double", "zeros")),
        st.integers(0, 2**16 - 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged_json(document: Any, damages: list[Damage]) -> str:
    """The text of a JSON document after some damages."""
    holder = [copy.deepcopy(document)]
    for kind, number, value in damages:
        if kind in ("twice", "text"):
            continue
        places = list(_places(holder))
        parent, key = places[number % len(places)]
        _damage(parent, key, kind, value, places[number * 7 % len(places)])
    text = json.dumps(holder[0])
    for kind, number, value in damages:
        if kind == "twice" and text.startswith("{") and isinstance(document, dict) and document:
            name = list(document)[number % len(document)]
            text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}"
        elif kind == "text":
            at = number % (len(text) + 1)
            text = text[:at] + ("" if number % 2 else ",") + text[at + number % 3 :]
    for name, written in _WRITTEN.items():
        text = text.replace(json.dumps(name), written)
    return text


def damaged_bytes(content: bytes, damages: list[Damage]) -> bytes:
    """A file's bytes after some damages."""
    for kind, number, value in damages:
        # Most of what can go wrong stands at the beginning and at the end.
        at = number % (len(content) + 1)
        at = min(at, len(content)) if value % 3 else number % (min(len(content), 64) + 1)
        at = len(content) - at if value % 7 == 0 else at
        length = value % 16 + 1
        if kind == "flip":
            middle = bytes(b ^ (1 << value % 8) for b in content[at : at + 1])
            content = content[:at] + middle + content[at + 1 :]
        elif kind == "set":
            content = content[:at] + bytes([value]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + bytes([value]) * length + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + length :]
        elif kind == "double":
            content = content[:at] + content[at : at + 8 * length] + content[at:]
        else:
            content = content[:at] + b"\0" * length + content[at + length :]
    return content


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as a container and a key in it."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _damage(parent: Any, key: Any, kind: str, value: Any, other: tuple[Any, Any]) -> None:
    if kind == "set":
        parent[key] = copy.deepcopy(value)
    elif kind == "wrap":
        parent[key] = [parent[key]]
    elif kind == "copy":
        parent[key] = copy.deepcopy(other[0][other[1]])
    elif isinstance(parent, list) and len(parent) < 2 and kind == "remove":
        parent[key] = None
    elif kind == "remove":
        del parent[key]
    elif isinstance(parent, dict):  # rename
        parent[value if isinstance(value, str) else str(key) + "_"] = parent.pop(key)
