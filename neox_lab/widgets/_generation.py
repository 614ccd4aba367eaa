"""Writing with a language model, one token at a time, and going back to write something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import traitlets

from neox_lab.errors import InputError
from neox_lab.family.contract import LanguageModel
from neox_lab.generation.stream import Alternative, StreamStep
from neox_lab.views import TextView, label
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import choices, panel
from neox_lab.widgets.worker import Job

ALTERNATIVES = 8  # likeliest tokens shown at each place
LABEL_LIMIT = 18


@dataclass(frozen=True)
class Written:
    """A token of a continuation; the numbers are the model's own, before temperature and top-p.

    Attributes:
        token: its id.
        piece: its text.
        probability: what the model gave it.
        entropy: of the whole prediction, in nats.
        alternatives: the likeliest tokens: id, text, probability.
    """

    token: int
    piece: str
    probability: float
    entropy: float
    alternatives: tuple[Alternative, ...]


@dataclass
class Branch:
    """One continuation.

    Attributes:
        tokens: what was written after the prompt.
        origin: number of the branch it left, None for the first.
        start: number of its first own token; those before it are the origin's.
    """

    tokens: list[Written] = field(default_factory=list)
    origin: int | None = None
    start: int = 0


class GenerationWidget(LiveWidget):
    """A prompt, its continuation as it is written, and at each place what else might have come.

    ``run`` continues the prompt; ``branch`` goes back to a token, puts another one there and writes
    on; ``show`` goes to another branch. Stopping leaves what has been written.

    Attributes:
        prompt: the text to continue.
        temperature: 0 always takes the likeliest token, 1 draws as the model says.
        top_p: draw among the likeliest tokens that together have this probability.
        length: how many tokens a continuation gets.
        branches: all continuations of the prompt.
        shown: which of them is shown.

    Raises:
        InputError: a model that cannot write.
    """

    kinds = ("trace",)
    actions = (*LiveWidget.actions, "branch", "show")
    prompt = traitlets.Unicode().tag(sync=True, control="text", label="Prompt")
    temperature = traitlets.CFloat(0.0, min=0.0, max=2.0).tag(
        sync=True, control="slider", step=0.05, label="Temperature (0: likeliest)"
    )
    top_p = traitlets.CFloat(1.0, min=0.05, max=1.0).tag(
        sync=True, control="slider", step=0.05, label="Top-p"
    )
    length = traitlets.CInt(24, min=1, max=2000).tag(
        sync=True, control="number", step=1, label="New tokens"
    )

    def __init__(self, model: LanguageModel, prompt: str = "") -> None:
        if getattr(model, "head", None) != "causal-lm":
            raise InputError(
                f"{type(model).__name__} cannot write; expected a GPTNeoXForCausalLM, such as "
                "nl.load(name)."
            )
        self._model = model
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self.branches: list[Branch] = []
        self.shown = 0
        super().__init__(heading="Generation", verb="Write", prompt=prompt)

    def branch(self, position: int, rank: int) -> None:
        """Put another token at a place of the branch shown, and write on from there.

        Args:
            position: number of the token to replace, 0 for the first after the prompt.
            rank: which of its alternatives to put there, 0 for the likeliest.

        Raises:
            InputError: there is no such token or alternative.
        """
        tokens = self.branches[self.shown].tokens[:] if self.branches else []
        if not 0 <= position < len(tokens):
            raise InputError(f"There is no token {position}; this branch has {len(tokens)}.")
        written = tokens[position]
        if not 0 <= rank < len(written.alternatives):
            count = len(written.alternatives)
            raise InputError(f"There is no alternative {rank} at token {position}, only {count}.")
        token, piece, probability = written.alternatives[rank]
        other = Written(token, piece, probability, written.entropy, written.alternatives)
        made = Branch([*tokens[:position], other], self.shown, position)
        given = self._given()

        def work(job: Job) -> None:
            self.branches.append(made)
            self.shown = len(self.branches) - 1
            self._write(job, given)

        self._start(work)

    def show(self, choice: int) -> None:
        """Show another branch.

        Raises:
            InputError: there is none with this number.
        """
        if not 0 <= choice < len(self.branches):
            raise InputError(f"There is no branch {choice}; there are {len(self.branches)}.")

        def work(job: Job) -> None:
            self.shown = choice
            self._draw(job, now=True)

        self._start(work)

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        ids = self._model.to_tokens(given.prompt)[0].tolist()
        self._ids, self._pieces = ids, self._model.to_str_tokens(given.prompt)
        self.branches, self.shown = [Branch()], 0
        self._write(job, given)

    def _write(self, job: Job, given: SimpleNamespace) -> None:
        """Continue the branch shown until it is long enough, has ended, or is stopped."""
        tokens = self.branches[self.shown].tokens
        sampling: dict[str, Any] = {"do_sample": given.temperature > 0}
        if given.temperature > 0:
            sampling |= {"temperature": given.temperature, "top_p": given.top_p, "top_k": 0}
        try:
            for step in self._steps(tokens, given.length, sampling):
                tokens.append(
                    Written(
                        step.token, step.piece, step.probability, step.entropy, step.alternatives
                    )
                )
                if self._due:
                    self._draw(job, progress=[len(tokens), given.length])
                job.check()
        finally:
            if tokens:
                self._draw(job, now=True, progress=[len(tokens), given.length])

    def _steps(
        self, tokens: list[Written], length: int, sampling: dict[str, Any]
    ) -> Iterator[StreamStep]:
        """The model's steps after ``tokens``; none if they are enough or the text has ended."""
        ends = self._model.generation_config.eos_token_id
        ended = tokens and tokens[-1].token in (ends if isinstance(ends, list) else [ends])
        if ended or len(tokens) >= length:
            return iter(())
        ids = torch.tensor([self._ids + [written.token for written in tokens]])
        return self._model.stream(
            ids, max_new_tokens=length - len(tokens), alternatives=ALTERNATIVES, **sampling
        )

    def _draw(self, job: Job, now: bool = False, progress: Sequence[int] = (0, 0)) -> None:
        """Show the branch, and a button for each if there are several."""
        tokens = self.branches[self.shown].tokens
        view = TextView(
            self._pieces,
            [written.piece for written in tokens],
            [written.probability for written in tokens],
            alternatives=[
                [(other.text, other.probability) for other in written.alternatives]
                for written in tokens
            ],
        )
        panels = [panel("text", view, {"branch": "branch"})]
        if len(self.branches) > 1:
            names = [self._name(number) for number in range(len(self.branches))]
            panels.insert(0, choices("branches", "Branches:", names, self.shown, "show"))
        self._show(job, view, panels, now, progress=[*progress])

    def _name(self, number: int) -> str:
        """What a branch is called: its number, and the token with which it left another."""
        branch = self.branches[number]
        if branch.origin is None:
            return "1"
        piece = label(branch.tokens[branch.start].piece, LABEL_LIMIT)
        return f"{number + 1}: {piece}@{len(self._ids) + branch.start}"


def generation(model: LanguageModel, prompt: str = "") -> GenerationWidget:
    """Continue a prompt token by token; click a token to see what else might have come.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: a text to begin with; nothing is written until asked for.

    Raises:
        InputError: a model that cannot write.
    """
    return GenerationWidget(model, prompt)
