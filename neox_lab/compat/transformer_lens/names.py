"""TransformerLens's short names of activations."""

from __future__ import annotations

import re

_SHORT = re.compile(r"([a-z_]+?)(\d+)([a-z]?.*)")
_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_PARTS = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_IN_ATTENTION = ("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores")
_IN_MLP = ("pre", "post", "mid", "pre_linear")
_IN_LAYER_NORM = ("scale", "normalized")


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation.

        get_act_name("k", 6)                  blocks.6.attn.hook_k
        get_act_name("normalized", 2, "ln2")  blocks.2.ln2.hook_normalized
        get_act_name("scale4ln1")             blocks.4.ln1.hook_scale
        get_act_name("embed")                 hook_embed

    Args:
        name: short name, with or without the layer's number behind it; or a full name.
        layer: number of the block, for what every block has.
        layer_type: part of the block, for what it has several times.
    """
    if layer is None and layer_type is None:
        if "." in name or name.startswith("hook_"):
            return name
        found = _SHORT.fullmatch(name)
        if found is not None:
            name, layer, layer_type = found.groups()
    name = _ALIASES.get(name, name)
    if name in _IN_ATTENTION:
        part = "attn"
    elif name in _IN_MLP:
        part = "mlp"
    else:
        part = _PARTS.get(layer_type or "", layer_type or "")
    if layer is None and name in _IN_LAYER_NORM:
        return f"ln_final.hook_{name}"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{part}{'.' if part else ''}hook_{name}"
