"""From the settings of a TransformerLens configuration to a GPT-NeoX model without training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neox_lab.checks import shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError, nearest

_OURS = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "act_fn": "hidden_act",
    "eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "parallel_attn_mlp": "use_parallel_residual",
    "rotary_base": "rotary_emb_base",
    "dtype": "dtype",
}
_NEEDED = ("n_layers", "d_model", "n_ctx", "d_head", "act_fn", "d_vocab")
_ONLY: dict[str, tuple[object, ...]] = {
    "positional_embedding_type": ("rotary",),
    "normalization_type": ("LN",),
    "attention_dir": ("causal",),
    "attn_only": (False,),
    "gated_mlp": (False,),
    "final_rms": (False,),
    "use_attn_scale": (True,),
    "use_local_attn": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "rotary_adjacent_pairs": (False,),
    "tie_word_embeddings": (False,),
    "init_mode": ("gpt2",),
    "tokenizer_prepends_bos": (False,),
    "n_devices": (1,),
    "attn_types": (),
    "window_size": (),
    "n_key_value_heads": (),
    "num_experts": (),
}
"""What a setting can be in a GPT-NeoX model, beside None where it is no matter."""
_THERE = {"positional_embedding_type": "standard", "normalization_type": "LN"}
"""What there is where these are not given; None says that the model has none."""
_NO_MATTER = (
    *("rotary_dim", "n_params", "from_checkpoint", "init_weights"),
    *("model_name", "tokenizer_name", "original_architecture"),
)


def gpt_neox_config(settings: Mapping[str, Any]) -> GPTNeoXConfig:
    """This package's configuration of the model that TransformerLens's settings describe.

    Args:
        settings: by TransformerLens's names, with its defaults where they are left out.

    Raises:
        ConfigError: one is missing or unknown, or says that the model is none of GPT-NeoX's kind.
    """
    if missing := [name for name in _NEEDED if settings.get(name) is None]:
        raise ConfigError(f"HookedTransformerConfig needs {', '.join(missing)}.")
    given = {name: value for name, value in settings.items() if value not in (None, -1)}
    d_model, d_head = given["d_model"], given.pop("d_head")
    given = {"n_heads": d_model // d_head, "d_mlp": 4 * d_model, "parallel_attn_mlp": False} | given
    given.setdefault("initializer_range", 0.8 / d_model**0.5)
    allowed = _ONLY | {
        "d_head": (d_model / given["n_heads"],),
        "d_vocab_out": (given["d_vocab"],),
        "attn_scale": (d_head**0.5,),
    }
    for name, value in {**_THERE, **settings}.items():
        if name not in allowed:
            if name not in (*_OURS, *_NO_MATTER):
                hint = nearest(name, [*allowed, *_OURS])
                raise ConfigError(f"HookedTransformerConfig has no {name!r}.{hint}")
        elif value not in (allowed[name] if name in _THERE else (None, -1, *allowed[name])):
            expected = (
                " or ".join(
                    f"{one:g}" if isinstance(one, float) else repr(one) for one in allowed[name]
                )
                or "None"
            )
            raise ConfigError(
                f"{name}={shown(value, 60)} makes a model of another kind than GPT-NeoX, which is "
                f"all there is here; expected {expected}."
            )
    share = given.pop("rotary_dim", d_head) / d_head
    named = {_OURS[name]: value for name, value in given.items() if name in _OURS}
    return GPTNeoXConfig(**named, rotary_pct=share)
