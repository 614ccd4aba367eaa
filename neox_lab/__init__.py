"""neox_lab: look inside GPT-NeoX and Pythia models.

    import neox_lab as nl

    model = nl.load()                                   # small built-in model, no network
    output, cache = model.run_with_cache("The king went to the city of")
    cache["pattern", 0]                                 # attention of layer 0

Names are loaded when they are first used, so importing the package costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOME = {
    "ActivationCache": "neox_lab.hooks.cache",
    "FactoredMatrix": "neox_lab.family.factored",
    "GPTNeoXConfig": "neox_lab.config",
    "GPTNeoXTokenizerFast": "neox_lab.tokenizer",
    "GPTNeoXModel": "neox_lab.family",
    "GPTNeoXForCausalLM": "neox_lab.family",
    "GPTNeoXForQuestionAnswering": "neox_lab.family",
    "GPTNeoXForSequenceClassification": "neox_lab.family",
    "GPTNeoXForTokenClassification": "neox_lab.family",
    "HookPoint": "neox_lab.model.hook_points",
    "check_prompts": "neox_lab.experiments.prompt_doctor.doctor",
    "explore": "neox_lab.widgets.explorer",
    "folded": "neox_lab.family.folded",
    "from_transformers": "neox_lab.family",
    "load": "neox_lab.family",
    "SplicedPoint": "neox_lab.hooks",
    "reads_only": "neox_lab.hooks",
}
_ROOMS = {
    "activations": "neox_lab.activations",
    "attribution": "neox_lab.experiments.attribution",
    "circuits": "neox_lab.circuits",
    "compat": "neox_lab.compat",
    "detect": "neox_lab.experiments.detection",
    "dynamics": "neox_lab.dynamics",
    "errors": "neox_lab.errors",
    "features": "neox_lab.features",
    "generation": "neox_lab.generation",
    "gym": "neox_lab.gym",
    "interchange": "neox_lab.interchange",
    "lens": "neox_lab.experiments.lens",
    "patching": "neox_lab.experiments.patching",
    "probing": "neox_lab.experiments.probing",
    "sae": "neox_lab.sae",
    "steering": "neox_lab.steering",
    "tasks": "neox_lab.tasks",
    "views": "neox_lab.views",
    "widgets": "neox_lab.widgets",
}

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "GPTNeoXConfig",
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXTokenizerFast",
    "HookPoint",
    "SplicedPoint",
    "activations",
    "attribution",
    "check_prompts",
    "circuits",
    "compat",
    "detect",
    "dynamics",
    "errors",
    "explore",
    "features",
    "folded",
    "from_transformers",
    "generation",
    "gym",
    "interchange",
    "lens",
    "load",
    "patching",
    "probing",
    "reads_only",
    "sae",
    "steering",
    "tasks",
    "views",
    "widgets",
]

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from neox_lab import (
        activations,
        circuits,
        compat,
        dynamics,
        errors,
        features,
        generation,
        gym,
        interchange,
        sae,
        steering,
        tasks,
        views,
        widgets,
    )
    from neox_lab.config import GPTNeoXConfig
    from neox_lab.experiments import attribution, lens, patching, probing
    from neox_lab.experiments import detection as detect
    from neox_lab.experiments.prompt_doctor.doctor import check_prompts
    from neox_lab.family import (
        GPTNeoXForCausalLM,
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
        GPTNeoXModel,
        from_transformers,
        load,
    )
    from neox_lab.family.factored import FactoredMatrix
    from neox_lab.family.folded import folded
    from neox_lab.hooks import SplicedPoint, reads_only
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.model.hook_points import HookPoint
    from neox_lab.tokenizer import GPTNeoXTokenizerFast
    from neox_lab.widgets.explorer import explore


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    if name not in _HOME:
        from neox_lab.other_dictionary_names import SAE_ROOM
        from neox_lab.other_names import PACKAGE, ours

        meant = ours(name, PACKAGE, SAE_ROOM[0])
        raise AttributeError(f"module 'neox_lab' has no attribute {name!r}.{meant}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext neox_lab``: tab completion of hook names inside strings."""
    from neox_lab.completion import install

    install(shell)
