"""Collected activations are those of the model, row by row, whatever they are collected from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from collected_model import build
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import neox_lab as nl
from neox_lab.activations import collecting
from neox_lab.activations.documents import chunks, kept, windows
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning

IDS = [[3, 4, 5, 6, 7, 8, 9], [10], list(range(11, 49)), [3, 4, 5], [7, 7, 7, 7]]
TEXTS = ["Anna gave the ball to Tom.", "The king", "One two three four", "red", "blue green"]


def alone(model: Any, ids: list[int], name: str, context: int) -> Tensor:
    """Activations of one document, every chunk of it read by itself."""
    parts = [ids[start : start + context] for start in range(0, len(ids), context)]
    return torch.cat([model.run_with_cache(torch.tensor([p]), [name])[1][name][0] for p in parts])


def test_rows_of_every_site_are_those_of_each_text_alone(
    wired: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "FEWEST", 20)
    monkeypatch.setattr(collecting, "SHARD_BYTES", 0)
    names = [name for name, point in wired.hook_points.items() if "pos" in point.axes]
    stored = nl.activations.collect(wired, iter(IDS), names, tmp_path, context=8, batch_size=3)
    assert stored.sites == names
    assert len(stored.manifest.shards) > 2
    for name in names:
        expected = torch.cat([alone(wired, ids, name, 8) for ids in IDS])
        torch.testing.assert_close(stored[name][:], expected, rtol=1e-5, atol=1e-5)
    assert stored.token.tolist() == [token for ids in IDS for token in ids]
    assert stored.document.tolist() == [at for at, ids in enumerate(IDS) for _ in ids]
    assert stored.pos.tolist() == [pos for ids in IDS for pos in range(len(ids))]
    assert stored.manifest.complete
    assert stored.manifest.tokens == sum(map(len, IDS))


def test_rotary_regimes_are_not_mixed_in_a_batch(tmp_path: Path) -> None:
    """LongRoPE turns all texts of a batch by other angles when the longest is long."""
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.5, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 1.0}
    model = build(rope_parameters={**rope, **factors, "original_max_position_embeddings": 8})
    ids = [[3, 4, 5], list(range(1, 16)), [9, 8, 7, 6], list(range(20, 32))]
    name = "blocks.1.hook_resid_post"
    stored = nl.activations.collect(model, ids, name, tmp_path, batch_size=4)
    expected = torch.cat([alone(model, row, name, 16) for row in ids])
    torch.testing.assert_close(stored[name][:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float16])
def test_a_narrow_dtype_is_the_rounded_number(model: Any, tmp_path: Path, dtype: Any) -> None:
    wide = nl.activations.collect(model, IDS, "mlp_out", tmp_path / "wide")
    narrow = nl.activations.collect(model, IDS, "mlp_out", tmp_path / "narrow", dtype=dtype)
    for name in wide.sites:
        assert torch.equal(narrow[name][:], wide[name][:].to(narrow[name].dtype))
    shards = [stored.manifest.shards[0].size for stored in (wide, narrow)]
    assert shards[1] < 0.7 * shards[0]


def test_positions_that_are_kept(model: Any, tmp_path: Path) -> None:
    name = "blocks.2.hook_resid_post"
    every = nl.activations.collect(model, IDS, name, tmp_path / "all", context=8)
    last = nl.activations.collect(model, IDS, name, tmp_path / "last", context=8, pos="last")
    assert last.document.tolist() == [0, 1, 2, 3, 4]
    assert last.pos.tolist() == [len(ids) - 1 for ids in IDS]
    ends = torch.tensor([len(ids) for ids in IDS]).cumsum(0) - 1
    torch.testing.assert_close(last[name][:], every[name][ends], rtol=1e-5, atol=1e-5)
    assert torch.equal(last.read, every.read[ends])
    later = nl.activations.collect(model, IDS, name, tmp_path / "later", context=8, skip_first=2)
    assert torch.equal(later[name][:], every[name][every.pos % 8 >= 2])


def test_a_checksum_tells_whether_the_model_had_read_the_same(model: Any, tmp_path: Path) -> None:
    stored = nl.activations.collect(model, IDS, "resid_post", tmp_path, context=8)
    prefixes = [tuple(ids[pos // 8 * 8 : pos + 1]) for ids in IDS for pos in range(len(ids))]
    seen: dict[tuple[int, ...], int] = {}
    for prefix, read in zip(prefixes, stored.read.tolist(), strict=True):
        assert seen.setdefault(prefix, read) == read
    assert len(set(seen.values())) == len(seen) < len(prefixes)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=8),
    st.integers(1, 5),
    st.integers(1, 12),
    st.none() | st.integers(1, 40),
)
def test_every_token_is_in_one_chunk(
    rows: list[list[int]], context: int, size: int, most: int | None
) -> None:
    cut = list(chunks(rows, context, most))
    grouped = list(windows(cut, size))
    assert [chunk for window in grouped for chunk in window] == cut
    found: dict[int, list[int]] = {}
    for chunk in cut:
        own = found.setdefault(chunk.document, [])
        assert chunk.start == len(own)
        assert len(chunk.ids) <= context
        own += chunk.ids
        assert len(kept(chunk, "last", 0)) == (chunk.ends and bool(chunk.ids))
    flat = [(at, token) for at, ids in enumerate(rows) for token in ids]
    assert [(at, token) for at, ids in found.items() for token in ids] == flat[:most]
    assert all(len(w) == 1 or sum(len(chunk.ids) for chunk in w) <= size for w in grouped)


class Rows:
    """A data set as Hugging Face's streams are: rows are dictionaries, and there is no length."""

    def __init__(self, rows: Iterable[dict[str, object]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, object]]:
        return iter(self.rows)


def test_texts_come_as_whatever_holds_them(tmp_path: Path) -> None:
    model = nl.load()
    ids = [model.tokenizer(text).input_ids for text in TEXTS]
    given: dict[str, Any] = {
        "list": TEXTS,
        "iterator": iter(TEXTS),
        "ids": ids,
        "tensors": (torch.tensor(row) for row in ids),
        "rows": Rows({"text": text, "url": ""} for text in TEXTS),
        "encoded": Rows({"input_ids": row, "attention_mask": [1] * len(row)} for row in ids),
    }
    folders = []
    for name, texts in given.items():
        nl.activations.collect(model, texts, "resid_pre", tmp_path / name, batch_size=2)
        folders.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert all(folder == folders[0] for folder in folders)
    one = nl.activations.collect(model, TEXTS[0], "resid_pre", tmp_path / "one")
    tensor = nl.activations.collect(model, torch.tensor([ids[0]]), "resid_pre", tmp_path / "tensor")
    assert torch.equal(one["resid_pre", 1][:], tensor["resid_pre", 1][:])


def test_padding_in_rows_of_a_data_set_is_no_text(model: Any, tmp_path: Path) -> None:
    longest = max(map(len, IDS))
    padding = [[0] * (longest - len(ids)) for ids in IDS]
    masks = [[1] * len(ids) for ids in IDS]
    given: dict[str, Any] = {
        "bare": [{"input_ids": ids} for ids in IDS],
        "right": [
            {"input_ids": torch.tensor(ids + pad), "attention_mask": torch.tensor(mask + pad)}
            for ids, mask, pad in zip(IDS, masks, padding, strict=True)
        ],
        "left": [
            {"input_ids": pad + ids, "attention_mask": pad + mask}
            for ids, mask, pad in zip(IDS, masks, padding, strict=True)
        ],
    }
    folders = []
    for name, texts in given.items():
        nl.activations.collect(model, texts, "resid_pre", tmp_path / name)
        folders.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert folders[0] == folders[1] == folders[2]
    for mask in ([1, 1], [1, 1, 2], "111", 1):
        row = {"input_ids": [4, 5, 6], "attention_mask": mask}
        with pytest.raises(InputError, match="document 1 has 3 token ids and attention_mask"):
            nl.activations.collect(model, [[3], row], "resid_pre", tmp_path / "wrong")


def test_a_document_that_is_cut_off_has_no_last_position(model: Any, tmp_path: Path) -> None:
    whole, most = nl.activations.collect, len(IDS[0]) + len(IDS[1]) - 1
    last = whole(model, IDS, "resid_post", tmp_path / "last", pos="last", max_tokens=most)
    assert last.document.tolist() == [0]
    assert last.pos.tolist() == [len(IDS[0]) - 1]
    last = whole(model, IDS, "resid_post", tmp_path / "two", pos="last", max_tokens=most + 1)
    assert last.document.tolist() == [0, 1]


def test_logits_are_not_computed_unless_asked_for(model: Any, tmp_path: Path) -> None:
    widths: list[int] = []
    handle = model.embed_out.register_forward_hook(
        lambda module, given, out: widths.append(out.shape[1])
    )
    try:
        for site in ("resid_post", "hook_embed", "ln_final.hook_normalized"):
            nl.activations.collect(model, IDS[:1], site, tmp_path / site)
        assert widths == [1]
        nl.activations.collect(model, IDS[:1], "*.hook_out", tmp_path / "logits")
        assert widths == [1, len(IDS[0])]
    finally:
        handle.remove()


def test_a_document_without_tokens_has_no_rows_and_keeps_its_number(
    model: Any, tmp_path: Path
) -> None:
    with pytest.warns(NeoxLabWarning, match="no rows: 0, 2"):
        stored = nl.activations.collect(model, [[], [3, 4], [], [5]], "resid_post", tmp_path)
    assert stored.document.tolist() == [1, 1, 3]
    assert stored.manifest.documents == 4


@pytest.mark.parametrize("texts", [[], [[]], iter([]), ["", ""], [[], []]])
def test_nothing_to_read_leaves_no_folder(tmp_path: Path, texts: Any) -> None:
    with pytest.raises(InputError, match="no token"):
        nl.activations.collect(nl.load(), texts, "resid_post", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[3], [4, 50]], "document 1 has token ids"),
        ([[3], [-1]], "document 1 has token ids"),
        ([[3], 7], "document 1 is 7"),
        ([[3], [1.5]], "document 1 is"),
        ([[3], {"content": "x"}], "document 1 is"),
        ({"text": ["a"]}, "texts="),
        (pd.DataFrame({"text": ["a"]}), "texts="),  # else the names of its columns were read
        (np.array("The king"), "texts="),
        (7, "texts=7"),
        (torch.ones(2, 3), "document 0 is"),
    ],
)
def test_what_is_no_text_is_named(model: Any, tmp_path: Path, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nl.activations.collect(model, texts, "resid_post", tmp_path / "new", batch_size=1)
    assert not list(tmp_path.glob("new/*.safetensors"))


def test_activations_that_are_not_finite_are_named(tmp_path: Path) -> None:
    broken = build()
    with torch.no_grad():
        broken.backbone.embed_in.weight[5] = float("nan")
    with pytest.warns(NeoxLabWarning, match=r"resid_pre' in float32 .* document 1 position 2;"):
        nl.activations.collect(broken, [[3, 4], [6, 7, 5, 8]], "blocks.0.hook_resid_pre", tmp_path)
    model = build()
    with torch.no_grad():
        model.backbone.embed_in.weight[5] = 1e5
    with pytest.warns(NeoxLabWarning, match=r"in float16 .* document 0 position 1;"):
        nl.activations.collect(model, [[3, 5]], "hook_embed", tmp_path / "narrow", dtype="float16")


def test_a_plan_says_what_will_be_there(model: Any, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"context": 8, "skip_first": 1, "max_tokens": 30}
    plan = nl.activations.plan(model, IDS, "resid_post", tmp_path, **arguments)
    stored = nl.activations.collect(model, IDS, "resid_post", tmp_path / "a", **arguments)
    assert (plan.rows, plan.tokens, plan.documents) == (len(stored), 30, 3)
    assert plan.fits and plan.exact
    size = sum(shard.size for shard in stored.manifest.shards)
    assert 0 <= size - (plan.size or 0) < 1000  # the header
    table = pd.Series([{"input_ids": ids} for ids in IDS])
    assert nl.activations.plan(model, table, "resid_post").rows == sum(map(len, IDS))
    texts = iter(IDS)
    bounded = nl.activations.plan(model, texts, "resid_post", max_tokens=1000)
    assert (bounded.rows, bounded.exact) == (1000, False)
    assert nl.activations.plan(model, texts, "resid_post").rows is None
    assert len(list(texts)) == len(IDS)


def test_a_collection_that_has_no_room_does_not_begin(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neox_lab.activations import planning

    each = nl.activations.plan(model, IDS, "resid_post").bytes_per_row
    monkeypatch.setattr(planning, "free_space", lambda to: 40 * each)
    with pytest.raises(CheckpointError, match="no room for 53 rows of 5 documents"):
        nl.activations.collect(model, IDS, "resid_post", tmp_path / "new")
    with pytest.raises(CheckpointError, match="at most 50 rows"):
        nl.activations.collect(model, iter(IDS), "resid_post", tmp_path / "new", max_tokens=50)
    assert not (tmp_path / "new").exists()
    nl.activations.collect(model, IDS, "resid_post", tmp_path / "new", max_tokens=40)
