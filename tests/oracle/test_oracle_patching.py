"""Sweeps, ablations, paths and edges, cell by cell against the formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patching64 import Paths64, Question64
from settings64 import NETWORKS, SIDES, build, close, texts
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.patching.sites import SITES
from neox_lab.gym import planting

METRIC = nl.patching.logit_difference(3, 7)
# Every network, and every side of padding with both wirings; all of both when there is time.
# Angles that depend on the longest text have no padding: see the test of what is refused.
ANGLES = {"dynamic", "longrope"}
CROSSED = [
    pytest.param(
        name, side, marks=pytest.mark.slow if (at + place) % 3 and name not in ANGLES else []
    )
    for at, name in enumerate(NETWORKS)
    for place, side in enumerate(SIDES)
    if side == "none" or name not in ANGLES
]


def asked(name: str, side: str) -> tuple[Any, Question64, dict[str, Tensor], dict[str, Tensor]]:
    """Prompts that differ in their second own token and, in the first pair, in the last but one."""
    model, network = build(name)
    clean = texts(side)
    ids = clean["input_ids"].clone()
    for row, own in enumerate(clean["attention_mask"]):
        columns = own.nonzero().flatten()
        ids[row, columns[1]] = 2 + (ids[row, columns[1]] + 5) % 39
        if row == 0:
            ids[row, columns[-2]] = 2 + (ids[row, columns[-2]] + 9) % 39
    question = Question64(network, clean["input_ids"], ids, clean["attention_mask"])
    return model, question, clean, clean | {"input_ids": ids}


def without_padding(values: Tensor, axes: tuple[str, ...], mask: Tensor) -> Tensor:
    """``[batch, *axes]`` with NaN in cells that are padding."""
    for at, axis in enumerate(axes, 1):
        if axis in ("pos", "source_pos"):
            shape = [1] * values.dim()
            shape[0], shape[at] = mask.shape
            values = values.masked_fill(mask.view(shape) == 0, torch.nan)
    return values


@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_every_site(name: str, side: str) -> None:
    model, question, clean, corrupted = asked(name, side)
    source = question.run(question.clean)
    for site in SITES.values():
        if site.name == "resid_mid" and model.config.use_parallel_residual:
            continue
        if site.name == "pattern_by_dest_source" and name not in ("default", "sequential"):
            continue  # many cells
        got = nl.patching.sweep(model, clean, corrupted, METRIC, site.name, progress=False)
        wanted = question.sweep(site.hook, site.axes, lambda hook: source[hook])
        mask = clean["attention_mask"]
        close(*(without_padding(v, site.axes, mask) for v in (got.samples, wanted)))
        close(got.base_samples, question.metric(question.run(question.corrupted).logits))
        assert got.clean == pytest.approx(float(question.metric(source.logits).mean()), abs=1e-5)


def stand_ins(question: Question64, value: str, mask: Tensor) -> dict[str, Tensor]:
    """By hook name what stands there instead."""
    run, made = question.run(question.clean), {}
    own = mask.bool()
    for hook, found in run.seen.items():
        if not hook.startswith("blocks.") or found.shape[:2] != own.shape:
            continue
        if value == "zero":
            made[hook] = torch.zeros_like(found)
        elif value == "mean":
            made[hook] = found[own].mean(dim=0).expand_as(found)
        else:
            columns = [found[own[:, at], at].mean(dim=0) for at in range(own.shape[1])]
            made[hook] = torch.stack(columns).expand_as(found)
    return made


@pytest.mark.parametrize("value", ["zero", "mean", "mean_by_pos"])
@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_ablations(name: str, side: str, value: Any) -> None:
    model, question, clean, _ = asked(name, side)
    question = Question64(question.network, question.clean, question.clean, question.mask)
    made = stand_ins(question, value, question.mask)
    for site in ("mlp_out", "z", "k_all_pos", "resid_post"):
        got = nl.patching.ablate(model, clean, METRIC, site, value, progress=False)
        axes = SITES[site].axes
        wanted = question.sweep(SITES[site].hook, axes, lambda hook: made[hook])
        close(*(without_padding(v, axes, question.mask) for v in (got.samples, wanted)))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("site", ["z", "pattern_all_pos"])
def test_resampling_takes_from_one_other_text_that_has_tokens_there(site: str, side: str) -> None:
    """Of the six texts two each have 7, 4 and 6 tokens."""
    model, network = build("sequential")
    given = texts(side, batch=6)
    ids, mask = given["input_ids"], given["attention_mask"]
    question = Question64(network, ids, ids, mask)
    found = network(ids, mask)
    hook, axes = SITES[site].hook, SITES[site].axes
    others = [
        without_padding(
            question.sweep(hook, axes, lambda hook, by=by: found[hook].roll(by, dims=0)), axes, mask
        )
        for by in range(1, 6)
    ]
    taken = set()
    for seed in range(4):
        got = nl.patching.ablate(model, given, METRIC, site, "resample", seed=seed, progress=False)
        values = without_padding(got.samples, axes, mask)
        for row in range(6):
            fits = [
                by
                for by, wanted in enumerate(others, 1)
                if torch.allclose(values[row], wanted[row], atol=1e-5, equal_nan=True)
            ]
            assert len(fits) == 1
            other = (row - fits[0]) % 6
            assert bool((mask[other] >= mask[row]).all()) and other != row
            if site.startswith("pattern"):
                assert torch.equal(mask[other], mask[row])
            taken.add((row, other))
    assert len(taken) > 6 or site.startswith("pattern")


@pytest.mark.parametrize("name", sorted(ANGLES))
def test_texts_that_padding_would_turn_are_refused(name: str) -> None:
    model, _, clean, corrupted = asked(name, "left")
    model.tokenizer = planting.tokenizer()
    with pytest.raises(InputError, match="text 1 has 4 tokens and is padded to 7"):
        nl.patching.sweep(model, clean, corrupted, METRIC)
    with pytest.raises(InputError, match="rope_type"):
        nl.attribution.integrated_gradients(model, clean, METRIC)
    with pytest.raises(InputError, match="rope_type"):
        nl.lens.logit_lens(model, ["!!!!!!!", "!!!!"])
    alike = {key: values[1:2, 3:] for key, values in clean.items()}
    other = {key: values[1:2, 3:] for key, values in corrupted.items()}
    assert nl.patching.sweep(model, alike, other, METRIC, progress=False).complete


def test_padding_of_a_cache_is_not_patched_into_text() -> None:
    """A run of texts is padded on the right, the same texts in a question on the left."""
    model, _ = build("default", vocab_size=96)
    model.tokenizer = planting.tokenizer()
    _, cache = model.run_with_cache(["hello", "a b"])
    with pytest.raises(InputError, match="Position 3 of text 1 is padding in the run of the cache"):
        nl.patching.sweep(model, cache, ["hullo", "a c"], METRIC)
    with pytest.raises(InputError, match="same ids and attention_mask"):
        nl.patching.get_act_patch_direct_path(
            model,
            ["hullo", "a c"],
            cache,
            cache,
            METRIC,
            0,
            0,  # type: ignore[arg-type]
        )


def test_ablation_says_what_no_reference_can_stand_in_for() -> None:
    model, _ = build("default")
    given = texts("left")
    short = {name: values[1:] for name, values in given.items()}
    with pytest.raises(InputError, match="text 0"):
        nl.patching.ablate(model, given, METRIC, value="resample")
    with pytest.raises(InputError, match="Text 0 has a token in column 0"):
        nl.patching.ablate(model, given, METRIC, value="mean_by_pos", reference=short)
    with pytest.raises(InputError, match="mean attention pattern"):
        nl.patching.ablate(model, given, METRIC, "pattern_all_pos", "mean_by_pos")


@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_paths_and_edges(name: str, side: str) -> None:
    model, question, clean, corrupted = asked(name, side)
    paths = Paths64(question)
    edges = nl.patching.edge_sweep(model, clean, corrupted, METRIC, progress=False)
    writers, readers = edges.labels["writer"], edges.labels["reader"]
    for i, writer in enumerate(writers):
        for j, reader in enumerate(readers):
            got = edges.samples[:, i, j]
            if paths.precedes(writer, reader):
                close(got, paths.patched(writer, [reader]))
            else:
                assert got.isnan().all()
    receivers = ["L1H0.q", "L1H2.v", "MLP1", "logits"]
    for through in ("nothing", "mlps"):
        sent = nl.patching.path_patch(
            *(model, clean, corrupted, METRIC, writers, receivers),
            through=through,  # type: ignore[arg-type]
            progress=False,
        )
        for i, writer in enumerate(writers):
            close(sent.samples[:, i], paths.patched(writer, receivers, through == "mlps"))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["default", "sequential"])
def test_functions_that_read_all_logits_padding_included(name: str, side: str) -> None:
    model, question, clean, corrupted = asked(name, side)
    whole = EveryLogit(question.network, question.clean, question.corrupted, question.mask)
    source = whole.run(whole.clean)
    for site in ("resid_pre", "attn_out", "z", "k", "v_all_pos", "pattern_by_dest"):
        got = nl.patching.sweep(model, clean, corrupted, every_logit, site, progress=False)
        wanted = whole.sweep(SITES[site].hook, SITES[site].axes, lambda hook: source[hook])
        close(got.values, wanted.mean(dim=0))
    paths = Paths64(whole)
    edges = nl.patching.edge_sweep(model, clean, corrupted, every_logit, progress=False)
    for i, writer in enumerate(edges.labels["writer"]):
        for j, reader in enumerate(edges.labels["reader"]):
            if paths.precedes(writer, reader):
                close(edges.values[i, j], paths.patched(writer, [reader]).mean())
    names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
    slopes, own = whole.slopes(names), whole.run(whole.corrupted)
    shares = [((source[n] - own[n]) * slopes[n]).sum(dim=-1) for n in names]
    got = nl.attribution.attribution_patch(model, clean, corrupted, every_logit)
    close(got.values, torch.stack(shares).mean(dim=1), 2e-5)


def every_logit(logits: Tensor) -> Tensor:
    """A metric that reads everything."""
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
    return (logits.softmax(dim=-1)[..., 3] * weights).sum(dim=1).mean()


class EveryLogit(Question64):
    """The same of each row."""

    def metric(self, logits: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
        return (logits.softmax(dim=-1)[..., 3] * weights).sum(dim=1)
