"""Scores of heads, MLPs and neurons against the network written out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from circuit_oracle import ByHand, norm
from patching_oracle import prompts, small
from test_circuit_runs import METRIC, texts
from test_circuits import asked, names
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits import Circuit, neuron_scores, node_scores, scores
from neox_lab.circuits.part_scores import PART_METHODS, NeuronScores, NodeScores
from neox_lab.errors import HookError, InputError


def without(hand: ByHand, ids: Tensor, replaced: dict[str, Tensor]) -> Tensor:
    """The metric where later readers see something else of some writers."""

    def seen(_: str, before: dict[str, Tensor]) -> Tensor:
        return sum(replaced.get(name, value) for name, value in before.items())  # type: ignore[return-value]

    logits = hand.run(ids, seen)[1][-1]
    return logits[7] - logits[11]


class Neurons(ByHand):
    """The same network, its neurons noted, and one of them replaced."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.found: dict[int, Tensor] = {}
        self.put: tuple[int, int, Tensor] | None = None

    def run(self, ids: Tensor, seen: Any = None) -> tuple[dict[str, Tensor], Tensor]:
        """As ``ByHand``, with MLPs written out once more; ``seen`` is not used."""
        network, stream = self.model.gpt_neox, self.model.gpt_neox.embed_in.weight[ids]
        for layer in range(self.layers):
            block, weights = network.layers[layer], self.model.blocks[layer]
            x, attended = norm(stream, block.input_layernorm), weights.b_O
            for head in range(self.heads):
                parts = {
                    part.lower(): x @ getattr(weights, f"W_{part}")[head]
                    + getattr(weights, f"b_{part}")[head]
                    for part in "QKV"
                }
                attended = attended + self.attend(**parts) @ weights.W_O[head]
            read = stream if self.parallel else stream + attended
            x = norm(read, block.post_attention_layernorm)
            inner = torch.nn.functional.gelu(x @ weights.W_in + weights.b_in)
            if self.put is not None and self.put[0] == layer:
                inner = inner.clone()
                inner[:, self.put[1]] = self.put[2]
            self.found[layer] = inner
            stream = stream + attended + inner @ weights.W_out + weights.b_out
        return {}, norm(stream, network.final_layer_norm) @ self.model.W_U


@pytest.mark.parametrize("parallel", [True, False])
def test_exact_scores_of_nodes_are_runs_by_hand(parallel: bool) -> None:
    model = small(use_parallel_residual=parallel).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    result = node_scores(model, clean_side, corrupted_side, METRIC, "exact")
    assert result.per_row is not None
    hand = ByHand(model)
    with torch.no_grad():
        for row, ids in enumerate(clean):
            other, own = hand.run(corrupted[row])[0], without(hand, ids, {})
            for at, name in enumerate(result.labels["component"]):
                want = (without(hand, ids, {name: other[name]}) - own).float()
                torch.testing.assert_close(result.per_row[row, at], want, rtol=1e-5, atol=1e-5)
    assert result.check().largest_miss < 1e-6
    assert result.labels["component"][:5] == ["embed", "L0H0", "L0H1", "L0H2", "MLP0"]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "both-ends"])
def test_a_node_is_the_sum_of_its_edges(method: Any, parallel: bool) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    _, _, clean, corrupted = texts()
    given: Any = (model, clean, corrupted, METRIC, method)
    nodes, edges = node_scores(*given, steps=3), scores(*given, steps=3)
    assert nodes.per_row is not None and edges.per_row is not None
    torch.testing.assert_close(
        nodes.per_row, edges.per_row.nan_to_num().sum(-1), rtol=1e-5, atol=1e-5
    )
    assert nodes.total == pytest.approx(edges.total)


def test_the_integral_over_embeddings_is_the_whole_difference() -> None:
    model = small().double()
    clean, corrupted = prompts(3, 8, first=2)
    result = node_scores(model, clean, corrupted, METRIC, steps=60)
    assert float(result.values[0]) == pytest.approx(result.total, abs=1e-4)
    exact = node_scores(model, clean, corrupted, METRIC, "exact")
    assert float(exact.values[0]) == pytest.approx(result.total, abs=1e-5)


@pytest.mark.parametrize("parallel", [True, False])
def test_neurons_are_those_of_the_network_by_hand(
    parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neox_lab.circuits.neuron_runs.TOKENS_AT_ONCE", 2 * 2 * 9)  # two neurons
    model = small(use_parallel_residual=parallel, intermediate_size=7).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    exact = neuron_scores(model, clean_side, corrupted_side, METRIC, "exact")
    eap = neuron_scores(model, clean_side, corrupted_side, METRIC, "eap")
    assert exact.per_row is not None and eap.per_row is not None
    hand = Neurons(model)
    places = [(layer, number) for layer in range(2) for number in range(7)]
    assert exact.labels["component"] == [f"L{layer}N{number}" for layer, number in places]
    for row, ids in enumerate(clean):
        hand.put = None
        hand.run(corrupted[row])
        other = {layer: found.detach() for layer, found in hand.found.items()}
        logits = hand.run(ids)[1][-1]
        own, inner = logits[7] - logits[11], dict(hand.found)
        slopes = torch.autograd.grad(own, [inner[layer] for layer in range(2)])
        for at, (layer, number) in enumerate(places):
            hand.put = (layer, number, other[layer][:, number])
            with torch.no_grad():
                logits = hand.run(ids)[1][-1]
            want = (logits[7] - logits[11] - own).detach().float()
            torch.testing.assert_close(exact.per_row[row, at], want, rtol=1e-5, atol=1e-5)
            change = (other[layer] - inner[layer]).detach()[:, number]
            want = (change * slopes[layer][:, number]).sum().float()
            torch.testing.assert_close(eap.per_row[row, at], want, rtol=1e-5, atol=1e-5)
    checked = eap.check(neurons=5).frame
    largest = eap.values.abs().topk(5).indices.tolist()
    assert set(checked["name"]) == {exact.labels["component"][at] for at in largest}
    for line in checked.to_dict("records"):
        want = float(exact.values[exact.labels["component"].index(line["name"])])
        assert line["exact"] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("helping", [True, False])
def test_a_circuit_of_nodes_runs_without_the_others(parallel: bool, helping: bool) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    clean, corrupted, clean_side, corrupted_side = texts()
    result = node_scores(model, clean_side, corrupted_side, METRIC, "exact")
    circuit = result.circuit(nodes=5, helping=helping)
    each = dict(zip(result.labels["component"][1:], result.values[1:].tolist(), strict=True))
    order = sorted(each, key=lambda name: each[name] if helping else -abs(each[name]))
    assert set(circuit.nodes) == {"embed", *order[:5], "logits"}
    for writer, reader in names(circuit, circuit.kept):
        assert writer in circuit.nodes and reader.split(".")[0] in circuit.nodes
    assert circuit.pruned() == circuit
    found = circuit.evaluate(random=2).samples[1]
    hand = ByHand(model)
    with torch.no_grad():
        for row, ids in enumerate(clean):
            other = hand.run(corrupted[row])[0]
            want = without(hand, ids, {name: other[name] for name in order[5:]})
            torch.testing.assert_close(found[row], want, rtol=1e-6, atol=1e-6)
    whole = result.circuit(share=1.0)
    assert whole.edges == whole.all_edges
    assert "score of the writer" in circuit.to_html()


def test_the_planted_heads_are_the_largest() -> None:
    clean, corrupted, metric = asked()
    given: Any = (nl.gym.planted(), clean, corrupted, metric)
    exact = node_scores(*given, "exact")
    assert [name for name in exact.top(2)["component"]] == ["embed", "L1H2"]
    assert exact.circuit(nodes=1).evaluate(random=0).faithfulness == pytest.approx(1, abs=1e-4)


def test_files_and_functions_of_ones_own(tmp_path: Path) -> None:
    model = small()
    clean, corrupted = prompts(3, 8, first=2)

    def difference(logits: Tensor) -> Tensor:
        return (logits[:, -1, 7] - logits[:, -1, 11]).mean()

    for method in PART_METHODS:
        for ask in (node_scores, neuron_scores):
            found: Any = ask(model, clean, corrupted, METRIC, method, steps=2)
            own = ask(model, clean, corrupted, difference, method, steps=2)
            torch.testing.assert_close(own.values, found.values, rtol=1e-4, atol=1e-4)
            assert own.per_row is None and method in found.to_html()
            found.save(tmp_path / "scores.safetensors")
            assert type(found).load(tmp_path / "scores.safetensors") == found
    read = NeuronScores.load(tmp_path / "scores.safetensors")
    with pytest.raises(InputError, match="still knows its model"):
        read.check()
    nodes = node_scores(model, clean, corrupted, METRIC)
    nodes.save(tmp_path / "nodes.safetensors")
    circuit = NodeScores.load(tmp_path / "nodes.safetensors").circuit(nodes=3)
    assert isinstance(circuit, Circuit) and circuit == nodes.circuit(nodes=3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_questions_are_named() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, first=1)
    for ask in (node_scores, neuron_scores):
        with pytest.raises(InputError, match="method"):
            ask(model, clean, corrupted, METRIC, "ig-activations")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="steps"):
            ask(model, clean, corrupted, METRIC, steps=0)
        with pytest.raises(InputError, match="gradient"):
            ask(model, clean, corrupted, lambda logits: logits.argmax(-1).float().mean())
    nodes = node_scores(model, clean, corrupted, METRIC, "eap")
    with pytest.raises(InputError, match="either nodes"):
        nodes.circuit()
    with pytest.raises(InputError, match="nodes"):
        nodes.circuit(nodes=9)


@pytest.mark.parametrize("name", ["resid_post_1", "mlp_1"])
def test_a_dictionary_in_place_is_told_where_its_features_are_scored(name: str) -> None:
    model, dictionary = nl.load(), nl.gym.dictionaries()[name]
    given: Any = (model, *prompts(2, 6, first=2), METRIC)
    with model.spliced(dictionary):
        with pytest.raises(HookError, match=r"nl\.features\.circuit"):
            neuron_scores(*given)
        if name == "resid_post_1":
            for ask in (scores, node_scores, nl.circuits.acdc, nl.circuits.prune_edges):
                threshold = (1.0,) if ask is nl.circuits.acdc else ()
                edges: Any = {"edges": 5} if ask is nl.circuits.prune_edges else {}
                with pytest.raises(HookError, match=r"nl\.features\.circuit"):
                    ask(*given, *threshold, **edges)  # type: ignore[operator]
        else:  # part of its MLP, a node
            assert node_scores(*given).values.isfinite().all()


def test_a_curve_over_whole_nodes_is_circuits_one_by_one() -> None:
    model = small(num_hidden_layers=3).double()
    clean, corrupted = prompts(6, 8, first=2)
    found = node_scores(model, clean, corrupted, METRIC, "exact")
    shares = (0.001, 0.1, 0.25, 0.5, 1.0)
    curve = found.faithfulness(shares, random=4, seed=2)
    counts = curve.frame["requested_nodes"].tolist()
    assert counts == [1, 1, 3, 6, 12]  # of 9 heads and 3 MLPs
    one_by_one = [found.circuit(nodes=count).evaluate(random=0) for count in counts]
    values = [each.faithfulness for each in one_by_one]
    assert curve.frame["faithfulness"].tolist() == pytest.approx(values, abs=1e-6)
    assert curve.frame["edges"].tolist() == [each.frame["edges"][1] for each in one_by_one]
    steps = [after - before for before, after in itertools.pairwise(shares)]
    means = [(after + before) / 2 for before, after in itertools.pairwise(values)]
    area = sum(step * mean for step, mean in zip(steps, means, strict=True))
    assert curve.cpr == pytest.approx(area, abs=1e-6)
    misses = [(abs(1 - a) + abs(1 - b)) / 2 for a, b in itertools.pairwise(values)]
    area = sum(step * miss for step, miss in zip(steps, misses, strict=True))
    assert curve.cmd == pytest.approx(area, abs=1e-6)
    for column in ("random", "random_low", "random_high"):  # there is one way to take all nodes
        assert curve.frame[column].iloc[-1] == pytest.approx(1, abs=1e-6)
    assert curve.frame["random_low"][2] < curve.frame["random_high"][2]
    assert "in-sample" in curve.view().title
    again = found.faithfulness(shares, random=4, seed=2)
    assert again == curve and found.faithfulness(shares, random=4, seed=3) != curve
    helping = found.faithfulness((0.25, 1.0), helping=True, random=0)
    want = found.circuit(nodes=3, helping=True).evaluate(random=0).faithfulness
    assert helping.frame["faithfulness"][0] == pytest.approx(want, abs=1e-6)


def test_random_nodes_are_as_many_as_were_asked_for() -> None:
    clean, corrupted = prompts(2, 8, first=2)
    found = node_scores(small(num_hidden_layers=3), clean, corrupted, METRIC, "eap")
    for chosen in ([1], [1, 4, 9], list(range(1, 13))):
        kept, labels = found._among(chosen)
        inside = {found.labels["component"][at] for at in chosen} | {"embed", "logits"}
        seen = {
            name.split(".")[0]
            for row, column in kept.nonzero().tolist()
            for name in (labels["writer"][row], labels["reader"][column])
        }
        assert seen == inside
        table = found.circuit(share=1.0).kept
        ends = [
            (labels["writer"][a] in inside) and (labels["reader"][b].split(".")[0] in inside)
            for a, b in table.nonzero().tolist()
        ]
        assert int(kept.sum()) == sum(ends)
