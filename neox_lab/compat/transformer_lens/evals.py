"""``evals``: rough checks that need no data from the network."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.compat.transformer_lens.utils import lm_cross_entropy_loss

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

_CHECKED = (
    "Many important transition points in the history of science have been moments when science "
    "'zoomed in.' At these points, we develop a visualization or tool that allows us to see the "
    "world in a new level of detail, and a new field of science develops to study the world "
    "through this lens."
)  # Olah et al., 2020, "Zoom In"


def sanity_check(model: HookedTransformer) -> Tensor:
    """The loss on one English paragraph: below 5 all is well, above 7 something is wrong."""
    loss: Tensor = model(_CHECKED, return_type="loss")
    return loss


@torch.no_grad()
def evaluate_on_dataset(
    model: HookedTransformer,
    data_loader: Iterable[Mapping[str, Tensor]],
    truncate: int = 100,
    device: str | None = None,
) -> float:
    """The mean loss of batches with ``tokens`` ``[batch, pos]``, of ``truncate + 1`` at most.

    Args:
        model: the model.
        data_loader: the batches.
        truncate: stop after more than so many.
        device: None for the model's.
    """
    losses: list[float] = []
    for batch in data_loader:
        tokens = batch["tokens"].to(device or model.cfg.device)
        losses.append(float(model(tokens, return_type="loss")))
        if len(losses) > truncate:
            break
    return sum(losses) / len(losses)


@torch.no_grad()
def induction_loss(
    model: HookedTransformer,
    tokenizer: GPTNeoXTokenizerFast | None = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: str | None = None,
) -> Tensor:
    """The loss on random tokens that come a second time.

    Args:
        model: the model.
        tokenizer: for the beginning-of-text token; None for the model's.
        batch_size: rows.
        subseq_len: tokens before they come again.
        prepend_bos: begin rows with the beginning-of-text token; None as ``cfg`` says.
        device: None for the model's.
    """
    most = min(20000, model.cfg.d_vocab)
    once = torch.randint(100, most, (batch_size, subseq_len)).to(device or model.cfg.device)
    tokens = torch.cat((once, once), dim=1)
    if model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
        tokens[:, 0] = (tokenizer or model.tokenizer).bos_token_id
    losses = lm_cross_entropy_loss(model(tokens), tokens, per_token=True)
    return losses[:, subseq_len + 1 :].mean()


class IOIDataset:
    """Sentences in which one of two names comes again, and the other must follow.

    Wang et al., 2022, arXiv:2211.00593. ``dataset[i]`` has ``prompt``, ``IO`` (the name that must
    follow) and ``S`` as token ids.
    """

    def __init__(
        self,
        tokenizer: GPTNeoXTokenizerFast,
        templates: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        nouns: Mapping[str, Sequence[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        """Draw the sentences.

        Args:
            tokenizer: from text to ids.
            templates: with ``[A]``, ``[B]`` (which comes again) and names of ``nouns``; the
                sentence ends with ``[A]``.
            names: who ``[A]`` and ``[B]`` are.
            nouns: words for each other placeholder.
            num_samples: how many sentences.
            symmetric: each sentence also with the names exchanged.
            prepend_bos: begin with the beginning-of-text token.
            seed: of Python's ``random``; None draws on.
        """
        self.tokenizer, self.prepend_bos = tokenizer, prepend_bos
        self.templates = templates or self.get_default_templates()
        self.names = names or self.get_default_names()
        self.nouns = nouns or self.get_default_nouns()
        if seed is not None:
            random.seed(seed)
        self.samples: list[dict[str, str]] = []
        for _ in range(num_samples // 2 if symmetric else num_samples):
            self.samples.extend(self.get_sample(symmetric))

    def __len__(self) -> int:
        """How many sentences."""
        return len(self.samples)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        """One sentence, ``prompt``, ``IO`` and ``S`` as token ids."""
        sample = self.samples[idx]
        ids = {name: self.tokenizer.encode(sample[name]) for name in ("text", "IO", "S")}
        start: list[Any] = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        return {
            "prompt": torch.tensor(start + ids["text"]),
            "IO": torch.tensor(ids["IO"]),
            "S": torch.tensor(ids["S"]),
        }

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """One sentence drawn at random, and the one with exchanged names if ``symmetric``."""
        template = random.choice(list(self.templates))
        for placeholder, words in self.nouns.items():
            template = template.replace(f"[{placeholder}]", random.choice(list(words)))
        first, second = random.sample(list(self.names), 2)
        pairs = [(first, second), (second, first)][: 2 if symmetric else 1]
        return [
            {"text": template.replace("[A]", a).replace("[B]", b), "IO": f" {a}", "S": f" {b}"}
            for a, b in pairs
        ]

    @staticmethod
    def get_default_names() -> list[str]:
        """Two names."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """Two sentences."""
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """Words for their placeholders."""
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}
