"""No question is answered while dropout is on: the answer would be another one each time.

Every public function that takes a model is in one of the lists below; a new one that is in none
fails, and so does a question without the gate.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from dictionaries import random_dictionary

import neox_lab as nl
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError

CLEAN, CORRUPTED = "The cat sat on the", "The dog sat on the"
TEXTS = [f"The {noun} sat on the {place}." for noun in ("cat", "dog") for place in "abcdef"]
SPAN = {
    "question": "Who sat?",
    "context": CLEAN,
    "answers": {"text": ["cat"], "answer_start": [4]},
}
METRIC = nl.patching.logit_difference(5, 6)


def _act_patch(name: str) -> Callable[[Any], object]:
    def ask(model: Any) -> object:
        clean, corrupted = model.to_tokens(CLEAN), model.to_tokens(CORRUPTED)
        _, cache = model.run_with_cache(clean)
        caches = [cache]
        if "direct_path" in name:
            caches.append(model.run_with_cache(corrupted)[1])
        more = [0, 0] if name == "get_act_patch_direct_path" else []
        return getattr(nl.patching, name)(model, corrupted, *caches, METRIC, *more)

    return ask


def zero_lens(model: Any) -> nl.lens.TunedLens:
    """A tuned lens that translates nothing."""
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return nl.lens.TunedLens(torch.zeros(layers, width, width), torch.zeros(layers, width))


def _dictionary(model: Any) -> nl.sae.Dictionary:
    return random_dictionary(model.config.hidden_size)


def _transcoder(model: Any) -> nl.sae.Dictionary:
    width = model.config.hidden_size
    return random_dictionary(width, "blocks.0.mlp.hook_in", site_out="blocks.0.hook_mlp_out")


PAIRS = [
    nl.interchange.Pairs([[3, 4, side]], [[5, 6, side]], [7], [8], variable="v") for side in (1, 2)
]
SITE = nl.interchange.Site(("resid_post", 0), -1)


QUESTIONS: dict[str, Callable[[Any], object]] = {
    "activations.collect": lambda model: nl.activations.collect(
        model, TEXTS, "resid_post", "never made"
    ),
    "attribution.attribution_patch": lambda model: nl.attribution.attribution_patch(
        model, CLEAN, CORRUPTED, METRIC
    ),
    "attribution.direct_logit_attribution": lambda model: nl.attribution.direct_logit_attribution(
        model, CLEAN, 5, 6
    ),
    "attribution.integrated_gradients": lambda model: nl.attribution.integrated_gradients(
        model, CLEAN, METRIC, steps=2
    ),
    "attribution.occlusion": lambda model: nl.attribution.occlusion(model, CLEAN, METRIC),
    "circuits.acdc": lambda model: nl.circuits.acdc(
        model, CLEAN, CORRUPTED, METRIC, 0.1, progress=False
    ),
    "circuits.attribution_graph": lambda model: nl.circuits.attribution_graph(
        model, _transcoder(model), CLEAN, progress=False
    ),
    "circuits.neuron_scores": lambda model: nl.circuits.neuron_scores(
        model, CLEAN, CORRUPTED, METRIC
    ),
    "circuits.node_scores": lambda model: nl.circuits.node_scores(model, CLEAN, CORRUPTED, METRIC),
    "circuits.prune_edges": lambda model: nl.circuits.prune_edges(
        model, CLEAN, CORRUPTED, METRIC, 20, steps=2, progress=False
    ),
    "circuits.scores": lambda model: nl.circuits.scores(model, CLEAN, CORRUPTED, METRIC),
    "detect.copying_scores": lambda model: nl.detect.copying_scores(model),
    "detect.head_statistics": lambda model: nl.detect.head_statistics(model, CLEAN),
    "detect.heads": lambda model: nl.detect.heads(model),
    "dynamics.compare": lambda model: nl.dynamics.compare(nl.load(), model, CLEAN),
    "features.active": lambda model: nl.features.active(model, _dictionary(model), CLEAN),
    "features.circuit": lambda model: nl.features.circuit(
        model, _dictionary(model), CLEAN, METRIC, steps=1
    ),
    "features.direct": lambda model: nl.features.direct(model, _dictionary(model), CLEAN, 5, 6),
    "features.effects": lambda model: nl.features.effects(
        model, _dictionary(model), CLEAN, METRIC, progress=False
    ),
    "features.top_examples": lambda model: nl.features.top_examples(
        model, _dictionary(model), TEXTS, progress=False
    ),
    "interchange.accuracy": lambda model: nl.interchange.accuracy(model, PAIRS[0], SITE),
    "interchange.boundless": lambda model: nl.interchange.boundless(model, *PAIRS, SITE),
    "interchange.das": lambda model: nl.interchange.das(model, *PAIRS, SITE),
    "interchange.mask": lambda model: nl.interchange.mask(model, *PAIRS, SITE),
    "interchange.sweep": lambda model: nl.interchange.sweep(model, *PAIRS, {"last": -1}),
    "interchange.run": lambda model: nl.interchange.run(model, CLEAN, (SITE, CORRUPTED)),
    "lens.direct": lambda model: nl.lens.direct(model, CLEAN, 0),
    "lens.logit_lens": lambda model: nl.lens.logit_lens(model, CLEAN),
    "lens.tuned_lens": lambda model: nl.lens.tuned_lens(model, CLEAN, zero_lens(model)),
    "patching.ablate": lambda model: nl.patching.ablate(model, CLEAN, METRIC, progress=False),
    "patching.edge_sweep": lambda model: nl.patching.edge_sweep(
        model, CLEAN, CORRUPTED, METRIC, ["L0H0"], ["logits"], progress=False
    ),
    "patching.generic_activation_patch": lambda model: nl.patching.generic_activation_patch(
        model,
        model.to_tokens(CORRUPTED),
        model.run_with_cache(CLEAN)[1],
        METRIC,
        nl.patching.layer_pos_patch_setter,
        "resid_pre",
        ("layer", "pos"),
    ),
    "patching.path_patch": lambda model: nl.patching.path_patch(
        model, CLEAN, CORRUPTED, METRIC, progress=False
    ),
    "patching.sweep": lambda model: nl.patching.sweep(
        model, CLEAN, CORRUPTED, METRIC, progress=False
    ),
    **{
        f"patching.{name}": _act_patch(name)
        for name in dir(nl.patching)
        if name.startswith("get_act_patch")
    },
    "probing.probe": lambda model: nl.probing.probe(model, TEXTS, [0, 1] * 6, "resid_post"),
    "steering.direction": lambda model: nl.steering.direction(
        model, TEXTS[:6], TEXTS[6:], site="resid_post"
    ),
    "tasks.language.evaluate": lambda model: nl.tasks.language.evaluate(model, CLEAN),
    "tasks.language.measure": lambda model: nl.tasks.language.measure(model, [CLEAN], 8),
    "tasks.likelihood.choose": lambda model: nl.tasks.likelihood.choose(
        model, [CLEAN], [[" mat", " dog"]], [0]
    ),
    "tasks.likelihood.continuations": lambda model: nl.tasks.likelihood.continuations(
        model, [(CLEAN, " mat")]
    ),
    "tasks.likelihood.last_word": lambda model: nl.tasks.likelihood.last_word(model, [CLEAN]),
    "tasks.likelihood.log_probabilities": lambda model: nl.tasks.likelihood.log_probabilities(
        model, [nl.tasks.likelihood.Scored([1], [2])]
    ),
    "views.attention": lambda model: nl.views.attention(model, CLEAN),
    "tasks.likelihood.perplexity": lambda model: nl.tasks.likelihood.perplexity(model, CLEAN),
}
IN_EVALUATION_MODE: dict[str, tuple[str, Callable[[Any], object]]] = {
    "gym.evaluate": ("causal-lm", lambda model: nl.gym.evaluate(model, count=3).frame),
    "gym.sealed.evaluate": (
        "causal-lm",
        lambda model: nl.gym.sealed.evaluate(model, ["facts"]).frame,
    ),
    "gym.repeat_loss": ("causal-lm", lambda model: nl.gym.repeat_loss(model, count=2)),
    "tasks.classification.predict": (
        "sequence-classification",
        lambda model: nl.tasks.classification.predict(model, TEXTS).frame,
    ),
    "tasks.classification.evaluate": (
        "sequence-classification",
        lambda model: (
            nl.tasks.classification.evaluate(
                model, pd.DataFrame({"text": TEXTS, "label": ["a", "b"] * 6})
            ).frame
        ),
    ),
    "tasks.tagging.predict": (
        "token-classification",
        lambda model: nl.tasks.tagging.predict(model, TEXTS).frame,
    ),
    "tasks.tagging.evaluate": (
        "token-classification",
        lambda model: (
            nl.tasks.tagging.evaluate(
                model, [{"words": ["The", "cat"], "tags": ["O", "B-X"]}]
            ).frame
        ),
    ),
    "tasks.answering.predict": (
        "question-answering",
        lambda model: nl.tasks.answering.predict(model, "Who sat?", CLEAN).frame,
    ),
    "tasks.answering.evaluate": (
        "question-answering",
        lambda model: (
            nl.tasks.answering.evaluate(
                model,
                [
                    {
                        "question": "Who sat?",
                        "context": CLEAN,
                        "answers": {"text": ["cat"], "answer_start": [4]},
                    }
                ],
            ).frame
        ),
    ),
}
"""They turn dropout off themselves, for as long as they take."""
NO_QUESTIONS = {
    "activations.plan",  # texts alone
    "detect.composition",  # weights alone
    "gym.dictionaries",  # files alone
    "gym.pairs",  # tokens alone
    "detect.repeated_tokens",  # tokens alone
    "lens.singular_vectors",  # weights alone
    "lens.svd",  # weights alone
    "tasks.classification.measure",  # ``evaluate`` of examples that are prepared
    "tasks.harness.adapter",  # see the test of its answers
    "tasks.likelihood.encoded_pair",
    "views.hooks",
    *(f"tasks.{head}.train" for head in ("answering", "classification", "language", "tagging")),
    *(f"tasks.{head}.prepare" for head in ("answering", "classification", "language", "tagging")),
}
ROOMS = (
    "activations",
    "attribution",
    "circuits",
    "detect",
    "dynamics",
    "features",
    "gym",
    "interchange",
    "lens",
    "patching",
    "probing",
    "sae",
    "steering",
    "tasks",
    "views",
)


def public_functions(room: ModuleType, path: str) -> Iterator[str]:
    """Public functions of a room, and those of the modules it shows, that take a model first."""
    own = [n for n, f in vars(room).items() if getattr(f, "__module__", None) == room.__name__]
    for name in getattr(room, "__all__", own):
        found = getattr(room, name)
        if isinstance(found, ModuleType):
            yield from public_functions(found, f"{path}.{name}")
        elif inspect.isfunction(found) and not name.startswith("_"):
            if next(iter(inspect.signature(found).parameters), "").startswith("model"):
                yield f"{path}.{name}"


def dropping(head: str = "causal-lm") -> Any:
    """A model whose embeddings are dropped, in training mode."""
    labels = {"sequence-classification": ["a", "b"], "token-classification": ["O", "B-X", "I-X"]}
    torch.manual_seed(0)
    model: Any = nl.load(head=head, **({"labels": labels[head]} if head in labels else {}))
    model.gpt_neox.emb_dropout.p = 0.2
    return model.train()


def test_every_public_question_is_listed() -> None:
    rooms = {name for name in nl.__all__ if isinstance(getattr(nl, name), ModuleType)}
    assert rooms - set(ROOMS) == {"compat", "errors", "generation", "widgets"}
    found = {name for room in ROOMS for name in public_functions(getattr(nl, room), room)}
    assert found == QUESTIONS.keys() | IN_EVALUATION_MODE.keys() | NO_QUESTIONS


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_refused_while_dropout_is_on(name: str) -> None:
    with pytest.raises(InputError, match=r"dropout .*emb_dropout.* 0\.2\. model.eval\(\)"):
        QUESTIONS[name](dropping())


@pytest.mark.parametrize("name", ["lens.logit_lens", "patching.sweep", "detect.copying_scores"])
def test_training_mode_without_dropout_is_fine(name: str) -> None:
    model = nl.load().train()
    answers = [QUESTIONS[name](each) for each in (model, model.eval())]
    one, other = (getattr(answer, "frame", answer) for answer in answers)
    assert one.equals(other) if isinstance(one, pd.DataFrame) else torch.equal(one, other)


@pytest.mark.parametrize("name", IN_EVALUATION_MODE)
def test_what_turns_dropout_off_gives_the_same_answer_and_turns_it_on_again(name: str) -> None:
    head, ask = IN_EVALUATION_MODE[name]
    model = dropping(head)
    model.gpt_neox.layers[1].eval()
    modes = [module.training for module in model.modules()]
    one, again = ask(model), ask(model)
    assert modes == [module.training for module in model.modules()]
    model.eval()
    for other in (again, ask(model)):
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other)
        else:
            assert one == other


def test_answers_that_ask_again_have_the_gate_too() -> None:
    model = nl.load()
    asked = [QUESTIONS[f"attribution.{n}"] for n in ("attribution_patch", "integrated_gradients")]
    answers: list[Any] = [ask(model) for ask in asked]
    model.gpt_neox.emb_dropout.p = 0.2
    model.train()
    for answer in answers:
        with pytest.raises(InputError, match="dropout"):
            answer.check()


def test_attention_and_adapters_drop_too() -> None:
    """Attention keeps a number where others keep a module."""
    model: Any = nl.load()
    model.gpt_neox.layers[1].attention.dropout = 0.1
    refuse_dropout(model)
    model.gpt_neox.layers[1].train()
    with pytest.raises(InputError, match=r"dropout .*layers\.1\.attention .* 0\.1"):
        refuse_dropout(model)
    model.eval()
    model.gpt_neox.layers[0].mlp.dense_4h_to_h = torch.nn.Sequential(
        torch.nn.AlphaDropout(0.3).train(), model.gpt_neox.layers[0].mlp.dense_4h_to_h
    )
    with pytest.raises(InputError, match=r"dense_4h_to_h\.0 .* 0\.3"):
        refuse_dropout(model)


def test_the_harness_is_refused() -> None:
    pytest.importorskip("lm_eval")
    adapter = nl.tasks.harness.adapter(dropping())
    for ask in (adapter.generate_until, adapter.loglikelihood_rolling):
        request = type("Request", (), {"args": (CLEAN, {})})
        with pytest.raises(InputError, match="dropout"):
            ask([request])
