"""The self-test of hook points, and the model as a tree of them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from oracle import CLASSES, pair, tokens

import neox_lab as nl
from neox_lab.model.attention import Attention
from neox_lab.model.block import MLP
from neox_lab.model.hook_points import NO_TAP


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_hook_point_of_every_class_is_alive(name: str, parallel: bool) -> None:
    model = pair(name, use_parallel_residual=parallel, num_hidden_layers=1)[1]
    report = model.check()
    assert tuple(report.name) == model.hook_names
    assert report.ok.all(), report[~report.ok]
    sums = report.set_index("name").rows_sum_to_one.dropna()
    assert set(sums.index) == {n for n in model.hook_names if n.endswith("pattern")}
    assert model.check(tokens(2, 3)).ok.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_fault(dtype: torch.dtype) -> None:
    """Weights of a pattern are rounded one by one: a row sums to 1 but for that."""
    report = nl.load(dtype=dtype).check()
    assert report.ok.all(), report[~report.ok]


def test_dead_points_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(num_hidden_layers=1)[1]
    plain = MLP.forward

    def without_effect(self: MLP, x: torch.Tensor, tap: Any = NO_TAP) -> torch.Tensor:
        plain(self, x, tap)  # hooks see everything, and nothing comes of it
        return plain(self, x)

    monkeypatch.setattr(MLP, "forward", without_effect)
    report = model.check().set_index("name")
    dead = {f"blocks.0.mlp.hook_{name}" for name in ("in", "pre", "post")}
    assert set(report.index[~report.ok]) == dead
    assert (report.change[list(dead)] == 0).all()


def test_points_that_nothing_passes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLP, "forward", lambda self, x, tap=None: self.dense_4h_to_h(self.act(x)))
    model = pair(intermediate_size=64, num_hidden_layers=1)[1]
    report = model.check().set_index("name")
    assert not report.ok["blocks.0.mlp.hook_pre"]
    assert report["shape"]["blocks.0.mlp.hook_pre"] is None


def test_patterns_that_do_not_sum_to_one_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Attention._attend_in_the_open

    def doubled(self: Attention, q: Any, k: Any, v: Any, mask: Any, tap: Any) -> torch.Tensor:
        class Louder:
            def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
                return tap(name, 2 * tensor)

        return plain(self, q, k, v, mask, Louder())

    monkeypatch.setattr(Attention, "_attend_in_the_open", doubled)
    report = pair(num_hidden_layers=1)[1].check().set_index("name")
    assert not report.ok["blocks.0.attn.hook_pattern"]
    assert report.rows_sum_to_one["blocks.0.attn.hook_pattern"] is False


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = pair(hidden_dropout=0.5, num_hidden_layers=2)[1].train()
    model.gpt_neox.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    seen: list[str] = []
    with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: seen.append(hook.name))]):
        report = model.check()  # a hook of the user's takes no part
        assert not seen
        assert report.ok.all()
        model(tokens())
    assert seen
    assert before == {name: module.training for name, module in model.named_modules()}


class Balanced(HTMLParser):
    """Collects text, and fails on tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", CLASSES)
def test_the_tree_names_every_point_of_one_block(name: str) -> None:
    model = pair(name)[1]
    page = Balanced()
    page.feed(model._repr_html_())
    assert not page.open
    text, words = repr(model), " ".join(page.text)
    for point in model.hook_points.values():
        if point.layer in (None, 0):
            short = point.name.removeprefix("blocks.0.")
            for shown in (text, words):
                assert short in shown
                assert f"[{', '.join(point.axes)}]" in shown
                assert point.meaning in shown
    assert "blocks.0 … blocks.2" in words
    assert page.text.count("before the blocks: 1 hook point") == 1
