"""The settings of a tokenizer: their names, defaults, and what values they take.

A setting has the same name as a constructor argument, as an attribute, and as a key of
tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer.arguments import SIDES, choose

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
DEFAULTS: dict[str, Any] = {
    "padding_side": "right",
    "truncation_side": "right",
    "model_max_length": UNLIMITED,
    "model_input_names": ["input_ids", "attention_mask"],
    "split_special_tokens": False,
    "clean_up_tokenization_spaces": False,
}
SETTINGS = (
    *ROLES,
    *DEFAULTS,
    "extra_special_tokens",
    "additional_special_tokens",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "trim_offsets",
)


class Checked(Generic[Value]):
    """An attribute whose value passes through ``check(name, value)`` whenever it is set."""

    def __init__(self, check: Callable[[str, Any], Value]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type | None = None) -> Value:
        value: Value = owner.__dict__[self.name]
        return value

    def __set__(self, owner: Any, value: Any) -> None:
        owner.__dict__[self.name] = self.check(self.name, value)


def side(name: str, value: Any) -> str:
    """Check for "right" or "left"."""
    return choose(name, value, SIDES)


def flag(name: str, value: Any) -> bool:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise TokenizerError(f"{name} must be True or False, and is {value!r}.")
    return value


def limit(name: str, value: Any) -> int:
    """Check for a length in tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise TokenizerError(f"{name} must be a positive number of tokens, and is {value!r}.")
    return int(value)


def names(name: str, value: Any) -> list[str]:
    """Check for a list of names with "input_ids" among them."""
    if not isinstance(value, list | tuple) or "input_ids" not in value:
        raise TokenizerError(f"{name} must be a list with 'input_ids' in it, and is {value!r}.")
    return list(value)
