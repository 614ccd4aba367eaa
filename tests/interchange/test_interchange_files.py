"""Subspaces in files: exactly what was found, for the model it was found in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from patching_oracle import small

from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.interchange import InterchangeResult, Pairs, Site, accuracy, boundless, das, mask, run


def pairs(seed: int) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randint(2, 50, (2, 6, 5), generator=generator)
    return Pairs(base, source, list(range(3, 9)), list(range(20, 26)), variable="v")  # type: ignore


SITES: dict[str, Any] = {
    "resid_post": Site(("resid_post", 0), -1),
    "full name": Site("blocks.1.hook_resid_pre", {"one": 1, "two": (2, 3)}),
    "heads": Site(("q", 1), (1, -1), heads=[0, 2]),
    "each pair": Site(("z", 0), [0, 1, 2, 3, 1, 0], heads=1),
    "pattern": Site(("pattern", 1), -1),
    "every position": Site(("mlp_out", 0), None),
}
QUICK: dict[str, Any] = {"epochs": 1, "progress": False, "nulls": 1}


@pytest.mark.parametrize("name", SITES)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    model, place = small(), tmp_path / "new" / "found.safetensors"
    for found in (
        das(model, pairs(0), pairs(1), SITES[name], 2, **QUICK),
        accuracy(model, pairs(1), SITES[name]),
    ):
        assert found.save(place) == place
        for again in (InterchangeResult.load(place), InterchangeResult.load(place, model)):
            assert again == found and again.site == found.site
            assert again.null_frame.equals(found.null_frame)
            assert repr(again) == repr(found)
    logits = [
        run(model, torch.tensor(pairs(1).base), (site, torch.tensor(pairs(1).source))).logits
        for site in (found.site, again.site)
    ]
    assert torch.equal(*logits)


def test_bounded_subspaces_and_masks_are_kept(tmp_path: Path) -> None:
    model, site = small().double(), SITES["resid_post"]
    for search in (boundless, mask):
        found = search(model, pairs(0), pairs(1), site, **QUICK)
        again = InterchangeResult.load(found.save(tmp_path / "found.safetensors"), model)
        assert found.site.subspace is not None and again.site.subspace is not None
        assert again.site.subspace.dtype == torch.float64
        assert torch.equal(again.site.subspace, found.site.subspace)
        assert accuracy(model, pairs(1), again.site).accuracy == found.accuracy


def test_another_model_or_width_is_refused(tmp_path: Path) -> None:
    model = small()
    found = das(model, pairs(0), pairs(1), SITES["heads"], 2, **QUICK)
    place = found.save(tmp_path / "found.safetensors")
    other = small()
    with torch.no_grad():
        other.backbone.layers[0].attention.dense.weight.add_(0.5)
    with pytest.raises(CheckpointError, match="another model: weights differ"):
        InterchangeResult.load(place, other)
    assert InterchangeResult.load(place, other, same=False) == found
    wider = small(hidden_size=40, num_attention_heads=2)
    with pytest.raises(CheckpointError, match="another model"):
        InterchangeResult.load(place, wider)
    with pytest.raises(InputError, match="each place at"):
        InterchangeResult.load(place, wider, same=False)
    fewer = small(num_hidden_layers=1)
    with pytest.raises(InputError, match="no such site"):
        InterchangeResult.load(place, fewer, same=False)
    nobody = dataclasses.replace(found, identity=None).save(tmp_path / "nobody.safetensors")
    with pytest.warns(NeoxLabWarning, match="does not say which model"):
        InterchangeResult.load(nobody, model)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    from neox_lab.interchange.saving import FORMAT

    found = das(small(), pairs(0), pairs(1), SITES["resid_post"], 2, **QUICK)
    place = found.save(tmp_path / "found.safetensors")
    tensors, said = FORMAT.read(place)
    for wrong in ({"frame": {}}, {"site": {}}, {"site": 3}, {"identity": ["a"]}, {"rank": 5}):
        FORMAT.write(tmp_path / "wrong.safetensors", tensors, said | wrong)
        with pytest.raises(CheckpointError, match="Cannot read the result of an interchange"):
            InterchangeResult.load(tmp_path / "wrong.safetensors")
    place.write_bytes(place.read_bytes()[:-200])
    for path in (place, tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError):
            InterchangeResult.load(path)
