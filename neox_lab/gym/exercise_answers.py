"""What is right in the exercises of the notebooks, worked out from a model.

Where many answers are right, such as a hook or a sentence, what the answer does is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import log
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from neox_lab.checks import several
from neox_lab.errors import InputError
from neox_lab.family import load

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family import (
        GPTNeoXForCausalLM,
        GPTNeoXForQuestionAnswering,
        GPTNeoXForSequenceClassification,
        GPTNeoXForTokenClassification,
    )

Judge = Callable[[Any, Any], bool | str]
"""A model and an answer of the right kind; whether it is right, or what about it is not."""
BEGINNING = "The people of the United"
GIVING = "When Mary and Tom went to the park, Tom gave the key to"


def as_row(value: object) -> Tensor:
    """What has numbers as entries, as one row of them; errors of many kinds if it has not."""
    entries = several("answer", value, "numbers", InputError)
    return torch.tensor([float(entry) for entry in entries], dtype=torch.float32)


def number(compute: Callable[[Any], float]) -> Judge:
    """Right within one in a hundred; what is off by its sign, unit or a logarithm is told so."""

    def judge(model: GPTNeoXForCausalLM, answer: float) -> bool | str:
        expected = compute(model)
        return _close(answer, expected) or _almost(answer, expected)

    return judge


def _close(answer: float, expected: float) -> bool:
    return abs(answer - expected) <= 0.01 * abs(expected)


def _almost(answer: float, expected: float) -> bool | str:
    """What would make a number right; False where none of these would."""
    if _close(-answer, expected):
        return "With the other sign it would be right."
    if _close(answer * log(2), expected) or _close(answer / log(2), expected):
        return "In the other unit it would be right: a bit is 0.693 nats."
    nats = abs(log(answer)) if answer > 0 else 0.0
    if _close(nats, abs(expected)) or _close(nats / log(2), abs(expected)):
        return "Take its logarithm, with the sign and in the unit that are asked for."
    return False


def same(compute: Callable[[Any], object]) -> Judge:
    """Right if it is the same; texts whatever space stands around them."""

    def judge(model: GPTNeoXForCausalLM, answer: object) -> bool | str:
        expected = compute(model)
        if isinstance(expected, str) and isinstance(answer, str):
            return answer.strip() == expected.strip()
        answer = tuple(answer) if isinstance(answer, list) else answer
        if isinstance(answer, tuple) and answer != expected and answer[::-1] == expected:
            return "Turned round it would be right."
        return answer == expected

    return judge


def _strongest(values: Tensor) -> tuple[int, int]:
    """Layer and head of the largest of ``[layer, head]``."""
    layer, head = divmod(int(values.argmax()), values.shape[1])
    return layer, head


@torch.no_grad()
def _next_logits(model: GPTNeoXForCausalLM, text: str) -> Tensor:
    """Logits of the token after a text, ``[vocab]``."""
    logits: Tensor = model(model.to_tokens(text)).logits[0, -1].float().cpu()
    return logits


def ranked(text: str, rank: int) -> Judge:
    """The token of a rank, 0 being the likeliest, after a text: its number, or its piece."""
    piece = same(lambda model: model.tokenizer.piece_text(_ranked(model, text, rank)))

    def judge(model: GPTNeoXForCausalLM, answer: str | int) -> bool | str:
        if isinstance(answer, str):
            return piece(model, answer)
        return answer == _ranked(model, text, rank)

    return judge


def _ranked(model: GPTNeoXForCausalLM, text: str, rank: int) -> int:
    return int(_next_logits(model, text).sort(descending=True, stable=True).indices[rank])


def written(model: GPTNeoXForCausalLM) -> float:
    """Log probability, in nats, of what greedy search writes."""
    prompt = model.to_tokens("It is the duty of")
    text = cast(Tensor, model.generate(prompt, max_new_tokens=8, do_sample=False))
    return -losses(model, text)[prompt.shape[1] - 1 :].sum().item()


@torch.no_grad()
def losses(model: GPTNeoXForCausalLM, tokens: Tensor) -> Tensor:
    """Loss of each token but the first, in nats, ``[pos - 1]``."""
    log_probability = model(tokens).logits[0, :-1].float().log_softmax(-1)
    losses: Tensor = -log_probability.gather(1, tokens[0, 1:, None].to(model.device))[:, 0]
    return losses.cpu()


@torch.no_grad()
def silenced(
    model: GPTNeoXForCausalLM, hooks: Sequence[tuple[str, Callable[..., Tensor | None]]]
) -> bool | str:
    """Whether under the hooks layer 1 lacks what head 1 writes, and nothing else has changed."""
    _, plain = model.run_with_cache(BEGINNING)
    with model.hooks(list(hooks)):
        _, cache = model.run_with_cache(BEGINNING)
    own = plain["result", 1][:, :, 1]
    expected = plain["attn_out", 1] - own
    scale = 1e-3 * float(own.abs().max())
    same_below = torch.allclose(cache["resid_pre", 1], plain["resid_pre", 1], atol=scale)
    same_mlp = torch.allclose(cache["mlp_out", 1], plain["mlp_out", 1], atol=scale)
    written = torch.allclose(cache["attn_out", 1], expected, atol=scale)
    if written and not (same_below and same_mlp):
        return "The head is silent, but something beside it has changed."
    changed = not torch.allclose(cache["attn_out", 1], plain["attn_out", 1], atol=scale)
    if changed and not written:
        return "What the heads of layer 1 write has changed, but not by that of head 1 alone."
    return written


@torch.no_grad()
def looks_at_second(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head that looks most from the last token at the one with number 1."""
    _, cache = model.run_with_cache(GIVING, "*.hook_pattern")
    layers = range(model.config.num_hidden_layers)
    return _strongest(torch.stack([cache["pattern", layer][0, :, -1, 1] for layer in layers]))


@torch.no_grad()
def surprise_before_last_layer(model: GPTNeoXForCausalLM) -> float:
    """Surprise of the next token in bits, read off the stream before the last layer."""
    tokens = model.to_tokens(f"{BEGINNING} States")
    _, cache = model.run_with_cache(tokens, "*.hook_resid_pre")
    stream = cache["resid_pre", model.config.num_hidden_layers - 1]
    normed = model.gpt_neox.final_layer_norm(stream[0, -2])
    read = (model.get_output_embeddings()(normed)).float().log_softmax(-1)
    return float(-read[tokens[0, -1]] / torch.log(torch.tensor(2.0, dtype=torch.float32)))


def carries_capital(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head that changes most when it is patched from Spain into Norway."""
    from neox_lab.experiments import patching

    metric = patching.logit_difference(" Madrid", " Oslo")
    clean, corrupted = "The capital of Spain is", "The capital of Norway is"
    swept = patching.sweep(model, clean, corrupted, metric, site="z_all_pos", progress=False)
    return _strongest(swept.effect())


def reads_country(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head that changes most when it is patched from Norway into Spain at the country."""
    from neox_lab.experiments import patching

    metric = patching.logit_difference(" Norwegian", " Spanish")
    clean, corrupted = "The people of Norway speak", "The people of Spain speak"
    at = {"country": -2}
    swept = patching.sweep(model, clean, corrupted, metric, "z", positions=at, progress=False)
    return _strongest(swept.effect()[:, 0])


def writes_verb(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head with the largest direct effect on eight prompts of singular and plural."""
    from neox_lab.experiments import patching
    from neox_lab.gym.evaluation import pairs

    asked = pairs(model, "agreement", 8)
    metric = patching.logit_difference([p.correct for p in asked], [p.wrong for p in asked])
    clean, corrupted = [p.clean for p in asked], [p.corrupted for p in asked]
    found = patching.path_patch(model, clean, corrupted, metric, progress=False)
    return _strongest(found.effect())


def later_years(model: GPTNeoXForCausalLM) -> float:
    """Probability of the even years after 1742, of 18th century."""
    probability = _next_logits(model, "The king ruled from 1742 to").float().softmax(-1)
    return sum(float(probability[model.to_single_token(f" {n}")]) for n in range(1744, 1800, 2))


def finds_copy(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head that looks most at the earlier copy of the present token, on random tokens."""
    from neox_lab.experiments import detection as detect

    return _strongest(detect.heads(model, "duplicate_token").values)


@torch.no_grad()
def tells_women(model: GPTNeoXForCausalLM, answer: object) -> bool | str:
    """Whether women lie higher along a direction in at least nine of ten unseen texts."""
    from neox_lab.gym.world import TASKS

    direction = as_row(answer)
    if len(direction) != model.config.hidden_size:
        return f"It has {len(direction)} numbers, the stream {model.config.hidden_size}."
    pairs = TASKS["pronouns"].pairs(80, "train", seed=11)
    site = f"blocks.{model.config.num_hidden_layers - 1}.hook_resid_post"
    streams = [model.run_with_cache(pair.clean, site)[1][site][0, -1] for pair in pairs]
    along = torch.stack(streams).float().cpu() @ direction
    women = torch.tensor([pair.correct == " she" for pair in pairs])
    middle = (along[women].mean() + along[~women].mean()) / 2
    share = float(((along > middle) == women).float().mean())
    return share >= 0.9 or f"It tells women from men in {share:.0%} of sentences like those above."


def praised(model: GPTNeoXForSequenceClassification, answer: str) -> bool | str:
    """Whether a word of praise after ``not`` is called positive all the same."""
    from neox_lab.gym.words import POSITIVE
    from neox_lab.tasks import classification

    if not re.search(rf"\bnot ({'|'.join(POSITIVE)})\b", answer):
        return f'It has no "not" right before one of {", ".join(POSITIVE)}.'
    said = str(classification.predict(model, answer).frame["prediction"][0])
    return said == "positive" or f"The head calls it {said}."


def unanswered(model: GPTNeoXForQuestionAnswering, answer: str) -> bool | str:
    """Whether a text has a key in it and the reader cannot tell where."""
    from neox_lab.tasks import answering

    if not re.search(r"\bkey\b", answer):
        return 'The word "key" is not in it.'
    found = str(answering.predict(model, "Where is the key?", answer).frame["answer"][0])
    return not found or f"The reader answers {found!r}."


def three_persons(model: GPTNeoXForTokenClassification, answer: str) -> bool | str:
    """Whether exactly three persons are found."""
    from neox_lab.tasks import tagging

    if not answer.strip():
        return "It is empty."
    frame = tagging.predict(model, answer).frame
    found = frame[frame["label"] == "PER"]["entity"].tolist()
    return len(found) == 3 or f"The tagger finds {', '.join(found) or 'nobody'}."


def first_step(model: GPTNeoXForCausalLM) -> int:
    """The first revision at which a head looks one token back at more than half."""
    return _first_with("previous_token")


def first_induction(model: GPTNeoXForCausalLM) -> int:
    """The first revision at which a head looks behind the copy at more than half."""
    return _first_with("induction")


def _first_with(pattern: Literal["previous_token", "induction"]) -> int:
    from neox_lab.built_in import revisions
    from neox_lab.experiments import detection as detect

    for name in revisions():
        if detect.heads(load(revision=name), pattern).values.max() > 0.5:
            return int(name.removeprefix("step"))
    return -1


def read_at_start(model: GPTNeoXForCausalLM) -> float:
    """Mean distance of the row 0_pre from the end, in bits."""
    from neox_lab.experiments import lens

    frame = lens.logit_lens(model, GIVING).frame
    return float(frame[frame["layer"] == "0_pre"]["kl_bits"].mean())


def highest_feature(model: GPTNeoXForCausalLM) -> int:
    """The feature of ``resid_post_1`` that is highest at the end of a short text."""
    from neox_lab.gym.built_in_dictionaries import dictionaries

    dictionary = dictionaries(model)["resid_post_1"]
    with torch.no_grad():
        _, cache = model.run_with_cache("Then the dogs", ("resid_post", 1))
        return int(dictionary.encode(cache["resid_post", 1]).dense()[0, -1].argmax())


@torch.no_grad()
def looks_four_back(model: GPTNeoXForCausalLM) -> tuple[int, int]:
    """The head that looks most, on average, at the token four before its own."""
    _, cache = model.run_with_cache(GIVING, "*.hook_pattern")
    layers = range(model.config.num_hidden_layers)
    back = [cache["pattern", n][0].diagonal(-4, dim1=-2, dim2=-1).mean(dim=-1) for n in layers]
    return _strongest(torch.stack(back))


@torch.no_grad()
def nearest_features(model: GPTNeoXForCausalLM) -> float:
    """The largest cosine between two rows of what ``resid_post_2`` writes."""
    from neox_lab.gym.built_in_dictionaries import dictionaries

    rows = torch.nn.functional.normalize(dictionaries(model)["resid_post_2"].W_dec, dim=-1)
    return float((rows @ rows.T).fill_diagonal_(-1).max())


def _largest(frame: pd.DataFrame, column: str) -> pd.Series[Any]:
    """The row with the largest size in a column."""
    return frame.iloc[int(frame[column].abs().to_numpy().argmax())]


def strongest_part(model: GPTNeoXForCausalLM) -> str:
    """The head or MLP that changes the metric of eight prompts most, removed by itself."""
    from neox_lab.circuits import node_scores
    from neox_lab.experiments import patching
    from neox_lab.gym.evaluation import pairs

    asked = pairs(model, "ioi", 8)
    metric = patching.logit_difference([p.correct for p in asked], [p.wrong for p in asked])
    clean, corrupted = [p.clean for p in asked], [p.corrupted for p in asked]
    frame = node_scores(model, clean, corrupted, metric, method="exact").frame
    parts = frame[frame["component"] != "embed"]
    return str(_largest(parts, "value")["component"])


def first_edge(model: GPTNeoXForCausalLM) -> tuple[str, str]:
    """The strongest edge of the planted look-up in two steps."""
    from neox_lab.circuits import scores
    from neox_lab.gym.planting_two_step import planted_two_step

    made = planted_two_step()
    found = scores(made.model, **made.question(), method="exact").frame
    row = _largest(found, "value")
    return row["writer"], row["reader"]


def influential(model: GPTNeoXForCausalLM) -> str:
    """The name of the feature with the largest influence in a graph."""
    from neox_lab.circuits import attribution_graph
    from neox_lab.gym.built_in_dictionaries import dictionaries

    transcoders = {name: each for name, each in dictionaries(model).items() if each.is_transcoder}
    graph = attribution_graph(model, transcoders, "The cat by the rivers")
    features = graph.frame[graph.frame["kind"] == "feature"]
    return str(_largest(features, "influence")["name"])


@torch.no_grad()
def turned(model: GPTNeoXForCausalLM) -> float:
    """Cosine of the directions from blame to praise after layers 1 and 2."""
    from neox_lab.gym.world import TASKS

    pairs = TASKS["sentiment"].pairs(60, "train")
    praise = (" good", " loved", " happy", " praised")
    differences: list[list[Tensor]] = [[], []]
    for pair in pairs:
        sign = 1 if pair.correct in praise else -1
        _, clean = model.run_with_cache(pair.clean, "*.hook_resid_post")
        _, corrupted = model.run_with_cache(pair.corrupted, "*.hook_resid_post")
        for rows, layer in zip(differences, (1, 2), strict=True):
            side = ("resid_post", layer)
            rows.append(sign * (clean[side][0, -1] - corrupted[side][0, -1]).float().cpu())
    first, second = (torch.stack(rows).mean(dim=0) for rows in differences)
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


def exchanged(model: GPTNeoXForCausalLM) -> str:
    """What a planted model answers after one of its variables was exchanged."""
    from neox_lab import interchange
    from neox_lab.gym.planting_variable import DIRECTIONS, planted_variable

    planted = planted_variable()
    site = interchange.Site(("resid_post", 0), pos=-1, subspace=DIRECTIONS[:, :1])
    found = interchange.run(planted, "aBcdEfghij=", (site, "AbcdefghiJ="))
    return str(planted.to_string(int(found.logits[0, -1].argmax())))


def passes(model: GPTNeoXForCausalLM) -> float:
    """How often every layer is read while nine tokens are written."""
    streamed: Any = load(max_memory={"cpu": "3.4 MB"})
    read = streamed.backbone.store.read
    before = read.layers
    streamed.generate(BEGINNING, max_new_tokens=9, do_sample=False)
    return (read.layers - before) / streamed.config.num_hidden_layers
