"""What is learned: which part of a site carries a variable.

    Rotation          directions R ``[width, rank]`` with orthonormal columns (Geiger et al.,
                      arXiv:2303.02536): the base gets own + (other - own) R Rᵀ
    BoundedRotation   the same with a weight for each direction, 1 up to a boundary and 0 beyond,
                      which is learned too (boundless DAS, Wu et al., arXiv:2305.08809)
    CoordinateMask    no directions: a weight for each number of the site itself

R is the Q of a thin QR decomposition of a free matrix ``[width, rank]``; no matrix
``[width, width]`` is ever made. Soft weights end up as 0 or 1: what a subspace is in the end, its
``directions``, has neither weights nor temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

START, END = 50 / 4096, 0.1
"""Temperature of boundaries at the start, as a share of the directions, and at the end."""
MASK_START, MASK_END = 1.0, 0.01
"""Temperature of masks."""


class Rotation(nn.Module):
    """A subspace of fixed rank.

    Args:
        width: how many numbers stand at the site.
        rank: how many directions.
        generator: of the first directions.
        dtype: of the numbers.
        device: where they are.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        free = torch.randn(width, rank, generator=generator, dtype=torch.float64)
        self.free = nn.Parameter(torch.linalg.qr(free).Q.to(device, dtype))
        self.progress = 0.0

    @property
    def rotation(self) -> Tensor:
        """R, ``[width, rank]``."""
        found: Tensor = torch.linalg.qr(self.free).Q
        return found

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """What bases get, ``[batch, width]``.

        Args:
            own: what they have.
            other: what sources have.
        """
        rotation = self.rotation
        inside = (other - own).to(rotation.dtype) @ rotation
        return own + ((inside * self.weights()) @ rotation.T).to(own.dtype)

    def weights(self) -> Tensor | float:
        """Of each direction."""
        return 1.0

    def penalty(self) -> Tensor | float:
        """What is added to the loss."""
        return 0.0

    @torch.no_grad()
    def directions(self) -> Tensor:
        """The subspace that was found, ``[width, rank]``."""
        return self.rotation.detach().clone()


class BoundedRotation(Rotation):
    """A subspace whose rank is learned, up to a largest one."""

    def __init__(
        self,
        width: int,
        rank: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(width, rank, generator, dtype, device)
        self.boundary = nn.Parameter(torch.tensor(0.5, dtype=dtype, device=device))

    def _places(self) -> tuple[Tensor, Tensor]:
        """The middle of each direction on the axis 0 to rank, and the boundary there."""
        rank = self.free.shape[1]
        middles = torch.arange(rank, dtype=self.free.dtype, device=self.free.device) + 0.5
        return middles, self.boundary.clamp(1e-3, 1) * rank

    def weights(self) -> Tensor:
        """σ(i / T) σ((b - i) / T) of direction i, for the boundary b and the temperature T."""
        middles, boundary = self._places()
        start = max(START * len(middles), END)
        temperature = start + (END - start) * self.progress
        return (middles / temperature).sigmoid() * ((boundary - middles) / temperature).sigmoid()

    def penalty(self) -> Tensor:
        """The boundary, as a share of all directions."""
        return self.boundary.clamp(1e-3, 1)

    @torch.no_grad()
    def directions(self) -> Tensor:
        """Those below the boundary; at least one."""
        middles, boundary = self._places()
        count = max(1, int((middles < boundary).sum()))
        return self.rotation[:, :count].detach().clone()


class CoordinateMask(nn.Module):
    """Some of the site's own numbers.

    Args:
        width: how many numbers stand there.
        sparsity: by how much each number's weight counts as loss.
        dtype: of the numbers.
        device: where they are.
    """

    def __init__(
        self,
        width: int,
        sparsity: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(width, dtype=dtype, device=device))
        self.sparsity, self.progress = sparsity, 0.0

    def weights(self) -> Tensor:
        """σ(mask / T) of each number."""
        temperature = MASK_START * (MASK_END / MASK_START) ** self.progress
        return (self.mask / temperature).sigmoid()

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """What bases get, see ``Rotation``."""
        return own + ((other - own).to(self.mask.dtype) * self.weights()).to(own.dtype)

    def penalty(self) -> Tensor:
        """The weights' mean, times ``sparsity``."""
        return self.sparsity * self.weights().mean()

    @torch.no_grad()
    def directions(self) -> Tensor:
        """Unit vectors of the numbers that are exchanged, at least of the likeliest one."""
        chosen = self.mask > 0
        chosen[self.mask.argmax()] = True
        numbers = chosen.nonzero().T  # [1, rank]
        return self.mask.new_zeros(len(chosen), numbers.shape[1]).scatter_(0, numbers, 1)


Subspace = Rotation | CoordinateMask


def random_directions(width: int, rank: int, generator: torch.Generator) -> Tensor:
    """A subspace drawn evenly from all of its rank, ``[width, rank]`` float64.

    Args:
        width: how many numbers stand at the site.
        rank: how many directions.
        generator: of the draw.
    """
    free = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    found: Tensor = torch.linalg.qr(free).Q
    return found
