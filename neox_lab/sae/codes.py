"""Which features are active at each token, and how much: indices and values, nothing dense.

Of 32,768 features some tens are active at a token. A matrix ``[pos, latent]`` of them would take
many times the memory of the activations they were read from; as ``Codes`` they take less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.other_dictionary_names import CODES
from neox_lab.other_names import ours


@dataclass(frozen=True)
class Codes:
    """The active features of tokens.

    A slot holds one feature; what is left of the slots where fewer features are active has the
    value 0. Of one token the largest value comes first.

    Attributes:
        indices: which feature, ``[*tokens, slot]``, int64.
        values: its activation, of the same shape; 0 where the slot is empty.
        latents: how many features the dictionary has.

    Raises:
        InputError: indices and values of different shapes, or of none.
    """

    indices: Tensor
    values: Tensor
    latents: int

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.dim() < 1:
            raise InputError(
                f"indices {list(self.indices.shape)} and values {list(self.values.shape)} must "
                "have one shape [*tokens, slot]."
            )

    if not TYPE_CHECKING:  # or a type checker would take every misspelt name for one of these

        def __getattr__(self, name: str) -> object:
            """Called where there is no such attribute.

            Raises:
                AttributeError: always; what is done elsewhere to a matrix of features is told.
            """
            raise AttributeError(f"Codes has no attribute {name!r}.{ours(name, CODES)}")

    @property
    def count(self) -> Tensor:
        """How many features are active at each token, ``[*tokens]``, int64."""
        return (self.values != 0).sum(dim=-1)

    def of(self, latent: int) -> Tensor:
        """Activation of one feature at each token, ``[*tokens]``; 0 where it is not active."""
        return self.values.where(self.indices == latent, 0).sum(dim=-1)

    def dense(self) -> Tensor:
        """The matrix ``[*tokens, latent]``; a hundred times as large, so only on request."""
        empty = self.values.new_zeros(*self.values.shape[:-1], self.latents)
        return empty.scatter_add(-1, self.indices, self.values)

    def select(self, tokens: Tensor) -> Codes:
        """The codes of some tokens.

        Args:
            tokens: a mask ``[*tokens]``.

        Returns:
            Codes ``[kept, slot]``.
        """
        return Codes(self.indices[tokens], self.values[tokens], self.latents)


def require_codes(codes: object, latents: int) -> Codes:
    """Refuse what is no codes of a dictionary.

    Args:
        codes: of the user.
        latents: how many features the dictionary has.

    Raises:
        InputError: something else, or codes of another dictionary.
    """
    if isinstance(codes, Tensor) and codes.dim() and codes.shape[-1] == latents:
        raise InputError(
            f"codes is a dense matrix {list(codes.shape)}; expected Codes, as encode gives: "
            "indices and values of the active features. Activations are edited while the "
            "dictionary is spliced in, at hook_sae_acts."
        )
    if not isinstance(codes, Codes):
        raise InputError(f"codes={shown(codes, 80)}; expected Codes, as encode gives.")
    if codes.latents != latents:
        raise InputError(f"The codes are of {codes.latents} features; here are {latents}.")
    return codes


def packed(dense: Tensor) -> Codes:
    """Codes of a matrix ``[*tokens, latent]``: its non-zero entries; NaN counts as one."""
    active = dense != 0
    slots = int(active.sum(dim=-1).max()) if dense.numel() else 0
    order = dense.detach().where(active, -torch.inf)
    indices = order.topk(slots, dim=-1).indices
    return Codes(indices, dense.gather(-1, indices), dense.shape[-1])


def joined(parts: list[Codes]) -> Codes:
    """Codes ``[token, slot]`` one after another, with as many slots as the widest has."""
    slots = max(part.indices.shape[-1] for part in parts)
    pad = torch.nn.functional.pad
    return Codes(
        torch.cat([pad(part.indices, (0, slots - part.indices.shape[-1])) for part in parts]),
        torch.cat([pad(part.values, (0, slots - part.values.shape[-1])) for part in parts]),
        parts[0].latents,
    )
