"""Dictionaries of the built-in model, which come with the package.

    dictionaries = nl.gym.dictionaries(model)
    dictionaries["resid_post_2"]          # TopK, of the residual stream after layer 2
    dictionaries["mlp_1"]                 # a transcoder, of the MLP of layer 1
    nl.gym.dictionary_card()              # how good each is
    nl.gym.named_features()               # features that stand for names, places, years, ...

``dictionary_training`` is the script that made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from neox_lab.checks import require_model
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import read_json
from neox_lab.frames import make_frame
from neox_lab.model.identity import identity
from neox_lab.sae import Dictionary, Weights
from neox_lab.sae.activations import TopK
from neox_lab.safetensors_files import FileFormat

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel

FOLDER = Path(__file__).parent / "weights" / "dictionaries"
_FORMAT = FileFormat("dictionary of the gym", "neox_lab gym dictionary 1")
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def dictionaries(model: HookedModel | None = None) -> dict[str, Dictionary]:
    """The built-in model's dictionaries: ``resid_post_0`` to ``_3`` and ``mlp_0`` to ``_3``.

    Args:
        model: what they will be used on; None if it need not be checked that they belong to it.

    Returns:
        Dictionaries by name, float32, on the model's device. Those called ``mlp`` are transcoders.

    Raises:
        InputError: the model is not the one they were trained on.
    """
    if model is not None:
        require_model(model)
        if identity(model).weights != _card()["model"]["weights"]:
            raise InputError(
                "These dictionaries belong to the built-in model, nl.load(); the weights of this "
                "one are others. nl.sae.train makes dictionaries of any model."
            )
    device = "cpu" if model is None else model.device
    paths = sorted(FOLDER.glob("*.safetensors"), key=lambda path: path.stem)
    return {path.stem: read(path).to(device) for path in paths}


def dictionary_card() -> pd.DataFrame:
    """How good each dictionary is, on contexts that it was not trained on.

    ``fvu``, ``l0`` and ``dead`` (features that were active at no token), and the cross-entropy in
    nats: of the model as it is (``ce``), with what the dictionary writes in place of the site
    (``ce_dictionary``), with zeros there (``ce_zero``), and ``ce_recovered``, which is 1 where the
    dictionary loses nothing and 0 where it is no better than zeros.
    """
    return make_frame(_card()["dictionaries"])


def named_features() -> pd.DataFrame:
    """For each thing that the world has, the feature that stands for it, in every dictionary.

    A feature was chosen on some contexts, and ``precision``, ``recall`` and ``f1`` measured on
    others: it says yes where its activation is greater than ``above``. ``control`` is the F1 of a
    feature chosen in the same way for as many tokens at random.
    """
    frame = make_frame(_card()["features"])
    return frame.sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def _card() -> dict[str, Any]:
    return read_json(FOLDER / "card.json")


def write(path: Path, dictionary: Dictionary) -> None:
    """Write a TopK dictionary without a skip path, in half precision.

    Args:
        path: the file.
        dictionary: it.

    Raises:
        CheckpointError: it is of another kind, or the file cannot be written.
    """
    activation = dictionary.activation
    if not isinstance(activation, TopK) or dictionary.W_skip is not None:
        raise CheckpointError(f"The gym has TopK dictionaries without a skip path: {dictionary!r}")
    _FORMAT.write(
        path,
        {name: getattr(dictionary, name).detach().half() for name in _TENSORS},
        {
            "k": activation.k,
            "site_in": dictionary.site_in,
            "site_out": dictionary.site_out,
            "subtracts_b_dec": dictionary.subtracts_b_dec,
            "sources": dictionary.sources,
        },
    )


def read(path: Path) -> Dictionary:
    """A dictionary that ``write`` wrote, in float32.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    tensors, description = _FORMAT.read(path)
    return Dictionary(
        Weights(*(tensors[name].to(torch.float32) for name in _TENSORS)),
        TopK(cast(int, description["k"])),
        site_in=cast(str, description["site_in"]),
        site_out=cast(str, description["site_out"]),
        subtracts_b_dec=cast(bool, description["subtracts_b_dec"]),
        kind="TopK",
        sources=cast(Mapping[str, str], description["sources"]),
    )
