"""Pairs of prompts, ablation, other names, results, and what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import same
from patching_oracle import one_by_one, prompts, put, small

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.metrics import output_logits
from neox_lab.experiments.patching import act_patch
from neox_lab.experiments.patching.ablation import _draw
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.experiments.patching.sites import SITES
from neox_lab.gym import planting

difference = nl.patching.logit_difference(3, 7)


def swept(model: Any, clean: Any, corrupted: Any, metric: Any = difference, **more: Any) -> Any:
    return nl.patching.sweep(model, clean, corrupted, metric, progress=False, **more)


@pytest.fixture(scope="module")
def reader() -> Any:
    """A model that reads text, a token for each character."""
    model = small(vocab_size=96, pad_token_id=0)
    model.tokenizer = planting.tokenizer()
    return model


def test_pairs_of_different_lengths_are_aligned_at_their_ends(reader: Any) -> None:
    clean, corrupted = ["abcd", "xyabcd"], ["abed", "xwabed"]
    metric = nl.patching.logit_difference(["a", "b"], ["c", "d"])
    both = swept(reader, clean, corrupted, metric)
    for pair, length in enumerate((4, 6)):
        alone = nl.patching.logit_difference("ab"[pair], "cd"[pair])
        single = swept(reader, clean[pair], corrupted[pair], alone)
        same(both.samples[pair, :, -length:], single.values)
        assert float(both.base_samples[pair]) == pytest.approx(single.corrupted, abs=1e-5)
    assert both.labels["pos"] == ["-6", "-5", "a", "b", "c/e", "d"]
    same(both.values, both.samples.mean(dim=0))


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "z", "k"])
def test_named_positions(site: str) -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    whole = swept(model, clean, corrupted, site=site)
    named = swept(model, clean, corrupted, site=site, positions={"a": [1, 3], "b": -1, "c": (2, 2)})
    assert named.labels["pos"] == ["a", "b", "c"]
    for pair, at in enumerate((1, 3)):
        same(named.samples[pair, :, 0], whole.samples[pair, :, at])
    same(named.samples[:, :, 1], whole.samples[:, :, 4])
    same(named.samples[:, :, 2], whole.samples[:, :, 2])


def test_named_positions_keep_their_sides_when_noising() -> None:
    model = small()
    clean, corrupted = prompts(1, 5, 1)
    there = swept(model, clean, corrupted, direction="noising", positions={"a": (2, 4)})
    back = swept(model, corrupted, clean, positions={"a": (4, 2)})
    same(there.values, back.values)
    with pytest.raises(InputError, match="another name"):
        swept(model, clean, corrupted, positions={"a": (2, 4), "b": (3, 4)})
    with pytest.raises(InputError, match="all positions"):
        swept(model, clean, corrupted, site="pattern_by_dest", positions={"a": (2, 4)})


def test_named_positions_of_prompts_of_unequal_length() -> None:
    model = small()
    clean, corrupted = prompts(1, 6, 1)[0], prompts(1, 4, 1, seed=3)[1]
    got = swept(model, clean, corrupted, site="z", positions={"there": (4, 2)})
    _, cache = model.run_with_cache(clean)
    site = SITES["z"]
    for layer in range(2):
        for head in range(3):
            name = f"blocks.{layer}.attn.hook_z"
            value = cache[name][:, 2:6]  # column 4 becomes column 2
            hook = [(name, lambda x, _, v=value, h=head: put(x, v, site, {"pos": 2, "head": h}))]
            with torch.no_grad():
                logits = output_logits(model.run_with_hooks(corrupted, hook))
            same(got.values[layer, 0, head], difference(logits))
    with pytest.raises(InputError, match="same length"):
        swept(model, clean, corrupted, site="z_all_pos", positions={"there": (4, 2)})


def test_answers_of_each_pair() -> None:
    model = small()
    clean, corrupted = prompts(3, 5, 1)
    metric = nl.patching.logit_difference([3, 4, 5], [7, 8, 9], pos=[-1, 2, 4])
    got = swept(model, clean, corrupted, metric)
    same(got.values, one_by_one(model, clean, corrupted, metric, "resid_pre"))
    for row in range(3):
        alone = nl.patching.logit_difference(3 + row, 7 + row, pos=[-1, 2, 4][row])
        single = swept(model, clean[row : row + 1], corrupted[row : row + 1], alone)
        same(got.samples[row], single.values)
        assert float(got.base_samples[row]) == pytest.approx(single.corrupted, abs=1e-5)


@pytest.mark.parametrize("value", ["zero", "mean", "mean_by_pos", "resample"])
@pytest.mark.parametrize("site", ["z_all_pos", "mlp_out"])
def test_ablation(value: Any, site: str) -> None:
    model = small()
    texts, _ = prompts(3, 5, 1)
    got = nl.patching.ablate(model, texts, difference, site, value, progress=False)
    assert got.direction == "ablation"
    with torch.no_grad():
        assert got.clean == pytest.approx(float(difference(model(texts).logits)), abs=1e-5)
    _, cache = model.run_with_cache(texts)
    place = SITES[site]
    rows = _draw(Prompts(texts, None), Prompts(texts, None), True, 0, False)
    for layer in range(2):
        name = f"blocks.{layer}.{place.hook}"
        own = cache[name]
        other = {
            "zero": torch.zeros_like(own),
            "mean": own.flatten(0, 1).mean(dim=0).expand_as(own),
            "mean_by_pos": own.mean(dim=0, keepdim=True).expand_as(own),
            "resample": own[rows],
        }[value]
        at = {"head": 1} if place.by_head else {"pos": 3}
        with torch.no_grad():
            output = model.run_with_hooks(
                texts, [(name, lambda x, _, o=other, at=at: put(x, o, place, at))]
            )
        same(got.values[layer, at.get("head", 3)], difference(output_logits(output)))


def test_ablation_explains_what_does_not_fit() -> None:
    model = small()
    texts, others = prompts(1, 5, 1)[0], prompts(4, 6, 1)[0]
    ablate = nl.patching.ablate
    with pytest.raises(InputError, match="give others"):
        ablate(model, texts, difference, value="resample")
    with pytest.raises(InputError, match="same length"):
        ablate(model, texts, difference, value="mean_by_pos", reference=others)
    with pytest.raises(InputError, match="mean_by_pos"):
        ablate(model, texts, difference, "pattern_all_pos", "mean")
    with pytest.raises(InputError, match="'zero'"):
        ablate(model, texts, difference, value="zeros")  # type: ignore[arg-type]
    got = ablate(model, texts, difference, value="mean", reference=others, progress=False)
    with pytest.raises(InputError, match="effect"):
        got.normalized()


def test_other_names_give_the_same_tensors() -> None:
    model = small()
    clean, corrupted = prompts(2, 4, 1)
    _, cache = model.run_with_cache(clean)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1, 3] - logits[:, -1, 7]).mean()

    def named(name: str) -> torch.Tensor:
        return getattr(act_patch, f"get_act_patch_{name}")(model, corrupted, cache, metric)

    sites = {
        "resid_pre": "resid_pre",
        "attn_out": "attn_out",
        "mlp_out": "mlp_out",
        "attn_head_pattern_by_pos": "pattern_by_dest",
        "attn_head_pattern_dest_src_pos": "pattern_by_dest_source",
    }
    for part, site in {"out": "z", "q": "q", "k": "k", "v": "v"}.items():
        sites[f"attn_head_{part}_by_pos"] = site
        sites[f"attn_head_{part}_all_pos"] = f"{site}_all_pos"
    found = {name: named(name) for name in sites}
    for name, site in sites.items():
        same(found[name], swept(model, clean, corrupted, site=site).values)
    every = named("attn_head_by_pos_every")
    by_query = found["attn_head_pattern_by_pos"].transpose(1, 2)
    same(every[0], found["attn_head_out_by_pos"])
    same(every[4], by_query)
    same(named("attn_head_all_pos_every")[3], found["attn_head_v_all_pos"])
    same(named("block_every")[1], found["attn_out"])


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_direct_paths(component: Any) -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(2, 4, 1)
    _, cache = model.run_with_cache(clean)
    _, own = model.run_with_cache(corrupted)
    found = nl.patching.get_act_patch_direct_path(
        model, corrupted, cache, own, difference, 0, 2, component, verbose=False
    )
    assert not found[0].any()
    change = cache["result", 0][:, :, 2] - own["result", 0][:, :, 2]
    for layer, head in ((1, 0), (2, 1)):

        def add(x: torch.Tensor, hook: Any, head: int = head) -> None:
            x[:, :, head] += change

        with torch.no_grad():
            hooks = [(f"blocks.{layer}.hook_{component}_input", add)]
            logits = model.run_with_hooks(corrupted, hooks).logits
        same(found[layer, head], difference(logits))


@pytest.mark.parametrize("all_logits", [True, False])
def test_an_interrupt_keeps_what_is_done(all_logits: bool) -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    metric = (lambda logits: logits[:, -1, 3].mean()) if all_logits else difference
    whole = swept(model, clean, corrupted, metric, site="z")
    told = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    got = nl.patching.sweep(model, clean, corrupted, metric, "z", budget=9, progress=stop)
    assert not got.complete and "Interrupted" in repr(got)
    known = ~got.values.isnan()
    assert 0 < int(known.sum()) < known.numel()
    if all_logits:
        same(got.values[known], whole.values[known])
    else:  # some pairs of some cells
        there = ~got.samples.isnan()
        same(got.samples[there], whole.samples[there])
    assert told[-1][0] < told[-1][1]
    assert len(got.top(1000)) == int(known.sum())


def test_a_question_in_a_metric_is_no_answer_when_interrupted() -> None:
    """Alone the inner sweep would return what there is, and a cell of the outer one be of that."""
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    asked: list[int] = []

    def leave(done: int, total: int) -> None:
        asked[-1] += 1
        if len(asked) == 4 and asked[-1] == 2:
            raise KeyboardInterrupt

    def metric(logits: Any) -> Any:
        asked.append(0)
        found = nl.patching.sweep(model, clean, corrupted, difference, progress=leave, budget=9)
        return found.values.sum() + 0 * logits.sum()

    got = swept(model, clean, corrupted, metric)
    known = got.values[~got.values.isnan()]
    assert len(asked) == 4 and not got.complete
    assert bool((known == known[0]).all())
    asked.clear()  # whoever asks next may have a part again
    found = nl.patching.sweep(
        model, clean, corrupted, difference, budget=9, progress=lambda *_: swept_twice(asked)
    )
    assert not found.complete


def swept_twice(asked: list[int]) -> None:
    """Interrupt the second time."""
    asked.append(0)
    if len(asked) == 2:
        raise KeyboardInterrupt


def test_result(tmp_path: Path) -> None:
    model = small()
    clean, corrupted = prompts(4, 5, 1)
    got = swept(model, clean, corrupted, site="z")
    frame = got.frame
    assert list(frame) == ["layer", "pos", "token", "head", "value", "effect", "standard_error"]
    row = frame[(frame.layer == 1) & (frame.pos == 3) & (frame["head"] == 2)].iloc[0]
    assert row.value == pytest.approx(float(got.values[1, 3, 2]))
    best = got.top(1).iloc[0]
    assert abs(best.effect) == pytest.approx(float(got.effect().abs().max()))
    effects = got.samples - got.base_samples[:, None, None, None]
    same(got.standard_error(), effects.std(dim=0) / 2)  # of four pairs' effects
    low, high = got.interval()
    assert bool(((low <= got.effect() + 1e-6) & (got.effect() <= high + 1e-6)).all())
    same(got.normalized() * (got.clean - got.corrupted) + got.corrupted, got.values)
    got.save(tmp_path / "result.safetensors")
    again = nl.patching.PatchResult.load(tmp_path / "result.safetensors")
    assert torch.equal(again.values, got.values) and again.labels == got.labels
    assert torch.equal(again.p_values(), got.p_values())
    model.run_with_cache(clean)[1].save(tmp_path / "cache.safetensors")
    with pytest.raises(nl.errors.CheckpointError):
        nl.patching.PatchResult.load(tmp_path / "cache.safetensors")
    for view in (got.view(), got.view(head=1), got.view(layer=0, normalized=True)):
        assert view.to_png()[:4] == b"\x89PNG"
    assert got.view(head=1).values == pytest.approx(got.effect()[:, :, 1].numpy())
    strongest = got.view().values
    assert abs(strongest).max() == pytest.approx(float(got.effect().abs().max()))
    row = got.view(head=1, layer=0)
    assert (row.row_labels, row.column_labels) == (["change"], got.labels["pos"])
    with pytest.raises(InputError, match="No axis"):
        got.view(neuron=1)
    assert got.to_csv().startswith("layer,pos,token,head")


def test_activations_of_any_run(reader: Any) -> None:
    """A cache of another text, of a run that was steered, or one that was written by hand."""
    clean, corrupted, other = "the king went", "the wing went", "a dog is here"
    ids = {text: reader.to_tokens(text) for text in (clean, corrupted, other)}
    halve = [("blocks.0.hook_mlp_out", lambda x, _: x / 2)]
    with reader.hooks(fwd_hooks=halve):
        _, steered = reader.run_with_cache(other)
    metric = nl.patching.logit_difference("a", "b")
    for site in ("resid_post", "z", "pattern_all_pos"):
        got = swept(reader, steered, corrupted, metric, site=site)
        layer, at = 1, {"pos": 5} if "pos" in SITES[site].axes else {}
        at |= {"head": 2} if "head" in SITES[site].axes else {}
        name = f"blocks.{layer}.{SITES[site].hook}"
        value = steered[name]
        hook = [(name, lambda x, _, v=value, s=SITES[site], a=at: put(x, v, s, a))]
        with torch.no_grad():
            logits = reader.run_with_hooks(ids[corrupted], hook).logits[0, -1]
        first, second = (reader.to_single_token(text) for text in "ab")
        same(got.values[(layer, *at.values())], logits[first] - logits[second])
    _, emptied = reader.run_with_cache(corrupted, "blocks.*.attn.hook_z")
    for name in emptied:
        emptied[name].zero_()
    by_hand = swept(reader, emptied, corrupted, metric, site="z_all_pos")
    ablated = nl.patching.ablate(reader, corrupted, metric, "z_all_pos", "zero", progress=False)
    same(by_hand.values, ablated.values)


def test_statistics_need_a_metric_of_pairs() -> None:
    model = small()
    got = swept(model, *prompts(2, 4, 1), lambda logits: logits.mean())
    with pytest.raises(InputError, match="named metrics"):
        got.interval()


def test_errors_explain(reader: Any) -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    with pytest.raises(InputError, match=r"Pair 0: the clean prompt has .* tokens"):
        swept(reader, "The king went", "The king went to the house")
    packed = {"input_ids": clean, "position_ids": torch.arange(clean.shape[1])[None] % 2}
    with pytest.raises(InputError, match="the rows of a batch"):
        swept(model, packed, corrupted)
    with pytest.raises(InputError, match="has head_mask, which would be left out"):
        swept(model, {"input_ids": clean, "head_mask": clean * 0}, corrupted)
    with pytest.raises(InputError, match="same tokens"):
        swept(model, clean, torch.stack((corrupted[0], clean[1])))
    with pytest.raises(InputError, match="2 clean and 1 corrupted"):
        swept(model, clean, corrupted[:1])
    with pytest.raises(InputError, match="holding one number"):
        swept(model, clean, corrupted, lambda logits: logits[:, -1, 3])
    with pytest.raises(nl.errors.TokenizerError, match="exactly one"):
        swept(reader, "The king", "The wing", nl.patching.logit_difference("ki", "w"))
    with pytest.raises(InputError, match="'resid_pre'"):
        swept(model, clean, corrupted, site="resid_pres")
    with pytest.raises(InputError, match="same axes"):
        swept(model, clean, corrupted, site=["z", "resid_pre"])
    with pytest.raises(InputError, match="text classifier"):
        swept(model, clean, corrupted, nl.patching.class_logit(1))
    with pytest.raises(InputError, match="direction"):
        swept(model, clean, corrupted, direction="sideways")
    with pytest.raises(InputError, match="budget"):
        swept(model, clean, corrupted, budget=0)
    with pytest.raises(InputError, match="positions"):
        swept(model, clean, corrupted, positions={"far": 9})
    with pytest.raises(InputError, match="function"):
        swept(model, clean, corrupted, "logit difference")
    with pytest.raises(HookError, match="Hooks are in place"):
        with model.hooks([("blocks.0.hook_resid_pre", lambda x, _: None)], must_fire=False):
            swept(model, clean, corrupted)
    model.config.hidden_dropout = 0.5
    dropping = nl.GPTNeoXForCausalLM(model.config).train()
    with pytest.raises(InputError, match=r"eval\(\)"):
        swept(dropping, clean, corrupted)


def test_nothing_is_left_behind() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    with torch.no_grad():
        before = model(clean).logits
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        swept(model, clean, corrupted, lambda logits: 1 / 0)
    _, cache = model.run_with_cache(clean)
    kept = {name: cache[name].clone() for name in cache}
    for site in ("z", "resid_pre", "k", "pattern_all_pos"):
        swept(model, cache, corrupted, site=site)
    assert all(torch.equal(cache[name], tensor) for name, tensor in kept.items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(clean).logits, before)
    assert not model.hook_stack.placements


def test_planted_heads_are_found_exactly() -> None:
    model = nl.gym.planted()
    clean, corrupted = "kaqmwxa", "kbqmwxa"  # what follows a? q, if a came before q
    metric = nl.patching.logit_difference("q", "m")
    effect = swept(model, clean, corrupted, metric, site="z_all_pos").normalized()
    found = {(layer, head) for layer, head in (effect.abs() > 1e-4).nonzero().tolist()}
    assert found == set(planting.HEADS.values())
    same(effect[planting.HEADS["induction"]], torch.tensor(1.0))
    by_pos = swept(model, clean, corrupted, metric, site="z").normalized()
    places = {tuple(cell) for cell in (by_pos.abs() > 1e-4).nonzero().tolist()}
    assert places == {(0, 2, 1), (1, 6, 2)}  # the note about a stands at q, and is read at the end
    keys = swept(model, clean, corrupted, metric, site="k").normalized()
    assert {tuple(cell) for cell in (keys.abs() > 1e-4).nonzero().tolist()} == {(1, 2, 2)}
    zeros = nl.patching.ablate(model, clean, metric, value="zero", progress=False).effect()
    assert {(a, b) for a, b in (zeros.abs() > 1e-4).nonzero().tolist()} == set(
        planting.HEADS.values()
    )


def test_main_heads_of_the_built_in_model_by_patching_and_by_ablation() -> None:
    """Heads that bring the right name back are those that it cannot do without.

    Both need not agree in every head: ablation also counts what a head does for any prompt, and
    other heads may stand in for one that is gone. The main heads are the same.
    """
    model = nl.load()
    pairs = nl.gym.TASKS["ioi"].pairs(40)
    metric = nl.patching.logit_difference([p.correct for p in pairs], [p.wrong for p in pairs])
    clean, corrupted = [p.clean for p in pairs], [p.corrupted for p in pairs]
    patched = swept(model, clean, corrupted, metric, site="z_all_pos")
    assert patched.clean > 1 > patched.corrupted  # there is something to carry
    # The mean over both orders of names says nothing about who acts twice.
    ablated = nl.patching.ablate(
        model,
        clean,
        metric,
        "z_all_pos",
        "mean_by_pos",
        reference=clean + corrupted,
        progress=False,
    )
    brings, costs = patched.effect().flatten(), -ablated.effect().flatten()
    main = (brings > 0.2 * brings.max()).nonzero().flatten().tolist()
    by_cost = costs.argsort(descending=True).tolist()
    best = int(brings.argmax())
    assert best in by_cost[:2] and costs[best] > 0, (main, by_cost)
    found = set(main) & set(by_cost[: len(main) + 1])
    assert 2 * len(found) > len(main), (main, by_cost)
    assert float(torch.corrcoef(torch.stack((brings, costs)))[0, 1]) > 0.5
