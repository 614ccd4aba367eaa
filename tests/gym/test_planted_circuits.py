"""Planted circuits do their task by the parts they say, and scores find exactly their edges."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.gym import planting_ioi as ioi
from neox_lab.gym import planting_two_step as two_step
from neox_lab.gym.planting_parts import SIZE_OF_ANCHOR

Planter = Callable[..., Any]
PLANTERS: dict[str, Planter] = {
    "ioi": nl.gym.planted_ioi,
    "two-step": nl.gym.planted_two_step,
    "induction": lambda parallel: nl.gym.planted_induction(),
}
NEW = ("ioi", "two-step")


@functools.cache
def planted(name: str, parallel: bool = True) -> Any:
    return PLANTERS[name](parallel=parallel)


@functools.cache
def scored(name: str, method: str, parallel: bool = True, steps: int = 5) -> Any:
    made = planted(name, parallel)
    question = made.question(4, seed=3)
    return nl.circuits.scores(made.model, **question, method=method, steps=steps)  # type: ignore[arg-type]


def score(scores: Any, edge: tuple[str, str]) -> float:
    labels = scores.labels
    return float(scores.values[labels["writer"].index(edge[0]), labels["reader"].index(edge[1])])


def ids(model: Any, words: list[str]) -> Tensor:
    return torch.cat([model.to_tokens(word)[0] for word in words])


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", NEW)
def test_it_answers(name: str, parallel: bool) -> None:
    made = planted(name, parallel)
    pairs = made.pairs(200)
    with torch.no_grad():
        probability = made.model([pair.clean for pair in pairs]).logits[:, -1].softmax(-1)
    right = probability.gather(1, ids(made.model, [pair.correct for pair in pairs])[:, None])
    assert right.min() > 0.9
    assert {len(made.model.to_tokens(p.clean)[0]) for p in pairs} == {
        len(made.model.to_tokens(p.corrupted)[0]) for p in pairs
    }
    assert made.model.to_tokens([pair.clean for pair in pairs]).min() > 0  # every word is known


@pytest.mark.parametrize("name", NEW)
def test_padding_in_front_changes_nothing(name: str) -> None:
    made = planted(name)
    tokens = made.model.to_tokens([pair.clean for pair in made.pairs(5)])
    padded = torch.nn.functional.pad(tokens, (2, 0))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (2, 0))
    with torch.no_grad():
        own = made.model(tokens).logits
        shifted = made.model(padded, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(shifted, own, rtol=0, atol=1e-3)


@pytest.mark.parametrize("parallel", [True, False])
def test_heads_of_the_indirect_object_look_where_they_should(parallel: bool) -> None:
    made = planted("ioi", parallel)
    pairs = made.pairs(20)
    _, cache = made.model.run_with_cache([pair.clean for pair in pairs])
    words = [made.model.to_str_tokens(pair.clean) for pair in pairs]
    again = [
        len(line) - 1 - line[::-1].index(p.wrong) for line, p in zip(words, pairs, strict=True)
    ]
    for at, (line, pair) in enumerate(zip(words, pairs, strict=True)):
        layer, head = ioi.DUPLICATE
        pattern = cache["pattern", layer][at, head]
        assert pattern[again[at], line.index(pair.wrong)] > 0.99
        assert pattern[line.index(pair.correct), 0] > 0.99  # no name twice: it rests
        layer, head = ioi.INHIBITION
        assert cache["pattern", layer][at, head, -1, again[at]] > 0.99
        for layer, head in ioi.MOVERS:
            assert cache["pattern", layer][at, head, -1, line.index(pair.correct)] > 0.99


@pytest.mark.parametrize("parallel", [True, False])
def test_the_bridge_is_looked_up_and_moved(parallel: bool) -> None:
    made = planted("two-step", parallel)
    pairs = made.pairs(20)
    _, cache = made.model.run_with_cache([pair.clean for pair in pairs])
    # areas follow the anchor, the ground and the tokens
    start = 2 + made.model.config.vocab_size
    lands = len(two_step.LANDS)
    bridge, moved = slice(start, start + lands), slice(start + lands, start + 2 * lands)
    for at, pair in enumerate(pairs):
        line = made.model.to_str_tokens(pair.clean)
        sight = next(word for word in line if word in two_step.SIGHTS)
        land = next(i for i, own in enumerate(two_step.LANDS.values()) if sight in own)
        wanted = torch.eye(lands)[land]
        at_sight = cache["resid_post", 0][at, line.index(sight), bridge]
        torch.testing.assert_close(at_sight, wanted, rtol=0, atol=0.1)
        at_end = cache["resid_post", 1][at, -1, moved]
        torch.testing.assert_close(at_end, wanted, rtol=0, atol=0.15)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", NEW)
def test_layer_norm_is_nearly_the_anchor_s_alone(name: str, parallel: bool) -> None:
    made = planted(name, parallel)
    _, cache = made.model.run_with_cache([pair.clean for pair in made.pairs(20)])
    width = made.model.config.hidden_size
    alone = SIZE_OF_ANCHOR * (1 / width - 1 / width**2) ** 0.5
    for layer in range(made.model.config.num_hidden_layers):
        stream = cache["resid_post", layer]
        assert (stream[..., 0] - SIZE_OF_ANCHOR).abs().max() == 0 and not stream[..., 1].any()
        ratio = stream.std(dim=-1, correction=0) / alone
        assert 1 <= ratio.min() and ratio.max() < 1.1


@pytest.mark.parametrize("name", NEW)
def test_saved_it_is_a_checkpoint_for_all(name: str, tmp_path: Path) -> None:
    made = planted(name)
    made.model.save_pretrained(tmp_path)
    made.model.tokenizer.save_pretrained(tmp_path)
    texts = [pair.clean for pair in made.pairs(4)]
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = made.model.to_tokens(texts)
    assert read(texts).input_ids == tokens.tolist()
    assert nl.load(tmp_path).to_string(tokens[0]) == texts[0]
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(tokens).logits, made.model(tokens).logits, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", NEW)
def test_exact_scores_find_exactly_the_true_edges(name: str, parallel: bool) -> None:
    made, exact = planted(name, parallel), scored(name, "exact", parallel)
    found = exact.recovery(made.edges)
    assert found["auroc"] == found["found"] == 1
    assert found["smallest_true"] > 1 > 5 * found["largest_other"]
    circuit = exact.circuit(edges=len(made.edges))
    kept = {
        (exact.labels["writer"][w], exact.labels["reader"][r]) for w, r in circuit.kept.nonzero()
    }
    assert kept == set(made.edges) and set(made.parts) == set(circuit.nodes) - {"embed", "logits"}
    assert circuit.evaluate(random=0).faithfulness == pytest.approx(1, abs=0.03)
    helps = {edge: score(exact, edge) < 0 for edge in made.edges}
    negative = "L{}H{}".format(*next(at for at, size in ioi.MOVERS.items() if size < 0))
    assert all(helps[edge] != (negative in " ".join(edge)) for edge in made.edges)


def test_the_induction_heads_are_a_circuit_too() -> None:
    made = planted("induction")
    assert scored("induction", "exact").recovery(made.edges)["largest_other"] == 0
    for method in ("eap-ig", "ig-activations"):
        found = scored("induction", method).recovery(made.edges)
        assert found["auroc"] == found["found"] == 1


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("method", ["eap", "both-ends", "eap-ig", "ig-activations"])
def test_every_estimate_finds_the_two_steps(method: str, parallel: bool) -> None:
    """Attention looks at the same places for both prompts; what is left has slopes that tell."""
    made = planted("two-step", parallel)
    found = scored("two-step", method, parallel).recovery(made.edges)
    assert found["auroc"] == found["found"] == 1


def test_one_gradient_takes_a_neuron_that_falls_silent_for_a_line() -> None:
    """gelu is 0 from half way on, the tangent goes on falling: twice as much at each look-up."""
    exact, eap = scored("two-step", "exact"), scored("two-step", "eap")
    times = {
        ("embed", "MLP0"): 4,
        ("MLP0", "L1H2.v"): 2,
        ("embed", "L1H0.v"): 2,
        ("L1H2", "MLP2"): 2,
        ("L1H0", "MLP2"): 2,
        ("MLP2", "logits"): 1,
    }
    for edge in planted("two-step").edges:
        assert score(eap, edge) == pytest.approx(times[edge] * score(exact, edge), rel=0.1)


def test_gradients_at_the_ends_miss_what_a_saturated_softmax_decides() -> None:
    """Where a head looks is as settled as e^-10: its queries and keys have no slope.

    What must pass such a switch is missed, also the values that decide where a later head looks,
    though removing these edges does most of all. From the last switch on, what movers copy to the
    logits, a gradient is right. From the corrupted side it is no better.
    """
    made, exact, eap = planted("ioi"), scored("ioi", "exact"), scored("ioi", "eap")
    assert eap.recovery(made.edges)["auroc"] < 0.8
    assert scored("ioi", "both-ends").recovery(made.edges)["auroc"] < 0.8
    movers = {"L{}H{}".format(*at) for at in ioi.MOVERS}
    copied = {*((mover, "logits") for mover in movers), *(("embed", f"{m}.v") for m in movers)}
    for edge in made.edges:
        if edge in copied:
            assert score(eap, edge) == pytest.approx(score(exact, edge), rel=0.1)
        else:
            assert abs(score(exact, edge)) > 2 and abs(score(eap, edge)) < 0.2


def test_a_path_between_the_ends_passes_the_switch_if_a_step_falls_on_it() -> None:
    """Heads switch within a small part of the way, so more steps are not always better."""
    edges = planted("ioi").edges
    ends = scored("ioi", "eap").recovery(edges)["auroc"]
    found = {n: scored("ioi", "eap-ig", steps=n).recovery(edges)["auroc"] for n in (5, 10, 20)}
    assert min(found.values()) > ends + 0.2
    assert found[10] == 1 and found[5] < 1 and found[20] < 1


@pytest.mark.slow
def test_a_path_of_all_embeddings_gives_the_credit_to_who_switches_first() -> None:
    """All three names fade at once, and S-inhibition is gone when keys of movers still matter."""
    exact, path = scored("ioi", "exact"), scored("ioi", "ig-activations", steps=20)
    layer, head = next(iter(ioi.MOVERS))
    late = ("embed", f"L{layer}H{head}.k")
    assert abs(score(exact, late)) > 5 and abs(score(path, late)) < 0.5
    # the sum over a writer's edges is what replacing all it writes does
    inhibition = "L{}H{}".format(*ioi.INHIBITION)
    row = path.labels["writer"].index(inhibition)
    made = planted("ioi")
    whole = float(path.values[row].nansum())
    question = made.question(4, seed=3)
    _, other = made.model.run_with_cache(question["corrupted"])
    layer, head = ioi.INHIBITION

    def replace(z: Tensor, _: Any) -> None:
        z[:, :, head] = other["z", layer][:, :, head]

    tokens = made.model.prepare_inputs(question["clean"])
    metric = question["metric"].bind(made.model, tokens)
    with torch.no_grad():
        before = metric(made.model(question["clean"]).logits)
        with made.model.hooks([(f"blocks.{layer}.attn.hook_z", replace)]):
            after = metric(made.model(question["clean"]).logits)
    assert whole == pytest.approx(float(after - before), rel=0.05)


def test_what_is_asked_is_checked() -> None:
    for planter in (nl.gym.planted_ioi, nl.gym.planted_two_step):
        with pytest.raises(InputError, match="parallel"):
            planter(parallel="yes")  # type: ignore[arg-type]
    made = planted("ioi")
    for arguments in ({"count": 0}, {"seed": -1}, {"count": 1.5}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            made.pairs(**arguments)
    assert made.pairs(5, 1) == made.pairs(5, 1) != made.pairs(5, 2)
    for name, does in made.parts.items():
        assert f"{name}   {does}" in repr(made)


def test_planting_leaves_the_generator_of_torch_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    first, second = nl.gym.planted_ioi(), nl.gym.planted_ioi()
    nl.gym.planted_two_step()
    assert torch.equal(torch.rand(4), wanted)
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
