"""Run a model through the Language Model Evaluation Harness (the package ``lm_eval``).

    import lm_eval

    lm_eval.simple_evaluate(model=nl.tasks.harness.adapter(model), tasks=["lambada_openai"])

The harness brings tasks, prompts and metrics, and asks a model three things: how likely a
continuation is after a context, how likely a whole text is, and how a context goes on. The answers
here come from ``tasks.likelihood`` and ``model.generate``, so hooks that are in place while the
harness runs take part. Install it with ``pip install 'neox_lab[eval]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from neox_lab.checks import check
from neox_lab.data.encoding import start_of_text, token_ids, tokenizer_of
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor, run_pieces
from neox_lab.family.origins import Origin, origin_of
from neox_lab.interrupts import whole_answers
from neox_lab.model.output_heads import require_head
from neox_lab.tasks.likelihood import continuations, windows
from neox_lab.tasks.scoring import log_probabilities_of_groups

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

LONGEST_ANSWER = 256  # tokens, where a task does not say
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say how many tokens to write, the first one counts most."""


def adapter(model: LanguageModel, batch_size: int = 16, executor: AnyExecutor | None = None) -> Any:
    """The model as the harness wants it: an ``lm_eval.api.model.LM``.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        batch_size: requests in one forward pass.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers answer
            (``docs/many-machines.md``): those of all tasks that the harness is given together.
            Answers that are drawn at random are drawn here. None answers here. With ``use_cache=``
            the harness keeps answers, and a second call asks for what is missing.

    Raises:
        InputError: another head, no executor, or ``lm_eval`` is not installed.
    """
    check("executor", executor, EXECUTOR, InputError)
    require_head(model.head, "causal-lm")
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise InputError("this needs the package lm-eval: pip install 'neox_lab[eval]'") from None
    # The harness is an optional package, so its base class can only be named here.
    adapted = type("HarnessModel", (_Answers, LM), {})
    return adapted(model, batch_size, executor)


class _Answers:
    """What the harness asks; each request has its arguments in ``args``."""

    def __init__(self, model: LanguageModel, batch_size: int, executor: AnyExecutor | None) -> None:
        super().__init__()
        self.model, self.batch_size, self.executor = model, batch_size, executor

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of requests."""
        return str(getattr(tokenizer_of(self.model), "name_or_path", "") or "neox_lab")

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log probability (nats) of each continuation, and whether greedy decoding writes it."""
        pairs = [tuple(request.args) for request in requests]
        if not pairs:
            return []
        frame = continuations(self.model, pairs, self.batch_size, self.executor)
        return list(zip(frame["log_probability"].tolist(), frame["greedy"].tolist(), strict=True))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log probability (nats) of each whole text, from ``<|endoftext|>`` on.

        A long text is read in disjoint stretches; the last one is as long as the others, and only
        what is new in it counts.
        """
        first = start_of_text(self.model)
        longest = self.model.config.max_position_embeddings
        cut = [
            list(windows(ids, longest, longest, first)) if ids else []
            for ids in (token_ids(self.model, [request.args[0]])[0] for request in requests)
        ]
        found = log_probabilities_of_groups(self.model, cut, self.batch_size, self.executor)
        return [sum(float(values.sum()) for values, _ in each) for each in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """How each context goes on, up to the first of its stop strings.

        Raises:
            InputError: dropout is on, or there is no room for an answer.
        """
        refuse_dropout(self.model)
        asked = [request.args for request in requests]
        if self.executor is None or not asked:
            return [_goes_on(self.model, *each) for each in asked]
        drawn = {at: _is_drawn(wanted) for at, (_, wanted) in enumerate(asked)}
        found = {at: _goes_on(self.model, *asked[at]) for at in drawn if drawn[at]}
        sent = [at for at in drawn if not drawn[at]]
        write = Writer(origin_of(self.model))
        made = run_pieces(
            self.executor, write, [asked[at] for at in sent], called=lambda _: "a request"
        )
        for number, text in made:
            found[sent[number]] = text
        return [found[at] for at in drawn]


@dataclass(frozen=True)
class Writer:
    """What a worker does with a request to go on.

    Attributes:
        origin: of the model.
    """

    origin: Origin

    def __call__(self, request: tuple[str, dict[str, Any]]) -> str:
        """How its context goes on."""
        return _goes_on(cast("LanguageModel", self.origin.model()), *request)


def _is_drawn(wanted: Mapping[str, Any]) -> bool:
    return bool(wanted.get("do_sample") and wanted.get("temperature", 1.0))


def _goes_on(model: LanguageModel, context: str, wanted: Mapping[str, Any]) -> str:
    """How a context goes on, up to the first of its stop strings.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        context: a text, whose start is left out where it is too long.
        wanted: the settings of the task: ``until``, how many tokens, how they are drawn.

    Raises:
        InputError: there is no room for an answer.
    """
    import torch

    settings = dict(wanted)
    stops = settings.pop("until", None) or []
    stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    limits = [settings.pop(name, None) for name in LIMITS]
    length = next((limit for limit in limits if limit is not None), LONGEST_ANSWER)
    room = model.config.max_position_embeddings - length
    if room < 1:
        raise InputError(
            f"a task asks for {length} new tokens, which leaves no room for its question in "
            f"the model's {room + length} positions; expected fewer (max_gen_toks)"
        )
    if not _is_drawn(settings):
        settings = {"do_sample": False}
    tokenizer = tokenizer_of(model)
    ids = token_ids(model, [context])[0][-room:] or [start_of_text(model)]
    with whole_answers():
        written = model.generate(
            torch.tensor([ids], device=model.device),
            max_new_tokens=length,
            stop_strings=stops or None,
            **settings,
        )
    assert isinstance(written, torch.Tensor)  # nothing else was asked for
    text = tokenizer.decode(written[0, len(ids) :].tolist(), skip_special_tokens=True)
    for stop in stops:
        text = text.split(stop)[0]
    return str(text)
