"""From raw text to what a training step sees: a tokenizer, a held-out part, and contexts.

The tokenizer has GPT-NeoX-20B's pipeline (Black et al. 2022, arXiv:2204.06745, section 3.2)
with a smaller vocabulary: NFC normalisation, byte-level byte-pair encoding, ``<|endoftext|>`` as
token 0 and ``<|padding|>`` as token 1, and runs of spaces as the last tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPACE_RUNS = tuple(" " * length for length in range(8, 1, -1))


def split(text: str, held_out: float) -> tuple[str, str]:
    """Cut off the last ``held_out`` (0 to 1) of the characters, at the start of a line."""
    cut = text.find("\n", int(len(text) * (1 - held_out))) + 1
    return text[:cut], text[cut:]


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with at most ``vocab_size`` tokens, special ones included.

    A short text has fewer pairs to merge and gives a smaller vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=True)
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPACE_RUNS),
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in SPACE_RUNS])
    return tokenizer


def sample_contexts(
    tokens: Tensor, batch: int, length: int, *, repeated: float, generator: torch.Generator
) -> Tensor:
    """Draw training contexts ``[batch, length]`` from the token stream ``tokens`` ``[pos]``.

    Most are passages at a random offset, so that a word never sits at a fixed position. Each is,
    with probability ``repeated``, a segment of unrelated tokens over and over instead, with a
    period of an eighth to a half of the length: what comes next there can only be known by
    looking up what followed last time, the task that induction heads solve (Olsson et al. 2022,
    arXiv:2209.11895). One context in eight starts with ``<|endoftext|>`` (token 0), as generation
    from nothing does.
    """
    offset = torch.randint(len(tokens) - length + 1, (batch, 1), generator=generator)
    passages = tokens[offset + torch.arange(length)]
    unrelated = tokens[torch.randint(len(tokens), (batch, length), generator=generator)]
    period = torch.randint(length // 8, length // 2 + 1, (batch, 1), generator=generator)
    cycles = unrelated.gather(1, torch.arange(length) % period)
    contexts = torch.where(torch.rand(batch, 1, generator=generator) < repeated, cycles, passages)
    contexts[torch.rand(batch, generator=generator) < 1 / 8, 0] = 0
    return contexts


def windows(tokens: Tensor, length: int, batch: int) -> Iterator[Tensor]:
    """Cover ``tokens`` ``[pos]`` from start to end with batches of contexts.

    Each context has ``length + 1`` tokens (the last one may be shorter) and starts with the token
    that the one before ended with, so every token but the first is predicted exactly once.
    """
    whole = (len(tokens) - 1) // length
    if whole:
        full = tokens[: whole * length + 1].unfold(0, length + 1, length)
        yield from torch.split(full, batch)
    if len(tokens) - 1 > whole * length:
        yield tokens[None, whole * length :]
