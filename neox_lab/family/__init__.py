"""The five public classes: where network, hooks, checkpoints and generation meet.

``contract`` says what the rest of the package may ask of a model; begin there.
``base`` is what they share, made of ``hooked`` (hooks and caches), ``text`` (text helpers),
``embeddings``, ``recomputing`` (less memory in training) and ``pretrained`` (loading, saving,
publishing). ``backbone`` is the model without a head, ``heads`` the other four, ``losses`` their
losses, ``loading`` the front door ``nl.load``, ``conversion`` the door for models of transformers.
"""

from neox_lab.family.backbone import GPTNeoXModel
from neox_lab.family.conversion import from_transformers
from neox_lab.family.heads import (
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
)
from neox_lab.family.loading import load

__all__ = [
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "from_transformers",
    "load",
]
