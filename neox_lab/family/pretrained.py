"""``from_pretrained`` and ``save_pretrained`` of the five classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError, nearest
from neox_lab.family.adapters import Adapters
from neox_lab.files import StrPath
from neox_lab.hub import HubOptions, PathOrId, pin
from neox_lab.hub_upload import upload
from neox_lab.streaming import refuse_saving

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from neox_lab.checkpoint.loading import DeviceMap

_ATTENTION_PATHS = (None, "sdpa", "eager")
_OF_NO_EFFECT = ("low_cpu_mem_usage", "_fast_init", "use_auth_token", "trust_remote_code")
_NOT_NEEDED_TO_SAVE = ("save_function", "save_peft_format", "distributed_checkpoint")
_OF_UPLOADS = frozenset(
    "repo_id commit_message commit_description private revision create_pr tags".split()
)
_LOADING = (
    *("max_memory", "variant", "use_safetensors", "ignore_mismatched_sizes"),
    *("key_mapping", "state_dict"),
)


class Pretrained(Adapters):
    """Loading from and saving to Hugging Face's checkpoint format."""

    config: GPTNeoXConfig
    revision: str | None

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId | None = None,
        *,
        revision: str | None = ...,
        dtype: torch.dtype | str | None = ...,
        device_map: DeviceMap = ...,
        config: GPTNeoXConfig | PathOrId | None = ...,
        output_loading_info: Literal[False] = ...,
        **more: object,
    ) -> Self: ...
    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId | None = None,
        *,
        revision: str | None = ...,
        dtype: torch.dtype | str | None = ...,
        device_map: DeviceMap = ...,
        config: GPTNeoXConfig | PathOrId | None = ...,
        output_loading_info: Literal[True],
        **more: object,
    ) -> tuple[Self, dict[str, Any]]: ...
    @classmethod
    @torch.inference_mode(False)  # else no gradient could ever be asked of the weights
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = "auto",
        device_map: DeviceMap = None,
        config: GPTNeoXConfig | PathOrId | None = None,
        output_loading_info: bool = False,
        **more: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Load a checkpoint from a directory or the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory, or a hub id such as
                ``EleutherAI/pythia-70m``; None with ``state_dict=`` and ``config=``.
            revision: branch, tag (``step3000``) or commit on the hub.
            dtype: ``"auto"`` (or None) keeps the checkpoint's; or one to convert to.
            device_map: device to load to: ``"cpu"``, ``"cuda:0"``, a number, ``"auto"``; or devices
                by layer, see ``nl.load``.
            config: configuration to use instead of the checkpoint's own.
            output_loading_info: also return which weights were missing, unexpected or mismatched.
            more: ``subfolder, cache_dir, force_download, local_files_only, token`` (where from);
                ``max_memory`` (how much of it stays in memory, see ``nl.load``);
                ``variant, use_safetensors, ignore_mismatched_sizes, key_mapping, state_dict``
                (how); any field of the configuration, to override it.

        Returns:
            The model; with ``output_loading_info``, the model and a dictionary.

        Raises:
            CheckpointError: a file is missing, damaged, hostile, or does not fit.
            ConfigError: the configuration is not GPT-NeoX's or contradicts itself.
            TypeError: an argument that is none of the above.
        """
        from neox_lab.checkpoint import load_into

        source = pretrained_model_name_or_path
        dtype = more.pop("torch_dtype", dtype)
        attention = more.pop("attn_implementation", None)
        _check_attention_path(attention)
        for name in _OF_NO_EFFECT:
            more.pop(name, None)
        more["revision"] = revision
        options = HubOptions.take(more)
        loading = {name: more.pop(name) for name in _LOADING if name in more}
        if source is not None:
            options = pin(source, options)
        config = _configuration(source if config is None else config, options, more)
        if attention is not None:
            config._attn_implementation = attention
        model, report = load_into(
            cls,
            source,
            config=config,
            options=options,
            dtype=dtype,
            device_map=device_map,
            **loading,
        )
        if source is not None:
            model.revision = options.revision if options.pinned else None
            model._load_beside(source, options)
        model.eval()
        return (model, report.as_dict()) if output_loading_info else model

    @classmethod
    def from_config(
        cls,
        config: GPTNeoXConfig,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> Self:
        """A model with fresh random weights, in evaluation mode.

        Args:
            config: shape of the model, which gets a copy of it.
            dtype: of the weights; None for float32.
            attn_implementation: see ``set_attn_implementation``.

        Raises:
            ConfigError: there is no such attention.
        """
        model = cls(copy.deepcopy(config)).to(dtype=dtype).eval()
        if attn_implementation is not None:
            model.set_attn_implementation(attn_implementation)
        return model

    _from_config = from_config

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Say in the configuration which attention there is; ``sdpa`` and ``eager`` are one here.

        Raises:
            ConfigError: another name.
        """
        _check_attention_path(attn_implementation)
        self.config._attn_implementation = attn_implementation

    def save_pretrained(
        self,
        save_directory: StrPath,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: bool | str | None = None,
        save_original_format: bool = True,
        **more: Any,
    ) -> None:
        """Write ``config.json`` and the weights, readable by transformers 4 and 5.

        Of a model with adapters (``add_adapter``) the active adapter is written, and nothing else.

        Nothing is replaced before everything is written, so a failed save leaves an earlier
        checkpoint intact, and saving over the directory the model came from is safe.

        Args:
            save_directory: created if absent.
            is_main_process: False writes nothing, for all processes but one of several.
            state_dict: tensors to write instead of the model's own.
            push_to_hub: also upload it, see ``push_to_hub``; to ``repo_id=``, by default the
                directory's name.
            max_shard_size: split the weights into files of at most this size.
            variant: word to put into the file names, as in ``model.fp16.safetensors``.
            token: access token for the upload.
            save_original_format: False names the unembedding ``lm_head``, which transformers 5
                calls it in memory, instead of ``embed_out``, its name in published checkpoints.
            more: ``repo_id`` and other arguments of ``push_to_hub``; ``safe_serialization``,
                which is always True here; ``save_function`` and ``save_peft_format``, which
                change nothing.

        Raises:
            CheckpointError: the directory cannot be written, the upload fails, or modules such as
                adapters stand in others' places, so that a reload would not find their weights.
            ConfigError: ``safe_serialization=False``.
            TypeError: an argument that is none of the above.
        """
        from neox_lab.checkpoint import check_names, save

        if not more.pop("safe_serialization", True):
            raise ConfigError(
                "safe_serialization=False: weights are written as safetensors only. For pickles, "
                "torch.save(model.state_dict(), path)."
            )
        for name in _NOT_NEEDED_TO_SAVE:
            more.pop(name, None)
        if unknown := sorted(more.keys() - _OF_UPLOADS):
            known = (*signature(self.save_pretrained).parameters, *_OF_UPLOADS)
            raise TypeError(
                f"save_pretrained() got {unknown[0]!r}, which it does not know."
                f"{nearest(unknown[0], known)}"
            )
        if not is_main_process:
            return
        if self._hf_peft_config_loaded:
            self._save_adapter(save_directory, state_dict)
        else:
            if state_dict is None:
                refuse_saving(self)
                check_names(self, self.config)
            save(
                self,
                save_directory,
                max_shard_size=max_shard_size,
                state_dict=state_dict,
                variant=variant,
                save_original_format=save_original_format,
                beside=self._texts_beside(),
            )
        if push_to_hub:
            upload(
                Path(save_directory),
                more.get("repo_id") or Path(save_directory).resolve().name,
                message=more.get("commit_message") or "Upload model",
                description=more.get("commit_description"),
                private=more.get("private"),
                token=token,
                revision=more.get("revision"),
                create_pr=more.get("create_pr", False),
                tags=more.get("tags") or (),
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: Sequence[str] | None = None,
    ) -> CommitInfo:
        """Upload the model to the Hugging Face hub, in one commit.

        Args:
            repo_id: ``"owner/name"``, or a name in one's own namespace; made if absent.
            commit_message: None for "Upload model".
            commit_description: more about the commit.
            private: whether a repository that is made here can be seen by nobody else.
            token: access token; None or True for the stored one.
            revision: branch to commit to, made if absent; None for ``main``.
            create_pr: open a pull request instead.
            max_shard_size: see ``save_pretrained``.
            tags: words to add to the model card.

        Returns:
            What huggingface_hub says of the commit.

        Raises:
            CheckpointError: the hub cannot be reached or refuses.
        """
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return upload(
                Path(folder),
                repo_id,
                message=commit_message or "Upload model",
                description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=tags or (),
            )

    def _load_beside(self, source: PathOrId, options: HubOptions) -> None:
        """Read what a class keeps in files of its own beside the weights; most keep nothing."""

    def _texts_beside(self) -> dict[str, str]:
        """What ``_load_beside`` reads, by name of file."""
        return {}


def _configuration(
    source: GPTNeoXConfig | PathOrId | None, options: HubOptions, overrides: dict[str, Any]
) -> GPTNeoXConfig:
    """The configuration to build with.

    Raises:
        ConfigError: nothing to make it from.
        TypeError: ``overrides`` has a name that is not a field of it.
    """
    if source is None:
        raise ConfigError("from_pretrained(None, state_dict=...) needs config= as well.")
    if isinstance(source, GPTNeoXConfig):
        config = GPTNeoXConfig.from_dict(source.to_dict())
    else:
        config = GPTNeoXConfig.from_pretrained(source, **vars(options))
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        known = [*config.to_dict(), "revision", "dtype", "device_map", *_LOADING]
        raise TypeError(
            f"from_pretrained() got {unknown[0]!r}, which is neither an argument nor a field of "
            f"the configuration.{nearest(unknown[0], known)}"
        )
    for name, value in overrides.items():
        setattr(config, name, value)
    return config


def _check_attention_path(name: str | None) -> None:
    """Accept the paths that give the same numbers here.

    Raises:
        ConfigError: a name that promises another kernel.
    """
    if name not in _ATTENTION_PATHS:
        raise ConfigError(
            f'Specified `attn_implementation="{name}"` is not supported; expected one of '
            f"{_ATTENTION_PATHS}. Both names mean the same here: fused attention, with scores and "
            "patterns made when something watches them."
        )
