"""A model that transformers holds, as one of the five classes here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import CheckpointError, ConfigError, InputError
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.heads import CLASSES, GPTNeoXForCausalLM
from neox_lab.generation import GenerationConfig

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast


class _Writes(Protocol):
    """A configuration of either library."""

    def to_json_string(self) -> str:
        """What ``config.json`` holds."""


class ForeignModel(Protocol):
    """What is read of a model of transformers."""

    @property
    def config(self) -> _Writes:
        """Its shape."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its weights."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its weights."""


class ForeignTokenizer(Protocol):
    """What is read of a tokenizer of transformers."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write its files."""


def from_transformers(
    model: ForeignModel, tokenizer: ForeignTokenizer | None = None
) -> GPTNeoXPreTrainedModel:
    """The same model as one of ours: same class, weights, dtype and device, in evaluation mode.

    Args:
        model: a GPT-NeoX model of transformers; its weights are copied.
        tokenizer: becomes ``model.tokenizer``; of either library.

    Returns:
        A model of the class with the same name.

    Raises:
        ConfigError: it is no GPT-NeoX model.
        CheckpointError: it has parts that the class here has not, such as adapters: merge them
            into the weights first.
    """
    names = [each.__name__ for each in type(model).__mro__]
    classes = {each.__name__: each for each in CLASSES.values()}
    found = next((classes[name] for name in names if name in classes), None)
    if found is None:
        raise ConfigError(
            f"from_transformers() takes one of {', '.join(classes)}; got a {names[0]}."
        )
    made, info = found.from_pretrained(
        None,
        config=GPTNeoXConfig.from_dict(json.loads(model.config.to_json_string())),
        state_dict=dict(model.state_dict()),
        dtype=model.dtype,
        device_map=model.device,
        output_loading_info=True,
    )
    if parts := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise CheckpointError(
            f"The weights of this {names[0]} are not those of the class: {', '.join(parts[:3])}"
            f"{', ...' if len(parts) > 3 else ''}. If it has adapters, merge them first."
        )
    settings = getattr(model, "generation_config", None)
    if isinstance(made, GPTNeoXForCausalLM) and settings is not None:
        made.generation_config = GenerationConfig.from_dict(json.loads(settings.to_json_string()))
    if tokenizer is not None:
        made.tokenizer = tokenizer_from_transformers(tokenizer)
    return made


def tokenizer_from_transformers(tokenizer: ForeignTokenizer) -> GPTNeoXTokenizerFast:
    """A tokenizer of either library as ours, by way of its files.

    Raises:
        InputError: it is none.
    """
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

    if isinstance(tokenizer, GPTNeoXTokenizerFast):
        return tokenizer
    if isinstance(tokenizer, type) or not hasattr(tokenizer, "save_pretrained"):
        raise InputError(f"tokenizer={shown(tokenizer)}; expected one of transformers', or None.")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return GPTNeoXTokenizerFast.from_pretrained(folder)
