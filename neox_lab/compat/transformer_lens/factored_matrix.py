"""``FactoredMatrix`` with the one member that means something else in TransformerLens."""

from __future__ import annotations

from torch import Tensor

from neox_lab.family.factored import FactoredMatrix as NativeMatrix


class FactoredMatrix(NativeMatrix):
    """The matrix A B; see this package's own, which this is but for ``Vh``."""

    @property
    def Vh(self) -> Tensor:  # noqa: N802
        """``V``, right singular vectors as columns ``[.., rdim, mdim]``, whatever the h says."""
        return self.V
