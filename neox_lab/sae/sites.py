"""What the libraries of dictionaries call places of the network, and which hook points these are.

=================== ======================== =================== =========================
hook point          module (sparsify)        dictionary_learning SAELens, circuit-tracer
=================== ======================== =================== =========================
``hook_embed``      ``embed_in``             ``embed``           as here
``hook_resid_post`` ``layers.{l}``           ``resid_out_layer`` as here
``hook_attn_out``   ``layers.{l}.attention`` ``attn_out_layer``  as here
``hook_mlp_out``    ``layers.{l}.mlp``       ``mlp_out_layer``   as here
=================== ======================== =================== =========================

sparsify's autoencoders see what a module returns; its transcoders what the module is given, and
write what it returns. SAELens and circuit-tracer have TransformerLens's names, which are ours.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from neox_lab.config import GPTNeoXConfig
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.hooks.table import hook_points

Site = str | ShortForm


class Place(NamedTuple):
    """A module of the network.

    Attributes:
        written: hook point of what it returns.
        read: hook point of what it is given; empty where there is none.
        modules: its names as a module of ``GPTNeoXModel``.
        learned: its names in dictionary_learning.
    """

    written: str
    read: str
    modules: str
    learned: str = ""


_BLOCK = "blocks.{l}."
TABLE = (
    Place("hook_embed", "", "embed_in embed_tokens", "embed"),
    Place(
        _BLOCK + "hook_resid_post",
        _BLOCK + "hook_resid_pre",
        "layers.{l}",
        "resid_out_layer{l} resid_post_layer_{l} resid_layer{l} resid_{l}",
    ),
    Place(
        _BLOCK + "hook_attn_out",
        _BLOCK + "attn.hook_in",
        "layers.{l}.attention",
        "attn_out_layer{l} attention_out_layer_{l} attn_out_layer_{l} attn_{l}",
    ),
    Place(
        _BLOCK + "hook_mlp_out",
        _BLOCK + "mlp.hook_in",
        "layers.{l}.mlp",
        "mlp_out_layer{l} mlp_out_layer_{l} mlp_{l}",
    ),
    Place(_BLOCK + "hook_attn_out", _BLOCK + "attn.hook_z", "layers.{l}.attention.dense"),
    Place(_BLOCK + "hook_mlp_out", _BLOCK + "mlp.hook_post", "layers.{l}.mlp.dense_4h_to_h"),
    Place(_BLOCK + "mlp.hook_pre", _BLOCK + "mlp.hook_in", "layers.{l}.mlp.dense_h_to_4h"),
    Place(_BLOCK + "mlp.hook_post", _BLOCK + "mlp.hook_pre", "layers.{l}.mlp.act"),
    Place(_BLOCK + "attn.hook_in", _BLOCK + "hook_resid_pre", "layers.{l}.input_layernorm"),
    Place(_BLOCK + "mlp.hook_in", "", "layers.{l}.post_attention_layernorm"),
)
"""Modules and names of all libraries; ``{l}`` stands for the number of a block."""

_HOOK = re.compile(r"((?:blocks\.\d+\.(?:\w+\.)?)?hook_[a-z_]*[a-z])(?:_\d+)?")
_PREFIX = re.compile(r"^(base_model|gpt_neox|model|transformer)\.")


def of_module(path: str, *, transcoder: bool = False) -> tuple[str, str] | None:
    """The hook points that a dictionary on a module reads and writes, or None.

    Args:
        path: such as ``"layers.3.mlp"``, as sparsify calls its folders.
        transcoder: it reads what the module is given.
    """
    path = _PREFIX.sub("", path)
    for place in TABLE:
        layer = _layer(place.modules, path)
        if layer is not None:
            written = place.written.format(l=layer)
            if not transcoder:
                return written, written
            return (place.read.format(l=layer), written) if place.read else None
    return None


def module_of(site_in: str, site_out: str) -> str | None:
    """The module whose input and output, or only output, are these hook points, or None."""
    layer = layer_of(site_out)
    for place in TABLE:
        read, written = (name.format(l=layer) for name in (place.read, place.written))
        if written == site_out and site_in in (read, written):
            return place.modules.split()[0].format(l=layer)
    return None


def input_of(site: str) -> str | None:
    """What the module is given whose output stands at a hook point, or None."""
    layer = layer_of(site)
    for place in TABLE:
        if place.read and place.written.format(l=layer) == site:
            return place.read.format(l=layer)
    return None


def of_learned(name: str) -> str | None:
    """The hook point of a folder of dictionary_learning, such as ``"resid_out_layer3"``."""
    for place in TABLE:
        layer = _layer(place.learned, name)
        if layer is not None:
            return place.written.format(l=layer)
    return None


def of_name(name: str) -> str | None:
    """The hook point of a folder that is called after one, in whatever library's words."""
    found = _HOOK.fullmatch(name)
    if found:
        return found[1]
    sites = of_module(name)
    return sites[1] if sites else of_learned(name)


def in_block(hook: str, layer: int) -> str:
    """A hook point that is named without its block, as in circuit-tracer."""
    return hook if hook.startswith("blocks.") else f"blocks.{layer}.{hook}"


def layer_of(site: str) -> int | None:
    """The block of a hook point, or None."""
    found = re.match(r"blocks\.(\d+)\.", site)
    return int(found[1]) if found else None


def hook_name(site: Site) -> str:
    """The full name of a hook point that a user named in any way.

    Raises:
        HookNameError: no GPT-NeoX model has it.
    """
    return exact(site, hook_points(GPTNeoXConfig(num_hidden_layers=100), "causal-lm"))


def _layer(patterns: str, name: str) -> str | None:
    """The number for which ``name`` is one of the patterns: "" where they have none; or None."""
    for pattern in patterns.split():
        found = re.fullmatch(re.escape(pattern).replace(r"\{l\}", r"(\d+)"), name)
        if found:
            return str(int(found[1])) if found.groups() else ""
    return None
