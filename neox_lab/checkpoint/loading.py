"""A model from a checkpoint, with at most one copy of the weights in memory.

The model is built without memory (PyTorch's ``meta`` device), then each parameter is replaced
by its tensor from the file: the mapped pages themselves where dtype and device are already
right, a converted copy otherwise. What the file lacks is initialised; nothing else is. Names
and shapes are compared before any tensor is read, so what cannot fit fails at once.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neox_lab import interrupts
from neox_lab.checkpoint.files import find_weights
from neox_lab.checkpoint.names import (
    INPUT_EMBEDDING,
    OUTPUT_EMBEDDING,
    Match,
    match,
    of_the_network,
    require_backbone,
)
from neox_lab.checkpoint.reading import (
    WEIGHT_DTYPES,
    GivenTensors,
    TensorSource,
    open_weights,
)
from neox_lab.checkpoint.report import LoadingReport, Shape
from neox_lab.checkpoint.spreading import (
    PLANS,
    device_of,
    placement_of,
    spread,
    stream_from,
    streamed_names,
)
from neox_lab.checks import check, one_of
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import CheckpointError, ConfigError, DeviceError, ShapeError
from neox_lab.hub import DEFAULTS, HubOptions, PathOrId, pin
from neox_lab.memory import free_memory
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.notices import mention
from neox_lab.sizes import size_in_words
from neox_lab.streaming.placement import Sizes, sizes_of

logger = logging.getLogger("neox_lab")
PACKAGE = Path(__file__).resolve().parents[1]

Model = TypeVar("Model", bound=nn.Module)

Device = torch.device | str | int
DeviceMap = Device | Mapping[str, Device] | Mapping[int, Device] | None
"""A device, its name or number; ``"auto"``; None for the CPU; or devices by layer or module."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in WEIGHT_DTYPES.values()}
_RELEASE_AFTER = 32 * 2**20  # bytes copied out of mapped files before their pages are given back


def load_into(
    model_class: type[Model],
    source: PathOrId | None,
    *,
    config: GPTNeoXConfig | None = None,
    options: HubOptions = DEFAULTS,
    dtype: torch.dtype | str | None = "auto",
    device_map: DeviceMap = None,
    max_memory: Mapping[int | str | torch.device, int | str] | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    ignore_mismatched_sizes: bool = False,
    key_mapping: Mapping[str, str] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> tuple[Model, LoadingReport]:
    """Build a model and fill it from a checkpoint.

    Args:
        model_class: one of the five classes, built as ``model_class(config)``.
        source: directory or hub id; None only with ``config`` and ``state_dict``.
        config: the source's ``config.json`` if None.
        options: where and how to look, see ``HubOptions``.
        dtype: ``"auto"`` or None for the configuration's dtype, else that of the checkpoint's
            first tensor; or a dtype to convert to.
        device_map: the device to load to, see ``to_device``; ``"auto"`` spreads layers over several
            accelerators; or devices by layer (``{0: "cpu", 1: "cuda:0"}``) or module, where
            ``"disk"`` means that a layer is read from its file for each pass.
        max_memory: how many bytes of weights each device may hold; what does not fit is read from
            its files for each pass.
        variant: use the files of this variant (``"fp16"``).
        use_safetensors: True for safetensors only, False for ``.bin`` only, None for both.
        ignore_mismatched_sizes: initialise parameters whose shape differs, instead of failing.
        key_mapping: regular expression -> replacement for the checkpoint's names.
        state_dict: tensors to use instead of the source's weights; they are copied.

    Returns:
        The model, in training mode as built, and the report of what did not fit.

    Raises:
        CheckpointError: a file is missing, damaged or hostile, or the checkpoint is of another
            architecture.
        ShapeError: shapes differ.
        DeviceError: the default device has no memory ("meta").
        ConfigError: a dtype or device that is unknown or not there.
    """
    wanted_dtype = to_dtype(dtype)
    if torch.get_default_device().type == "meta":
        raise DeviceError(
            "You are using `from_pretrained` with a meta device context manager, where there is no "
            "memory to load weights into. Load outside of torch.device('meta'), or build an empty "
            f"model by {model_class.__name__}(config)."
        )
    if source is None:
        if config is None or state_dict is None:
            raise ConfigError("Without a source, config= and state_dict= are needed.")
    else:
        options = pin(source, options)
        if config is None:
            config = GPTNeoXConfig.from_pretrained(source, **vars(options))
    if source is None or state_dict is not None:
        tensors: TensorSource = GivenTensors(state_dict or {})
    else:
        tensors = open_weights(find_weights(source, options, variant, use_safetensors))
    if not ignore_mismatched_sizes:
        _check_layers(config, tensors)
    model = skeleton(model_class, config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = match(parameters, tensors.tensors, key_mapping)
    if tensors.tensors or state_dict is None:  # no tensors at all: a fresh model is wanted
        require_backbone(found, parameters)
    sources, mismatched = _compare_shapes(found, parameters, tensors, ignore_mismatched_sizes)
    kinds = {name: tensors.tensors[source].dtype for name, source in sources.items()}
    stored = {name: dtype for name, dtype in kinds.items() if isinstance(dtype, torch.dtype)}
    first = next(iter(stored.values()), torch.float32)
    config.dtype = wanted_dtype or config.dtype or first
    sizes = sizes_of(parameters, config.num_hidden_layers, config.dtype, stored)
    placement = placement_of(device_map, max_memory, sizes, to_device)
    device = to_device(device_map) if placement is None else placement.main
    if placement is None:
        _check_room(sizes, first, config.dtype, device)
    where = functools.partial(device_of, placement=placement, one=device)
    in_files = streamed_names(parameters, placement)
    resident = {name: source for name, source in sources.items() if name not in in_files}
    _fill(model, resident, tensors, config.dtype, where, copy=bool(in_files))
    if placement is not None and in_files:
        stream_from(model, in_files, sources, tensors, placement, config.dtype)
    absent = [name for name in parameters if name not in sources]
    absent = _complete(model, config, absent, where)
    if placement is not None:
        spread(model)

    changed = {name for name, _, _ in mismatched}
    missing = tuple(name for name in absent if name not in changed)
    report = LoadingReport(missing, found.unexpected, mismatched)
    # What comes with the package is named by its place in it, the same on every machine.
    named = str(source).replace(str(PACKAGE), PACKAGE.name)
    if _only_a_new_head(report, model_class, config):
        # Which is what somebody asked for, and nothing to worry about.
        mention(
            f"The head of this {model_class.__name__} ({', '.join(report.missing_keys)}) is new: "
            f"{named} has none. Train it, as nl.tasks does, before its answers mean anything."
        )
    elif not report.complete:
        logger.warning("%s is not complete in %s:\n%s", model_class.__name__, named, report)
    elif of_the_network(report.unexpected_keys):
        logger.warning(
            "%s leaves out weights of the network that are in %s, so it computes something else: "
            "correct the configuration (attention_bias, num_hidden_layers).\n%s",
            model_class.__name__,
            named,
            report,
        )
    elif report.unexpected_keys:
        logger.info("%s from %s:\n%s", model_class.__name__, named, report)
    return model, report


def _only_a_new_head(
    report: LoadingReport, model_class: Callable[..., object], config: GPTNeoXConfig
) -> bool:
    """Whether all that is missing is a head to be trained, of which the checkpoint never spoke."""
    modules = {head.module for head in OUTPUT_HEADS.values() if head.outputs != "vocab"}
    return (
        bool(report.missing_keys)
        and not report.mismatched_keys
        and not of_the_network(report.unexpected_keys)
        and {name.partition(".")[0] for name in report.missing_keys} <= modules
        and model_class.__name__ not in (config.architectures or ())
    )


def _check_layers(config: GPTNeoXConfig, tensors: TensorSource) -> None:
    """Compare the number of layers before so many are made.

    Raises:
        ShapeError: the checkpoint holds not half of them.
    """
    found = (re.search(r"(?:^|\.)layers\.(\d{1,9})\.", name) for name in tensors.tensors)
    stored = len({match[1] for match in found if match})
    if stored and config.num_hidden_layers > 2 * stored:
        raise ShapeError(
            f"The configuration has {config.num_hidden_layers} layers and the checkpoint {stored}. "
            "Correct num_hidden_layers, or pass ignore_mismatched_sizes=True to initialise the "
            "others anew."
        )


def skeleton(model_class: Callable[[GPTNeoXConfig], Model], config: GPTNeoXConfig) -> Model:
    """A model of a class, all of whose weights take no memory and hold nothing."""
    # Ctrl-C in PyTorch's own steps out of "no gradients" or "on meta", which pass through the mode,
    # would leave the whole process in one of them.
    with interrupts.held(), torch.device("meta"), _NoInitialValues():
        return model_class(config)


class _NoInitialValues(TorchFunctionMode):
    """Skips ``torch.nn.init``: on ``meta`` it does nothing, and imports for seconds to do it."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def to_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """``"float16"``, ``"torch.float16"`` or ``torch.float16`` -> dtype; None for "auto".

    Raises:
        ConfigError: weights have no such dtype.
    """
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    return _DTYPES[check("dtype", name, one_of("auto", *_DTYPES), ConfigError)]


def to_device(device_map: DeviceMap) -> torch.device:
    """The one device that ``device_map`` means; several are for ``streaming.placement``.

    Args:
        device_map: a device, its name or number, a mapping whose values are all one device,
            ``"auto"`` (an accelerator if there is one; accelerate's other plans mean the same) or
            None (the CPU).

    Raises:
        ConfigError: it is something else, or an accelerator that is not there.
    """
    place = device_map
    if isinstance(place, Mapping):
        if set(map(str, place.values())) <= {"disk"}:  # or none at all
            raise ConfigError(
                f"device_map={device_map!r} names no device to compute on. Layers may be on "
                '"disk", the rest may not: {0: "disk", "": "cpu"}, or give max_memory=.'
            )
        if len({str(device) for device in place.values()}) != 1:
            raise ConfigError(
                f"device_map={device_map!r} spreads the model over devices, which is not "
                'supported: give one device, such as "cuda:0" or {"": 0}.'
            )
        place = next(iter(place.values()))
    if place is None:
        place = "cpu"
    if isinstance(place, str) and place in PLANS:
        place = "cuda" if torch.cuda.is_available() else "cpu"
        place = "mps" if torch.backends.mps.is_available() else place
    try:
        device = torch.device(place)
        torch.empty(0, device=device, dtype=torch.float32)
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:  # as back ends like
        reason = str(error).partition("\n")[0].partition(". ")[0].removesuffix(".")
        raise ConfigError(
            f'{device_map!r} is not a device of this machine: {reason}. Expected "cpu", '
            '"cuda:0", a number, a torch.device, or "auto", which is an accelerator if there is '
            'one and else the CPU; as device_map={"": device} too.'
        ) from error
    return device


def _check_room(
    sizes: Sizes, stored: torch.dtype, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse to copy weights that do not fit; mapped ones are pages of their files and always do.

    Raises:
        DeviceError: converted or moved, they would take more memory than there is.
    """
    free = free_memory(device)
    copied = stored != dtype or device.type != "cpu"
    if copied and free is not None and sizes.total > free:
        raise DeviceError(
            f"As {dtype} on {device} the weights take {size_in_words(sizes.total)}, and "
            f"{size_in_words(free)} are free. Read layers from their files as they are needed, "
            f'max_memory={{"{device}": "{size_in_words(0.8 * free)}"}}, or load to the CPU in '
            f'their own dtype, dtype="auto" ({stored}): then they are mapped, not copied.'
        )


def _compare_shapes(
    found: Match, parameters: Mapping[str, Tensor], tensors: TensorSource, ignore: bool
) -> tuple[dict[str, str], tuple[tuple[str, Shape, Shape], ...]]:
    """Sources of the parameters that fit, and those whose shape differs.

    Raises:
        CheckpointError: a dtype is not of weights.
        ShapeError: shapes differ and are not to be ignored.
    """
    sources, mismatched = {}, []
    for name, source in found.sources.items():
        info = tensors.tensors[source]
        if info.dtype not in WEIGHT_DTYPES.values():
            raise CheckpointError(
                f"Tensor {source!r} has dtype {info.dtype}; weights must be one of "
                f"{', '.join(_DTYPES)}. Quantised checkpoints cannot be loaded."
            )
        shape = tuple(parameters[name].shape)
        if info.shape == shape:
            sources[name] = source
        else:
            mismatched.append((name, info.shape, shape))
    if mismatched and not ignore:
        few = "; ".join(
            f"{name} is {list(there)} in the checkpoint and {list(here)} in the model"
            for name, there, here in mismatched[:3]
        )
        more = f"; and {len(mismatched) - 3} more" if len(mismatched) > 3 else ""
        raise ShapeError(
            f"The checkpoint does not fit the configuration: {few}{more}. Correct the "
            "configuration, or pass ignore_mismatched_sizes=True to initialise these anew."
        )
    return sources, tuple(mismatched)


def _fill(
    model: nn.Module,
    sources: Mapping[str, str],
    tensors: TensorSource,
    dtype: torch.dtype,
    where: Callable[[str], torch.device],
    copy: bool = False,
) -> None:
    """Replace the parameters named in ``sources`` by their tensors.

    A file's pages are used as they are only if all its tensors fit, for one tensor that keeps
    the mapping would also keep the pages that others were copied from. With ``copy`` none are.
    """
    copy = copy or any(tensors.tensors[source].dtype != dtype for source in sources.values())
    copied, in_use = 0, set()
    for name, source in sources.items():
        stored = tensors.read(source)
        shared = stored.data_ptr() in in_use  # two names in one .bin may mean the same memory
        tensor = stored.to(device=where(name), dtype=dtype, copy=copy or shared)
        if tensor is stored:
            in_use.add(tensor.data_ptr())
        else:
            copied += stored.nbytes
        del stored
        if copied > _RELEASE_AFTER:
            tensors.release()
            copied = 0
        _set(model, name, nn.Parameter(tensor))


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def _complete(
    model: nn.Module,
    config: GPTNeoXConfig,
    absent: list[str],
    where: Callable[[str], torch.device],
) -> list[str]:
    """Tie embeddings if the configuration asks for it, and initialise what is absent.

    If only one of two tied embeddings was stored it serves as both; if both were and differ, both
    stay as they are.

    Returns:
        The names of the parameters that were initialised.
    """
    pair = (INPUT_EMBEDDING, OUTPUT_EMBEDDING)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tie = config.tie_word_embeddings and parameters.keys() >= set(pair)
    stored = [parameters[name] for name in pair if tie and name not in absent]
    if len(stored) == 2 and not torch.equal(*stored):
        tie = False
        logger.warning(
            "The configuration ties input and output embeddings, but the checkpoint has two "
            "different ones: both are kept. Set tie_word_embeddings=False to say so."
        )
    if tie:
        if stored:
            _set(model, INPUT_EMBEDDING, nn.Parameter(stored[0].data))
        settled = pair if stored else (OUTPUT_EMBEDDING,)
        absent = [name for name in absent if name not in settled]
    for name in absent:
        _initialise(model, config, name, where(name))
    if tie:
        _set(model, OUTPUT_EMBEDDING, model.get_parameter(INPUT_EMBEDDING))
    return absent


def _initialise(model: nn.Module, config: GPTNeoXConfig, name: str, device: torch.device) -> None:
    """Layer norms to the identity, other biases to 0, matrices to normal(0, initializer_range)."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = torch.zeros_like(getattr(module, leaf), dtype=config.dtype, device=device)
    if isinstance(module, nn.LayerNorm):
        tensor.fill_(1.0 if leaf == "weight" else 0.0)
    elif leaf == "weight":
        tensor.normal_(0.0, config.initializer_range)
    _set(model, name, nn.Parameter(tensor))
