"""Attribution: shares that add up, slopes that agree with differences, checks that can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import randomize, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import (
    CheckpointError,
    HookNameError,
    InputError,
    NeoxLabError,
    TokenizerError,
)
from neox_lab.experiments import graph, metrics
from neox_lab.experiments.attribution import AttributionResult, TokenAttribution, compare
from neox_lab.experiments.patching.sites import SITES

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "eos_token_id": 0,
    "num_labels": 3,
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
    "label2id": {"no": 0, "yes": 1, "maybe": 2},
}
BATCH, POS, LAYERS = 2, 7, 3
CLASSES = {
    "GPTNeoXForCausalLM": metrics.logit_difference([3, 4], [6, 7]),
    "GPTNeoXForSequenceClassification": metrics.class_logit("yes", "no"),
    "GPTNeoXForTokenClassification": metrics.tag_logit(4, "maybe", 0),
    "GPTNeoXForQuestionAnswering": metrics.span_logit(1, -2),
}
LM = "GPTNeoXForCausalLM"
LM_METRIC = CLASSES[LM]


def build(name: str = LM, double: bool = False, **overrides: Any) -> Any:
    model = getattr(nl, name)(nl.GPTNeoXConfig(**SMALL | overrides)).eval()
    randomize(model, std=0.3)
    return model.double() if double else model


def prompts(seed: int = 0, pad: str = "left") -> dict[str, Tensor]:
    """Ids and a mask: one row of the batch is padded by two tokens."""
    ids = tokens(BATCH, POS, SMALL["vocab_size"], seed)
    mask = torch.ones_like(ids)
    where = {"left": slice(0, 2), "right": slice(-2, None), "none": slice(0, 0)}[pad]
    ids[0, where], mask[0, where] = SMALL["pad_token_id"], 0
    return {"input_ids": ids, "attention_mask": mask}


def value(model: Any, metric: Any, given: dict[str, Tensor], **arguments: Any) -> Tensor:
    """The metric of each row, from a run of the whole model."""
    output = model.run_with_hooks(given["input_ids"], **given, **arguments)
    return metric.bind(model, given).per_row(metrics.output_logits(output)).detach()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(b.abs().nan_to_num().max().clamp(min=1))
    torch.testing.assert_close(
        a.double(), b.double(), rtol=0, atol=tolerance * scale, equal_nan=True
    )


# Direct logit attribution


@pytest.mark.parametrize("pad", ["left", "right", "none"])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_direct_shares_sum_to_the_metric(name: str, parallel: bool, pad: str) -> None:
    model = build(name, use_parallel_residual=parallel, attention_bias=pad != "none")
    given, metric = prompts(pad=pad), CLASSES[name]
    expected = value(model, metric, given)
    for by in ("component", "layer", "neuron"):
        result = nl.attribution.direct_logit_attribution(model, given, metric, by=by, top_k=9)
        assert result.per_row is not None
        close(result.per_row.sum(dim=1), expected)
        close(result.values.sum(), expected.mean())
        assert result.total == pytest.approx(float(expected.mean()), abs=1e-5)
        assert abs(result.facts["rest"]) < 1e-5 * max(1, float(expected.abs().max()))


def test_direct_shares_are_those_of_the_cache() -> None:
    model, ids = build(), prompts(pad="none")["input_ids"]
    result = nl.attribution.direct_logit_attribution(model, ids, [3, 4], [6, 7], by="head")
    _, cache = model.run_with_cache(ids)
    correct, wrong = torch.tensor([3, 4]), torch.tensor([6, 7])
    heads = cache.stack_head_results(apply_ln=False, pos_slice=-1)
    shares = cache.logit_attrs(heads, correct, wrong, pos_slice=-1)
    close(result.values, shares.mean(dim=1).reshape(3, 4))
    mlps = cache.decompose_resid(mode="mlp", incl_embeds=False, pos_slice=-1)
    result = nl.attribution.direct_logit_attribution(model, ids, [3, 4], [6, 7], by="mlp")
    close(result.values, cache.logit_attrs(mlps, correct, wrong, pos_slice=-1).mean(dim=1))
    neurons, labels = cache.stack_neuron_results(None, pos_slice=-1, return_labels=True)
    shares = cache.logit_attrs(neurons, correct, wrong, pos_slice=-1).mean(dim=1)
    best = {labels[int(at)]: float(shares[at]) for at in shares.abs().topk(5).indices}
    result = nl.attribution.direct_logit_attribution(
        model, ids, [3, 4], [6, 7], by="neuron", top_k=5
    )
    frame = result.frame[result.frame["component"].str.contains("N")]
    found = dict(zip(frame["component"], frame["value"], strict=True))
    assert found == pytest.approx(best, abs=1e-5)


def test_direct_check_takes_parts_out_of_the_stream() -> None:
    model, given = build(), prompts()
    agreement = nl.attribution.direct_logit_attribution(model, given, LM_METRIC).check()
    frame = agreement.frame.set_index("component")
    _, cache = model.run_with_cache(given["input_ids"], **given)
    removed = {
        "embed": cache["hook_embed"],
        "L1H2": cache["result", 1][:, :, 2],
        "MLP2": cache["mlp_out", 2],
    }
    for part, written in removed.items():
        hook = ("blocks.2.hook_resid_post", lambda t, _, w=written: t - w)
        without = value(model, LM_METRIC, given, fwd_hooks=[hook])
        expected = float((value(model, LM_METRIC, given) - without).mean())
        assert frame.loc[part, "exact"] == pytest.approx(expected, abs=1e-4)
    everything = frame["estimated"] - frame["exact"]
    assert agreement.largest_miss == pytest.approx(everything.abs().max())
    assert -1 <= agreement.correlation < 0.99999  # layer norm is not linear


def test_direct_attribution_of_labels_by_name() -> None:
    tagger = build("GPTNeoXForTokenClassification")
    given = prompts()
    result = nl.attribution.direct_logit_attribution(tagger, given, "yes", "no", pos=2)
    assert result.total == pytest.approx(
        float(value(tagger, metrics.tag_logit(2, 1, 0), given).mean()), abs=1e-5
    )
    spans = build("GPTNeoXForQuestionAnswering")
    result = nl.attribution.direct_logit_attribution(spans, given, "end", pos=-1)
    output = spans(**given)
    assert result.total == pytest.approx(float(output.end_logits[:, -1].mean().detach()), abs=1e-5)


# Attribution patching


def site_cells(site: str, tensor: Tensor, cell: tuple[int, ...]) -> Tensor:
    """A boolean mask of what one cell (without its layer) of a site is."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    names = dict(zip(SITES[site].axes[1:], cell, strict=True))
    pattern = SITES[site].is_pattern
    index: list[Any] = [slice(None)] * tensor.dim()
    if "head" in names:
        index[1 if pattern else 2] = names["head"]
    if "pos" in names:
        index[2 if pattern else 1] = names["pos"]
    if "source_pos" in names:
        index[3] = names["source_pos"]
    mask[tuple(index)] = True
    return mask


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_nodes_agree_with_finite_differences(site: str, parallel: bool) -> None:
    if site == "resid_mid" and parallel:
        pytest.skip("parallel blocks have no resid_mid")
    model = build(double=True, use_parallel_residual=parallel)
    clean, corrupted = prompts(1, "right"), prompts(0, "right")
    result = nl.attribution.attribution_patch(model, clean, corrupted, LM_METRIC, site)
    assert result.axes == SITES[site].axes
    layer, cell = 1, tuple(size - 3 for size in result.values.shape[1:])
    hook = f"blocks.{layer}.{SITES[site].hook}"
    _, there = model.run_with_cache(clean["input_ids"], [hook], **clean)
    _, here = model.run_with_cache(corrupted["input_ids"], [hook], **corrupted)
    mask = site_cells(site, here[hook], cell)

    def moved(step: float) -> Tensor:
        """The metric with the cell moved by a part of the way."""
        goal = here[hook] + step * (there[hook] - here[hook]) * mask
        return value(model, LM_METRIC, corrupted, fwd_hooks=[(hook, lambda t, _: goal)])

    slope = (moved(1e-3) - moved(-1e-3)) / 2e-3  # scores and patterns are float32
    assert result.per_row is not None
    close(result.per_row[(slice(None), layer, *cell)], slope, 5e-4)
    assert slope.abs().max() > 5e-3
    assert result.facts["clean"] == pytest.approx(float(value(model, LM_METRIC, clean).mean()))
    assert result.facts["corrupted"] == pytest.approx(float(moved(0).mean()))


@pytest.mark.parametrize("name", CLASSES)
def test_estimates_of_a_small_change_are_the_exact_sweep(name: str) -> None:
    """Where corrupted tokens mean nearly the same, everything is linear."""
    model, metric = build(name, double=True, use_parallel_residual=name == LM), CLASSES[name]
    clean = prompts(pad="none")
    corrupted = {**clean, "input_ids": clean["input_ids"].clone()}
    corrupted["input_ids"][:, 3:5] = torch.tensor([51, 52])
    with torch.no_grad():
        table = model.backbone.embed_in.weight
        clean["input_ids"][:, 3:5] = torch.tensor([31, 32])
        table[51:53] = table[31:33] + 1e-4 * torch.randn(2, 32, generator=torch.manual_seed(0))
    sites = SITES if name == LM else ("resid_pre", "z_all_pos", "q")
    for site in sites:
        if site == "resid_mid" and model.config.use_parallel_residual:
            continue
        result = nl.attribution.attribution_patch(model, clean, corrupted, metric, site)
        agreement = result.check()
        assert agreement.correlation > 0.999, site
        assert agreement.largest_miss < 1e-2 * float(result.values.abs().max()), site
    edges = nl.attribution.attribution_patch(model, clean, corrupted, metric, "edges")
    agreement = edges.check()
    assert agreement.correlation > 0.999
    assert agreement.largest_miss < 1e-2 * float(edges.values.nan_to_num().abs().max())


def test_estimates_of_a_large_change_miss_and_say_so() -> None:
    model = build()
    result = nl.attribution.attribution_patch(model, prompts(1), prompts(0), LM_METRIC, "z_all_pos")
    agreement = result.check(k=3)
    exact = nl.patching.sweep(
        model, prompts(1), prompts(0), LM_METRIC, "z_all_pos", progress=False
    ).effect()
    close(torch.tensor(agreement.frame.sort_values(["layer", "head"])["exact"]), exact.flatten())
    miss = (result.values - exact).abs()
    assert agreement.largest_miss == pytest.approx(float(miss.max()), abs=1e-6)
    assert len(agreement.misses) == 3
    assert agreement.misses["miss"].abs().is_monotonic_decreasing
    pair = torch.stack((result.values.flatten(), exact.flatten()))
    assert agreement.correlation == pytest.approx(float(torch.corrcoef(pair)[0, 1]), abs=1e-5)
    assert agreement.correlation < 0.99


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("parallel", [True, False])
def test_edges_of_a_writer_sum_to_its_node(parallel: bool, steps: int) -> None:
    """The gradient at a writer is the sum of those at all who read it."""
    model = build(use_parallel_residual=parallel)
    given = (model, prompts(1), prompts(0), LM_METRIC)
    edges = nl.attribution.attribution_patch(*given, "edges", steps=steps)
    sums = dict(zip(edges.labels["writer"], edges.values.nansum(dim=1).tolist(), strict=True))
    heads = nl.attribution.attribution_patch(*given, "z_all_pos", steps=steps).values
    mlps = nl.attribution.attribution_patch(*given, "mlp_out", steps=steps).values.sum(dim=1)
    embed = nl.attribution.attribution_patch(*given, "resid_pre", steps=steps).values[0].sum()
    expected = {f"L{layer}H{head}": float(heads[layer, head]) for layer, head in CELLS}
    expected |= {f"MLP{layer}": float(mlps[layer]) for layer in range(LAYERS)}
    assert sums == pytest.approx(expected | {"embed": float(embed)}, abs=1e-4)


CELLS = [(layer, head) for layer in range(LAYERS) for head in range(4)]


@pytest.mark.parametrize("parallel", [True, False])
def test_edges_agree_with_finite_differences(parallel: bool) -> None:
    model = build(double=True, use_parallel_residual=parallel)
    clean, corrupted = prompts(1, "right"), prompts(0, "right")
    edges = nl.attribution.attribution_patch(model, clean, corrupted, LM_METRIC, "edges")
    hooks = ["hook_embed", "blocks.*.attn.hook_result", "blocks.*.hook_mlp_out"]
    _, there = model.run_with_cache(clean["input_ids"], hooks, **clean)
    _, here = model.run_with_cache(corrupted["input_ids"], hooks, **corrupted)
    head = there["result", 0][:, :, 2] - here["result", 0][:, :, 2]
    mlp = there["mlp_out", 1] - here["mlp_out", 1]
    slopes = []
    for writer, reader, hook, change in (
        ("L0H2", "L1H3.q", "blocks.1.hook_q_input", head),
        ("L0H2", "L2H0.v", "blocks.2.hook_v_input", head),
        ("L0H2", "MLP1", "blocks.1.hook_mlp_in", head),
        ("MLP1", "L2H1.k", "blocks.2.hook_k_input", mlp),
        ("MLP1", "logits", "blocks.2.hook_resid_post", mlp),
    ):
        number = int(reader[3]) if "H" in reader else None

        def moved(step: float, hook: str = hook, change: Tensor = change, number: Any = number):
            def add(tensor: Tensor, _: Any) -> None:
                (tensor if number is None else tensor[:, :, number]).add_(step * change)

            return value(model, LM_METRIC, corrupted, fwd_hooks=[(hook, add)])

        slope = float(((moved(1e-3) - moved(-1e-3)) / 2e-3).mean())
        row, column = edges.labels["writer"].index(writer), edges.labels["reader"].index(reader)
        assert float(edges.values[row, column]) == pytest.approx(slope, abs=1e-4), (writer, reader)
        slopes.append(abs(slope))
    assert max(slopes) > 1e-2


def test_only_later_readers_have_edges() -> None:
    for parallel in (True, False):
        model = build(use_parallel_residual=parallel)
        edges = nl.attribution.attribution_patch(model, prompts(1), prompts(0), LM_METRIC, "edges")
        there = {(row["writer"], row["reader"]) for row in edges.frame.to_dict("records")}
        assert ("L1H0", "MLP1") in there or parallel
        assert ("L1H0", "MLP1") not in there or not parallel
        assert {("embed", "L0H0.q"), ("MLP2", "logits"), ("L0H0", "L1H0.v")} <= there
        assert not {("MLP0", "MLP0"), ("L1H0", "L1H1.q"), ("MLP2", "L2H0.q")} & there


def test_gradients_along_the_way_are_complete() -> None:
    """Integrated along the embeddings' way, the shares of the embeddings sum to the change."""
    model = build()
    given = (model, prompts(1), prompts(0), LM_METRIC, "resid_pre")
    result = nl.attribution.attribution_patch(*given, steps=64)
    assert float(result.values[0].sum()) == pytest.approx(result.total, abs=2e-3)
    plain = nl.attribution.attribution_patch(*given)
    assert abs(float(plain.values[0].sum()) - plain.total) > 0.05
    assert result.normalized().sum(dim=1)[0] == pytest.approx(1, abs=1e-2)


def test_any_scalar_function_is_a_metric() -> None:
    model, clean, corrupted = build(), prompts(1, "none"), prompts(0, "none")

    def metric(logits: Tensor) -> Tensor:
        rows = torch.arange(2)
        last = logits[:, -1]
        return (last[rows, torch.tensor([3, 4])] - last[rows, torch.tensor([6, 7])]).mean()

    for site in ("z", "edges"):
        one = nl.attribution.attribution_patch(model, clean, corrupted, metric, site)
        other = nl.attribution.attribution_patch(model, clean, corrupted, LM_METRIC, site)
        close(one.values, other.values)
        assert one.per_row is None
        assert other.per_row is not None
        assert one.total == pytest.approx(other.total, abs=1e-5)
    shares = nl.attribution.occlusion(model, clean, metric).values
    close(shares, nl.attribution.occlusion(model, clean, LM_METRIC).values / 2)
    shares = nl.attribution.integrated_gradients(model, clean, metric, steps=4).values
    same = nl.attribution.integrated_gradients(model, clean, LM_METRIC, steps=4)
    close(shares, same.values / 2)


def test_weights_get_no_gradient_and_need_none() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    given = (model, clean, corrupted, LM_METRIC, "edges")
    before = nl.attribution.attribution_patch(*given)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        close(nl.attribution.attribution_patch(*given).values, before.values)
    with torch.inference_mode():
        close(nl.attribution.attribution_patch(*given).values, before.values)
        nl.attribution.integrated_gradients(model, clean, LM_METRIC, steps=2)
    assert not model.hook_stack.placements


# Tokens


def straight(model: Any, metric: Any, given: dict[str, Tensor], baseline: Tensor) -> Tensor:
    """Integrated gradients by the midpoint rule with many steps, ``[text, pos]``."""
    end = model.backbone.embed_in(given["input_ids"]).detach()
    start = torch.where(given["attention_mask"][..., None] > 0, baseline, end)
    bound, steps, total = metric.bind(model, given), 60, torch.zeros_like(end)
    for step in range(steps):
        here = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        output = model.run_with_hooks(
            given["input_ids"], [("hook_embed", lambda t, _, here=here: here + 0 * t)], **given
        )
        bound.per_row(metrics.output_logits(output)).sum().backward()
        total += here.grad / steps
    return ((end - start) * total).sum(dim=-1)


@pytest.mark.parametrize("name", CLASSES)
def test_integrated_gradients_are_the_integral(name: str) -> None:
    model, metric, given = build(name, double=True), CLASSES[name], prompts()
    result = nl.attribution.integrated_gradients(model, given, metric, baseline=0, steps=48)
    own = given["attention_mask"].bool()
    expected = straight(model, metric, given, model.backbone.embed_in.weight[0].detach())
    close(result.values[own], expected[own], 2e-3)
    assert result.values[~own].isnan().all()
    assert result.completeness_error < 2e-3
    totals = value(model, metric, given)
    ids = torch.where(own, 0, given["input_ids"])
    none = {**given, "input_ids": ids}
    close(torch.tensor(result.totals), totals - value(model, metric, none))


def test_more_steps_are_more_complete() -> None:
    model, given = build(), prompts()
    errors = [
        nl.attribution.integrated_gradients(model, given, LM_METRIC, steps=steps).completeness_error
        for steps in (2, 8, 32)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_tokens_that_are_not_read_get_nothing() -> None:
    """Without attention a prediction knows its own token only."""
    model = build()
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.attention.dense.weight.zero_()
    metric = metrics.logit_difference(3, 4, pos=2)
    for answer in (
        nl.attribution.integrated_gradients(model, prompts(pad="none"), metric, steps=40),
        nl.attribution.occlusion(model, prompts(pad="none"), metric),
    ):
        others = [at for at in range(POS) if at != 2]
        assert answer.values[:, others].abs().max() < 1e-5
        close(answer.values[:, 2], torch.tensor(answer.totals), 1e-3)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("name", CLASSES)
def test_occlusion_is_one_run_for_each_token(name: str, window: int) -> None:
    model, metric, given = build(name), CLASSES[name], prompts()
    result = nl.attribution.occlusion(model, given, metric, baseline=5, window=window)
    own = given["attention_mask"].bool()
    whole = value(model, metric, given)
    for pos in range(POS):
        ids = given["input_ids"].clone()
        here = torch.zeros_like(own)
        here[:, pos : pos + window] = True
        ids[here & own] = 5
        lost = whole - value(model, metric, {**given, "input_ids": ids})
        close(result.values[own[:, pos], pos], lost[own[:, pos]])


def test_occlusion_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(), prompts()
    whole = nl.attribution.occlusion(model, given, LM_METRIC).values
    monkeypatch.setattr("neox_lab.experiments.attribution.tokens.TOKENS_AT_ONCE", 30)
    close(nl.attribution.occlusion(model, given, LM_METRIC).values, whole)


def test_baselines() -> None:
    model, given = build(), prompts()
    table = model.backbone.embed_in.weight.detach()
    for baseline, vector in (
        (7, table[7]),
        ("mean", table.mean(dim=0)),
        ("zero", torch.zeros(32)),
    ):
        one = nl.attribution.occlusion(model, given, LM_METRIC, baseline=baseline)
        other = nl.attribution.occlusion(model, given, LM_METRIC, baseline=vector)
        close(one.values, other.values)
    check = nl.attribution.integrated_gradients(model, given, LM_METRIC, baseline=7).check()
    exact = nl.attribution.occlusion(model, given, LM_METRIC, baseline=7)
    frame = check.frame.sort_values(["text", "pos"])
    close(torch.tensor(frame["exact"].to_numpy()), torch.tensor(exact.frame["value"].to_numpy()))


def test_ranks_are_of_parts_where_something_happens() -> None:
    """Left of the first difference both sides are rounding, whose order says nothing."""
    model, clean = build(), tokens(3, 30, SMALL["vocab_size"], 0)
    corrupted = clean.clone()
    corrupted[:, 27] = (clean[:, 27] + 7) % SMALL["vocab_size"]
    metric = metrics.logit_difference([3, 4, 5], [6, 7, 8])
    found = nl.attribution.attribution_patch(model, clean, corrupted, metric).check()
    numbers = found.frame[["exact", "estimated"]]
    happens = numbers[(numbers.abs() > 1e-4).any(axis=1)]
    assert 3 < len(happens) < len(numbers) / 8
    expected = happens.rank().corr().iloc[0, 1]
    assert found.rank_correlation == pytest.approx(expected)
    assert abs(found.rank_correlation - numbers.rank().corr().iloc[0, 1]) > 0.1


# Results


def test_results_can_be_saved(tmp_path: Path) -> None:
    model = build()
    nodes = nl.attribution.attribution_patch(model, prompts(1), prompts(0), LM_METRIC, "edges")
    nodes.save(tmp_path / "nodes.json")
    again = AttributionResult.load(tmp_path / "nodes.json")
    torch.testing.assert_close(again.values, nodes.values, rtol=0, atol=0, equal_nan=True)
    assert again.frame.equals(nodes.frame)
    assert repr(again) == repr(nodes)
    with pytest.raises(InputError, match="came from a file"):
        again.check()
    assert compare(again, nodes.values).correlation == pytest.approx(1)
    text = nl.attribution.occlusion(model, prompts(), LM_METRIC)
    text.save(tmp_path / "text.json")
    assert TokenAttribution.load(tmp_path / "text.json").frame.equals(text.frame)
    with pytest.raises(CheckpointError, match="not a saved AttributionResult"):
        AttributionResult.load(tmp_path / "text.json")
    with pytest.raises(CheckpointError):
        AttributionResult.load(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(CheckpointError):
        AttributionResult.load(tmp_path / "broken.json")


def test_results_show_themselves() -> None:
    model = build()
    pair = (model, prompts(1), prompts(0), LM_METRIC)
    for result in (
        nl.attribution.direct_logit_attribution(model, prompts(), LM_METRIC),
        nl.attribution.direct_logit_attribution(model, prompts(), LM_METRIC, by="head"),
        nl.attribution.direct_logit_attribution(model, prompts(), LM_METRIC, by="mlp"),
        nl.attribution.attribution_patch(*pair, "resid_pre"),
        nl.attribution.attribution_patch(*pair, "z"),
        nl.attribution.attribution_patch(*pair, "pattern_by_dest"),
        nl.attribution.attribution_patch(*pair, "edges"),
        nl.attribution.attribution_patch(*pair, "z").check(),
        nl.attribution.integrated_gradients(model, prompts(), LM_METRIC, steps=2),
        nl.attribution.integrated_gradients(model, prompts(), LM_METRIC, steps=2).check(),
    ):
        bundle = result._repr_mimebundle_()
        assert bundle["image/png"].startswith(b"\x89PNG")
        assert len(bundle["text/plain"]) > 40
        assert result.to_svg().startswith("<?xml")
        assert result.to_csv().count("\n") > 2
    top = nl.attribution.attribution_patch(*pair, "z").top(4)
    assert list(top.columns) == ["layer", "pos", "token", "head", "value"]
    assert top["value"].abs().is_monotonic_decreasing
    assert not hasattr(result, "nonsense")


def test_built_in_model_speaks_tokens() -> None:
    model = nl.load()
    text = "The king went to the city of"
    answer = model.to_string(int(model(model.to_tokens(text)).logits[0, -1].argmax()))
    result = nl.attribution.direct_logit_attribution(model, text, answer)
    assert result.total == pytest.approx(float(result.values.sum()), abs=1e-3)
    with pytest.raises(TokenizerError):
        nl.attribution.direct_logit_attribution(model, text, answer + " and more of it")


# Mistakes


def test_graph_names() -> None:
    model = build()
    assert [n.name for n in graph.find_readers(model, "L1H2")] == ["L1H2.q", "L1H2.k", "L1H2.v"]
    assert len(graph.find_writers(model, "all")) == 1 + 3 * 5
    assert len(graph.find_readers(model, ["heads", "mlps", "logits"])) == 3 * 13 + 1
    with pytest.raises(InputError, match="3 layers and 4 heads"):
        graph.find_writers(model, "L7H2")
    with pytest.raises(InputError, match="No writer 'logits'"):
        graph.find_writers(model, ["logits"])
    with pytest.raises(InputError, match=r"holds \(1, 2\).*'L1H2', head 2 of layer 1"):
        graph.find_writers(model, [(1, 2)])  # type: ignore[list-item]


def test_two_outputs_in_one_tuple_are_not_those_of_two_rows() -> None:
    """Their difference is meant; the mean of the two logits would be a number like any other."""
    for one in (nl.patching.logit_difference, nl.patching.class_logit):
        with pytest.raises(InputError, match="two arguments for their difference, or as a list"):
            one((3, 7))
    logits = torch.randn(2, 4, 9)
    rows = logits[[0, 1], -1, [3, 7]].mean()
    assert torch.equal(nl.patching.logit_difference([3, 7])(logits), rows)


def test_mistakes_are_explained() -> None:
    model, clean, corrupted = build(), prompts(1), prompts(0)
    patch, dla = nl.attribution.attribution_patch, nl.attribution.direct_logit_attribution
    with pytest.raises(InputError, match="Did you mean 'resid_pre'"):
        patch(model, clean, corrupted, LM_METRIC, "resid_pr")
    with pytest.raises(HookNameError, match="parallel"):
        patch(model, clean, corrupted, LM_METRIC, "resid_mid")
    with pytest.raises(InputError, match="same tokens"):
        patch(model, clean, clean, LM_METRIC)
    with pytest.raises(InputError, match="tokens"):
        patch(model, clean["input_ids"][:, :4], corrupted["input_ids"], LM_METRIC)
    with pytest.raises(InputError, match="holding one number"):
        patch(model, clean, corrupted, lambda logits: logits[:, -1, 3])
    with pytest.raises(InputError, match="function"):
        patch(model, clean, corrupted, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="steps=-1"):
        patch(model, clean, corrupted, LM_METRIC, steps=-1)
    with pytest.raises(InputError, match="a text classifier"):
        patch(model, clean, corrupted, metrics.class_logit(1))
    with pytest.raises(InputError, match="expected one of component"):
        dla(model, clean, 3, by="heads")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="below 53"):
        dla(model, clean, 60)
    with pytest.raises(InputError, match="text 0 has 5 tokens"):
        dla(model, clean, 3, pos=6)
    with pytest.raises(InputError, match="3 tokens or labels for 2 rows"):
        dla(model, clean, [3, 4, 5])
    with pytest.raises(InputError, match="baseline=99"):
        nl.attribution.occlusion(model, clean, LM_METRIC, baseline=99)
    with pytest.raises(InputError, match="shape"):
        nl.attribution.occlusion(model, clean, LM_METRIC, baseline=torch.zeros(3))
    with pytest.raises(InputError, match="window=0"):
        nl.attribution.occlusion(model, clean, LM_METRIC, window=0)
    with pytest.raises(InputError, match="steps=0"):
        nl.attribution.integrated_gradients(model, clean, LM_METRIC, steps=0)
    with pytest.raises(InputError, match="text=5"):
        nl.attribution.occlusion(model, clean, LM_METRIC).view(text=5)
    tagger = build("GPTNeoXForTokenClassification")
    with pytest.raises(InputError, match="No label 'perhaps'"):
        dla(tagger, clean, "perhaps")
    headless = nl.GPTNeoXModel(nl.GPTNeoXConfig(**SMALL))
    with pytest.raises(NeoxLabError):
        patch(headless, clean, corrupted, lambda logits: logits.sum())
    assert not model.hook_stack.placements


@pytest.mark.filterwarnings("ignore::neox_lab.errors.PromptWarning")
@pytest.mark.parametrize("parallel", [True, False])
def test_gradients_are_whole_where_a_metric_reads_padding(parallel: bool) -> None:
    """Padding in front attends evenly, so no gradient comes back through its scores."""
    model = build(use_parallel_residual=parallel)

    def metric(logits: Any) -> Any:
        return logits.softmax(dim=-1)[..., 5].sum()

    inputs: Any = prompts()
    got = nl.attribution.integrated_gradients(model, inputs, metric, steps=32)
    assert got.completeness_error < 1e-4 < abs(got.total)
