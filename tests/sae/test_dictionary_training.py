"""Training as a whole: planted truth, runs that go on, sources of rows, and bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, HookNameError, InputError, TrainingError
from neox_lab.files import alone
from neox_lab.sae import Recipe, TrainedDictionary, saving, train, training
from neox_lab.sae.recipes import KINDS
from neox_lab.sae.rows import Part, rows_of, tokens_of
from neox_lab.sae.training_result import measured

TEXTS = [f"The {word} is in the box. Mary has the {word}." for word in ("key", "map", "pen", "cup")]


def activations(rows: int = 600, d: int = 12) -> Tensor:
    return nl.sae.planted(features=30, d_model=d, active=2, rows=rows, noise=0.01).activations


def small(source: Any = None, **settings: Any) -> TrainedDictionary:
    source = activations() if source is None else source
    return train(source, **({"latents": 24, "k": 3, "steps": 12, "batch_size": 64} | settings))


@pytest.mark.parametrize("kind", ["topk", pytest.param("batchtopk", marks=pytest.mark.slow)])
def test_planted_features_are_found(kind: Any) -> None:
    planted = nl.sae.planted(features=64, d_model=32, active=2, rows=30_000)
    trained = train(
        planted.activations, latents=128, kind=kind, k=2, steps=700, batch_size=512,
        recipe=Recipe(learning_rate=5e-3, dead_after=10_000),
    )  # fmt: skip
    assert planted.recovered(trained.dictionary) >= 0.95
    others = nl.sae.planted(features=64, d_model=32, active=2, rows=10, seed=1)
    assert others.recovered(trained.dictionary) < 0.6  # features that were not planted
    assert planted.control(128) < 0.6
    assert trained.held_out.fvu < 0.25


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_relu_finds_planted_features_in_few_steps(seed: int) -> None:
    """With a penalty that is whole from the start a tenth of them would be missing."""
    planted = nl.sae.planted(features=128, d_model=48, active=3, rows=20_000, seed=seed)
    trained = train(
        planted.activations, latents=256, kind="relu", steps=200, batch_size=512, seed=seed,
        recipe=Recipe(learning_rate=5e-3),
    )  # fmt: skip
    assert planted.recovered(trained.dictionary) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jumprelu", "relu"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kinds_with_a_penalty_find_planted_features(kind: Any, seed: int) -> None:
    planted = nl.sae.planted(features=128, d_model=48, active=3, rows=60_000, seed=seed)
    trained = train(
        planted.activations, latents=256, kind=kind, k=3, steps=500, batch_size=1024, seed=seed,
        recipe=Recipe(learning_rate=3e-3),
    )  # fmt: skip
    assert planted.recovered(trained.dictionary) >= (0.99 if kind == "relu" else 0.95)


def test_planted_activations_are_sums_of_their_features() -> None:
    planted = nl.sae.planted(features=30, d_model=12, active=2, rows=9000)
    made = planted.coefficients.to_dense() @ planted.directions
    torch.testing.assert_close(planted.activations, made)
    assert float((planted.coefficients.to_dense() > 0).sum(1).float().mean()) == pytest.approx(
        2, abs=0.1
    )
    assert planted.recovered(planted.directions) == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind: Any) -> None:
    trained = small(kind=kind, steps=150, recipe=Recipe(learning_rate=3e-3, sparsity=1))
    first, last = trained.frame["fvu"].iloc[:10].mean(), trained.frame["fvu"].iloc[-10:].mean()
    assert last < 0.7 * first
    assert trained.dictionary.kind.lower() == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_a_training(kind: Any) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, other = small(kind=kind), small(kind=kind)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one == other
    for name, tensor in one.dictionary.state_dict().items():
        assert torch.equal(tensor, other.dictionary.state_dict()[name]), name
    assert small(kind=kind, seed=1) != one


def test_any_seed_can_be_given() -> None:
    largest = small(seed=2**63 - 1)
    assert largest == small(seed=2**63 - 1) != small(seed=0)
    nl.sae.planted(features=8, d_model=8, active=1, rows=16, seed=2**63 - 1).control(4)


class KilledError(Exception):
    """What ends a process, as far as a test can tell."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_ends_with_the_same_numbers(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 5)
    whole = small(kind=kind, steps=31)
    take = training._Run._take

    def killed(self: Any, *batch: Any) -> None:
        if self.step in (13, 27) and self.step not in seen:
            seen.append(self.step)
            raise KilledError
        take(self, *batch)

    seen: list[int] = []
    monkeypatch.setattr(training._Run, "_take", killed)
    for _ in range(2):  # in the first epoch, of 9 batches, and the third
        with pytest.raises(KilledError):
            small(kind=kind, steps=31, to=tmp_path / "run")
    again = small(kind=kind, steps=31, to=tmp_path / "run")
    assert seen == [13, 27]
    assert again == whole
    for name, tensor in whole.dictionary.state_dict().items():
        assert torch.equal(tensor, again.dictionary.state_dict()[name]), name
    assert small(kind=kind, steps=31, to=tmp_path / "run") == whole  # nothing is left to do


@pytest.mark.parametrize("when", ["before a step", "after it"])
def test_a_stopped_run_says_so_and_goes_on(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = training._Run._take

    def stopped(self: Any, *batch: Any) -> None:
        if self.step == 4 and when == "before a step":
            raise KeyboardInterrupt
        take(self, *batch)
        if self.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_take", stopped)
        part = small(to=tmp_path / "run")
    assert part.interrupted and len(part.frame) == 4
    assert "stopped at step 4" in part.view().title
    whole = small(to=tmp_path / "run")
    assert not whole.interrupted and whole == small()


def test_a_folder_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    small(to=tmp_path / "run")
    for change, words in (
        ({"k": 4}, r"other settings: k=3 \(now 4\)\."),
        ({"seed": 1, "steps": 13}, r"settings: steps=12 \(now 13\), seed=0 \(now 1\)\."),
        ({"recipe": Recipe(decay=0.5)}, r"settings: decay=0.2 \(now 0.5\)\."),
        ({"source": activations() + 1}, "other activations or sites"),
    ):
        with pytest.raises(CheckpointError, match=words):
            small(to=tmp_path / "run", **change)
    file = tmp_path / "run" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError):
        small(to=tmp_path / "run")


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds other things"):
        small(to=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / ".lock"), pytest.raises(CheckpointError, match="Another training"):
        small(to=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])
    assert small(to=tmp_path) == small()


def test_held_out_numbers_are_the_formula_on_rows_not_trained_on() -> None:
    x = activations()
    trained = small(x, steps=60)
    rows = rows_of(x, None, None, None, 0.1, 0)
    held = rows.held_out.x
    assert len(held) == trained.held_out.rows == 60
    train_rows = torch.cat([batch for batch, _ in rows.epoch(0, 64, 0)])
    assert len(train_rows) == 540
    assert not (held[:, None] == train_rows[None]).all(-1).any()
    again = trained.dictionary(held)
    fvu = (held - again).square().sum() / (held - held.mean(0)).square().sum()
    assert trained.held_out.fvu == pytest.approx(float(fvu.detach()), rel=1e-5)
    codes = trained.dictionary.encode(held)
    assert trained.held_out.l0 == pytest.approx(float((codes.values > 0).sum() / 60))
    assert trained.held_out.fvu_low < trained.held_out.fvu < trained.held_out.fvu_high


def test_a_models_tokens_are_rows_and_documents_stay_together() -> None:
    model = nl.load()
    name = "blocks.1.hook_resid_post"
    part = tokens_of(model, TEXTS, name, name, batch_size=3)
    for number, text in enumerate(TEXTS):
        _, cache = model.run_with_cache(text, [name])
        torch.testing.assert_close(
            part.x[part.document == number], cache[name][0].detach(), rtol=1e-4, atol=1e-4
        )
    rows = rows_of(model, TEXTS, ("resid_post", 1), None, 0.25, 0)
    assert len(rows.held_out.document.unique()) == 1
    trained = small(model, texts=TEXTS, site=("resid_post", 1), held_out=0.25)
    assert trained.dictionary.site_in == trained.dictionary.site_out == name
    assert "4 texts" in trained.dictionary.sources["weights"]


def test_activations_on_the_disk_are_rows(tmp_path: Path) -> None:
    model = nl.load()
    sites = ["blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"]
    stored = nl.activations.collect(model, TEXTS * 3, sites, tmp_path / "rows", progress=False)
    rows = rows_of(stored, None, ("mlp_out", 1), None, 0.25, 0)
    train_rows = torch.cat([x for x, _ in rows.epoch(0, 10, 0)])
    assert len(train_rows) == len(rows) == len(stored) - len(rows.held_out.x)
    assert len(rows.held_out.document.unique()) == 3
    both = torch.cat([train_rows, rows.held_out.x]).sum(0)
    torch.testing.assert_close(both, stored["mlp_out", 1][:].sum(0), rtol=1e-3, atol=1e-3)
    whole = small(stored, site=sites[0], site_out=sites[1])
    assert whole.dictionary.site_out == sites[1]
    assert small(stored, site=sites[0], site_out=sites[1], to=tmp_path / "run") == whole


def test_texts_may_be_token_ids() -> None:
    model = nl.load()
    name = "blocks.1.hook_resid_post"
    ids = [list(model.tokenizer(text).input_ids) for text in TEXTS]
    assert torch.equal(tokens_of(model, ids, name, name).x, tokens_of(model, TEXTS, name, name).x)
    with pytest.raises(InputError, match="token ids below 2048"):
        tokens_of(model, [[1, 2048]], name, name)


def test_a_transcoder_learns_what_a_layer_does() -> None:
    model = nl.load()
    site = "blocks.1.mlp.hook_in"
    part = tokens_of(model, TEXTS * 3, site, "blocks.1.hook_mlp_out")
    for source in (model, (part.x, part.y)):
        texts = TEXTS * 3 if source is model else None
        names = (site, "blocks.1.hook_mlp_out")
        trained = small(
            source, texts=texts, site=names[0], site_out=names[1], skip=True, steps=80,
            recipe=Recipe(learning_rate=3e-3),
        )  # fmt: skip
        assert trained.dictionary.is_transcoder and trained.dictionary.W_skip is not None
        assert trained.frame["fvu"].iloc[-1] < 0.5 * trained.frame["fvu"].iloc[0]
        assert measured(trained.dictionary, part).fvu < 0.6


def test_one_document_says_nothing_about_others() -> None:
    trained = small()
    x = activations()
    one = Part(x, x, torch.zeros(len(x), dtype=torch.long))
    found = measured(trained.dictionary, one)
    ends = [found.fvu_low, found.fvu_high, found.l0_low, found.l0_high]
    assert all(map(math.isnan, ends)) and math.isfinite(found.fvu) and math.isfinite(found.l0)
    title = dataclasses.replace(trained, held_out=found).view().title
    assert title.endswith(f"held-out FVU {found.fvu:.3f} (one document, no interval)")
    own = measured(trained.dictionary, Part(x, x, torch.arange(len(x))))
    assert own.fvu_low < own.fvu < own.fvu_high


def test_the_result_is_a_frame_and_curves() -> None:
    trained = small()
    columns = ["step", "loss", "fvu", "l0", "dead", "learning_rate"]
    assert list(trained.frame.columns) == columns
    assert trained.frame["step"].tolist() == list(range(1, 13))
    view = trained.view()
    assert view.panels == ["FVU", "L0", "dead"]
    assert "held-out" in view.title and trained._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_kept_with_its_dictionary(kind: Any, tmp_path: Path) -> None:
    x = activations()
    trained = small(x, kind=kind, recipe=Recipe(centre="geometric median"), seed=2**63 - 1)
    path = trained.save(tmp_path / "kept")
    (tmp_path / "kept" / "another").mkdir()
    small(x, k=2).save(tmp_path / "kept" / "another")  # what lies below is another's
    again = TrainedDictionary.load(tmp_path / "kept")
    assert again == trained and again.seconds == trained.seconds
    assert again.frame.equals(trained.frame) and again.view().title == trained.view().title
    for loaded in (again.dictionary, nl.sae.load(path.parent, subfolder=".")):
        assert repr(loaded) == repr(trained.dictionary)
        assert loaded.sources == trained.dictionary.sources
        assert torch.equal(loaded(x), trained.dictionary(x))
    trained.dictionary.save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no record of a training"):
        TrainedDictionary.load(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="Cannot read a dictionary"):
        TrainedDictionary.load(tmp_path)


def test_a_damaged_record_of_a_training_is_refused(tmp_path: Path) -> None:
    small().save(tmp_path)
    tensors, facts = saving.FILE_FORMAT.read(tmp_path / saving.FILE)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    record: Any = facts["training"]
    damages: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"seconds": "long"}, {}, "'seconds' should be float"),
        ({"more": 1}, {}, "no field 'more'"),
        ({"held_out": {**record["held_out"], "rows": 0.5}}, {}, "'rows' should be int"),
        ({"held_out": 3}, {}, "no record"),
        ({}, {"training.history": torch.zeros(3, 2)}, "history"),
    ]
    for changed, others, words in damages:
        saving.FILE_FORMAT.write(
            tmp_path / saving.FILE, tensors | others, {**facts, "training": record | changed}
        )
        with pytest.raises(CheckpointError, match=words):
            TrainedDictionary.load(tmp_path)
        assert nl.sae.load(tmp_path).latents == 24  # the dictionary is whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": 0}, "latents=0"),
        ({"k": 25}, "k=25 of latents=24"),
        ({"kind": "top"}, "topk"),
        ({"steps": 0}, "steps=0"),
        ({"held_out": 1.0}, "held_out"),
        ({"skip": True}, "transcoders"),
        ({"texts": ["a"]}, "read by a model"),
        ({"source": torch.ones(3, 4, 5)}, r"\[row, d\]"),
        ({"source": torch.zeros(9, 4)}, "all zero"),
        ({"source": torch.ones(9, 4)}, "all rows at 'activations' are the same"),
        ({"source": activations() * 1e31}, r"mean norm of 1\.\d+e\+31"),
        ({"source": activations() * 1e-33}, r"mean norm of 1\.\d+e-33"),
        ({"source": activations().to_sparse()}, "dense"),
        ({"source": activations().to("meta")}, "on meta"),
        ({"source": activations().numpy()}, "expected a model"),
        ({"source": torch.full((9, 4), torch.nan)}, "NaN"),
        ({"source": torch.ones(1, 4)}, "1 documents"),
        ({"source": (torch.ones(4, 4), torch.ones(5, 4))}, "4 rows and y 5"),
        ({"source": nl.load(), "texts": TEXTS}, "site is missing"),
        ({"source": "model"}, "expected a model"),
        ({"source": "model", "site": "resid_post"}, "expected a model"),
        ({"recipe": "fast"}, "Recipe"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**change)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_row_is_a_step_like_others(kind: Any) -> None:
    """An epoch of 65 rows ends with one, whose variance is nothing to divide by."""
    trained = small(activations(72), kind=kind, steps=8, recipe=Recipe(learning_rate=1e-3))
    losses = trained.frame["loss"]
    assert losses[[1, 3, 5, 7]].max() < 30 * losses[[0, 2, 4, 6]].max()
    assert small(activations(72), kind=kind, batch_size=1).frame["loss"].max() < 100
    assert trained.held_out.fvu < 5


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_scale_of_rows_does_not_matter(scale: float) -> None:
    one, other = small(steps=40), small(activations() * scale, steps=40)
    assert other.held_out.fvu == pytest.approx(one.held_out.fvu, rel=1e-3)


def test_gradients_are_on_for_the_training_alone() -> None:
    x = activations()
    usual = small(x)
    with torch.no_grad():
        assert small(x) == usual
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert small(x.clone()) == usual
        assert torch.is_inference_mode_enabled()
    watched = x.clone().requires_grad_()
    assert small(watched) == usual and watched.grad is None


def test_of_held_out_rows_that_are_all_the_same_nothing_is_said() -> None:
    trained = small(held_out=1e-9)  # of one row
    assert trained.held_out.rows == 1 and math.isnan(trained.held_out.fvu)
    assert "held-out rows are all the same" in trained.view().title


def test_what_is_not_of_tokens_is_no_row() -> None:
    with pytest.raises(InputError, match="query_pos"):
        small(nl.load(), texts=TEXTS, site=("pattern", 1))


def test_a_site_that_the_model_lacks_is_named() -> None:
    with pytest.raises(HookNameError):
        small(nl.load(), texts=TEXTS, site="resid_past")


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="learning_rate"):
        small(kind="relu", steps=200, recipe=Recipe(learning_rate=1e30))
