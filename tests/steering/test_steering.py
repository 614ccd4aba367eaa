"""Directions and steering, against arithmetic and loops written out here."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from oracle import CLASSES
from steered_models import NEGATIVE, POSITIVE, SITE, build
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import CheckpointError, DataError, HookNameError, InputError


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(use_parallel_residual=request.param)


@pytest.fixture(scope="module")
def found(model: Any) -> nl.steering.Direction:
    return nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)


def at_last(model: Any, texts: list[str], site: str = SITE) -> Tensor:
    return torch.cat([model.run_with_cache(t)[1][site][0, -1:] for t in texts])


def padded(model: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    rows = [model.tokenizer(text).input_ids for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def by_hand(
    model: Any, ids: Tensor, mask: Tensor, vector: Tensor, start: int, count: int
) -> Tensor:
    """Greedy decoding without cache and without hooks: the stream is edited between two runs."""
    for _ in range(count):
        places = mask.cumsum(dim=1) - 1
        given = {"attention_mask": mask, "position_ids": places.clamp(min=0)}
        stream = model(ids, stop_at_layer=2, use_cache=False, **given).last_hidden_state
        chosen = (places >= start) & (mask > 0)
        stream = stream + chosen[..., None] * vector
        logits = model(inputs_embeds=stream, start_at_layer=2, use_cache=False, **given).logits
        ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return ids


def test_the_mean_difference_is_read_where_it_is_written(model: Any) -> None:
    last = f"blocks.{model.config.num_hidden_layers - 1}.hook_resid_post"
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site="resid_post")
    assert list(found.vectors) == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    for site in (SITE, last):
        expected = at_last(model, POSITIVE, site).mean(0) - at_last(model, NEGATIVE, site).mean(0)
        torch.testing.assert_close(found.vectors[site], expected, atol=1e-5, rtol=1e-5)
    with found.at(last).steer(1.0, positions="last"):
        _, cache = model.run_with_cache(NEGATIVE[0])
    moved = at_last(model, NEGATIVE[:1], last)[0] + found.vectors[last]
    torch.testing.assert_close(cache[last][0, -1], moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [0, 2, 4, 6])
@pytest.mark.parametrize("use_cache", [True, False])
def test_steered_generation_is_a_loop_without_cache(
    model: Any, found: nl.steering.Direction, start: int, use_cache: bool
) -> None:
    ids, mask = padded(model, ["abcde", "ba", "cfg"])
    vector = 3.0 * found.vectors[SITE]
    expected = by_hand(model, ids, mask, vector, start, 8)
    plain = by_hand(model, ids, mask, 0 * vector, 0, 8)
    assert not torch.equal(expected, plain)
    with found.steer(3.0, positions=slice(start, None)):
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=use_cache,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert torch.equal(made, expected)
    after = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(after, plain)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last", [1, 3, 7], 6])
@pytest.mark.parametrize("beams", [1, 3])
def test_cache_or_none_is_the_same(
    model: Any, found: nl.steering.Direction, positions: Any, beams: int
) -> None:
    ids, mask = padded(model, ["abcde", "ba", "cfg"])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "num_beams": beams}
    texts = []
    for use_cache in (True, False):
        with found.steer(4.0, positions=positions):
            texts.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **options))
    assert torch.equal(*texts)
    single = []
    for row in range(3):
        own = ids[row : row + 1, mask[row].argmax() :]
        with found.steer(4.0, positions=positions):
            single.append(model.generate(own, **options)[0, own.shape[1] :])
    assert torch.equal(torch.stack(single), texts[0][:, ids.shape[1] :])


def test_a_loop_with_a_cache_by_hand(model: Any, found: nl.steering.Direction) -> None:
    ids = torch.randint(1, 90, (2, 9))
    with found.steer(2.0, positions=slice(4, 7)):
        whole = model(ids).logits
        first = model(ids[:, :3], use_cache=True)
        rest = [first.logits]
        for at in range(3, 9):
            step = model(ids[:, at : at + 1], past_key_values=first.past_key_values)
            rest.append(step.logits)
    torch.testing.assert_close(torch.cat(rest, dim=1), whole, atol=1e-4, rtol=1e-4)
    with found.steer(2.0, positions="last"):
        cached = model(ids[:, :3], use_cache=True).past_key_values
        with pytest.raises(InputError, match="absolute positions"):
            model(ids[:, 3:], past_key_values=cached)


@pytest.mark.parametrize("name", CLASSES)
def test_all_classes_are_steered(name: str) -> None:
    model = build(name)
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)
    seen = []
    with (
        found.steer(1.5),
        model.hooks([("blocks.2.hook_resid_pre", lambda x, hook: seen.append(x))]),
    ):
        model("abcd")
    plain = model("abcd", stop_at_layer=2).last_hidden_state
    torch.testing.assert_close(seen[0], plain + 1.5 * found.vectors[SITE], atol=1e-5, rtol=1e-5)


def test_modes_are_their_formulas(model: Any, found: nl.steering.Direction) -> None:
    vector = found.vectors[SITE]
    unit = vector / vector.norm()
    x = model("abcde", stop_at_layer=2).last_hidden_state
    low = float((at_last(model, NEGATIVE) @ unit).mean())
    high = float((at_last(model, POSITIVE) @ unit).mean())

    def made(scale: float, mode: str) -> Tensor:
        with found.steer(scale, mode=mode):
            return model("abcde", stop_at_layer=2).last_hidden_state

    kept = made(2.0, "norm-preserving")
    torch.testing.assert_close(kept.norm(dim=-1), x.norm(dim=-1))
    moved = x + 2 * vector
    torch.testing.assert_close(
        kept / kept.norm(dim=-1, keepdim=True),
        moved / moved.norm(dim=-1, keepdim=True),
        atol=1e-5,
        rtol=1e-5,
    )
    for scale, level in ((0.0, low), (1.0, high)):
        along = made(scale, "clamp") @ unit
        torch.testing.assert_close(along, torch.full_like(along, level), atol=1e-3, rtol=1e-4)
    assert (made(1.0, "ablate") @ unit).abs().max() < 1e-5
    torch.testing.assert_close(made(0.5, "ablate") @ unit, x @ unit / 2, atol=1e-4, rtol=1e-4)


def test_several_directions_at_once(model: Any) -> None:
    one = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)
    two = nl.steering.direction(model, NEGATIVE, POSITIVE, site=("resid_post", 0))
    with nl.steering.steer((one, 2.0), (two, -1.0), positions=[0, 2]):
        both = model("abcde").logits
    with one.steer(2.0, positions=[0, 2]), two.steer(-1.0, positions=[0, 2]):
        torch.testing.assert_close(model("abcde").logits, both)
    other = nl.steering.direction(build(), POSITIVE, NEGATIVE, site=SITE)
    steering = nl.steering.steer((one, 1.0), (other, 1.0))
    with pytest.raises(InputError, match="different models"), steering:
        pass


def test_a_principal_component_keeps_the_mean(model: Any) -> None:
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE, method="pca")
    differences = (at_last(model, POSITIVE) - at_last(model, NEGATIVE)).double()
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    unit = vectors[:, values.argmax()]
    along = differences.mean(0) @ unit
    torch.testing.assert_close(found.vectors[SITE].double(), along * unit, atol=1e-4, rtol=1e-4)
    swapped = nl.steering.direction(model, NEGATIVE, POSITIVE, site=SITE, method="pca")
    torch.testing.assert_close(swapped.vectors[SITE], -found.vectors[SITE])


@pytest.mark.parametrize("method", ["mean_difference", "pca", "logistic", "probe"])
def test_a_planted_direction_is_found(method: str) -> None:
    """Where one direction makes the difference, every method finds it, and no control does."""
    model = build()
    generator = torch.Generator().manual_seed(1)
    planted = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    with torch.no_grad():
        rows = model.gpt_neox.embed_in.weight
        signs = torch.zeros(96)
        ids = [model.tokenizer("abcd").input_ids, model.tokenizer("efgh").input_ids]
        signs[ids[0]], signs[ids[1]] = 1.0, -1.0
        rows += 3 * signs[:, None] * planted
        for block in model.gpt_neox.layers:
            block.attention.dense.weight *= 0.05
            block.mlp.dense_4h_to_h.weight *= 0.05
    texts = ["".join(t) for t in itertools.permutations("abcd", 3)]
    others = [t.translate(str.maketrans("abcd", "efgh")) for t in texts]
    found = nl.steering.direction(model, texts, others, site=SITE, method=method)
    cosine = torch.nn.functional.cosine_similarity(found.vectors[SITE], planted, dim=0)
    assert cosine > (0.3 if method == "probe" else 0.9)  # ridge weighs noise, too
    row = found.frame.iloc[0]
    assert row.separation > 0.95
    if method != "probe":  # which is tried on five texts
        assert abs(row.null - 0.5) < 0.2
    for kind in ("random", "shuffled"):
        control = found.control(kind).vectors[SITE]
        torch.testing.assert_close(control.norm(), found.vectors[SITE].norm())
        assert abs(torch.nn.functional.cosine_similarity(control, planted, dim=0)) < 0.6
    with found.steer(-6.0 if method == "probe" else -1.0):
        moved = model.run_with_cache(texts[0])[1][SITE][0, -1] @ planted
    assert float(moved) < 0 < float(at_last(model, texts[:1])[0] @ planted)


def test_where_texts_are_read(model: Any) -> None:
    def vector(positions: Any) -> Tensor:
        return nl.steering.direction(
            model, POSITIVE, NEGATIVE, site=SITE, positions=positions
        ).vectors[SITE]

    def mean(texts: list[str], rows: Any) -> Tensor:
        values = [model.run_with_cache(text)[1][SITE][0] for text in texts]
        return torch.cat([rows(v) for v in values]).mean(0)

    for positions, rows in (
        ("all", lambda v: v[1:]),
        ("mean", lambda v: v[1:].mean(0)[None]),
        (1, lambda v: v[1:2]),
        ([-2] * 12, lambda v: v[-2:-1]),
    ):
        expected = mean(POSITIVE, rows) - mean(NEGATIVE, rows)
        torch.testing.assert_close(vector(positions), expected, atol=1e-5, rtol=1e-5)
    marked = nl.steering.token([*"bbcbdb", *"fgefeh"])
    expected = torch.stack(
        [
            sign * model.run_with_cache(text)[1][SITE][0, text.rindex(letter)] / 6
            for texts, letters, sign in ((POSITIVE, "bbcbdb", 1), (NEGATIVE, "fgefeh", -1))
            for text, letter in zip(texts, letters, strict=True)
        ]
    ).sum(0)
    torch.testing.assert_close(vector(marked), expected, atol=1e-5, rtol=1e-5)


def test_texts_pairs_labels_and_collections_are_one(model: Any, tmp_path: Any) -> None:
    expected = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE).sites[SITE]
    pairs = nl.steering.direction(model, list(zip(POSITIVE, NEGATIVE, strict=True)), site=SITE)
    labels = ["no"] * 6 + ["yes"] * 6
    named = nl.steering.direction(model, NEGATIVE + POSITIVE, site=SITE, labels=labels)
    stored = nl.activations.collect(
        model, NEGATIVE + POSITIVE, SITE, tmp_path / "s", progress=False, dtype="float32"
    )
    kept = nl.steering.direction(model, stored, site=SITE, labels=labels)
    for found in (pairs, named, kept):
        at = found.sites[SITE]
        torch.testing.assert_close(at.vector, expected.vector, atol=1e-5, rtol=1e-5)
        assert at.site_norm == pytest.approx(expected.site_norm, rel=1e-5)
        assert at.origin == pytest.approx(expected.origin, rel=1e-4)


@pytest.mark.parametrize("positions", ["mean", "all", 1])
def test_collections_are_read_where_texts_are(model: Any, tmp_path: Any, positions: Any) -> None:
    """First tokens, whose activations are of another size, are left out of means alike."""
    texts = {"positive": [*POSITIVE, "ab"], "negative": [*NEGATIVE, "eg"]}
    if positions == "mean":
        texts["positive"].append("c")  # has no other token than the first
    stored = {
        side: nl.activations.collect(model, given, SITE, tmp_path / side, progress=False)
        for side, given in texts.items()
    }
    found, expected = (
        nl.steering.direction(model, **sides, site=SITE, positions=positions).vectors[SITE]
        for sides in (stored, texts)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", ["hook_embed", "embed", "*embed"])
def test_the_embedding_is_a_site(model: Any, site: str, tmp_path: Any) -> None:
    """Whatever it is called, and wherever the direction came from."""
    ids, mask = padded(model, ["abcde", "ba"])
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=site, positions=1)
    (vector,) = found.vectors.values()
    stored = nl.activations.collect(
        model, POSITIVE + NEGATIVE, "hook_embed", tmp_path / "s", progress=False
    )
    labels = [1] * 6 + [0] * 6
    kept = nl.steering.direction(model, stored, labels=labels, site=site, positions=1)
    stream = model(ids, attention_mask=mask, stop_at_layer=0).last_hidden_state.clone()
    stream[0, 1] += 2 * vector
    stream[1, 4] += 2 * vector
    expected = model(inputs_embeds=stream, start_at_layer=0, attention_mask=mask).logits
    for each in (found, kept):
        with each.steer(2.0, positions=1):
            steered = model(ids, attention_mask=mask).logits
        chosen = mask.bool()
        torch.testing.assert_close(steered[chosen], expected[chosen], atol=1e-5, rtol=1e-5)


def test_bad_input_is_explained(model: Any, found: nl.steering.Direction) -> None:
    ask = nl.steering.direction
    for error, words, arguments in (
        (DataError, "no positive text", {"positive": []}),
        (DataError, "no negative text", {"negative": []}),
        (DataError, "all labels are 1", {"negative": None, "labels": [1] * 6}),
        (InputError, "several", {"site": [SITE, "blocks.0.mlp.hook_post"]}),
        (HookNameError, "No hook point", {"site": "resid_past"}),
        (InputError, "same activations", {"negative": POSITIVE}),
        (InputError, "method", {"method": "pcb"}),
        (InputError, "say where", {"site": None}),
        (InputError, "no position 5", {"positions": 5}),
        (InputError, "pairs", {"negative": None}),
        (InputError, "dictionary", {"method": "feature"}),
        (InputError, "first tokens included", {"method": "probe", "positions": "mean"}),
    ):
        given = {"positive": POSITIVE, "negative": NEGATIVE, "site": SITE} | arguments
        with pytest.raises(error, match=words):
            ask(model, **given)
    for words, steering in (
        ("scale=nan", {"scale": float("nan")}),
        ("mode", {"mode": "subtract"}),
        ("absolute", {"positions": -1}),
        ("absolute", {"positions": slice(-3, None)}),
        ("positions='first'", {"positions": "first"}),
    ):
        with pytest.raises(InputError, match=words), found.steer(**steering):
            pass
    with pytest.raises(InputError, match="generate"), found.steer(positions="generated"):
        model("abc")
    with pytest.raises(CheckpointError, match="another model"):
        found.on(build(hidden_act="relu"))
    with pytest.raises(InputError, match="numbers"):
        found.on(build(hidden_size=64), same=False)
    assert not model.hook_stack.placements


def test_arguments_of_other_tools_are_answered_with_ours() -> None:
    model: Any = build()
    found = nl.steering.direction(model, POSITIVE, NEGATIVE, site=SITE)
    asked: dict[str, tuple[Any, dict[str, Any], str]] = {
        "repeng": (found.steer, {"coeff": 1.5}, "repeng's coeff is scale= here"),
        "steering-vectors": (found.steer, {"multiplier": 2}, "multiplier is scale= here"),
        "strength": (nl.steering.steer, {"strength": 1}, "Another tool's strength is scale="),
        "layer": (found.evaluate, {"layer": 1}, "direction.at\\(\\('resid_post', layer\\)\\)"),
        "found at a layer": (nl.steering.direction, {"layer": 1}, "layer is site=\\('resid_post'"),
        "subspace": (nl.interchange.das, {"low_rank_dimension": 4}, "is rank= here"),
        "top": (nl.interchange.das, {"top": 4}, "top is rank= here"),
    }
    for function, given, words in asked.values():
        with pytest.raises(TypeError, match=words):
            function(**given)
