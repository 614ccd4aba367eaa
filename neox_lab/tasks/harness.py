"""Run a model through the Language Model Evaluation Harness (the package ``lm_eval``).

    import lm_eval

    lm_eval.simple_evaluate(model=nl.tasks.harness.adapter(model), tasks=["lambada_openai"])

The harness brings tasks, prompts and metrics, and asks a model three things: how likely a
continuation is after a context, how likely a whole text is, and how a context goes on. The answers
here come from ``tasks.likelihood`` and ``model.generate``, so hooks that are in place while the
harness runs take part. Install it with ``pip install 'neox_lab[eval]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neox_lab.data.encoding import start_of_text, token_ids, tokenizer_of
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.model.output_heads import require_head
from neox_lab.tasks.likelihood import continuations, log_probabilities, windows

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

LONGEST_ANSWER = 256  # tokens, where a task does not say
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names under which tasks say how many tokens to write, the first one counts most."""


def adapter(model: LanguageModel, batch_size: int = 16) -> Any:
    """The model as the harness wants it: an ``lm_eval.api.model.LM``.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        batch_size: requests in one forward pass.

    Raises:
        InputError: another head, or ``lm_eval`` is not installed.
    """
    require_head(model.head, "causal-lm")
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise InputError("this needs the package lm-eval: pip install 'neox_lab[eval]'") from None
    # The harness is an optional package, so its base class can only be named here.
    adapted = type("HarnessModel", (_Answers, LM), {})
    return adapted(model, batch_size)


class _Answers:
    """What the harness asks; each request has its arguments in ``args``."""

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        super().__init__()
        self.model, self.batch_size = model, batch_size

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
        frame = continuations(self.model, pairs, self.batch_size)
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
        totals = []
        for request in requests:
            ids = token_ids(self.model, [request.args[0]])[0]
            cuts = list(windows(ids, longest, longest, first)) if ids else []
            found = log_probabilities(self.model, cuts, self.batch_size)
            totals.append(sum(float(values.sum()) for values, _ in found))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """How each context goes on, up to the first of its stop strings.

        Raises:
            InputError: dropout is on, or there is no room for an answer.
        """
        refuse_dropout(self.model)
        return [self._goes_on(*request.args) for request in requests]

    def _goes_on(self, context: str, wanted: dict[str, Any]) -> str:
        import torch

        settings = dict(wanted)
        stops = settings.pop("until", None) or []
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        limits = [settings.pop(name, None) for name in LIMITS]
        length = next((limit for limit in limits if limit is not None), LONGEST_ANSWER)
        room = self.model.config.max_position_embeddings - length
        if room < 1:
            raise InputError(
                f"a task asks for {length} new tokens, which leaves no room for its question in "
                f"the model's {room + length} positions; expected fewer (max_gen_toks)"
            )
        if not settings.get("do_sample") or not settings.get("temperature", 1.0):
            settings = {"do_sample": False}
        tokenizer = tokenizer_of(self.model)
        ids = token_ids(self.model, [context])[0][-room:] or [start_of_text(self.model)]
        written = self.model.generate(
            torch.tensor([ids], device=self.model.device),
            max_new_tokens=length,
            stop_strings=stops or None,
            **settings,
        )
        assert isinstance(written, torch.Tensor)  # nothing else was asked for
        text = tokenizer.decode(written[0, len(ids) :].tolist(), skip_special_tokens=True)
        for stop in stops:
            text = text.split(stop)[0]
        return str(text)
