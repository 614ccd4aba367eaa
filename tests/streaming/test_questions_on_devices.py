"""Questions about models whose layers are on several devices: the numbers of one device."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from files_of_models import config
from logical_devices import AWAY, HOME, LogicalDevices

import neox_lab as nl

SITES = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern_all_pos"]


def model_of(parallel: bool) -> Any:
    torch.manual_seed(0)
    model = nl.GPTNeoXForCausalLM(config(parallel=parallel)).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def spread(model: Any, devices: LogicalDevices) -> None:
    for layer in (1, 2, 4):
        devices.put(model.backbone.block(layer), AWAY)
    model.backbone.devices = (HOME, AWAY, AWAY, HOME, AWAY)


def prompts() -> tuple[dict[str, Any], dict[str, Any]]:
    clean = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[:, 3] = torch.tensor([11, 12])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :2] = 0
    return (
        {"input_ids": clean, "attention_mask": mask},
        {"input_ids": corrupted, "attention_mask": mask},
    )


METRIC = nl.patching.logit_difference([5, 6], [7, 8])


def halved(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x * 0.5 + 0.1


def test_what_mixes_devices_is_refused_by_the_test_itself() -> None:
    with LogicalDevices() as devices, torch.no_grad():
        there = torch.ones(3).to(AWAY)
        assert there.device == AWAY and (there * 2)[:2].device == AWAY and devices.moves == 1
        with pytest.raises(RuntimeError, match="mixes devices"):
            there + torch.ones(3)
        model = model_of(True)
        devices.put(model.backbone.block(1), AWAY)
        with pytest.raises(RuntimeError, match="mixes devices"):
            model(prompts()[0]["input_ids"])


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_a_sweep_gives_the_same_numbers(site: str, parallel: bool) -> None:
    model = model_of(parallel)
    expected = nl.patching.sweep(model, *prompts(), METRIC, site, progress=False)
    with LogicalDevices() as devices:
        spread(model, devices)
        found = nl.patching.sweep(model, *prompts(), METRIC, site, progress=False)
        assert devices.moves > 10
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("what", ["hook point", "spliced", "ablation", "cache"])
def test_so_do_hooks_splices_ablation_and_caches(what: str) -> None:
    model = model_of(True)

    def ask() -> Any:
        clean, corrupted = prompts()
        if what == "hook point":
            site = "blocks.2.mlp.hook_post"
            return nl.patching.sweep(model, clean, corrupted, METRIC, site, progress=False)
        if what == "ablation":
            return nl.patching.ablate(model, clean, METRIC, value="mean", progress=False)
        if what == "cache":
            _, cache = model.run_with_cache(
                clean["input_ids"], **{"attention_mask": clean["attention_mask"]}
            )
            return nl.patching.sweep(model, cache, corrupted, METRIC, progress=False)
        with model.spliced_function("blocks.2.hook_resid_post", halved, []):
            return nl.patching.sweep(model, clean, corrupted, METRIC, progress=False)

    expected = ask()
    with LogicalDevices() as devices:
        spread(model, devices)
        found = ask()
    assert torch.allclose(found.values, expected.values, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("through", ["nothing", "mlps"])
def test_so_do_paths_and_edges(through: Any, parallel: bool) -> None:
    model = model_of(parallel)
    given: dict[str, Any] = {"senders": "all", "through": through, "progress": False}
    if through == "mlps":
        given |= {"receivers": ["L2H0.q", "L4H1.v"], "senders": ["L0H1", "MLP0", "L1H0"]}

    def ask() -> Any:
        paths = nl.patching.path_patch(model, *prompts(), METRIC, **given)
        return paths, nl.patching.edge_sweep(model, *prompts(), METRIC, progress=False)

    expected = ask()
    with LogicalDevices() as devices:
        spread(model, devices)
        found = ask()
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.values.nan_to_num(), theirs.values.nan_to_num())


@pytest.fixture(scope="module")
def built_in() -> Any:
    return nl.load(dtype=torch.float64)


PAIRS = nl.gym.TASKS["ioi"].pairs(3)
ASKED: tuple[Any, ...] = (
    [pair.clean for pair in PAIRS],
    [pair.corrupted for pair in PAIRS],
    nl.patching.logit_difference([p.correct for p in PAIRS], [p.wrong for p in PAIRS]),
)
FIRST = PAIRS[0]
ONE = nl.patching.logit_difference(FIRST.correct, FIRST.wrong)


def steered(model: Any) -> Any:
    found = nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1))
    with found.steer(2.0):
        return model(model.to_tokens(FIRST.clean)).logits


def probed(model: Any) -> Any:
    texts = [f"{a} {b}" for a in ("The", "A", "One", "My") for b in ("key", "park", "man", "boy")]
    return nl.probing.probe(model, texts, ["a", "b"] * 8).frame


def unfolded(model: Any) -> Any:
    return nl.folded(model).as_model()(model.to_tokens(FIRST.clean)).logits


QUESTIONS: dict[str, Any] = {
    "generate": lambda model: model.generate(model.to_tokens(FIRST.clean), max_new_tokens=4),
    "stream": lambda model: [step.token for step in model.stream(FIRST.clean, max_new_tokens=3)],
    "attribution patching": lambda model: nl.attribution.attribution_patch(model, *ASKED).frame,
    "integrated gradients": lambda model: (
        nl.attribution.integrated_gradients(model, FIRST.clean, ONE).frame
    ),
    "occlusion": lambda model: nl.attribution.occlusion(model, FIRST.clean, ONE).frame,
    "direct attribution": lambda model: (
        nl.attribution.direct_logit_attribution(
            model, FIRST.clean, FIRST.correct, FIRST.wrong
        ).frame
    ),
    "logit lens": lambda model: nl.lens.logit_lens(model, FIRST.clean).frame,
    "direct shares": lambda model: nl.lens.direct(model, FIRST.clean, FIRST.correct).frame,
    "svd": lambda model: nl.lens.svd(model, "OV", 1, 1).share,
    "heads": lambda model: nl.detect.heads(model, "induction", copying=True).frame,
    "head statistics": lambda model: nl.detect.head_statistics(model, ASKED[0]).frame,
    "composition": lambda model: nl.detect.composition(model, "K").values,
    "edges by gradient": lambda model: nl.circuits.scores(model, *ASKED).values,
    "edges one by one": lambda model: nl.circuits.scores(model, *ASKED, method="exact").values,
    "evaluation": lambda model: (
        nl.circuits.scores(model, *ASKED).circuit(share=0.05).evaluate(random=1).frame
    ),
    "nodes": lambda model: nl.circuits.node_scores(model, *ASKED, method="exact").frame,
    "neurons": lambda model: nl.circuits.neuron_scores(model, *ASKED).frame,
    "pruning": lambda model: nl.circuits.prune_edges(model, *ASKED, edges=20, steps=3).circuit.kept,
    "probe": probed,
    "steering": steered,
    "folded": unfolded,
    "get_act_patch": lambda model: nl.patching.get_act_patch_attn_head_q_all_pos(
        model,
        model.to_tokens(FIRST.corrupted),
        model.run_with_cache(FIRST.clean)[1],
        lambda logits: logits[0, -1, 5] - logits[0, -1, 6],
    ),
}


def numbers(found: Any) -> torch.Tensor:
    if isinstance(found, pd.DataFrame):
        found = found.select_dtypes("number").to_numpy(dtype="float64", copy=True)
    return torch.as_tensor(found).detach().double().nan_to_num()


@pytest.mark.filterwarnings("ignore:Edge pruning stopped")
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_gives_the_same_numbers(name: str, built_in: Any) -> None:
    expected = numbers(QUESTIONS[name](built_in))
    with LogicalDevices() as devices:
        for layer in (1, 3):
            devices.put(built_in.backbone.block(layer), AWAY)
        built_in.backbone.devices = (HOME, AWAY, HOME, AWAY)
        try:
            found = numbers(QUESTIONS[name](built_in))
        finally:
            built_in.backbone.devices = None
        assert devices.moves
    # Scores are float32, however exact the model is.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
