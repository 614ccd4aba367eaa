r"""Which heads attend the way a known circuit does.

    result = nl.detect.heads(model, "induction")
    result                   # a map, layer by head
    result.top(3)            # the best heads, as a table

A *pattern* says where a head of a kind looks. For a text of n tokens it is a matrix D ``[query_pos,
key_pos]`` of numbers from 0 to 1, zero above the diagonal:

    previous_token    the token one position earlier
    duplicate_token   earlier occurrences of the query's own token
    induction         what came right after earlier occurrences of the query's own token
                      (Olsson et al., 2022, arXiv:2209.11895)

The score of a head with attention A is the attention it pays to the pattern, averaged over the
queries Q that have something to look at:

    share = 1/|Q| · Σ_{q ∈ Q} Σ_k A[q, k] D[q, k]        Q = {q : Σ_k D[q, k] > 0}

1 is a head that does nothing else. Several texts are pooled: Q holds the queries of all of them, so
a text counts by how many it has; ``result.samples`` has each text's own score.

All heads are measured in one pass, and each attention pattern is dropped as soon as it was added
up, so memory does not grow with the number of layers or texts.

How a head attends does not say what it copies; ``copying_scores`` does (see ``copying``). What it
attends to over a corpus, whatever the pattern, is ``head_statistics``, and which heads of earlier
layers it reads, by the weights, ``composition``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, SWITCH, check, one_of, require_model, shown, whole
from neox_lab.data.batches import by_length
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError, nearest
from neox_lab.experiments.composition import CompositionResult, composition
from neox_lab.experiments.copying import copying_scores
from neox_lab.experiments.detection_result import HeadsResult
from neox_lab.experiments.head_statistics import HeadStatisticsResult, head_statistics
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.contract import HookedModel
from neox_lab.family.text import Inputs
from neox_lab.hooks import reads_only

if TYPE_CHECKING:
    from neox_lab.model.hook_points import HookPoint

Pattern = str | Tensor | Callable[[Tensor], Tensor]

__all__ = [
    "MEASURES",
    "PATTERNS",
    "CompositionResult",
    "HeadStatisticsResult",
    "HeadsResult",
    "composition",
    "copying_scores",
    "duplicate_token",
    "head_statistics",
    "heads",
    "induction",
    "pattern_score",
    "previous_token",
    "repeated_tokens",
]

MEASURES = ("share", "mul", "abs")
_DRAWN = whole(least=1, most=2**20)


def previous_token(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 one position before the query; ``tokens`` is ``[pos]``.

    Raises:
        InputError: ``tokens`` is something else.
    """
    _check_row(tokens)
    return (
        torch.eye(len(tokens), device=tokens.device, dtype=torch.float32).roll(-1, dims=1).tril(-1)
    )


def duplicate_token(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 where the key is an earlier copy of the query's token.

    Raises:
        InputError: ``tokens`` is something else.
    """
    _check_row(tokens)
    return (tokens[:, None] == tokens).float().tril(-1)


def induction(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 right after an earlier copy of the query's token."""
    return duplicate_token(tokens).roll(1, dims=1)  # its last column, which comes first, is empty


def _check_row(tokens: object) -> None:
    if not isinstance(tokens, Tensor) or tokens.dim() != 1:
        raise InputError(f"tokens={shown(tokens)}; expected a tensor of token ids [pos].")


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "induction": induction,
    "previous_token": previous_token,
    "duplicate_token": duplicate_token,
}


def repeated_tokens(model: HookedModel, length: int = 50, count: int = 8, seed: int = 0) -> Tensor:
    """Random tokens, and then the same ones again: ``[count, 2 * length]``, on the model's device.

    Tokens are drawn from the vocabulary without the special ones, all different within a row if
    there are enough. The same seed gives the same tokens.

    Args:
        model: whose vocabulary.
        length: of what is repeated.
        count: how many rows.
        seed: of the draw.

    Raises:
        InputError: ``length`` or ``count`` is below 1.
    """
    require_model(model)
    length = check("length", length, _DRAWN, InputError)
    count = check("count", count, _DRAWN, InputError)
    seed = check("seed", seed, SEED, InputError)
    tokenizer, config = model.tokenizer, model.config
    if tokenizer is None:
        size, special = config.vocab_size, {config.bos_token_id, config.eos_token_id}
        special |= {config.pad_token_id}
    else:
        size, special = min(len(tokenizer), config.vocab_size), set(tokenizer.all_special_ids)
    allowed = torch.tensor([number not in special for number in range(size)])
    generator = torch.Generator().manual_seed(seed)
    again = length > int(allowed.sum())
    weights = allowed.float().expand(count, -1)
    once = torch.multinomial(weights, length, replacement=again, generator=generator)
    return torch.cat((once, once), dim=1).to(model.device)


def pattern_score(
    attention: Tensor,
    pattern: Tensor,
    measure: Literal["mul", "abs"] = "mul",
    *,
    exclude_first_token: bool = False,
    exclude_own_token: bool = False,
) -> Tensor:
    """How much attention that is at hand goes where a pattern says.

    Args:
        attention: ``[.., query_pos, key_pos]`` of one text or of many, such as
            ``cache["pattern", layer]``.
        pattern: ``[query_pos, key_pos]``, see the module's docstring.
        measure: ``"mul"``: Σ A D / Σ A, the share of attention on the pattern; ``"abs"``:
            1 - Σ |A - D| / queries, which is 1 for attention that equals the pattern.
        exclude_first_token: do not count attention on the text's first token.
        exclude_own_token: do not count attention on the query's own token.

    Returns:
        ``[..]``: -1 to 1 for ``"abs"``, 0 to 1 for ``"mul"``.

    Raises:
        InputError: shapes that do not fit, or an unknown measure.
    """
    check("measure", measure, one_of("mul", "abs"), InputError)
    check("exclude_first_token", exclude_first_token, SWITCH, InputError)
    check("exclude_own_token", exclude_own_token, SWITCH, InputError)
    for name, given in {"attention": attention, "pattern": pattern}.items():
        if not isinstance(given, Tensor) or given.dim() < 2 or given.device.type == "meta":
            raise InputError(f"{name}={shown(given)}; expected a tensor [.., query_pos, key_pos].")
    if attention.shape[-2:] != pattern.shape or pattern.shape[0] != pattern.shape[-1]:
        raise InputError(
            f"attention has shape {list(attention.shape)}, pattern {list(pattern.shape)}; expected "
            "[.., query_pos, key_pos] and [query_pos, key_pos], of as many queries as keys."
        )
    length = len(pattern)
    counts = torch.ones(length, length, device=attention.device, dtype=torch.float32)
    if exclude_own_token:
        counts.fill_diagonal_(0)
    if exclude_first_token:
        counts[:, 0] = 0
    attention, target = attention.float() * counts, pattern.to(attention.device).float() * counts
    if measure == "abs":
        return 1 - (attention - target).abs().sum(dim=(-2, -1)) / length
    return (attention * target).sum(dim=(-2, -1)) / attention.sum(dim=(-2, -1))


@torch.no_grad()
def heads(
    model: GPTNeoXPreTrainedModel,
    pattern: Pattern = "induction",
    inputs: Inputs | None = None,
    *,
    measure: str = "share",
    copying: bool = False,
    batch_size: int = 8,
    seed: int = 0,
) -> HeadsResult:
    """Score every head of ``model`` by how much it attends as ``pattern`` says.

    Queries of several texts are pooled; ``samples`` of the result keeps texts apart.

    Hooks and spliced functions that are in place act on the attention, not on ``copying``.

    Args:
        model: any of the five classes.
        pattern: ``"induction"``, ``"previous_token"``, ``"duplicate_token"``; a matrix
            ``[query_pos, key_pos]``; or a function from token ids ``[pos]`` of one text to such a
            matrix.
        inputs: a string, a list of strings (padding is left out), or token ids ``[batch, pos]``;
            None for ``repeated_tokens``.
        measure: ``"share"``, see above; or ``"mul"`` and ``"abs"``, TransformerLens's measures,
            which count all queries n, also those that have nothing to look at:
            Σ A D / n and 1 - Σ |A - D| / n.
        copying: also ``copying_scores``, which takes longer than all the rest.
        batch_size: texts in one forward pass.
        seed: of the repeated random tokens.

    Raises:
        InputError: dropout is on; an unknown pattern or measure; a matrix of the wrong shape, with
            numbers above the diagonal or outside 0 to 1; a text of fewer than two tokens; no query
            in any text has something to look at; or ``batch_size`` is no number of texts.
    """
    refuse_dropout(model)
    check("measure", measure, one_of(*MEASURES), InputError)
    copying = check("copying", copying, SWITCH, InputError)
    find = _finder(pattern)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    if inputs is None:
        length = len(pattern) if isinstance(pattern, Tensor) else _usual_length(model)
        inputs = repeated_tokens(model, -(-length // 2), seed=seed)[:, :length]
    prepared = model.prepare_inputs(inputs)
    if "input_ids" not in prepared:
        raise InputError("Head detection needs texts or token ids, not embeddings.")
    ids = prepared["input_ids"]
    mask = prepared.get("attention_mask", torch.ones_like(ids)).bool()
    targets = [find(_text(ids, mask, row)) for row in range(len(ids))]
    if not any(bool(target.any()) for target in targets):
        raise InputError(
            f"In these texts no query has anything to look at for the pattern {_name(pattern)!r}."
            " Induction and duplicate tokens need texts in which tokens come again, such as "
            "nl.detect.repeated_tokens(model)."
        )
    sums = _Sums(len(ids), model.config.num_hidden_layers, model.config.num_attention_heads)
    for rows in by_length(model, [int(length) for length in mask.sum(dim=1)], batch_size):
        columns = mask[rows].any(dim=0)  # without those that only longer texts fill
        own = mask[rows][:, columns]
        sums.begin(rows, [targets[row] for row in rows], own)
        padding = None if bool(own.all()) else own.long()
        with model.hooks([("blocks.*.attn.hook_pattern", sums.add)]):
            model.backbone(ids[rows][:, columns], attention_mask=padding, use_cache=False)
    scores = sums.score(measure)
    axes = ("layer", "head")
    return HeadsResult(
        values=scores,
        axes=axes,
        labels={
            axis: [str(number) for number in range(count)]
            for axis, count in zip(axes, scores.shape, strict=True)
        },
        pattern=_name(pattern),
        measure=measure,
        copying=copying_scores(model) if copying else None,
        entropy=sums.mean("entropy"),
        distance=sums.mean("distance"),
        first_token=sums.mean("first_token"),
        queries=int(sums.queries.sum()),
        samples=sums.samples(measure),
    )


class _Sums:
    """Adds up what is asked of attention patterns as they pass, text by text, layer by layer."""

    def __init__(self, texts: int, layers: int, heads: int) -> None:
        names = ("on_target", "off_target", "entropy", "distance", "first_token")
        self.sums = {name: torch.zeros(texts, layers, heads, dtype=torch.float64) for name in names}
        self.queries = torch.zeros(texts, dtype=torch.float64)  # that have something to look at
        self.rows = torch.zeros(texts, dtype=torch.float64)  # all queries
        self.later = torch.zeros(texts, dtype=torch.float64)  # queries but the first

    def begin(self, texts: list[int], targets: list[Tensor], mask: Tensor) -> None:
        """Say what comes next: texts with their patterns, and the mask ``[batch, pos]``."""
        batch, length = mask.shape
        self.texts = texts
        self.target = torch.zeros(batch, length, length, device=mask.device, dtype=torch.float32)
        for row, target in enumerate(targets):
            where = mask[row].nonzero().flatten()
            self.target[row, where[:, None], where] = target
        self.real = mask
        place = mask.cumsum(dim=1) - 1  # of each token in its own text
        self.is_later = mask & (place > 0)
        self.is_first = mask & (place == 0)
        self.apart = (place[:, :, None] - place[:, None, :]).float()
        self.queries[texts] = (self.target.sum(dim=-1) > 0).sum(dim=1).double().cpu()
        self.rows[texts] = mask.sum(dim=1).double().cpu()
        self.later[texts] = self.is_later.sum(dim=1).double().cpu()

    @reads_only
    def add(self, attention: Tensor, hook: HookPoint) -> None:
        """Add one layer's attention ``[batch, head, query_pos, key_pos]``."""
        attention = attention.to(self.target.device, torch.float32)
        target = self.target[:, None]
        each = {
            "on_target": ((attention * target).sum(-1), self.real),
            "off_target": ((attention - target).abs().sum(-1), self.real),
            "entropy": (torch.special.entr(attention).sum(-1), self.is_later),
            "distance": ((attention * self.apart[:, None]).sum(-1), self.is_later),
            "first_token": ((attention * self.is_first[:, None, None]).sum(-1), self.is_later),
        }
        for name, (numbers, rows) in each.items():
            total = (numbers * rows[:, None]).sum(dim=2, dtype=torch.float32)
            self.sums[name][self.texts, hook.layer] = total.double().cpu()

    def score(self, measure: str) -> Tensor:
        """The score of each head by one of MEASURES, float32 ``[layer, head]``."""
        sums, counts = self._measured(measure)
        return self._as_score(measure, sums.sum(dim=0) / counts.sum())

    def samples(self, measure: str) -> Tensor:
        """Each text's own scores ``[text, layer, head]``; NaN where no query has a target."""
        sums, counts = self._measured(measure)
        return self._as_score(measure, sums / counts[:, None, None])

    def _measured(self, measure: str) -> tuple[Tensor, Tensor]:
        sums = self.sums["off_target" if measure == "abs" else "on_target"]
        return sums, self.queries if measure == "share" else self.rows

    def _as_score(self, measure: str, mean: Tensor) -> Tensor:
        return (1 - mean if measure == "abs" else mean).float()

    def mean(self, name: str) -> Tensor:
        """A statistic, averaged over all queries but the first of each text."""
        return (self.sums[name].sum(dim=0) / self.later.sum()).float()


def _usual_length(model: HookedModel) -> int:
    """Tokens in one text of repeated tokens: 100, or what the model can read."""
    return max(2, min(100, model.config.max_position_embeddings))


def _name(pattern: Pattern) -> str:
    """What to call the pattern."""
    if isinstance(pattern, str):
        return pattern
    return "matrix" if isinstance(pattern, Tensor) else getattr(pattern, "__name__", "function")


def _finder(pattern: Pattern) -> Callable[[Tensor], Tensor]:
    """A function from one text's token ids ``[pos]`` to a checked pattern, float32."""
    if isinstance(pattern, str):
        if pattern not in PATTERNS:
            raise InputError(
                f"pattern={pattern!r}; expected {', '.join(PATTERNS)}, a matrix [query_pos, "
                f"key_pos], or a function from token ids to one.{nearest(pattern, PATTERNS)}"
            )
        return PATTERNS[pattern]
    if isinstance(pattern, Tensor):
        return lambda tokens: _checked(pattern, tokens)
    if callable(pattern):
        return lambda tokens: _checked(pattern(tokens), tokens)
    raise InputError(
        f"pattern is {type(pattern).__name__}; expected a name ({', '.join(PATTERNS)}), a tensor "
        "[query_pos, key_pos], or a function from token ids to one."
    )


def _checked(target: Tensor, tokens: Tensor) -> Tensor:
    """``target`` as float32 on the device of ``tokens``, if it can be a pattern for them."""
    if not isinstance(target, Tensor):
        raise InputError(f"A pattern must be a tensor; got {type(target).__name__}.")
    length = len(tokens)
    if tuple(target.shape) != (length, length):
        raise InputError(
            f"The pattern has shape {list(target.shape)}; expected [query_pos, key_pos] = "
            f"[{length}, {length}], for a text of {length} tokens. For texts of different lengths "
            "give a function from token ids to a matrix."
        )
    target = target.to(tokens.device, torch.float32)
    if bool((target != target.tril()).any()):
        raise InputError(
            "The pattern has numbers above the diagonal, where a query would look at its future; "
            "use pattern.tril()."
        )
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise InputError(
            f"A pattern holds numbers from 0 to 1; this one goes from {target.min():g} to "
            f"{target.max():g}."
        )
    return target


def _text(ids: Tensor, mask: Tensor, row: int) -> Tensor:
    """The token ids of one text, without padding."""
    tokens = ids[row][mask[row]]
    if len(tokens) < 2:
        raise InputError(
            f"Text {row} has {len(tokens)} token(s); a head needs at least 2 to choose from."
        )
    return tokens
