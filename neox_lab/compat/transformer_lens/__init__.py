"""TransformerLens's names and calls, answered by neox_lab's models.

An existing notebook on a Pythia model changes its import lines::

    import neox_lab.compat.transformer_lens as transformer_lens
    from neox_lab.compat.transformer_lens import HookedTransformer, utils

and a model that is already loaded is taken through the door with a call::

    model = nl.compat.transformer_lens(nl.load("EleutherAI/pythia-70m"))

The module itself answers to that call, so the library keeps the one name it has there. Modules that
are named after a class there can be imported from: ``transformer_lens.FactoredMatrix``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens import (
        evals,
        head_detector,
        hook_points,
        patching,
        utilities,
        utils,
    )
    from neox_lab.compat.transformer_lens.cache import ActivationCache
    from neox_lab.compat.transformer_lens.config import HookedTransformerConfig
    from neox_lab.compat.transformer_lens.factored_matrix import FactoredMatrix
    from neox_lab.compat.transformer_lens.hook_points import HookedRootModule, HookPoint
    from neox_lab.compat.transformer_lens.model import HookedTransformer, TransformerBridge
    from neox_lab.compat.transformer_lens.past_key_value_caching import (
        HookedTransformerKeyValueCache,
    )
    from neox_lab.compat.transformer_lens.svd_interpreter import SVDInterpreter
    from neox_lab.family import GPTNeoXForCausalLM

_HERE = __name__
_HOME = {
    "ActivationCache": "cache",
    "FactoredMatrix": "factored_matrix",
    "HookPoint": "hook_points",
    "HookedRootModule": "hook_points",
    "HookedTransformer": "model",
    "HookedTransformerConfig": "config",
    "HookedTransformerKeyValueCache": "past_key_value_caching",
    "SVDInterpreter": "svd_interpreter",
    "TransformerBridge": "model",
}
_MODULES = (
    "evals",
    "head_detector",
    "hook_points",
    "loading_from_pretrained",
    "past_key_value_caching",
    "patching",
    "utilities",
    "utils",
)

_NAMED_AFTER_A_CLASS = {
    "ActivationCache": "cache",
    "FactoredMatrix": "factored_matrix",
    "HookedTransformer": "model",
    "HookedTransformerConfig": "config",
    "SVDInterpreter": "svd_interpreter",
    "model_bridge": "model",
}
"""Modules of TransformerLens, and where their contents are here; as attributes they are classes."""

_ALIASES = {
    "TransformerLensKeyValueCache": "HookedTransformerKeyValueCache",
    "loading": "loading_from_pretrained",
}

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "SVDInterpreter",
    "TransformerBridge",
    "evals",
    "head_detector",
    "hook_points",
    "patching",
    "utilities",
    "utils",
]


class _Door(ModuleType):
    """This module: a library's name that can be called with a model."""

    def __call__(
        self,
        model: GPTNeoXForCausalLM,
        *,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        fold_value_biases: bool = False,
        default_prepend_bos: bool = False,
    ) -> HookedTransformer:
        """The model, with TransformerLens's names and calls; weights are shared, not copied.

        Args:
            model: a language model of this package.
            fold_ln: move the layer norms' numbers into the weights. This and the next three give a
                model of processed weights, see ``nl.folded``; ``model`` stays as it is.
            center_writing_weights: what is written to the residual stream has a mean of zero.
            center_unembed: the unembedding has a mean of zero over the vocabulary.
            fold_value_biases: move ``b_V`` into ``b_O``.
            default_prepend_bos: put the beginning-of-text token before texts.

        Raises:
            InputError: no language model of this package.
        """
        from neox_lab.compat.transformer_lens.model import HookedTransformer

        hooked = HookedTransformer(model, default_prepend_bos=default_prepend_bos)
        hooked.process_weights_(
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
        )
        return hooked


class _Elsewhere(ModuleType):
    """A module of TransformerLens whose contents are in a module of another name here."""

    def __getattr__(self, name: str) -> object:
        """What the other module has."""
        if name.startswith("__"):
            raise AttributeError(name)
        home = _NAMED_AFTER_A_CLASS[self.__name__.rsplit(".", 1)[-1]]
        return getattr(importlib.import_module(f"{_HERE}.{home}"), name)


sys.modules[__name__].__class__ = _Door
# Import takes what stands there and, unlike after finding a file, leaves the class of this name.
sys.modules.update(
    {f"{_HERE}.{name}": _Elsewhere(f"{_HERE}.{name}") for name in _NAMED_AFTER_A_CLASS}
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    name = _ALIASES.get(name, name)
    if name in _MODULES or name == "model_bridge":
        return importlib.import_module(f"{_HERE}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {_HERE!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{_HERE}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__, *_MODULES})
