"""The settings of a tokenizer: their names, defaults, and what values they take.

A setting has the same name as a constructor argument, as an attribute, and as a key of
tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from neox_lab.checks import SWITCH, Kind, check, number
from neox_lab.errors import TokenizerError
from neox_lab.tokenizer.arguments import SIDE, choose

Value = TypeVar("Value")

UNLIMITED = int(1e30)  # Hugging Face's value of model_max_length where nothing is known

# Roles of special tokens, in the order in which new tokens get their ids.
ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Roles that are filled without being asked for, where the vocabulary holds the token.
DEFAULT_TOKENS = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|padding|>",
}
DEFAULTS: dict[str, object] = {
    "padding_side": "right",
    "truncation_side": "right",
    "model_max_length": UNLIMITED,
    "model_input_names": ["input_ids", "attention_mask"],
    "split_special_tokens": False,
    "clean_up_tokenization_spaces": False,
    "chat_template": None,
    "chat_control_tokens": None,
}
SETTINGS = (
    *ROLES,
    *DEFAULTS,
    "extra_special_tokens",
    "additional_special_tokens",
    "model_specific_special_tokens",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "trim_offsets",
)


_LENGTH = number(above=0, below=1e300)._replace(words="a positive number of tokens")
_INPUT_NAMES: Kind[list[str] | tuple[str, ...]] = Kind(
    "a list with 'input_ids' in it",
    lambda value: isinstance(value, list | tuple) and "input_ids" in value,
)


_TOKENS: Kind[list[str] | tuple[str, ...] | None] = Kind(
    "a list of tokens (str), or None",
    lambda value: (
        value is None
        or (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
    ),
)


class Checked(Generic[Value]):
    """An attribute whose value passes through ``check(name, value)`` whenever it is set."""

    def __init__(self, check: Callable[[str, object], Value]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: object, kind: type | None = None) -> Value:
        value: Value = owner.__dict__[self.name]
        return value

    def __set__(self, owner: object, value: object) -> None:
        owner.__dict__[self.name] = self.check(self.name, value)


def side(name: str, value: object) -> str:
    """``value`` if it is "right" or "left".

    Raises:
        TokenizerError: it is not.
    """
    return choose(name, value, SIDE)


def flag(name: str, value: object) -> bool:
    """``value`` if it is True or False.

    Raises:
        TokenizerError: it is not.
    """
    return check(name, value, SWITCH, TokenizerError)


def limit(name: str, value: object) -> int:
    """``value`` as a length in tokens.

    Raises:
        TokenizerError: it is none.
    """
    return int(check(name, value, _LENGTH, TokenizerError))


def names(name: str, value: object) -> list[str]:
    """``value`` if it is a list of names with "input_ids" among them.

    Raises:
        TokenizerError: it is not.
    """
    return list(check(name, value, _INPUT_NAMES, TokenizerError))


def chat_templates(name: str, value: object) -> str | dict[str, str] | None:
    """``value`` if it is a Jinja template, or several by name; older files list them.

    Raises:
        TokenizerError: it is neither.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        entries = [entry for entry in value if isinstance(entry, Mapping)]
        if len(entries) == len(value):
            value = {entry.get("name"): entry.get("template") for entry in entries}
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise TokenizerError(
            f"{name}={value!r:.200}; expected a Jinja template (str), several as a dictionary from "
            "names to templates, or None."
        )
    return dict(value)


def tokens(name: str, value: object) -> list[str] | None:
    """``value`` if it is a list of tokens, or None.

    Raises:
        TokenizerError: it is neither.
    """
    listed = check(name, value, _TOKENS, TokenizerError)
    return None if listed is None else list(listed)
