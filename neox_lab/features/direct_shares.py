"""What each feature writes for a logit directly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.data.positions import TokenPosition
from neox_lab.errors import InputError
from neox_lab.experiments import metrics
from neox_lab.experiments.attribution.direct import FinalStream
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import BoundMetric, LogitMetric, Output
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.prompt_pairs import batch
from neox_lab.features.reading import written_site
from neox_lab.sae import Dictionary
from neox_lab.sae.splicing import ACTS, ERROR, INPUT, RECONS

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

WRITES_TO_STREAM = (
    "hook_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)


@torch.no_grad()
def direct(
    model: HookedModel,
    dictionary: Dictionary,
    inputs: PromptsLike,
    correct: Output | LogitMetric,
    wrong: Output | None = None,
    pos: TokenPosition = -1,
) -> AttributionResult:
    """Split a logit, or a difference of two, into what each active feature wrote.

    share(f) = a_f · ⟨(W_dec[f] - mean) / scale · γ, W[output]⟩ at the position the logit is read:
    the final layer norm with its scale from the run, and the head. What features do by way of later
    parts is those parts' own, see ``effects``.

    Args:
        model: any class with a head.
        dictionary: one that writes to the residual stream: its ``site_out`` is a residual stream,
            ``hook_attn_out``, ``hook_mlp_out`` or ``hook_embed``.
        inputs: a string, a list of strings, token ids ``[batch, pos]``, or a mapping.
        correct: token or label whose logit is split, or a metric such as ``span_logit(3, 5)``.
        wrong: token or label whose logit is subtracted.
        pos: where it is read, in each text's own tokens.

    Returns:
        Shares, mean over rows: one for each feature active there (``"f123"``), ``"dictionary
        bias"`` (what the dictionary writes without any feature, a skip path included), ``"error"``
        (what it misses), ``"rest"`` (all other parts of the network) and ``"bias"`` (of final norm
        and head). They sum to ``total``, the logit. ``check()`` compares with taking each part out
        of the final residual stream, layer norm computed anew.

    Raises:
        InputError: a dictionary that does not write to the stream, or a metric that does not fit.
        HookError: the dictionary does not fit the model.
    """
    site = written_site(model, dictionary)
    if not isinstance(dictionary, Dictionary):
        raise InputError(
            f"{dictionary!r} writes to several layers; direct shares are of dictionaries that "
            "write to one. nl.features.effects(model, transcoder.layer(0), text, metric) measures "
            "them."
        )
    if site.rpartition(".")[2] not in WRITES_TO_STREAM:
        raise InputError(
            f"{dictionary!r} does not write to the residual stream, but at {site!r}; direct shares "
            f"in logits need a dictionary of {', '.join(WRITES_TO_STREAM)}."
        )
    metric = correct
    if not isinstance(metric, LogitMetric):
        metric = metrics.head_logit(model.head, metric, wrong, pos)
    ready = batch(model, inputs, metric)
    assert isinstance(ready.metric, BoundMetric)
    names = [site, *(f"{site}.{part}" for part in (INPUT, ACTS, RECONS, ERROR))]
    with model.spliced(dictionary):
        final = FinalStream.of(ready, ready.metric, names)
    parts = _parts(dictionary, final, names)
    per_row = torch.stack([final.share(v[None], name == "bias")[0] for name, v in parts], dim=1)
    total = float(final.per_row.mean())

    @torch.no_grad()
    def exact() -> Tensor:
        lost = [final.effect_of_removing(v[None], name == "bias")[0] for name, v in parts]
        return torch.stack(lost, dim=1).mean(dim=0).cpu()

    return AttributionResult(
        values=per_row.mean(dim=0),
        axes=("component",),
        labels={"component": [name for name, _ in parts]},
        total=total,
        per_row=per_row.cpu(),
        title=f"Direct shares of the features of {site}",
        value_name=f"share of {metric.name}",
        facts={},
        _exact=exact,
    )


def _parts(
    dictionary: Dictionary, final: FinalStream, names: list[str]
) -> list[tuple[str, Tensor]]:
    """Names, and what each of them wrote, ``[batch, term, d_model]``."""
    written, x, acts, recons, error = (final.at[name] for name in names)
    x = x.flatten(2)
    latents = (acts != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
    parts = []
    alone = torch.zeros_like(acts)
    for latent in latents:
        alone[..., latent] = acts[..., latent]
        parts.append((f"f{latent}", dictionary.written(torch.zeros_like(acts), alone, x)))
        alone[..., latent] = 0
    features = sum((vectors for _, vectors in parts), torch.zeros_like(recons))
    return [
        *parts,
        ("dictionary bias", recons - features),
        ("error", error),
        ("rest", final.stream - written),
        ("bias", torch.zeros_like(recons)),
    ]
