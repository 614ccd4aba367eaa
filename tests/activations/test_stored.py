"""What is read from a collection is what lies in its files, in whatever order and part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import neox_lab as nl
from neox_lab.activations import collecting
from neox_lab.activations.shuffling import Order
from neox_lab.errors import InputError

IDS = [[1 + (row * pos) % 49 for pos in range(1 + row * 5 % 13)] for row in range(40)]
SITE = ("resid_post", 1)
NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from collected_model import build

    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "FEWEST", 30)
        patch.setattr(collecting, "SHARD_BYTES", 0)
        nl.activations.collect(build(), IDS, ["resid_post", "z"], folder, context=8)
    return nl.activations.open(folder)


@pytest.fixture(scope="module")
def whole(stored: Any) -> dict[str, torch.Tensor]:
    """All files, read by somebody else."""
    files = [load_file(stored.folder / shard.file) for shard in stored.manifest.shards]
    assert len(files) > 5
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


@pytest.mark.parametrize(
    "rows",
    [
        *(slice(None), slice(3, 70), slice(5, 200, 7), slice(None, None, -3), slice(9, 9)),
        *([0], [-1, 0, 100, 100], [], torch.tensor([77, 3, 3, -2]), np.array([4, 200])),
        *(0, -1, torch.tensor(5), np.int64(7), range(10, 50, 3)),
        *(torch.arange(0), torch.tensor([1, 2], dtype=torch.int32)),
    ],
    ids=str,
)
def test_rows_of_any_kind(stored: Any, whole: dict[str, torch.Tensor], rows: Any) -> None:
    at = np.arange(len(stored))[list(rows) if isinstance(rows, range) else rows]
    at = torch.from_numpy(np.array(at))
    assert torch.equal(stored[SITE][rows], whole[NAME][at])
    assert torch.equal(stored["z", 0][rows], whole["blocks.0.attn.hook_z"][at])


def test_a_mask_of_rows(stored: Any, whole: dict[str, torch.Tensor]) -> None:
    mask = stored.pos == 2
    assert torch.equal(stored[NAME][mask], whole[NAME][whole["pos"] == 2])
    assert torch.equal(stored[NAME][mask.tolist()], whole[NAME][whole["pos"] == 2])


def test_what_is_read_can_be_written_to(stored: Any) -> None:
    first = stored[SITE][:10].clone()
    stored[SITE][:10].zero_()
    stored[SITE][0].zero_()
    assert torch.equal(stored[SITE][:10], first)


@pytest.mark.parametrize("rows", [10**6, [0, -(10**6)], torch.tensor([10**6]), [True], 1.5, "x"])
def test_rows_that_are_not_there(stored: Any, rows: Any) -> None:
    with pytest.raises(InputError, match="rows"):
        stored[SITE][rows]


def test_names_of_sites(stored: Any) -> None:
    assert (
        stored["blocks.2.attn.hook_z"].name == stored["z", 2].name == stored["z", np.int64(2)].name
    )
    assert stored["z", 2].shape == (len(stored), 2, 6)
    with pytest.raises(InputError, match="at 3 sites"):
        stored["resid_post"]
    for wrong in ("resid_pre", ("resid_post", 3), ("resid_post", "a"), 7, None):
        with pytest.raises(InputError, match="was not collected"):
            stored[wrong]


def test_documents_and_their_rows(stored: Any) -> None:
    assert stored.documents.tolist() == list(range(40))
    for document, ids in enumerate(IDS):
        rows = stored.rows_of(document)
        assert stored.token[rows.start : rows.stop].tolist() == ids
        assert set(stored.document[rows.start : rows.stop].tolist()) == {document}
    with pytest.raises(InputError, match="document 40 has no rows"):
        stored.rows_of(40)


@pytest.mark.parametrize("seed", [0, 1])
def test_two_parts_share_no_document(stored: Any, whole: Any, seed: int) -> None:
    train, held_out = stored.split(0.25, seed=seed)
    sides = [set(part.documents.tolist()) for part in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(40))
    assert len(sides[1]) == 10
    for part, side in zip((train, held_out), sides, strict=True):
        mask = torch.tensor([int(document) in side for document in whole["document"]])
        for name in (NAME, "blocks.0.attn.hook_z"):
            assert torch.equal(part[name][:], whole[name][mask])
        assert torch.equal(part.document, whole["document"][mask])
        assert torch.equal(part.pos, whole["pos"][mask].long())
        rows = part.rows_of(max(side))
        assert part.token[rows.start : rows.stop].tolist() == IDS[max(side)]
    again, _ = train.split(0.5)
    assert set(again.documents.tolist()) < sides[0]
    other = stored.split(0.25, seed=seed + 1)[1]
    assert set(other.documents.tolist()) != sides[1]
    for share in (0, 1, 0.001, 0.999, -1, "a"):
        with pytest.raises(InputError, match="held_out"):
            stored.split(share)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_batches_hold_every_row_once(stored: Any, part: int) -> None:
    source = (stored, *stored.split(0.3))[part]
    names = ["document", "pos", "token", "read", SITE]
    batches = list(source.batches(names, 32, seed=3))
    assert [len(batch["pos"]) for batch in batches[:-1]] == [32] * (len(source) // 32)
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    order = (joined["document"] * 100 + joined["pos"]).argsort()
    for name in (NAME, "token", "read"):
        assert torch.equal(joined[name][order], source._take(name, slice(None)))
    alone = list(source.batches(SITE, 32, seed=3))
    assert all(torch.equal(a, b[NAME]) for a, b in zip(alone, batches, strict=True))
    in_order = torch.cat(list(source.batches(SITE, 32, seed=None)))
    assert torch.equal(in_order, source[SITE][:])
    full = list(source.batches(SITE, 32, drop_last=True))
    assert {len(batch) for batch in full} == {32}
    assert len(full) == len(source) // 32


def test_batches_mix_documents(stored: Any) -> None:
    """Neighbours are of one document no more often than chance has it."""
    sizes = torch.tensor([len(ids) for ids in IDS]).double()
    chance = float((sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1)))
    shares = []
    for seed in range(20):
        order = torch.cat([b["document"] for b in stored.batches(["document"], 64, seed=seed)])
        shares.append(float((order[1:] == order[:-1]).double().mean()))
    spread = (chance / (20 * len(stored))) ** 0.5
    assert abs(sum(shares) / 20 - chance) < 4 * spread


def test_wrong_arguments_of_batches(stored: Any) -> None:
    for wrong in ({"batch_size": 0}, {"seed": -1}, {"drop_last": 1}, {"sites": "x"}):
        with pytest.raises(InputError, match=next(iter(wrong)).replace("sites", "'x'")):
            stored.batches(**{"sites": SITE, "batch_size": 4} | wrong)


@given(st.integers(0, 3000), st.integers(0, 2**40))
@settings(max_examples=60)
def test_an_order_is_a_permutation(size: int, seed: int) -> None:
    order = Order(size, seed)
    parts = [order[start : start + 700] for start in range(0, size, 700)]
    numbers = torch.cat(parts) if parts else torch.arange(0)
    assert torch.equal(numbers.sort().values, torch.arange(size))


def test_an_order_is_as_good_as_random() -> None:
    """Every number falls on every place equally often, and the order of two is even."""
    size, tries = 12, 3000
    orders = torch.stack([Order(size, seed)[:] for seed in range(tries)])
    counts = torch.stack([torch.bincount(column, minlength=size) for column in orders.T])
    expected = tries / size
    chi = float(((counts - expected) ** 2 / expected).sum())
    degrees = (size - 1) ** 2
    assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5
    rising = (orders[:, 1:] > orders[:, :-1]).double().mean(dim=0)
    assert (rising - 0.5).abs().max() < 5 * 0.5 / tries**0.5
    large = Order(10**6, 5)[:]
    correlation = torch.corrcoef(torch.stack((large.double(), torch.arange(10.0**6))))[0, 1]
    assert abs(correlation) < 0.005
    assert not torch.equal(large, Order(10**6, 6)[:])


def test_reading_leaves_the_callers_random_state(stored: Any) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    list(stored.batches(SITE, 64))
    stored.split()
    assert torch.equal(torch.get_rng_state(), before)


def test_opening_and_reading_take_what_is_read(stored: Any, monkeypatch: Any) -> None:
    """No file is opened for rows before one of its rows is read."""
    again = nl.activations.open(stored.folder)
    again[SITE][:3]
    assert list(again._shards._open) == [0]
