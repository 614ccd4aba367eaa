"""The logit lens: the stream as it stands, through the model's own final norm and unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neox_lab.experiments.lens.reading import read
from neox_lab.experiments.lens.result import LensResult

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs


def logit_lens(
    model: HookedModel,
    inputs: Inputs,
    site: str = "resid_pre",
    *,
    watch: Sequence[str | int] = (),
    top_k: int = 5,
) -> LensResult:
    """Read predictions off the residual stream, or off what attention or the MLP writes.

    Args:
        model: one with an unembedding, a ``GPTNeoXForCausalLM``.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        site: ``resid_pre`` (before each block, and at the end), ``resid_mid`` (sequential blocks
            only), ``resid_post``, ``attn_out`` or ``mlp_out``.
        watch: tokens to follow, as strings of exactly one token or as ids.
        top_k: how many of the likeliest tokens to keep.

    Returns:
        A row of predictions for each layer.

    Raises:
        InputError: an unknown site, a model without an unembedding, or a watched id or ``top_k``
            out of range.
        HookNameError: ``resid_mid`` of a model with parallel blocks.
        HookError: a function is spliced in, or a hook that may change something is placed, above
            the last block; or there are PyTorch hooks that reading a layer early would skip.
        TokenizerError: a watched string is not exactly one token.
    """
    return read(model, inputs, site, watch=watch, top_k=top_k, name="Logit lens")
