"""How good the built-in model's dictionaries are, and what their features stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.losses import IGNORED
from neox_lab.gym import words
from neox_lab.sae import Dictionary
from neox_lab.sae.rows import tokens_of
from neox_lab.sae.training_result import measured

Context = tuple[list[int], list[int]]
"""Token ids and labels, -100 where what comes cannot be known."""

ABOVE = (0.0, 0.2, 0.4)  # shares of a feature's greatest activation that may be its threshold
_AT_ONCE = 50  # contexts

THINGS: dict[str, Sequence[str]] = {
    "name": words.NAMES,
    "woman's name": words.WOMEN,
    "man's name": words.MEN,
    "place": words.PLACES,
    "object": words.OBJECTS,
    "container": words.CONTAINERS,
    "country": tuple(words.COUNTRIES),
    "capital": tuple(capital for capital, _ in words.COUNTRIES.values()),
    "language": tuple(language for _, language in words.COUNTRIES.values()),
    "year": tuple(str(year) for year in words.YEARS),
    "month": words.MONTHS,
    "plural": tuple(words.NOUNS.values()),
    "praise": words.POSITIVE,
    "blame": words.NEGATIVE,
}
"""What tokens may stand for, by the words of the world."""

NEXT = ("name", "place", "year")
"""Of these there is also a class of the tokens that they follow."""


def quality(
    model: GPTNeoXForCausalLM, dictionary: Dictionary, contexts: Sequence[Context]
) -> dict[str, float]:
    """A dictionary on some contexts; see ``dictionary_card`` for the numbers.

    Args:
        model: the model.
        dictionary: one of it.
        contexts: what is read.
    """
    ids = [row for row, _ in contexts]
    held = measured(dictionary, tokens_of(model, ids, dictionary.site_in, dictionary.site_out))

    def zeros(tensor: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(tensor)

    clean = cross_entropy(model, contexts, nullcontext())
    written = cross_entropy(model, contexts, model.spliced(dictionary, error=False))
    nothing = cross_entropy(model, contexts, model.hooks([(dictionary.site_out, zeros)]))
    return {
        "fvu": held.fvu,
        "fvu_low": held.fvu_low,
        "fvu_high": held.fvu_high,
        "l0": held.l0,
        "dead": held.never,
        "ce": clean,
        "ce_dictionary": written,
        "ce_zero": nothing,
        "ce_recovered": (written - nothing) / (clean - nothing),
    }


@torch.no_grad()
def cross_entropy(
    model: GPTNeoXForCausalLM, contexts: Sequence[Context], place: AbstractContextManager[object]
) -> float:
    """Mean loss, in nats, of the tokens that can be known.

    Args:
        model: the model.
        contexts: what it reads.
        place: what is in force meanwhile.
    """
    total, count = 0.0, 0
    with place:
        for start in range(0, len(contexts), _AT_ONCE):
            part = contexts[start : start + _AT_ONCE]
            logits = model(torch.tensor([ids for ids, _ in part]).to(model.device)).logits
            labels = torch.tensor([known for _, known in part]).to(model.device)[:, 1:]
            total += float(
                torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1),
                    labels.flatten(),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
            )
            count += int((labels != IGNORED).sum())
    return total / count


def classes(
    model: GPTNeoXForCausalLM, contexts: Sequence[Context], repeated: int
) -> dict[str, Tensor]:
    """Which tokens belong to which class, ``[context * pos]``.

    Args:
        model: whose tokenizer it is.
        contexts: of one length, those that repeat unrelated tokens last.
        repeated: how many do.
    """
    assert model.tokenizer is not None
    vocabulary = model.tokenizer.backend_tokenizer.get_vocab()
    ids = torch.tensor([row for row, _ in contexts])
    found = {}
    for thing, listed in THINGS.items():
        forms = [form for word in listed for form in (f"Ġ{word}", word)]
        tokens = torch.tensor([vocabulary[form] for form in forms if form in vocabulary])
        found[thing] = torch.isin(ids, tokens)
    for thing in NEXT:
        follows = torch.zeros_like(found[thing])
        follows[:, :-1] = found[thing][:, 1:]
        found[f"before a {thing}"] = follows
    labels = torch.tensor([known for _, known in contexts])
    known = torch.zeros_like(ids, dtype=torch.bool)
    known[-repeated:, :-1] = labels[-repeated:, 1:] != IGNORED
    found["induction: what comes is known from a repeat"] = known
    return {thing: mask.flatten() for thing, mask in found.items()}


def named(
    dictionary: Dictionary,
    search: tuple[Tensor, Mapping[str, Tensor]],
    test: tuple[Tensor, Mapping[str, Tensor]],
    seed: int = 0,
) -> Iterator[dict[str, object]]:
    """For each class the feature that finds it best.

    Args:
        dictionary: the dictionary.
        search: what it reads ``[token, d_in]``, and the classes; the feature is chosen on these.
        test: other tokens, on which it is measured.
        seed: of the control, classes of as many tokens at random.
    """
    searched, tested = (dictionary.encode(x).dense().detach() for x, _ in (search, test))
    generator = torch.Generator().manual_seed(seed)
    for thing, mask in search[1].items():
        feature, above = _best(searched, mask)
        precision, recall, f1 = _scores(tested[:, feature] > above, test[1][thing])
        shuffled = [m[torch.randperm(len(m), generator=generator)] for m in (mask, test[1][thing])]
        chance, chance_above = _best(searched, shuffled[0])
        control = _scores(tested[:, chance] > chance_above, shuffled[1])[2]
        yield {
            "class": thing,
            "feature": feature,
            "above": above,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "base_rate": float(test[1][thing].float().mean()),
            "control": control,
        }


def _best(acts: Tensor, mask: Tensor) -> tuple[int, float]:
    """The feature and threshold of the best F1 ``[token, latent]``."""
    best, greatest = (-1.0, 0, 0.0), acts.max(0).values
    for share in ABOVE:
        on = (acts > share * greatest).float()
        hits = mask.float() @ on
        f1 = 2 * hits / (on.sum(0) + mask.sum()).clamp_min(1)
        value, feature = (each.item() for each in f1.max(0))
        if value > best[0]:
            best = value, int(feature), share * float(greatest[int(feature)])
    return best[1], best[2]


def _scores(found: Tensor, mask: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of tokens that were found."""
    hits = float((found & mask).sum())
    precision, recall = hits / max(1, int(found.sum())), hits / max(1, int(mask.sum()))
    return precision, recall, 2 * precision * recall / max(1e-12, precision + recall)
