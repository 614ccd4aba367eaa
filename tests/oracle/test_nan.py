"""A NaN that was computed stays NaN and is named; what was not computed is something else.

One token's embedding is NaN, so one text of several is. Numbers of the other texts are compared
with a float64 forward pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from network64 import Network64
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits.evaluation import CIRCUIT, NOTHING, REST, WHOLE, Evaluation
from neox_lab.errors import InputError, NeoxLabWarning
from neox_lab.interchange.outcomes import InterchangeResult
from neox_lab.steering.curve import SteeringCurve

GOOD, BAD = "The cat sat on the mat", "The dog sat on the mat"
METRIC = nl.patching.logit_difference(5, 6)


def poisoned(head: str = "causal-lm", value: float = math.nan) -> Any:
    """The built-in model, with NaN for the embedding of " dog"."""
    labels = {"sequence-classification": ["a", "b"], "token-classification": ["O", "B-X", "I-X"]}
    torch.manual_seed(0)
    model: Any = nl.load(head=head, **({"labels": labels[head]} if head in labels else {}))
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[model.to_single_token(" dog")] = value
    return model


def broken() -> Any:
    """The built-in model, with one NaN in a weight that every text meets."""
    model: Any = nl.load()
    with torch.no_grad():
        model.gpt_neox.layers[1].attention.dense.weight[3, 4] = math.nan
    return model


def losses_in_float64(text: str) -> Tensor:
    """Loss of each token but the first."""
    ids = nl.load().to_tokens(text)
    run = Network64.of(nl.load())(ids)
    return -run.logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


def swept_in_float64(clean: str, corrupted: str) -> tuple[Tensor, float, float]:
    """The logit difference with each residual stream patched, and on both prompts unpatched."""
    model: Any = nl.load()
    network, ids = Network64.of(model), model.to_tokens(corrupted)
    source, plain = network(model.to_tokens(clean)), network(ids)
    values = torch.zeros(network.layers, ids.shape[1], dtype=torch.float64)
    for layer in range(network.layers):
        name = f"blocks.{layer}.hook_resid_pre"
        for pos in range(ids.shape[1]):

            def patch(x: Tensor, name: str = name, pos: int = pos) -> Tensor:
                x = x.clone()
                x[:, pos] = source[name][:, pos]
                return x

            values[layer, pos] = difference(network(ids, edits={name: patch}).logits)
    return values, float(difference(source.logits)), float(difference(plain.logits))


def difference(logits: Tensor) -> Tensor:
    """What ``METRIC`` reads."""
    return logits[0, -1, 5] - logits[0, -1, 6]


def test_perplexity() -> None:
    with pytest.warns(NeoxLabWarning, match="loss is NaN or infinite at text 1;"):
        found = nl.tasks.likelihood.perplexity(poisoned(), [GOOD, BAD, GOOD])
    assert all(math.isnan(found.metrics[n]) for n in ("loss", "perplexity", "bits_per_byte"))
    good = found.frame[found.frame["text"] == 2]["loss"].to_numpy()
    np.testing.assert_allclose(good, losses_in_float64(GOOD).detach(), atol=1e-4)
    assert found.frame[found.frame["text"] == 1]["loss"].isna().any()
    with pytest.warns(NeoxLabWarning, match="text 0"):
        assert math.isnan(nl.tasks.likelihood.perplexity(broken(), GOOD).metrics["perplexity"])
    assert "nan" in repr(found)


def test_last_word_and_choice() -> None:
    model = poisoned()
    with pytest.warns(NeoxLabWarning, match="log probability is NaN or infinite at pair 1;"):
        found = nl.tasks.likelihood.last_word(model, [GOOD, BAD])
    assert all(math.isnan(value) for value in found.metrics.values())
    assert not found.frame["greedy"][1]
    assert "NaN" in found.to_html()
    questions, options = ["The cat sat on the", "The dog sat on the"], [[" mat", " dog"]] * 2
    with pytest.warns(NeoxLabWarning, match="pair 2, pair 3"):
        chosen = nl.tasks.likelihood.choose(model, questions, options, [0, 0])
    assert math.isnan(chosen.metrics["accuracy"])
    assert chosen.frame["chosen"].sum() == 1
    assert not chosen.frame["chosen"][2:].any()


def test_an_infinite_loss_is_infinite() -> None:
    model: Any = nl.load()
    with torch.no_grad():
        model.embed_out.weight.mul_(1e4)
    found = nl.tasks.likelihood.perplexity(model, GOOD)
    assert found.metrics["loss"] > 710
    assert found.metrics["perplexity"] == math.inf


def test_classifiers() -> None:
    model = poisoned("sequence-classification")
    table = pd.DataFrame({"text": [GOOD, BAD, GOOD], "label": ["a", "b", "b"]})
    with pytest.warns(NeoxLabWarning, match="What the model says is NaN or infinite at text 1;"):
        found = nl.tasks.classification.evaluate(model, table)
    assert {name for name, value in found.metrics.items() if math.isnan(value)} == {
        *("accuracy", "macro_f1", "loss", "calibration_error")
    }
    assert found.frame["prediction"].isna().tolist() == [False, True, False]
    assert "1 texts are NaN" in found.to_html()
    with pytest.raises(InputError, match=r"texts \[1\] are NaN"):
        nl.tasks.classification.calibration(found)
    with pytest.warns(NeoxLabWarning):
        predicted = nl.tasks.classification.predict(model, [GOOD, BAD])
    assert predicted.frame["prediction"].isna().tolist() == [False, True]
    assert "NaN" in predicted.to_html()


def test_taggers() -> None:
    model = poisoned("token-classification")
    rows = [{"words": text.split(), "tags": ["O"] * 6} for text in (GOOD, BAD)]
    with pytest.warns(NeoxLabWarning, match="text 1;"):
        found = nl.tasks.tagging.evaluate(model, rows)
    assert all(math.isnan(value) for value in found.metrics.values())


def test_answers() -> None:
    model = poisoned("question-answering")
    spans = {"text": ["cat"], "answer_start": [4]}, {"text": ["dog"], "answer_start": [4]}
    rows = [
        {"question": "Who sat?", "context": text, "answers": answers}
        for text, answers in zip((GOOD, BAD), spans, strict=True)
    ]
    with pytest.warns(NeoxLabWarning, match="text 1;"):
        found = nl.tasks.answering.evaluate(model, rows)
    assert math.isnan(found.metrics["f1"]) and math.isnan(found.metrics["exact_match"])
    assert found.frame["f1"].isna().tolist() == [False, True]
    assert found.frame["prediction"].isna().tolist() == [False, True]
    with pytest.warns(NeoxLabWarning):
        one = nl.tasks.answering.predict(model, "Who sat?", BAD)
    assert one.frame["score"].isna().all() and len(one.frame) == 1
    assert one.to_html()


def test_tasks_of_the_small_world() -> None:
    with pytest.warns(NeoxLabWarning, match=r"logit difference is NaN or infinite at example 0"):
        found = nl.gym.evaluate(broken(), count=3)
    asked = found.frame[found.frame["count"] > 0]
    assert asked[["accuracy", "accuracy_low", "logit_difference"]].isna().all(axis=None)
    assert math.isnan(found.accuracy)
    with pytest.warns(NeoxLabWarning, match="sequence 0"):
        assert all(map(math.isnan, nl.gym.repeat_loss(broken(), count=2)))


def test_a_sweep_over_pairs_of_which_one_is_nan() -> None:
    clean = ["The cat sat on the", "The dog sat on the"]
    corrupted = ["The man sat on the", "The man sat on the"]
    with pytest.warns(NeoxLabWarning, match=r"of pairs 1, patched is NaN .* at layer 0 pos 1"):
        both = nl.patching.sweep(poisoned(), clean, corrupted, METRIC, progress=False)
    values, _, corrupted_value = swept_in_float64(clean[0], corrupted[0])
    assert math.isnan(both.clean)
    assert both.corrupted == pytest.approx(corrupted_value, abs=1e-4)
    assert both.samples is not None and both.computed is None and both.complete
    torch.testing.assert_close(both.samples[0].double(), values, rtol=0, atol=1e-4)
    assert both.samples[1].isnan().any(dim=0)[1]  # where the NaN is patched
    expected = both.samples.sum(dim=0) / 2
    torch.testing.assert_close(both.values, expected, equal_nan=True)
    assert both.values.isnan().any() and both.values.isfinite().any()
    assert len(both.frame) == both.values.numel()
    assert "cells are NaN" in repr(both)
    assert "NaN" in both.to_html() and "not measured" not in both.to_html()


@pytest.mark.parametrize("share", [0, 0.8])
def test_an_interrupted_sweep_says_what_it_has_not_computed(share: float) -> None:
    """Nothing before its variants are at the top; then all cells of some pairs."""

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    clean, corrupted = ["The cat sat on the"] * 40, ["The man sat on the"] * 40
    model = nl.load()
    found = nl.patching.sweep(model, clean, corrupted, METRIC, budget=16, progress=stop)
    values, clean_value, _ = swept_in_float64(clean[0], corrupted[0])
    assert not found.complete and "Interrupted" in repr(found)
    assert bool(found.is_computed.all()) == bool(found.is_computed.any()) == (share > 0)
    assert not found.values[found.is_computed].isnan().any()
    assert found.values[~found.is_computed].isnan().all()
    here = found.is_computed
    torch.testing.assert_close(found.values[here].double(), values[here], rtol=0, atol=1e-4)
    assert found.clean == pytest.approx(clean_value if share else math.nan, abs=1e-4, nan_ok=True)
    assert len(found.frame) == int(here.sum())


def test_edges_that_are_none_are_not_computed(recwarn: pytest.WarningsRecorder) -> None:
    clean, corrupted = "The cat sat on the", "The man sat on the"
    model = nl.load()
    exact = nl.patching.edge_sweep(model, clean, corrupted, METRIC, progress=False)
    estimate = nl.attribution.attribution_patch(model, clean, corrupted, METRIC, "edges")
    assert exact.computed is not None
    assert torch.equal(exact.is_computed, estimate.is_computed)
    assert exact.values[exact.is_computed].isfinite().all() and not exact.is_computed.all()
    tokens = nl.attribution.occlusion(model, ["The cat sat", "The cat sat on the"], METRIC)
    assert int((~tokens.is_computed).sum()) == 2
    assert not [w for w in recwarn if issubclass(w.category, NeoxLabWarning)]


@pytest.mark.parametrize("ask", ["direct", "edges", "nodes", "gradients", "occlusion", "paths"])
def test_attributions_and_paths(ask: str) -> None:
    model, clean, corrupted = poisoned(), "The dog sat on the", "The man sat on the"
    a, p = nl.attribution, nl.patching
    asked = {
        "direct": lambda: a.direct_logit_attribution(model, [GOOD, BAD], 5, 6),
        "edges": lambda: a.attribution_patch(model, clean, corrupted, METRIC, "edges"),
        "nodes": lambda: a.attribution_patch(model, clean, corrupted, METRIC),
        "gradients": lambda: a.integrated_gradients(model, clean, METRIC, steps=2),
        "occlusion": lambda: a.occlusion(model, clean, METRIC),
        "paths": lambda: p.path_patch(model, clean, corrupted, METRIC, progress=False),
    }
    with pytest.warns(NeoxLabWarning, match="is NaN or infinite at"):
        found = asked[ask]()
    assert found.values[found.is_computed].isnan().any()
    assert len(found.frame) == int(found.is_computed.sum())
    assert found.to_html()


def test_an_estimate_that_is_nan_beside_exact_numbers() -> None:
    found = nl.attribution.occlusion(nl.load(), GOOD, METRIC)
    values = found.values.clone()
    values[0, 2] = math.nan
    with pytest.warns(NeoxLabWarning, match="text 0 pos 2"):
        found = dataclasses.replace(found, values=values)
    agreement = nl.attribution.compare(found, torch.zeros(values.shape))
    assert len(agreement.frame) == values.numel()
    assert all(map(math.isnan, (agreement.correlation, agreement.largest_miss)))
    assert "1 parts are NaN" in agreement.to_html()


def test_heads() -> None:
    """LAPACK would end the process."""
    with pytest.warns(NeoxLabWarning, match="HeadsResult is NaN or infinite at layer 2 head 0"):
        found = nl.detect.heads(broken())
    assert found.values[:2].isfinite().all() and found.values[2:].isnan().all()
    right = nl.detect.copying_scores(nl.load())
    with torch.no_grad():
        model = nl.load()
        model.gpt_neox.layers[0].attention.query_key_value.weight[2 * 32 + 1, 4] = math.nan
    scores = nl.detect.copying_scores(model)
    assert scores.isnan().any() and scores.shape == right.shape


def test_factored_matrices_of_nan() -> None:
    from neox_lab.family.factored import FactoredMatrix

    left, right = torch.randn(3, 8, 4), torch.randn(3, 4, 8)
    whole = FactoredMatrix(left, right)
    left = left.clone()
    left[1, 2, 3] = math.nan
    some = FactoredMatrix(left, right)
    for got, expected in ((some.eigenvalues, whole.eigenvalues), (some.S, whole.S)):
        assert got[1].isnan().all()
        torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])


def test_the_lens() -> None:
    watch = [" cat"]
    with pytest.warns(NeoxLabWarning, match="prediction is NaN or infinite at 0_pre, text 1, pos "):
        found = nl.lens.logit_lens(poisoned(), [GOOD, BAD], watch=watch)
    network, ids = Network64.of(nl.load()), nl.load().to_tokens(GOOD)
    run = network(ids)
    for layer in range(network.layers):
        stream = network.normalize(run[f"blocks.{layer}.hook_resid_pre"])
        chances = network.head(stream).softmax(-1)
        entropy = torch.special.entr(chances).sum(-1)
        got = found.entropy[layer, :1, : ids.shape[1]].double()
        torch.testing.assert_close(got, entropy, rtol=0, atol=1e-4)
    bad = found.frame[found.frame["entropy_bits"].isna()]
    assert set(bad["text"]) == {1} and bad["prediction"].isna().all()
    assert (bad["next_rank"] == -1).all() and (bad["rank( cat)"] == -1).all()
    assert found.view(1).to_html()


def test_probes_name_the_text() -> None:
    texts = [f"{text} {letter}" for letter in "abcde" for text in (GOOD, BAD)]
    with pytest.raises(InputError, match=r"in 5 of 10 texts, the first is text 1; model.check"):
        nl.probing.probe(poisoned(), texts, [0, 1] * 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_check_of_a_model_names_weights(value: float) -> None:
    model: Any = nl.load()
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[5] = value
    with pytest.warns(NeoxLabWarning) as told:
        model.check()
    (said,) = told
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"
    assert f"A weight is NaN or infinite at {name};" in str(said.message)


def test_a_sound_model_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    nl.load().check()
    nl.load().half().check()
    assert not [w for w in recwarn if issubclass(w.category, NeoxLabWarning)]


def test_interchange() -> None:
    model = poisoned()
    texts = [f"The {animal} sat on the mat" for animal in ("cat", "man", "dog", "boy")]
    answers = [int(model.to_tokens(text)[0, 1]) for text in ("a cat", "a man")]
    choices = {"x": answers[:1], "y": answers[1:]}
    site = nl.interchange.Site(("resid_post", 1), 1)

    def asked(base: list[str], source: list[str]) -> Any:
        labels = (["x"] * len(base), ["y"] * len(base))
        pairs = nl.interchange.Pairs(base, source, *labels, choices=choices)
        return nl.interchange.accuracy(model, pairs, site)

    with pytest.warns(NeoxLabWarning, match="says to the base is NaN or infinite at pair 2"):
        found = asked(texts, texts[1:] + texts[:1])
    assert math.isnan(found.base_accuracy) and math.isnan(found.accuracy)
    assert found.frame[["low", "high", "kept_base", "other"]].isna().all(axis=None)
    with pytest.warns(NeoxLabWarning, match="The accuracy is NaN or infinite at whole site"):
        found = asked(texts[:2], texts[2:])
    assert math.isfinite(found.base_accuracy) and math.isnan(found.accuracy)
    sound = asked([texts[0], texts[3]], [texts[1], texts[0]])
    assert math.isfinite(sound.accuracy)


def test_a_finding_that_is_nan_has_no_p_value() -> None:
    runs = ["subspace", "random subspace 1", "random subspace 2"]

    def nulls(*accuracies: float) -> Any:
        frame = pd.DataFrame({"run": runs, "accuracy": accuracies})
        site = nl.interchange.Site(("resid_post", 1), 1)
        found = InterchangeResult(frame, site, "", 10, 0, 0.5, 1.0, torch.empty(0))
        return found.null_frame.iloc[0]

    assert nulls(0.9, 0.1, 0.2)["p"] == pytest.approx(1 / 3)
    assert math.isnan(nulls(math.nan, 0.1, 0.2)["p"])
    for broken_null in (nulls(0.9, math.nan, 0.2), nulls(0.9, 0.2, math.nan)):
        assert broken_null[["mean", "low", "high", "largest", "p"]].isna().all()


def test_circuits_beside_random_ones() -> None:
    def evaluated(circuit: float, *others: float) -> Evaluation:
        runs = [WHOLE, CIRCUIT, REST, NOTHING, "random 1", "random 2"]
        frame = pd.DataFrame({"run": runs, "faithfulness": [1, circuit, 0, 0, *others]})
        frame[["edges", "low", "high"]] = 1
        return Evaluation(frame, torch.zeros(6, 2), "", "zero", "")

    assert evaluated(0.9, 0.2, 0.5).better_than_random == 1
    assert evaluated(0.6, 0.2, 0.9).better_than_random == 0.5
    for found in (evaluated(math.nan, 0.2, 0.5), evaluated(0.9, 0.2, math.nan)):
        assert math.isnan(found.better_than_random)
    bars = evaluated(0.9, 0.2, math.nan).view()
    assert np.isnan(np.asarray(bars.values[2:], dtype=float)).all() and len(bars.values) == 4


def test_controls_of_a_steering_curve() -> None:
    rows = [("direction", 0, scale, scale) for scale in (-1.0, 1.0)]
    rows += [("random", 0, -1.0, 0.0), ("random", 0, 1.0, 0.5)]
    rows += [("random", 1, -1.0, 0.0), ("random", 1, 1.0, math.nan)]
    frame = pd.DataFrame(rows, columns=["kind", "draw", "scale", "metric"])
    for name in ("kl_bits", "bits_per_token"):
        frame[name] = math.nan
    for name in ("metric", "kl_bits", "bits_per_token"):
        frame[f"{name}_low"] = frame[f"{name}_high"] = frame[name]
    view = SteeringCurve(frame, "metric", "add", (2, 0)).view()
    assert "controls up to nan" in view.title
    (random,) = (line for name, line in view.lines.items() if name.startswith("random"))
    assert np.isnan([random.y[1], random.low[1], random.high[1]]).all()  # type: ignore[index]
    assert random.y[0] == 0
