"""Probes on collected activations are those on the texts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neox_lab as nl
from neox_lab.errors import CheckpointError, DataError, InputError, NeoxLabWarning

NAMES = ["Anna", "Tom", "The king", "A child", "My friend"]
VERBS = ["went to", "lived near", "saw", "left"]
ENDS = ["the city", "the house of Tom", "the red ball", "the sea"]
TEXTS = [f"{name} {verb} {end}." for name in NAMES for verb in VERBS for end in ENDS]
LABELS = [text.split(".")[0].split(" the ")[1][:3] for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def stored(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stored")
    return nl.activations.collect(model, TEXTS, ["resid_post", "z"], folder)


@pytest.mark.parametrize("pos", [-1, 1, "mean", -2, list(range(3)) * 26 + [0, 1]])
@pytest.mark.parametrize("sites", ["resid_post", "blocks.1.attn.hook_z"])
def test_the_same_probes(model: Any, stored: Any, sites: str, pos: Any) -> None:
    with_texts = outcome(model, TEXTS, sites, pos)
    with_stored = outcome(model, stored, sites, pos)
    for one, other in zip(with_texts.probes, with_stored.probes, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(one.centre, other.centre, rtol=1e-4, atol=1e-5)
        assert (one.score, one.control, one.alpha) == (other.score, other.control, other.alpha)
    assert with_texts.where == with_stored.where


def outcome(model: Any, texts: Any, sites: str, pos: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeoxLabWarning)
        return nl.probing.probe(model, texts, LABELS, sites, pos)


def test_equal_texts_stay_on_one_side(model: Any, stored: Any) -> None:
    with pytest.warns(NeoxLabWarning, match="Of 80 texts only 5 differ"):
        nl.probing.probe(model, stored, LABELS, "z", 0)
    with pytest.warns(NeoxLabWarning, match="Of 80 texts only 5 differ"):
        nl.probing.probe(model, TEXTS, LABELS, "z", 0)


def test_labels_of_a_part(model: Any, stored: Any) -> None:
    part, _ = stored.split(0.25)
    own = [LABELS[document] for document in part.documents.tolist()]
    results = [nl.probing.probe(model, part, given, "z") for given in (own, LABELS)]
    assert [probe.score for probe in results[0].probes] == [p.score for p in results[1].probes]
    with pytest.raises(DataError, match="79 labels for 60 documents with rows, of 80"):
        nl.probing.probe(model, part, LABELS[:79], "z")
    with pytest.raises(DataError, match="3 groups for 60 documents"):
        nl.probing.probe(model, part, LABELS, "z", groups=[1, 2, 3])


def test_documents_without_rows_have_labels_too(model: Any, tmp_path: Path) -> None:
    with pytest.warns(NeoxLabWarning, match="no rows: 1, 4"):
        part = nl.activations.collect(
            model, [TEXTS[0], "", *TEXTS[1:3], "", *TEXTS[3:]], "z", tmp_path, pos="last"
        )
    labels = [LABELS[0], None, *LABELS[1:3], None, *LABELS[3:]]
    result = nl.probing.probe(model, part, labels, "z")
    assert [p.score for p in result.probes] == [
        p.score for p in nl.probing.probe(model, TEXTS, LABELS, "z").probes
    ]
    with pytest.raises(InputError, match="'mean' where all were collected"):
        nl.probing.probe(model, part, labels, "z", "mean")


def test_what_does_not_fit_is_refused(model: Any, stored: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resid_pre' was not collected"):
        nl.probing.probe(model, stored, LABELS, "resid_pre")
    with pytest.raises(InputError, match="document 0 has no row at the position asked for, pos=40"):
        nl.probing.probe(model, stored, LABELS, "z", 40)
    with pytest.raises(InputError, match="pos='first'"):
        nl.probing.probe(model, stored, LABELS, "z", "first")
    later = nl.activations.collect(model, TEXTS, "z", tmp_path, skip_first=1)
    with pytest.raises(InputError, match="skip_first=1 left out"):
        nl.probing.probe(model, later, LABELS, "z")
    other = nl.load()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    with pytest.raises(CheckpointError, match="another model: weights differ"):
        nl.probing.probe(other, stored, LABELS, "z")
