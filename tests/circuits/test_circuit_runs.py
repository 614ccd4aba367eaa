"""A circuit run equals the network written out by hand, edge by edge."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from circuit_oracle import ByHand
from patching_oracle import small
from torch import Tensor

from neox_lab.circuits.edges import edge_table, without_dangling
from neox_lab.circuits.runs import ABLATIONS, CircuitRuns
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.metrics import logit_difference
from neox_lab.experiments.prompt_pairs import pair

LENGTHS = (9, 6)  # of two texts, so that one is padded
METRIC = logit_difference(7, 11)


def texts() -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Clean and corrupted texts, alone and padded on the left."""
    generator = torch.Generator().manual_seed(3)
    clean = [torch.randint(2, 50, (length,), generator=generator) for length in LENGTHS]
    corrupted = [torch.randint(2, 50, (length,), generator=generator) for length in LENGTHS]
    sides = []
    for side in (clean, corrupted):
        ids, mask = torch.ones(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
        for row, text in enumerate(side):
            ids[row, 9 - len(text) :] = text
            mask[row, 9 - len(text) :] = 1
        sides.append({"input_ids": ids, "attention_mask": mask})
    return clean, corrupted, sides[0], sides[1]


def replaced(ablation: str, wrote: list[dict[str, Tensor]], row: int) -> dict[str, Tensor]:
    """What stands outside the circuit, by hand."""
    found = {}
    for name, own in wrote[row].items():
        if ablation == "resample":
            found[name] = own
        elif ablation == "zero":
            found[name] = torch.zeros_like(own)
        elif ablation == "mean":
            found[name] = torch.cat([each[name] for each in wrote]).mean(0).expand_as(own)
        else:
            columns = []
            for back in range(len(own), 0, -1):  # columns count from the end
                there = [each[name][-back] for each in wrote if len(each[name]) >= back]
                columns.append(torch.stack(there).mean(0))
            found[name] = torch.stack(columns)
    return found


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_circuit_is_the_network_by_hand(parallel: bool, ablation: str) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    runs = CircuitRuns(pair(model, corrupted_side, clean_side, METRIC), ablation)
    table = edge_table(runs.writers, runs.readers, parallel)
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(4, *table.shape, generator=generator)
    circuits = (some < torch.tensor([0.2, 0.5, 0.8, 1.0])[:, None, None]) & table
    found = runs.measure(circuits)
    hand = ByHand(model)
    with torch.no_grad():
        wrote = [hand.run(ids)[0] for ids in corrupted]
        for number, kept in enumerate(circuits):
            names = {
                (runs.writers[w].name, runs.readers[r].name) for w, r in kept.nonzero().tolist()
            }
            for row, ids in enumerate(clean):
                logits = hand.under(ids, names, replaced(ablation, wrote, row))[-1]
                expected = logits[7] - logits[11]
                torch.testing.assert_close(found[number, row], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[3], runs.clean)
    assert (found[0] - runs.clean).abs().min() > 1e-2


def test_nothing_kept_is_the_corrupted_run_and_parts_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small().double()
    _, _, clean, corrupted = texts()
    both = pair(model, corrupted, clean, METRIC)
    runs = CircuitRuns(both, "resample")
    table = edge_table(runs.writers, runs.readers, True)
    empty = runs.measure(torch.zeros(1, *table.shape, dtype=torch.bool))
    torch.testing.assert_close(empty, both.clean.measure(model(**corrupted).logits)[1][None])
    circuits = torch.rand(7, *table.shape) < 0.5
    whole = runs.measure(circuits)
    monkeypatch.setattr("neox_lab.circuits.runs.NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(runs.measure(circuits), whole)


def test_hooks_are_gone_and_bad_ablations_are_named() -> None:
    model = small()
    _, _, clean, corrupted = texts()
    both = pair(model, corrupted, clean, METRIC)
    with pytest.raises(InputError, match="ablation"):
        CircuitRuns(both, "mean_by_text")
    runs = CircuitRuns(both, "zero")
    before = model(**clean).logits
    runs.measure(torch.zeros(1, len(runs.writers), len(runs.readers), dtype=torch.bool))
    assert torch.equal(model(**clean).logits, before)


@pytest.mark.parametrize(
    ("layers", "heads", "parallel", "count"),
    [
        (12, 12, False, 32_491),  # GPT-2 small, as in MIB's example
        (6, 4, True, 1_084),  # Pythia-14m
        (6, 8, True, 3_580),  # 31m, 70m
        (12, 12, True, 32_347),  # 160m
        (24, 16, True, 231_493),  # 410m, 1.4b
        (16, 8, True, 27_545),  # 1b
        (32, 32, True, 1_591_857),  # 2.8b, 6.9b
        (36, 40, True, 3_131_263),  # 12b
        (44, 64, True, 11_878_923),  # GPT-NeoX-20B
    ],
)
def test_numbers_of_edges(layers: int, heads: int, parallel: bool, count: int) -> None:
    class Model:
        class config:  # noqa: N801
            num_hidden_layers, num_attention_heads = layers, heads

    model: Any = Model
    table = edge_table(graph.writers(model), graph.readers(model), parallel)
    assert int(table.sum()) == count


def dangling_by_hand(kept: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Edges on some path, found by walking every path."""
    used: set[tuple[str, str]] = set()

    def walk(node: str, path: list[tuple[str, str]]) -> None:
        if node == "logits":
            used.update(path)
        for edge in kept:
            if edge[0] == node:
                walk(edge[1].split(".")[0], [*path, edge])

    walk("embed", [])
    return used


@pytest.mark.parametrize("seed", range(20))
def test_dangling_edges(seed: int) -> None:
    model = small(num_hidden_layers=3, use_parallel_residual=seed % 2 == 0)
    writers, readers = graph.writers(model), graph.readers(model)
    table = edge_table(writers, readers, seed % 2 == 0)
    chance = random.Random(seed)
    kept = table & (torch.rand(table.shape, generator=torch.Generator().manual_seed(seed)) < 0.08)
    kept[0] &= torch.tensor([chance.random() < 0.5 for _ in readers])
    before = kept.clone()
    left = without_dangling(kept, writers, readers)
    names = {(writers[w].name, readers[r].name) for w, r in kept.nonzero().tolist()}
    found = {(writers[w].name, readers[r].name) for w, r in left.nonzero().tolist()}
    assert found == dangling_by_hand(names)
    assert torch.equal(kept, before)
