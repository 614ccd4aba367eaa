"""Adapters inside a model: ``add_adapter`` and what goes with it, as transformers' classes have it.

An adapter is a small trained part beside frozen weights (LoRA, Hu et al., arXiv:2106.09685, is the
best known). The package peft makes them; here it is told where they go, which of them is active,
and where they are kept. peft is imported when the first adapter arrives, not before.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.family.structure import all_or_nothing
from neox_lab.files import StrPath, staged_files
from neox_lab.hub import HubOptions, find_file, pin
from neox_lab.safetensors_files import write as write_safetensors

if TYPE_CHECKING:
    from peft import PeftConfig

_PREFIX = "base_model.model."  # before every name in files that peft writes


class Adapters(nn.Module):
    """The part of a model that holds adapters.

    Attributes:
        peft_config: from the name of an adapter to its configuration; peft sets it.
    """

    peft_config: dict[str, PeftConfig]
    _hf_peft_config_loaded: bool = False
    """Whether ``add_adapter`` made an adapter; other libraries ask for it by this name."""

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Put a new adapter into the model and make it the active one; all else is frozen.

        Args:
            adapter_config: what peft shall make: ``peft.LoraConfig(...)``, ``peft.IA3Config()``,
                ... ; not those that learn a prompt, which ``peft.get_peft_model`` makes.
            adapter_name: how to call it; ``"default"`` if None.

        Raises:
            InputError: there is one of that name.
            ValueError: peft cannot put this adapter into the model.
            TypeError: ``adapter_config`` is not peft's.
        """
        from peft import PeftConfig, inject_adapter_in_model

        name = adapter_name or "default"
        if self._hf_peft_config_loaded and name in self.peft_config:
            raise InputError(f"There is an adapter {name!r} already; give another adapter_name.")
        if not isinstance(adapter_config, PeftConfig):
            raise TypeError(
                f"adapter_config is a {type(adapter_config).__name__}; expected a PeftConfig."
            )
        with all_or_nothing(self):
            inject_adapter_in_model(adapter_config, self, name)
            self._hf_peft_config_loaded = True
            self.set_adapter(name)

    def load_adapter(
        self,
        peft_model_id: str | PathLike[str] | None = None,
        adapter_name: str | None = None,
        peft_config: PeftConfig | dict[str, Any] | None = None,
        adapter_state_dict: Mapping[str, Tensor] | None = None,
        is_trainable: bool = False,
        **options: Any,
    ) -> None:
        """Read an adapter that ``save_pretrained`` of a model or of peft wrote.

        Args:
            peft_model_id: directory or hub id; or give the two next but one.
            adapter_name: how to call it; ``"default"`` if None.
            peft_config: its configuration, instead of the one beside the weights.
            adapter_state_dict: its weights, instead of those of ``peft_model_id``.
            is_trainable: let its weights be trained further.
            options: where and how to look: ``revision, subfolder, cache_dir, force_download,
                local_files_only, token``; others are of peft, and ignored with a warning.

        Raises:
            InputError: nothing to read, or there is one of that name.
            CheckpointError: files are missing or damaged, or cannot be had.
            RuntimeError: its weights do not fit the model.
        """
        import peft
        from peft.utils.save_and_load import load_peft_weights

        name = adapter_name or "default"
        source = None if peft_model_id is None else str(peft_model_id)
        if isinstance(peft_config, dict):
            config = peft.get_peft_config(peft_config)
        elif peft_config is not None:
            config = peft_config
        else:
            if source is None:
                raise InputError("load_adapter() needs a directory, or peft_config= and weights.")
            source = _fetched(source, options)
            config = peft.PeftConfig.from_pretrained(source)
        config.inference_mode = not is_trainable
        weights = adapter_state_dict
        if weights is None:
            if source is None:
                raise InputError("load_adapter() needs a directory, or adapter_state_dict=.")
            source = _fetched(source, options)
            device = str(next(self.parameters()).device)
            try:
                weights = load_peft_weights(source, device=device)
            except Exception as error:  # of three libraries that read such files
                raise CheckpointError(
                    f"The adapter's weights in {source!r} cannot be read: {error!s:.300}"
                ) from error
        own = {key.removeprefix(_PREFIX): value for key, value in weights.items()}
        with all_or_nothing(self):
            self.add_adapter(config, name)
            peft.set_peft_model_state_dict(self, own, adapter_name=name)
            if not is_trainable:
                self.eval()
                for layer in self._adapted():
                    layer.requires_grad_(False)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Make an adapter, or several at once, the active one.

        Raises:
            InputError: there is none of that name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        self._check_there_is_one()
        for name in names:
            if name not in self.peft_config:
                known = ", ".join(map(repr, self.peft_config))
                raise InputError(f"There is no adapter {name!r}, only {known}.")
        for layer in self._adapted():
            layer.set_adapter(adapter_name)

    def disable_adapters(self) -> None:
        """Run without adapters until ``enable_adapters``.

        Raises:
            InputError: there is no adapter.
        """
        self._enable(False)

    def enable_adapters(self) -> None:
        """Run with the active adapters again.

        Raises:
            InputError: there is no adapter.
        """
        self._enable(True)

    def active_adapters(self) -> list[str]:
        """Names of the adapters that are active.

        Raises:
            InputError: there is no adapter.
        """
        self._check_there_is_one()
        active = next(iter(self._adapted())).active_adapter
        return [active] if isinstance(active, str) else list(active)

    def active_adapter(self) -> str:
        """Name of the first active adapter.

        Raises:
            InputError: there is no adapter.
        """
        return self.active_adapters()[0]

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The weights of one adapter, by the names peft gives them.

        Args:
            adapter_name: the active one if None.
            state_dict: where to take them from; the model's own if None.

        Raises:
            InputError: there is no adapter.
        """
        from peft import get_peft_model_state_dict

        self._check_there_is_one()
        name = adapter_name or self.active_adapters()[0]
        weights: dict[str, Tensor] = get_peft_model_state_dict(
            self, state_dict=state_dict, adapter_name=name
        )
        return weights

    def delete_adapter(self, adapter_names: str | list[str]) -> None:
        """Take adapters out again; the model's own weights stay where they are.

        Raises:
            InputError: there is none of that name.
        """
        from peft import PeftType
        from peft.functional import delete_adapter

        self._check_there_is_one()
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        missing = [name for name in names if name not in self.peft_config]
        if missing:
            raise InputError(f"There is no adapter {missing[0]!r}.")
        with all_or_nothing(self):
            for name in names:
                kind = PeftType(self.peft_config[name].peft_type)
                delete_adapter(self, adapter_name=name, prefix=f"{kind.value.lower()}_")
                self.peft_config.pop(name, None)
            if not self.peft_config:
                del self.peft_config
                self._hf_peft_config_loaded = False

    def _save_adapter(
        self, directory: StrPath, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write the active adapter as peft does: its configuration and its weights alone.

        Raises:
            InputError: several are active.
            CheckpointError: the directory cannot be written; an adapter that was there is kept.
        """
        active = self.active_adapters()
        if len(active) > 1:
            raise InputError(f"Only one adapter can be saved at a time; {active} are active.")
        weights = self.get_adapter_state_dict(active[0], state_dict)
        named = {_PREFIX + name: value for name, value in weights.items()}
        with tempfile.TemporaryDirectory() as folder:
            self.peft_config[active[0]].save_pretrained(folder)
            texts = {path.name: path.read_text("utf-8") for path in Path(folder).iterdir()}
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
            with staged_files() as stage:
                for name, text in texts.items():
                    stage(Path(directory, name)).write_text(text, encoding="utf-8")
                path = Path(directory, "adapter_model.safetensors")
                write_safetensors(stage(path), named, {"format": "pt"})
        except OSError as error:
            raise CheckpointError(
                f"Saving the adapter to {str(directory)!r} failed: {error}."
            ) from error

    def _adapted(self) -> Iterator[Any]:
        """The modules of peft's that stand in the model; Any because peft has no types."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        for module in self.modules():
            if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
                yield module

    def _enable(self, enabled: bool) -> None:
        self._check_there_is_one()
        for layer in self._adapted():
            layer.enable_adapters(enabled=enabled)

    def _check_there_is_one(self) -> None:
        if not self._hf_peft_config_loaded:
            raise InputError("There is no adapter; add_adapter or load_adapter makes one.")


def _fetched(source: str, options: Mapping[str, Any]) -> str:
    """The directory in which an adapter's files lie, fetched through the hub's checks if need be.

    Raises:
        CheckpointError: there is no adapter, or it cannot be had.
    """
    rest = dict(options)
    where = pin(source, HubOptions.take(rest))
    if rest:
        warnings.warn(
            f"load_adapter() makes nothing of {', '.join(sorted(rest))}: ignored.",
            NeoxLabWarning,
            stacklevel=3,
        )
    path = find_file(source, "adapter_config.json", where)
    assert path is not None  # find_file raises where a required file is missing
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if find_file(source, name, where, required=False) is not None:
            break
    return str(path.parent)
