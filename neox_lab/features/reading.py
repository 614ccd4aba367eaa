"""Which features of a dictionary are active in texts, for every question about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from neox_lab.checks import require_model, shown
from neox_lab.errors import InputError
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.features.misses import missed_share
from neox_lab.hooks.names import exact
from neox_lab.sae import (
    Codes,
    Crosscoder,
    CrossLayerTranscoder,
    Dictionary,
    TrainedDictionary,
    TranscoderLayer,
)
from neox_lab.sae.splicing import ERROR, INPUT, RECONS

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


OfOneSite = Dictionary | TranscoderLayer
"""What has features that are read at one place."""


def require_dictionary(dictionary: object) -> None:
    """Refuse what is no dictionary.

    Raises:
        InputError: it is none.
    """
    if not isinstance(dictionary, OfOneSite):
        hint = ""
        if isinstance(dictionary, CrossLayerTranscoder):
            hint = f" It has features in each of {dictionary.layers} layers; ask of one: .layer(0)."
        elif isinstance(dictionary, Crosscoder):
            hint = " A crosscoder's features are read at several; see its encode."
        elif isinstance(dictionary, TrainedDictionary):
            hint = " The result of training holds it as .dictionary."
        elif isinstance(dictionary, Mapping) and dictionary:
            hint = f" Give one of the mapping's, such as [{shown(next(iter(dictionary)))}]."
        raise InputError(
            f"dictionary={shown(dictionary)}; expected a Dictionary, such as nl.sae.load gives."
            f"{hint}"
        )


def require_device(model: HookedModel, what: object, device: torch.device) -> None:
    """Refuse what is on another device than the model, or than its first one.

    Raises:
        InputError: it is.
    """
    if device != model.device:
        raise InputError(
            f"{what!r} is on {device}, the model on {model.device}; move one: "
            f"dictionary.to({str(model.device)!r})."
        )


def written_site(model: HookedModel, dictionary: OfOneSite) -> str:
    """Full name of the hook point that a dictionary writes, where its own points stand.

    Raises:
        InputError: no model, no dictionary, or one that is where its layer is instead of on the
            first of the model's devices.
        HookNameError: the model has no such site.
    """
    require_model(model)
    require_dictionary(dictionary)
    if model.backbone.devices is not None:  # on one device the splice refuses it
        if isinstance(dictionary, Dictionary):
            weight = dictionary.W_dec
        else:
            weight = dictionary.transcoder.b_dec[0]
        require_device(model, dictionary, weight.device)
    return exact(dictionary.site_out, model.hook_points)


@torch.no_grad()
def encoded(model: HookedModel, dictionary: OfOneSite, prompts: Prompts) -> tuple[Codes, float]:
    """Codes ``[batch, pos, slot]`` of texts, padding included, and the share that they miss.

    Raises:
        InputError: no dictionary.
        HookError: it does not fit the model.
    """
    site = written_site(model, dictionary)
    names = [f"{site}.{part}" for part in (INPUT, RECONS, ERROR)]
    with model.spliced(dictionary):
        _, cache = model.run_with_cache(prompts.ids, names, attention_mask=prompts.mask)
    read, written, error = (cache[name] for name in names)
    return dictionary.encode(read.flatten(2)), missed_share(written, error, prompts.own)
