"""Random sequences of nested, overlapping and failing hooks leave the model exactly as it was.

A machine opens and closes hook contexts in any order (generators close late, threads close for
others), runs that succeed, fail inside a hook, are interrupted or abandoned half-way. Whatever
happened before, a run must give what a fresh twin gives under the hooks now open, and with none
open what the model gave at first, bit for bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from oracle import SIZES, randomize, tokens

import neox_lab as nl
from neox_lab.errors import HookError, NeoxLabError

NAMES = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.1.attn.hook_pattern",
    "blocks.*.attn.hook_z",
    "gpt_neox.layers.1.mlp",
    ("resid_post", 0),
    "blocks.0.hook_q_input",
    "blocks.1.attn.hook_result",
    "unembed.hook_out",
]


def fresh() -> Any:
    """A small model with large weights."""
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES | {"num_hidden_layers": 2})).eval()
    randomize(model)
    return model


def scale(factor: float, in_place: bool) -> Any:
    """A hook that multiplies."""

    def function(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
        if not in_place:
            return tensor * factor
        tensor.mul_(factor)
        return None

    return function


def stop(error: type[BaseException]) -> Any:
    """A hook that fails."""

    def function(tensor: torch.Tensor, hook: Any) -> None:
        raise error("stop")

    return function


HOOKS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from([0.5, 0.9, 1.5]), st.booleans()),
    min_size=1,
    max_size=3,
)


class Hooks(RuleBasedStateMachine):
    """One model, any number of open contexts."""

    contexts = Bundle("contexts")

    def __init__(self) -> None:
        super().__init__()
        self.model, self.twin = fresh(), fresh()
        self.ids = tokens(2, 5)
        self.weights = {name: w.clone() for name, w in self.model.state_dict().items()}
        self.plain = self.logits(self.twin)
        self.open: dict[AbstractContextManager[None], list[Any]] = {}

    @torch.no_grad()
    def logits(self, model: Any, **arguments: Any) -> torch.Tensor:
        found: torch.Tensor = model(self.ids, **arguments).logits
        return found

    @rule(target=contexts, hooks=HOOKS)
    def open_context(self, hooks: list[Any]) -> AbstractContextManager[None]:
        placed = [(name, scale(factor, in_place)) for name, factor, in_place in hooks]
        context = self.model.hooks(placed, must_fire=False)
        context.__enter__()
        self.open[context] = [(name, scale(factor, False)) for name, factor, _ in hooks]
        return context

    @rule(context=consumes(contexts), error=st.sampled_from([None, ValueError, KeyboardInterrupt]))
    def close_context(self, context: Any, error: Any) -> None:
        """Leave any of the open contexts, also not the last, also because of an error."""
        del self.open[context]
        if error is None:
            context.__exit__(None, None, None)
        else:
            assert not context.__exit__(error, error("left"), None)

    @rule(
        name=st.sampled_from(NAMES),
        error=st.sampled_from([ValueError, KeyboardInterrupt, GeneratorExit]),
        cached=st.booleans(),
    )
    def run_that_fails(self, name: Any, error: type[BaseException], cached: bool) -> None:
        run = self.model.run_with_cache if cached else self.model
        with pytest.raises(error), self.model.hooks([(name, stop(error))]):
            run(self.ids)

    @rule(wrong=st.sampled_from(["hook_nowhere", "blocks.9.*", ("resid_mid", 0)]))
    def names_that_match_nothing(self, wrong: Any) -> None:
        with (
            pytest.raises(NeoxLabError),
            self.model.hooks([("hook_embed", scale(0.0, True)), (wrong, scale(0.0, True))]),
        ):
            raise AssertionError("never entered")

    @rule(name=st.sampled_from(NAMES))
    def replacement_of_wrong_shape(self, name: Any) -> None:
        with pytest.raises(HookError):
            self.model.run_with_hooks(self.ids, fwd_hooks=[(name, lambda t, hook: t[..., :1])])

    @rule(wanted=st.sampled_from(NAMES), lean=st.booleans())
    def run_with_cache(self, wanted: Any, lean: bool) -> None:
        if lean and any(self.open.values()):
            with pytest.raises(HookError):
                self.model.run_with_cache(self.ids, lean=True)
            return
        output, cache = self.model.run_with_cache(self.ids, wanted, lean=lean)
        torch.testing.assert_close(output.logits, self.expected(), rtol=1e-5, atol=1e-5)
        assert len(cache)

    @rule(steps=st.integers(1, 3))
    def stream_left_half_way(self, steps: int) -> None:
        stream = self.model.stream(self.ids[:1], max_new_tokens=4, eos_token_id=None)
        for _ in range(steps):
            next(stream)
        stream.close()

    @rule(name=st.sampled_from(NAMES))
    def backward_that_fails(self, name: Any) -> None:
        with (
            pytest.raises(ValueError, match="stop"),
            self.model.hooks(bwd_hooks=[("hook_embed", stop(ValueError))]),
        ):
            self.model(self.ids).logits.sum().backward()
        self.model.zero_grad()

    @invariant()
    def a_run_knows_the_open_hooks_only(self) -> None:
        torch.testing.assert_close(self.logits(self.model), self.expected(), rtol=1e-5, atol=1e-5)

    def expected(self) -> torch.Tensor:
        """What a twin that never saw anything else gives under the hooks now open."""
        hooks = [hook for placed in self.open.values() for hook in placed]
        with self.twin.hooks(hooks):
            return self.logits(self.twin)

    def teardown(self) -> None:
        for context in list(self.open):
            context.__exit__(None, None, None)
        assert not self.model.hook_stack.placements
        # To the last bit they need not agree: a stream may have laid the weights out anew.
        torch.testing.assert_close(self.logits(self.model), self.plain, rtol=1e-5, atol=1e-5)
        after = self.model.state_dict()
        assert after.keys() == self.weights.keys()
        assert all(torch.equal(after[name], weight) for name, weight in self.weights.items())
        assert all(parameter.grad is None for parameter in self.model.parameters())


TestHooks = Hooks.TestCase
TestHooks.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
