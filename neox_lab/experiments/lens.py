"""The logit lens: what the model would say if it stopped after each layer.

Every block adds to one residual stream, and the unembedding reads that stream at the end. Reading
it earlier, through the same final layer norm and the same unembedding, shows how the prediction
takes shape (nostalgebraist, "interpreting GPT: the logit lens", 2020). The last row of a lens on
the residual stream is the model's real prediction.

For attention and MLP outputs the same reading says what that one part, by itself, would predict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neox_lab.checks import check, name_not_finite, one_of, require_model, several, shown, whole
from neox_lab.errors import InputError
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.prompts import refuse_other_angles
from neox_lab.experiments.singular_vectors import singular_vectors
from neox_lab.experiments.splices import IN_NETWORK, check_splices
from neox_lab.frames import make_frame
from neox_lab.model.parts import at_least_float32
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.tokenizer import GPTNeoXTokenizerFast
    from neox_lab.views import LensView

__all__ = ["LENS_SITES", "LensResult", "logit_lens", "predictions", "singular_vectors"]

LENS_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class LensResult(Result):
    """Predictions read off at each layer and position.

    All arrays are on the CPU and float32 (float64 of a float64 model) unless said otherwise.
    ``layer`` stands for the rows named by ``labels``; on the residual stream the last row is the
    model's own prediction.

    Attributes:
        site: what was read.
        labels: name of each row, such as ``"0_pre"`` … ``"final"``.
        pieces: token strings, ``[batch][pos]``.
        mask: True for text and False for padding, ``[batch, pos]``.
        top: ids of the likeliest tokens ``[layer, batch, pos, top_k]``, int64.
        top_probability: their probabilities, of the same shape.
        entropy: of each prediction, in nats, ``[layer, batch, pos]``.
        kl: KL(final prediction ‖ this one), in nats, ``[layer, batch, pos]``.
        next_probability: probability of the token that really follows ``[layer, batch, pos]``;
            NaN where none does: at the last token of each text, and at padding.
        next_rank: how many tokens were likelier than it, int64; -1 where none follows, and where
            the prediction is NaN.
        watched: ids of the watched tokens.
        watched_probability: their probabilities ``[layer, batch, pos, watched]``.
        watched_rank: how many tokens were likelier, int64; -1 where the prediction is NaN.
    """

    site: str
    labels: list[str]
    pieces: list[list[str]]
    mask: Tensor
    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    kl: Tensor
    next_probability: Tensor
    next_rank: Tensor
    watched: list[int]
    watched_probability: Tensor
    watched_rank: Tensor
    piece_of: dict[int, str]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each layer, text and position; padding is left out.

        ``entropy_bits`` and ``kl_bits`` are in bits, as in pictures; the tensors are in nats.
        """
        rows = []
        layers, batch, length = self.entropy.shape
        for index in range(layers):
            for row in range(batch):
                for pos in range(length):
                    if self.mask[row, pos]:
                        rows.append(self._record(index, row, pos))
        return make_frame(rows)

    def _record(self, index: int, row: int, pos: int) -> dict[str, Any]:
        """One line of the frame."""
        at = (index, row, pos)
        best = int(self.top[at][0])
        record: dict[str, Any] = {
            "layer": self.labels[index],
            "text": row,
            "pos": pos,
            "token": self.pieces[row][pos],
            "prediction": None if self.top_probability[at].isnan().any() else self.piece_of[best],
            "probability": float(self.top_probability[at][0]),
            "entropy_bits": float(self.entropy[at]) / math.log(2),
            "kl_bits": float(self.kl[at]) / math.log(2),
            "next_probability": float(self.next_probability[at]),
            "next_rank": int(self.next_rank[at]),
        }
        for number, token in enumerate(self.watched):
            record[f"p({self.piece_of[token]})"] = float(self.watched_probability[at][number])
            record[f"rank({self.piece_of[token]})"] = int(self.watched_rank[at][number])
        return record

    def view(self, text: int = 0) -> LensView:
        """The picture of one text: a row a layer, the likeliest token in each cell.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import LensView

        text = entry("text", text, len(self.pieces), InputError)
        kept = self.mask[text].nonzero().flatten()
        top, probability = self.top[:, text, kept], self.top_probability[:, text, kept]
        return LensView(
            candidates=[[[self.piece_of[int(t)] for t in cell] for cell in row] for row in top],
            probabilities=probability.numpy(),
            entropy=self.entropy[:, text, kept].numpy(),
            row_labels=self.labels,
            pieces=[self.pieces[text][int(pos)] for pos in kept],
            title=f"Logit lens on {self.site}",
        )


@torch.no_grad()
def logit_lens(
    model: HookedModel,
    inputs: Inputs,
    site: str = "resid_pre",
    *,
    watch: Sequence[str | int] = (),
    top_k: int = 5,
) -> LensResult:
    """Read predictions off the residual stream, or off what attention or the MLP writes.

    Args:
        model: one with an unembedding, a ``GPTNeoXForCausalLM``.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        site: ``resid_pre`` (before each block, and at the end), ``resid_mid`` (sequential blocks
            only), ``resid_post``, ``attn_out`` or ``mlp_out``.
        watch: tokens to follow, as strings of exactly one token or as ids.
        top_k: how many of the likeliest tokens to keep.

    Returns:
        A row of predictions for each layer.

    Raises:
        InputError: an unknown site, a model without an unembedding, or a watched id or ``top_k``
            out of range.
        HookNameError: ``resid_mid`` of a model with parallel blocks.
        HookError: a function is spliced in above the last block, or there are PyTorch hooks that
            reading a layer early would skip.
        TokenizerError: a watched string is not exactly one token.
    """
    require_model(model)
    check("site", site, one_of(*LENS_SITES), InputError)
    unembed = model.get_output_embeddings()
    if unembed is None:
        raise InputError(f"The logit lens needs an unembedding; {type(model).__name__} has none.")
    check_splices(model, IN_NETWORK, "A lens reads each stream through final layer norm and head.")
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
        for log_probs in _predictions(model, cache, site, unembed)
    ]
    columns = {name: torch.stack([row[name] for row in rows]).cpu() for name in rows[0]}
    labels = _labels(site, last + 1)
    bad = (columns["top_probability"].isnan().any(dim=-1) & own.cpu()).nonzero().tolist()
    name_not_finite("The prediction", (f"{labels[i]}, text {row}, pos {at}" for i, row, at in bad))
    decode = functools.lru_cache(maxsize=None)(functools.partial(_piece, model.tokenizer))
    shown = {*columns["top"].flatten().tolist(), *watched}
    return LensResult(
        site=site,
        labels=labels,
        pieces=[[decode(token) for token in row] for row in ids.tolist()],
        mask=own.cpu(),
        watched=watched,
        piece_of={token: decode(token) for token in shown},
        **columns,
    )


def predictions(
    logits: Tensor, tokenizer: GPTNeoXTokenizerFast | None = None, top_k: int | None = None
) -> pd.DataFrame:
    """What logits say about the next token, as a table, the likeliest first.

    Args:
        logits: ``[vocab]``, of one position.
        tokenizer: for the column ``text``.
        top_k: how many tokens; None for all.

    Returns:
        ``rank`` (0 is the likeliest), ``token``, ``text`` where there is a tokenizer, ``logit``,
        ``log_probability`` and ``probability``.

    Raises:
        InputError: other logits, or ``top_k`` is no number of tokens.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 1 or logits.device.type == "meta":
        raise InputError("logits must be those of one position, [vocab], such as logits[0, -1].")
    if top_k is not None:
        top_k = check("top_k", top_k, whole(least=0), InputError)
    logits = logits.detach().float()
    order = logits.argsort(descending=True, stable=True)[:top_k]
    log_probability = logits.log_softmax(dim=-1)[order]
    columns: dict[str, object] = {"rank": range(len(order)), "token": order.tolist()}
    if tokenizer is not None:
        if isinstance(tokenizer, type) or not hasattr(tokenizer, "piece_text"):
            raise InputError(f"tokenizer={shown(tokenizer)}; expected a model's .tokenizer.")
        columns["text"] = [str(tokenizer.piece_text(token)) for token in order.tolist()]
    columns["logit"] = logits[order].tolist()
    columns["log_probability"] = log_probability.tolist()
    columns["probability"] = log_probability.exp().tolist()
    return make_frame(columns)


def _predictions(
    model: HookedModel, cache: ActivationCache, site: str, unembed: nn.Module
) -> Iterator[Tensor]:
    """Log probabilities ``[batch, pos, vocab]`` of each row of the lens, one at a time."""
    layers = model.config.num_hidden_layers
    streams = [cache[site, layer] for layer in range(layers)]
    if site == "resid_pre":
        streams.append(cache["resid_post", layers - 1])
    for stream in streams:
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
    next_probability = next_log[..., 0].exp().masked_fill(at_end, float("nan"))
    columns = log_probs[..., watched]
    ranks = [(log_probs > columns[..., n : n + 1]).sum(dim=-1) for n in range(len(watched))]
    rank = torch.stack(ranks, dim=-1) if ranks else columns.long()
    rank = rank.masked_fill(unknown[..., None], -1)
    return {
        "top": top,
        "top_probability": probability.exp(),
        "entropy": entropy,
        "kl": kl,
        "next_probability": next_probability,
        "next_rank": next_rank,
        "watched_probability": columns.exp(),
        "watched_rank": rank,
    }


def _piece(tokenizer: GPTNeoXTokenizerFast | None, token: int) -> str:
    """One token's text, or its number where there is no tokenizer."""
    return f"⟨{token}⟩" if tokenizer is None else str(tokenizer.piece_text(token))
