r"""How strongly heads read, through the weights alone, what heads of earlier layers write.

    result = nl.detect.composition(model, "K")
    result                     # earlier heads by later heads; blank is what random matrices score
    result.top(5)              # the pairs farthest above random ones
    result.pairs()             # the same as bars

The *composition score* of an earlier head that writes with A and a later one that reads with B is

    ‖A B‖ / (‖A‖ ‖B‖)          Frobenius norms (Elhage et al., 2021)

With W_Q, W_K, W_V, W_O of the two heads, A = W_V W_O, and B is

    Q    W_Q R(δ) W_Kᵀ         what the query's side of the later head reads
    K    W_K R(δ)ᵀ W_Qᵀ        what its key's side reads
    V    W_V W_O               what it moves

R(δ) is the rotary embedding between a query and a key δ positions before it: it turns the first
rotary dimensions of a head and is the identity on the others. The score is the mean over a few δ,
``DISTANCES`` unless others are given; ``distances=None`` takes only the dimensions that are not
rotated, which know no distance. Layer norms are folded into the weights, and what is written is
centred (``nl.folded``). Within a layer no head reads another, in either wiring.

**Biases.** With ``biases=True`` W_V of A, and in B the matrix on the far side of R, get their
bias as one more row, whose input is always 1: as ‖·‖² is a mean square over inputs of independent
entries of variance 1, which is about what layer norm gives, a 1 is in scale. They are left out
unless asked for: the largest bias in Pythia is that of the keys, which enters Q, and its part in
the dimensions that are not rotated adds the same to the scores of all keys, so that softmax takes
it away again.

**The control.** Matrices that have nothing to do with each other do not score 0 but about
1 / √d_model. The same score of seeded Gaussian matrices of the same shapes, centred alike, gives
``baseline`` (mean) and ``spread`` (standard deviation); ``excess`` is a score minus the baseline
and ``z`` the excess in spreads. Trained weights are not Gaussian, and most pairs lie many spreads
away from 0: compare pairs with each other, and what stands out with an experiment
(``nl.patching.edge_sweep``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import SEED, SWITCH, check, one_of, require_model, several, whole
from neox_lab.errors import InputError
from neox_lab.family.folded import folded
from neox_lab.head_names import head_name
from neox_lab.model.rotary import rotate
from neox_lab.results import GridResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.base import GPTNeoXPreTrainedModel
    from neox_lab.family.weights import LayerWeights
    from neox_lab.views import BarsView, HeatmapView

DISTANCES = (1, 2, 4, 8, 16, 32, 64)
"""Between query and key, unless others are given: those that the model can have."""
COLUMNS = {
    "score": "composition score",
    "excess": "score above that of random matrices",
    "z": "score above random, in spreads",
}
RANDOM = 12  # random writers, and as many readers


@dataclass(frozen=True, kw_only=True)
class CompositionResult(GridResult):
    """Scores of all pairs of an earlier and a later head.

    Attributes:
        values: scores ``[writer, reader]`` of heads by name (L3H0), float32 at least; 0 where a
            head writes or reads nothing; computed where the writer's layer is the earlier one.
        kind: ``"Q"``, ``"K"`` or ``"V"``.
        distances: between query and key, over which the score is a mean; None for the dimensions
            that are not rotated, and for V.
        biases: whether biases are counted.
        baseline: mean score of random matrices of the same shapes.
        spread: standard deviation of their scores.
    """

    kind: str
    distances: list[int] | None
    biases: bool
    baseline: float
    spread: float

    def _columns(self) -> dict[str, Tensor]:
        excess = self.values - self.baseline
        return {"score": self.values, "excess": excess, "z": excess / self.spread}

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        return frame["excess"]

    def view(self, column: str = "score") -> HeatmapView:
        """Earlier heads by later heads; blank is what random matrices score.

        Args:
            column: ``"score"``, ``"excess"`` or ``"z"``.

        Raises:
            InputError: there is no such column.
        """
        from neox_lab.views import HeatmapView

        check("column", column, one_of(*COLUMNS), InputError)
        rows, columns = self.is_computed.any(dim=1), self.is_computed.any(dim=0)
        return HeatmapView(
            self._columns()[column][rows][:, columns],
            row_labels=_chosen(self.labels["writer"], rows),
            column_labels=_chosen(self.labels["reader"], columns),
            row_axis="writer",
            column_axis="reader",
            value_name=f"{COLUMNS[column]} (random: {self.baseline:.3f})"
            if column == "score"
            else COLUMNS[column],
            centre=round(self.baseline, 4) if column == "score" else 0.0,
            title=self._title(),
            measured=self.is_computed[rows][:, columns],
        )

    def pairs(self, count: int = 10) -> BarsView:
        """The pairs farthest above random matrices, as bars.

        Args:
            count: how many.

        Raises:
            InputError: ``count`` is no number of pairs.
        """
        from neox_lab.views import BarsView

        count = check("count", count, whole(least=1), InputError)
        best = self.top(count)
        names = [f"{a} → {b}" for a, b in zip(best["writer"], best["reader"], strict=True)]
        control = f"random matrices: {self.baseline:.3f} ± {self.spread:.3f}"
        return BarsView(names, best["score"].tolist(), self._title(), f"Score; {control}.")

    def _title(self) -> str:
        if self.distances is None:
            where = "" if self.kind == "V" else ", dimensions that are not rotated"
        elif len(self.distances) == 1:
            where = f" at distance {self.distances[0]}"
        else:
            low, high = min(self.distances), max(self.distances)
            where = f", mean over {len(self.distances)} distances from {low} to {high}"
        return f"{self.kind}-composition{where}"


class _Turn(NamedTuple):
    """What the rotary embedding does to queries and to keys ``[.., d_head]`` at one distance.

    Attributes:
        query: cosines and sines, or None for "nothing".
        key: the same for keys.
        start: first dimension that counts.
    """

    query: tuple[Tensor, Tensor] | None = None
    key: tuple[Tensor, Tensor] | None = None
    start: int = 0


@torch.no_grad()
def composition(
    model: GPTNeoXPreTrainedModel,
    kind: Literal["Q", "K", "V"] = "K",
    *,
    distances: Sequence[int] | int | None = DISTANCES,
    biases: bool = False,
    seed: int = 0,
) -> CompositionResult:
    """Composition scores of all pairs of heads, beside those of random matrices.

    Formulas: ``help("neox_lab.experiments.composition")``. It is a question about
    weights: no text is read, and hooks and spliced functions that are in place take no part.

    Args:
        model: any of the five classes, with two layers or more.
        kind: what the later head does with it: form its queries, its keys or its values.
        distances: from query to key, one or several; None for the dimensions that are not rotated.
            V has none, and takes only the default.
        biases: count biases; see above.
        seed: of the random matrices.

    Raises:
        InputError: an unknown kind; distances that the model cannot have, or for V; None where all
            dimensions are rotated; or a model of one layer.
        HookError: a layer norm is none, or a weight is no matrix.
    """
    require_model(model)
    check("kind", kind, one_of("Q", "K", "V"), InputError)
    biases = check("biases", biases, SWITCH, InputError)
    generator = torch.Generator().manual_seed(check("seed", seed, SEED, InputError))
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    if layers < 2:
        raise InputError("Heads compose with heads of later layers; this model has one layer.")
    chosen = _distances(model, kind, distances)
    turns = _turns(model, kind, chosen)
    blocks = folded(model).blocks
    writes = [_writing(block, biases) for block in blocks[:-1]]
    scores = writes[0].new_full((layers, heads, layers, heads), torch.nan)
    for late in range(1, layers):
        near, far = _reading(blocks[late], kind, biases)
        for early in range(late):
            scores[early, :, late] = _scores(writes[early], near, far, kind, turns)
    random = _random_scores(blocks[0], kind, biases, turns, generator)
    layer = torch.arange(layers).repeat_interleave(heads)
    names = [head_name(at, head) for at in range(layers) for head in range(heads)]
    return CompositionResult(
        values=scores.flatten(2).flatten(0, 1),
        axes=("writer", "reader"),
        labels={"writer": names, "reader": names},
        computed=layer[:, None] < layer,
        kind=kind,
        distances=chosen,
        biases=biases,
        baseline=float(random.mean()),
        spread=float(random.std()),
    )


def _distances(model: GPTNeoXPreTrainedModel, kind: str, distances: object) -> list[int] | None:
    """The distances to go over; None where none counts."""
    longest = model.config.max_position_embeddings - 1
    if distances is DISTANCES:
        fitting = [distance for distance in DISTANCES if distance <= longest]
        return None if kind == "V" else fitting or [0]
    if kind == "V":
        raise InputError("V has no query and no key, so no distance; leave distances= out.")
    if distances is None:
        if model.config.rotary_ndims == model.config.head_size:
            raise InputError("All dimensions of a head are rotated here; give distances=.")
        return None
    allowed, words = whole(least=0, most=longest), "distances in tokens"
    whole_numbers = isinstance(distances, int) and not isinstance(distances, bool)
    given = [distances] if whole_numbers else several("distances", distances, words, InputError)
    if not given:
        raise InputError(f"distances={distances!r}; expected at least one, or None.")
    return [check("distances", distance, allowed, InputError) for distance in given]


def _turns(
    model: GPTNeoXPreTrainedModel, kind: str, distances: list[int] | None
) -> Sequence[_Turn]:
    if kind == "V":
        return [_Turn()]
    if distances is None:
        return [_Turn(start=model.config.rotary_ndims)]
    places = torch.tensor([[0, *distances]], device=model.device)
    here, *away = zip(*(part[0] for part in model.backbone.rotary.angles(places)), strict=True)
    return [_Turn(query=turn, key=here) for turn in away]


def _writing(block: LayerWeights, biases: bool) -> Tensor:
    """A of each head up to a rotation on its left, ``[head, d_head, d_model]``."""
    values, output = _exact(block.W_V, block.W_O)
    return _reduced(_with_bias(values, block.b_V, biases)) @ output


def _reading(block: LayerWeights, kind: str, biases: bool) -> tuple[Tensor, Tensor]:
    """B of each head as two factors: the near one ``[head, d_model, d_head]``, and the far one."""
    if kind == "V":
        values, output = _exact(block.W_V, block.W_O)
        return values, _reduced(output.mT)
    query, key = _exact(block.W_Q, block.W_K)
    if kind == "Q":
        return query, _reduced(_with_bias(key, block.b_K, biases))
    return key, _reduced(_with_bias(query, block.b_Q, biases))


def _exact(*weights: Tensor) -> Iterator[Tensor]:
    """In float32 at least."""
    return (weight.to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights)


def _with_bias(matrix: Tensor, bias: Tensor, biases: bool) -> Tensor:
    return torch.cat((matrix, bias[:, None].to(matrix)), dim=1) if biases else matrix


def _reduced(matrix: Tensor) -> Tensor:
    """``matrix`` ``[.., rows, d_head]`` up to a rotation on its left, with d_head rows."""
    return torch.linalg.qr(matrix, mode="r").R


def _scores(writes: Tensor, near: Tensor, far: Tensor, kind: str, turns: Sequence[_Turn]) -> Tensor:
    """Scores ``[writer, reader]`` of all heads of two layers, the mean over the turns."""
    (writers, rank, _), (readers, _, width) = writes.shape, near.shape
    both = writes.flatten(0, 1) @ near.transpose(0, 1).flatten(1)
    both = both.view(writers, rank, readers, width).transpose(1, 2)
    own, size = _reduced(near), writes.norm(dim=(1, 2))[:, None]
    found = []
    for turn in turns:
        other = _turned(far, turn, is_query=kind == "K").mT
        whole_norm = size * (_turned(own, turn, is_query=kind == "Q") @ other).norm(dim=(1, 2))
        norm = (_turned(both, turn, is_query=kind == "Q") @ other).norm(dim=(2, 3))
        found.append(torch.where(whole_norm == 0, 0, norm / whole_norm))
    return torch.stack(found).mean(dim=0)


def _turned(vectors: Tensor, turn: _Turn, *, is_query: bool) -> Tensor:
    """Queries or keys ``[.., d_head]`` as they meet each other."""
    angles = turn.query if is_query else turn.key
    return vectors[..., turn.start :] if angles is None else rotate(vectors, *angles)


def _random_scores(
    block: LayerWeights,
    kind: str,
    biases: bool,
    turns: Sequence[_Turn],
    generator: torch.Generator,
) -> Tensor:
    """Scores ``[writer, reader]`` of Gaussian matrices of the shapes of the block's."""
    _, d_model, d_head = block.W_Q.shape
    device = block.W_Q.device

    def draw(rows: int) -> Tensor:
        drawn = torch.randn(RANDOM, rows, d_head, generator=generator, dtype=torch.float32).to(
            device
        )
        drawn[:, :d_model] -= drawn[:, :d_model].mean(dim=1, keepdim=True)  # as folding does
        return drawn

    rows = d_model + biases
    writes = _reduced(draw(rows)) @ draw(d_model).mT
    far = draw(d_model if kind == "V" else rows)
    return _scores(writes, draw(d_model), _reduced(far), kind, turns)


def _chosen(names: list[str], which: Tensor) -> list[str]:
    return [name for name, keep in zip(names, which.tolist(), strict=True) if keep]
