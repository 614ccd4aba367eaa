"""``utilities``: what ``utils`` is called since TransformerLens 4."""

from neox_lab.compat.transformer_lens.utils import *  # noqa: F403
