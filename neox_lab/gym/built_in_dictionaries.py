"""Dictionaries of the built-in model, which come with the package.

    dictionaries = nl.gym.dictionaries(model)
    dictionaries["resid_post_2"]          # TopK, of the residual stream after layer 2
    dictionaries["mlp_1"]                 # a transcoder, of the MLP of layer 1
    nl.gym.dictionary_card()              # how good each is
    nl.gym.named_features()               # features that stand for names, places, years, ...

They lie in ``weights/dictionaries`` in sparsify's layout, so ``nl.sae.load`` and that library read
them too; ``dictionary_training`` is the script that made them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neox_lab import safetensors_files
from neox_lab.checks import require_model
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import read_json, staged_files
from neox_lab.frames import make_frame
from neox_lab.model.identity import identity
from neox_lab.named import Named
from neox_lab.sae import Dictionary, load
from neox_lab.sae.activations import TopK

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel

FOLDER = Path(__file__).parent / "weights" / "dictionaries"


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
    return Named(
        "dictionary",
        {
            row["dictionary"]: cast(Dictionary, load(FOLDER, site=row["site"], device=device))
            for row in _card()["dictionaries"]
        },
    )


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


def write(folder: Path, dictionary: Dictionary) -> None:
    """Write a TopK dictionary as sparsify does, in half precision.

    Args:
        folder: its name is the module's, ``layers.2`` or ``layers.2.mlp``.
        dictionary: an autoencoder that takes ``b_dec`` from its input, or a transcoder that does
            not, without a skip path.

    Raises:
        CheckpointError: it is of another kind, or the files cannot be written.
    """
    activation = dictionary.activation
    fits = dictionary.subtracts_b_dec != dictionary.is_transcoder and dictionary.W_skip is None
    if not isinstance(activation, TopK) or not fits:
        raise CheckpointError(f"The gym has TopK dictionaries without a skip path: {dictionary!r}")
    tensors = {
        "encoder.weight": dictionary.W_enc.T,
        "encoder.bias": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    settings = {
        "activation": "topk",
        "d_in": dictionary.d_in,
        "k": activation.k,
        "num_latents": dictionary.latents,
        "normalize_decoder": True,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": dictionary.is_transcoder,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staged_files() as stage:
            halves = {name: tensor.detach().half() for name, tensor in tensors.items()}
            safetensors_files.write(stage(folder / "sae.safetensors"), halves, {"format": "pt"})
            stage(folder / "cfg.json").write_text(json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"Cannot write a dictionary to {str(folder)!r}: {error}") from error
