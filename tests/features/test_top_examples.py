"""Top examples against a dense pass that keeps everything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dictionaries import random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import pair
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookNameError, InputError
from neox_lab.features import heaps, together
from neox_lab.features.heaps import Entries, Highest, one_of_each
from neox_lab.gym import planting
from neox_lab.sae.codes import packed

SITE = "blocks.1.hook_mlp_out"
CONTEXT, WINDOW, SKIPPED = 24, 5, 1
LATENTS = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return pair()[1]


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Documents of 0 to 70 tokens: some have several chunks, some nothing that counts."""
    generator = torch.Generator().manual_seed(5)
    lengths = [0, 1, 24, 25, *torch.randint(2, 70, (16,), generator=generator).tolist()]
    return [torch.randint(2, 211, (n,), generator=generator).tolist() for n in lengths]


def rounded(site: str = SITE, latents: int = LATENTS) -> nl.features.Source:
    """Activations in steps of a quarter, so that many are equal."""

    def read(cache: Any, ids: Tensor) -> Any:
        return packed((cache[site][..., :latents].relu() * 4).round() / 4)

    return nl.features.Source("rounded", "feature", (site,), latents, read)


def dense_rows(
    model: Any, source: Any, documents: list[list[int]]
) -> Iterator[tuple[int, int, Tensor]]:
    """Document, position of the first token and activations ``[pos, latent]`` of each chunk."""
    for number, ids in enumerate(documents):
        for start in range(0, len(ids), CONTEXT):
            part = torch.tensor([ids[start : start + CONTEXT]])
            _, cache = model.run_with_cache(part)
            encodes = isinstance(source, nl.sae.Dictionary)
            codes = source.encode(cache[SITE]) if encodes else source(cache, part)
            yield number, start, codes.dense()[0]


@torch.no_grad()
def by_brute_force(
    model: Any, source: Any, documents: list[list[int]], top: int
) -> list[list[tuple[float, int, int]]]:
    """For each latent (value, document, position) of its highest windows."""
    found: dict[int, list[tuple[float, int, int]]] = {}
    for number, start, dense in dense_rows(model, source, documents):
        acts = dense.tolist()
        for latent in range(len(acts[0])):
            for low in range(0, len(acts), WINDOW):
                within = range(max(low, SKIPPED), min(low + WINDOW, len(acts)))
                there = [(acts[at][latent], number, start + at) for at in within]
                active = [one for one in there if one[0] != 0]
                if active:
                    best = min(active, key=lambda one: (-one[0], one[2]))
                    found.setdefault(latent, []).append(best)
    return [
        sorted(found.get(at, []), key=lambda one: (-one[0], one[1:]))[:top] for at in range(LATENTS)
    ]


def asked(model: Any, what: Any, documents: list[list[int]], **options: Any) -> Any:
    given_options = {"context": CONTEXT, "window": WINDOW, "progress": False, "batch_size": 7}
    return nl.features.top_examples(model, what, documents, **(given_options | options))


def listed(found: Any, latent: int, split: str = "train") -> list[tuple[float, int, int]]:
    frame = found.examples(latent)
    frame = frame[(frame["group"] == "top") & (frame["split"] == split)]
    return list(zip(frame["value"], frame["document"], frame["position"], strict=True))


@pytest.mark.parametrize("kind", ["TopK", "TopK signed", "JumpReLU", "rounded"])
def test_top_20_are_those_of_a_dense_pass(
    model: Any, documents: list[list[int]], kind: str
) -> None:
    what: Any = (
        rounded() if kind == "rounded" else random_dictionary(64, SITE, latents=LATENTS, kind=kind)
    )
    expected = by_brute_force(model, getattr(what, "read", what), documents, 20)
    found = asked(model, what, iter(documents))
    compared = 0
    for latent, rows in enumerate(expected):
        own = listed(found, latent)
        assert [row[1:] for row in own] == [row[1:] for row in rows], latent
        assert [row[0] for row in own] == pytest.approx([row[0] for row in rows], abs=1e-5)
        compared += len(rows)
    assert compared > 100
    if kind == "rounded":  # the order of equal ones is tested
        assert sum(len({row[0] for row in rows}) < len(rows) for rows in expected) > 10


def test_statistics_are_those_of_a_dense_pass(model: Any, documents: list[list[int]]) -> None:
    what = random_dictionary(64, SITE, latents=LATENTS, kind="JumpReLU")
    found = asked(model, what, documents, skip_first=2)
    with torch.no_grad():
        acts = torch.cat([acts[2:] for _, _, acts in dense_rows(model, what, documents)])
    assert found.counted == len(acts)
    frame = found.frame
    active = (acts != 0).sum(dim=0)
    assert frame["tokens"].tolist() == active.tolist()
    assert frame["density"].to_numpy() == pytest.approx((active / len(acts)).numpy())
    mean = (acts.double().sum(dim=0) / active).numpy()
    assert frame["mean"].to_numpy() == pytest.approx(mean, abs=1e-5, nan_ok=True)
    some = int(active.argmax())
    assert frame["max"][some] == pytest.approx(float(acts[:, some].max()), abs=1e-5)
    bins = found.activations(some)
    for low, high, count in bins.itertuples(index=False):
        assert count == int(((acts[:, some] >= low) & (acts[:, some] < high)).sum())
    assert bins["tokens"].sum() == active[some]


def test_how_texts_are_cut_into_batches_does_not_matter(
    model: Any, documents: list[list[int]]
) -> None:
    one, other = (asked(model, rounded(), documents, batch_size=size) for size in (1, 50))
    assert one == other
    assert one != asked(model, rounded(), documents, seed=1)


def test_documents_held_out_are_in_no_other_split(model: Any, documents: list[list[int]]) -> None:
    found = asked(model, rounded(), documents, held_out=0.4)
    seen: dict[str, set[int]] = {"train": set(), "held-out": set()}
    for latent in range(LATENTS):
        for split, document in found.examples(latent)[["split", "document"]].itertuples(
            index=False
        ):
            seen[split].add(document)
    assert not seen["train"] & seen["held-out"]
    assert len(seen["train"]) > 4 and len(seen["held-out"]) > 3
    assert len(seen["held-out"]) <= found.held_out_documents
    total = sum(map(len, documents))
    whole = asked(model, rounded(), documents, held_out=0.999999)
    cut = asked(model, rounded(), documents, held_out=0.999999, max_tokens=total - 1)
    assert whole.held_out_documents == whole.corpus.documents  # one that is cut off is one, too
    assert cut.held_out_documents == cut.corpus.documents
    expected = by_brute_force(model, rounded().read, documents, 10**6)
    for split, numbers in seen.items():
        for latent, rows in enumerate(expected):
            own = [row for row in rows if row[1] in numbers]
            assert listed(found, latent, split) == own[:20]


def test_examples_at_quantiles_are_windows_spread_over_all(
    model: Any, documents: list[list[int]]
) -> None:
    found = asked(model, rounded(), documents, quantiles=4)
    everything = by_brute_force(model, rounded().read, documents, 10**6)
    for latent in range(0, LATENTS, 5):
        frame = found.examples(latent)
        rows = frame[frame["group"] == "quantile"]
        places = set(rows[["value", "document", "position"]].itertuples(index=False, name=None))
        assert places <= set(everything[latent])
        assert rows["quantile"].tolist() == [0.125, 0.375, 0.625, 0.875]
        assert rows["value"].is_monotonic_decreasing
        values = np.array([row[0] for row in everything[latent]])
        middle = rows["value"].iloc[1:3].mean()
        assert np.quantile(values, 0.1) <= middle <= np.quantile(values, 0.97)


def test_strips_have_the_activations_around(model: Any, documents: list[list[int]]) -> None:
    what = random_dictionary(64, SITE, latents=LATENTS, kind="TopK")
    found = asked(model, what, documents)
    latent = int(found.active.argmax())
    with torch.no_grad():
        rows = {(n, s): acts for n, s, acts in dense_rows(model, what, documents)}
    strips = found.strips(latent)
    assert len(strips) == len(found.examples(latent)) > 20
    for one in strips:
        start = one.position // CONTEXT * CONTEXT
        first = one.position - one.at
        acts = rows[one.document, start][first - start :][: len(one.pieces), latent].numpy().copy()
        if first == start:
            acts[:SKIPPED] = math.nan
        assert one.values == pytest.approx(acts, abs=1e-5, nan_ok=True)
        ids = documents[one.document][first : first + len(one.pieces)]
        assert one.pieces == [str(token) for token in ids]
        assert one.values[one.at] == pytest.approx(one.value, abs=1e-5)
    with torch.no_grad():
        model.blocks[1].block.mlp.dense_4h_to_h.weight.mul_(-1)
    try:
        with pytest.raises(InputError, match="another activation"):
            found.strips(latent)
    finally:
        with torch.no_grad():
            model.blocks[1].block.mlp.dense_4h_to_h.weight.mul_(-1)


@pytest.mark.parametrize("kind", ["TopK", "TopK signed", "JumpReLU"])
@pytest.mark.parametrize("many", [0, 10**6])
def test_who_is_active_together_is_counted_at_every_token(
    model: Any, documents: list[list[int]], kind: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to count, in parts, against one look at every pair of every token."""
    what = random_dictionary(64, SITE, latents=LATENTS, kind=kind)
    counts = torch.zeros(LATENTS, LATENTS, dtype=torch.int64)
    with torch.no_grad():
        for _, _, acts in dense_rows(model, what, documents):
            for token in acts[SKIPPED:]:
                there = token.nonzero()[:, 0].tolist()
                for one in there:
                    for other in there:
                        counts[one, other] += 1
    monkeypatch.setattr(together, "DENSER", many)
    monkeypatch.setattr(together, "AT_ONCE", 999)
    every = asked(model, what, documents, held_out=0.3)
    some = asked(model, what, documents, together=[7, 3, 7])
    assert (counts.fill_diagonal_(0) > 0).sum() > 100
    for latent in range(LATENTS):
        frame = every.together(latent, LATENTS)
        wanted = counts[latent]
        assert len(frame) == int((wanted > 0).sum())
        assert frame["tokens"].is_monotonic_decreasing and frame["exact"].all()
        for row in frame.itertuples():
            assert row.tokens == int(wanted[row.latent]) and row.of == int(every.active[latent])
            assert row.share == pytest.approx(row.tokens / row.of)
        if latent in (3, 7):
            assert some.together(latent, LATENTS).equals(frame)
        else:
            assert not some.together(latent)["exact"].any()
    words = "Active at the same tokens, of"
    assert f"{words} {int(every.active[3]):,}<" in nl.features.page(every, 3)
    assert " drawn<" in nl.features.page(some, 4)


def test_of_many_features_who_is_active_together_is_estimated(
    model: Any, documents: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "ALL_OF", LATENTS - 1)
    what = random_dictionary(64, SITE, latents=LATENTS, kind="TopK")
    found = asked(model, what, documents)
    latent = int(found.active.argmax())
    with torch.no_grad():
        rows = {(n, s): acts for n, s, acts in dense_rows(model, what, documents)}
    places = found.splits["train"].sample_place[latent]
    spots = [found.corpus.spot(int(place)) for place in places if place >= 0]
    at = [rows[s.document, s.position // CONTEXT * CONTEXT][s.position % CONTEXT] for s in spots]
    counts = (torch.stack(at) != 0).sum(dim=0)
    frame = found.together(latent, LATENTS)
    assert len(frame) == int((counts > 0).sum()) - 1 and not frame["exact"].any()
    for row in frame.itertuples():
        assert row.latent != latent and row.tokens == int(counts[row.latent])
        assert row.of == len(spots) and row.share == pytest.approx(row.tokens / row.of)


def sources(model: Any) -> dict[str, tuple[Any, Any]]:
    """Whatever has features, and its activations written out."""
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    resid = "blocks.0.hook_resid_post"
    head = nl.features.Head
    pattern = "blocks.2.attn.hook_pattern"

    def previous(cache: Any) -> Tensor:
        paid = torch.zeros(cache[pattern].shape[0], cache[pattern].shape[2])
        for pos in range(1, paid.shape[1]):
            paid[:, pos] = cache[pattern][:, 1, pos, pos - 1]
        return paid[..., None]

    return {
        "neurons": ("blocks.1.mlp.hook_post", lambda c: c["blocks.1.mlp.hook_post"].relu()),
        "short": (("z", 0), lambda c: c["blocks.0.attn.hook_z"].flatten(2).relu()),
        "direction": (
            nl.features.Direction(vector, resid, bias=-0.5),
            lambda c: (c[resid] @ vector - 0.5)[..., None].relu(),
        ),
        "head": (head(2, 1), lambda c: c["result", 2][:, :, 1].norm(dim=-1)[..., None]),
        "along": (
            head(2, 1, along=vector),
            lambda c: (c["result", 2][:, :, 1] @ vector / vector.norm())[..., None].relu(),
        ),
        "previous": (head(2, 1, to="previous"), previous),
        "first": (head(2, 1, to="first"), lambda c: c[pattern][:, 1, :, 0][..., None]),
        "itself": (
            head(2, 1, to="itself"),
            lambda c: c[pattern][:, 1].diagonal(dim1=1, dim2=2)[..., None],
        ),
    }


@pytest.mark.parametrize(
    "name", ["neurons", "short", "direction", "head", "along", "previous", "first", "itself"]
)
def test_whatever_has_features(model: Any, documents: list[list[int]], name: str) -> None:
    what, by_hand = sources(model)[name]
    found = asked(model, what, documents)
    expected = by_brute_force(model, lambda c, _: packed(by_hand(c)[..., :LATENTS]), documents, 20)
    for latent, rows in enumerate(expected[: found.source.latents]):
        own = listed(found, latent)
        assert [row[0] for row in own] == pytest.approx([row[0] for row in rows], abs=1e-4)
        if name != "first":  # equal up to rounding at many places
            assert [row[1:] for row in own] == [row[1:] for row in rows]
    assert found.source.name_of(0) in found.view(0).title


@torch.no_grad()
def test_logit_effects_go_through_norm_and_unembedding(model: Any, documents: Any) -> None:
    what = random_dictionary(64, SITE, latents=LATENTS)
    found = asked(model, what, documents)
    frame = found.logit_effects(9, count=300)
    direction = what.W_dec[9].double()
    norm = model.backbone.final_layer_norm
    expected = model.W_U.T.double() @ ((direction - direction.mean()) * norm.weight.double())
    expected -= expected.mean()
    assert frame["effect"].is_monotonic_decreasing
    by_token = dict(zip(frame["token"], frame["effect"], strict=True))
    assert [by_token[at] for at in range(211)] == pytest.approx(expected.tolist(), abs=1e-5)
    few = found.logit_effects(9, count=2)
    assert few["token"].tolist() == [*frame["token"][:2], *frame["token"][-2:]]
    neurons = asked(model, "blocks.1.mlp.hook_post", documents)
    assert torch.equal(neurons.source.directions, model.blocks[1].W_out.detach())
    assert not len(asked(model, "blocks.1.mlp.hook_in", documents).logit_effects(0))


def test_nearest_features_by_cosine(model: Any, documents: Any) -> None:
    what = random_dictionary(64, SITE, latents=LATENTS)
    frame = asked(model, what, documents).nearest(9, 99)
    rows = torch.nn.functional.normalize(what.W_dec.detach(), dim=1)
    cosines = dict(enumerate((rows @ rows[9]).tolist()))
    assert 9 not in set(frame["latent"]) and len(frame) == LATENTS - 1
    assert frame["cosine"].tolist() == pytest.approx(
        [cosines[at] for at in frame["latent"]], abs=1e-6
    )
    assert frame["cosine"].is_monotonic_decreasing


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=12),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 5),
    st.integers(1, 30),
)
def test_merging_keeps_what_sorting_everything_keeps(
    batches: list[list[tuple[int, int]]], size: int, together: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heaps, "TOGETHER", together)
        _merged_as_sorted(batches, size)


def _merged_as_sorted(batches: list[list[tuple[int, int]]], size: int) -> None:
    heap, everything, place = Highest(4, size), [], 0
    for batch in batches:
        rows = [(latent, float(score), place + at) for at, (latent, score) in enumerate(batch)]
        place += len(rows)
        everything += rows
        shuffled = sorted(rows, key=lambda row: hash(row))
        latents, scores, places = (torch.tensor([r[i] for r in shuffled]) for i in range(3))
        scores = scores.float()
        heap.offer(Entries(latents.long(), scores, scores * 2, places.long()))
    heap.settle()
    for latent in range(4):
        own = sorted((-score, at) for which, score, at in everything if which == latent)[:size]
        assert heap.place[latent].tolist() == [at for _, at in own] + [-1] * (size - len(own))
        assert heap.value[latent, : len(own)].tolist() == [-2 * score for score, _ in own]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 2)), min_size=1, max_size=30))
def test_of_each_group_the_highest_and_earliest(rows: list[tuple[int, int]]) -> None:
    group, value = (torch.tensor([row[at] for row in rows]) for at in (0, 1))
    place = torch.arange(len(rows)).flip(0)
    kept = one_of_each(group, Entries(group, value.float(), value.float(), place))
    expected = {}
    for g, v, p in zip(group.tolist(), value.tolist(), place.tolist(), strict=True):
        expected[g] = min(expected.get(g, (99, 99)), (-v, p))
    assert dict(zip(kept.latent.tolist(), kept.place.tolist(), strict=True)) == {
        g: p for g, (_, p) in expected.items()
    }


def test_bad_arguments_have_one_clear_error_each(model: Any, documents: Any) -> None:
    wrong = random_dictionary(32, SITE)
    with pytest.raises(InputError, match="made for 32 numbers at a position"):
        asked(model, wrong, documents)
    with pytest.raises(HookNameError):
        asked(model, random_dictionary(64, "blocks.9.hook_mlp_out"), documents)
    with pytest.raises(InputError, match=r"nl\.features\.Head"):
        asked(model, "blocks.1.attn.hook_pattern", documents)
    with pytest.raises(InputError, match="expected a dictionary, a hook name"):
        asked(model, 3, documents)
    with pytest.raises(InputError, match="no token in the texts that counts"):
        asked(model, SITE, [[5], []])
    with pytest.raises(InputError, match="no token in the texts that counts"):
        asked(model, SITE, [])
    with pytest.raises(InputError, match="finite numbers that are not all 0"):
        asked(model, nl.features.Direction(torch.zeros(64), SITE), documents)
    with pytest.raises(InputError, match="along a vector or by what it attends to"):
        asked(model, nl.features.Head(0, 0, torch.ones(64), "first"), documents)

    def broken(cache: Any, ids: Tensor) -> Any:
        return packed(torch.where(ids[..., None] == documents[7][3], torch.nan, 1.0))

    with pytest.raises(InputError, match=r"NaN or infinite in document \d"):
        asked(model, nl.features.Source("x", "x", (SITE,), 1, broken), documents)
    found = asked(model, SITE, documents)
    for latent in (64, -65, "a", 1.5):
        with pytest.raises(InputError, match="latent"):
            found.examples(latent)


def test_texts_are_read_one_by_one_and_the_state_of_chance_stays() -> None:
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**small())).eval()
    model.tokenizer = planting.tokenizer()
    texts = ["hello there", "the cat", "abc abc abc"]
    state = torch.get_rng_state()
    found = nl.features.top_examples(model, "blocks.0.mlp.hook_post", (t for t in texts), top=3)
    assert torch.equal(state, torch.get_rng_state())
    frame = found.examples(int(found.active.argmax()))
    for row in frame.itertuples():
        assert row.text == texts[row.document][: len(row.text)]
        assert texts[row.document][row.position] == row.token
    overall = found.view()
    assert sum(overall.values) == found.source.latents


def small() -> dict[str, Any]:
    return {
        "vocab_size": 96,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }


def broken(what: str) -> nl.features.Source:
    """A source of one's own that does not give what it says."""

    def read(cache: Any, ids: Tensor) -> Any:
        shape = (1, 1, 2) if what == "shape" else (*ids.shape, 2)
        indices = torch.zeros(shape, dtype=torch.int32 if what == "dtype" else torch.int64)
        indices += {"above": 7, "below": -1}.get(what, 0)
        codes = nl.sae.Codes(indices, torch.ones(shape), 4 if what == "count" else 3)
        return None if what == "nothing" else codes

    return nl.features.Source("mine", "feature", (SITE,), 3, read)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", "'mine' gave None; expected Codes"),
        ("shape", r"gave codes \[1, 1, 2\] of 3 features"),
        ("count", r"of 4 features.*of 3, torch\.int64"),
        ("dtype", "indices torch.int32"),
        ("above", "indices from 7 to 7; there are 3"),
        ("below", "indices from -1 to -1"),
    ],
)
def test_a_source_that_gives_something_else_is_named(model: Any, what: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked(model, broken(what), [[1, 2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"latents": 0}, "latents=0"),
        ({"labels": ("one",)}, "labels are 1; there are 3"),
        ({"directions": torch.ones(2, 64)}, "directions are 2"),
    ],
)
def test_a_source_that_does_not_fit_together_is_refused(given: dict[str, Any], words: str) -> None:
    fields = {"title": "t", "noun": "n", "sites": (SITE,), "latents": 3, "read": broken("").read}
    with pytest.raises(InputError, match=words):
        nl.features.Source(**(fields | given))


def test_the_default_dtype_does_not_matter(model: Any, documents: list[list[int]]) -> None:
    what = random_dictionary(64, SITE, latents=LATENTS, kind="TopK")
    usual = asked(model, what, documents)
    torch.set_default_dtype(torch.float64)
    try:
        assert asked(model, what, documents) == usual
        assert len(usual.strips(int(usual.active.argmax()))) > 20
    finally:
        torch.set_default_dtype(torch.float32)
