"""Ctrl-C while a model runs, is asked, changed or trained: it is as before, or wholly as after."""

from __future__ import annotations

import copy
import gc
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import randomize
from striking import chosen, moments, strike, strike_by_clock
from torch import Tensor

import neox_lab as nl
from neox_lab.family.folded import folded
from neox_lab.kernels.decoding_layout import prepare_for_decoding
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import fit

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "hidden_dropout": 0.1,
}
IDS = torch.arange(6)[None] + 3
METRIC = nl.patching.logit_difference([3], [5])
MLP = "blocks.1.hook_mlp_out"
EXAMPLES = [{"input_ids": [n, n + 1, n + 2]} for n in range(3, 11)]


def model() -> Any:
    ours = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES)).eval()
    randomize(ours, std=0.3)
    ours.backbone.layers[1].mlp.train()  # one module in another mode than the others
    ours.backbone.layers[0].input_layernorm.weight.requires_grad_(False)
    ours.get_output_embeddings().weight.grad = torch.ones(41, 16)
    return ours


def state(of: Any) -> dict[str, object]:
    """Everything about a model that is to stay."""
    found: dict[str, object] = {"config": of.config.to_dict(), "own": sorted(vars(of))}
    found["placements"] = len(of.hook_stack.placements)
    found["points"] = list(of.hook_points)
    for name, module in of.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"module {name}"] = (type(module), id(module), module.training, *map(len, hooks))
    for name, weight in of.named_parameters():
        grad = None if weight.grad is None else weight.grad.sum().item()
        found[f"weight {name}"] = (weight.requires_grad, grad, weight.detach().numpy().tobytes())
    return found


def shrink(tensor: Tensor, hook: Any) -> Tensor:
    return 0.9 * tensor


def through_hooks(of: Any) -> None:
    with of.hooks([("*.hook_z", shrink)], [("blocks.1.hook_resid_post", lambda g, hook: None)]):
        of(IDS).logits.sum()
        with of.hooks([("blocks.0.hook_mlp_out", shrink)]):
            of(IDS)


def spliced(of: Any) -> None:
    def function(x: Tensor, tap: Any) -> Tensor:
        return tap("hook_acts", x.relu())

    point = nl.SplicedPoint("hook_acts", "batch pos d_model", "")
    with of.spliced_function("blocks.1.hook_mlp_out", function, [point]):
        of.run_with_cache(IDS)


def generated(of: Any) -> None:
    prepare_for_decoding(of.modules())
    # An interrupted text is returned as far as it is, which may be before the first hook.
    with of.hooks([("blocks.0.hook_resid_post", shrink)], must_fire=False):
        of.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)


def loss(output: Any) -> Tensor:
    return output.logits.logsumexp(-1).sum()


pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
QUESTIONS: dict[str, Callable[[Any], object]] = {
    "hooks": through_hooks,
    "cache": lambda of: of.run_with_cache(IDS),
    "lean cache": lambda of: of.eval().run_with_cache(IDS, lean=True)[1]["pattern", 1],
    "cache of gradients": lambda of: of.run_with_cache(IDS, incl_bwd=loss),
    "spliced function": spliced,
    "steered generation": generated,
    "check": lambda of: of.check(),
    "folded weights": lambda of: folded(of).W_Q,
    "sweep": lambda of: nl.patching.sweep(of, IDS, IDS + 1, METRIC, "z"),
    "sweep by hooks": lambda of: nl.patching.sweep(of, IDS, IDS + 1, METRIC, MLP),
    "ablate": lambda of: nl.patching.ablate(of, IDS, METRIC, "z"),
    "attribution": lambda of: nl.attribution.attribution_patch(of, IDS, IDS + 1, METRIC),
    "lens": lambda of: nl.lens.logit_lens(of, IDS),
}


def compare(name: str, strikes: int, by_clock: int) -> None:
    ours, ask = model(), QUESTIONS[name]
    if name == "check":  # a hundred runs of the model
        strikes, by_clock = strikes // 5, by_clock // 5
    if name not in ("hooks", "cache", "check", "cache of gradients"):
        ours.eval()
    ask(ours)
    before = state(ours)

    def check(where: object) -> None:
        gc.collect(0)
        after = state(ours)
        changed = [key for key in before | after if before.get(key) != after.get(key)]
        assert not changed, f"interrupted at {where}: {changed} changed"

    check("no moment")
    start = time.monotonic()
    ask(ours)
    seconds = time.monotonic() - start
    for at in chosen(moments(lambda: ask(ours)), strikes, name):
        check(strike(lambda: ask(ours), at))
    chance = random.Random(name)
    for _ in range(by_clock):
        strike_by_clock(lambda: ask(ours), chance.uniform(0, 1.2 * seconds))
        check("some time")


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_interrupted_question_leaves_the_model_as_it_was(name: str) -> None:
    compare(name, strikes=20, by_clock=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUESTIONS)
def test_five_hundred_interrupted_questions(name: str) -> None:
    compare(name, strikes=450, by_clock=50)


# --- what changes a model: as before, or as after ------------------------------------------------


def lora(rank: int = 2) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    return peft.LoraConfig(r=rank, target_modules=["query_key_value", "dense_h_to_4h"])


def put_in(of: Any) -> None:
    of.add_adapter(lora(), "one")


def take_out(of: Any) -> None:
    of.delete_adapter("one")


CHANGES: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "add_adapter": (lambda of: None, put_in),
    "a second adapter": (put_in, lambda of: of.add_adapter(lora(3), "two")),
    "delete_adapter": (put_in, take_out),
    "resize_token_embeddings": (lambda of: None, lambda of: of.resize_token_embeddings(50)),
}


def shape(of: Any) -> dict[str, object]:
    """What a model is made of; new weights are random."""
    found: dict[str, object] = {"own": sorted(vars(of)), "vocab": of.config.vocab_size}
    for name, module in of.named_modules():
        rows = vars(module).get("num_embeddings")
        found[f"module {name}"] = (type(module), module.training, rows)
    for name, weight in of.named_parameters():
        found[f"weight {name}"] = (weight.requires_grad, weight.shape)
    return found


def change(name: str, strikes: int, by_clock: int) -> None:
    begin, alter = CHANGES[name]
    plain = model()
    begin(plain)
    plain.eval()
    alter(copy.deepcopy(plain))  # the first time imports
    changed = copy.deepcopy(plain)
    start = time.monotonic()
    alter(changed)
    seconds = time.monotonic() - start
    before, after = shape(plain), shape(changed)
    assert before != after
    weights = {key: weight.clone() for key, weight in plain.state_dict().items()}
    logits = plain(IDS).logits

    def one(how: Callable[[Any], object]) -> None:
        ours = copy.deepcopy(plain)
        where = how(ours)
        gc.collect(0)
        assert shape(ours) in (before, after), f"interrupted at {where}: half a change"
        if shape(ours) == before:
            now = ours.state_dict()
            assert all(torch.equal(now[key], weight) for key, weight in weights.items())
            assert torch.equal(ours(IDS).logits, logits)

    files = moments(lambda: alter(copy.deepcopy(plain)))
    for at in chosen(files, strikes, name):
        one(lambda ours: strike(lambda: alter(ours), at))  # noqa: B023
    chance = random.Random(name)
    for _ in range(by_clock):
        wait = chance.uniform(0, 1.2 * seconds)
        one(lambda ours: strike_by_clock(lambda: alter(ours), wait))  # noqa: B023


@pytest.mark.parametrize("name", CHANGES)
def test_an_interrupted_change_is_none_or_whole(name: str) -> None:
    change(name, strikes=20, by_clock=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_five_hundred_interrupted_changes(name: str) -> None:
    change(name, strikes=250, by_clock=250)


# --- training ------------------------------------------------------------------------------------


def collate(rows: Any) -> dict[str, Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def trained(of: Any, train: str, steps: int = 2) -> None:
    settings = TrainingSettings(steps=steps, batch_size=4, train=train, warm_up=0, decay="constant")
    fit(of, EXAMPLES, collate, settings)


def train(kind: str, strikes: int, by_clock: int) -> None:
    """Weights are those after a whole number of steps, the modules those of before."""
    if kind == "lora":
        pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    first = model().eval()
    allowed = []
    for steps in (0, 1, 2):
        ours = copy.deepcopy(first)
        if steps:
            trained(ours, kind, steps)
        allowed.append(torch.nn.utils.parameters_to_vector(ours.parameters()))
    assert not torch.allclose(allowed[0], allowed[1], atol=1e-5)
    start = time.monotonic()
    trained(copy.deepcopy(first), kind)
    seconds = time.monotonic() - start

    def one(how: Callable[[Any], object]) -> None:
        ours = copy.deepcopy(first)
        where = how(ours)
        gc.collect(0)
        assert shape(ours)["own"] == shape(first)["own"]
        assert [n for n, _ in ours.named_modules()] == [n for n, _ in first.named_modules()]
        now = torch.nn.utils.parameters_to_vector(ours.parameters())
        whole = any(torch.allclose(now, there, atol=1e-7) for there in allowed)
        assert whole, f"interrupted at {where}: half a step"
        flags = [p.requires_grad for p in ours.parameters()]
        assert flags == [p.requires_grad for p in first.parameters()]

    files = moments(lambda: trained(copy.deepcopy(first), kind))
    for at in chosen(files, strikes, kind):
        one(lambda ours: strike(lambda: trained(ours, kind), at))  # noqa: B023
    chance = random.Random(kind)
    for _ in range(by_clock):
        wait = chance.uniform(0, 1.2 * seconds)
        one(lambda ours: strike_by_clock(lambda: trained(ours, kind), wait))  # noqa: B023


@pytest.mark.parametrize("kind", ["all", "head", "lora"])
def test_interrupted_training_leaves_whole_steps(kind: str) -> None:
    train(kind, strikes=12, by_clock=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["all", "head", "lora"])
def test_five_hundred_interrupted_trainings(kind: str) -> None:
    train(kind, strikes=300, by_clock=200)
