"""Effects of features against hand-written hooks, one run for each feature and position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import dense, random_dictionary
from oracle import same
from patching_oracle import CLASSES, prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.metrics import bind, output_logits
from neox_lab.features import FeatureEffects

D = 24
MLP, IN, RESID = "blocks.0.hook_mlp_out", "blocks.0.mlp.hook_in", "blocks.0.hook_resid_post"
SITES: dict[str, dict[str, Any]] = {
    "mlp": {"site": MLP},
    "resid": {"site": RESID, "kind": "ReLU"},
    "transcoder": {"site": IN, "site_out": MLP, "skip": True, "kind": "ReLU"},
}
METRICS = {
    "causal-lm": nl.patching.logit_difference(3, 7),
    "sequence-classification": nl.patching.class_logit(1, 2),
    "token-classification": nl.patching.tag_logit(-1, 1, 2),
    "question-answering": nl.patching.span_logit(1, 2),
}
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.PromptWarning")


def dictionary(where: str = "mlp", **options: Any) -> Any:
    return random_dictionary(D, **{"latents": 20} | SITES[where] | options)


def left_padded(ids: Tensor) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Hands:
    """Runs with a dense matrix of other activations, and no splice."""

    def __init__(self, model: Any, ours: Any, inputs: Any, metric: Any) -> None:
        self.model, self.ours, self.inputs = model, ours, inputs
        self.metric = bind(metric, model, inputs)
        _, cache = model.run_with_cache(
            inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
        self.x, self.target = cache[ours.site_in], cache[ours.site_out]
        self.acts = ours.encode(self.x).dense()

    def metrics(self, acts: Tensor) -> Tensor:
        """The metric of each text ``[batch]`` with other activations."""
        error = self.target - dense(self.ours, self.acts, self.x)
        site = dense(self.ours, acts, self.x) + error
        output = self.model.run_with_hooks(
            self.inputs["input_ids"],
            [(self.ours.site_out, lambda x, hook: site)],
            attention_mask=self.inputs["attention_mask"],
        )
        return self.metric.per_row(output_logits(output))


def one_by_one(hands: Hands, after: Tensor, latents: list[int], summed: bool) -> Tensor:
    plain, found = hands.metrics(hands.acts), []
    for at in [slice(None)] if summed else range(after.shape[1]):
        for latent in latents:
            acts = hands.acts.clone()
            acts[:, at, latent] = after[:, at, latent]
            found.append(hands.metrics(acts) - plain)
    values = torch.stack(found, dim=1)
    return values if summed else values.unflatten(1, (-1, len(latents)))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
@torch.no_grad()
def test_exact_effects_are_those_of_a_run_each(
    parallel: bool, where: str, summed: bool, pairs: bool
) -> None:
    model, ours = small(use_parallel_residual=parallel), dictionary(where)
    clean, corrupted = map(left_padded, prompts(2, 6, 2))
    metric = METRICS["causal-lm"]
    hands = Hands(model, ours, clean, metric)
    after = torch.zeros_like(hands.acts)
    if pairs:
        after = Hands(model, ours, corrupted, metric).acts
    found = nl.features.effects(
        model,
        ours,
        clean,
        metric,
        corrupted if pairs else None,
        summed=summed,
        progress=False,
    )
    own = clean["attention_mask"].bool()[..., None]
    active = ((hands.acts != 0) | (after != 0)) & own
    latents = active.flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
    assert found.labels["latent"] == [str(latent) for latent in latents]
    expected = one_by_one(hands, after, latents, summed)
    assert found.per_row is not None
    same(found.per_row, expected, 2e-5)
    same(found.values, expected.mean(dim=0), 1e-4)
    assert expected.abs().max() > 0.02
    before = (hands.acts * own)[..., latents]
    same(found.before, (before.sum(dim=1) if summed else before).mean(dim=0))
    whole = float((hands.metrics(after) - hands.metrics(hands.acts)).mean())
    assert found.total == pytest.approx(whole, abs=1e-4)
    differs = (active & (hands.acts != after)).any(dim=0)[:, latents]
    assert torch.equal(found.is_computed, differs.any(dim=0) if summed else differs)


def test_interrupted_effects_say_so() -> None:
    """Cells that were not measured look like cells where no activation differs."""

    def leave(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    asked = small(), dictionary(), left_padded(prompts(2, 6, 2)[0]), METRICS["causal-lm"]
    whole = nl.features.effects(*asked, progress=False)
    part = nl.features.effects(*asked, progress=leave, budget=1)
    assert part.title == f"{whole.title} (interrupted: not all is measured)"
    assert int(part.is_computed.sum()) < int(whole.is_computed.sum())


@pytest.mark.parametrize("head", CLASSES)
@torch.no_grad()
def test_every_class_with_a_head(head: str) -> None:
    model, ours = small(head), dictionary()
    clean = left_padded(prompts(2, 6, 2)[0])
    hands = Hands(model, ours, clean, METRICS[head])
    found = nl.features.effects(model, ours, clean, METRICS[head], summed=True, progress=False)
    latents = list(map(int, found.labels["latent"]))
    expected = one_by_one(hands, torch.zeros_like(hands.acts), latents, True)
    same(found.values, expected.mean(dim=0), 1e-4)


@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("pairs", [True, False])
def test_estimates_are_gradients_of_dense_hooks(where: str, pairs: bool) -> None:
    model, ours = small(), dictionary(where)
    clean, corrupted = map(left_padded, prompts(2, 6, 2))
    metric = METRICS["causal-lm"]
    with torch.no_grad():
        hands = Hands(model, ours, clean, metric)
        after = torch.zeros_like(hands.acts)
        after = Hands(model, ours, corrupted, metric).acts if pairs else after
    acts = hands.acts.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(hands.metrics(acts).sum(), acts)
    found = nl.features.effects(
        model, ours, clean, metric, corrupted if pairs else None, method="gradient"
    )
    latents = list(map(int, found.labels["latent"]))
    own = clean["attention_mask"][..., None]
    expected = ((after - hands.acts) * gradient * own).detach()[..., latents]
    assert found.per_row is not None
    same(found.per_row, expected, 2e-5)
    assert all(parameter.grad is None for parameter in ours.parameters())
    summed = nl.features.effects(
        model, ours, clean, metric, corrupted if pairs else None, method="gradient", summed=True
    )
    same(summed.values, found.values.sum(dim=0), 1e-4)


def test_integrated_gradients_sum_to_the_whole_change() -> None:
    model, ours = small(), dictionary("resid")
    clean, corrupted = map(left_padded, prompts(2, 6, 2))
    gaps = []
    for steps in (0, 2, 8, 32):
        found = nl.features.effects(
            model, ours, clean, METRICS["causal-lm"], corrupted, method="gradient", steps=steps
        )
        gaps.append(abs(float(found.values.sum()) - found.total))
    assert gaps[0] > 10 * gaps[2]
    assert gaps[3] < 1e-3 * abs(found.total) + 1e-4


@pytest.mark.parametrize("summed", [True, False])
def test_an_estimate_is_checked_by_what_happens(summed: bool) -> None:
    model, ours = small(), dictionary("resid")
    clean = left_padded(prompts(2, 6, 2)[0])
    options: dict[str, Any] = {"summed": summed, "progress": False}
    metric = METRICS["causal-lm"]
    estimated = nl.features.effects(model, ours, clean, metric, method="gradient", **options)
    exact = nl.features.effects(model, ours, clean, metric, **options)
    agreement = estimated.check(k=3, features=5)
    rows = agreement.frame
    assert rows["latent"].nunique() == 5
    sizes = estimated.values.abs() if summed else estimated.values.abs().amax(dim=0)
    largest = {estimated.labels["latent"][at] for at in sizes.topk(5).indices.tolist()}
    assert set(rows["latent"]) == largest
    on = ["latent"] if summed else ["latent", "pos"]
    both = rows.merge(exact.frame, on=on)
    assert len(both) == len(rows)
    assert (both["exact"] - both["value"]).abs().max() < 1e-4
    assert agreement.largest_miss == pytest.approx((both["estimated"] - both["value"]).abs().max())
    with pytest.raises(InputError, match="are measured"):
        exact.check()
    with model.spliced(ours), pytest.raises(HookError, match="Other functions are spliced in"):
        estimated.check()


@pytest.mark.parametrize("steps", [0, 2])
def test_attribution_patching_reaches_features(steps: int) -> None:
    model, ours = small(), dictionary("transcoder")
    clean, corrupted = map(left_padded, prompts(2, 6, 2))
    metric, acts = METRICS["causal-lm"], f"{MLP}.hook_sae_acts"
    each = nl.features.effects(model, ours, corrupted, metric, clean, method="gradient")
    with model.spliced(ours):
        found = nl.attribution.attribution_patch(model, clean, corrupted, metric, acts, steps=steps)
        named = nl.attribution.attribution_patch(
            model, clean, corrupted, metric, acts, steps=steps, positions={"b": 3, "a": 1}
        )
        exact = nl.patching.sweep(model, clean, corrupted, metric, acts, progress=False)
        agreement = found.check()
    assert found.axes == ("pos",)
    if not steps:
        same(found.values, each.values.sum(dim=1), 1e-4)
    same(torch.tensor(agreement.frame.sort_values("pos")["exact"].to_numpy()), exact.effect())
    assert found.per_row is not None and named.per_row is not None
    for row, start in ((0, 2), (1, 0)):  # counted in each text's own tokens
        same(named.per_row[row], found.per_row[row][[start + 3, start + 1]])


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    model, ours = small(), dictionary()
    clean = prompts(2, 6, 2)[0]
    found = nl.features.effects(model, ours, clean, METRICS["causal-lm"], progress=False)
    found.save(tmp_path / "effects.safetensors")
    again = FeatureEffects.load(tmp_path / "effects.safetensors")
    assert again == found
    assert {"pos", "token", "latent", "value", "before", "after"} <= set(found.frame)
    assert (found.frame["before"] > 0).all()
    assert f"f{found.top(1)['latent'][0]}" in repr(found)
    assert found.to_png().startswith(b"\x89PNG")


@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("parallel", [True, False])
@torch.no_grad()
def test_direct_shares_sum_to_the_logit(where: str, parallel: bool) -> None:
    model, ours = small(use_parallel_residual=parallel), dictionary(where)
    inputs = left_padded(prompts(2, 6, 2)[0])
    found = nl.features.direct(model, ours, inputs, 3, 7)
    logits = model(**inputs).logits[:, -1]
    assert found.per_row is not None
    same(found.per_row.sum(dim=1), logits[:, 3] - logits[:, 7], 1e-4)
    assert found.total == pytest.approx(float((logits[:, 3] - logits[:, 7]).mean()), abs=1e-4)
    _, cache = model.run_with_cache(
        **{"inputs": inputs["input_ids"]} | {"attention_mask": inputs["attention_mask"]}
    )
    acts = ours.encode(cache[ours.site_in][:, -1]).dense()
    scale = cache["ln_final.hook_scale"][:, -1]
    along = (model.W_U[:, 3] - model.W_U[:, 7]) * model.backbone.final_layer_norm.weight
    rows = ours.W_dec - ours.W_dec.mean(dim=-1, keepdim=True)
    expected = acts * (rows @ along) / scale
    for name, column in zip(found.labels["component"], found.per_row.T, strict=True):
        if name.startswith("f"):
            same(column, expected[:, int(name[1:])], 1e-4)
    shown = sum(name.startswith("f") for name in found.labels["component"])
    assert shown == int((acts != 0).any(dim=0).sum()) > 2
    assert found.check().correlation > 0.5


def test_what_cannot_be_asked() -> None:
    model, ours = small(), dictionary()
    clean, metric = prompts(2, 6, 2)[0], METRICS["causal-lm"]

    def ask(**given: Any) -> Any:
        arguments = {"model": model, "dictionary": ours, "inputs": clean, "metric": metric}
        return nl.features.effects(**arguments | {"progress": False} | given)

    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dictionary": 3}, InputError, "expected a Dictionary"),
        ({"model": 3}, InputError, "model"),
        ({"method": "both"}, InputError, "method"),
        ({"steps": 3}, InputError, "steps are of method"),
        ({"steps": -1, "method": "gradient"}, InputError, "steps"),
        ({"summed": 2}, InputError, "summed"),
        ({"corrupted": clean}, InputError, "same tokens"),
        ({"corrupted": clean[:, :3]}, InputError, "tokens"),
        ({"dictionary": random_dictionary(32, MLP)}, HookError, "belongs to another model"),
    ]
    silent = dictionary(kind="ReLU")
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    wrong.append(({"dictionary": silent}, InputError, "No feature"))
    for given, error, message in wrong:
        with pytest.raises(error, match=message):
            ask(**given)
        assert not model.hook_stack.placements
    with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: None)], must_fire=False):
        with pytest.raises(HookError, match="Hooks are in place"):
            ask()
    with pytest.raises(InputError, match="does not write to the residual stream"):
        nl.features.direct(model, dictionary(site="blocks.0.attn.hook_z"), clean, 3)
    with pytest.raises(InputError, match="entries"):
        nl.patching.ablate(model, clean, metric, "mlp_out", positions="all", progress=False)
