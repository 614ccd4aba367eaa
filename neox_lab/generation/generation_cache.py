"""Hooks and activations inside generation.

While ``generate`` runs, the hook point a hook is given says where in the text it is: ``hook.step``
(0 reads the prompt, each later step a new token), ``hook.positions`` (absolute positions of the
tensor's ``pos`` axis) and ``hook.generated`` (how many of the last of them are generated tokens).
``only`` limits a hook to a part of the text:

    with model.hooks([("blocks.3.hook_resid_post", only(steer, part="generated"))]):
        model.generate("The king said")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import HookError, HookNameError, nearest
from neox_lab.hooks.hooking import as_called, reads_only
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.model.hook_points import HookFunction, HookPoint, fitting


def only(
    function: HookFunction,
    *,
    part: Literal["prompt", "generated"] | None = None,
    steps: Container[int] | None = None,
) -> HookFunction:
    """A hook that sees a part of the text only.

    Args:
        function: the hook; its tensor holds only the positions of ``part``.
        part: positions of the prompt, or of generated tokens; None for both. What the last
            token of the prompt does belongs to the prompt, although it decides the first new
            token.
        steps: steps of generation, such as ``range(1, 5)``; 0 reads the prompt. None for all.

    Returns:
        A hook for ``fwd_hooks``. In a run outside generation all is prompt, and step 0.

    Raises:
        HookError: an unknown part, or a function that takes no hook point; or, when it runs, a
            replacement that does not fit.
    """
    if not isinstance(part, str | None) or part not in (None, "prompt", "generated"):
        raise HookError(f"part={shown(part)}; expected 'prompt', 'generated' or None.")
    called = as_called(function)

    def limited(tensor: Tensor, hook: HookPoint) -> Tensor | None:
        if steps is not None and (hook.step or 0) not in steps:
            return None
        if part is None:
            return called(tensor, hook)
        axis = _axis(hook)
        generated = min(hook.generated, tensor.shape[axis])
        before = tensor.shape[axis] - generated
        start, length = (0, before) if part == "prompt" else (before, generated)
        if length == 0:
            return None
        section = tensor.narrow(axis, start, length)
        replacement = called(section, _at(hook, start, length, part))
        if replacement is None:
            return None  # edits in place have gone through the view
        try:
            section.copy_(fitting(replacement, section, hook))
        except HookError as error:
            raise HookError(f"{error} It is limited to the {part}.") from None
        return tensor

    return limited


def _axis(hook: HookPoint) -> int:
    names = [name for name in ("pos", "query_pos") if name in hook.axes]
    return hook.axes.index(names[0])


def _at(hook: HookPoint, start: int, length: int, part: str) -> HookPoint:
    positions = hook.positions
    return dataclasses.replace(
        hook,
        positions=None if positions is None else positions[:, start : start + length],
        generated=length if part == "generated" else 0,
    )


@reads_only
class GenerationCache(Mapping[str, Tensor]):
    """Activations of every step of one generation, by hook name.

    ``cache["blocks.0.hook_resid_post"]`` joins all steps along positions, as if the whole text
    but its last token had been read at once (which is what reading it step by step amounts to);
    ``cache.steps[3]["blocks.0.hook_resid_post"]`` is what step 3 saw. Names, aliases and short
    forms such as ``("pattern", 0)`` will do.

    Attributes:
        steps: what each step saw, by full name.
        pieces: the first text's tokens as text, as far as they were read; None if unknown.
        attention_mask: 1 for text and 0 for padding ``[batch, pos]``, or None for no padding.
    """

    def __init__(self, points: Mapping[str, HookPoint]) -> None:
        """An empty cache; it is a hook function that keeps what it is called with.

        Args:
            points: every hook point of the model, by name.
        """
        self.points = points
        self.steps: list[dict[str, Tensor]] = []
        self.pieces: list[str] | None = None
        self.attention_mask: Tensor | None = None

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        """Keep a tensor under the hook's name and the present step."""
        step = hook.step or 0
        while len(self.steps) <= step:
            self.steps.append({})
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        kept = tensor.detach() if whole or 0 in tensor.stride() else tensor.detach().clone()
        self.steps[step].setdefault(hook.name, kept)

    def __getitem__(self, name: str | ShortForm) -> Tensor:
        """The activation of the whole text; attention reaches back, so rows are padded with 0."""
        full = self._full(name)
        parts = [step[full] for step in self.steps if full in step]
        axes = self.points[full].axes
        if "key_pos" in axes:
            longest = max(part.shape[-1] for part in parts)
            unseen = float("-inf") if full.endswith("scores") else 0.0
            pad = torch.nn.functional.pad
            parts = [pad(p, (0, longest - p.shape[-1]), value=unseen) for p in parts]
        return torch.cat(parts, dim=_axis(self.points[full]))

    def _full(self, name: str | ShortForm) -> str:
        full = exact(name, self.points)
        if full not in (kept := self.steps[0] if self.steps else {}):
            raise HookNameError(
                f"{full!r} was not kept in this generation.{nearest(full, kept)} See names_filter."
            )
        return full

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __iter__(self) -> Iterator[str]:
        """Names of what was kept."""
        return iter(self.steps[0] if self.steps else ())

    def __len__(self) -> int:
        """How many hook points were kept."""
        return len(self.steps[0]) if self.steps else 0

    def __repr__(self) -> str:
        """Activations and steps."""
        return f"GenerationCache({len(self)} activations, {len(self.steps)} steps)"
