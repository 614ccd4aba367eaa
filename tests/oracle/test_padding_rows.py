"""A row of a padded batch is the row alone, whatever is asked.

Every public question is asked about texts of unequal length, padded on the left and on the right
with the token that also ends texts, and about each text by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from settings64 import CLASSES, build, close
from torch import Tensor

import neox_lab as nl
from neox_lab.data.activations import collected
from neox_lab.experiments.patching.sites import SITES
from neox_lab.gym import planting
from neox_lab.tasks import answering, classification, likelihood, tagging
from neox_lab.tasks.likelihood import Scored

TEXTS = ["hello there", "a cat", "the dogs ran"]
OTHERS = ["hullo there", "a bat", "the dugs rxn"]
REFERENCE = ["now what is", "abc", "something to read"]
SIDES = ("left", "right")
CAUSAL = nl.patching.logit_difference("a", "b")
MLP = "blocks.0.hook_mlp_out"
SITE_NAMES = [name for name in SITES if name != "resid_mid"]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {head: reader(head) for head in CLASSES}


def reader(head: str) -> Any:
    """A float64 model that reads text, a token for each character; 0 is padding and end."""
    sizes: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0}
    if head == "token-classification":
        sizes["id2label"] = {0: "O", 1: "B-PERSON", 2: "I-PERSON"}
    model, _ = build("default", head, **sizes)
    model.tokenizer = planting.tokenizer()
    return model


class Given:
    """Some texts as a padded batch: as a mapping of tensors and as strings.

    Attributes:
        texts: the texts.
        others: a text of equal length for each.
        side: where short ones are padded.
    """

    def __init__(self, model: Any, rows: list[int], side: str) -> None:
        self.model, self.side = model, side
        self.texts, self.others = [TEXTS[row] for row in rows], [OTHERS[row] for row in rows]
        self.inputs, self.corrupted = self.padded(self.texts), self.padded(self.others)

    def padded(self, texts: list[str]) -> dict[str, Tensor]:
        longest = max(map(len, texts))
        rows = [self.model.tokenizer(text).input_ids for text in texts]
        fill = [[0] * (longest - len(row)) for row in rows]
        left = self.side == "left"
        ids = [f + r if left else r + f for r, f in zip(rows, fill, strict=True)]
        ones = [[1] * len(row) for row in rows]
        mask = [f + r if left else r + f for r, f in zip(ones, fill, strict=True)]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def own(self, values: Tensor, row: int, *axes: int) -> Tensor:
        """``values`` at the text's own positions along ``axes``."""
        where = self.inputs["attention_mask"][row].nonzero().flatten()
        for axis in axes:
            values = values.index_select(axis, where)
        return values

    @property
    def rows(self) -> range:
        return range(len(self.texts))

    @contextmanager
    def tokenized(self) -> Iterator[list[str]]:
        """The texts, while the model's tokenizer pads on this side."""
        tokenizer = self.model.tokenizer
        before, tokenizer.padding_side = tokenizer.padding_side, self.side
        try:
            yield self.texts
        finally:
            tokenizer.padding_side = before


Answer = list[list[Any]]
"""For each text what was found, a list of numbers or tensors."""


def forward(given: Given) -> Answer:
    with torch.no_grad():
        output = given.model(**given.inputs, output_hidden_states=True, output_attentions=True)
    return [
        [given.own(output.logits[row], row, 0)]
        + [given.own(state[row], row, 0) for state in output.hidden_states]
        + [given.own(pattern[row], row, 1, 2) for pattern in output.attentions]
        for row in given.rows
    ]


def run_with_cache(given: Given) -> Answer:
    points = given.model.hook_points
    with given.tokenized() as texts:
        _, cache = given.model.run_with_cache(texts)
    along = ("pos", "query_pos", "key_pos")
    # queries and keys are turned by where they stand; scores see the distance alone
    names = [name for name in points if "rot_" not in name]
    return [
        [
            given.own(
                cache[name][row],
                row,
                *(at - 1 for at, axis in enumerate(points[name].axes) if axis in along),
            )
            for name in names
        ]
        for row in given.rows
    ]


def decompositions(given: Given) -> Answer:
    _, cache = given.model.run_with_cache(
        given.inputs["input_ids"], attention_mask=given.inputs["attention_mask"]
    )
    stacks = [
        cache.decompose_resid(),
        cache.accumulated_resid(apply_ln=True),
        cache.stack_head_results(),
        cache.stack_neuron_results(-1),
        cache.logit_attrs(cache.decompose_resid(), "a", "b"),
    ]
    return [[given.own(stack[:, row], row, 1) for stack in stacks] for row in given.rows]


def samples(given: Given, result: Any, row: int) -> Tensor:
    """The pair's own numbers, without cells that are padding."""
    at = [number for number, axis in enumerate(result.axes) if axis in ("pos", "source_pos")]
    return given.own(result.samples[row], row, *at)


def sweep(given: Given) -> Answer:
    found = [
        nl.patching.sweep(given.model, given.inputs, given.corrupted, CAUSAL, site, progress=False)
        for site in SITE_NAMES
    ]
    return [[samples(given, result, row) for result in found] for row in given.rows]


def sweep_of_a_cache(given: Given) -> Answer:
    with given.tokenized() as texts:
        _, cache = given.model.run_with_cache(texts)
    result = nl.patching.sweep(given.model, cache, given.corrupted, CAUSAL, "z", progress=False)
    return [[samples(given, result, row)] for row in given.rows]


def named_positions(given: Given) -> Answer:
    result = nl.patching.sweep(
        *(given.model, given.inputs, given.corrupted, CAUSAL, "resid_pre"),
        positions={"first": 0, "last": -1, "moved": (1, 2)},
        progress=False,
    )
    return [[result.samples[row]] for row in given.rows]


def ablate(given: Given) -> Answer:
    reference = given.padded(REFERENCE)
    found = []
    for site in SITE_NAMES:
        kinds = ["zero"] if SITES[site].is_pattern else ["zero", "mean"]
        found += [
            nl.patching.ablate(
                given.model, given.inputs, CAUSAL, site, kind, reference=reference, progress=False
            )
            for kind in kinds
        ]
    return [[samples(given, result, row) for result in found] for row in given.rows]


def effects(given: Given) -> Answer:
    dictionary = random_dictionary(given.model.config.hidden_size, MLP, kind="ReLU").double()
    answer: Answer = [[] for _ in given.rows]
    for method, steps in (("exact", 0), ("gradient", 0), ("gradient", 3)):
        for corrupted in (None, given.corrupted):
            found = nl.features.effects(
                *(given.model, dictionary, given.inputs, CAUSAL, corrupted),
                method=method,
                steps=steps,
                progress=False,
            )
            latents = list(map(int, found.labels["latent"]))
            for row in given.rows:  # which features are active in other rows says nothing
                every = found.per_row.new_zeros(found.per_row.shape[1], dictionary.latents)
                every[:, latents] = found.per_row[row]
                answer[row].append(given.own(every, row, 0))
    return answer


def feature_circuit(given: Given) -> Answer:
    width = given.model.config.hidden_size
    dictionaries = [
        random_dictionary(width, "blocks.0.mlp.hook_in", site_out=MLP, kind="ReLU").double(),
        random_dictionary(width, "blocks.0.hook_resid_post", kind="ReLU").double(),
    ]
    answer: Answer = [[] for _ in given.rows]
    for corrupted in (None, given.corrupted):
        found = nl.features.circuit(
            given.model, dictionaries, given.inputs, CAUSAL, corrupted, steps=2
        )
        names = found.labels["component"]
        rows = found.values[None] if found.per_row is None else found.per_row
        for row in given.rows:
            shares = dict(zip(names, rows[row].tolist(), strict=True))
            every = [f"0.{s} f{n}" for s in ("mlp_out", "resid_post") for n in range(40)]
            every += ["0.mlp_out error", "0.resid_post error"]
            answer[row].append(torch.tensor([shares.get(name, 0) for name in every]).double())
    return answer


def direct_shares(given: Given) -> Answer:
    dictionary = random_dictionary(given.model.config.hidden_size, MLP, kind="ReLU").double()
    found = nl.features.direct(given.model, dictionary, given.inputs, "a", "b", -2)
    names = found.labels["component"]
    every = [*(f"f{n}" for n in range(40)), "dictionary bias", "error", "rest", "bias"]
    return [
        [torch.tensor([float(shares[names.index(n)]) if n in names else 0.0 for n in every])]
        for shares in found.per_row
    ]


def active(given: Given) -> Answer:
    dictionary = random_dictionary(given.model.config.hidden_size, MLP).double()
    found = nl.features.active(given.model, dictionary, given.inputs)
    return [
        [found.pieces[row], *(torch.tensor(found.activations(n, row)) for n in range(40))]
        for row in given.rows
    ]


def top_examples(given: Given) -> Answer:
    dictionary = random_dictionary(given.model.config.hidden_size, MLP, kind="ReLU").double()
    found = nl.features.top_examples(
        given.model, dictionary, given.texts, skip_first=0, window=99, progress=False
    )
    answer: Answer = [[] for _ in given.rows]  # one window a text: its highest token
    for latent in range(dictionary.latents):
        frame = found.examples(latent)
        for one in frame[frame["group"] == "top"].itertuples():
            answer[one.document] += [f"{latent} {one.position}", torch.tensor(one.value)]
    return answer


def path_patch(given: Given) -> Answer:
    found = [
        nl.patching.path_patch(
            *(given.model, given.inputs, given.corrupted, CAUSAL, senders, receivers),
            through=through,
            progress=False,
        )
        for senders, receivers in (("heads", "logits"), (["L0H1", "embed"], ["L1H0", "MLP1"]))
        for through in ("nothing", "mlps")
    ]
    return [[result.samples[row] for result in found] for row in given.rows]


def edge_sweep(given: Given) -> Answer:
    result = nl.patching.edge_sweep(
        given.model, given.inputs, given.corrupted, CAUSAL, progress=False
    )
    return [[result.samples[row]] for row in given.rows]


def attribution_patch(given: Given) -> Answer:
    answer: Answer = [[] for _ in given.rows]
    for site in ("edges", *SITE_NAMES):
        for steps in (0, 3):
            result = nl.attribution.attribution_patch(
                given.model, given.inputs, given.corrupted, CAUSAL, site, steps=steps
            )
            at = [n for n, axis in enumerate(result.axes) if axis in ("pos", "source_pos")]
            for row in given.rows:
                answer[row].append(given.own(result.per_row[row], row, *at))
    return answer


def direct_logit_attribution(given: Given) -> Answer:
    found = [
        nl.attribution.direct_logit_attribution(given.model, given.inputs, "a", "b", -2, by)
        for by in ("component", "layer", "head", "mlp")
    ]
    return [[result.per_row[row] for result in found] for row in given.rows]


def of_tokens(question: Callable[..., Any]) -> Callable[[Given], Answer]:
    def ask(given: Given) -> Answer:
        result = question(given.model, given.inputs, CAUSAL)
        return [[given.own(result.values[row], row, 0), result.totals[row]] for row in given.rows]

    return ask


def logit_lens(given: Given) -> Answer:
    answer: Answer = [[] for _ in given.rows]
    with given.tokenized() as texts:
        for site in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
            result = nl.lens.logit_lens(given.model, texts, site, watch=["a", "b"])
            columns = [v for v in vars(result).values() if isinstance(v, Tensor) and v.dim() > 2]
            columns.append(result.depth[None])
            for row in given.rows:
                answer[row] += [given.own(values[:, row], row, 1) for values in columns]
                frame = result.frame[result.frame["text"] == row]
                answer[row] += [torch.tensor(frame["next_probability"].to_numpy())]
    return answer


def direct(given: Given) -> Answer:
    with given.tokenized() as texts:
        result = nl.lens.direct(given.model, texts, "a", "b")
    frame = result.frame
    shares = [frame[frame["text"] == row]["share"].to_numpy() for row in given.rows]
    return [
        [given.own(result.shares[:, row], row, 1), torch.tensor(shares[row])] for row in given.rows
    ]


def tuned_lens(given: Given) -> Answer:
    answer: Answer = [[] for _ in given.rows]
    layers, width = given.model.config.num_hidden_layers, given.model.config.hidden_size
    generator = torch.Generator().manual_seed(2)
    weight, bias = (
        torch.randn(layers, *shape, generator=generator) * 0.2
        for shape in ((width, width), (width,))
    )
    lens = nl.lens.TunedLens(weight, bias)
    with given.tokenized() as texts:
        for site in ("resid_pre", "resid_post"):
            result = nl.lens.tuned_lens(given.model, texts, lens, site)
            for row in given.rows:
                columns = (result.kl, result.entropy, result.top_probability)
                answer[row] += [given.own(values[:, row], row, 1) for values in columns]
    return answer


def generate(given: Given) -> Answer:
    """New tokens, by one beam and by three, with everything on that searches the text."""
    settings: dict[str, Any] = {"max_new_tokens": 7, "repetition_penalty": 1.3}
    settings |= {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2}
    found = [
        given.model.generate(given.texts, num_beams=beams, **settings, **more)
        for beams in (1, 3)
        for more in ({}, {"encoder_repetition_penalty": 1.5}, {"eos_token_id": [0, 40, 50]})
    ]
    width = max(map(len, given.texts))
    return [
        [(output[row, width:].tolist() + [0] * 7)[:7] for output in found] for row in given.rows
    ]


def perplexity(given: Given) -> Answer:
    frame = likelihood.perplexity(given.model, given.texts).frame
    return [[torch.tensor(frame.loc[frame["text"] == r, "loss"].to_numpy())] for r in given.rows]


def continuations(given: Given) -> Answer:
    pairs = [(text[:-2], text[-2:]) for text in given.texts]
    frame = likelihood.continuations(given.model, pairs)
    return [[float(frame["log_probability"][row])] for row in given.rows]


def log_probabilities(given: Given) -> Answer:
    rows = [given.model.tokenizer(text).input_ids for text in given.texts]
    asked = [Scored(row[: 2 + len(row) % 2], row[2 + len(row) % 2 :]) for row in rows]
    return [[values] for values, _ in likelihood.log_probabilities(given.model, asked)]


def choose(given: Given) -> Answer:
    options = [[" yes", " n", "!"]] * len(given.texts)
    frame = likelihood.choose(given.model, given.texts, options, per="token").frame
    scores = [frame.loc[frame["question"] == row, "score"].to_numpy() for row in given.rows]
    return [[torch.tensor(found)] for found in scores]


def last_word(given: Given) -> Answer:
    frame = likelihood.last_word(given.model, given.texts).frame
    return [[float(frame["log_probability"][row])] for row in given.rows]


def vectors(given: Given) -> Answer:
    """What probes are fitted to."""
    names = [n for n, p in given.model.hook_points.items() if "pos" in p.axes]
    answer: Answer = [[] for _ in given.rows]
    for pos in (-1, "mean", 0, -2):
        with collected(given.model, given.texts, names, pos) as found:
            for row in given.rows:
                answer[row] += [torch.tensor(found[name][row]) for name in names]
    return answer


def attention_view(given: Given) -> Answer:
    answer: Answer = []
    with given.tokenized() as texts:
        _, cache = given.model.run_with_cache(texts)
        for row in given.rows:
            drawn = nl.views.attention(given.model, list(texts), batch_index=row)
            of_cache = nl.views.attention(cache, batch_index=row)
            answer.append([torch.tensor(drawn.patterns), torch.tensor(of_cache.patterns)])
    return answer


def of_classifier(given: Given) -> Answer:
    logit = nl.patching.class_logit(1, 2)
    model = given.model
    share = nl.attribution.integrated_gradients(model, given.inputs, logit, steps=4)
    direct = nl.attribution.direct_logit_attribution(model, given.inputs, logit)
    said = classification.predict(model, given.texts).values
    return [
        [given.own(share.values[row], row, 0), direct.per_row[row], torch.tensor(said[row])]
        for row in given.rows
    ]


def steered(given: Given) -> Answer:
    found = nl.steering.direction(given.model, TEXTS, OTHERS, site="resid_post", positions="mean")
    answer: Answer = [[] for _ in given.rows]
    for positions in ("all", "last", [1, 2], slice(2, None)):
        with found.steer(0.5, positions=positions):
            logits = given.model(**given.inputs).logits
        for row in given.rows:
            answer[row].append(given.own(logits[row], row, 0))
    return answer


def interchange(given: Given) -> Answer:
    site, other = nl.interchange.Site(("v", 0), {"one": 1, "last": -1}), ("resid_post", 0)
    swaps = [(site, given.corrupted), (nl.interchange.Site(other, -1), given.inputs)]
    logits = nl.interchange.run(given.model, given.inputs, *swaps).logits
    return [[given.own(logits[row], row, 0)] for row in given.rows]


def of_tagger(given: Given) -> Answer:
    logit = nl.patching.tag_logit(2, 1, 0)
    swept = nl.patching.sweep(
        given.model, given.inputs, given.corrupted, logit, "z", progress=False
    )
    frame = tagging.predict(given.model, given.texts).frame
    found = [frame[frame["text"] == row].drop(columns="text") for row in given.rows]
    return [
        [samples(given, swept, row), torch.tensor(found[row]["score"].to_numpy())]
        for row in given.rows
    ]


def of_span_finder(given: Given) -> Answer:
    logit = nl.patching.span_logit(1, 3)
    swept = nl.patching.sweep(
        given.model, given.inputs, given.corrupted, logit, "z", progress=False
    )
    rows = [
        {"question": text[:3], "context": f"{text} and so on", "answers": [(2, text[2:4])]}
        for text in given.texts
    ]
    said = answering.evaluate(given.model, rows, stride=8).frame["prediction"]
    return [[samples(given, swept, row), said[row]] for row in given.rows]


QUESTIONS: dict[str, Callable[[Given], Answer]] = {
    "forward": forward,
    "run_with_cache": run_with_cache,
    "decompositions": decompositions,
    "patching.sweep": sweep,
    "patching.sweep of a cache": sweep_of_a_cache,
    "patching.sweep of named positions": named_positions,
    "patching.ablate": ablate,
    "patching.path_patch": path_patch,
    "patching.edge_sweep": edge_sweep,
    "attribution.attribution_patch": attribution_patch,
    "attribution.direct_logit_attribution": direct_logit_attribution,
    "attribution.integrated_gradients": of_tokens(nl.attribution.integrated_gradients),
    "attribution.occlusion": of_tokens(nl.attribution.occlusion),
    "features.active": active,
    "features.circuit": feature_circuit,
    "features.direct": direct_shares,
    "features.effects": effects,
    "features.top_examples": top_examples,
    "interchange.run": interchange,
    "lens.logit_lens": logit_lens,
    "lens.direct": direct,
    "lens.tuned_lens": tuned_lens,
    "generate": generate,
    "likelihood.perplexity": perplexity,
    "likelihood.continuations": continuations,
    "likelihood.log_probabilities": log_probabilities,
    "likelihood.choose": choose,
    "likelihood.last_word": last_word,
    "probing.probe": vectors,
    "steering.steer": steered,
    "views.attention": attention_view,
    "classification.predict": of_classifier,
    "tagging.predict": of_tagger,
    "answering.predict": of_span_finder,
}
HEADS = {
    "classification.predict": "sequence-classification",
    "tagging.predict": "token-classification",
    "answering.predict": "question-answering",
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_row_of_a_padded_batch_is_the_row_alone(
    models: dict[str, Any], question: str, side: str
) -> None:
    model, ask = models[HEADS.get(question, "causal-lm")], QUESTIONS[question]
    together = ask(Given(model, [0, 1, 2], side))
    for row in range(3):
        alone = ask(Given(model, [row], side))
        assert len(together[row]) == len(alone[0]) > 0
        for got, wanted in zip(together[row], alone[0], strict=True):
            if isinstance(wanted, list | str):
                assert got == wanted
            else:
                close(got, wanted)


@pytest.mark.parametrize("side", SIDES)
def test_the_training_loss_of_spans_is_the_mean_over_texts(
    models: dict[str, Any], side: str
) -> None:
    model = models["question-answering"]
    given = Given(model, [0, 1, 2], side)
    starts = [int(mask.nonzero()[1]) for mask in given.inputs["attention_mask"]]
    wide = torch.tensor(starts)
    together = model.training_loss(
        given.inputs | {"start_positions": wide, "end_positions": wide + 2}
    )
    targets = {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([3])}
    alone = [model.training_loss(given.padded([text]) | targets) for text in given.texts]
    close(together.detach(), torch.stack(alone).mean().detach())
    outside = {"start_positions": wide, "end_positions": torch.tensor([99, 3, 3])}
    if side == "right":  # no answer ends in padding, whatever the batch is padded to
        padding = {"start_positions": wide, "end_positions": torch.tensor([11, 3, 3])}
        first = model.training_loss(given.inputs | padding)
        close(first.detach(), model.training_loss(given.inputs | outside).detach())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("pattern", ["previous_token", "duplicate_token"])
@pytest.mark.parametrize("measure", ["share", "mul", "abs"])
def test_heads_of_a_padded_batch_are_means_over_its_texts(
    models: dict[str, Any], pattern: str, measure: str, side: str
) -> None:
    model = models["causal-lm"]
    with Given(model, [0, 1, 2], side).tokenized() as texts:
        together = nl.detect.heads(model, pattern, list(texts), measure=measure)
        alone = [nl.detect.heads(model, pattern, text, measure=measure) for text in texts]
    weights = [
        float(found.queries if measure == "share" else len(text))
        for found, text in zip(alone, texts, strict=True)
    ]
    later = [float(len(text) - 1) for text in texts]
    close(together.values, mean([found.values for found in alone], weights))
    for name in ("entropy", "distance", "first_token"):
        close(getattr(together, name), mean([getattr(found, name) for found in alone], later))


def mean(values: list[Tensor], weights: list[float]) -> Tensor:
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return torch.as_tensor(total / sum(weights))


def test_no_public_question_is_left_out() -> None:
    """Functions that are asked about texts stand above, or their reason stands here."""
    elsewhere = {
        "compare": "reads results",
        "class_logit": "a metric",
        "logit_difference": "a metric",
        "side_logit": "a metric",
        "span_logit": "a metric",
        "tag_logit": "a metric",
        "composition": "reads weights",
        "copying_scores": "reads weights",
        "duplicate_token": "a pattern of one text",
        "induction": "a pattern of one text",
        "previous_token": "a pattern of one text",
        "repeated_tokens": "makes texts of one length",
        "heads": "tested by itself",
        "head_statistics": "tested by itself, with padding on either side",
        "pattern_score": "reads attention of one text",
        "predictions": "reads logits of one position",
        "singular_vectors": "reads weights",
        "svd": "reads weights",
        "generic_activation_patch": "runs the prompts it is given",
        "make_df_from_ranges": "counts",
        **dict.fromkeys((n for n in vars(nl.patching) if n.endswith("_setter")), "copies"),
        "windows": "cuts one text",
        "encoded_pair": "cuts one text",
        "direction": "reads each text by itself, see the tests of steering",
        "token": "a place",
        "load": "reads a file",
    }
    rooms = {
        **{"patching": nl.patching, "attribution": nl.attribution, "lens": nl.lens},
        **{"detect": nl.detect, "probing": nl.probing, "likelihood": likelihood},
        "steering": nl.steering,
    }
    asked = {question.split(" ")[0] for question in QUESTIONS}
    for room, module in rooms.items():
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        public = getattr(module, "__all__", None) or [
            name for name in functions if vars(module)[name].__module__ == module.__name__
        ]
        for name in public:
            # get_act_patch_* are sweeps from a cache by other names
            if name in functions and not name.startswith(("_", "get_act_patch")):
                assert f"{room}.{name}" in asked or name in elsewhere, f"{room}.{name}"
