"""Residual streams of many tokens, and the end of a network that reads each of them alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.checks import listed_texts, require_model, shown
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows, token_ids
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import DataError, InputError
from neox_lab.experiments.lens.divergence import Said, said
from neox_lab.experiments.splices import check_end
from neox_lab.model.parts import at_least_float32, is_hooked, plain_layer_norm, skipped_hook

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

Texts = str | Sequence[str] | Tensor | Mapping[str, Tensor]
"""Documents: texts, token ids ``[batch, pos]``, or these with an ``attention_mask``."""


PUBLISHED_LENGTH = 2048
"""Tokens of a sequence that published lenses were trained on."""


@dataclass(frozen=True)
class End:
    """Final layer norm and unembedding, in float32 at least and without gradient.

    Attributes:
        weight: of the layer norm, ``[d_model]``.
        bias: of the layer norm.
        eps: of the layer norm.
        unembed: ``[vocab, d_model]``; in bfloat16 where products with it are to be.
        unembed_bias: ``[vocab]``, or None where there is none.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    unembed: Tensor
    unembed_bias: Tensor | None

    @classmethod
    def of(cls, model: LanguageModel, precision: str = "float32") -> End:
        """That of a model.

        Args:
            model: which one.
            precision: of products with the unembedding; of a float64 model float32 is float64.

        Raises:
            HookError: another module stands there, or PyTorch hooks do.
        """
        norm = plain_layer_norm(model.backbone.final_layer_norm, "final_layer_norm")
        out = model.output_map
        wide = at_least_float32(out.weight.detach())
        return cls(
            at_least_float32(norm.weight.detach()),
            at_least_float32(norm.bias.detach()),
            norm.eps,
            (wide.bfloat16() if precision == "bfloat16" else wide).contiguous(),
            None if out.bias is None else at_least_float32(out.bias.detach()),
        )

    def norm(self, stream: Tensor) -> Tensor:
        """The stream ``[.., d_model]`` as the unembedding reads it."""
        width = (stream.shape[-1],)
        return torch.nn.functional.layer_norm(stream, width, self.weight, self.bias, self.eps)

    def said(self, x: Tensor) -> Said:
        """What the unembedding says of a stream after the norm, ``[token, d_model]``."""
        return said(x, self.unembed, self.unembed_bias)


def require_end(model: LanguageModel) -> None:
    """Refuse a model without an unembedding, with dropout on, or with something at its end.

    Raises:
        InputError: it is one of the first two.
        HookError: a hook, a spliced function or a PyTorch hook would be passed by.
    """
    require_model(model)
    if model.get_output_embeddings() is None:
        raise InputError(f"A lens needs an unembedding; {type(model).__name__} has none.")
    refuse_dropout(model)
    check_end(model)
    for name, part in (("the model", model), ("its backbone", model.backbone)):
        if isinstance(part, nn.Module) and is_hooked(part):
            raise skipped_hook(name)


def documents(model: LanguageModel, texts: Texts) -> list[list[int]]:
    """Token ids of each document, without padding.

    Args:
        model: whose tokenizer reads texts.
        texts: see ``Texts``.

    Raises:
        InputError: something else, or nothing.
        DataError: ids that the model does not have.
        TokenizerError: texts, and the model has no tokenizer.
    """
    mask = None
    if isinstance(texts, Mapping) and isinstance(texts.get("input_ids"), Tensor):
        mask, texts = texts.get("attention_mask"), texts["input_ids"]
    if isinstance(texts, Tensor):
        ids = model.prepare_inputs(texts).get("input_ids")
        if ids is None:
            raise InputError("A tuned lens is trained on texts or token ids, not on vectors.")
        own = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        if own.shape != ids.shape:
            raise InputError(
                f"attention_mask has the shape {list(own.shape)}, ids {list(ids.shape)}"
            )
        found = [row[kept].tolist() for row, kept in zip(ids, own, strict=True)]
    else:
        listed = [texts] if isinstance(texts, str) else listed_texts(texts)
        if not isinstance(listed, list | tuple) or not all(isinstance(t, str) for t in listed):
            raise InputError(
                f"texts={shown(texts)}; expected a list of texts, token ids [batch, pos], or a "
                "dict of input_ids and attention_mask."
            )
        found = token_ids(model, listed)
    found = [row for row in found if row]
    vocabulary = len(model.output_map.weight)
    if any(not 0 <= token < vocabulary for row in found for token in row):
        raise DataError(f"There are token ids outside of the model's vocabulary of {vocabulary}.")
    return found


def pieces(rows: Sequence[Sequence[int]], length: int) -> list[tuple[int, list[int]]]:
    """Documents cut into pieces that a model reads at once, each with its document's number.

    Args:
        rows: token ids of each document.
        length: tokens of a piece, at most.
    """
    return [
        (number, list(row[start : start + length]))
        for number, row in enumerate(rows)
        for start in range(0, len(row), length)
    ]


def piece_length(model: LanguageModel, length: int | None = None) -> int:
    """How many tokens a model reads at once: ``length``, or what it was made for, 2,048 at most."""
    return length or min(model.config.max_position_embeddings, PUBLISHED_LENGTH)


@torch.no_grad()
def streams(
    model: LanguageModel, rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The residual streams of all tokens, from one pass for some rows at a time.

    Args:
        model: what reads them.
        rows: token ids.
        batch_size: rows in one pass.

    Yields:
        For each layer the stream before it, and the stream after the last, ``[token, d_model]``,
        float32 at least; and of each token the number of its row.
    """
    layers = model.config.num_hidden_layers
    names = ["blocks.*.hook_resid_pre", f"blocks.{layers - 1}.hook_resid_post"]
    for chosen in by_length(model, [len(row) for row in rows], batch_size):
        ids, mask = pad_rows([rows[row] for row in chosen], 0)  # after a text, which never looks
        _, cache = model.run_with_cache(ids.to(model.device), names, stop_at_layer=layers)
        own = mask.bool().to(model.device)
        found = [cache["resid_pre", layer] for layer in range(layers)]
        found.append(cache["resid_post", layers - 1])
        row_of = torch.tensor(chosen)[:, None].expand(mask.shape)[mask.bool()]
        yield [at_least_float32(stream[own]) for stream in found], row_of
