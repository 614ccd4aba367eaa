"""An exchange equals hooks written by hand, text by text; cached runs equal whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patching_oracle import small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, HookError, HookNameError, InputError
from neox_lab.interchange import Pairs, Site, accuracy, run
from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.pairs import read_pairs
from neox_lab.interchange.running import exchanged

LENGTHS = (9, 6, 7)
SITES = {
    "resid_pre": Site(("resid_pre", 1), -2),
    "resid_post": Site(("resid_post", 0), [-1, 3, 2]),
    "last_post": Site(("resid_post", 1), -1),
    "embed": Site("hook_embed", 2),
    "q": Site(("q", 1), -1, heads=[0, 2]),
    "k": Site(("k", 0), {"one": 1, "two": 3}, heads=1),
    "v": Site(("v", 1), {"one": 1, "two": [4, 2, 3]}),
    "rot_k": Site(("rot_k", 1), 2),
    "z": Site(("z", 1), -1, heads=2),
    "mlp_out": Site("blocks.0.hook_mlp_out", -3),
    "attn_out": Site(("attn_out", 1), -1),
    "mlp_post": Site("blocks.1.mlp.hook_post", -1),
    "q_input": Site("blocks.1.hook_q_input", -1, heads=1),
    "pattern": Site(("pattern", 1), -1, heads=[2, 1]),
    "pattern_all": Site(("pattern", 0), {"one": 4, "two": -1}),
}


def model_of(parallel: bool, dtype: torch.dtype = torch.float64) -> Any:
    """A small model with large weights."""
    return small(use_parallel_residual=parallel).to(dtype)


def texts(seed: int) -> list[Tensor]:
    """Ids of texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 50, (length,), generator=generator) for length in LENGTHS]


def padded(rows: list[Tensor], side: str = "left") -> dict[str, Tensor]:
    """The texts in one batch."""
    width = max(map(len, rows))
    ids, mask = torch.ones(2, len(rows), width, dtype=torch.long)
    mask.zero_()
    for row, text in enumerate(rows):
        where = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def positions(site: Site, row: int) -> list[int]:
    """Places of one text, counted in its own tokens."""
    named = site.pos.values() if isinstance(site.pos, dict) else [site.pos]
    return [where[row] if isinstance(where, list) else where for where in named]  # type: ignore


def by_hand(model: Any, site: Site, base: Tensor, source: Tensor, row: int) -> Tensor:
    """Logits of one text alone, its activations exchanged by plain hooks."""
    (point,) = [p for p in model.hook_points.values() if p.name == full_name(model, site)]
    kept: dict[str, Tensor] = {}
    model.run_with_hooks(source[None], [(point.name, lambda x, hook: kept.update(x=x.clone()))])
    heads = range(3) if site.heads is None else torch.tensor([site.heads]).flatten().tolist()

    def put(x: Tensor, hook: Any) -> Tensor:
        for pos in positions(site, row):
            if "query_pos" in point.axes:
                for head in heads:
                    x[0, head, pos] = kept["x"][0, head, pos]
            elif "head" in point.axes:
                for head in heads:
                    x[0, pos, head] = kept["x"][0, pos, head]
            else:
                x[0, pos] = kept["x"][0, pos]
        return x

    logits: Tensor = model.run_with_hooks(base[None], [(point.name, put)]).logits[0]
    return logits


def full_name(model: Any, site: Site) -> str:
    """The hook's full name."""
    from neox_lab.hooks.names import exact

    return exact(site.hook, model.hook_points)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SITES)
def test_run_equals_hooks_by_hand(parallel: bool, side: str, name: str) -> None:
    model, site = model_of(parallel), SITES[name]
    bases, sources = texts(1), texts(2)
    logits = run(model, padded(bases, side), (site, padded(sources, side))).logits
    own = padded(bases, side)["attention_mask"].bool()
    for row, (base, source) in enumerate(zip(bases, sources, strict=True)):
        expected = by_hand(model, site, base, source, row)
        # Angles are float32, so a text that is shifted differs by their rounding.
        bound = 1e-6 if side == "left" else 1e-10
        torch.testing.assert_close(logits[row][own[row]], expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", SITES)
def test_cached_runs_equal_whole_runs(parallel: bool, name: str) -> None:
    model, site = model_of(parallel), SITES[name]
    bases, sources = [text[:6] for text in texts(1)], [text[:6] for text in texts(2)]
    pairs = Pairs(bases, sources, [3, 4, 5], [6, 7, 8])
    runs = CachedRuns(model, read_pairs(model, pairs), site)
    expected = run(model, torch.stack(bases), (site, torch.stack(sources))).logits[:, -1]
    rows = torch.tensor([2, 0, 1])
    found = runs.logits(rows, lambda own, other: other)
    torch.testing.assert_close(found, expected[rows], atol=1e-10, rtol=1e-10)


def test_cached_runs_of_padded_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nl.load()
    texts = ["The king went to the", "Anna saw the old dog near the", "In the town"]
    others = ["The queen came to the", "Tom lost the old cup near the", "In the church"]
    pairs = Pairs(texts, others, [" a"] * 3, [" the"] * 3)
    site = Site(("resid_post", 1), [3, 2, 1])
    expected = run(model, texts, (site, others)).logits[:, -1]
    for most in (2**30, 0):
        monkeypatch.setattr("neox_lab.interchange.cached_runs.MOST_KEPT", most)
        runs = CachedRuns(model, read_pairs(model, pairs), site)
        assert (runs.first == 0) == (most == 0)
        found = runs.logits(torch.arange(3), lambda own, other: other)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_several_sources_and_a_subspace() -> None:
    model = model_of(True)
    base, one, other = (torch.stack([t[:6] for t in texts(seed)]) for seed in (1, 2, 3))
    directions = torch.linalg.qr(torch.randn(24, 5, dtype=torch.float64)).Q
    first = Site(("v", 0), 2, heads=1)
    second = Site(("resid_post", 0), -1, subspace=directions)
    logits = run(model, base, (first, one), (second, other)).logits
    _, ones = model.run_with_cache(one)
    _, others = model.run_with_cache(other)

    def put_value(x: Tensor, hook: Any) -> None:
        x[:, 2, 1] = ones["v", 0][:, 2, 1]

    def put_part(x: Tensor, hook: Any) -> None:
        projector = directions @ directions.T
        x[:, -1] += (others["resid_post", 0][:, -1] - x[:, -1]) @ projector

    hooks = [("blocks.0.attn.hook_v", put_value), ("blocks.0.hook_resid_post", put_part)]
    torch.testing.assert_close(logits, model.run_with_hooks(base, hooks).logits)
    assert not model.hook_stack.placements


def test_a_cache_is_a_source() -> None:
    model = model_of(False)
    base, source = (torch.stack([t[:6] for t in texts(seed)]) for seed in (1, 2))
    site = Site(("q", 1), -1, heads=0)
    _, cache = model.run_with_cache(source)
    expected = run(model, base, (site, source)).logits
    torch.testing.assert_close(run(model, base, (site, cache)).logits, expected)
    with pytest.raises(CheckpointError, match="another model"):
        run(small(num_hidden_layers=3), base, (site, cache))


def test_a_classifier() -> None:
    model = small("sequence-classification").double()
    rows, others = padded(texts(1)), padded(texts(2))
    found = run(model, rows, (Site(("resid_post", 1), -1), others)).logits
    torch.testing.assert_close(found, model(**others).logits)
    pairs = Pairs([t[:6] for t in texts(1)], [t[:6] for t in texts(2)], [0, 1, 2], [1, 2, 3])
    runs = CachedRuns(model, read_pairs(model, pairs), Site(("resid_post", 0), -1))
    expected = run(
        model,
        torch.tensor(pairs.base),
        (Site(("resid_post", 0), -1), torch.tensor(pairs.source)),
    ).logits
    found = runs.logits(torch.arange(3), lambda own, other: other)
    torch.testing.assert_close(found, expected)


def test_exchanged_never_makes_a_square_matrix() -> None:
    own, other = torch.randn(2, 4, 100_000)
    directions = torch.linalg.qr(torch.randn(100_000, 2)).Q  # a square would be 40 GB
    assert exchanged(own, other, directions).shape == own.shape


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "position": ({"pos": 6}, InputError, "text 0 has 6 tokens"),
    "twice": ({"pos": {"a": 5, "b": -1}}, InputError, "twice"),
    "role": ({"pos": "giver"}, InputError, "no roles are known"),
    "triple": ({"pos": (1, 2, 3)}, InputError, "one of the source"),
    "none": ({"pos": {}}, InputError, "no place"),
    "head": ({"hook": ("q", 0), "heads": 3}, InputError, "heads"),
    "same head": ({"hook": ("q", 0), "heads": [1, 1]}, InputError, "different heads"),
    "no heads": ({"heads": 0}, InputError, "has no heads"),
    "hook": ({"hook": ("resid_mid", 0)}, HookNameError, "resid_mid"),
    "width": ({"subspace": torch.eye(5)}, InputError, r"expected a tensor \[24, rank\]"),
    "skewed": ({"subspace": torch.ones(24, 2)}, InputError, "orthonormal"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_site_is_explained(name: str) -> None:
    model = small()
    base, source = (torch.stack([t[:6] for t in texts(seed)]) for seed in (1, 2))
    given, kind, message = BAD[name]
    site = Site(**{"hook": ("resid_post", 0), "pos": -1, **given})
    with pytest.raises(kind, match=message):
        run(model, base, (site, source))
    assert not model.hook_stack.placements


def test_unequal_lengths_are_explained() -> None:
    model = small()
    base, source = torch.arange(2, 8)[None], torch.arange(2, 9)[None]
    run(model, base, (Site(("resid_post", 0), (2, 5)), source))
    for site in (Site(("resid_post", 0), None), Site(("pattern", 0), -1)):
        with pytest.raises(InputError, match="the base has 6 tokens and the source 7"):
            run(model, base, (site, source))
    with pytest.raises(InputError, match="1 bases and 2 sources"):
        run(model, base, (Site(("resid_post", 0), -1), torch.arange(2, 14).view(2, 6)))
    with pytest.raises(InputError, match="nothing to exchange"):
        run(model, base)


@pytest.mark.parametrize("hook", ["pattern", "attn_scores"])
def test_a_query_does_not_look_ahead(hook: str) -> None:
    """The row of a later query would let an earlier one read what comes after it."""
    model = small()
    base, source = torch.arange(2, 8)[None], torch.arange(3, 9)[None]
    with pytest.raises(InputError, match="ahead of itself"):
        run(model, base, (Site((hook, 0), (2, 5)), source))
    run(model, base, (Site((hook, 0), (5, -1)), source))


def test_a_subspace_is_as_exact_in_a_half_precision_model() -> None:
    """Only activations are rounded: rounded columns would not be orthonormal any more."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(64, 16, generator=generator)).Q
    own, other = torch.randn(2, 500, 64, generator=generator).bfloat16()
    wide = (other - own).double() @ directions.double() @ directions.double().T
    exact = own.double() + wide
    least = (exact.bfloat16() - exact).square().mean()  # what is handed on is half precision
    error = (exchanged(own, other, directions) - exact).square().mean()
    assert error < 2 * least  # with rounded columns 2.6 times


def test_hooks_that_write_are_refused() -> None:
    model = small()
    pairs = Pairs([[3, 4]], [[5, 6]], [7], [8])
    with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: 0 * x)]):
        with pytest.raises(HookError, match="Hooks that write are in force"):
            accuracy(model, pairs, Site(("resid_post", 0), -1))
    accuracy(model, pairs, Site(("resid_post", 0), -1))
