"""One prompt, read by one model: everything the explorer shows without asking further.

Two runs: one for the logit lens, one for attention and for what every part writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neox_lab.checks import some_of
from neox_lab.errors import InputError, NeoxLabError
from neox_lab.experiments.lens import LensResult, logit_lens
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.check import weights_not_finite
from neox_lab.head_names import head_name
from neox_lab.hooks.cache import ActivationCache
from neox_lab.views import attention, label
from neox_lab.views.explorer import ReadingView, Shares
from neox_lab.views.live import rounded

MOST_TOKENS = 256
CANDIDATES = 10  # likeliest tokens kept in each cell of the lens
STACK_BYTES = 100_000_000  # of what parts write, taken apart at once


@dataclass(frozen=True)
class Reading:
    """A prompt and what the model made of it.

    Attributes:
        prompt: the text.
        ids: its tokens ``[1, pos]``.
        about: the likeliest next token at each position, ``[pos]``.
        lens: on the residual stream.
        view: all of it, as views.
    """

    prompt: str
    ids: Tensor
    about: Tensor
    lens: LensResult
    view: ReadingView

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return self.ids.shape[1]


@torch.no_grad()
def read(model: GPTNeoXForCausalLM, prompt: str) -> Reading:
    """Run ``model`` on ``prompt``.

    Raises:
        InputError: an empty prompt, one of more than 256 tokens, or one on which the run is NaN
            or infinite.
    """
    ids, config = tokens_of(model, prompt), model.config
    layers = config.num_hidden_layers
    names = ("hook_embed", "blocks.*.hook_mlp_out", "blocks.*.attn.hook_z", "ln_final.hook_scale")
    output, cache = model.run_with_cache(ids, names_filter=[*names, "blocks.*.attn.hook_pattern"])
    if not output.logits.isfinite().all():
        raise InputError(_where_it_breaks(model, ids, model.to_str_tokens(prompt)))
    lens = logit_lens(model, ids, top_k=CANDIDATES)
    about = lens.top[-1, 0, :, 0]
    view = ReadingView(
        prompt=prompt,
        attention=attention(cache, model.to_str_tokens(prompt)),
        lens=lens.view(),
        about=[lens.piece_of[int(token)] for token in about],
        shares=_shares(cache, about, layers * (config.num_attention_heads + 1), config.hidden_size),
    )
    return Reading(prompt, ids, about, lens, view)


def _where_it_breaks(model: GPTNeoXForCausalLM, ids: Tensor, pieces: list[str]) -> str:
    """Which activation of a run is the first that is not finite, and which weights are not."""
    _, cache = model.run_with_cache(ids)
    first = "what the model gives out"
    for name, value in cache.items():  # in the order of the run
        # Scores are minus infinity wherever a token must not look.
        bad = value.isnan() | (value == torch.inf) | ((value == -torch.inf) & ("score" not in name))
        if bad.any():
            axis = 2 if value.ndim == 4 and ("score" in name or "pattern" in name) else 1
            at = int(bad.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[0])
            first = f"{name}, at token {at} (“{label(pieces[at], 24)}”)"
            break
    weights = weights_not_finite(model)
    why = (
        f"Not finite among the weights: {some_of(weights)}."
        if weights
        else "All weights are finite, so numbers grew too large on the way; try dtype float32."
    )
    return (
        f"On this prompt the model's run is NaN or infinite, so that there is nothing to show. The "
        f"first activation that is: {first}. {why}"
    )


def tokens_of(model: GPTNeoXForCausalLM, prompt: str) -> Tensor:
    """The prompt's tokens ``[1, pos]``.

    Raises:
        InputError: none, or more than 256.
    """
    if not prompt:
        raise InputError("The prompt is empty: write a text for the model to read.")
    ids = model.to_tokens(prompt)
    if ids.shape[1] > MOST_TOKENS:
        raise InputError(
            f"This prompt has {ids.shape[1]} tokens; the explorer shows up to {MOST_TOKENS}. For "
            "longer texts use nl.views.attention and nl.lens.logit_lens."
        )
    return ids


def _shares(cache: ActivationCache, about: Tensor, parts: int, width: int) -> Shares | None:
    """Each part's share in the logit of ``about``; None where they do not add up to it."""
    step = max(1, STACK_BYTES // (4 * parts * width))
    values: list[Tensor] = []
    labels: list[str] = []
    try:
        for first in range(0, len(about), step):
            kept = slice(first, first + step)
            stack, labels = cache.get_full_resid_decomposition(
                expand_neurons=False, pos_slice=kept, return_labels=True
            )
            shares = cache.logit_attrs(stack, about[None, kept], pos_slice=kept)[:, 0]
            shares[-1] += cache.logit_bias(about[kept])
            values.append(shares.T.float().cpu())
    except NeoxLabError:  # a function is spliced in, or a part is no plain one
        return None
    names, places = [_named(name) for name in labels], [_place(name) for name in labels]
    return Shares(names, places, torch.cat(values).numpy())


def _place(name: str) -> tuple[int, int | None] | None:
    """Layer and head of a part: ``L3H1`` or ``3_mlp_out``."""
    if name.startswith("L"):
        layer, head = name[1:].split("H")
        return int(layer), int(head)
    return (int(name.split("_")[0]), None) if name.endswith("_mlp_out") else None


def _named(name: str) -> str:
    """A part in the words of the explorer."""
    place = _place(name)
    if place is None:
        return {"embed": "embedding", "bias": "biases"}[name]
    return f"MLP{place[0]}" if place[1] is None else head_name(*place)


def expected(model: GPTNeoXForCausalLM, ids: Tensor, about: Tensor) -> Tensor:
    """Probability of one token a position, at each row of the lens.

    Args:
        model: the model.
        ids: what it reads, ``[1, pos]``.
        about: the tokens, ``[pos]``.

    Returns:
        ``[row, pos]``.
    """
    tokens, column = torch.unique(about, return_inverse=True)
    lens = logit_lens(model, ids, watch=tokens.tolist(), top_k=1)
    probability = lens.watched_probability[:, 0]  # [row, pos, token]
    at = column[None, :, None].expand(len(probability), -1, 1)
    return probability.gather(-1, at)[..., 0]


def compare(
    model: GPTNeoXForCausalLM, first: Reading, other: GPTNeoXForCausalLM | None, second: Reading
) -> dict[str, Any]:
    """A second reading for the script, with what changes where both have as many tokens.

    Args:
        model: that made ``first``.
        first: the reading on show.
        other: the model that made ``second``; None for the same.
        second: what it is compared with.
    """
    one, two = first.view, second.view
    same = one.attention.patterns.shape == two.attention.patterns.shape
    found: dict[str, Any] = {**two.data(), "same": same}
    if same:
        before = expected(model, first.ids, first.about)
        after = expected(other or model, second.ids, first.about)
        found["change"] = rounded((after - before).numpy(), 3)
    return found
