"""The front door: one call from a name to a model that is ready to be looked into."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import torch

from neox_lab.built_in import weights_directory
from neox_lab.checks import check, one_of
from neox_lab.errors import ConfigError
from neox_lab.family.backbone import GPTNeoXModel
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.heads import (
    CLASSES,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
)
from neox_lab.hub import HubOptions, pin
from neox_lab.hub_models import full_name
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.other_names import names_ours

if TYPE_CHECKING:
    from neox_lab.checkpoint.loading import DeviceMap

Name = str | os.PathLike[str] | None


class LoadOptions(TypedDict, total=False):
    """The arguments of ``load`` that do not change what class it returns."""

    revision: str | None
    dtype: torch.dtype | str | None
    device: torch.device | str | int | None
    labels: Sequence[str] | None
    device_map: DeviceMap
    max_memory: Mapping[int | str | torch.device, int | str] | None


@overload
def load(
    name: Name = ..., head: Literal["causal-lm"] = ..., **options: Unpack[LoadOptions]
) -> GPTNeoXForCausalLM: ...
@overload
def load(
    name: Name = ..., *, head: Literal["base"], **options: Unpack[LoadOptions]
) -> GPTNeoXModel: ...
@overload
def load(
    name: Name = ..., *, head: Literal["question-answering"], **options: Unpack[LoadOptions]
) -> GPTNeoXForQuestionAnswering: ...
@overload
def load(
    name: Name = ..., *, head: Literal["sequence-classification"], **options: Unpack[LoadOptions]
) -> GPTNeoXForSequenceClassification: ...
@overload
def load(
    name: Name = ..., *, head: Literal["token-classification"], **options: Unpack[LoadOptions]
) -> GPTNeoXForTokenClassification: ...
@overload
def load(
    name: Name = ...,
    head: str = ...,
    revision: str | None = ...,
    dtype: torch.dtype | str | None = ...,
    device: torch.device | str | int | None = ...,
    labels: Sequence[str] | None = ...,
    device_map: DeviceMap = ...,
    max_memory: Mapping[int | str | torch.device, int | str] | None = ...,
) -> GPTNeoXPreTrainedModel: ...
@names_ours
def load(
    name: Name = None,
    head: str = "causal-lm",
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    labels: Sequence[str] | None = None,
    device_map: DeviceMap = None,
    max_memory: Mapping[int | str | torch.device, int | str] | None = None,
) -> GPTNeoXPreTrainedModel:
    """A model in evaluation mode, with its tokenizer as ``model.tokenizer``.

    Args:
        name: a directory or hub id; None is the small built-in model, which needs no network. The
            organisation of a well-known model may be left out: ``"pythia-70m"`` is
            ``"EleutherAI/pythia-70m"``, unless there is a directory of that name.
        head: ``base``, ``causal-lm``, ``question-answering``, ``sequence-classification`` or
            ``token-classification``.
        revision: branch, tag or commit on the hub; for the built-in model one of
            ``nl.gym.revisions()``, such as ``step512``. A directory is one revision: of those of a
            training, give the directory of each.
        dtype: of the weights; None means float32 on a CPU, where half precision is slow and
            coarse, and the checkpoint's own dtype elsewhere.
        device: where to; ``"auto"`` means an accelerator if there is one, None the CPU.
        labels: names of the classes or tags, for a head that is to be trained; None for those of
            the checkpoint. The built-in model comes with trained heads, which None gives.
        device_map: instead of ``device``: ``"auto"`` or ``"balanced"`` spread the layers over all
            accelerators, ``"sequential"`` fills one after the other, and ``{layer: device}`` says
            where each goes (``"disk"``: read from its file for each pass; ``""``: all the rest).
            The residual stream moves from device to device, and what is no layer is on the first.
            Every question gives the numbers of one device: hooks see tensors where their layer is,
            and caches, hidden states and weights by name are brought to the first, which is
            ``model.device``. Dictionaries of features belong there, too.
        max_memory: how many bytes of weights a device may hold: ``{"cpu": "8GB"}``. As many layers
            as fit stay in memory; the others are read from their safetensors files for each pass,
            by a thread that is one layer ahead, and converted on the way if ``dtype`` says so.
            Every question gives the numbers that it gives in memory. Such a model cannot be
            trained or saved, has no ``state_dict()``, and what is written into its layers is
            refused. ``generate`` reads those layers once a token: give it many prompts at a time.
            Activations come on top. None: all weights in memory; or, on the CPU in their files' own
            dtype (``dtype="auto"``), mapped: pages of the file that the system brings and drops as
            it likes, so that a model larger than memory runs too, slower.

    Returns:
        The class that ``head`` names: a ``GPTNeoXForCausalLM`` unless another is asked for.

    Raises:
        ConfigError: an unknown head or device, or labels for a head that has none.
        CheckpointError: a file is missing, damaged or does not fit, there is no such revision, or
            one of a directory is asked for.
        DeviceError: ``max_memory`` is too little for what must stay and two layers.
    """
    check("head", head, one_of(*CLASSES), ConfigError)
    from neox_lab.checkpoint.loading import to_device
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

    if name is None:
        text_source: str | os.PathLike[str] = weights_directory()
        # With labels of its own a head is to be trained, and starts from the language model.
        name = weights_directory(revision, head if labels is None else "causal-lm")
        revision = None
    else:
        name = text_source = _full_name(name)
    # One commit for model and tokenizer, even if the branch moves in between.
    revision = pin(name, HubOptions(revision=revision)).revision
    if device is not None and device_map is not None:
        raise ConfigError("device and device_map say the same thing: give one of both.")
    spread = isinstance(device_map, Mapping)
    on_cpu = not spread and to_device(device_map if device is None else device).type == "cpu"
    model = CLASSES[head].from_pretrained(
        name,
        **_label_settings(head, labels),
        revision=revision,
        dtype=dtype or (torch.float32 if on_cpu else "auto"),
        device_map=device if device_map is None else device_map,
        max_memory=max_memory,
    )
    model.tokenizer = GPTNeoXTokenizerFast.from_pretrained(text_source, revision=revision)
    return model


def _full_name(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A hub id with its organisation, where a model is known by the rest; else as it is."""
    if not isinstance(name, str) or os.path.exists(name):
        return name
    return full_name(name) or name


def _label_settings(head: str, labels: Sequence[str] | None) -> dict[str, Any]:
    """What a configuration says about labels.

    Raises:
        ConfigError: labels for a head that has none, or not a list of different names.
    """
    if labels is None:
        return {}
    if head not in OUTPUT_HEADS or OUTPUT_HEADS[head].outputs != "label":
        raise ConfigError(f"head={head!r} has no labels; leave out labels={list(labels)!r}.")
    if isinstance(labels, str) or len(set(labels)) != len(labels) or not labels:
        raise ConfigError(f"labels={labels!r}; expected a list of different names.")
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
