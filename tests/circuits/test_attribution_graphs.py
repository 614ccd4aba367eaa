"""Attribution graphs beside autograd through a network with every source scaled by a number."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import numbers, random_dictionary
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits import attribution_graph
from neox_lab.circuits.attribution_graphs.edges import Edges, largest
from neox_lab.circuits.attribution_graphs.replacement import LocalReplacement
from neox_lab.circuits.attribution_graphs.transcoders import Transcoders
from neox_lab.errors import (
    CheckpointError,
    HookError,
    InputError,
    NeoxLabWarning,
    PromptWarning,
    TokenizerError,
)
from neox_lab.sae import CrossLayerTranscoder, CrossLayerWeights
from neox_lab.sae.activations import JumpReLU, ReLU, TopK

D, LAYERS, LATENTS = 16, 3, 40
IDS = torch.tensor([7, 3, 9, 4, 11, 5])


def network(parallel: bool = True) -> nl.GPTNeoXForCausalLM:
    torch.manual_seed(5)
    config = nl.GPTNeoXConfig(
        vocab_size=30, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=24, rotary_pct=0.5, use_parallel_residual=parallel,
        max_position_embeddings=32, layer_norm_eps=1e-5, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = nl.GPTNeoXForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def transcoder(layer: int, kind: str = "TopK", site: str = "mlp.hook_in", **options: Any) -> Any:
    made = random_dictionary(
        D, f"blocks.{layer}.{site}", site_out=f"blocks.{layer}.hook_mlp_out", kind=kind,
        latents=LATENTS, seed=10 * layer, **options,
    )  # fmt: skip
    return made.double()


def cross_layer() -> CrossLayerTranscoder:
    pairs = [(i, j) for i in range(LAYERS) for j in range(i, LAYERS)]
    weights = CrossLayerWeights(
        [numbers(D, LATENTS, seed=i, std=0.3) for i in range(LAYERS)],
        [numbers(LATENTS, seed=20 + i, std=0.3) for i in range(LAYERS)],
        {(i, j): numbers(LATENTS, D, seed=40 + 9 * i + j, std=0.3) for i, j in pairs},
        [numbers(D, seed=80 + i, std=0.3) for i in range(LAYERS)],
        {(i, i): numbers(D, D, seed=60 + i, std=0.2) for i in range(LAYERS)},
    )
    return CrossLayerTranscoder(
        weights,
        [JumpReLU(torch.tensor(0.4)), ReLU(), TopK(5)],
        sites_in=[f"blocks.{i}.mlp.hook_in" for i in range(LAYERS)],
        sites_out=[f"blocks.{i}.hook_mlp_out" for i in range(LAYERS)],
        kind="JumpReLU",
    ).double()


class Scaled:
    """The network with attention and norms held and every source times a number of its own."""

    def __init__(self, model: Any, run: LocalReplacement) -> None:
        self.model, self.run = model, run
        count = len(run.ids)
        self.features = torch.ones(len(run.features), dtype=torch.float64, requires_grad=True)
        self.errors = torch.ones(LAYERS, count, dtype=torch.float64, requires_grad=True)
        self.tokens = torch.ones(count, dtype=torch.float64, requires_grad=True)
        self.read: dict[int, Tensor] = {}

    def sources(self) -> list[Tensor]:
        return [self.features, self.errors, self.tokens]

    def logits(self) -> Tensor:
        run = self.run

        def hold(tensor: Tensor, point: Any) -> Tensor:
            return tensor.detach()

        def embed(tensor: Tensor, point: Any) -> Tensor:
            return tensor.detach() * self.tokens[:, None]

        def keep(tensor: Tensor, point: Any) -> Tensor:
            self.read[point.layer] = tensor[0]
            return tensor

        def write(tensor: Tensor, point: Any) -> Tensor:
            layer = point.layer
            total = (self.errors[layer][:, None] * run.errors[layer]).clone()
            if layer not in run.transcoders.read_at:
                return total[None]
            found = run.features
            for number in range(len(found)):
                at, pos = int(found.layer[number]), int(found.pos[number])
                if layer not in ((at,) if run.transcoders.cross is None else range(at, LAYERS)):
                    continue
                latent = found.latent[number, None]
                vector = run.transcoders.written(at, layer, latent)[0]
                added = self.features[number] * found.activation[number] * vector
                total = total + torch.zeros_like(total).index_add(0, torch.tensor(pos), added[None])
            rest = run.transcoders.b_dec(layer).expand_as(total)
            skip = run.transcoders.skip(layer)
            if skip is not None:
                rest = rest + self.read[layer] @ skip.T
            return (total + rest * (~run.held)[:, None])[None]

        hooks = [(f"blocks.*.{name}", hold) for name in ("attn.hook_pattern", "ln?.hook_scale")]
        hooks += [("ln_final.hook_scale", hold), ("hook_embed", embed)]
        hooks += [(name, keep) for name in run.transcoders.read_at.values()]
        hooks += [("blocks.*.hook_mlp_out", write)]
        with torch.enable_grad():
            return self.model.run_with_hooks(run.ids[None], hooks).logits[0, -1]

    def row(self, value: Tensor) -> Tensor:
        found = torch.autograd.grad(
            value, self.sources(), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([each.flatten() for each in found])


KINDS = {
    "plain": lambda: [transcoder(i) for i in range(LAYERS)],
    "skip": lambda: [transcoder(i, skip=True) for i in range(LAYERS)],
    "one layer": lambda: [transcoder(1, skip=True)],
    "kinds": lambda: [
        transcoder(0, "Gated"), transcoder(1, "TopK scaled"), transcoder(2, "JumpReLU", skip=True),
    ],
    "sites": lambda: [
        transcoder(0, site="ln2.hook_normalized", skip=True), transcoder(1, site="hook_mlp_in"),
        transcoder(2, subtracts_b_dec=True),
    ],
    "signed": lambda: [transcoder(i, "TopK signed") for i in range(LAYERS)],
    "cross layer": cross_layer,
}  # fmt: skip


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_edge_equals_autograd(kind: str, parallel: bool) -> None:
    model, ids = network(parallel), IDS.clone()
    ids[2] = 0  # a special token in the middle: its MLP outputs are errors
    made = KINDS[kind]()
    graph = attribution_graph(model, made, ids[None], interventions=0)
    run = LocalReplacement(model, ids, Transcoders(model, made), ids == 0)
    scaled = Scaled(model, run)
    logits = scaled.logits()
    plain = model(ids[None]).logits[0, -1]
    assert torch.allclose(logits, plain, atol=1e-9), "the sources add up to the network"
    count, sources = len(run.features), run.sources
    assert not ((run.features.pos == 2).any())
    rows = {}
    for number in range(count):
        layer, pos = int(run.features.layer[number]), int(run.features.pos[number])
        latent = run.features.latent[number, None]
        row, bias = run.transcoders.reading(layer, latent)
        value = row[0] @ scaled.read[layer][pos] + bias[0]
        assert value.item() == pytest.approx(float(run.features.activation[number]), rel=1e-9)
        rows[number] = scaled.row(value)
    names = graph.nodes["name"].tolist()
    kinds = graph.nodes["kind"].tolist()
    assert kinds.count("feature") == count
    found = torch.zeros(len(names), sources, dtype=torch.float64)
    found[graph.links.target, graph.links.source] = graph.links.weight
    for number, expected in rows.items():
        slack = 0.005 * float(expected.abs().sum()) / sources + 1e-10
        assert (found[number] - expected).abs().max() <= slack, names[number]
    mean = logits.mean()
    for at, node in enumerate(graph.nodes[graph.nodes["kind"] == "logit"].itertuples()):
        expected = scaled.row(logits[node.token_id] - mean)
        slack = 0.005 * float(expected.abs().sum()) / sources + 1e-10
        assert (found[sources + at] - expected).abs().max() <= slack
        assert node.value == pytest.approx((plain - plain.mean())[node.token_id].item(), abs=1e-9)
    assert graph.conservation < 1e-9
    asked = graph.nodes[graph.nodes["value"].notna()]
    assert (asked["missing"].abs() <= 1e-8 * asked["gross"]).all()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("target", [[23, 6, 0], (23, 6), 4], ids=["list", "pair", "one"])
def test_own_targets_equal_autograd(target: Any, parallel: bool, tmp_path: Path) -> None:
    model, made = network(parallel), KINDS["skip"]()
    graph = attribution_graph(model, made, IDS[None], target=target, interventions=3)
    run = LocalReplacement(model, IDS, Transcoders(model, made), IDS == 0)
    scaled = Scaled(model, run)
    logits, plain = scaled.logits(), model(IDS[None]).logits[0, -1].detach()
    nodes = graph.nodes[graph.nodes["kind"] == "logit"]
    listed = {"list": [23, 6, 0], "tuple": [23], "int": [4]}[type(target).__name__]
    assert nodes["token_id"].tolist() == listed
    assert nodes["weight"].tolist() == [1 / len(listed)] * len(listed)
    for at, node in zip(nodes.index, nodes.itertuples(), strict=True):
        own = logits[node.token_id]
        value = own - (logits[6] if isinstance(target, tuple) else logits.mean())
        expected, found = scaled.row(value), torch.zeros(run.sources, dtype=torch.float64)
        into = graph.links.of(graph.links.target == at)
        found[into.source] = into.weight
        assert (found - expected).abs().max() <= 0.005 * float(expected.abs().sum()) / run.sources
        assert node.value == pytest.approx(value.item(), abs=1e-9)
        chance = plain.softmax(0)[node.token_id].item()
        assert node.probability == pytest.approx(chance) or isinstance(target, tuple)
    assert graph.conservation < 1e-9
    told = graph.interventions.query("kind == 'logit'")
    removed = graph.nodes.set_index("name").loc[told["removed"].iloc[0]]

    def without(tensor: Tensor, point: Any) -> Tensor:
        layer, lost = removed["layer"], torch.zeros_like(tensor)
        lost[0, removed["pos"]] = removed["value"] * made[layer].W_dec[removed["latent"]]
        return tensor - lost

    hook = [(f"blocks.{removed['layer']}.hook_mlp_out", without)]
    change = model.run_with_hooks(IDS[None], hook).logits[0, -1] - plain
    change = change[listed] - (change[6] if isinstance(target, tuple) else change.mean())
    assert told["model"].tolist()[: len(listed)] == pytest.approx(change.tolist(), abs=1e-9)
    headline = graph.view().title
    name = "23 over 6" if isinstance(target, tuple) else str(listed[0])
    assert headline == f"What adds to {name}"
    object.__setattr__(graph, "kept", (0.99, 0.99))
    graph.to_neuronpedia(tmp_path / "graph.json", "six-tokens")
    written = json.loads((tmp_path / "graph.json").read_text())["nodes"]
    assert sum(node["is_target_logit"] for node in written) == len(listed)


def test_targets_as_text_and_what_they_cannot_be() -> None:
    model = nl.load()
    made = nl.gym.dictionaries(model)["mlp_1"]
    ask = functools.partial(
        attribution_graph, model, made, "The king and the", max_features=20, interventions=0
    )
    pair = ask(target=(" Anna", " king"))
    (node,) = pair.nodes[pair.nodes["kind"] == "logit"].to_dict("records")
    assert node["name"] == "logit ·Anna over ·king"
    logits = model("The king and the").logits[0, -1].detach()
    anna, king = (model.to_single_token(word) for word in (" Anna", " king"))
    assert node["value"] == pytest.approx(float(logits[anna] - logits[king]), abs=1e-4)
    for wrong in ((" king",), (1, 2, 3), [], [3, 3], (" king", " king"), 1.5, [None], True, -1,
                  10**6, {"a": 1}):  # fmt: skip
        with pytest.raises(InputError):
            ask(target=wrong)
    with pytest.raises(TokenizerError):
        ask(target=" Anna and king")


def test_no_way_leads_between_features_of_one_layer_or_backwards() -> None:
    graph = attribution_graph(
        network(), KINDS["skip"](), IDS[None], interventions=0, progress=False
    )
    layer, pos = (torch.tensor(graph.nodes[name].to_numpy()) for name in ("layer", "pos"))
    ends = graph.links.source, graph.links.target
    assert (layer[ends[0]] < layer[ends[1]]).all() and (pos[ends[0]] <= pos[ends[1]]).all()


def test_few_features_are_those_that_matter_most() -> None:
    model, made = network(), KINDS["plain"]()
    whole = attribution_graph(model, made, IDS[None], interventions=0)
    assert whole.unexplored == 0
    few = attribution_graph(model, made, IDS[None], max_features=9, interventions=0)
    assert (few.nodes["kind"] == "feature").sum() == 9 and 0 < few.unexplored < 1
    last = whole.nodes[(whole.nodes["kind"] == "logit")].index[0]
    direct = whole.links.of(whole.links.target == last)
    best = whole.nodes["name"][int(direct.source[direct.weight.abs().argmax()])]
    if best.startswith("L") and "F" in best:
        assert best in few.nodes["name"].tolist()


def test_influence_and_scores_equal_powers_of_the_matrix() -> None:
    graph = attribution_graph(network(), KINDS["plain"](), IDS[None], interventions=0)
    count = len(graph.nodes)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    matrix[graph.links.target, graph.links.source] = graph.links.weight.abs()
    matrix /= matrix.sum(dim=1, keepdim=True).clamp(min=1e-300)
    weight = torch.tensor(graph.nodes["probability"].fillna(0).to_numpy())
    total, step = torch.zeros(count, dtype=torch.float64), weight
    for _ in range(LAYERS + 3):
        step = step @ matrix
        total += step
    assert torch.allclose(total, torch.tensor(graph.nodes["influence"].to_numpy()), atol=1e-12)
    kind = graph.nodes["kind"].to_numpy()
    tokens, errors = (float(total[torch.tensor(kind == name)].sum()) for name in ("token", "error"))
    assert graph.replacement == pytest.approx(tokens / (tokens + errors))
    missed = matrix[:, torch.tensor(kind == "error")].sum(dim=1)
    reads = torch.tensor((kind == "feature") | (kind == "logit"))
    counts = (total + weight)[reads]
    complete = float(((1 - missed[reads]) * counts).sum() / counts.sum())
    assert graph.completeness == pytest.approx(complete)


def test_pruning_keeps_the_shares_it_says() -> None:
    graph = attribution_graph(network(), KINDS["plain"](), IDS[None], interventions=2)
    small = graph.prune(0.7, 0.9)
    kinds = graph.nodes["kind"]
    for kind in ("token", "logit"):
        assert (small.nodes["kind"] == kind).sum() == (kinds == kind).sum()
    share = graph.nodes.set_index("name")["influence"]
    assert len(small.nodes) < len(graph.nodes) and len(small.links) < len(graph.links)
    assert small.kept == (0.7, 0.9) and small.prune(0.5).kept == (0.35, 0.9 * 0.98)
    dropped = share[~share.index.isin(small.nodes["name"])]
    assert dropped.sum() <= 0.5 * share.sum()
    ends = set(small.links.target.tolist()), set(small.links.source.tolist())
    for number, kind in enumerate(small.nodes["kind"]):
        if kind == "feature":
            assert number in ends[0] and number in ends[1]
        if kind == "error":
            assert number in ends[1]
    by_name = {(a, b): w for a, b, w in graph.edges.itertuples(index=False)}
    for a, b, w in small.edges.itertuples(index=False):
        assert by_name[a, b] == w
    assert len(graph.prune(1.0, 1.0).nodes) <= len(graph.nodes)


def test_largest_takes_just_enough() -> None:
    assert largest(torch.tensor([3.0, 1.0, 6.0, 0.0]), 0.6).tolist() == [False, False, True, False]
    assert largest(torch.tensor([3.0, 1.0, 6.0, 0.0]), 0.61).tolist() == [True, False, True, False]
    assert largest(torch.tensor([3.0, 1.0, 6.0, 0.0]), 1.0).tolist() == [True, True, True, False]
    assert largest(torch.zeros(3), 0.5).tolist() == [False] * 3


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", ["skip", "cross layer"])
def test_while_nothing_switches_predictions_are_exact(kind: str, parallel: bool) -> None:
    """Features that are all far above 0 stay active, so the replacement model is linear."""
    model = network(parallel)
    if kind == "skip":
        made: Any = [transcoder(i, "ReLU", skip=True) for i in range(LAYERS)]
        biases = [each.b_enc for each in made]
    else:
        made = cross_layer()
        made.activation = [ReLU()] * LAYERS
        biases = list(made.b_enc)
    with torch.no_grad():
        for bias in biases:
            bias += 200.0
    graph = attribution_graph(model, made, IDS[None], interventions=3)
    changes = graph.interventions
    assert len(changes) > 20 and set(changes["kind"]) == {"feature", "logit"}
    size = changes["replacement"].abs().max()
    # rows leave out 0.5 % of what comes in
    assert (changes["predicted"] - changes["replacement"]).abs().max() < 0.02 * size
    agreement = graph.agreement.set_index(["kind", "run"])["correlation"]
    assert agreement["logit", "replacement"] > 0.999


def test_removal_in_the_model_itself_is_that_of_a_hook() -> None:
    model, made = network(), KINDS["plain"]()
    graph = attribution_graph(model, made, IDS[None], interventions=2)
    removed = graph.interventions["removed"].iloc[0]
    row = graph.nodes.set_index("name").loc[removed]

    def without(tensor: Tensor, point: Any) -> Tensor:
        changed = tensor.clone()
        changed[0, row["pos"]] -= row["value"] * made[row["layer"]].W_dec[row["latent"]]
        return changed

    after = model.run_with_hooks(IDS[None], [(f"blocks.{row['layer']}.hook_mlp_out", without)])
    before = model(IDS[None]).logits[0, -1]
    change = after.logits[0, -1] - before
    change = change - change.mean()
    own = graph.interventions.query("removed == @removed and kind == 'logit'")
    ids = graph.nodes.set_index("name").loc[own["target"], "token_id"].tolist()
    assert torch.allclose(
        change[ids].float(), torch.tensor(own["model"].tolist()).float(), atol=1e-6
    )
    assert not model.hook_stack.changing, "no hook is left behind"


def test_padding_in_front_changes_nothing() -> None:
    model, made = network(), KINDS["plain"]()
    padded = {
        "input_ids": torch.cat([torch.zeros(2, dtype=torch.long), IDS])[None],
        "attention_mask": torch.tensor([[0, 0] + [1] * len(IDS)]),
    }
    assert attribution_graph(model, made, padded) == attribution_graph(model, made, IDS[None])


def test_the_built_in_model() -> None:
    model = nl.load()
    made = [value for name, value in nl.gym.dictionaries(model).items() if name.startswith("mlp")]
    graph = attribution_graph(model, made, "The king went to the city and the queen went to the")
    assert graph.conservation < 1e-5
    asked = graph.nodes[graph.nodes["value"].notna()]
    assert (asked["missing"].abs() <= 1e-4 * asked["value"].abs().clip(lower=1e-2)).all()
    held = graph.agreement.query("run == 'replacement'")
    assert (held["correlation"] > 0.95).all()
    assert graph.unexplored == 0 and 0.5 < graph.replacement < 1
    view = graph.view()
    assert len(view.to_html()) < 2_000_000
    assert len(graph.frame) == len(graph.nodes)


def test_export_has_one_id_for_each_node(tmp_path: Path) -> None:
    graph = attribution_graph(network(), KINDS["plain"](), IDS[None], interventions=0)
    file = tmp_path / "graph.json"
    best = graph.prune(1.0, 1.0).nodes.query("kind == 'feature'")["name"].tolist()[:3]
    whole = graph.prune(1.0, 1.0)
    object.__setattr__(whole, "kept", (0.99, 0.99))
    whole.to_neuronpedia(file, "six-tokens", "ours", {"two": best[:2]}, best)
    content = json.loads(file.read_text())
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids) == len(whole.nodes)
    assert {link[end] for link in content["links"] for end in ("source", "target")} <= set(ids)
    assert content["metadata"]["schema_version"] == 1
    assert content["metadata"]["prompt_tokens"] == graph.tokens
    assert len(content["qParams"]["pinnedIds"]) == 3
    assert content["qParams"]["supernodes"][0][0] == "two"
    types = {node["feature_type"] for node in content["nodes"]}
    assert types == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    with pytest.raises(InputError, match=r"\.json"):
        graph.to_neuronpedia(tmp_path / "graph.txt", "x")
    with pytest.raises(InputError, match="slug"):
        graph.to_neuronpedia(tmp_path / "x.json", "No Slug")
    with pytest.raises(InputError, match="no node"):
        graph.to_neuronpedia(tmp_path / "x.json", "x", pinned=["L9F9@9"])
    (tmp_path / "is a folder.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        graph.to_neuronpedia(tmp_path / "is a folder.json", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.json", "is a folder.json"]


def test_what_cannot_be_right_is_refused() -> None:
    model, made = network(), KINDS["plain"]()
    with pytest.raises(InputError, match="2 texts"):
        attribution_graph(model, made, IDS.repeat(2, 1))
    with pytest.raises(InputError, match="transcoders="):
        attribution_graph(model, [], IDS[None])
    with pytest.raises(InputError, match="Two transcoders"):
        attribution_graph(model, [made[0], made[0]], IDS[None])
    with pytest.raises(InputError, match="no transcoder of an MLP"):
        attribution_graph(model, random_dictionary(D, "blocks.1.hook_resid_post"), IDS[None])
    sequential = network(parallel=False)
    stream = transcoder(0, site="hook_resid_pre")
    attribution_graph(model, stream, IDS[None], interventions=0)
    with pytest.raises(InputError, match="hook_resid_mid"):
        attribution_graph(sequential, stream, IDS[None])
    with pytest.raises(InputError, match="No feature is active"):
        attribution_graph(model, made, torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(HookError), model.spliced(made[0]):
        attribution_graph(model, made, IDS[None])
    changed = model.hooks([("blocks.1.hook_resid_post", lambda x, point: 1.1 * x)])
    with pytest.raises(HookError, match=r"blocks\.1\.hook_resid_post"), changed:
        attribution_graph(model, made, IDS[None])
    with pytest.raises(InputError, match="is_transcoder"):
        attribution_graph(model, [random_dictionary(D, "blocks.1.hook_mlp_out")], IDS[None])
    backbone = nl.GPTNeoXModel(model.config)
    with pytest.raises(InputError, match="unembedding"):
        attribution_graph(backbone, made, IDS[None])
    graph = attribution_graph(model, made, IDS[None], interventions=0)
    assert graph.interventions.empty and graph.agreement.empty
    with pytest.raises(InputError, match="no node"):
        graph.view(pinned=["L9F9@9"])
    name = graph.prune().nodes["name"].iloc[0]
    with pytest.raises(InputError, match="two groups"):
        graph.view(groups={"a": [name], "b": [name]})


def test_half_precision_says_how_far_it_is_off() -> None:
    model = network().to(torch.bfloat16)
    made = [each.float() for each in KINDS["plain"]()]
    with pytest.warns(NeoxLabWarning, match="model.float"):
        graph = attribution_graph(model, made, IDS[None], interventions=1)
    assert graph.conservation > 1e-3


def test_edges_of_a_node_are_asked_by_its_name() -> None:
    graph = attribution_graph(network(), KINDS["plain"](), IDS[None], interventions=0)
    last = graph.nodes["name"].iloc[-1]
    into = graph.into(last)
    told = graph.nodes.set_index("name").loc[last]
    assert set(into["target"]) == {last}
    assert into["weight"].sum() == pytest.approx(told["incoming"], abs=0.006 * told["gross"])
    assert graph.out_of(into["source"][0])["source"].unique().tolist() == [into["source"][0]]
    for wrong in ("L9F9@9", 3, None):
        with pytest.raises(InputError, match="no node"):
            graph.into(wrong)  # type: ignore[arg-type]


def test_a_prompt_that_ends_in_a_space_is_told() -> None:
    model = nl.load()
    made = nl.gym.dictionaries(model)["mlp_1"]
    with pytest.warns(PromptWarning, match="space"):
        attribution_graph(model, made, "The king went to the ", interventions=0)


def test_shares_of_edges() -> None:
    edges = Edges(torch.tensor([0, 1, 0]), torch.tensor([2, 2, 1]), torch.tensor([3.0, -1.0, 5.0]))
    assert edges.shares(3).tolist() == [0.75, 0.25, 1.0]
    weight = torch.tensor([0.0, 0.0, 1.0])
    layers = torch.tensor([-1, 0, 1])
    assert edges.influence(weight, layers).tolist() == [1.0, 0.25, 0.0]


def test_numbers_that_cannot_be_traced_are_refused() -> None:
    model = network()
    for made in (lambda: transcoder(1), cross_layer):
        for other, wrong in ((model, made().float()), (network().float(), made())):
            with pytest.raises(InputError, match="float64 goes with float64 only"):
                attribution_graph(other, wrong, IDS[None], progress=False)
    with torch.no_grad():
        model.gpt_neox.layers[2].mlp.dense_4h_to_h.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="logits of this prompt are NaN or infinite"):
        attribution_graph(model, transcoder(1), IDS[None], progress=False)
