"""The main job from one command: load, generate, cache, look, change one thing and see what it did.

Everything here is made of public calls, so it doubles as an example of how they fit together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import neox_lab as nl
from neox_lab import views
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.family.tree import headline
from neox_lab.interrupts import whole_answers

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

MOST_TOKENS = 256
DEFAULT_PROMPT = "The best school of Sweden is in"


@dataclass(frozen=True)
class Tour:
    """What the tour found.

    Attributes:
        prompt: the text that was read.
        continuation: what the model wrote after it, greedily.
        pieces: tokens of the prompt.
        activations: how many activations were cached.
        cache_bytes: their memory.
        predictions: the likeliest next tokens, as a view.
        attention: attention of every head, as a view.
        corrupted: position of the token whose loss hurts the prediction most.
        replacement: the token that stood there instead.
        occlusion: log probability of the clean prediction with each token replaced, ``[pos]``.
        clean: log probability of the prediction, in nats.
        patching: share of the prediction that each patched residual restores, as a view.
    """

    prompt: str
    continuation: str
    pieces: list[str]
    activations: int
    cache_bytes: int
    predictions: views.PredictionsView
    attention: views.AttentionView
    corrupted: int
    replacement: str
    occlusion: Tensor
    clean: float
    patching: views.HeatmapView


@whole_answers()
@torch.no_grad()
def take(model: LanguageModel, prompt: str, new_tokens: int = 20) -> Tour:
    """Look into ``model`` while it reads ``prompt``.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: what it reads.
        new_tokens: how many it writes after that.

    Raises:
        InputError: dropout is on; a prompt of fewer than two tokens, or of nothing but
            ``<|endoftext|>``: there would be nothing to change.
    """
    refuse_dropout(model)
    tokens = model.to_tokens(prompt)
    pieces = model.to_str_tokens(prompt)
    if len(pieces) < 2:
        raise InputError(f"The tour needs a prompt of at least two tokens; {prompt!r} has one.")
    if len(pieces) > MOST_TOKENS:
        raise InputError(
            f"This prompt has {len(pieces)} tokens; the tour shows up to {MOST_TOKENS}. For longer "
            "texts use nl.views.attention, nl.lens.logit_lens and nl.patching.sweep."
        )
    written = model.generate(tokens, max_new_tokens=new_tokens, do_sample=False)

    output, cache = model.run_with_cache(tokens)
    log_probs = output.logits[0, -1].float().log_softmax(dim=-1)
    answer = int(log_probs.argmax())

    occlusion = occlude(model, tokens, answer)
    position = int(occlusion[:-1].argmin()) if len(occlusion) > 1 else 0
    corrupted = tokens.clone()
    corrupted[0, position] = _end_of_text(model)
    replacement = str(model.to_str_tokens(corrupted[0])[position])

    def log_probability(logits: Tensor) -> Tensor:
        return logits[0, -1].float().log_softmax(dim=-1)[answer]

    swept = nl.patching.sweep(model, tokens, corrupted, log_probability, progress=False)
    return Tour(
        prompt=prompt,
        continuation=model.to_string(written[0, tokens.shape[1] :].tolist()),
        pieces=pieces,
        activations=len(cache),
        cache_bytes=cache.nbytes,
        predictions=views.PredictionsView(pieces, _candidates(model, output.logits[0])),
        attention=views.attention(cache),
        corrupted=position,
        replacement=replacement,
        occlusion=occlusion,
        clean=float(log_probs[answer]),
        patching=views.HeatmapView(
            swept.normalized(),
            [str(layer) for layer in range(model.config.num_hidden_layers)],
            pieces,
            row_axis="layer",
            column_axis="position",
            value_name="share of the prediction restored",
            title=f"Patching resid_pre after {views.label(replacement)} replaced token {position} "
            f"({views.label(pieces[position])})",
        ),
    )


def _candidates(
    model: LanguageModel, logits: Tensor, count: int = 8
) -> list[list[tuple[str, float]]]:
    """The likeliest next tokens and their probabilities at each position of ``[pos, vocab]``."""
    best = logits.float().softmax(dim=-1).topk(min(count, logits.shape[-1]))
    assert model.tokenizer is not None
    piece = model.tokenizer.piece_text
    return [
        [(piece(token), probability) for token, probability in zip(tokens, values, strict=True)]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _end_of_text(model: LanguageModel) -> int:
    """The token that is put in another's place, because it says nothing about what follows.

    Raises:
        InputError: the model has none.
    """
    ends = model.config.eos_token_id
    end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise InputError("The tour needs model.config.eos_token_id, to put in a token's place.")
    return end


@torch.no_grad()
def occlude(model: LanguageModel, tokens: Tensor, answer: int) -> Tensor:
    """Log probability of ``answer`` with each token of ``tokens`` ``[1, pos]`` replaced in turn.

    All variants run as one batch.

    Args:
        model: a GPTNeoXForCausalLM.
        tokens: ids ``[1, pos]``.
        answer: id of the token whose probability is read at the end.

    Returns:
        ``[pos]``, in nats.

    Raises:
        InputError: the model has no token that ends a text.
    """
    length = tokens.shape[1]
    variants = tokens.repeat(length, 1)
    variants.fill_diagonal_(_end_of_text(model))
    logits = model(variants, logits_to_keep=1, use_cache=False).logits[:, -1]
    return logits.float().log_softmax(dim=-1)[:, answer].cpu()


def sections(
    tour: Tour, model: LanguageModel
) -> list[tuple[str, str | None, views.View | str | None]]:
    """The tour as headings, paragraphs and pictures, for a report."""
    token, other = views.label(tour.pieces[tour.corrupted]), views.label(tour.replacement)
    damaged = float(tour.occlusion[tour.corrupted])
    return [
        ("The model", headline(model), None),
        ("What it writes", None, f"{tour.prompt}{tour.continuation}"),
        ("What it expects next", None, tour.predictions),
        (
            "Where it looks",
            f"{tour.activations} activations were cached, {tour.cache_bytes / 1e6:.1f} MB. These "
            "are the attention patterns among them: each row is a token that looks, each column "
            "one that is looked at.",
            tour.attention,
        ),
        (
            "What one activation does",
            f"Of all tokens before the last, replacing token {tour.corrupted} ({token}) with "
            f"{other} hurts the prediction most: its log probability goes from {tour.clean:.2f} to "
            f"{damaged:.2f}. The map shows how much of it comes back when the residual stream of "
            "the undisturbed run is put in at one layer and position: 1 is all of it, 0 nothing.",
            tour.patching,
        ),
    ]


def run(name: str | None, prompt: str | None, out: Path | None) -> None:
    """Take the tour, print what it found, and write the report.

    Args:
        name: directory or hub id; None for the built-in model.
        prompt: text to read; None for a default.
        out: HTML file to write; None for none.

    Raises:
        InputError: ``out`` is no page or cannot be written, or a prompt that ``take`` cannot use.
    """
    if out is not None:
        _check_out(out)
    if prompt == "":
        raise InputError("--prompt is empty: write a text for the model to read.")
    model = nl.load(name)
    shown = name or "the built-in model"
    print(f"{headline(model)}\n")
    tour = take(model, prompt or DEFAULT_PROMPT)
    print(f"{tour.prompt}\n  → {tour.continuation!r}\n")
    print(f"{tour.activations} activations cached, {tour.cache_bytes / 1e6:.1f} MB\n")
    print(tour.predictions, tour.attention, tour.patching, sep="\n\n")
    if out is not None:
        views.write_report(out, f"neox_lab tour: {shown}", sections(tour, model))
        print(f"\nReport: {out}")


def _check_out(out: Path) -> None:
    """Refuse what cannot be written before any work is done.

    Raises:
        InputError: it is no page, its folder is missing, or it cannot be written there.
    """
    if out.suffix != ".html":
        raise InputError(f"The report is a page: --out must end in .html; got {str(out)!r}.")
    if out.is_dir():
        raise InputError(f"--out {str(out)!r} is a folder; name a page in it, such as report.html.")
    if not out.parent.is_dir():
        raise InputError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}.")
    if not os.access(out.parent, os.W_OK):
        raise InputError(
            f"--out {str(out)!r}: the folder {str(out.parent)!r} cannot be written to."
        )
