"""Questions about features of cross-layer transcoders, against dense hooks at every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_cross_layer, random_dictionary
from oracle import same, tokens
from patching_oracle import small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.metrics import bind, output_logits
from neox_lab.sae.activations import ReLU
from neox_lab.sae.shared_top_k import SharedTopK

D, F, L = 24, 20, 2
METRIC = nl.patching.logit_difference(3, 7)
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.PromptWarning")


def transcoder(**options: Any) -> Any:
    return random_cross_layer(L, D, F, **options)


def inputs() -> dict[str, Tensor]:
    ids = tokens(2, 7, 41)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return small(use_parallel_residual=request.param)


def acts_of(model: Any, clt: Any, given: dict[str, Tensor]) -> list[Tensor]:
    _, cache = model.run_with_cache(given["input_ids"], attention_mask=given["attention_mask"])
    return [codes.dense() for codes in clt.encode(cache)]


@torch.no_grad()
def test_active_features(model: Any) -> None:
    clt, given = transcoder(jump=True, normalised=True), inputs()
    acts = acts_of(model, clt, given)
    for layer in range(L):
        found = nl.features.active(model, clt.layer(layer), given)
        assert found.site == clt.sites_out[layer]
        assert found.latents == F
        own = given["attention_mask"].bool()
        assert len(found.frame) == int((acts[layer] != 0)[own].sum())
        for latent in found.features["latent"][:5]:
            ours = torch.tensor(found.activations(int(latent), 1))
            same(ours, acts[layer][1, own[1], int(latent)])
        assert f"Feature 3 of {clt.sites_out[layer]}" in found.strip(3).to_html()


@pytest.mark.parametrize("layer", range(L))
@pytest.mark.parametrize("what", [{}, {"received": True, "normalised": True, "skip": True}])
@torch.no_grad()
def test_effects(model: Any, layer: int, what: dict[str, Any]) -> None:
    """A run for each feature in which its row is taken out at its layer and at those after it."""
    clt, given = transcoder(**what), inputs()
    acts = acts_of(model, clt, given)[layer]
    found = nl.features.effects(model, clt.layer(layer), given, METRIC, summed=True, progress=False)
    metric = bind(METRIC, model, given)
    mask = {"attention_mask": given["attention_mask"]}

    def measured(hooks: Any) -> float:
        output = model.run_with_hooks(given["input_ids"], hooks, **mask)
        return float(metric.per_row(output_logits(output)).mean())

    base = measured([])
    for column, latent in enumerate(map(int, found.labels["latent"])):

        def lost(x: Tensor, hook: Any, latent: int = latent) -> Tensor:
            target = clt.sites_out.index(hook.name)
            a = acts[..., latent, None]
            if clt.offset:
                a = (a + clt.offset[target][latent]) * clt.scale[target][latent] * (a != 0)
            row = clt.W_dec(layer, target)[latent]
            gone = a * row * given["attention_mask"][..., None]
            return x - (gone * clt.out[target].scale if clt.out else gone)

        expected = measured([(site, lost) for site in clt.sites_out[layer:]]) - base
        assert abs(float(found.values[column]) - expected) < 1e-4
    assert found.values.abs().max() > 0.05
    if clt.offset:  # what is written jumps where an activation reaches 0; no gradient sees that
        return
    estimate = nl.features.effects(
        model, clt.layer(layer), given, METRIC, summed=True, method="gradient", steps=20
    )
    assert abs(float(estimate.values.sum()) - estimate.total) < 0.05 * (1 + abs(estimate.total))
    assert estimate.check().frame["exact"].notna().any()


@torch.no_grad()
def test_gradient_estimates_are_derivatives(model: Any) -> None:
    clt, given = transcoder(), inputs()
    found = nl.features.effects(model, clt.layer(0), given, METRIC, method="gradient", summed=True)
    acts = acts_of(model, clt, given)[0]
    metric = bind(METRIC, model, given)
    latent = int(found.labels["latent"][int(found.values.abs().argmax())])
    step = 1e-2
    moved = []
    for sign in (1, -1):

        def shift(x: Tensor, hook: Any, sign: int = sign) -> Tensor:
            row = clt.W_dec(0, clt.sites_out.index(hook.name))[latent]
            a = acts[..., latent, None] * given["attention_mask"][..., None]
            return x + sign * step * a * row

        output = model.run_with_hooks(
            given["input_ids"],
            [(site, shift) for site in clt.sites_out],
            attention_mask=given["attention_mask"],
        )
        moved.append(float(metric.per_row(output_logits(output)).mean()))
    slope = (moved[0] - moved[1]) / (2 * step)
    ours = float(found.values[found.labels["latent"].index(str(latent))])
    assert abs(ours + slope) < 1e-2 * abs(slope) + 1e-3


@torch.no_grad()
def test_top_examples_and_pages(tmp_path: Path) -> None:
    model, clt = nl.load(), random_cross_layer(4, 128, 6)
    assert model.config.hidden_size == clt.d_in
    texts = ["The king went to the city.", "The queen of the north saw a ship by the sea."] * 2
    options = {"top": 3, "window": 4, "context": 16, "progress": False}
    whole = nl.features.top_examples(model, clt, texts, **options)
    assert whole.source.latents == 24
    for layer in range(4):
        one = nl.features.top_examples(model, clt.layer(layer), texts, **options)
        _, cache = model.run_with_cache(texts[1], clt.sites_in[layer])
        encoded = clt.encode_layer(layer, cache[clt.sites_in[layer]]).dense()[0, 1:16]
        written = sum(clt.W_dec(layer, j) for j in range(layer, 4))
        same(one.source.directions, written)
        same(whole.source.directions[6 * layer : 6 * layer + 6], written)
        for latent in range(6):
            at = 6 * layer + latent
            assert whole.source.name_of(at) == one.source.name_of(latent)
            assert one.source.name_of(latent) == f"layer {layer}, feature {latent}"
            same(whole.highest[at], one.highest[latent])
            assert float(one.highest[latent]) >= float(encoded[:, latent].max()) - 1e-4
    folder = nl.features.pages(whole, tmp_path / "pages", [0, 7]).parent
    names = {path.name for path in folder.iterdir()}
    assert "index.html" in names
    assert len(names) == 3
    assert "layer 1, feature 1" in "".join(p.read_text() for p in folder.iterdir())
    with pytest.raises(InputError, match="made for 64 numbers"):
        nl.features.top_examples(model, random_cross_layer(2), texts, **options)


def test_what_is_refused(model: Any) -> None:
    clt, text = transcoder(), inputs()
    whole: Any = clt
    for ask in (
        lambda what: nl.features.active(model, what, text),
        lambda what: nl.features.effects(model, what, text, METRIC),
        lambda what: nl.features.direct(model, what, text, 3),
        lambda what: nl.features.circuit(model, [what], text, METRIC),
    ):
        with pytest.raises(InputError, match=r"features in each of 2 layers; ask of one: \.layer"):
            ask(whole)
        with pytest.raises(InputError, match="see its encode"):
            ask(
                nl.sae.Crosscoder(
                    torch.ones(2, D, 3), torch.ones(3), torch.ones(2, 3, D), torch.ones(2, D),
                    ReLU(), sites=clt.sites_out, kind="ReLU",
                )
            )  # fmt: skip
    with pytest.raises(InputError, match="writes to several layers; direct shares"):
        nl.features.direct(model, clt.layer(0), text, 3)
    for given in ([clt.layer(0)], {"a": clt.layer(1)}):
        with pytest.raises(InputError, match="writes to several layers; a circuit"):
            nl.features.circuit(model, given, text, METRIC)  # type: ignore[arg-type]
    for wrong in (-1, L, 0.5, None, "0", True):
        with pytest.raises(InputError, match="layer="):
            clt.layer(wrong)
    clt.activation = SharedTopK(3)
    with pytest.raises(HookError, match="JumpReLU"):
        nl.features.active(model, clt.layer(0), text)
    with pytest.raises(InputError, match="JumpReLU"):
        nl.features.top_examples(model, clt, [[1, 2, 3]])
    assert not model.hook_stack.placements


@torch.no_grad()
def test_a_layer_is_spliced_in_with_all_the_others(model: Any) -> None:
    clt = transcoder()
    layer, ids = clt.layer(1), inputs()["input_ids"]
    assert repr(layer) == f"{clt!r}.layer(1)"
    with model.spliced(layer):
        names = set(model.hook_names)
    with model.spliced(clt):
        assert names == set(model.hook_names)
        _, cache = model.run_with_cache(ids)
    same(layer.encode(cache[layer.site_in]).dense(), cache[f"{layer.site_out}.hook_sae_acts"])
    assert layer.kind == clt.kind
    with pytest.raises(HookError, match="another dictionary is spliced in"):
        model.spliced(clt.layer(0), random_dictionary(D, clt.sites_out[1])).__enter__()
