"""Modules that know what other libraries of dictionaries call their parts."""

from __future__ import annotations

from torch import Tensor, nn

from neox_lab.other_dictionary_names import DICTIONARY
from neox_lab.other_names import ours


class Answering(nn.Module):
    """A module that answers to names which other libraries have with ours."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """A parameter, buffer or module; called where an object has no such attribute itself.

        Raises:
            AttributeError: there is none; what other libraries call otherwise is told.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not (hint := ours(name, *DICTIONARY)):
                raise
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.{hint}")
