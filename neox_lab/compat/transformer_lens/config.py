"""``model.cfg``: a model's configuration by TransformerLens's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Self

import torch
from torch import Tensor

from neox_lab.compat.transformer_lens.new_models import gpt_neox_config
from neox_lab.errors import ConfigError, nearest
from neox_lab.family import GPTNeoXForCausalLM

_OF_MODEL: dict[str, Callable[[GPTNeoXForCausalLM], object]] = {
    "n_layers": lambda model: model.config.num_hidden_layers,
    "d_model": lambda model: model.config.hidden_size,
    "n_heads": lambda model: model.config.num_attention_heads,
    "d_head": lambda model: model.config.head_size,
    "d_mlp": lambda model: model.config.intermediate_size,
    "d_vocab": lambda model: model.config.vocab_size,
    "d_vocab_out": lambda model: model.config.vocab_size,
    "n_ctx": lambda model: model.config.max_position_embeddings,
    "act_fn": lambda model: model.config.hidden_act,
    "eps": lambda model: model.config.layer_norm_eps,
    "initializer_range": lambda model: model.config.initializer_range,
    "parallel_attn_mlp": lambda model: model.config.use_parallel_residual,
    "rotary_dim": lambda model: model.config.rotary_ndims,
    "rotary_base": lambda model: model.config.rotary_emb_base,
    "attn_scale": lambda model: model.config.head_size**0.5,
    "device": lambda model: str(model.device),
    "dtype": lambda model: model.dtype,
    "n_params": lambda model: sum(map(torch.numel, _matrices(model))),
    "model_name": lambda model: PurePath(model.config.name_or_path).name,
    "tokenizer_name": lambda model: model.config.name_or_path,
}
_ALWAYS: dict[str, object] = {
    "attention_dir": "causal",
    "attn_only": False,
    "attn_types": None,
    "final_rms": False,
    "gated_mlp": False,
    "init_mode": "gpt2",
    "n_devices": 1,
    "n_key_value_heads": None,
    "original_architecture": "GPTNeoXForCausalLM",
    "positional_embedding_type": "rotary",
    "rotary_adjacent_pairs": False,
    "scale_attn_by_inverse_layer_idx": False,
    "seed": None,
    "tokenizer_prepends_bos": False,
    "use_attn_scale": True,
    "use_local_attn": False,
    "window_size": None,
}
_SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


def _matrices(model: GPTNeoXForCausalLM) -> list[Tensor]:
    """What TransformerLens counts: neither embeddings nor biases."""
    return [weight for weight in model.backbone.layers.parameters() if weight.dim() > 1]


class HookedTransformerConfig:
    """What a model is, by TransformerLens's names; a view of ``model.native.config``.

    Only the switches ``use_attn_result``, ``use_split_qkv_input``, ``use_attn_in``,
    ``use_hook_mlp_in`` and ``default_prepend_bos`` can be set. The first four are remembered and
    change nothing: every hook point is always there.
    """

    def __init__(
        self,
        model: GPTNeoXForCausalLM | None = None,
        *,
        default_prepend_bos: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        **settings: object,
    ) -> None:
        """The configuration of ``model``, or of a model that is still to be made.

        Args:
            model: a language model; None for a new one.
            default_prepend_bos: put the beginning-of-text token before texts.
            checkpoint_index: of which checkpoint the weights are.
            checkpoint_value: likewise.
            settings: of a new model, by TransformerLens's names: ``n_layers=``, ``d_model=``;
                ``positional_embedding_type="rotary"`` among them. ``HookedTransformer(cfg)`` makes
                the model, on ``device=`` and after ``torch.manual_seed(seed)``.

        Raises:
            ConfigError: no language model of this package, or settings of another kind of model.
        """
        switches = {name: settings.pop(name, False) for name in _SWITCHES}
        seed, device = settings.pop("seed", None), settings.pop("device", None)
        if model is None:
            with torch.device("meta"):
                model = GPTNeoXForCausalLM(gpt_neox_config(settings))
        elif not isinstance(model, GPTNeoXForCausalLM) or settings:
            raise ConfigError(
                "HookedTransformerConfig takes a language model of this package, or settings."
            )
        self.__dict__.update(
            switches,
            _model=model,
            seed=seed,
            default_prepend_bos=default_prepend_bos,
            normalization_type="LN",
            checkpoint_index=checkpoint_index,
            checkpoint_value=checkpoint_value,
            from_checkpoint=checkpoint_value is not None,
        )
        if model.device.type == "meta":
            self.__dict__["device"] = str(device or "cpu")

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """The configuration of a new model, from settings in a dictionary; see ``__init__``."""
        return cls(**config_dict)

    def new_model(self) -> GPTNeoXForCausalLM:
        """A model of this configuration, with weights drawn at random."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
        model = GPTNeoXForCausalLM(self.__dict__["_model"].config).eval()
        model = model.to(self.device)
        self.follow(model, folded=False)
        return model

    def follow(self, model: GPTNeoXForCausalLM, *, folded: bool) -> None:
        """Become the configuration of a model with processed weights.

        Args:
            model: whose weights they are.
            folded: LayerNorms are without weights of their own.
        """
        self.__dict__["_model"] = model
        self.__dict__.pop("device", None)  # it is the model's from now on
        if folded:
            self.__dict__["normalization_type"] = "LNPre"

    def __getattr__(self, name: str) -> Any:
        """A setting; AttributeError names the nearest if there is none of this name."""
        if name in _OF_MODEL:
            return _OF_MODEL[name](self.__dict__["_model"])
        if name in _ALWAYS:
            return _ALWAYS[name]
        raise AttributeError(f"cfg has no {name!r}.{nearest(name, dir(self))}")

    def __setattr__(self, name: str, value: object) -> None:
        """Set a switch.

        Raises:
            ConfigError: it is none, but a property of the weights.
        """
        if name not in (*_SWITCHES, "default_prepend_bos"):
            raise ConfigError(
                f"cfg.{name} says what the weights are, and cannot be set; expected one of "
                f"{', '.join((*_SWITCHES, 'default_prepend_bos'))}."
            )
        self.__dict__[name] = value

    def __dir__(self) -> list[str]:
        """Every name, for completion."""
        own = [name for name in self.__dict__ if not name.startswith("_")]
        return sorted([*own, *_OF_MODEL, *_ALWAYS, "follow", "from_dict", "new_model", "to_dict"])

    def to_dict(self) -> dict[str, object]:
        """Every setting by name."""
        names = (name for name in dir(self) if not hasattr(type(self), name))
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        """One setting a line."""
        lines = [f"    {name}={value!r}" for name, value in self.to_dict().items()]
        return "\n".join(["HookedTransformerConfig(", *lines, ")"])
