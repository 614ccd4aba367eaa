"""``SVDInterpreter``: singular vectors of weights, as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.errors import InputError
from neox_lab.experiments.lens.matrices import singular_vectors

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer


class SVDInterpreter:
    """What a model's matrices write or read most.

    Attributes:
        model: whose.
    """

    def __init__(self, model: HookedTransformer) -> None:
        """For the weights of ``model``."""
        self.model = model

    def get_singular_vectors(
        self,
        vector_type: Literal["OV", "w_in", "w_out"],
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
    ) -> Tensor:
        """Logits of a matrix's right singular vectors, see ``nl.lens.singular_vectors``.

        Args:
            vector_type: ``"OV"``, ``"w_in"`` or ``"w_out"``.
            layer_index: number of the block.
            num_vectors: how many.
            head_index: which head, for ``"OV"``; of no account for the others.

        Returns:
            ``[vocab, 1, vector]``.

        Raises:
            InputError: an unknown matrix, no such layer or head, or more vectors than there are.
        """
        check("vector_type", vector_type, one_of("OV", "w_in", "w_out"), InputError)
        matrix: Literal["OV", "W_in", "W_out"] = (
            "OV" if vector_type == "OV" else "W_in" if vector_type == "w_in" else "W_out"
        )
        native, head = self.model.native, head_index if matrix == "OV" else None
        return singular_vectors(native, matrix, layer_index, head, num_vectors)[:, None]
