"""``head_detector``: which heads attend the way a known circuit does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.errors import InputError
from neox_lab.experiments.detection import (
    duplicate_token,
    induction,
    pattern_score,
    previous_token,
)

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.cache import ActivationCache
    from neox_lab.compat.transformer_lens.model import HookedTransformer

HEAD_NAMES = ["previous_token_head", "duplicate_token_head", "induction_head"]
HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["abs", "mul"]


def get_previous_token_head_detection_pattern(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 one position before the query; ``tokens`` is ``[1, pos]``."""
    return previous_token(tokens.reshape(-1))


def get_duplicate_token_head_detection_pattern(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 at earlier copies of the query's token."""
    return duplicate_token(tokens.reshape(-1))


def get_induction_head_detection_pattern(tokens: Tensor) -> Tensor:
    """``[query_pos, key_pos]``, 1 right after earlier copies of the query's token."""
    return induction(tokens.reshape(-1))


def get_supported_heads() -> None:
    """Print the names of the patterns."""
    print(f"Supported heads: {HEAD_NAMES}")


_PATTERNS = dict(
    zip(
        HEAD_NAMES,
        (
            get_previous_token_head_detection_pattern,
            get_duplicate_token_head_detection_pattern,
            get_induction_head_detection_pattern,
        ),
        strict=True,
    )
)


def compute_head_attention_similarity_score(
    attention_pattern: Tensor,
    detection_pattern: Tensor,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """How much attention ``[query_pos, key_pos]`` goes where a pattern says.

    See ``nl.detect.pattern_score``; ``"abs"`` is rounded to three places.
    """
    score = float(
        pattern_score(
            attention_pattern,
            detection_pattern,
            error_measure,
            exclude_first_token=exclude_bos,
            exclude_own_token=exclude_current_token,
        )
    )
    return score if error_measure == "mul" else 1 - round(1 - score, 3)


@torch.no_grad()
def detect_head(
    model: HookedTransformer,
    seq: str | list[str],
    detection_pattern: Tensor | HeadName,
    heads: Iterable[tuple[int, int]] | Mapping[int, Iterable[int]] | None = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> Tensor:
    """A score for each head ``[layer, head]``, -1 for those that were not asked for.

    Args:
        model: the model.
        seq: a text, or several, whose scores are averaged.
        detection_pattern: the name of a pattern, or ``[query_pos, key_pos]``.
        heads: pairs of layer and head, or heads by layer; None for all.
        cache: of a run on the one text, without its axis ``batch`` or with it.
        exclude_bos: do not count attention on the first token.
        exclude_current_token: do not count attention on the query's own token.
        error_measure: ``"mul"`` or ``"abs"``, see ``nl.detect.pattern_score``.

    Raises:
        InputError: an unknown pattern or measure, a pattern that does not fit, or a cache beside
            several texts.
    """
    if isinstance(seq, list) and isinstance(detection_pattern, str):
        if cache is not None:
            raise InputError("One cache is of one text; leave out cache for several.")
        alone = partial(
            detect_head,
            exclude_bos=exclude_bos,
            exclude_current_token=exclude_current_token,
            error_measure=error_measure,
        )
        each = [alone(model, text, detection_pattern, heads) for text in seq]
        return torch.stack(each).mean(dim=0)
    tokens = model.to_tokens(seq)
    if isinstance(detection_pattern, str):
        check("detection_pattern", detection_pattern, one_of(*HEAD_NAMES), InputError)
        detection_pattern = _PATTERNS[detection_pattern](tokens)
    if cache is None:
        _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
    found = -torch.ones(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float32)
    for layer, chosen_heads in _by_layer(heads, model.cfg.n_layers, model.cfg.n_heads).items():
        attention = cache["pattern", layer]
        attention = attention[0] if attention.dim() == 4 else attention
        for head in chosen_heads:
            found[layer, head] = compute_head_attention_similarity_score(
                attention[head],
                detection_pattern,
                exclude_bos=exclude_bos,
                exclude_current_token=exclude_current_token,
                error_measure=error_measure,
            )
    return found


def _by_layer(
    heads: Iterable[tuple[int, int]] | Mapping[int, Iterable[int]] | None, layers: int, count: int
) -> Mapping[int, Iterable[int]]:
    """Heads by layer."""
    if isinstance(heads, Mapping):
        return heads
    if heads is None:
        return dict.fromkeys(range(layers), range(count))
    pairs = list(heads)
    return {layer: [head for at, head in pairs if at == layer] for layer, _ in pairs}
