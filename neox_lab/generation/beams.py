"""Beam search: keep the best few continuations of every prompt side by side.

Each step scores all one-token continuations of all beams by the sum of their log probabilities
and keeps the best. Continuations that end are put aside with a score in which long texts are not
punished for being long:

    score = sum of log probabilities / (number of new tokens) ** length_penalty

With ``do_sample`` the continuations are drawn (without replacement) instead of ranked.
Sutskever et al., arXiv:1409.3215, section 3.2; Wu et al., arXiv:1609.08144, section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.model_stepper import ModelStepper
from neox_lab.generation.processors import LogitsProcessorList
from neox_lab.generation.prompt import eos_tokens
from neox_lab.generation.sampling import Step
from neox_lab.generation.stopping import StoppingCriteriaList

HOPELESS = -1.0e9
"""A score no real text has, yet finite, so that adding to it does not make NaN."""


@dataclass
class Beams:
    """Some texts for every prompt.

    Attributes:
        ids: ``[batch, beam, pos]``, filled up to the maximal length.
        scores: float32 ``[batch, beam]``; of running beams, sums of log probabilities.
        origins: which row of the whole batch each new token came from ``[batch, beam, new_pos]``,
            -1 where there is no token.
    """

    ids: Tensor
    scores: Tensor
    origins: Tensor

    def picked(self, index: Tensor) -> Beams:
        """Beams ``index`` ``[batch, picked]`` of each prompt."""
        return Beams(
            self.ids.gather(1, index[..., None].expand(-1, -1, self.ids.shape[-1])),
            self.scores.gather(1, index),
            self.origins.gather(1, index[..., None].expand(-1, -1, self.origins.shape[-1])),
        )

    def beside(self, other: Beams) -> Beams:
        """These beams and ``other``'s, prompt by prompt."""
        return Beams(
            torch.cat((self.ids, other.ids), dim=1),
            torch.cat((self.scores, other.scores), dim=1),
            torch.cat((self.origins, other.origins), dim=1),
        )


class BeamSearch:
    """One beam search; iterate over it to run it, then ask for ``best``."""

    def __init__(
        self,
        stepper: ModelStepper,
        ids: Tensor,
        processors: LogitsProcessorList,
        stopping: StoppingCriteriaList,
        settings: GenerationConfig,
    ) -> None:
        """``ids`` ``[batch * beam, pos]`` are the prompts, repeated once per beam."""
        self.stepper, self.processors = stepper, processors
        self.stopping, self.settings = stopping, settings
        self.beams = settings.num_beams
        self.prompt_length = self.length = ids.shape[1]
        batch = ids.shape[0] // self.beams
        self.running = self._empty(ids.view(batch, self.beams, -1))
        # All beams start as the same text: only the first may have children at first.
        self.running.scores[:, 1:] = HOPELESS
        self.finished = self._empty(ids.view(batch, self.beams, -1))
        self.finished.scores[:] = HOPELESS
        self.is_finished = torch.zeros(batch, self.beams, dtype=torch.bool, device=ids.device)
        self.can_improve = torch.ones(batch, 1, dtype=torch.bool, device=ids.device)

    def _empty(self, prompts: Tensor) -> Beams:
        batch, beams, length = prompts.shape
        eos = eos_tokens(self.settings)
        # A padding token 0 counts as none here, as it does in transformers.
        filler = (self.settings.pad_token_id or eos[0]) if eos else -1
        ids = prompts.new_full((batch, beams, self.settings.max_length), filler)
        ids[:, :, :length] = prompts
        room = self.settings.max_length - length
        return Beams(
            ids,
            torch.zeros(batch, beams, dtype=torch.float32, device=prompts.device),
            prompts.new_full((batch, beams, room), -1),
        )

    def __iter__(self) -> Iterator[Step]:
        """Run the search, one token of all beams a step."""
        going_on = True
        while going_on:
            texts = self.running.ids[:, :, : self.length].flatten(0, 1)
            output = self.stepper.step(texts)
            logits = output.logits[:, -1]
            scores = self.processors(texts, logits.log_softmax(dim=-1))
            candidates = self._candidates(scores)
            ends = self._ends(candidates, scores)
            self._go_on_with(candidates, ends)
            self._put_aside(candidates, ends)
            self.length += 1
            self.stepper.select(self.running.origins[..., self._new - 1].flatten())
            going_on = self._worth_going_on(ends)
            yield Step(texts, 1, (scores,), (logits,), output, not going_on)

    @property
    def _new(self) -> int:
        """Number of new tokens."""
        return self.length - self.prompt_length

    def _candidates(self, scores: Tensor) -> Beams:
        """The best one-token continuations, more than there are beams because some may end."""
        batch, vocab = self.running.scores.shape[0], scores.shape[-1]
        count = max(2, 1 + len(eos_tokens(self.settings))) * self.beams
        total = scores.view(batch, self.beams, vocab) + self.running.scores[..., None]
        total = total.view(batch, -1)
        if self.settings.do_sample:
            drawn = torch.multinomial(total.softmax(dim=-1), num_samples=count)
            best, order = total.gather(1, drawn).sort(dim=-1, descending=True)
            index = drawn.gather(1, order)
        else:
            best, index = total.topk(count)
        parents = index // vocab
        candidates = self.running.picked(parents)
        candidates.scores = best
        candidates.ids[:, :, self.length] = index % vocab
        rows = torch.arange(batch, device=index.device)[:, None] * self.beams + parents
        candidates.origins[:, :, self._new] = rows
        return candidates

    def _ends(self, candidates: Beams, scores: Tensor) -> Tensor:
        """Which candidates end here, ``[batch, candidate]``."""
        texts = candidates.ids[:, :, : self.length + 1].flatten(0, 1)
        return self.stopping(texts, scores).view(candidates.scores.shape)

    def _go_on_with(self, candidates: Beams, ends: Tensor) -> None:
        """Choose the running beams of the next step among the candidates that do not end."""
        left = candidates.scores + ends * HOPELESS
        best = left.topk(self.beams).indices
        self.running = candidates.picked(best)
        self.running.scores = left.gather(1, best)

    def _put_aside(self, candidates: Beams, ends: Tensor) -> None:
        """Keep the best finished texts, among those kept so far and those that end here."""
        among_best = torch.arange(ends.shape[1], device=ends.device) < self.beams
        new = ends & among_best
        scores = candidates.scores / (self._new + 1) ** self.settings.length_penalty
        closed = ~self.can_improve
        if self.settings.early_stopping is True:
            closed = closed | self.is_finished.all(dim=1, keepdim=True)
        scores = scores + closed * HOPELESS + ~new * HOPELESS
        both = self.finished.beside(Beams(candidates.ids, scores, candidates.origins))
        best = both.scores.topk(self.beams).indices
        self.finished = both.picked(best)
        self.is_finished = torch.cat((self.is_finished, new), dim=1).gather(1, best)

    def _worth_going_on(self, ends: Tensor) -> bool:
        """Whether a running beam might still become better than a finished one."""
        early, penalty = self.settings.early_stopping, self.settings.length_penalty
        # Under "never" a long text may yet gain by its length; otherwise only the present counts.
        to_the_end = early == "never" and penalty > 0
        length = self.settings.max_length - self.prompt_length if to_the_end else self._new
        hope = self.running.scores[:, :1] / length**penalty
        worst = self.finished.scores.amin(dim=1, keepdim=True)
        worst = torch.where(self.is_finished, worst, HOPELESS)
        self.can_improve = self.can_improve & (hope > worst).any(dim=1, keepdim=True)
        full = early is True and bool(self.is_finished.all())
        return bool(self.can_improve.any()) and not full and not bool(ends.all())

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best texts so far, best first.

        Returns:
            Ids ``[batch * num_return_sequences, pos]``, their scores, and for each new token the
            row it came from, -1 where a text is shorter than the longest.
        """
        chosen = self.finished
        if not bool(self.is_finished.all()):  # interrupted: what is unfinished counts as well
            scores = self.running.scores / max(1, self._new) ** self.settings.length_penalty
            both = chosen.beside(Beams(self.running.ids, scores, self.running.origins))
            chosen = both.picked(both.scores.topk(self.beams).indices)
        count = self.settings.num_return_sequences
        ids = chosen.ids[:, :count].flatten(0, 1)
        origins = chosen.origins[:, :count].flatten(0, 1)
        longest = int((origins >= 0).sum(dim=1).max())
        scores = chosen.scores[:, :count].flatten()
        return ids[:, : self.prompt_length + longest], scores, origins[:, :longest]
