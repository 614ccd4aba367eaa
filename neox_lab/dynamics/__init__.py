"""Questions over training: the same measure at many revisions of a model, after an audit of these.

    nl.dynamics.revisions("EleutherAI/pythia-70m")      # which there are, and what each holds
    nl.dynamics.audit("EleutherAI/pythia-2.8b")         # which are not what their names say
    nl.dynamics.run(nl.gym.evaluate)                    # the built-in model's tasks over training
    nl.dynamics.compare(early, late, texts)             # two revisions that are loaded

Every function takes an id on the hub, a directory of checkpoints, or nothing: the built-in model.
"""

from __future__ import annotations

from neox_lab.dynamics.auditing import AuditResult, audit
from neox_lab.dynamics.comparing import ComparisonResult, compare
from neox_lab.dynamics.listing import revisions
from neox_lab.dynamics.result import DynamicsResult
from neox_lab.dynamics.running import read, run
from neox_lab.dynamics.tensors import TensorMeasure, tensor_measure

__all__ = [
    "AuditResult",
    "ComparisonResult",
    "DynamicsResult",
    "TensorMeasure",
    "audit",
    "compare",
    "read",
    "revisions",
    "run",
    "tensor_measure",
]


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__})
