"""Which model something belongs to.

Activations, a training run, later a lens or a dictionary of features, belong to one model:

    structure     the class, the settings that decide what is computed, names and shapes of weights
    weights       their numbers
    tokenizer     from text to ids

``identity(model)`` is a checksum of each. It is stored with what belongs to the model, and
compared before that is used with a model again.

What is read of the weights: all of them up to ``WHOLE`` numbers; in a larger model every weight of
up to ``BLOCKS`` times ``BLOCK`` numbers, and of a larger one as many stretches spread evenly over
it. So another training step or another seed is always seen; that a single row was exchanged in a
large matrix of a large model may not be. About a gigabyte of numbers is read in a second.
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from neox_lab.errors import CheckpointError, NeoxLabWarning

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

WHOLE = 2**26
BLOCKS, BLOCK = 64, 4096
_SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("intermediate_size", "max_position_embeddings", "layer_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "use_parallel_residual", "attention_bias"),
)
_PARTS = ("structure", "weights", "tokenizer")


class Identity(NamedTuple):
    """A checksum of each part of a model.

    Attributes:
        structure: what is computed, with which weights by name and shape.
        weights: their numbers; a dtype that holds the same numbers is the same.
        tokenizer: from text to ids; None without one, which fits any.
    """

    structure: str
    weights: str
    tokenizer: str | None


def identity(model: HookedModel) -> Identity:
    """Which model this is; see the module.

    Args:
        model: any of the classes, its weights in memory or mapped from files.
    """
    named = dict(model.named_parameters())
    shapes = sorted((name, list(weight.shape)) for name, weight in named.items())
    settings = {name: getattr(model.config, name) for name in _SETTINGS}
    described = [model.head, settings, shapes, *_adapters(model)]
    structure = json.dumps(described, sort_keys=True, default=str)
    return Identity(
        hashlib.sha256(structure.encode()).hexdigest(),
        weights_print(named.items(), functools.partial(numbers_of, model)),
        None if model.tokenizer is None else _tokenizer_print(model.tokenizer),
    )


def _adapters(model: HookedModel) -> list[list[object]]:
    """How adapters stand in the model: which are active, with which scaling."""
    told = ("scaling", "active_adapters", "disable_adapters")  # peft's names
    return [
        [name, *(getattr(part, what, None) for what in told)]
        for name, part in model.named_modules()
        if isinstance(getattr(part, "scaling", None), dict)
    ]


def numbers_of(model: HookedModel | nn.Module, name: str, weight: Tensor) -> Tensor:
    """A weight with its numbers, of one that is a mere description (``meta``): from its file.

    Args:
        model: whose weight.
        name: of the parameter or buffer.
        weight: the parameter.
    """
    if not weight.is_meta:
        return weight
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(dict(model.named_modules())[owner], leaf)
    return found


def weights_print(
    named: Iterable[tuple[str, Tensor]], look_up: Callable[[str, Tensor], Tensor] | None = None
) -> str:
    """The checksum of weights.

    Args:
        named: names and weights, in any order.
        look_up: from a name and a weight that may be a mere description to one with its numbers.
    """
    weights = sorted(named)
    whole = sum(weight.numel() for _, weight in weights) <= WHOLE
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(name.encode())
        if look_up is not None:
            weight = look_up(name, weight)
        if weight.is_meta:
            continue
        flat = weight.detach().flatten()
        if not whole and len(flat) > BLOCKS * BLOCK:
            every = len(flat) // BLOCKS
            blocks = flat[: every * BLOCKS].view(BLOCKS, every)[:, :BLOCK]
            flat = torch.cat((blocks.flatten(), flat[-BLOCK:]))
        if flat.dtype != torch.float64:
            flat = flat.float()  # the same numbers in a wider dtype are the same weights
        digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_print(tokenizer: GPTNeoXTokenizerFast) -> str:
    from neox_lab.tokenizer.pipeline import encoding_state  # a tokenizer is there: imported already

    backend = tokenizer.backend_tokenizer
    with encoding_state(backend):  # how rows are cut and padded is no part of it
        return hashlib.sha256(backend.to_str().encode()).hexdigest()


def refuse_another(stored: object, now: Identity, what: str) -> None:
    """Raise unless a model is the one that something stored belongs to.

    Args:
        stored: its identity as it was read: a list, or None in files of earlier versions, which
            are taken with a warning.
        now: the identity of the model that it is to be used with.
        what: what was stored, for messages.

    Raises:
        CheckpointError: it belongs to another model; the message says in what they differ.
    """
    if stored is None:
        warnings.warn(
            f"{what} does not say which model it belongs to, so nobody checks that it is this one.",
            NeoxLabWarning,
            stacklevel=3,
        )
        return
    if not isinstance(stored, list | tuple) or len(stored) != len(_PARTS):
        raise CheckpointError(f"{what} says in no known way which model it belongs to.")
    if wrong := differing(stored, now):
        raise CheckpointError(
            f"{what} belongs to another model: {' and '.join(wrong)} differ. Use it with the "
            "model that it was made with, or make it anew with this one."
        )


def differing(one: Sequence[object], other: Sequence[object]) -> list[str]:
    """The parts in which two identities differ; what one of them lacks fits any."""
    return [
        part
        for part, first, second in zip(_PARTS, one, other, strict=True)
        if first != second and None not in (first, second)
    ]
