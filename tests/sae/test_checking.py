"""A dictionary in the wrong place, or read in the wrong way, is caught."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, HookNameError, InputError, NeoxLabWarning
from neox_lab.sae import Check, Dictionary, Weights, load, published, quality
from neox_lab.sae.activations import ReLU
from neox_lab.sae.sample_texts import TEXTS

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def trained(model: Any) -> Dictionary:
    settings = {"latents": 256, "k": 8, "steps": 60, "batch_size": 256}
    return nl.sae.train(model, list(TEXTS), site=SITE, **settings).dictionary


@pytest.fixture(scope="module")
def transcoder(model: Any) -> Dictionary:
    sites = {"site": "blocks.1.mlp.hook_in", "site_out": "blocks.1.hook_mlp_out"}
    settings = {"latents": 256, "k": 8, "steps": 60, "batch_size": 256}
    return nl.sae.train(model, list(TEXTS), **sites, **settings).dictionary


def at(dictionary: Dictionary, site_in: str, site_out: str | None = None) -> Dictionary:
    """The same features, said to be elsewhere."""
    b_dec = dictionary.b_dec
    weights = Weights(dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, b_dec)
    return Dictionary(
        weights,
        dictionary.activation,
        site_in=site_in,
        site_out=site_out,
        subtracts_b_dec=dictionary.subtracts_b_dec,
        kind="TopK",
        expected_l0=8,
    )


def test_what_is_measured(model: Any, trained: Dictionary) -> None:
    found = trained.check(model, TEXTS[:2])
    own = found.frame.iloc[0]
    y = torch.cat([model.run_with_cache(text)[1][SITE][0] for text in TEXTS[:2]]).detach()
    out, first = trained(y).detach(), torch.zeros(len(y), dtype=torch.bool)
    first[[0, len(model.to_tokens(TEXTS[0])[0])]] = True
    for name, rows in (("", first | ~first), ("_without_first", ~first)):
        missed = (y[rows] - out[rows]).square().sum()
        expected = float(missed / (y[rows] - y[rows].mean(0)).square().sum())
        assert own[f"fvu{name}"] == pytest.approx(expected, rel=1e-4)
        counts = (trained.encode(y[rows]).dense() != 0).sum(-1).double()
        assert own[f"l0{name}"] == pytest.approx(float(counts.mean()))
    assert (found.tokens, own["site_out"], bool(own["asked"])) == (len(y), SITE, True)
    assert found.fvu == own["fvu_without_first"]
    assert {f"blocks.{layer}.hook_mlp_out" for layer in range(3)} < set(found.frame["site_out"])
    assert found.warnings == [] and isinstance(found, Check)
    assert "asked" in repr(found) and "L0 8.0 (8 expected)" in repr(found)
    assert found.to_png().startswith(b"\x89PNG")


def test_a_site_one_off_is_named(model: Any, trained: Dictionary) -> None:
    for wrong in ("blocks.1.hook_mlp_out", "blocks.2.hook_resid_post", "hook_embed"):
        found = at(trained, wrong).check(model, TEXTS)
        assert found.warnings and f"at {SITE} 0." in found.warnings[0], wrong
        assert "seems to belong there" in found.warnings[0] and found.warnings[0] in repr(found)


def test_a_place_without_a_number_hides_no_better_one(trained: Dictionary) -> None:
    model = nl.load()
    with torch.no_grad():  # as padding's is in some models: its norm is 0
        model.get_input_embeddings().weight[model.tokenizer.encode(TEXTS[0])[3]] = 0
    moved = at(trained, "blocks.1.hook_mlp_out")

    def by_norm(x: Tensor) -> tuple[Tensor, tuple[float, float]]:
        norm = x.norm(dim=-1, keepdim=True)
        return x * (norm / norm), (1.0, 0.0)

    moved.normalise = by_norm
    found = moved.check(model, TEXTS)
    assert math.isnan(found.frame.set_index("site_out")["fvu_without_first"]["hook_embed"])
    assert f"at {SITE} 0." in found.warnings[0]


def test_a_transcoder_elsewhere_is_named(model: Any, transcoder: Dictionary) -> None:
    right = transcoder.check(model, TEXTS)
    assert right.warnings == [] and len(right.frame) > 5
    best = right.frame.sort_values("fvu_without_first").iloc[0]
    assert best["asked"]
    wrong = at(transcoder, "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out").check(model, TEXTS)
    assert "at blocks.1.mlp.hook_in → blocks.1.hook_mlp_out 0." in wrong.warnings[0]


def test_top_k_read_as_relu_is_noticed(model: Any, transcoder: Dictionary, tmp_path: Path) -> None:
    """In the layout in which that happens: circuit-tracer's, without its YAML."""
    tensors = {"W_enc": transcoder.W_enc.T, "W_dec": transcoder.W_dec, "b_enc": transcoder.b_enc}
    tensors["b_dec"] = transcoder.b_dec
    if transcoder.subtracts_b_dec:
        tensors["b_enc"] = transcoder.b_enc - transcoder.b_dec @ transcoder.W_enc
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(kept, tmp_path / "layer_1.safetensors")
    with pytest.warns(NeoxLabWarning, match="a TopK read as ReLU looks like this"):
        load(tmp_path, model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, model=model, kind="TopK", k=8)


def test_another_number_of_features_than_was_said(model: Any, trained: Dictionary) -> None:
    more = at(trained, SITE)
    more.expected_l0 = 40
    assert "8.0 features are active at a token; it was made to have 40." in " ".join(
        more.check(model, TEXTS).warnings
    )


def test_what_explains_nothing_is_said(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(*s, generator=generator) for s in ((128, 64), (64,), (64, 128), (128,))]
    noise = Dictionary(Weights(*weights), ReLU(), site_in=SITE, kind="ReLU")
    found = noise.check(model, TEXTS)
    assert "more than a constant would" in found.warnings[0] and found.fvu > 1


def test_published_figures_stand_beside(model: Any, trained: Dictionary, monkeypatch: Any) -> None:
    known = published.figures(
        "EleutherAI/pythia-70m-deduped", "blocks.3.hook_attn_out", "ReLU", 512, 32768
    )
    assert known == published.Figures(0.89, 169, 0.13, 0.05, 0.93)
    assert published.figures("EleutherAI/pythia-160m", SITE, "ReLU", 512, 32768) is None
    monkeypatch.setattr("neox_lab.sae.checking.figures", lambda *_: known)
    found = trained.check(model, TEXTS[:2])
    assert "8.0 features are active at a token; it has by README" in found.warnings[0]
    assert "169 published" in repr(found)


def test_the_definitions() -> None:
    """Each as its source writes it."""
    y = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    out = y + 0.3 * y.flip(0) + 0.1
    found = quality.definitions(y, out)
    assert found["sparsify"] == pytest.approx(1 - quality.fvu(y, out))
    variance = sum(float((y - out)[:, i].var()) for i in range(6))
    total = sum(float(y[:, i].var()) for i in range(6))
    assert found["dictionary_learning"] == pytest.approx(1 - variance / total)
    rows = [
        1 - float(((a - b) ** 2).sum() / ((a - y.mean(0)) ** 2).sum())
        for a, b in zip(y, out, strict=True)
    ]
    assert found["sae_lens_legacy"] == pytest.approx(sum(rows) / len(rows))
    below = float((y**2).sum(-1).mean() - (y**2).mean() ** 2)
    assert found["sae_bench"] == pytest.approx(1 - float(((y - out) ** 2).sum(-1).mean()) / below)
    shifted = quality.definitions(y, y + 1)
    assert shifted["dictionary_learning"] == pytest.approx(1)
    assert shifted["sparsify"] < 0.5


def test_what_does_not_fit_the_model_is_refused(model: Any, trained: Dictionary) -> None:
    path = Path(__file__).parent / "files/sparsify/autoencoder/layers.2"
    with pytest.raises(HookError, match=r"reads tensors \[batch, pos, 8\].*another model"):
        load(path, model=model)
    with pytest.raises(HookNameError, match=r"blocks.9.hook_resid_post"):
        at(trained, "blocks.9.hook_resid_post").check(model, TEXTS)
    with pytest.raises(InputError, match="expected a model"):
        load(path, model=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no text has a token"):
        trained.check(model, [""])


def test_heads_are_joined_and_single_tokens_have_a_first_only(
    model: Any, trained: Dictionary
) -> None:
    found = at(trained, "blocks.1.attn.hook_z").check(model, ["The"])
    assert found.tokens == 1 and math.isnan(found.frame["fvu_without_first"][0])
    assert dataclasses.is_dataclass(found)


def test_a_model_without_tokenizer_cannot_try_it(trained: Dictionary, tmp_path: Path) -> None:
    silent = nl.load()
    silent.tokenizer = None
    weights: dict[str, Tensor] = {
        "W_enc": trained.W_enc, "W_dec": trained.W_dec, "b_enc": trained.b_enc,
        "b_dec": trained.b_dec,
    }  # fmt: skip
    save_file({n: t.detach().contiguous() for n, t in weights.items()},
              tmp_path / "sae_weights.safetensors")  # fmt: skip
    assert load_file(tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(f'{{"hook_name": "{SITE}", "sae_lens_version": "6.1.0"}}')
    with pytest.warns(NeoxLabWarning, match="has no tokenizer"):
        load(tmp_path, model=silent)
