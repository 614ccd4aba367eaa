"""A weight matrix taken apart: how much each direction carries, and tokens at both of its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.head_names import head_name
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView, TreeView

SIGNS = {"+": "+", "-": "−"}
"""Ends, as they are shown."""


@dataclass(frozen=True)
class SVDResult(Result):
    """The singular vectors of one matrix, the largest values first; tensors are on the CPU.

    Attributes:
        matrix: ``"OV"``, ``"QK"``, ``"W_in"`` or ``"W_out"``.
        layer: of which block.
        head: of which head; None for the MLP's.
        singular_values: all of them, ``[rank]``.
        random_values: those of a Gaussian matrix of the same shape (of the same two factors, where
            the matrix is a product) and Frobenius norm.
        left: left singular vectors ``[rows, vector]``, as many as were asked for.
        right: right singular vectors ``[columns, vector]``.
        frame: a row for each token: ``vector``, ``value``, ``share`` (of the squared norm),
            ``side`` (``reads`` and ``writes``, of QK ``query`` and ``key``), ``sign`` (which end;
            ends of one sign belong together), ``rank`` (0 is farthest out), ``token``,
            ``token_id`` and ``logit``.
    """

    matrix: str
    layer: int
    head: int | None
    singular_values: Tensor
    random_values: Tensor
    left: Tensor
    right: Tensor
    frame: pd.DataFrame

    @property
    def name(self) -> str:
        """Such as ``"OV of L1H3"``."""
        where = f"layer {self.layer}" if self.head is None else head_name(self.layer, self.head)
        return f"{self.matrix} of {where}"

    @property
    def share(self) -> Tensor:
        """What each singular value squared is of the squared norm, ``[rank]``."""
        return squared_shares(self.singular_values)

    def view(self) -> TreeView:
        """For each vector its value, and the tokens at both ends of both sides."""
        from neox_lab.views import TreeView, label

        control = squared_shares(self.random_values).tolist()
        shares, groups = self.share.tolist(), {}
        for vector in self.frame["vector"].unique().tolist():
            rows = self.frame[self.frame["vector"] == vector]
            heading = (
                f"Vector {vector}, σ = {float(self.singular_values[vector]):.3g}: "
                f"{100 * shares[vector]:.1f} % of the squared norm "
                f"(random matrix: {100 * control[vector]:.1f} %)"
            )
            groups[heading] = [
                [f"{side} {SIGNS[sign]}", *(label(token, 16) for token in ends["token"])]
                for (side, sign), ends in rows.groupby(["side", "sign"], sort=False)
            ]
        ranks = map(str, range(1 + int(self.frame["rank"].max())))
        title = f"Singular vectors: {self.name}"
        return TreeView(["end ╲ rank", *ranks], groups, title, folded=False)

    def spectrum(self) -> CurvesView:
        """Each vector's share of the squared norm, beside that of the random matrix."""
        from neox_lab.views import CurvesView, Line

        places = list(range(len(self.singular_values)))
        return CurvesView(
            f"Spectrum: {self.name}",
            {
                self.name: Line(places, self.share),
                "random matrix": Line(places, squared_shares(self.random_values)),
            },
            x_label="singular vector",
            y_label="share of the squared norm",
        )


def squared_shares(values: Tensor) -> Tensor:
    """What each value squared is of the sum of all squares; zeros where that is 0."""
    squares = values.square()
    return squares / squares.sum().where(squares.any(), 1)
