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

How a head attends does not say what it copies. The *copying score*, which is computed with
``copying=True``, says whether a head raises the
logits of the very tokens it looks at (Elhage et al., 2021, "A Mathematical Framework for
Transformer Circuits"). Let X ``[vocab, d_model]`` be what the head's layer reads, after its layer
norm, of each token standing alone; with λ the eigenvalues of the map X W_V W_O W_U from tokens to
logits,

    copying = Σ λ / Σ |λ|                                -1 to 1

A head that copies has positive eigenvalues and a score near 1. In layer 0 X is the embedding, as in
the paper. Later layers read what earlier ones made of it (as Wang et al., 2022, arXiv:2211.00593,
do for the first MLP): heads that copy perfectly can score 0 on the bare embedding. Layer norms are
folded into the weights (``neox_lab.family.folded``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, SWITCH, check, one_of, require_model, shown, whole
from neox_lab.data.batches import by_length
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError, nearest
from neox_lab.experiments.detection_result import HeadsResult
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.contract import HookedModel
from neox_lab.family.factored import FactoredMatrix
from neox_lab.family.folded import folded
from neox_lab.family.text import Inputs
from neox_lab.hooks import reads_only

if TYPE_CHECKING:
    from neox_lab.model.hook_points import HookPoint

Pattern = str | Tensor | Callable[[Tensor], Tensor]

__all__ = [
    "MEASURES",
    "PATTERNS",
    "HeadsResult",
    "copying_scores",
    "duplicate_token",
    "heads",
    "induction",
    "previous_token",
    "repeated_tokens",
]

MEASURES = ("share", "mul", "abs")
_DRAWN = whole(least=1, most=2**20)
SAMPLE = 2048  # tokens that the copying score is taken from


def previous_token(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 one position before the query; ``tokens`` is ``[pos]``.

    Raises:
        InputError: ``tokens`` is something else.
    """
    _check_row(tokens)
    return torch.eye(len(tokens), device=tokens.device).roll(-1, dims=1).tril(-1)


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
        self.target = torch.zeros(batch, length, length, device=mask.device)
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
        attention = attention.float()
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


@torch.no_grad()
def copying_scores(model: GPTNeoXPreTrainedModel, sample: int = SAMPLE) -> Tensor:
    """Σ λ / Σ |λ| of each head's map from tokens to logits, float32 ``[layer, head]``.

    See the module's docstring. X W_V W_O W_U shares its eigenvalues with the small matrix
    W_O W_U X W_V ``[d_head, d_head]``. It is a score of the weights: hooks and spliced functions
    that are in place take no part.

    NaN where there is nothing to measure: in a model without an unembedding, and for a head whose
    writing the unembedding does not read.

    Args:
        model: any of the five classes.
        sample: how many tokens of the vocabulary are taken, at random. Nearly all the time goes
            into running the model on them; a quarter of the built-in model's vocabulary moves
            scores by up to 0.05.

    Raises:
        InputError: dropout is on, or ``sample`` is no number of tokens.
    """
    refuse_dropout(model)
    sample = check("sample", sample, COUNT, InputError)
    config = model.config
    scores = torch.full((config.num_hidden_layers, config.num_attention_heads), torch.nan)
    if model.get_output_embeddings() is None:
        return scores
    weights = folded(model)
    for layer, (block, around) in enumerate(
        zip(weights.blocks, _around(model, sample), strict=True)
    ):
        value, output = block.W_V.float(), block.W_O.float()
        product = FactoredMatrix(value, output @ around)
        real, size = product.eigenvalues.real.sum(-1), product.eigenvalues.abs().sum(-1)
        # Rounding leaves something even where the exact product is zero.
        largest = value.norm(dim=(1, 2)) * output.norm(dim=(1, 2)) * around.norm()
        scores[layer] = (real / size).masked_fill(size <= 1e-5 * largest, torch.nan).cpu()
    return scores


def _around(model: GPTNeoXPreTrainedModel, sample: int) -> list[Tensor]:
    """W_U X ``[d_model, d_model]`` of each layer: from logits back to what the layer reads."""
    config = model.config
    layers = config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randperm(config.vocab_size, generator=generator)[:sample].to(model.device)
    unembed = folded(model).W_U[:, tokens].float()
    sums = [unembed.new_zeros(config.hidden_size, config.hidden_size) for _ in range(layers)]
    for batch, columns in zip(
        torch.split(tokens, 256), torch.split(unembed, 256, dim=1), strict=True
    ):

        @reads_only
        def add(read: Tensor, hook: HookPoint, columns: Tensor = columns) -> None:
            assert hook.layer is not None
            sums[hook.layer] += columns @ read[:, 0].float()

        with model.hook_stack.suspended(), model.hooks([("blocks.*.ln1.hook_normalized", add)]):
            model.backbone(batch[:, None], use_cache=False)
    return sums


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
