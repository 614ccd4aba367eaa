"""From TransformerLens 4's names of hook points to those of its earlier versions and of this one.

Version 4 names the input and output of every module (``blocks.0.attn.q.hook_out``) and keeps the
earlier names (``blocks.0.attn.hook_q``) beside them.
"""

from __future__ import annotations

from neox_lab.hooks.names import Name, ShortForm

_IN_BLOCK = {
    "hook_in": "hook_resid_pre",
    "hook_out": "hook_resid_post",
    "ln1.hook_in": "hook_resid_pre",
    "ln1.hook_out": "attn.hook_in",
    "attn.q.hook_in": "attn.hook_in",
    "attn.k.hook_in": "attn.hook_in",
    "attn.v.hook_in": "attn.hook_in",
    "attn.q.hook_out": "attn.hook_q",
    "attn.k.hook_out": "attn.hook_k",
    "attn.v.hook_out": "attn.hook_v",
    "attn.o.hook_in": "attn.hook_z",
    "attn.o.hook_out": "hook_attn_out",
    "attn.hook_out": "hook_attn_out",
    "attn.hook_hidden_states": "hook_attn_out",
    "attn.hook_q_input": "hook_q_input",
    "attn.hook_k_input": "hook_k_input",
    "attn.hook_v_input": "hook_v_input",
    "attn.hook_attn_in": "hook_attn_in",
    "ln2.hook_in": "hook_mlp_in",
    "ln2.hook_out": "mlp.hook_in",
    "mlp.in.hook_in": "mlp.hook_in",
    "mlp.in.hook_out": "mlp.hook_pre",
    "mlp.out.hook_in": "mlp.hook_post",
    "mlp.out.hook_out": "hook_mlp_out",
    "mlp.hook_out": "hook_mlp_out",
}
_OUTSIDE: dict[str, str | ShortForm] = {
    "embed.hook_out": "hook_embed",
    "ln_final.hook_in": ("resid_post", -1),
    "ln_final.hook_out": "unembed.hook_in",
    "hook_unembed": "unembed.hook_out",
}


def earlier_name(name: Name) -> Name:
    """A name of version 4 as an earlier one; any other is returned as it is."""
    if not isinstance(name, str):
        return name
    if name.startswith("blocks."):
        blocks, layer, inside = (*name.split(".", 2), "", "")[:3]
        return f"{blocks}.{layer}.{_IN_BLOCK.get(inside, inside)}"
    return _OUTSIDE.get(name, name)
