"""Two models compared: against plain formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from oracle import randomize

import neox_lab as nl
from neox_lab.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["The king went to the city of", "A b", "The cat and the dog"]


@pytest.fixture(scope="module")
def models() -> list[Any]:
    found = []
    for seed in (1, 2):
        model = nl.load()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        found.append(model)
    return found


@torch.no_grad()
def test_against_formulas(models: list[Any]) -> None:
    one, two = models
    result = nl.dynamics.compare(one, two, TEXTS)
    ids = [one.to_tokens(text) for text in TEXTS]
    assert len(result.frame) == sum(row.shape[1] for row in ids)
    for number, row in enumerate(ids):
        p, q = (model(row).logits[0].double().log_softmax(-1) for model in models)
        kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        mine = result.frame[result.frame["text"] == number]["kl_bits"].to_numpy()
        np.testing.assert_allclose(mine, kl / math.log(2), rtol=1e-5)
    caches = [[model.run_with_cache(row)[1] for row in ids] for model in models]
    for layer in range(4):
        name = f"blocks.{layer}.hook_resid_post"
        x, y = (torch.cat([cache[name][0] for cache in found]).double() for found in caches)
        rows = result.activations.query("site == 'resid_post' and layer == @layer").iloc[0]
        assert rows["squared_difference"] == pytest.approx(float((x - y).square().mean()))
        # By the kernels [token, token], as the paper defines it.
        centre = torch.eye(len(x)) - 1 / len(x)
        k, m = (centre.double() @ each @ each.T @ centre.double() for each in (x, y))
        cka = float((k * m).sum() / (k.norm() * m.norm()))
        assert rows["cka"] == pytest.approx(cka, rel=1e-6)
    a, b = one.blocks[2].W_O[3].double(), two.blocks[2].W_O[3].double()
    head = result.weights.query("parameter == 'W_O' and layer == 2 and head == 3").iloc[0]
    assert head["difference"] == pytest.approx(float((a - b).norm()))
    assert head["relative"] == pytest.approx(float((a - b).norm() / a.norm()))
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)
    assert head["cosine"] == pytest.approx(float(cosine))
    whole = result.weights[result.weights["head"].isna()]
    assert whole["parameter"].tolist() == [name for name, _ in one.named_parameters()]


@torch.no_grad()
def test_a_model_and_itself_and_pictures(models: list[Any]) -> None:
    result = nl.dynamics.compare(models[0], models[0], TEXTS[0])
    assert (result.frame["kl_bits"] == 0).all() and (result.weights["difference"] == 0).all()
    np.testing.assert_allclose(result.activations["cka"], 1)
    result = nl.dynamics.compare(*models, TEXTS)
    for part in ("predictions", "activations", "weights"):
        assert result.view(part).to_png()[:4] == b"\x89PNG"
    heads = result.view("weights").values
    parts = [torch.stack([getattr(m.blocks[1], n)[2].flatten() for n in ("W_Q", "W_K", "W_V")])
             for m in models]  # fmt: skip
    out = [m.blocks[1].W_O[2].flatten() for m in models]
    both = [torch.cat([p.flatten(), o]).double() for p, o in zip(parts, out, strict=True)]
    expected = float((both[0] - both[1]).norm() / both[0].norm())
    assert heads[1, 2] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="there are 3 texts"):
        result.view(text=3)
    with pytest.raises(InputError, match="Did you mean 'weights'"):
        result.view("weight")


@torch.no_grad()
def test_heads_of_which_some_weights_are_the_same(models: list[Any]) -> None:
    one, two, lost = models[0], copy.deepcopy(models[0]), copy.deepcopy(models[0])
    size = one.config.hidden_size // one.config.num_attention_heads
    rows = slice(2 * 3 * size, 2 * 3 * size + size)  # the queries of head 2
    two.gpt_neox.layers[1].attention.query_key_value.weight[rows] *= 1.5
    lost.gpt_neox.layers[1].attention.query_key_value.weight[rows][0, 0] = math.nan
    names = ("W_Q", "W_K", "W_V", "W_O")
    parts = [getattr(one.blocks[1], name)[2].double().norm().square() for name in names]
    heads = nl.dynamics.compare(one, two, TEXTS[:1]).view("weights").values
    assert heads[1, 2] == pytest.approx(0.5 * math.sqrt(parts[0] / sum(parts)), rel=1e-5)
    heads[1, 2] = 0
    np.testing.assert_array_equal(heads, np.zeros_like(heads))
    heads = nl.dynamics.compare(one, lost, TEXTS[:1]).view("weights").values
    assert math.isnan(heads[1, 2]) and np.isnan(heads).sum() == 1


@torch.no_grad()
def test_activations_that_hardly_vary(models: list[Any]) -> None:
    one, two = copy.deepcopy(models)
    for model in (one, two):
        model.gpt_neox.layers[1].attention.dense.weight.zero_()
    one.gpt_neox.layers[2].attention.dense.bias += 1e5
    found = nl.dynamics.compare(one, two, TEXTS).activations.query("site == 'attn_out'")["cka"]
    assert math.isnan(found.iloc[1]) and not math.isnan(found.iloc[0])  # the same everywhere
    ids = [one.to_tokens(text) for text in TEXTS]
    name = "blocks.2.hook_attn_out"
    x, y = (torch.cat([m.run_with_cache(i)[1][name][0] for i in ids]).double() for m in (one, two))
    x, y = x - x.mean(0), y - y.mean(0)
    expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert found.iloc[2] == pytest.approx(float(expected), rel=1e-9)


def test_what_cannot_be_compared(models: list[Any]) -> None:
    small = nl.GPTNeoXForCausalLM(
        nl.GPTNeoXConfig(
            vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8,
        )
    )  # fmt: skip
    randomize(small)
    with pytest.raises(InputError, match="different shapes"):
        nl.dynamics.compare(models[0], small.eval(), TEXTS)
    with pytest.raises(InputError, match="expected texts"):
        nl.dynamics.compare(*models, [])
    with pytest.raises(InputError, match=r"texts\[1\]=3; expected a text"):
        nl.dynamics.compare(*models, ["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="'step512' is a text; expected a model that is loaded"):
        nl.dynamics.compare("step512", models[1], TEXTS)
    with pytest.raises(InputError, match="expected a model"):
        nl.dynamics.compare(models[0], "main", TEXTS)  # type: ignore[arg-type]
