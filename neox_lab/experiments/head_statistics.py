"""How heads attend over a corpus, whatever they look for.

    result = nl.detect.head_statistics(model, texts)
    result                                          # entropy, layer by head
    result.view("distance", with_first=False)
    result.top(5, "first_token")                    # heads, the largest mean first

For a query at position q of its text, with attention A over the keys k = 0 … q:

    entropy_bits      −Σ A log₂ A
    distance          Σ A (q − k), in tokens
    first_token       A on key 0
    own_token         A on key q
    previous_token    A on key q − 1

Heads rest on the first token of a text where they have nothing to do, which is the largest term of
every such number. So each is given twice: as it is, and **without the first token**: key 0 taken
away and the rest divided by its sum. Query 0, which can only look at itself, is left out of both;
query 1, which then has only itself left, is not.

A text's number is the mean over its queries, and a head's number the mean over texts, so that every
text counts the same and the interval, a bootstrap over texts, is one of independent draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, SWITCH, check, one_of, whole
from neox_lab.data.batches import by_length
from neox_lab.data.statistics import bootstrap_interval
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.head_names import head_name
from neox_lab.hooks import reads_only
from neox_lab.results import GridResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.base import GPTNeoXPreTrainedModel
    from neox_lab.family.text import Inputs
    from neox_lab.model.hook_points import HookPoint
    from neox_lab.views import HeatmapView

STATISTICS = {
    "entropy_bits": "entropy of attention (bits)",
    "distance": "mean distance of attention (tokens)",
    "first_token": "share of attention on the first token",
    "own_token": "share of attention on the own token",
    "previous_token": "share of attention on the previous token",
}
FIRST = list(STATISTICS).index("first_token")
WITH_FIRST = ("True", "False")
PART = 2**24  # numbers of attention that are looked at together


@dataclass(frozen=True, kw_only=True)
class HeadStatisticsResult(GridResult):
    """Statistics of all heads over texts; arrays are on the CPU.

    The share on the first token is not computed without the first token.

    Attributes:
        values: mean over texts ``[layer, head, statistic, with_first]``, float64.
        low: lower end of the 95 % bootstrap interval over texts, of the same shape; NaN of a single
            text.
        high: its upper end, likewise.
        samples: of each text ``[text, layer, head, statistic, with_first]``, float32; NaN for a
            head that looks at the first token of a text and nowhere else, without that token. Such
            texts are left out of that head's mean.
        queries: how many queries each text has but the first, ``[text]``.
    """

    low: Tensor
    high: Tensor
    samples: Tensor
    queries: Tensor

    def _columns(self) -> dict[str, Tensor]:
        return {"mean": self.values, "low": self.low, "high": self.high}

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each number: layer, head, statistic, with_first, mean, low, high."""
        return super().frame.assign(with_first=lambda frame: frame["with_first"] == "True")

    def top(
        self,
        count: int = 10,
        statistic: str = "entropy_bits",
        *,
        with_first: bool = True,
        smallest: bool = False,
    ) -> pd.DataFrame:
        """Heads in the order of one statistic.

        Args:
            count: how many.
            statistic: one of ``STATISTICS``.
            with_first: with the first token of each text.
            smallest: the smallest mean first, not the largest.

        Returns:
            Rows of ``frame`` with ``name``, such as L3H0; NaN is left out.

        Raises:
            InputError: there is no such statistic, or ``count`` is no number of heads.
        """
        count = check("count", count, whole(least=0), InputError)
        smallest = check("smallest", smallest, SWITCH, InputError)
        self._place_of(statistic, with_first)
        frame = self.frame
        rows = frame[(frame["statistic"] == statistic) & (frame["with_first"] == with_first)]
        rows = rows.dropna(subset=["mean"])
        rows = rows.sort_values("mean", ascending=smallest, kind="stable")[:count]
        names = [head_name(*at) for at in zip(rows["layer"], rows["head"], strict=True)]
        return rows.reset_index(drop=True).assign(name=names)

    def view(self, statistic: str = "entropy_bits", *, with_first: bool = True) -> HeatmapView:
        """A map, layer by head, of one statistic's means.

        Args:
            statistic: one of ``STATISTICS``.
            with_first: with the first token of each text.

        Raises:
            InputError: there is no such statistic.
        """
        from neox_lab.views import HeatmapView

        place = self._place_of(statistic, with_first)
        name = STATISTICS[statistic]
        texts = len(self.samples)
        return HeatmapView(
            self.values[:, :, *place],
            row_labels=self.labels["layer"],
            column_labels=self.labels["head"],
            row_axis="layer",
            column_axis="head",
            value_name=name,
            centre=None,
            title=f"Over {texts} text{'s' * (texts != 1)}: {name}"
            + (", first token left out" if not with_first else ""),
            measured=self.is_computed[:, :, *place],
        )

    def _place_of(self, statistic: object, with_first: object) -> tuple[int, int]:
        """Indices of the two last axes."""
        name = check("statistic", statistic, one_of(*STATISTICS), InputError)
        kept = check("with_first", with_first, SWITCH, InputError)
        if name == "first_token" and not kept:
            raise InputError("Without the first token there is no attention on it; with_first=True")
        return list(STATISTICS).index(name), WITH_FIRST.index(str(kept))


@torch.no_grad()
def head_statistics(
    model: GPTNeoXPreTrainedModel, texts: Inputs, *, batch_size: int = 8, seed: int = 0
) -> HeadStatisticsResult:
    """Entropy, distance and shares of every head's attention over a corpus, with intervals.

    Formulas: ``help("neox_lab.experiments.head_statistics")``. All heads are
    measured in one pass, and each attention pattern is dropped as soon as it was added up: memory
    holds the patterns of one layer and batch, and of each text ten numbers a head. Hooks and
    spliced functions that are in place act.

    Args:
        model: any of the five classes.
        texts: a string, a list of strings (padding is left out on either side), or token ids
            ``[batch, pos]``.
        batch_size: texts in one forward pass.
        seed: of the bootstrap.

    Raises:
        InputError: dropout is on; there are no texts or token ids; a text has fewer than two
            tokens; or ``batch_size`` is no number of texts.
    """
    refuse_dropout(model)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    prepared = model.prepare_inputs(texts)
    if "input_ids" not in prepared:
        raise InputError("Statistics of heads need texts or token ids, not embeddings.")
    ids = prepared["input_ids"]
    mask = prepared.get("attention_mask", torch.ones_like(ids)).bool()
    lengths = mask.sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        if length < 2:
            raise InputError(
                f"Text {row} has {length} token(s); a head needs at least 2 to choose from."
            )
    means = _Means(len(ids), model.config.num_hidden_layers, model.config.num_attention_heads)
    for rows in by_length(model, lengths, batch_size):
        columns = mask[rows].any(dim=0)  # without those that only longer texts fill
        own = mask[rows][:, columns]
        means.begin(rows, own)
        padding = None if bool(own.all()) else own.long()
        with model.hooks([("blocks.*.attn.hook_pattern", means.add)]):
            model.backbone(ids[rows][:, columns], attention_mask=padding, use_cache=False)
    return _result(means, torch.tensor(lengths) - 1, seed)


class _Means:
    """Each text's means of what passes, layer by layer.

    Attributes:
        samples: ``[text, layer, head, statistic, with_first]``, float32.
        looks: whether a head looks anywhere but at the first token ``[text, layer, head]``.
    """

    def __init__(self, texts: int, layers: int, heads: int) -> None:
        self.samples = torch.full(
            (texts, layers, heads, len(STATISTICS), 2), torch.nan, dtype=torch.float32
        )
        self.looks = torch.zeros(texts, layers, heads, dtype=torch.bool)

    def begin(self, texts: list[int], mask: Tensor) -> None:
        """Say what comes next: texts, and their mask ``[batch, pos]``."""
        self.texts = torch.tensor(texts)
        place = mask.cumsum(dim=1) - 1  # of each token in its own text
        self.counted = (mask & (place > 0))[:, None]  # queries
        self.first = (mask & (place == 0))[:, None]  # keys
        apart = place[:, :, None] - place[:, None, :]
        firsts = self.first.expand_as(apart)
        weights = (apart, firsts, apart == 0, apart == 1)  # in the order of STATISTICS
        self.weights = torch.stack([weight.float() for weight in weights])

    @reads_only
    def add(self, attention: Tensor, hook: HookPoint) -> None:
        """Take one layer's attention ``[batch, head, query_pos, key_pos]``."""
        attention = attention.to(self.weights.device)
        size = max(1, PART // (attention.numel() // attention.shape[1]))
        parts = [self._of(heads.float()) for heads in torch.split(attention, size, dim=1)]
        samples, looks = (torch.cat(each, dim=1).cpu() for each in zip(*parts, strict=True))
        self.samples[self.texts, hook.layer] = samples
        self.looks[self.texts, hook.layer] = looks

    def _of(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``[batch, head, statistic, with_first]``, and who looks beyond the first token."""
        whole = self._mean(attention, self.counted)
        rest = attention.masked_fill(self.first[:, None], 0)
        total = rest.sum(dim=-1)
        counted = self.counted & (total != 0)  # NaN counts
        without = self._mean(rest / total[..., None], counted)
        return torch.stack((whole, without), dim=-1), counted.any(dim=-1)

    def _mean(self, attention: Tensor, counted: Tensor) -> Tensor:
        """Means ``[batch, head, statistic]`` over the queries that count."""
        entropy = torch.special.entr(attention).sum(dim=-1) / math.log(2)
        shares = torch.einsum("bhqk,sbqk->sbhq", attention, self.weights)
        numbers = torch.cat((entropy[None], shares)).masked_fill(~counted, 0)
        return (numbers.sum(dim=-1) / counted.sum(dim=-1)).movedim(0, -1)


def _result(means: _Means, queries: Tensor, seed: int) -> HeadStatisticsResult:
    """Means and intervals over texts."""
    samples = means.samples.double()
    computed = torch.ones(samples.shape[1:], dtype=torch.bool)
    computed[..., 1] = means.looks.any(dim=0)[..., None]
    computed[..., FIRST, 1] = False
    values, low, high = _over_texts(samples, seed)
    for layer, head in (~means.looks).any(dim=0).nonzero().tolist():
        looking = samples[means.looks[:, layer, head], layer, head, :, 1]
        if len(looking):
            found = _over_texts(looking, seed)
            for numbers, number in zip((values, low, high), found, strict=True):
                numbers[layer, head, :, 1] = number
    axes = ("layer", "head", "statistic", "with_first")
    layers, heads = samples.shape[1:3]
    names = (map(str, range(layers)), map(str, range(heads)), STATISTICS, WITH_FIRST)
    return HeadStatisticsResult(
        values=values.masked_fill(~computed, torch.nan),
        axes=axes,
        labels={axis: list(labels) for axis, labels in zip(axes, names, strict=True)},
        computed=computed,
        low=low.masked_fill(~computed, torch.nan),
        high=high.masked_fill(~computed, torch.nan),
        samples=means.samples,
        queries=queries,
    )


def _over_texts(samples: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, lower and upper end."""
    return samples.mean(dim=0), *bootstrap_interval(samples, seed=seed)
