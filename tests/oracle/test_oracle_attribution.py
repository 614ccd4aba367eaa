"""Shares, gradients, lenses and detection against the formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from network64 import Network64
from patching64 import Paths64, Question64, numbers
from settings64 import NETWORKS, SIDES, build, close, texts
from test_oracle_patching import CROSSED, METRIC, asked, without_padding
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.patching.sites import SITES

FLOAT32 = 2e-5  # attributions are float32


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_attribution_patching(name: str, side: str, steps: int) -> None:
    """(clean - corrupted) times the gradient, summed over what a cell holds."""
    model, question, clean, corrupted = asked(name, side)
    own, source = question.run(question.corrupted), question.run(question.clean)
    for site in ("resid_pre", "mlp_out", "z", "q", "k_all_pos", "pattern_all_pos"):
        axes = SITES[site].axes
        names = [f"blocks.{layer}.{SITES[site].hook}" for layer in range(2)]
        slopes = question.average_slopes(names, steps)
        shares = torch.stack([(source[n] - own[n]) * slopes[n] for n in names], dim=1)
        got = nl.attribution.attribution_patch(
            model, clean, corrupted, METRIC, site, steps=steps
        ).per_row
        if site.startswith("pattern"):
            wanted = shares.sum(dim=(-2, -1))
        else:
            wanted = shares.sum(dim=-1)  # [batch, layer, pos, ..]
            wanted = wanted.sum(dim=2) if site.endswith("all_pos") else wanted
        mask = question.mask
        close(*(without_padding(v, axes, mask) for v in (got, wanted)), FLOAT32)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_edges(name: str, side: str, steps: int) -> None:
    """(clean - corrupted) of a writer times the gradient at a reader's own input."""
    model, question, clean, corrupted = asked(name, side)
    paths = Paths64(question)
    got = nl.attribution.attribution_patch(model, clean, corrupted, METRIC, "edges", steps=steps)
    for j, reader in enumerate(got.labels["reader"]):
        slope = slope_at(question, reader, steps)
        for i, writer in enumerate(got.labels["writer"]):
            if paths.precedes(writer, reader):
                wanted = (paths.change(writer) * slope).sum(dim=(1, 2))
                close(got.per_row[:, i, j], wanted, FLOAT32)


def slope_at(question: Question64, reader: str, steps: int) -> Tensor:
    """The gradient at what one reader alone reads, averaged over the way to the clean prompts."""
    network = question.network
    table = network.weights["embed_in.weight"]
    start, end = table[question.corrupted], table[question.clean]
    places, weights = np.polynomial.legendre.leggauss(steps) if steps else ([-1.0], [2.0])
    total = torch.zeros_like(start)
    for place, weight in zip(places, weights, strict=True):
        embeds = start + (place + 1) / 2 * (end - start)
        plain = question.run(question.corrupted, {"hook_embed": lambda _, e=embeds: e})
        probe = torch.zeros_like(start, requires_grad=True)
        if reader == "logits":
            hook = f"blocks.{network.layers - 1}.hook_resid_post"
            edits: Any = {hook: lambda x, p=probe: x + p}
        else:
            edits = {hook_of(reader): reading(network, question, reader, plain, embeds, probe)}
        logits = question.run(
            question.corrupted, {"hook_embed": lambda _, e=embeds: e, **edits}
        ).logits
        (found,) = torch.autograd.grad(question.metric(logits).sum(), probe)
        total = total + weight / 2 * found
    return total


def hook_of(reader: str) -> str:
    if reader.startswith("MLP"):
        return f"blocks.{reader[3:]}.hook_mlp_out"
    return f"blocks.{numbers(reader)[0]}.attn.hook_{reader[-1]}"


def reading(
    network: Network64, question: Question64, reader: str, plain: Any, embeds: Tensor, probe: Tensor
) -> Any:
    """The edit of what a reader makes of its input and ``probe``."""
    mlp = reader.startswith("MLP")
    layer = int(reader[3:]) if mlp else numbers(reader)[0]
    entry = f"blocks.{layer}.hook_{'mlp_in' if mlp else 'resid_pre'}"
    read = plain[entry] + probe
    given = {"hook_embed": lambda _: embeds, entry: lambda _: read}
    made = question.run(question.corrupted, given)[hook_of(reader)]
    if mlp:
        return lambda _: made
    head = torch.zeros(network.heads, 1, dtype=torch.bool)
    head[numbers(reader)[1]] = True
    return lambda own: torch.where(head, made, own)


@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_tokens(name: str, side: str) -> None:
    """Integrated gradients and occlusion, from the mean of all embeddings."""
    model, question, _, corrupted = asked(name, side)
    table = question.network.weights["embed_in.weight"]
    embeds, own = table[question.corrupted], question.mask.bool()
    start = torch.where(own[..., None], table.mean(dim=0), embeds)
    shares = torch.zeros(own.shape, dtype=torch.float64)
    for place, weight in zip(*np.polynomial.legendre.leggauss(8), strict=True):
        at = start + (place + 1) / 2 * (embeds - start)
        found = question.slopes(["hook_embed"], hook_embed=lambda _, a=at: a)["hook_embed"]
        shares += weight / 2 * (found * (embeds - start)).sum(dim=-1)
    got = nl.attribution.integrated_gradients(model, corrupted, METRIC, steps=8)
    close(got.values, shares.masked_fill(~own, torch.nan), FLOAT32)
    whole = question.metric(question.run(question.corrupted).logits)
    nothing = question.metric(
        question.run(question.corrupted, {"hook_embed": lambda _: start}).logits
    )
    close(torch.tensor(got.totals), whole - nothing, FLOAT32)
    occluded = nl.attribution.occlusion(model, corrupted, METRIC).values
    for pos in range(own.shape[1]):
        changed = embeds.clone()
        changed[:, pos] = start[:, pos]
        without = question.run(question.corrupted, {"hook_embed": lambda _, c=changed: c})
        lost = whole - question.metric(without.logits)
        close(occluded[:, pos], lost.masked_fill(~own[:, pos], torch.nan), FLOAT32)


@pytest.mark.parametrize(("name", "side"), CROSSED)
def test_direct_logit_attribution(name: str, side: str) -> None:
    model, question, _, corrupted = asked(name, side)
    network, run = question.network, question.run(question.corrupted)
    paths = Paths64(question)
    got = nl.attribution.direct_logit_attribution(model, corrupted, 3, 7)
    rows = torch.arange(3)
    last = torch.tensor([int(row.nonzero().max()) for row in question.mask])
    unembed = network.weights.get("embed_out.weight", network.weights["embed_in.weight"])
    along = (unembed[3] - unembed[7]) * network.weights["final_layer_norm.weight"]
    scale = run["ln_final.hook_scale"][rows, last]
    for at, component in enumerate(got.labels["component"]):
        if component == "bias":
            continue
        wrote = paths.written(run, component)[rows, last]
        share = ((wrote - wrote.mean(dim=-1, keepdim=True)) / scale) @ along
        close(got.per_row[:, at], share, FLOAT32)
    close(got.per_row.sum(dim=1), question.metric(run.logits), FLOAT32)


@pytest.mark.parametrize("name", NETWORKS)
def test_direct_shares_at_every_position(name: str) -> None:
    """On ids, and so without a mask; padding is tested where rows stand alone."""
    model, question, _, corrupted = asked(name, "none")
    network, run = question.network, question.run(question.corrupted)
    paths = Paths64(question)
    unembed = network.weights.get("embed_out.weight", network.weights["embed_in.weight"])
    for minus in (None, 7):
        got = nl.lens.direct(model, corrupted["input_ids"], 3, minus)
        along = unembed[3] - (0 if minus is None else unembed[7])
        along = along * network.weights["final_layer_norm.weight"]
        wanted = run.logits[..., 3] - (0 if minus is None else run.logits[..., 7])
        close(got.logit, wanted, FLOAT32)
        total = torch.zeros_like(wanted)
        for part, share in zip(got.parts, got.shares, strict=True):
            if part.kind in ("embed", "mlp", "head"):
                wrote = paths.written(run, part.name)
            elif part.kind == "attention":
                wrote = run[f"blocks.{part.layer}.hook_attn_out"]
            else:
                total += share * (part.kind == "bias")
                continue
            centred = wrote - wrote.mean(dim=-1, keepdim=True)
            close(share, (centred / run["ln_final.hook_scale"]) @ along, FLOAT32)
            total += share * (part.kind != "head")
        close(total, wanted, FLOAT32)
        assert got.error < 1e-4


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NETWORKS)
def test_logit_lens(name: str, side: str) -> None:
    """On ids, and so without a mask; padding is tested where rows stand alone."""
    model, network = build(name)
    ids = texts(side)["input_ids"]
    run = network(ids)
    sites = ["resid_pre", "resid_post", "attn_out", "mlp_out"]
    for site in sites + ["resid_mid"] * (not model.config.use_parallel_residual):
        got = nl.lens.logit_lens(model, ids, site, watch=[3, 7], top_k=4)
        streams = [run[f"blocks.{layer}.hook_{site}"] for layer in range(2)]
        if site == "resid_pre":
            streams.append(run["blocks.1.hook_resid_post"])
        final = run.logits.softmax(dim=-1)
        for row, stream in enumerate(streams):
            chance = network.head(network.normalize(stream)).softmax(dim=-1)
            order = chance.sort(dim=-1, descending=True)
            close(got.top_probability[row], order.values[..., :4])
            assert torch.equal(got.top[row], order.indices[..., :4])
            close(got.entropy[row], -(chance * chance.log()).sum(dim=-1), 1e-5)
            close(got.kl[row], (final * (final / chance).log()).sum(dim=-1), 1e-5)
            close(got.watched_probability[row], chance[..., [3, 7]])
            following = chance[:, :-1].gather(-1, ids[:, 1:, None])
            close(got.next_probability[row, :, :-1], following[..., 0])
            assert torch.equal(got.next_rank[row, :, :-1], (chance[:, :-1] > following).sum(dim=-1))


@pytest.mark.parametrize("name", NETWORKS)
def test_detection(name: str) -> None:
    model, network = build(name)
    ids = texts()["input_ids"].repeat(1, 2)[:, :11]
    if model.config.max_position_embeddings < ids.shape[1]:
        ids = ids[:, :5]
    run, length = network(ids), ids.shape[1]
    patterns = torch.stack([run[f"blocks.{layer}.attn.hook_pattern"] for layer in range(2)])
    target = torch.zeros(3, length, length, dtype=torch.float64)
    for row in range(3):
        for query in range(length):
            for key in range(query):
                target[row, query, key] = float(ids[row, key] == ids[row, query])
    if not bool(target.any()):
        pattern = "previous_token"
        target = torch.eye(length, dtype=torch.float64).roll(-1, 1).tril(-1).expand(3, -1, -1)
    else:
        pattern = "duplicate_token"
    on = (patterns * target[:, None]).sum(dim=(1, 3, 4))
    got = nl.detect.heads(model, pattern, ids)
    close(got.values, on / float((target.sum(-1) > 0).sum()), FLOAT32)
    got = nl.detect.heads(model, pattern, ids, measure="mul")
    close(got.values, on / (3 * length), FLOAT32)
    later = patterns[..., 1:, :]
    entropy = -(later * later.clamp(min=1e-300).log()).sum(dim=-1).mean(dim=(1, 3))
    close(got.entropy, entropy, FLOAT32)
    close(got.first_token, later[..., 0].mean(dim=(1, 3)), FLOAT32)
    apart = (torch.arange(length)[:, None] - torch.arange(length)).double()[1:]
    close(got.distance, (later * apart).sum(dim=-1).mean(dim=(1, 3)), FLOAT32)
