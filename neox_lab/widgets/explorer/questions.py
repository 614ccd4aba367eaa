"""What the explorer is asked beyond the first run: each answer as a result, and as plain data.

Every one is a public call that ``calls`` writes down; here it only gets the selection's arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.attribution import occlusion
from neox_lab.experiments.detection import heads as detect_heads
from neox_lab.experiments.metrics import LogitMetric, logit_difference
from neox_lab.experiments.patching import ablate, sweep
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.head_names import head_name
from neox_lab.hooks.hooking import HookList
from neox_lab.model.hook_points import HookPoint
from neox_lab.results import Result
from neox_lab.views import View, label
from neox_lab.views.live import rounded
from neox_lab.widgets.explorer.calls import hooked
from neox_lab.widgets.explorer.reading import CANDIDATES, Reading
from neox_lab.widgets.explorer.selection import Selection
from neox_lab.widgets.explorer.tools import Tools

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        part: under which name the script looks for it.
        data: for the script.
        result: the same as a result or a view, to save; None if that is all.
    """

    part: str
    data: dict[str, Any]
    result: Result | View | None


@dataclass(frozen=True)
class Asked:
    """A question's surroundings.

    Attributes:
        model: the model.
        first: the reading on show.
        second: the other one, if there is one.
        one_model: whether the same model made both.
        chosen: what is selected.
        effects: measures of heads that were asked for before.
        report: told how much is done.
        tools: what panels that are opened work with.
    """

    model: GPTNeoXForCausalLM
    first: Reading
    second: Reading | None
    one_model: bool
    chosen: Selection
    effects: dict[str, Any]
    report: Report
    tools: Tools

    @property
    def metric(self) -> LogitMetric:
        """The logit of what is expected after the selected token."""
        return logit_difference(
            int(self.first.about[self.chosen.position]), pos=self.chosen.position
        )

    @property
    def metric_code(self) -> str:
        """The call that makes ``metric``."""
        token = int(self.first.about[self.chosen.position])
        return f"nl.patching.logit_difference({token}, pos={self.chosen.position})"

    @property
    def difference_code(self) -> str:
        """The call that makes ``difference()``."""
        correct, wrong = int(self.first.about[-1]), int(self.other().about[-1])
        return f"nl.patching.logit_difference({correct}, {wrong})"

    @property
    def pieces(self) -> str:
        """What both prompts expect at their ends, for people."""
        return f"“{_piece(self.first)}” against “{_piece(self.other())}”"

    def swept(self, name: str, site: str) -> str:
        """The calls that patch ``site`` from the second prompt."""
        return (
            f"difference = {self.difference_code}\n"
            f'{name} = nl.patching.sweep(model, prompt, second, difference, "{site}")'
        )

    @property
    def token(self) -> str:
        """That token, for people."""
        return f"“{label(self.first.view.about[self.chosen.position], 24)}”"

    def other(self) -> Reading:
        """The second reading, of as many tokens.

        Raises:
            InputError: there is none, it has another number of tokens, or it says the same.
        """
        if not self.one_model:
            raise InputError("Patching goes between two prompts of one model; here are two models.")
        if self.second is None:
            raise InputError("This needs a second prompt: write one above and press Run.")
        if self.second.length != self.first.length:
            raise InputError(
                f"Patching goes token by token, and the prompts have {self.first.length} and "
                f"{self.second.length} tokens. Change one until they have as many."
            )
        if torch.equal(self.second.ids, self.first.ids):
            raise InputError("Both prompts are the same; change one word in the second.")
        return self.second

    def difference(self) -> LogitMetric:
        """What the first prompt expects at its end against what the second one does.

        Raises:
            InputError: both expect the same.
        """
        correct, wrong = int(self.first.about[-1]), int(self.other().about[-1])
        if correct == wrong:
            raise InputError(
                f"Both prompts lead to the same next token, {self._last()}, so that there is no "
                "difference to follow. Change the second until it leads to another."
            )
        return logit_difference(correct, wrong)

    def _last(self) -> str:
        return f"“{label(self.first.view.about[-1], 24)}”"


def ablation(asked: Asked) -> Answer:
    """The logit lost when one head after the other gives its mean over the prompt."""
    result = ablate(asked.model, asked.first.ids, asked.metric, progress=asked.report)
    code = f"ablated = nl.patching.ablate(model, prompt, {asked.metric_code})"
    note = (
        f"Change of the logit of {asked.token} after token {asked.chosen.position} when a head "
        "gives its mean over the prompt everywhere instead: blue is lost."
    )
    return _heads(asked, "switched off, by head", result, result.effect(), True, note, code)


def heads(asked: Asked) -> Answer:
    """What comes back when one head after the other is taken from the first prompt's run."""
    metric, second = asked.difference(), asked.other()
    result = sweep(
        asked.model, asked.first.ids, second.ids, metric, "z_all_pos", progress=asked.report
    )
    note = (
        "Share of the difference between both prompts that comes back when a head's output is "
        "taken from the first prompt in a run on the second: 1 is all of it."
    )
    code = asked.swept("patched", "z_all_pos")
    return _heads(asked, "patched, by head", result, result.normalized(), True, note, code)


def induction(asked: Asked) -> Answer:
    """How much each head looks at what followed the same token before, on repeated tokens."""
    result = detect_heads(asked.model)
    note = (
        "Measured on repeated random tokens, not on this prompt: attention on the token after the "
        "last occurrence."
    )
    return _heads(
        asked,
        "induction score",
        result,
        result.values,
        False,
        note,
        "detected = nl.detect.heads(model)",
    )


def _heads(
    asked: Asked, name: str, result: Result, values: Tensor, signed: bool, note: str, code: str
) -> Answer:
    found = {"values": rounded(values.numpy(), 4), "signed": signed, "note": note, "code": code}
    return Answer("effects", {**asked.effects, name: found}, result)


def patching(asked: Asked, site: str) -> Answer:
    """Where the difference between the prompts travels: layer by position."""
    metric, second = asked.difference(), asked.other()
    result = sweep(asked.model, asked.first.ids, second.ids, metric, site, progress=asked.report)
    note = (
        f"{site} of the first prompt put into a run on the second, a layer and a position at a "
        f"time: share of the difference in {asked.pieces} that comes back."
    )
    data = {"site": site, "values": rounded(result.normalized().numpy(), 4), "note": note}
    data["code"] = asked.swept("swept", site)
    return Answer("patching", data, result)


def attribution(asked: Asked) -> Answer:
    """What the logit loses when each token gives way to the mean embedding."""
    result = occlusion(asked.model, asked.first.ids, asked.metric)
    data = {
        "values": rounded(result.values[0].numpy(), 4),
        "note": f"What the logit of {asked.token} after token {asked.chosen.position} loses when "
        "a token's embedding gives way to the mean of all.",
        "code": f"occluded = nl.attribution.occlusion(model, prompt, {asked.metric_code})",
    }
    return Answer("attribution", data, result)


def switched_off(asked: Asked) -> Answer:
    """What comes next when the selected head gives its mean over the prompt everywhere."""
    return _changed(asked, None, "gives its mean over the prompt")


@torch.no_grad()
def swapped(asked: Asked) -> Answer:
    """What comes next when the selected head's output is taken from the second prompt's run."""
    name = f"blocks.{asked.chosen.layer}.attn.hook_z"
    _, cache = asked.model.run_with_cache(asked.other().ids, names_filter=name)
    return _changed(asked, cache[name][:, :, asked.chosen.head], "is taken from the second prompt")


@torch.no_grad()
def _changed(asked: Asked, source: Tensor | None, how: str) -> Answer:
    """The run with the selected head's output replaced, by its mean if ``source`` is None."""
    layer, head = asked.chosen.layer, asked.chosen.head

    def replace(z: Tensor, hook: HookPoint) -> Tensor:
        mean = z[:, :, head].mean(dim=1, keepdim=True)
        z[:, :, head] = mean if source is None else source
        return z

    hooks: HookList = [(f"blocks.{layer}.attn.hook_z", replace)]
    output = asked.model.run_with_hooks(asked.first.ids, hooks)
    best = output.logits[0].float().softmax(dim=-1).topk(min(CANDIDATES, output.logits.shape[-1]))
    tokenizer = asked.model.tokenizer
    assert tokenizer is not None
    candidates = [
        [
            [label(tokenizer.piece_text(token), 24), round(share, 4)]
            for token, share in zip(tokens, shares, strict=True)
        ]
        for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    data = {"name": f"{head_name(layer, head)} {how}", "candidates": candidates}
    data["code"] = hooked(layer, head, source is not None)
    return Answer("switched", data, None)


def _piece(reading: Reading) -> str:
    return label(reading.view.about[-1], 24)
