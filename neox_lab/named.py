"""Mappings that say what they have when they are asked for something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from neox_lab.checks import shown
from neox_lab.errors import NoSuchNameError, nearest

Value = TypeVar("Value")


class Named(dict[str, Value]):
    """Things by name.

    Attributes:
        noun: what one is called, such as ``"dictionary"``.
    """

    def __init__(self, noun: str, entries: Mapping[str, Value]) -> None:
        """See the class."""
        super().__init__(entries)
        self.noun = noun

    def __missing__(self, name: object) -> Value:
        """Called for a name that is not there.

        Raises:
            NoSuchNameError: says which are there.
        """
        raise NoSuchNameError(
            f"No {self.noun} is called {shown(name, 60)}; there are {', '.join(self)}."
            f"{nearest(name, self)}"
        )
