"""The dictionaries that come with the package: their card, and what their features stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, InputError
from neox_lab.gym import dictionary_training as script
from neox_lab.gym.built_in_dictionaries import FOLDER, write
from neox_lab.gym.dictionary_evaluation import classes, cross_entropy, named
from neox_lab.model.identity import identity
from neox_lab.sae import Dictionary

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the dictionaries are not there")


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def found(model: Any) -> dict[str, Dictionary]:
    return nl.gym.dictionaries(model)


def test_every_layer_has_a_dictionary_and_a_transcoder(model: Any, found: Any) -> None:
    assert {n: (d.site_in, d.site_out) for n, d in found.items()} == script.sites(4)
    for dictionary in found.values():
        assert (dictionary.latents, dictionary.kind) == (script.LATENTS, "TopK")
        assert {dictionary.site_in, dictionary.site_out} <= model.hook_points.keys()
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6


def test_they_belong_to_the_built_in_model_alone(model: Any) -> None:
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    assert card["model"] == identity(model)._asdict()
    with pytest.raises(InputError, match="built-in model"):
        nl.gym.dictionaries(nl.load(revision="step512"))
    with pytest.raises(InputError):
        nl.gym.dictionaries("model")  # type: ignore[arg-type]


def test_the_card_says_what_the_script_does() -> None:
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    settings = card["settings"]
    assert (settings["latents"], settings["k"]) == (script.LATENTS, script.K)
    assert (settings["steps"], settings["batch_size"]) == (script.STEPS, script.BATCH)
    assert settings["seed"] == script.SEED
    frame = nl.gym.dictionary_card()
    assert (frame["fvu"] < 0.25).all() and (frame["l0"] <= script.K).all()
    assert (frame["ce"] <= frame["ce_dictionary"]).all()
    residual = frame[frame["dictionary"].str.startswith("resid")]
    assert (residual["ce_recovered"] > 0.9).all()


def test_a_stopped_run_writes_nothing_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train the next dictionary and write this one as if it were done."""
    from neox_lab.sae.training import _Run

    own, steps = _Run._take, []

    def leave(run: Any, *step: Any) -> None:
        steps.append(run.step)
        own(run, *step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "_take", leave)
    asked = ["--out", str(tmp_path), "--steps", "3", "--share", "0.01"]
    with pytest.raises(KeyboardInterrupt):
        script.main(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    script.main(asked)
    assert steps[:3] == [0, 1, 2] and steps[3:] == [0, 1, 2] * (len(script.sites(4)) - 1)
    assert (tmp_path / "card.json").exists() and not (tmp_path / "run").exists()


def test_the_card_is_right_about_fresh_contexts(model: Any, found: Any) -> None:
    rows = script.contexts(model, 24, 6, seed=77)
    ids = torch.tensor([row for row, _ in rows])
    card = nl.gym.dictionary_card().set_index("dictionary")
    for name, dictionary in found.items():
        sites = list({dictionary.site_in, dictionary.site_out})
        _, cache = model.run_with_cache(ids, sites)
        x, y = (cache[site].detach().flatten(0, 1) for site in script.sites(4)[name])
        again = dictionary(x).detach()
        fvu = float((y - again).square().sum() / (y - y.mean(0)).square().sum())
        assert abs(fvu - card["fvu"][name]) < 0.35 * card["fvu"][name] + 0.01, name


def test_features_stand_for_what_the_card_says(model: Any, found: Any) -> None:
    frame = nl.gym.named_features()
    assert (frame["control"] < 0.35).all()
    best = frame.drop_duplicates("class").set_index("class")
    for thing in ("name", "place", "year", "induction: what comes is known from a repeat"):
        assert best["f1"][thing] > best["control"][thing] + 0.2, thing
    rows = script.contexts(model, 24, 6, seed=78)
    ids = torch.tensor([row for row, _ in rows])
    masks = classes(model, rows, 6)
    for thing in ("name", "year"):
        row = best.loc[thing]
        dictionary = found[row["dictionary"]]
        _, cache = model.run_with_cache(ids, [dictionary.site_in])
        acts = dictionary.encode(cache[dictionary.site_in].flatten(0, 1)).of(row["feature"])
        on = acts.detach() > row["above"]
        precision = float((on & masks[thing]).sum() / on.sum())
        assert abs(precision - row["precision"]) < 0.12, thing


def test_classes_are_tokens_of_the_world(model: Any) -> None:
    tokenizer = model.tokenizer
    text = "Mary went to the park. The war lasted from 1742 to 1760"
    ids = list(tokenizer(text).input_ids)
    masks = classes(model, [(ids, ids), (ids, ids)], 1)
    pieces = [tokenizer.decode([token]).strip() for token in ids]

    def words(thing: str) -> list[str]:
        return [piece for piece, on in zip(pieces, masks[thing].tolist(), strict=False) if on]

    assert words("name") == words("woman's name") == ["Mary"]
    assert words("place") == ["park"] and words("year") == ["1742", "1760"]
    assert words("before a place") == ["the"] and words("man's name") == []


def test_the_best_feature_is_found_and_chance_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 6, generator=generator)
    eye = torch.eye(6)
    dictionary = Dictionary(
        nl.sae.Weights(eye, torch.zeros(6), eye, torch.zeros(6)),
        nl.sae.activations.TopK(2),
        site_in="x",
        kind="TopK",
    )
    mask = dictionary.encode(x).dense().detach()[:, 4] > 0
    (row,) = named(dictionary, (x, {"four": mask}), (x, {"four": mask}))
    assert row["feature"] == 4
    assert row["precision"] == row["recall"] == row["f1"] == 1
    assert float(row["control"]) < 0.6  # type: ignore[arg-type]


def test_cross_entropy_is_the_mean_over_known_tokens(model: Any) -> None:
    from contextlib import nullcontext

    rows = script.contexts(model, 3, 1, seed=5)
    total: list[Tensor] = []
    for ids, labels in rows:
        probabilities = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        total += [
            -probabilities[pos, labels[pos + 1]]
            for pos in range(len(ids) - 1)
            if labels[pos + 1] != -100
        ]
    expected = float(torch.stack(total).mean())
    assert cross_entropy(model, rows, nullcontext()) == pytest.approx(expected, rel=1e-4)


def test_files_come_back_as_they_were(tmp_path: Path, found: Any) -> None:
    dictionary = found["mlp_1"]
    write(tmp_path / "layers.1.mlp", dictionary)
    again = nl.sae.load(tmp_path)
    assert (again.site_in, again.site_out) == (dictionary.site_in, dictionary.site_out)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), dictionary(x))
    other = Dictionary(
        nl.sae.Weights(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3)),
        nl.sae.activations.ReLU(),
        site_in="x",
        kind="ReLU",
    )
    with pytest.raises(CheckpointError, match="TopK"):
        write(tmp_path / "layers.2", other)


@pytest.mark.slow
def test_the_script_writes_files_and_card_and_the_same_ones_again(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        script.main(["--out", str(tmp_path / folder), "--steps", "2", "--share", "0.004"])
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")
         if p.is_file()} for name in ("one", "two")
    )  # fmt: skip
    assert one == two
    assert len(one) == 17  # no run is left
