"""One reading for every lens: streams at a site, perhaps translated, through norm and unembedding.

The logit lens reads a stream as it stands; a tuned lens first translates it into the basis of the
last layer. Here alone a stream becomes a prediction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.checks import check, name_not_finite, one_of, require_model, several, whole
from neox_lab.errors import InputError
from neox_lab.experiments.lens.result import LensResult
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.prompts import refuse_other_angles
from neox_lab.experiments.splices import check_end
from neox_lab.model.parts import at_least_float32

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

LENS_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

ENDS = ("resid_pre", "resid_post")
"""Sites whose last row is the stream after the last block."""

Translate = Callable[[Tensor, int], Tensor]
"""From a stream ``[batch, pos, d_model]`` and the number of its row to one of the last layer."""


@torch.no_grad()
def read(
    model: HookedModel,
    inputs: Inputs,
    site: str,
    *,
    watch: Sequence[str | int],
    top_k: int,
    name: str,
    translate: Translate | None = None,
) -> LensResult:
    """Predictions at a site, layer by layer; arguments and errors are those of ``logit_lens``.

    Args:
        model: as there.
        inputs: as there.
        site: as there.
        watch: as there.
        top_k: as there.
        name: what the lens is called, as in ``"Logit lens"``.
        translate: applied to each stream before the final layer norm; not to the last row of a
            lens on the residual stream, which is the model's own prediction.

    Returns:
        A row of predictions for each layer.
    """
    require_model(model)
    check("site", site, one_of(*LENS_SITES), InputError)
    unembed = model.get_output_embeddings()
    if unembed is None:
        raise InputError(f"A lens needs an unembedding; {type(model).__name__} has none.")
    check_end(model)
    check_parts(model)
    top_k = check("top_k", top_k, whole(above=0), InputError)
    known = whole(least=0, most=len(unembed.weight) - 1)
    watched = [
        model.to_single_token(t) if isinstance(t, str) else check("watch", t, known, InputError)
        for t in several("watch", watch, "a list of tokens", InputError)
    ]
    prepared = model.prepare_inputs(inputs)
    last = model.config.num_hidden_layers - 1
    output, cache = model.run_with_cache(
        inputs, [f"blocks.*.hook_{site}", f"blocks.{last}.hook_resid_post"]
    )
    ids = prepared["input_ids"]
    own = prepared.get("attention_mask", torch.ones_like(ids)).bool()
    refuse_other_angles(model, own, "inputs")
    followed = torch.nn.functional.pad(own[:, 1:] & own[:, :-1], (0, 1))
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1)).masked_fill(~followed, -1)
    final = at_least_float32(output.logits).log_softmax(dim=-1)
    rows = [
        _read(log_probs, final, following, watched, min(top_k, final.shape[-1]))
        for log_probs in _predictions(model, cache, site, unembed, translate)
    ]
    columns = {name: torch.stack([row[name] for row in rows]).cpu() for name in rows[0]}
    best = columns["top"][-1, ..., 0] if site in ENDS else final.argmax(dim=-1).cpu()
    labels = _labels(site, last + 1)
    bad = (columns["top_probability"].isnan().any(dim=-1) & own.cpu()).nonzero().tolist()
    name_not_finite("The prediction", (f"{labels[i]}, text {row}, pos {at}" for i, row, at in bad))
    decode = functools.lru_cache(maxsize=None)(functools.partial(token_text, model.tokenizer))
    shown = {*columns["top"].flatten().tolist(), *best.flatten().tolist(), *watched}
    return LensResult(
        name=name,
        site=site,
        labels=labels,
        pieces=[[decode(token) for token in row] for row in ids.tolist()],
        mask=own.cpu(),
        prediction=best.masked_fill((final.isnan().any(dim=-1) | ~own).cpu(), -1),
        vocab_size=final.shape[-1],
        watched=watched,
        piece_of={token: decode(token) for token in shown},
        **columns,
    )


def _predictions(
    model: HookedModel,
    cache: ActivationCache,
    site: str,
    unembed: nn.Module,
    translate: Translate | None,
) -> Iterator[Tensor]:
    """Log probabilities ``[batch, pos, vocab]`` of each row of the lens, one at a time."""
    layers = model.config.num_hidden_layers
    streams = [cache[site, layer] for layer in range(layers)]
    if site == "resid_pre":
        streams.append(cache["resid_post", layers - 1])
    for row, stream in enumerate(streams):
        if translate is not None and not (site in ENDS and row == len(streams) - 1):
            stream = translate(stream, row)
        logits = unembed(model.backbone.normalize(stream))
        yield at_least_float32(logits).log_softmax(dim=-1)


def _labels(site: str, layers: int) -> list[str]:
    """Names of the rows; the residual stream after the last block is ``final``."""
    labels = [f"{layer}_{site.removeprefix('resid_')}" for layer in range(layers)]
    if site == "resid_pre":
        return [*labels, "final"]
    return [*labels[:-1], "final"] if site == "resid_post" else labels


def _read(
    log_probs: Tensor, final: Tensor, following: Tensor, watched: list[int], top_k: int
) -> dict[str, Tensor]:
    """The numbers of one row of the lens, by the names of LensResult's fields."""
    probability, top = log_probs.topk(top_k, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    kl = (final.exp() * (final - log_probs)).sum(dim=-1)
    at_end = following < 0  # nothing follows
    next_log = log_probs.gather(-1, following.clamp(min=0)[..., None])
    unknown = log_probs.isnan().any(dim=-1)
    next_rank = (log_probs > next_log).sum(dim=-1).masked_fill(at_end | unknown, -1)
    columns = log_probs[..., watched]
    ranks = [(log_probs > columns[..., n : n + 1]).sum(dim=-1) for n in range(len(watched))]
    rank = torch.stack(ranks, dim=-1) if ranks else columns.long()
    rank = rank.masked_fill(unknown[..., None], -1)
    return {
        "top": top,
        "top_probability": probability.exp(),
        "entropy": entropy,
        "kl": kl,
        "next_log_probability": next_log[..., 0].masked_fill(at_end, float("nan")),
        "next_rank": next_rank,
        "watched_log_probability": columns,
        "watched_rank": rank,
    }


def token_text(tokenizer: GPTNeoXTokenizerFast | None, token: int) -> str:
    """One token's text, or its number where there is no tokenizer."""
    return f"⟨{token}⟩" if tokenizer is None else str(tokenizer.piece_text(token))
