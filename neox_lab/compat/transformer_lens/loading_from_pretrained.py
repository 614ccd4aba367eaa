"""From TransformerLens's names of models and checkpoints to this package's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from neox_lab.checks import check, shown, whole
from neox_lab.compat.transformer_lens.config import HookedTransformerConfig
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError, nearest
from neox_lab.family import GPTNeoXForCausalLM, from_transformers, load
from neox_lab.family.conversion import (
    ForeignModel,
    ForeignTokenizer,
    tokenizer_from_transformers,
)
from neox_lab.hub_models import full_name

CHECKPOINTS = (0, *(2**power for power in range(10)), *range(1000, 144_000, 1000))
"""The steps after which every Pythia model was saved."""

_WITHOUT_MEANING: dict[str, tuple[object, ...]] = {
    "refactor_factored_attn_matrices": (False,),
    "n_devices": (1,),
    "move_to_device": (True,),
    "load_weights": (True,),
    "trust_remote_code": (True, False),
    "first_n_layers": (),
    "n_ctx": (),
    "hf_config_overrides": (),
    "device_map": (),
}
_FLAGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "dtype")


def checkpoint_step(index: int | None, value: int | None) -> int | None:
    """After how many steps a checkpoint was saved; None if none is asked for.

    Raises:
        ConfigError: both are given, or there is no such index.
    """
    if index is not None and value is not None:
        raise ConfigError("Pass checkpoint_index or checkpoint_value, not both.")
    if index is not None:
        most = len(CHECKPOINTS) - 1
        kind = whole(least=-most - 1, most=most)
        return CHECKPOINTS[check("checkpoint_index", index, kind, ConfigError)]
    return value


def get_checkpoint_labels(model_name: str, **_: object) -> tuple[list[int], str]:
    """After how many steps each checkpoint was saved, and the word ``"step"``.

    Args:
        model_name: of a Pythia model; they are all alike.
    """
    return list(CHECKPOINTS), "step"


def get_official_model_name(model_name: str) -> str:
    """The hub's name of a model: ``"pythia-70m"`` is ``"EleutherAI/pythia-70m"``."""
    return full_name(model_name) or model_name


def get_pretrained_model_config(
    model_name: str, revision: str | None = None, **_: object
) -> HookedTransformerConfig:
    """A model's configuration; no weights are read.

    Args:
        model_name: as for ``from_pretrained``.
        revision: branch or commit on the hub.
    """
    config = GPTNeoXConfig.from_pretrained(get_official_model_name(model_name), revision=revision)
    with torch.device("meta"):
        return HookedTransformerConfig(GPTNeoXForCausalLM(config))


def refuse_unknown(arguments: Mapping[str, object]) -> None:
    """Let arguments pass that mean nothing to GPT-NeoX models here, and no others.

    Raises:
        ConfigError: an unknown one, or one that asks for what there is not.
    """
    for name, value in arguments.items():
        if name not in _WITHOUT_MEANING:
            known = [*_WITHOUT_MEANING, *_FLAGS]
            raise ConfigError(f"from_pretrained() has no {name!r}.{nearest(name, known)}")
        if value not in (None, *_WITHOUT_MEANING[name]):
            raise ConfigError(f"{name}={shown(value, 60)} asks for what this package has not.")


def native_model(
    name: str | None,
    given: ForeignModel | GPTNeoXForCausalLM | None,
    tokenizer: ForeignTokenizer | None,
    device: str | torch.device | None,
    dtype: torch.dtype | str,
    revision: str | None,
) -> GPTNeoXForCausalLM:
    """A language model of this package, from files or from a model in memory.

    Raises:
        ConfigError: the model in memory is no language model.
    """
    if given is None:
        model = load(name, revision=revision, dtype=dtype, device=device)
        if tokenizer is not None:
            model.tokenizer = tokenizer_from_transformers(tokenizer)
        return model
    found = given if isinstance(given, GPTNeoXForCausalLM) else from_transformers(given, tokenizer)
    if not isinstance(found, GPTNeoXForCausalLM):
        raise ConfigError(f"hf_model is a {type(found).__name__}; expected GPTNeoXForCausalLM.")
    return found if device is None else found.to(device)
