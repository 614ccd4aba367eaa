"""Effect against fluency: what steering does to a metric, and what it costs.

At each scale the metric of each prompt is measured, and how far what the model predicts for texts
moves from what it predicts unsteered (KL, in bits a token) and from what comes (cross-entropy, in
bits a token). Controls are steered likewise: random directions of equal length, and what the
method finds where labels say nothing, all at right angles to the direction (see ``aside``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import COUNT, FINITE, SEED, check, one_of, one_or_several_texts, several, whole
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows, pad_token, token_ids
from neox_lab.data.statistics import bootstrap_interval
from neox_lab.data.tables import check_lengths, refuse
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import (
    BoundMetric,
    Metric,
    bind,
    evaluate,
    metric_name,
    output_logits,
)
from neox_lab.frames import make_frame
from neox_lab.model.output_heads import require_head
from neox_lab.progress import counted
from neox_lab.results import FrameResult
from neox_lab.steering.edits import MODES
from neox_lab.steering.places import Places, Where

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.steering.directions import Direction
    from neox_lab.views import CurvesView, Line

SCALES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
MEASURES = ("metric", "kl_bits", "bits_per_token")


@dataclasses.dataclass(frozen=True)
class SteeringCurve(FrameResult):
    """What steering does at several scales, beside its controls.

    Attributes:
        frame: one row for each scale of the direction and of each control: ``kind`` (direction,
            random or shuffled), ``draw`` (which control), ``scale``; ``metric``, mean over prompts,
            ``kl_bits`` and ``bits_per_token``, means over texts, each with its 95 % bootstrap
            interval (``metric_low``, ``metric_high``, ...); ``perplexity`` = 2^bits_per_token.
            Fluency is missing where the model predicts no tokens.
        metric: what it is called.
        mode: how the model was steered.
        counts: how many prompts and texts.
    """

    frame: pd.DataFrame
    metric: str
    mode: str
    counts: tuple[int, int]

    @property
    def effect(self) -> float:
        """How far the metric moves from the lowest to the highest scale."""
        return self._spans()["direction"][0]

    @property
    def control_effects(self) -> dict[str, list[float]]:
        """The same of each control, by kind."""
        return {kind: spans for kind, spans in self._spans().items() if kind != "direction"}

    def _spans(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for (kind, _), rows in self.frame.groupby(["kind", "draw"], sort=False):
            ordered = rows.sort_values("scale")["metric"].to_numpy()
            found.setdefault(str(kind), []).append(float(ordered[-1] - ordered[0]))
        return found

    def view(self) -> CurvesView:
        """Metric, KL and perplexity over the scales; of controls their mean and their range."""
        from neox_lab.views import CurvesView

        prompts, texts = self.counts
        panels = {"metric": self.metric, "kl_bits": f"KL, bits a token ({counted(texts, 'text')})"}
        panels["bits_per_token"] = "cross-entropy, bits a token"
        lines = {}
        for measure, panel in panels.items():
            if self.frame[measure].isna().all():
                continue
            for kind, rows in self.frame.groupby("kind", sort=False):
                name = f"{kind}: {panel.split(',')[0]}"
                lines[name] = self._line(rows, measure, panel, str(kind))
        moved = [abs(effect) for effects in self.control_effects.values() for effect in effects]
        most = float(np.max(moved)) if moved else 0.0  # NaN, if one is
        share = f" ({most / abs(self.effect):.0%})" if moved and self.effect else ""
        beside = f", controls up to {most:.3g}{share}" if moved else ""
        on = f"({self.mode}), {counted(prompts, 'prompt')}"
        title = f"Steering {on}: effect {self.effect:.3g}{beside}"
        return CurvesView(title, lines, "scale", self.metric)

    def _line(self, rows: pd.DataFrame, measure: str, panel: str, kind: str) -> Line:
        """One line with its band: the interval of the direction, the range of controls."""
        from neox_lab.views import Line

        by_scale = rows.groupby("scale")
        # pandas' own means and ends would leave NaN out.
        mean = by_scale[measure].agg(lambda v: v.to_numpy().mean())
        draws = rows["draw"].nunique()
        alone = draws == 1
        low = by_scale[f"{measure}_low" if alone else measure].agg(lambda v: v.to_numpy().min())
        high = by_scale[f"{measure}_high" if alone else measure].agg(lambda v: v.to_numpy().max())
        kind = f"{kind} (mean of {draws})" if draws > 1 else kind
        return Line(list(mean.index), mean, low, high, y_label=panel, kind=kind)


def evaluate_direction(
    direction: Direction,
    metric: Metric,
    inputs: str | list[str],
    scales: Sequence[float] = SCALES,
    texts: Sequence[str] | None = None,
    mode: str = "add",
    positions: Places = "all",
    controls: int = 4,
    batch_size: int = 32,
    seed: int = 0,
) -> SteeringCurve:
    """See ``Direction.evaluate``."""
    model = direction.model
    refuse_dropout(model)
    check("mode", mode, one_of(*MODES), InputError)
    Where.of(positions)
    scales = [
        check("scales", s, FINITE, InputError)
        for s in several("scales", scales, "numbers", InputError)
    ]
    if not scales:
        raise InputError("scales is empty; expected numbers such as (-1, 0, 1)")
    controls = check("controls", controls, whole(least=0, most=100), InputError)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    if callable(inputs) and not callable(metric):
        raise InputError("metric is prompts and inputs a metric: evaluate(metric, inputs).")
    prepared = model.prepare_inputs(inputs)
    bound = bind(metric, model, prepared)
    prompts = len(next(iter(prepared.values())))
    batches: list[tuple[Tensor, Tensor]] = []
    if model.head == "causal-lm":
        read = [inputs] if isinstance(inputs, str) else inputs
        batches = list(_batches(direction, read if texts is None else texts, batch_size))
    elif texts is not None:
        require_head(model.head, "causal-lm")
    rows: list[dict[str, object]] = []
    measured: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        plain = [_log_probabilities(direction, *batch) for batch in batches]
        for kind, draw, each in _directions(direction, controls, seed):
            for scale in scales:
                with each.steer(scale, positions, mode):
                    effects = _effects(each, bound, prepared, batch_size)
                    costs = [
                        _costs(each, *batch, before)
                        for batch, before in zip(batches, plain, strict=True)
                    ]
                rows.append({"kind": kind, "draw": draw, "scale": scale})
                nothing = torch.full((1, 2), math.nan, dtype=torch.float32)
                measured.append((effects, torch.cat(costs) if costs else nothing))
    frame = make_frame(_columns(rows, measured, seed))
    count = sum(len(ids) for ids, _ in batches)
    return SteeringCurve(frame, metric_name(metric), mode, (prompts, count))


def _directions(
    direction: Direction, controls: int, seed: int
) -> Iterator[tuple[str, int, Direction]]:
    """The direction itself and its controls."""
    yield "direction", 0, direction
    fewest = min(len(at.shuffled) for at in direction.sites.values())
    for kind, most in (("random", controls), ("shuffled", min(controls, fewest))):
        for draw in range(most):
            number = (draw + seed * controls) % 2**31 if kind == "random" else draw
            yield kind, draw, direction.control(kind, number)


def _effects(
    direction: Direction, bound: Metric, prepared: Mapping[str, Tensor], batch_size: int
) -> Tensor:
    """The metric of each prompt ``[prompt]``."""
    model = direction.model
    count = len(next(iter(prepared.values())))
    known = isinstance(bound, BoundMetric)
    found = []
    for start in range(0, count, batch_size if known else 1):
        rows = slice(start, start + (batch_size if known else 1))
        logits = output_logits(model(**{name: t[rows] for name, t in prepared.items()}))
        if isinstance(bound, BoundMetric):
            part = dataclasses.replace(
                bound, outputs=bound.outputs[rows], positions=bound.positions[rows]
            )
            found.append(part.per_row(logits).float().cpu())
            continue
        text = prepared["attention_mask"][start].bool() if logits.dim() == 3 else slice(None)
        own = logits[:, text] if logits.dim() == 3 else logits
        found.append(evaluate(bound, own).float().cpu()[None])
    return torch.cat(found)


def _batches(
    direction: Direction, texts: object, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask ``[batch, pos]`` of texts, padded on the right.

    Raises:
        InputError: no texts.
        DataError: texts of fewer than two tokens, or longer than the model can read.
    """
    model = direction.model
    listed = one_or_several_texts("texts", texts)
    if not listed:
        raise InputError("texts must be a list of texts, at least one")
    ids = token_ids(model, listed)
    short = [(row, "has fewer than two tokens") for row, line in enumerate(ids) if len(line) < 2]
    refuse("Nothing can be predicted", short, "Leave these texts out.")
    check_lengths(ids, model.config.max_position_embeddings, "Shorten these texts.")
    for rows in by_length(model, [len(line) for line in ids], batch_size):
        batch, mask = pad_rows([ids[row] for row in rows], pad_token(model))
        yield batch.to(model.device), mask.to(model.device)


def _log_probabilities(direction: Direction, ids: Tensor, mask: Tensor) -> Tensor:
    """Of every next token ``[batch, pos, vocab]``, float32."""
    logits: Tensor = direction.model(ids, attention_mask=mask).logits
    return logits.float().log_softmax(dim=-1)


def _costs(direction: Direction, ids: Tensor, mask: Tensor, before: Tensor) -> Tensor:
    """KL and cross-entropy of each text, means over tokens, in bits ``[text, 2]``."""
    after = _log_probabilities(direction, ids, mask)
    told = mask[:, 1:].float()
    kl = (before.exp() * (before - after)).sum(dim=-1)[:, :-1]
    loss = -after[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    both = torch.stack((kl, loss), dim=-1).where(told[..., None] > 0, 0.0)
    means = both.sum(dim=1) / told.sum(dim=1, keepdim=True)
    return (means / math.log(2)).cpu()


def _columns(
    rows: Sequence[Mapping[str, object]], measured: Sequence[tuple[Tensor, Tensor]], seed: int
) -> dict[str, object]:
    """The columns of the frame: means with their intervals."""
    found: dict[str, object] = {name: [row[name] for row in rows] for name in rows[0]}
    effects, costs = (torch.stack(each, dim=1) for each in zip(*measured, strict=True))
    for name, samples in zip(MEASURES, (effects, costs[..., 0], costs[..., 1]), strict=True):
        low, high = bootstrap_interval(samples, seed=seed)
        found |= {name: samples.double().mean(dim=0).numpy()}
        found |= {f"{name}_low": low.numpy(), f"{name}_high": high.numpy()}
    return found | {"perplexity": torch.exp2(costs[..., 1].double().mean(dim=0)).numpy()}
