"""The registry of output heads: what can stand on top of the network.

A head is one linear map on the final residual stream. What the rest of the package must know of
it is said once, here: hook points, looking up an output by its name, metrics, messages and
``nl.load`` are made from these entries.

To add a head: an entry here, its class with its loss in ``neox_lab/family/heads.py``, and a file
in ``neox_lab/tasks`` that trains and uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """What the package knows of a head.

    Attributes:
        name: what ``nl.load(head=...)`` calls it.
        module: the linear map's name in its class.
        outputs: what its numbers stand for: tokens (``"vocab"``), the labels of the configuration
            (``"label"``), or these names.
        per_text: one answer a text, read at its last token, instead of one a position.
        hook: first part of the names of its two hook points, ``hook_in`` and ``hook_out``.
        reader: the linear map in words, as in "what ... reads".
        meaning: what passes ``hook_out``, which sees every position.
        aliases: names of the module besides its own.
        model: a model with this head, in words.
        logit: what a title calls one output.
        difference: what a title calls one output minus another.
    """

    name: str
    module: str
    outputs: Literal["vocab", "label"] | tuple[str, ...]
    per_text: bool = False
    hook: str
    reader: str
    meaning: str
    aliases: tuple[str, ...] = ()
    model: str
    logit: str
    difference: str

    @property
    def axis(self) -> str:
        """Name of the axis of its outputs: ``vocab``, ``label``, or their number."""
        return self.outputs if isinstance(self.outputs, str) else str(len(self.outputs))

    def labels(self, config: GPTNeoXConfig) -> Mapping[str, int] | None:
        """Numbers of its outputs by name; None where they are tokens.

        Args:
            config: of the model that has the head.
        """
        if self.outputs == "vocab":
            return None
        if self.outputs == "label":
            return {label: number for number, label in config.id2label.items()}
        return {name: number for number, name in enumerate(self.outputs)}


OUTPUT_HEADS: dict[str, OutputHead] = {
    head.name: head
    for head in (
        OutputHead(
            name="causal-lm",
            module="embed_out",
            outputs="vocab",
            hook="unembed",
            reader="the unembedding",
            meaning="logits",
            aliases=("lm_head",),
            model="a language model",
            logit="logit",
            difference="logit difference",
        ),
        OutputHead(
            name="sequence-classification",
            module="score",
            outputs="label",
            per_text=True,
            hook="score",
            reader="the classifier",
            meaning="class logits at every position",
            model="a text classifier",
            logit="class logit",
            difference="class logit difference",
        ),
        OutputHead(
            name="token-classification",
            module="classifier",
            outputs="label",
            hook="classifier",
            reader="the tagger",
            meaning="tag logits",
            model="a tagger",
            logit="tag logit",
            difference="tag logit difference",
        ),
        OutputHead(
            name="question-answering",
            module="qa_outputs",
            outputs=("start", "end"),
            hook="qa_outputs",
            reader="the span finder",
            meaning="start and end logits",
            model="a model for question answering",
            logit="span logit",
            difference="start and end logit difference",
        ),
    )
}
"""Every head by its name; the class ``base``, the network alone, has none."""


def answers_per_text(head: str) -> bool:
    """Whether a model with this head gives one answer a text, instead of one a position."""
    return head in OUTPUT_HEADS and OUTPUT_HEADS[head].per_text


def require_head(head: str, expected: str) -> None:
    """Refuse a model with another head than the one that a question needs.

    Args:
        head: the model's own, ``model.head``.
        expected: a name in ``OUTPUT_HEADS``.

    Raises:
        InputError: they differ; the message says how to load the other.
    """
    if head != expected:
        labels = ", labels=[...]" if OUTPUT_HEADS[expected].outputs == "label" else ""
        raise InputError(
            f"this model's head is {head!r}; expected {expected!r}: "
            f"nl.load(..., head={expected!r}{labels})"
        )
