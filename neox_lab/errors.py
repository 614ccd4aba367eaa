"""Everything that can go wrong, as one small tree.

    NeoxLabError
    ├── ConfigError         (ValueError)   a configuration value is unknown or contradicts another
    ├── CheckpointError     (OSError)      a file is missing, damaged, hostile or does not fit
    │   └── ShapeError      (RuntimeError) its tensors have other shapes than the model's
    ├── DeviceError         (RuntimeError) a device cannot hold what was to be put there
    ├── TokenizerError      (ValueError)   text or ids cannot be turned into what was asked for
    ├── InputError          (ValueError)   tensors given to a forward pass do not fit together
    │   ├── DataError                      rows of a table are wrong; the message names them
    │   └── NoSuchNameError (KeyError)     a mapping has no entry of that name
    ├── TrainingError       (RuntimeError) training cannot go on: the loss is not a number
    ├── HookError           (ValueError)   a hook would read or write something that makes no sense
    │   ├── HookNameError   (KeyError)     no hook point has that name
    │   └── HookNeverFiredError            a hook was placed but its point was not reached
    ├── LostWorkerError     (RuntimeError) whoever did a piece of work elsewhere was lost
    └── GenerationError     (ValueError)   an argument of ``generate`` is unknown or contradictory

    NeoxLabWarning          (UserWarning)  an answer is there, and something about it must be known
    └── PromptWarning                      prompts or answers that make it mean something else

Each class also inherits the built-in exception named beside it, so code that was written
against another library and catches ``ValueError`` or ``OSError`` keeps working. Messages say
what was wrong, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeoxLabError(Exception):
    """Base of every error raised on purpose by this package."""


class NeoxLabWarning(UserWarning):
    """Something about an answer must be known; the message names it."""

    def __init__(self, message: object = "") -> None:
        # Half a character, as a name may have, can neither be sent nor written to a file.
        super().__init__(str(message).encode("utf-8", "backslashreplace").decode("utf-8"))


class PromptWarning(NeoxLabWarning):
    """Prompts or answers make a number mean something else; ``nl.check_prompts`` tells all."""


class ConfigError(NeoxLabError, ValueError):
    """A configuration value is unknown, out of range, or contradicts another."""


class CheckpointError(NeoxLabError, OSError):
    """A checkpoint file is missing, damaged, hostile, or does not fit the model."""


class ShapeError(CheckpointError, RuntimeError):
    """Tensors of a checkpoint have other shapes than the model's."""


class DeviceError(NeoxLabError, RuntimeError):
    """A device cannot hold what was to be put there."""


class TokenizerError(NeoxLabError, ValueError):
    """Text or token ids cannot be turned into what was asked for."""


class InputError(NeoxLabError, ValueError):
    """Tensors given to a forward pass do not fit together."""


class DataError(InputError):
    """Rows of a table of examples are wrong; the message names them."""


class NoSuchNameError(InputError, KeyError):
    """A mapping has no entry of that name; the message says which it has."""

    __str__ = Exception.__str__  # a KeyError would print the message in quotes


class TrainingError(NeoxLabError, RuntimeError):
    """Training cannot go on; the weights are those before the step that failed."""


class HookError(NeoxLabError, ValueError):
    """A hook would read or write something that makes no sense."""


class HookNameError(HookError, KeyError):
    """No hook point of this model has that name."""

    __str__ = Exception.__str__  # a KeyError would print the message in quotes


class HookNeverFiredError(HookError):
    """A hook was placed, the model ran, and the hook's point was never reached."""


class LostWorkerError(NeoxLabError, RuntimeError):
    """A piece of work was lost with the process that did it, again and again."""


class GenerationError(NeoxLabError, ValueError):
    """An argument of ``generate`` is unknown or contradicts another."""


def nearest(name: object, known: Iterable[str], count: int = 3) -> str:
    """A sentence naming the entries of ``known`` closest to ``name``; empty if none is close.

    Capitals count as other letters, unless nothing is close with them: ``'ov'`` is near ``'OV'``.
    """
    if not isinstance(name, str) or len(name) > 100:  # comparing pages of text takes long
        return ""
    names = list(known)
    matches = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if not matches:
        folded = {entry.casefold(): entry for entry in names}
        close = difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.5)
        matches = [folded[entry] for entry in close]
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
