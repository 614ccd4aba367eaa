"""How a head is called: ``L3H0`` where there is little room, "layer 3, head 0" in a sentence."""

from __future__ import annotations


def head_name(layer: object, head: object) -> str:
    """``L3H0``: in labels, tables, pictures and wherever a head is typed."""
    return f"L{layer}H{head}"


def head_words(layer: object, head: object) -> str:
    """``layer 3, head 0``: in running text."""
    return f"layer {layer}, head {head}"
