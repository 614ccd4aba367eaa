"""Other libraries' names on this one: doors for people who arrive with code they already have.

``nl.compat.transformer_lens(model)`` answers to TransformerLens's calls, and
``from neox_lab.compat import transformer_lens`` stands where ``import transformer_lens`` stood.

A door is thin. Nothing here computes what the public API does not: a line translates a name and
calls it. Nothing outside imports this room.
"""

from neox_lab.compat import transformer_lens

__all__ = ["transformer_lens"]
