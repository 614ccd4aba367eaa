"""Checkpoints of one training, one of them in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from neox_lab.built_in import is_inside
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM, load
from neox_lab.hub import HubOptions, refuse_revision

Load = Callable[[], GPTNeoXForCausalLM]


def check_writes(model: object) -> None:
    """Refuse what the explorer cannot read.

    Raises:
        InputError: a model that does not predict tokens, or has no tokenizer.
    """
    if isinstance(compiled := getattr(model, "_orig_mod", None), GPTNeoXForCausalLM):
        raise InputError(
            "This model is wrapped by torch.compile, which has nothing to win here: give the "
            f"explorer the {type(compiled).__name__} that went in, model._orig_mod."
        )
    if not isinstance(model, GPTNeoXForCausalLM):
        raise InputError(
            f"{type(model).__name__} does not predict tokens; the explorer needs a "
            "GPTNeoXForCausalLM, such as nl.load(name)."
        )
    if model.tokenizer is None:
        raise InputError("The explorer reads text, and this model has no tokenizer: set one.")


class Revisions:
    """Names of checkpoints, and how each is loaded.

    Args:
        model: the one that is loaded already.
        given: names of its revisions in the order of training, the last of them ``model`` itself,
            or a function that makes the model for each name.

    Attributes:
        names: of all, in the order of training.
        chosen: the name of ``model``.
        by_name: whether their names are all it takes to load them.

    Raises:
        InputError: fewer than two names.
        CheckpointError: names of revisions, and the model came from a directory, which is one.
    """

    def __init__(
        self, model: GPTNeoXForCausalLM, given: Sequence[str] | Mapping[str, Load]
    ) -> None:
        named = not isinstance(given, str) and all(isinstance(name, str) for name in given)
        if not named or len(set(given)) < 2:
            raise InputError(f"revisions={given!r}; expected at least two names, or a mapping.")
        self.names = tuple(given)
        self.chosen = self.names[-1]
        self.by_name = not isinstance(given, Mapping)
        self._loads = dict(given) if isinstance(given, Mapping) else _by_name(model, self.names)
        self._now, self._model = self.chosen, model

    def model(self, name: str) -> GPTNeoXForCausalLM:
        """The checkpoint of a name; the one before is let go."""
        if name != self._now:
            model = self._loads[name]()
            check_writes(model)
            self._now, self._model = name, model
        return self._model


def _by_name(model: GPTNeoXForCausalLM, names: Sequence[str]) -> dict[str, Load]:
    """Revisions of the repository that ``model`` came from, or of the built-in model.

    Raises:
        CheckpointError: it came from a directory, which is one revision.
    """
    source = model.name_or_path
    built_in = is_inside(source)
    if not built_in and os.path.isdir(source):
        for name in names[:-1]:  # the last one is loaded already
            refuse_revision(Path(source), HubOptions(revision=name))

    def loading(name: str) -> Load:
        return lambda: load(None if built_in else source, revision=name)

    return {name: loading(name) for name in names}
