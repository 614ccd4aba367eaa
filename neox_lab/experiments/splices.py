"""Experiments on a network with functions spliced in: which of them see these, and how far.

A spliced function (see ``hooks.splicing``) is part of the network as long as it is in place. Where
an experiment computes with weights or activations of its own, past the function, it refuses the
sites at which that would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from neox_lab.checks import require_model
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import HookError
from neox_lab.notices import gathered

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")
IN_BLOCKS = ("blocks.*",)
IN_NETWORK = ("hook_embed*", "blocks.*")
"""Everything below the final layer norm."""
BELOW_OUTPUTS = (
    *(f"blocks.*.attn.hook_{part}*" for part in ("q", "k", "v", "pattern", "z")),
    "blocks.*.mlp.*",
)
"""Within a head or an MLP, before its output matrix."""
IN_NODES = (*BELOW_OUTPUTS, "blocks.*.hook_mlp_out*")
"""Within a head or an MLP, which as a whole are the nodes of ``graph``."""


def check_splices(model: HookedModel, allowed: Sequence[str], why: str) -> None:
    """Refuse functions that are spliced in elsewhere than at ``allowed``.

    Args:
        model: the model.
        allowed: globs of hook names.
        why: a sentence that says what would pass them by.

    Raises:
        HookError: there is one.
        InputError: this is no model.
    """
    require_model(model)
    for site in model.hook_stack.spliced:
        if not any(fnmatchcase(site, glob) for glob in allowed):
            where = " or ".join(allowed)
            raise HookError(
                f"A function is spliced in at {site!r}. {why} "
                + (f"Only functions at {where} can be in place; " if allowed else "")
                + "leave the with block first."
            )


def check_end(model: HookedModel) -> None:
    """Refuse what stands between the last block and the logits, which reads single streams.

    Raises:
        HookError: a function is spliced in there, or a hook that may change something is placed.
        InputError: this is no model.
    """
    check_splices(model, IN_NETWORK, "A lens reads each stream through final layer norm and head.")
    for name in model.hook_stack.changing:
        if not any(fnmatchcase(name, glob) for glob in IN_NETWORK):
            raise HookError(
                f"A hook is placed at {name!r}, which a lens would pass by: it reads each stream "
                "through final layer norm and unembedding as they are. Leave its with block first; "
                "a hook that only looks says so with nl.reads_only."
            )


def with_same_splices(
    model: HookedModel, exact: Callable[Asked, Answer]
) -> Callable[Asked, Answer]:
    """``exact``, if it is asked of the network of now.

    It raises HookError unless the functions spliced in now still are, InputError with dropout on.
    """
    before = model.hook_stack.splices

    def checked(*asked: Asked.args, **named: Asked.kwargs) -> Answer:
        if model.hook_stack.splices != before:
            raise HookError(
                "Other functions are spliced in than when this result was made. check() runs the "
                "model again, so call it where the result was made, inside the with block."
            )
        refuse_dropout(model)
        with gathered():  # told when the result was made
            return exact(*asked, **named)

    return checked
