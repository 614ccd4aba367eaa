"""A large matrix of low rank, kept as the product of two thin ones.

What a head does to the residual stream is a ``[d_model, d_model]`` matrix of rank d_head: ``OV``
says what it copies, ``QK`` what it looks for (Elhage et al., 2021, "A Mathematical Framework for
Transformer Circuits"). Held as M = A B with A ``[.., rows, rank]`` and B ``[.., rank, columns]``,
its singular values, eigenvalues and norm cost what matrices of size ``rank`` cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import EllipsisType
from typing import Self, TypeAlias, overload

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.selections import kept_axis, take

AxisIndex: TypeAlias = "int | slice | EllipsisType | Tensor | Sequence[int] | None"
"""What selects along one axis, as in a tensor."""


class FactoredMatrix:
    """The matrix A B, never multiplied out unless asked.

    Attributes:
        A: ``[.., rows, rank]``.
        B: ``[.., rank, columns]``; leading axes are those of ``A``.

    Raises:
        InputError: the two do not fit together.
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:  # noqa: N803 (matrices are capitals)
        if A.dim() < 2 or B.dim() < 2 or A.shape[-1] != B.shape[-2]:
            raise InputError(
                f"FactoredMatrix got A {list(A.shape)} and B {list(B.shape)}; expected "
                "[.., rows, rank] and [.., rank, columns]."
            )
        leading = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])  # type: ignore[no-untyped-call]
        self.A = A.expand(*leading, *A.shape[-2:])
        self.B = B.expand(*leading, *B.shape[-2:])

    @property
    def shape(self) -> torch.Size:
        """Shape of the product, ``[.., rows, columns]``."""
        return torch.Size((*self.A.shape[:-1], self.B.shape[-1]))

    @property
    def ndim(self) -> int:
        """Number of axes of the product."""
        return self.A.dim()

    @property
    def ldim(self) -> int:
        """Number of rows."""
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """The rank: columns of ``A``, rows of ``B``."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        """Number of columns."""
        return self.B.shape[-1]

    @property
    def has_leading_dims(self) -> bool:
        """Whether this is more than one matrix."""
        return self.ndim > 2

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """``(A, B)``: ``[.., ldim, mdim]`` and ``[.., mdim, rdim]``."""
        return self.A, self.B

    @property
    def AB(self) -> Tensor:  # noqa: N802
        """The product, ``[.., rows, columns]``."""
        return self.A @ self.B

    @property
    def BA(self) -> Tensor:  # noqa: N802
        """The product the other way round, ``[.., rank, rank]``.

        Raises:
            InputError: the matrix is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise InputError(f"BA needs a square matrix; this one is {list(self.shape)}.")
        return self.B @ self.A

    @property
    def T(self) -> Self:  # noqa: N802
        """The transpose, ``[.., columns, rows]``."""
        return type(self)(self.B.mT, self.A.mT)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Singular value decomposition, TransformerLens's way: ``(U, S, V)``.

        M = U diag(S) Vᵀ with U ``[.., rows, rank]``, S ``[.., rank]`` in descending order, V
        ``[.., columns, rank]``; in float32 at least.
        """
        return self._svd

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        # A = Q_A R_A and Bᵀ = Q_B R_B: all that is left to decompose is R_A R_Bᵀ, rank by rank.
        left, left_rest = torch.linalg.qr(self.A.to(dtype))
        right, right_rest = torch.linalg.qr(self.B.mT.to(dtype))
        core = left_rest @ right_rest.mT
        finite = _finite(core)
        u, s, vh = torch.linalg.svd(core.where(finite[..., None], 0), full_matrices=False)
        s = s.where(finite, torch.nan)
        return left @ u, s, right @ vh.mT

    @property
    def U(self) -> Tensor:  # noqa: N802
        """Left singular vectors, the columns of ``[.., rows, rank]``."""
        return self._svd[0]

    @property
    def S(self) -> Tensor:  # noqa: N802
        """Singular values ``[.., rank]``, largest first."""
        return self._svd[1]

    @property
    def V(self) -> Tensor:  # noqa: N802
        """Right singular vectors, the columns of ``[.., columns, rank]``."""
        return self._svd[2]

    @property
    def Vh(self) -> Tensor:  # noqa: N802
        """Right singular vectors, the rows of ``[.., rank, columns]``."""
        return self.V.mT

    @property
    def eigenvalues(self) -> Tensor:
        """The ``rank`` eigenvalues that can differ from zero, complex ``[.., rank]``.

        A B and B A share them: from B A v = λ v follows A B (A v) = λ (A v). NaN for a matrix with
        a number that is not finite.

        Raises:
            InputError: the matrix is not square.
        """
        product = self.BA
        product = product.to(torch.promote_types(product.dtype, torch.float32))
        finite = _finite(product)
        found = torch.linalg.eigvals(product.where(finite[..., None], 0))
        return found.where(finite, complex(torch.nan, torch.nan))

    def norm(self) -> Tensor:
        """Frobenius norm ``[..]``."""
        return self.S.norm(dim=-1)

    def collapse_l(self) -> Tensor:
        """diag(S) Vᵀ, ``[.., rank, columns]``: equal to the matrix up to a rotation on the left."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> Tensor:
        """U diag(S), ``[.., rows, rank]``: equal to the matrix up to a rotation on the right."""
        return self.U * self.S[..., None, :]

    def make_even(self) -> Self:
        """The same matrix as ``(U √diag(S), √diag(S) Vᵀ)``: both halves have the same norm."""
        root = self.S.sqrt()
        return type(self)(self.U * root[..., None, :], root[..., :, None] * self.V.mT)

    def get_corner(self, k: int = 3) -> Tensor:
        """The first ``k`` entries of every axis of the product ``[.., k, k]``; it is not made."""
        corner = self.A[..., :k, :] @ self.B[..., :, :k]
        return corner[(slice(k),) * self.ndim]

    def unsqueeze(self, k: int) -> Self:
        """The matrix with a leading axis of length 1 more, at place ``k``."""
        return type(self)(self.A.unsqueeze(k), self.B.unsqueeze(k))

    def __mul__(self, scalar: float | Tensor) -> Self:
        """The matrix times one number.

        Raises:
            InputError: ``scalar`` holds several numbers.
        """
        if isinstance(scalar, Tensor) and scalar.numel() != 1:
            raise InputError(
                f"A FactoredMatrix times a tensor of shape {list(scalar.shape)}; expected one "
                "number. Matrices are multiplied with @."
            )
        return type(self)(self.A * scalar, self.B)

    __rmul__ = __mul__

    @overload
    def __matmul__(self, other: FactoredMatrix) -> Self: ...
    @overload
    def __matmul__(self, other: Tensor) -> Self | Tensor: ...
    def __matmul__(self, other: Tensor | FactoredMatrix) -> Self | Tensor:
        """``self @ other``: a tensor for a vector ``[columns]``, else a FactoredMatrix."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        if other.dim() == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        rows, columns = self.B.shape[-2], other.shape[-1]
        if rows <= columns:
            return type(self)(self.A, self.B @ other)
        return type(self)(self.AB, other)

    def __rmatmul__(self, other: Tensor) -> Self | Tensor:
        """``other @ self``: a tensor for a vector ``[rows]``, else a FactoredMatrix."""
        if other.dim() == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return (self.T @ other.mT).T

    def __getitem__(self, index: AxisIndex | tuple[AxisIndex, ...]) -> Self:
        """Part of the matrix, still factored.

        Leading axes index as in a tensor. A single row or column keeps its axis, of length 1, so
        that a matrix remains: ``m[layer, head, 3]`` is ``[1, columns]``.

        Raises:
            IndexError: more indices than axes.
            InputError: rows or columns that are not there.
        """
        entries = list(index) if isinstance(index, tuple) else [index]
        dots = [place for place, entry in enumerate(entries) if entry is Ellipsis]
        place = dots[0] if dots else len(entries)
        indices = sum(entry is not None and entry is not Ellipsis for entry in entries)
        missing = self.ndim - indices
        if missing < 0:
            raise IndexError(f"{indices} indices for a matrix of {self.ndim} axes.")
        entries[place : place + len(dots)] = [slice(None)] * missing
        *leading, row, column = entries
        a, b = self.A[tuple(leading)], self.B[tuple(leading)]
        return type(self)(_rows(a, -2, row, "row"), _rows(b, -1, column, "column"))

    def __repr__(self) -> str:
        """Shape and rank."""
        return f"FactoredMatrix({list(self.shape)}, rank {self.A.shape[-1]})"


@torch.no_grad()
def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Tensor:
    """How strongly each right matrix reads what each left one writes.

    ‖L R‖ / (‖L‖ ‖R‖) in Frobenius norms (Elhage et al., 2021), from the factors alone.

    Args:
        left: ``[*left axes, rows, d_model]``, such as ``model.OV``.
        right: ``[*right axes, d_model, columns]``.
        broadcast_dims: score every left with every right one; False takes their leading axes
            together, as a product of tensors does.

    Returns:
        ``[*left axes, *right axes]``.

    Raises:
        InputError: the matrices cannot be multiplied.
    """
    if left.rdim != right.ldim:
        raise InputError(
            f"composition_scores got {list(left.shape)} and {list(right.shape)}; the columns of "
            "the first must be the rows of the second."
        )
    writes, reads = left.collapse_l(), right.collapse_r()
    if broadcast_dims:
        ones = (1,) * (reads.dim() - 2)
        writes = writes.reshape(*writes.shape[:-2], *ones, *writes.shape[-2:])
    norms = writes.norm(dim=(-2, -1)) * reads.norm(dim=(-2, -1))
    return (writes @ reads).norm(dim=(-2, -1)) / norms


def _finite(matrices: Tensor) -> Tensor:
    """Which matrices are finite ``[.., 1]``: of others LAPACK may end the process."""
    return matrices.isfinite().all(dim=-1).all(dim=-1, keepdim=True)


def _rows(side: Tensor, axis: int, which: AxisIndex, name: str) -> Tensor:
    """Some rows or columns; a single one keeps its axis."""
    return take(side, axis, kept_axis(name, which, InputError), name, InputError)
