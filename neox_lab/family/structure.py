"""What a model is made of, noted down so that it can be put back.

Adapters are put in and taken out module by module; whoever is stopped on the way would leave a
model that is neither what it was nor what it was to become::

    with all_or_nothing(model):
        inject_adapter_in_model(config, model)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from neox_lab import interrupts
from neox_lab.family.contract import HookedModel


class Structure:
    """The modules, parameters, hooks and switches of a model at one moment; no copies of weights.

    Numbers that are written into a weight afterwards stay.
    """

    def __init__(self, model: nn.Module) -> None:
        """Note what ``model`` is made of."""
        self._modules = [_noted(module) for module in model.modules()]
        self._learning = [(p, p.requires_grad) for p in model.parameters()]

    def put_back(self) -> None:
        """Make the model of the same modules and parameters again."""
        for module, attributes, tables in self._modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for table, entries in tables:
                table.clear()
                table.update(entries)
        for parameter, learns in self._learning:
            parameter.requires_grad_(learns)


def _noted(
    module: nn.Module,
) -> tuple[nn.Module, dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]:
    """A module, its attributes, and those that are dictionaries with their entries."""
    attributes = dict(module.__dict__)
    tables = [(table, dict(table)) for table in attributes.values() if isinstance(table, dict)]
    return module, attributes, tables


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """If the ``with`` block raises (an interrupt counts), the model is made of what it was before.

    Args:
        model: whose modules change in the block.
    """
    before = Structure(model)
    done = False

    def undo() -> None:
        if not done:
            before.put_back()

    with interrupts.certainly(undo):
        yield
        done = True


@contextmanager
def evaluating(model: HookedModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside a ``with`` block; each module's own mode afterwards."""
    before = [(module, module.training) for module in model.modules()]

    def undo() -> None:
        for module, training in before:
            module.training = training

    with interrupts.certainly(undo):
        model.eval()
        yield
