"""Circuits: the planted one is found, and everything said about one can be counted by hand."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from patching_oracle import prompts, small
from test_circuit_runs import METRIC, texts

import neox_lab as nl
from neox_lab.circuits import Circuit, EdgeScores, scores
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.selection import random_circuit
from neox_lab.errors import InputError, NeoxLabWarning
from neox_lab.experiments.metrics import logit_difference
from neox_lab.experiments.prompt_pairs import pair

INDUCTION = {
    ("embed", "L0H1.v"),
    ("L0H1", "L1H2.k"),
    ("embed", "L1H2.q"),
    ("embed", "L1H2.k"),
    ("embed", "L1H2.v"),
    ("L1H2", "logits"),
}


def asked() -> tuple[list[str], list[str], object]:
    """What follows the second A of "A B … A" is B; the other side has another B."""
    words = ["qwerty", "asdfgh", "zxcvbn", "plmokn"]
    clean = [word + word[:2] for word in words]
    corrupted = [word[:2] + "X" + word[3:] + word[:2] for word in words]
    metric = logit_difference([word[2] for word in words], ["X"] * len(words))
    return clean, corrupted, metric


def names(circuit: Circuit | EdgeScores, table: torch.Tensor) -> set[tuple[str, str]]:
    return {
        (circuit.labels["writer"][w], circuit.labels["reader"][r])
        for w, r in table.nonzero().tolist()
    }


def test_the_planted_circuit_is_recovered() -> None:
    model = nl.gym.planted()
    clean, corrupted, metric = asked()
    result = scores(model, clean, corrupted, metric, "exact")  # type: ignore[arg-type]
    matters = (result.values.abs() > 1e-3) & result.is_computed
    assert names(result, matters) <= INDUCTION
    circuit = result.circuit(edges=int(matters.sum()))
    assert names(circuit, circuit.kept) <= INDUCTION


@pytest.mark.parametrize("method", ["exact", "eap-ig", "ig-activations"])
def test_the_planted_way_of_the_key_is_recovered(method: str) -> None:
    """Two tokens are swapped: what stood before each is written by L0H1, and read by L1H2's key."""
    model, words = nl.gym.planted(), ["qwerty", "asdfgh", "zxcvbn", "plmokn"]
    clean = [word + word[:2] for word in words]
    corrupted = [w[0] + w[3] + w[2] + w[1] + w[4:] + w[:2] for w in words]
    metric = logit_difference([word[2] for word in words], [word[4] for word in words])
    result = scores(model, clean, corrupted, metric, method, steps=20)  # type: ignore[arg-type]
    found = names(result, (result.values.abs() > 1) & result.is_computed)
    assert found == {("embed", "L0H1.v"), ("L0H1", "L1H2.k"), ("L1H2", "logits")}
    assert result.circuit(edges=3).evaluate().faithfulness == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", ["threshold", "greedy"])
def test_a_circuit_says_how_many_edges_it_was_asked_for(method: str) -> None:
    clean, corrupted = prompts(3, 8, first=2)
    result = scores(small(num_hidden_layers=3), clean, corrupted, METRIC, "eap")
    names_of = set()
    for count in (3, 12, 13, int(result.is_computed.sum())):
        circuit = result.circuit(edges=count, method=method)  # type: ignore[arg-type]
        lost = count - circuit.edges
        some = f"{circuit.edges} of the {count}" if lost else f"the {count}"
        assert circuit.name.startswith(f"Circuit of {some} largest edges by eap")
        assert circuit.name.endswith(f"({lost} lead{'s' if lost == 1 else ''} nowhere)") == bool(
            lost
        )
        names_of.add(bool(lost))
    assert names_of == {True, False}


def test_evaluation_counts_what_is_there() -> None:
    model = small(num_hidden_layers=3).double()
    clean, corrupted = prompts(6, 8, first=2)
    found = scores(model, clean, corrupted, METRIC, "exact")
    circuit = found.circuit(edges=40)
    result = circuit.evaluate(random=7, seed=3)
    runs = CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")
    table = found.is_computed
    tables = torch.stack([table, circuit.kept, table & ~circuit.kept, torch.zeros_like(table)])
    samples = runs.measure(tables)
    torch.testing.assert_close(result.samples[:4], samples)
    whole, own, rest, nothing = samples.mean(1).tolist()
    assert result.faithfulness == pytest.approx((own - nothing) / (whole - nothing))
    assert result.left_outside == pytest.approx((rest - nothing) / (whole - nothing))
    assert nothing == pytest.approx(found.facts["corrupted"], abs=1e-5)
    assert whole == pytest.approx(found.facts["clean"], abs=1e-5)
    frame = result.frame
    assert frame["edges"].tolist()[:4] == [found.circuit(share=1.0).edges, circuit.edges,
        found.circuit(share=1.0).edges - circuit.edges, 0]  # fmt: skip
    assert len(result.random) == 7 and (result.random["edges"] - circuit.edges).abs().max() <= 3
    inside = (frame["low"] <= frame["faithfulness"]) & (frame["faithfulness"] <= frame["high"])
    assert inside.all()
    assert circuit.evaluate(random=7, seed=3) == result
    assert 0 <= result.better_than_random <= 1


def test_the_picture_has_the_attention_of_its_heads_on_the_first_clean_prompt() -> None:
    model = small(num_hidden_layers=3, attention_dropout=0.1)
    clean, corrupted = ({k: v.flip(0) for k, v in side.items()} for side in texts()[2:])
    circuit = scores(model, clean, corrupted, METRIC).circuit(edges=40)
    ids = clean["input_ids"][0][clean["attention_mask"][0] > 0]
    assert len(ids) < clean["input_ids"].shape[1]  # padding is left out
    view = circuit.view()
    assert view.attention is not None
    parts, patterns = view.attention
    _, cache = model.run_with_cache(ids[None])
    assert parts == [at for at, name in enumerate(view.names) if name.startswith("L")]
    assert len(parts) > 3
    for row, at in enumerate(parts):
        layer, head = map(int, re.findall(r"\d+", view.names[at]))
        want = cache["pattern", layer][0, head]
        np.testing.assert_allclose(patterns.patterns[0, row], want, atol=1e-5)
    assert patterns.pieces == [f"⟨{i}⟩" for i in ids.tolist()]
    model.train()
    assert circuit.view().attention is None  # dropout would show others each time
    model.eval()
    with torch.no_grad():
        model.gpt_neox.layers[0].attention.query_key_value.weight.fill_(torch.nan)
    assert circuit.view().attention is None
    assert "Attention" not in str(dataclasses.replace(circuit, _asked=None).view().data()["notes"])


def test_a_circuit_on_the_prompts_it_was_found_with_says_so(tmp_path: Path) -> None:
    model, (clean, corrupted) = small(), prompts(4, 8, first=2)
    others = prompts(4, 8, first=2, seed=1)
    found = scores(model, clean, corrupted, METRIC)
    circuit = found.circuit(edges=20)
    for same in ({}, {"clean": clean, "corrupted": corrupted, "metric": METRIC}):
        own = circuit.evaluate(random=1, **same)
        assert own.seen == 4 and own.view().title.endswith("faithfulness (in-sample)")
        assert "held-out" in own.view().note
        curve = found.faithfulness([0.1, 0.5], random=0, **same)
        assert curve.seen == 4 and curve.view().title.endswith("in-sample")
    held_out = circuit.evaluate(*others, METRIC, random=1)
    assert held_out.seen == 0 and "in-sample" not in held_out.view().title + held_out.view().note
    mixed = [
        torch.cat([own[:1], other]) for own, other in zip((clean, corrupted), others, strict=True)
    ]
    some = circuit.evaluate(*mixed, METRIC, random=1)
    assert some.seen == 1 and some.view().title.endswith("(1 of 5 prompts in-sample)")
    circuit.save(tmp_path / "circuit.safetensors")
    read = Circuit.load(tmp_path / "circuit.safetensors")
    unknown = read.evaluate(clean, corrupted, METRIC, model=model, random=1)
    assert unknown.seen is None and "in-sample" not in unknown.view().title


def test_other_prompts_other_models_and_files(tmp_path: Path) -> None:
    model, other = small(seed=0), small(seed=1)
    clean, corrupted = prompts(3, 8, first=2)
    circuit = scores(model, clean, corrupted, METRIC).circuit(edges=20)
    circuit.save(tmp_path / "circuit.safetensors")
    read = Circuit.load(tmp_path / "circuit.safetensors")
    assert read == circuit and torch.equal(read.kept, circuit.kept)
    with pytest.raises(InputError, match="no longer knows its prompts"):
        read.evaluate()
    again = read.evaluate(clean, corrupted, METRIC, model=model)
    assert again == circuit.evaluate()
    moved = circuit.evaluate(model=other)
    assert moved.frame["metric"][0] != again.frame["metric"][0]
    assert moved == read.evaluate(clean, corrupted, METRIC, model=other)
    with pytest.raises(InputError, match="belongs to a model"):
        circuit.evaluate(model=small(num_hidden_layers=3))
    with pytest.raises(InputError, match="need their metric"):
        circuit.evaluate(clean, corrupted)
    with pytest.raises(InputError, match="both clean and corrupted"):
        circuit.evaluate(clean)
    empty = Circuit(**{**vars(circuit), "computed": circuit.kept & False})
    with pytest.raises(InputError, match="no edge"):
        empty.evaluate()


@pytest.mark.parametrize("method", ["threshold", "greedy"])
@pytest.mark.parametrize("helping", [True, False])
def test_selection_by_hand(method: str, helping: bool) -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(3, 8, first=2)
    result = scores(model, clean, corrupted, METRIC, "eap")
    weight = -result.values if helping else result.values.abs()
    weights = {
        (w, r): float(weight[row, column])
        for (row, w), (column, r) in itertools.product(
            enumerate(result.labels["writer"]), enumerate(result.labels["reader"])
        )
        if result.is_computed[row, column]
    }
    order = sorted(weights, key=lambda edge: -weights[edge])
    if method == "threshold":
        wanted = set(order[:30])
    else:
        wanted = set()
        for _ in range(30):
            inside = {"logits"} | {w for w, _ in wanted}
            wanted.add(next(e for e in order if e not in wanted and e[1].split(".")[0] in inside))
    circuit = result.circuit(edges=30, method=method, helping=helping)  # type: ignore[arg-type]
    kept = names(circuit, circuit.kept)
    assert kept <= wanted
    ways = {edge for edge in wanted if _is_on_a_way(edge, wanted)}
    assert kept == ways and ways


def _is_on_a_way(edge: tuple[str, str], edges: set[tuple[str, str]]) -> bool:
    def heard(node: str) -> bool:
        return node == "embed" or any(heard(w) for w, r in edges if r.split(".")[0] == node)

    def leads(node: str) -> bool:
        return node == "logits" or any(leads(r.split(".")[0]) for w, r in edges if w == node)

    return heard(edge[0]) and leads(edge[1].split(".")[0])


@pytest.mark.parametrize("count", [1, 6, 40, 150])
def test_random_circuits_are_whole_ways(count: int) -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(2, 6, first=1)
    result = scores(model, clean, corrupted, METRIC, "eap")
    whole = result.circuit(share=1.0)
    chance = random.Random(0)
    drawn = [
        random_circuit(result.is_computed, count, whole.writers, whole.readers, chance)
        for _ in range(5)
    ]
    for kept in drawn:
        circuit = Circuit(**{**vars(whole), "computed": kept})
        assert circuit.pruned().edges == circuit.edges
        assert abs(circuit.edges - count) <= 3
    assert count == 1 or any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_faithfulness_is_a_ratio_of_means_with_its_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    nothing = torch.randn(40, generator=generator)
    whole = nothing + 2 + torch.randn(40, generator=generator)
    run = nothing + 1 + torch.randn(40, generator=generator)
    found = faithfulness(torch.stack([run, whole, nothing]), whole, nothing, seed=1)
    value = (run.mean() - nothing.mean()) / (whole.mean() - nothing.mean())
    assert float(found.value[0]) == pytest.approx(float(value))
    assert found.value.tolist()[1:] == [1, 0] and found.low.tolist()[1:] == [1, 0]
    chance = np.random.default_rng(0)
    ratios = []
    for _ in range(4000):
        at = chance.integers(0, 40, 40)
        ratios.append(float((run - nothing)[at].mean() / (whole - nothing)[at].mean()))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert float(found.low[0]) == pytest.approx(low, abs=0.02)
    assert float(found.high[0]) == pytest.approx(high, abs=0.02)
    with pytest.warns(NeoxLabWarning, match="faithfulness says nothing"):
        faithfulness(run[None], nothing + torch.randn(40, generator=generator) / 10, nothing)


def test_where_there_is_no_interval_the_picture_says_so() -> None:
    pairs = nl.gym.TASKS["ioi"].pairs(4)
    metric = logit_difference([p.correct for p in pairs], [p.wrong for p in pairs])
    both = [p.clean for p in pairs], [p.corrupted for p in pairs]
    circuit = nl.circuits.scores(nl.load(), *both, metric).circuit(share=0.1)
    assert "[" in circuit.evaluate(random=0).view().note
    function = circuit.evaluate(metric=lambda logits: logits[:, -1, 900:].mean(), random=0)
    assert "nan" not in function.view().note and "without an interval" in function.view().note


def test_curves_and_their_areas() -> None:
    model = small(num_hidden_layers=3).double()
    clean, corrupted = prompts(5, 8, first=2)
    result = scores(model, clean, corrupted, METRIC, "eap-ig")
    curve = result.faithfulness([0.05, 0.2, 1.0], random=3)
    frame = curve.frame
    for row, share in enumerate((0.05, 0.2, 1.0)):
        alone = result.circuit(share=share).evaluate(random=0)
        assert frame["faithfulness"][row] == pytest.approx(alone.faithfulness)
        assert frame["edges"][row] == result.circuit(share=share).edges
    f = frame["faithfulness"].tolist()
    assert curve.cpr == pytest.approx(0.15 * (f[0] + f[1]) / 2 + 0.8 * (f[1] + f[2]) / 2)
    g = [abs(1 - each) for each in f]
    assert curve.cmd == pytest.approx(0.15 * (g[0] + g[1]) / 2 + 0.8 * (g[1] + g[2]) / 2)
    assert f[2] == pytest.approx(1) and frame["random"].notna().all()
    assert curve.cpr_log == pytest.approx(
        float(np.trapezoid(f, np.log(frame["share"]))) / float(-np.log(frame["share"][0]))
    )
    with pytest.raises(InputError, match="shares"):
        result.faithfulness([])
    with pytest.raises(InputError, match="shares"):
        result.faithfulness([0.0, 1.0])


def test_overlap_has_its_chance() -> None:
    model = small(num_hidden_layers=3)
    clean, corrupted = prompts(3, 8, first=2)
    result = scores(model, clean, corrupted, METRIC, "eap")
    one, other = result.circuit(edges=30), result.circuit(edges=60)
    found = one.overlap(other)
    a, b = names(one, one.kept), names(other, other.kept)
    assert found["shared"] == len(a & b) and found["jaccard"] == len(a & b) / len(a | b)
    generator = torch.Generator().manual_seed(0)
    table = result.is_computed.flatten().nonzero().flatten()
    drawn = []
    for _ in range(300):
        sets = [
            set(table[torch.randperm(len(table), generator=generator)[:n]].tolist())
            for n in (one.edges, other.edges)
        ]
        drawn.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert found["expected"] == pytest.approx(np.mean(drawn), abs=0.02)
    with pytest.raises(InputError, match="belongs to a model with"):
        one.overlap(scores(small(), clean, corrupted, METRIC, "eap").circuit(edges=5))


def test_minimality_is_a_run_without_each_edge() -> None:
    model = small().double()
    clean, corrupted = prompts(4, 8, first=2)
    circuit = scores(model, clean, corrupted, METRIC, "exact").circuit(edges=12)
    frame = circuit.minimality()
    assert len(frame) == circuit.edges
    own = circuit.evaluate(random=0).frame["metric"][1]
    for row in frame.to_dict("records"):
        kept = circuit.kept.clone()
        w, r = (circuit.labels[side].index(row[side]) for side in ("writer", "reader"))
        kept[w, r] = False
        without = Circuit(**{**vars(circuit), "computed": kept}).evaluate(random=0)
        assert row["change"] == pytest.approx(without.frame["metric"][1] - own, abs=1e-5)
    assert (frame["change"].abs().diff().dropna() <= 1e-12).all()
