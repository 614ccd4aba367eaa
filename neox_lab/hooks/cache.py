"""Activations kept from a run, by name.

    output, cache = model.run_with_cache("The cat sat on the mat")
    cache["blocks.0.attn.hook_pattern"]      # or cache["pattern", 0]
    cache.frame                              # what is in it, with shapes and bytes

A cache keeps the network's own tensors without copying them: the network never writes over a
tensor it has shown, and hooks that write get copies of their own (see ``points``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.errors import HookNameError
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.hooks.points import HookPoint, Watcher

if TYPE_CHECKING:
    import pandas as pd

PosSlice = int | slice | Sequence[int] | Tensor
"""Which positions to keep: one (its axis goes), a slice, or a list."""


@dataclass(frozen=True)
class Keeping:
    """How a tensor is kept.

    Attributes:
        device: move there; None leaves it where it is.
        dtype: convert floating-point tensors; None leaves them.
        pos_slice: positions to keep along ``pos`` (``query_pos`` for scores and patterns).
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    pos_slice: PosSlice | None = None

    def __call__(self, tensor: Tensor, point: HookPoint) -> Tensor:
        """The tensor to keep: detached, cut, moved, converted."""
        kept = tensor.detach()
        if self.pos_slice is not None:
            kept = self._cut(kept, point)
        return kept.to(device=self.device, dtype=self.dtype)

    def _cut(self, tensor: Tensor, point: HookPoint) -> Tensor:
        names = [name for name in ("pos", "query_pos") if name in point.axes]
        if not names:
            return tensor
        axis = point.axes.index(names[0])
        if isinstance(self.pos_slice, int):
            return tensor.select(axis, self.pos_slice).clone()
        if isinstance(self.pos_slice, slice):
            index = torch.arange(tensor.shape[axis], device=tensor.device)[self.pos_slice]
        else:
            index = torch.as_tensor(self.pos_slice, device=tensor.device)
        return tensor.index_select(axis, index)


class ActivationCache(Mapping[str, Tensor]):
    """Activations of one run, by hook name; a read-only mapping from names to tensors.

    Attributes:
        points: every hook point of the model, by name.
        attention_mask: ``[batch, pos]`` with 1 for text and 0 for padding, or None.
        pieces: the token strings of the first row, or None where no tokenizer was at hand.
    """

    def __init__(
        self,
        points: Mapping[str, HookPoint],
        *,
        attention_mask: Tensor | None = None,
        pieces: list[str] | None = None,
    ) -> None:
        """An empty cache for a model with these hook points."""
        self.points = points
        self.attention_mask = attention_mask
        self.pieces = pieces
        self._tensors: dict[str, Tensor] = {}

    def watchers(self, points: Sequence[HookPoint], keeping: Keeping) -> list[Watcher]:
        """Watchers that keep what passes ``points`` in this cache."""

        def keep(tensor: Tensor, point: HookPoint) -> None:
            self._tensors[point.name] = keeping(tensor, point)

        return [Watcher(point, keep, writes=False) for point in points]

    def gradient_watchers(self, points: Sequence[HookPoint], keeping: Keeping) -> list[Watcher]:
        """Watchers that keep gradients, under the name of the point followed by ``_grad``."""

        def keep(gradient: Tensor, point: HookPoint) -> None:
            self._tensors[f"{point.name}_grad"] = keeping(gradient, point)

        return [Watcher(point, keep, direction="backward", writes=False) for point in points]

    def __getitem__(self, name: str | ShortForm) -> Tensor:
        """The tensor kept at a name, alias or short form such as ``("pattern", 0)``.

        Raises:
            HookNameError: no such hook point, or it was not kept in this run.
        """
        if isinstance(name, str) and name in self._tensors:
            return self._tensors[name]
        wanted, suffix = name, ""
        if isinstance(name, str) and name.endswith("_grad"):
            wanted, suffix = name.removesuffix("_grad"), "_grad"
        full = exact(wanted, self.points) + suffix
        if full not in self._tensors:
            raise HookNameError(
                f"{full!r} is not in this cache, which keeps {len(self)} tensors. It was left out "
                "by names_filter, or the run did not reach it (start_at_layer, stop_at_layer)."
            )
        return self._tensors[full]

    def __contains__(self, name: object) -> bool:
        """True if the tensor was kept; names, aliases and short forms all count."""
        try:
            self[name]  # type: ignore[index]
        except (HookNameError, AttributeError, TypeError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """Full names, in the order in which the tensors passed."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors kept."""
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Memory the cache holds on to, in bytes; memory that tensors share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor for tensor in self._tensors.values()
        }
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    @property
    def frame(self) -> pd.DataFrame:
        """A table of what is kept: name, shape, axes, dtype, device and megabytes."""
        import pandas as pd

        rows = []
        for name, tensor in self._tensors.items():
            point = self.points[name.removesuffix("_grad")]
            rows.append(
                {
                    "name": name,
                    "shape": tuple(tensor.shape),
                    "axes": " ".join(point.axes),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "device": str(tensor.device),
                    "megabytes": tensor.numel() * tensor.element_size() / 1e6,
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """Count and size."""
        return f"ActivationCache({len(self)} tensors, {self.nbytes / 1e6:.1f} MB)"


def run_backward(output: Any, target: bool | Callable[[Any], Tensor]) -> None:
    """Backpropagate from the scalar that ``incl_bwd`` names.

    Args:
        output: what the model returned.
        target: True for ``output.loss``, or a function from the output to a scalar.

    Raises:
        ValueError: there is no such scalar.
    """
    scalar = target(output) if callable(target) else output.get("loss")
    if scalar is None:
        raise ValueError(
            "incl_bwd=True backpropagates from output.loss, and this run computed none. Pass "
            "labels=, or incl_bwd= a function from the output to a scalar."
        )
    if scalar.dim() != 0:
        raise ValueError(f"incl_bwd needs a scalar; got a tensor of shape {list(scalar.shape)}.")
    scalar.backward()
