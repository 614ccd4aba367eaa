"""Our own port of the calls that TransformerLens's public notebooks and the ARENA course make.

One file for each notebook. The texts and the code are ours; the calls are theirs.
"""

import importlib
import pkgutil

from steps.registry import MODEL, STEPS, Step

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"steps.{_module.name}")

__all__ = ["MODEL", "STEPS", "Step"]
