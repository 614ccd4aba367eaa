"""A dictionary is tried on some text as it is loaded, and what is odd is warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neox_lab.data.encoding import token_ids
from neox_lab.errors import TokenizerError
from neox_lab.notices import tell
from neox_lab.sae.checking import check_fit, require_fit
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.sample_texts import TEXTS
from neox_lab.sae.sites_checking import require_sites

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.sae.dictionary import Dictionary

_TRIED = 32  # tokens of each text: some seconds for 32,768 features


def prove(dictionary: Dictionary, model: HookedModel) -> None:
    """Try a dictionary on the built-in sentences, and warn of what is odd.

    Raises:
        HookError: it does not fit into the model at all.
        InputError: dropout is on.
    """
    require_fit(dictionary, model)
    ids = _sample(model)
    for warning in check_fit(dictionary, model, ids).warnings if ids else []:
        tell(warning)


def prove_sites(dictionary: CrossLayerTranscoder | Crosscoder, model: HookedModel) -> None:
    """The same for one of several sites; of a crosscoder only whether it fits.

    Raises:
        HookError: it does not fit into the model at all.
        InputError: dropout is on.
    """
    if isinstance(dictionary, Crosscoder):
        for site in dictionary.sites:
            require_sites(repr(dictionary), (dictionary.d, dictionary.d), model, site, site)
        return
    for sites in zip(dictionary.sites_in, dictionary.sites_out, strict=True):
        require_sites(repr(dictionary), (dictionary.d_in, dictionary.d_out), model, *sites)
    ids = _sample(model)
    for warning in dictionary.check(model, ids).warnings if ids else []:
        tell(warning)


def _sample(model: HookedModel) -> list[list[int]]:
    """Tokens of the built-in sentences; none where the model has no tokenizer."""
    most = min(_TRIED, model.config.max_position_embeddings)
    try:
        return [row[:most] for row in token_ids(model, TEXTS)]
    except TokenizerError:
        tell("The model has no tokenizer, so the dictionary was not tried on any text.")
        return []
