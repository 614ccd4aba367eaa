"""Runs of pairs that begin at the site: everything below it and before it is known.

What is kept of a pair is little: the base's residual stream entering the first layer that an
exchange can change, from the first position on that it can change; keys and values of the positions
before that one, in the layers above; and what stands at the site in the source. From there only the
layers above the site run, and of the output only the answer to each base is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.errors import HookError, InputError
from neox_lab.experiments import graph
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.interchange.pairs import ReadPairs
from neox_lab.interchange.sites import Site, place
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.key_value_cache import KeyValueCache

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Change = Callable[[Tensor, Tensor], Tensor]
"""From what a base has at the site and what its source has there, both ``[batch, width]``, to what
the base gets."""

BATCH = 64
"""Pairs in one run whose activations are kept."""
MOST_KEPT = 2**30
"""Bytes of keys and values that are kept; where they would be more, runs begin at position 0."""


class CachedRuns:
    """Runs of pairs with something else at one site.

    Attributes:
        model: the model.
        pairs: as it reads them.
        site: as the user named it.
        placed: the site in these pairs.
        start: the first layer that runs.
        first: the first column that runs.
        stream: the bases' residual stream entering that layer, ``[pair, pos, d_model]``.
        source: what stands at the site in the sources, ``[pair, width]``.
    """

    def __init__(self, model: HookedModel, pairs: ReadPairs, site: Site) -> None:
        """Run bases and sources once.

        Raises:
            InputError: a site that does not fit, see ``place``, or that is above all blocks.
            HookError: a function is spliced into the model, hooks that write are in force, or a
                part was exchanged for another.
        """
        check_parts(model)
        _refuse_hooks(model)
        graph.check_whole(model)
        self.model, self.pairs, self.site = model, pairs, site
        self.placed = place(site, model, pairs.base, pairs.source, pairs.roles)
        self.layers = model.config.num_hidden_layers
        self.is_stream, self.start = _entry(self.placed.point, self.layers)
        self.last = _last_columns(pairs.base)
        self.first = self._first()
        parts = [self._run(rows) for rows in torch.arange(len(pairs.labels)).split(BATCH)]  # type: ignore[no-untyped-call]
        streams, before, sources = zip(*parts, strict=True)
        self.stream, self.source = torch.cat(streams), torch.cat(sources)
        self._before = [
            (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
            for layer in zip(*before, strict=True)
        ]

    def _first(self) -> int:
        """The first column that runs."""
        first = int(self.placed.columns.min())
        numbers = 2 * self.model.config.hidden_size * (self.layers - self.start)
        kept = len(self) * first * numbers * next(self.model.parameters()).element_size()
        return first if kept <= MOST_KEPT and self._same_angles(first) else 0

    def _same_angles(self, length: int) -> bool:
        """Whether positions turn by the same angles in a run of so many columns."""
        rotary = self.model.backbone.rotary
        return length == 0 or rotary.regime(length) == rotary.regime(self.pairs.base.ids.shape[1])

    @property
    def width(self) -> int:
        """How many numbers stand at the site."""
        return self.placed.width

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.pairs.labels)

    def logits(self, rows: Tensor, change: Change) -> Tensor:
        """What the model says to bases with something else at the site.

        Args:
            rows: numbers of pairs.
            change: what they get there; gradients flow through it.

        Returns:
            ``[row, answer]``: logits of all tokens or classes, or of each of ``choices`` (the
            logarithm of the summed exponentials of its tokens).
        """
        stream, source = self.stream[rows], self.source[rows]
        columns = self.placed.columns[rows] - self.first
        placed, hooks = self.placed, list[tuple[str, HookFunction]]()

        def exchange(tensor: Tensor, point: HookPoint | None = None) -> None:
            own = placed.read(tensor, columns)
            placed.write(tensor, columns, change(own, source))

        if self.is_stream:
            exchange(stream)  # a copy: rows were picked
        else:
            hooks.append((placed.point.name, exchange))
        if self.start < self.layers:
            before = []
            for keys, values in self._before:  # where their layers are
                there = rows.to(keys.device)
                before.append((keys[there], values[there]))
            none: list[tuple[None, None]] = [(None, None)] * self.start
            mask = self.pairs.base.mask
            stream = self.model.run_with_hooks(
                stream,
                hooks,
                start_at_layer=self.start,
                stop_at_layer=self.layers,
                attention_mask=None if mask is None else mask[rows],
                past_key_values=KeyValueCache([*none, *before]) if before else None,
            ).last_hidden_state
        return self._answers(stream, self.last[rows] - self.first)

    def _answers(self, stream: Tensor, last: Tensor) -> Tensor:
        """Logits at the end of each text, from the stream after the last block."""
        read = self.model.backbone.normalize(stream[torch.arange(len(stream)), last])
        weight, bias = self.model.output_map
        answers = self.pairs.answers
        if answers is None:
            return torch.nn.functional.linear(read, weight, bias)
        chosen = answers.clamp(min=0)
        logits = torch.einsum("bd,atd->bat", read, weight[chosen])
        if bias is not None:
            logits = logits + bias[chosen]
        return logits.masked_fill(answers < 0, -torch.inf).logsumexp(dim=-1)

    @torch.no_grad()
    def _run(self, rows: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """Stream, keys and values before it, and the source's values, of some pairs."""
        base = _part(self.pairs.base, rows, self.pairs.base.ids.shape[1])
        stream = self.model.run_with_hooks(
            base.ids, stop_at_layer=self.start, attention_mask=base.mask, use_cache=False
        ).last_hidden_state
        before = []
        if self.first and self.start < self.layers:
            seen = KeyValueCache(self.layers)
            self.model.run_with_hooks(
                stream[:, : self.first],
                start_at_layer=self.start,
                stop_at_layer=self.layers,
                attention_mask=None if base.mask is None else base.mask[:, : self.first],
                past_key_values=seen,
            )
            for keys, values in [seen[layer] for layer in range(self.start, self.layers)]:
                assert keys is not None and values is not None
                before.append((keys, values))
        return stream[:, self.first :].clone(), before, self._source_values(rows)

    def _source_values(self, rows: Tensor) -> Tensor:
        """What stands at the site in some sources; what is above it or after it does not run."""
        point, columns = self.placed.point, self.placed.source_columns
        length = int(columns.max()) + 1
        if "key_pos" in point.axes or not self._same_angles(length):
            length = self.pairs.source.ids.shape[1]
        source = _part(self.pairs.source, rows, length)
        stop = 0 if point.layer is None else point.layer + 1
        _, cache = self.model.run_with_cache(
            source.ids, point.name, stop_at_layer=stop, attention_mask=source.mask
        )
        return self.placed.read(cache[point.name], columns[rows])


def _entry(point: HookPoint, layers: int) -> tuple[bool, int]:
    """Whether a site is a residual stream between blocks, and the first layer that runs.

    Raises:
        InputError: the site is above all blocks.
    """
    if point.name == "hook_embed":
        return True, 0
    if point.layer is None:
        raise InputError(
            f"{point.name!r} is above all blocks; expected a hook point of a block, or hook_embed. "
            f"The stream after the last block is ('resid_post', {layers - 1})."
        )
    if point.name.endswith(".hook_resid_pre"):
        return True, point.layer
    if point.name.endswith(".hook_resid_post"):
        return True, point.layer + 1
    return False, point.layer


def _refuse_hooks(model: HookedModel) -> None:
    """Raise where hooks of the user's would see parts of runs instead of whole ones.

    Raises:
        HookError: there is one that writes, or a dictionary or function is spliced in.
    """
    if spliced := list(model.hook_stack.spliced):
        raise HookError(
            f"Something is spliced in at {spliced[0]!r}, and runs of pairs begin at the site, in "
            "the middle of network and text, where it would see parts. nl.interchange.run "
            "runs whole texts and exchanges its points too, such as hook_sae_acts. Or leave its "
            "with block, and give what a dictionary's features write as the site's subspace: "
            "torch.linalg.qr(dictionary.rows[features].T).Q."
        )
    if any(w.writes for placed in model.hook_stack.placements for w in placed.watchers):
        raise HookError(
            "Hooks that write are in force, and runs of pairs begin at the site, in the middle of "
            "the network and of the text, where such hooks would see parts. Leave their with block."
        )


def _part(prompts: Prompts, rows: Tensor, length: int) -> Prompts:
    """Some prompts, up to a column."""
    mask = None if prompts.mask is None else prompts.mask[rows, :length]
    return Prompts(prompts.ids[rows, :length], mask)


def _last_columns(prompts: Prompts) -> Tensor:
    """The column of each text's last token ``[row]``."""
    numbers = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
    return torch.where(prompts.own, numbers, -1).max(dim=1).values
