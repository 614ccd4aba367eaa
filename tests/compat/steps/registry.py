"""What a step is, and all of them by name.

A step is a cell of a notebook as people write it for TransformerLens: it uses nothing but the
library it is given, and returns what the cell would show. Its parameters say what it needs::

    tl      the library: transformer_lens, or neox_lab.compat.transformer_lens
    model   a model with TransformerLens's default processing (folded and centred)
    raw     the same without processing

Gradients are off, as the demos turn them off; ``@step(grad=True)`` leaves them on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODEL = "pythia-70m"
"""The name under which the checkpoint of the tests lies in the hub's cache."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: ``demo/step``.
        function: what runs.
        grad: whether gradients are on.
    """

    name: str
    function: Callable[..., Any]
    grad: bool


STEPS: dict[str, Step] = {}


def step(function: Callable[..., Any] | None = None, *, grad: bool = False) -> Callable[..., Any]:
    """Enter a function as a step of the demo that its file is named after."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        name = f"{function.__module__.rpartition('.')[2]}/{function.__name__}"
        assert name not in STEPS, f"two steps are called {name}"
        STEPS[name] = Step(name, function, grad)
        return function

    return enter if function is None else enter(function)
