"""Attribution and paths at named positions, also of prompts that are not of the same length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_attribution import CLASSES, LM_METRIC, build, close, prompts, value
from test_paths import Runs
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.graph import find_readers
from neox_lab.experiments.metrics import logit_difference
from neox_lab.experiments.patching.sites import SITES
from neox_lab.experiments.paths.path_patching import edge_sweep, path_patch

METRIC = logit_difference([3, 4], [6, 7], pos=-1)
PLACES = {"subject": ([3, 5], [2, 4]), "end": -1, "second": 1}
"""(clean, corrupted) positions in the own tokens of two texts, see ``unequal``."""


def unequal() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clean texts of 7 and 9 tokens, corrupted ones of 5 and 6; shorter ones padded in front."""

    def padded(lengths: tuple[int, int], seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 50, (2, max(lengths)), generator=generator)
        mask = torch.ones_like(ids)
        for row, length in enumerate(lengths):
            ids[row, : max(lengths) - length], mask[row, : max(lengths) - length] = 1, 0
        return {"input_ids": ids, "attention_mask": mask}

    return padded((7, 9), 1), padded((5, 6), 0)


COLUMNS = {  # of clean and of corrupted texts, padding counted
    "subject": ([5, 5], [3, 4]),
    "end": ([8, 8], [5, 5]),
    "second": ([3, 1], [2, 1]),
}


class At(Runs):
    """What each writer changes at one named position, and nowhere else."""

    def __init__(self, model: Any, metric: Any, clean: Any, corrupted: Any, place: str) -> None:
        super().__init__(model, metric, clean, corrupted)
        self.columns = COLUMNS[place]

    def only(self, there: Tensor, here: Tensor) -> Tensor:
        """The change where it is sent, 0 elsewhere, ``[batch, pos, ..]``."""
        change, rows = torch.zeros_like(here), torch.arange(len(here))
        source, target = self.columns
        change[rows, target] = there[rows, source] - here[rows, target]
        return change

    def change(self, writer: str) -> Tensor:
        if writer == "embed":
            return self.only(self.there["hook_embed"], self.here["hook_embed"])
        if writer.startswith("MLP"):
            name = ("mlp_out", int(writer[3:]))
            return self.only(self.there[name], self.here[name])
        name, head = ("result", int(writer[1])), int(writer[3])
        return self.only(self.there[name][:, :, head], self.here[name][:, :, head])


@pytest.mark.parametrize("parallel", [True, False])
def test_edges_of_unequal_prompts(parallel: bool) -> None:
    model = build(use_parallel_residual=parallel, num_hidden_layers=2, num_attention_heads=2)
    clean, corrupted = unequal()
    result = edge_sweep(model, clean, corrupted, METRIC, positions=PLACES)
    assert result.axes == ("pos", "writer", "reader")
    assert result.labels["pos"] == list(PLACES)
    assert result.samples is not None
    effects = []
    for at, place in enumerate(PLACES):
        runs = At(model, METRIC, clean, corrupted, place)
        for row, writer in enumerate(result.labels["writer"]):
            for column, reader in enumerate(result.labels["reader"]):
                found = result.samples[:, at, row, column]
                if not found.isnan().all():
                    close(found, runs.along_edge(writer, reader))
                    effects.append(float((found.mean() - result.corrupted).abs()))
    assert max(effects) > 0.05
    assert result.clean == pytest.approx(float(value(model, METRIC, clean).mean()), abs=1e-5)
    some = edge_sweep(model, clean, corrupted, METRIC, positions=PLACES, tokens_at_once=30)
    close(some.values, result.values)
    assert result.view().to_png()[:4] == b"\x89PNG"


def test_edges_position_by_position() -> None:
    """At every position by itself: those left of the first difference do nothing."""
    model, clean, corrupted = build(), prompts(0, "none"), prompts(0, "none")
    clean["input_ids"][:, 3] = 31
    places = {str(pos): pos for pos in range(7)}
    given = (model, clean, corrupted, LM_METRIC)
    result = edge_sweep(*given, ["embed", "L0H1"], ["L1H2.k", "logits"], positions=places)
    effect = result.effect()
    assert not effect[:3].abs().gt(1e-5).any()
    assert effect[3, 0, 0].abs() > 1e-3  # the embedding differs there only
    assert not effect[4:, 0].abs().gt(1e-5).any()
    assert effect[4:, 1, 0].abs().max() > 1e-2  # what the head writes differs from there on
    whole = edge_sweep(*given, ["embed", "L0H1"], ["L1H2.k", "logits"])
    close(effect[3, 0], whole.effect()[0])
    close(effect[6, 1, 1], whole.effect()[1, 1])  # the logits are read at the end alone


@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("parallel", [True, False])
def test_paths_at_named_positions(parallel: bool, through: Any) -> None:
    model = build(use_parallel_residual=parallel)
    clean, corrupted = unequal()
    senders, receivers = ["embed", "L0H0", "MLP0", ["L0H1", "MLP0"]], ["L2H0.q", "MLP1", "logits"]
    result = path_patch(
        model, clean, corrupted, METRIC, senders, receivers, through=through, positions=PLACES
    )
    assert result.axes == ("pos", "sender")
    assert result.samples is not None
    for at, place in enumerate(PLACES):
        runs = At(model, METRIC, clean, corrupted, place)
        # Clean values where they are sent, corrupted ones elsewhere: a "clean run" as long.
        runs.there = {name: runs.only(runs.there[name], runs.here[name]) for name in runs.here}
        runs.there = {name: runs.there[name] + runs.here[name] for name in runs.there}
        for number, sender in enumerate(senders):
            group = [sender] if isinstance(sender, str) else sender
            if through == "mlps" and any(node.startswith("MLP") for node in group):
                continue  # elsewhere this MLP is computed anew, which this oracle cannot say
            wanted = runs.wang(group, receivers, through == "mlps")
            close(result.samples[:, at, number], wanted)
    heads = path_patch(model, clean, corrupted, METRIC, positions=PLACES)
    assert heads.axes == ("pos", "layer", "head")
    close(heads.values[:, 0, 0], path_patch(*given(model), ["L0H0"], positions=PLACES).values[:, 0])


def given(model: Any) -> Any:
    """The arguments that all questions share."""
    return model, *unequal(), METRIC


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v"])
def test_nodes_of_unequal_prompts_agree_with_finite_differences(site: str) -> None:
    model = build(double=True)
    clean, corrupted = unequal()
    found = nl.attribution.attribution_patch(*given(model), site, positions=PLACES)
    assert found.axes == SITES[site].axes and found.labels["pos"] == list(PLACES)
    layer = 1
    hook = f"blocks.{layer}.{SITES[site].hook}"
    _, there = model.run_with_cache(clean["input_ids"], [hook], **clean)
    _, here = model.run_with_cache(corrupted["input_ids"], [hook], **corrupted)
    slopes = []
    for at, place in enumerate(PLACES):
        change = At(model, METRIC, clean, corrupted, place).only(there[hook], here[hook])
        cell = (0, 2) if SITES[site].by_head else (0,)
        if SITES[site].by_head:
            only = torch.zeros_like(change)
            only[:, :, 2] = change[:, :, 2]
            change = only

        def moved(step: float, change: Tensor = change) -> Tensor:
            goal = here[hook] + step * change
            return value(model, METRIC, corrupted, fwd_hooks=[(hook, lambda t, _: goal)])

        slope = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert found.per_row is not None
        close(found.per_row[(slice(None), layer, at, *cell[1:])], slope, 5e-4)
        slopes.append(float(slope.abs().max()))
    assert max(slopes) > 1e-3
    exact = nl.patching.sweep(*given(model), site, positions=PLACES, progress=False).effect()
    frame = found.check().frame
    assert frame["exact"].abs().max() == pytest.approx(float(exact.abs().max()), abs=1e-6)


def test_edge_estimates_of_unequal_prompts() -> None:
    model = build(double=True)
    clean, corrupted = unequal()
    found = nl.attribution.attribution_patch(*given(model), "edges", positions=PLACES)
    assert found.axes == ("pos", "writer", "reader")
    for at, place in enumerate(PLACES):
        runs = At(model, METRIC, clean, corrupted, place)
        for writer, reader in (("embed", "L0H1.k"), ("L0H2", "L1H3.q"), ("MLP1", "logits")):
            (node,) = find_readers(model, [reader])
            change = runs.change(writer)

            def moved(step: float, node: Any = node, change: Tensor = change) -> Tensor:
                def add(tensor: Tensor, _: Any) -> None:
                    part = tensor[:, :, node.head] if node.kind == "head" else tensor
                    part.add_(step * change)

                hooks = [(node.reading_hook, add)]
                return value(model, METRIC, corrupted, fwd_hooks=hooks)

            slope = float(((moved(1e-3) - moved(-1e-3)) / 2e-3).mean())
            row = found.labels["writer"].index(writer)
            column = found.labels["reader"].index(reader)
            assert float(found.values[at, row, column]) == pytest.approx(slope, abs=1e-4)
    agreement = found.check()
    assert {"pos", "token", "writer", "reader", "exact"} <= set(agreement.frame)
    assert agreement.frame["name"].str.contains("subject").any()
    assert found.view().to_png()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", CLASSES)
def test_same_places_are_a_part_of_the_whole(name: str) -> None:
    model, metric = build(name), CLASSES[name]
    clean, corrupted = prompts(1, "none"), prompts(0, "none")
    places = {"a": [1, 3], "b": -2}
    for site in ("resid_pre", "z"):
        some = nl.attribution.attribution_patch(
            model, clean, corrupted, metric, site, positions=places, steps=2
        )
        whole = nl.attribution.attribution_patch(model, clean, corrupted, metric, site, steps=2)
        assert some.per_row is not None and whole.per_row is not None
        for row, pos in enumerate((1, 3)):
            close(some.per_row[row, :, 0], whole.per_row[row, :, pos])
        close(some.per_row[:, :, 1], whole.per_row[:, :, 5])
    every = {str(pos): pos for pos in range(7)}
    edges = nl.attribution.attribution_patch(
        model, clean, corrupted, metric, "edges", positions=every
    )
    whole = nl.attribution.attribution_patch(model, clean, corrupted, metric, "edges")
    close(edges.values.sum(dim=0), whole.values)  # estimates are sums over positions


def test_what_does_not_correspond_is_explained() -> None:
    model = build()
    estimate = nl.attribution.attribution_patch
    with pytest.raises(InputError, match="name the positions"):
        estimate(*given(model))
    with pytest.raises(InputError, match="name the positions"):
        edge_sweep(*given(model))
    for site in ("z_all_pos", "pattern_by_dest"):
        with pytest.raises(InputError, match="all positions"):
            estimate(*given(model), site, positions=PLACES)
    for site in ("z", "edges"):
        with pytest.raises(InputError, match="steps=0"):
            estimate(*given(model), site, steps=2, positions=PLACES)
    with pytest.raises(InputError, match="text 0 has 5 tokens"):
        path_patch(*given(model), positions={"far": 5})
    with pytest.raises(InputError, match="another name"):
        edge_sweep(*given(model), positions={"a": (2, 1), "b": (3, 1)})
    assert not model.hook_stack.placements


def test_a_tuple_of_positions_is_a_pair() -> None:
    model = build()
    with pytest.raises(InputError, match="a tuple is a pair"):
        nl.patching.sweep(
            model, prompts(0), prompts(1), LM_METRIC, positions={"a": (1, 2, 3)}, progress=False
        )


def test_positions_named_by_numbers_can_be_saved(tmp_path: Path) -> None:
    found = nl.patching.sweep(
        build(), prompts(0), prompts(1), LM_METRIC, positions={1: 2}, progress=False
    )
    found.save(tmp_path / "result.safetensors")
    again = nl.patching.PatchResult.load(tmp_path / "result.safetensors")
    assert again.labels["pos"] == ["1"]
