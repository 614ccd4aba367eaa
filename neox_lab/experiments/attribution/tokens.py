"""Token attribution: how much each token of a text moves a metric.

*Integrated gradients* go from a baseline to the text's embeddings in a straight line and add up
the metric's gradient on the way; the shares sum to the metric's difference between both ends.
*Occlusion* replaces one token at a time by the baseline and looks at what the metric loses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check, shown
from neox_lab.errors import InputError
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import BoundMetric, Metric, metric_name
from neox_lab.experiments.prompt_pairs import Batch, batch
from neox_lab.experiments.splices import IN_BLOCKS, check_splices, with_same_splices
from neox_lab.frames import make_frame
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.parts import embeddings as token_vectors
from neox_lab.selections import entry, whole_number

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.views import StripView

Baseline = int | str | Tensor
"""What stands for "no token": ``"mean"`` (the mean of all embeddings), ``"zero"``, a token id, the
text of one token, or a vector ``[d_model]``. The end-of-text token is seldom a good one: it tells
the model that a new document begins."""

TOKENS_AT_ONCE = 4096  # in one run
_PAST = "Embeddings are put in, and the last residual stream is read, past such a function."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenAttribution(AttributionResult):
    """Shares of a metric for each token of each text.

    ``values`` is ``[text, pos]``, not computed at padding; ``total`` is the mean over texts.

    Attributes:
        pieces: token strings ``[text][pos]``.
        totals: of each text what its shares are shares of: the metric on the text minus the metric
            on the baseline; one number for all texts if the metric does not know rows.
    """

    pieces: list[list[str]]
    totals: list[float]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each token: ``text``, ``pos``, ``token``, ``value``; padding is left out."""
        rows = [
            {"text": text, "pos": pos, "token": self.pieces[text][pos], "value": float(value)}
            for text, line in enumerate(self.values)
            for pos, value in enumerate(line)
            if self.is_computed[text, pos]
        ]
        return make_frame(rows, columns=["text", "pos", "token", "value"])

    @property
    def completeness_error(self) -> float:
        """How far the shares of a text are from summing to its total, at most."""
        sums = self.values.double().where(self.is_computed, 0).sum(dim=1)
        if len(self.totals) == 1:
            sums = sums.sum(dim=0, keepdim=True)
        return float((sums - torch.tensor(self.totals, dtype=torch.float64)).abs().max())

    def view(self, text: int = 0) -> StripView:
        """The text, each token tinted and with its share below.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import StripView
        from neox_lab.views.drawing import number

        text = entry("text", text, len(self.pieces), InputError)
        values = self.values[text]
        own = self.is_computed[text]
        pieces = [piece for piece, there in zip(self.pieces[text], own, strict=True) if there]
        view = StripView.values(pieces, values[own], self.title, self.value_name)
        total = self.totals[text if len(self.totals) > 1 else 0]
        both = (number(amount, 3) for amount in (float(values[own].sum()), total))
        view.note += " Their sum is {}, the total {}.".format(*both)
        return view


@torch.inference_mode(False)
def integrated_gradients(
    model: HookedModel,
    inputs: Inputs,
    metric: Metric,
    *,
    baseline: Baseline = "mean",
    steps: int = 64,
) -> TokenAttribution:
    """How much each token contributes to a metric, on the way from a baseline to the text.

    share(token) = ⟨x − x₀, ∫₀¹ ∂metric/∂x (x₀ + α (x − x₀)) dα⟩ with x the token's embedding and x₀
    the baseline's (Sundararajan et al., 2017, arXiv:1703.01365). The shares of a text sum to
    metric(text) − metric(baseline); ``completeness_error`` says how closely, and falls as
    ``steps`` rise. Padding stays what it is.

    A baseline of zeros is possible and rarely good: layer norm does not see how long a vector is,
    so on the straight line from zero everything changes at its very beginning.

    Args:
        model: any class with a head.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        metric: see ``neox_lab.experiments.metrics``.
        baseline: what stands for "no token"; see ``Baseline``.
        steps: runs forward and back.

    Returns:
        Shares in the metric's unit; ``check()`` compares them with occlusion.

    Raises:
        InputError: a baseline or a metric that does not fit, or fewer than one step.
        HookError: a function is spliced in outside the blocks.
    """
    check_splices(model, IN_BLOCKS, _PAST)
    ready = batch(model, inputs, metric)
    start, end = _ends(ready, baseline)
    slopes = gradients.along_path(ready, ["hook_embed"], start, end, steps)["hook_embed"]
    return _result(
        ready,
        ((end - start).float() * slopes.float()).sum(dim=-1),
        _measure(ready, end) - _measure(ready, start),
        f"Integrated gradients of {metric_name(metric)}",
        {"steps": float(steps)},
        exact=with_same_splices(
            model, lambda: occlusion(model, inputs, metric, baseline=baseline).values
        ),
    )


def occlusion(
    model: HookedModel,
    inputs: Inputs,
    metric: Metric,
    *,
    baseline: Baseline = "mean",
    window: int = 1,
) -> TokenAttribution:
    """What a metric loses when each token by itself is replaced by a baseline.

    share(token) = metric(text) − metric(text with the baseline in its place) (Zeiler and Fergus,
    2013, arXiv:1311.2901, for images; Li et al., 2016, arXiv:1612.08220, for words). The shares
    need not sum to anything: what two tokens do together counts for both, or for none.

    Args:
        model: any class with a head.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        metric: see ``neox_lab.experiments.metrics``.
        baseline: what stands in; see ``Baseline``.
        window: how many tokens in a row, beginning with the one that gets the share, are replaced.

    Returns:
        Shares in the metric's unit.

    Raises:
        InputError: a baseline or a metric that does not fit, or a window below one.
        HookError: a function is spliced in outside the blocks.
    """
    window = check("window", window, COUNT, InputError)
    check_splices(model, IN_BLOCKS, _PAST)
    ready = batch(model, inputs, metric)
    start, end = _ends(ready, baseline)
    whole, none = _measure(ready, end), _measure(ready, start)
    knows_rows = isinstance(ready.metric, BoundMetric)
    # A metric that knows rows loses one token of every row at once.
    places = torch.eye(ready.ids.shape[1] if knows_rows else ready.ids.numel(), dtype=torch.bool)
    inside = torch.arange(len(places)) % ready.ids.shape[1] > 0  # a window ends with its text
    for _ in range(min(window, ready.ids.shape[1]) - 1):
        places = places | (places.roll(1, dims=1) & inside)
    places = places.view(len(places), -1, ready.ids.shape[1]).to(start.device)
    lost = []
    for some in torch.split(places, max(1, TOKENS_AT_ONCE // ready.ids.numel())):
        changed = torch.where(some[..., None], start, end)  # [variant, batch, pos, d_model]
        lost.append(whole - _measure(ready, changed.flatten(0, 1)).view(len(some), -1))
    shares = torch.cat(lost).T.reshape(ready.ids.shape)
    title = f"Occlusion: {metric_name(metric)}"
    return _result(ready, shares, whole - none, title, {"window": float(window)})


def _ends(ready: Batch, baseline: Baseline) -> tuple[Tensor, Tensor]:
    """Baseline and embeddings of a batch, ``[batch, pos, d_model]``; the same at padding."""
    end = ready.model.backbone.look_up(ready.ids).detach()
    vector = _vector(ready.model, baseline).to(end)
    return torch.where(ready.own[..., None], vector, end), end


def _vector(model: HookedModel, baseline: Baseline) -> Tensor:
    """What stands for no token, ``[d_model]``.

    Raises:
        InputError: a token or a vector that does not fit the model.
    """
    embeddings = token_vectors(model.backbone.embed_in, model.config.vocab_size).detach()
    if isinstance(baseline, Tensor):
        if baseline.shape != embeddings[0].shape:
            raise InputError(
                f"baseline has shape {list(baseline.shape)}; expected [{embeddings.shape[1]}]."
            )
        return baseline
    if isinstance(baseline, str) and baseline == "mean":
        return embeddings.float().mean(dim=0)
    if isinstance(baseline, str) and baseline == "zero":
        return torch.zeros_like(embeddings[0])
    token = model.to_single_token(baseline) if isinstance(baseline, str) else baseline
    token = whole_number("baseline", token, InputError)
    if not 0 <= token < len(embeddings):
        raise InputError(
            f"baseline={shown(token)}; expected a token id from 0 to {len(embeddings) - 1}, the "
            "text of one token, 'mean', 'zero' or a vector [d_model]."
        )
    return embeddings[token]


@torch.no_grad()
def _measure(ready: Batch, embeds: Tensor) -> Tensor:
    """The metric on embeddings ``[variant * batch, pos, d_model]``.

    Returns:
        ``[variant * batch]``, or ``[variant]`` if the metric does not know rows.
    """

    def replace(tensor: Tensor, _: HookPoint) -> Tensor:
        return embeds.to(tensor)

    arguments = ready.repeated(len(embeds) // len(ready.ids))
    layers = ready.model.config.num_hidden_layers
    output = ready.model.run_with_hooks(
        arguments["input_ids"], [("hook_embed", replace)], stop_at_layer=layers, **arguments
    )
    return ready.measure_streams(output.last_hidden_state).flatten().float().cpu()


def _result(
    ready: Batch,
    shares: Tensor,
    totals: Tensor,
    title: str,
    facts: dict[str, float],
    exact: Callable[[], Tensor] | None = None,
) -> TokenAttribution:
    """Shares ``[text, pos]`` and totals ``[text]`` or ``[1]`` as a result."""
    own = ready.own.cpu()
    values = shares.float().cpu().masked_fill(~own, torch.nan)
    texts = [ready.pieces(row) for row in range(len(values))]
    return TokenAttribution(
        values=values,
        computed=None if bool(own.all()) else own,
        axes=("text", "pos"),
        labels={
            "text": [str(row) for row in range(len(values))],
            "pos": [str(pos) for pos in range(values.shape[1])],
        },
        total=float(totals.mean()),
        per_row=None,
        title=title,
        value_name="share",
        facts=facts,
        pieces=texts,
        totals=totals.tolist(),
        _exact=exact,
    )
