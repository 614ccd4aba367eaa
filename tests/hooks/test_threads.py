"""Threads that share one model: gradients keep apart, hooks that meet no run are named."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import pair, tokens

from neox_lab.errors import HookError, NeoxLabWarning


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_gradients_of_two_threads_stay_off_the_weights() -> None:
    """The second thread begins when the first has gone half-way back, and ends after it."""
    model = pair()[1]
    ids = tokens()
    half_way, second_began, first_ended = (threading.Event() for _ in range(3))
    caches: dict[str, Any] = {}

    def run(name: str, reached: threading.Event, awaited: threading.Event) -> None:
        def meet(gradient: Any, hook: Any) -> None:
            reached.set()
            assert awaited.wait(60)

        def loss(output: Any) -> Any:
            return output.logits.square().mean()

        with model.hooks(bwd_hooks=[("blocks.1.hook_resid_post", meet)], must_fire=False):
            caches[name] = model.run_with_cache(ids, incl_bwd=loss)[1]

    def first() -> None:
        run("first", half_way, second_began)
        first_ended.set()

    def second() -> None:
        assert half_way.wait(60)
        run("second", second_began, first_ended)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = pair()[1]
    _, right = expected.run_with_cache(ids, incl_bwd=lambda out: out.logits.square().mean())
    for cache in caches.values():
        for name in ("hook_embed_grad", "blocks.0.attn.hook_q_grad"):
            torch.testing.assert_close(cache[name], right[name])


def test_gradients_of_given_vectors_are_added_up_as_ever() -> None:
    model = pair()[1].requires_grad_(False)
    vectors = torch.randn(2, 5, 64, requires_grad=True)
    model(inputs_embeds=vectors).logits.square().mean().backward()
    assert vectors.grad is not None
    expected, vectors.grad = vectors.grad.clone(), None
    for times in (1, 2):
        _, cache = model.run_with_cache(
            tokens(2, 5),
            incl_bwd=lambda out: out.logits.square().mean(),
            input_ids=None,
            inputs_embeds=vectors,
        )
        torch.testing.assert_close(vectors.grad, times * expected)
        torch.testing.assert_close(cache["hook_embed_grad"], expected)
    with pytest.raises(HookError, match="no gradient flows there"):
        model.run_with_cache(tokens(), incl_bwd=lambda out: out.logits.mean())


def test_hooks_of_one_thread_and_a_run_in_another_are_named() -> None:
    model = pair()[1]
    hooks = [("hook_embed", lambda tensor, hook: tensor * 0)]
    with pytest.warns(NeoxLabWarning, match=r"another thread while .*: \['hook_embed'\]"):
        with model.hooks(hooks):
            in_thread(lambda: model(tokens()))


@pytest.mark.parametrize("way", ["both", "none", "may miss", "suspended", "another model"])
def test_no_word_where_nothing_was_missed(way: str) -> None:
    model = pair()[1]
    other = copy.deepcopy(model) if way == "another model" else model
    with warnings.catch_warnings():
        warnings.simplefilter("error", NeoxLabWarning)
        with model.hooks([("hook_embed", lambda t, hook: None)], must_fire=way != "may miss"):
            if way == "suspended":
                with model.hook_stack.suspended():
                    model(tokens())
            elif way != "none":
                in_thread(lambda: other(tokens()))
            if way == "both":
                model(tokens())
    assert model.hook_stack.everywhere == []
    assert pickle.loads(pickle.dumps(model)).hook_stack.everywhere == []
