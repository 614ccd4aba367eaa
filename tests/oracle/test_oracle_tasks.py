"""Likelihoods, answers of the heads, vectors for probes and generated texts, against the oracle.

Texts are asked about together and computed one by one, without padding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from network64 import Network64
from settings64 import NETWORKS, build, close, texts
from torch import Tensor

from neox_lab.data.activations import collected
from neox_lab.gym import planting
from neox_lab.tasks import answering, classification, likelihood, tagging

TEXTS = ["hello there", "a cat", "the dogs ran"]
RECENT = {"dynamic", "longrope"}  # angles depend on the longest text of a batch
FLOAT32 = 1e-5


def reader(name: str, head: str = "causal-lm", **more: Any) -> tuple[Any, Network64]:
    """A model that reads text, a token for each character, and the same network."""
    sizes: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "max_position_embeddings": 64}
    model, network = build(name, head, **sizes | more)
    model.tokenizer = planting.tokenizer()
    return model, network


def ids_of(text: str) -> Tensor:
    """Token ``ord(c) - 31`` is the character c."""
    return torch.tensor([[ord(character) - 31 for character in text]])


def log_probabilities(network: Network64, text: str) -> Tensor:
    """Of each character but the first, ``[pos - 1]``."""
    ids = ids_of(text)
    scores = network(ids).logits.log_softmax(dim=-1)
    return scores[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_likelihoods(name: str) -> None:
    model, network = reader(name)
    frame = likelihood.perplexity(model, TEXTS).frame
    for row, text in enumerate(TEXTS):
        losses = frame.loc[frame["text"] == row, "loss"].to_numpy()
        close(losses, -log_probabilities(network, text), FLOAT32)
    pairs = [(text[:3], text[3:]) for text in TEXTS]
    found = likelihood.continuations(model, pairs)
    for row, text in enumerate(TEXTS):
        wanted = float(log_probabilities(network, text)[2:].sum())
        assert found["log_probability"][row] == pytest.approx(wanted, rel=1e-5)
        best = network(ids_of(text)).logits[0, 2:-1].argmax(dim=-1)
        assert bool(found["greedy"][row]) == torch.equal(best, ids_of(text)[0, 3:])


@pytest.mark.parametrize(("context", "stride"), [(4, 2), (5, 1), (6, 6), (7, 3)])
@pytest.mark.parametrize("name", ["default", "llama3"])
def test_windows(name: str, context: int, stride: int) -> None:
    """The first window scores what it can, every later one its last ``stride`` tokens."""
    model, network = reader(name)
    text = "a text that is longer than windows"
    got = likelihood.perplexity(model, text, context=context, stride=stride)
    wanted = log_probabilities(network, text[: context + 1]).tolist()
    while len(wanted) < len(text) - 1:
        end = min(len(text), 1 + len(wanted) + stride)
        new = end - 1 - len(wanted)
        wanted += log_probabilities(network, text[end - context - 1 : end])[-new:].tolist()
    close(got.frame["loss"].to_numpy(), -torch.tensor(wanted), FLOAT32)
    mean = -sum(wanted) / len(wanted)
    assert got.metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads(name: str) -> None:
    model, network = reader(name, "sequence-classification")
    said = classification.predict(model, TEXTS).values
    for row, text in enumerate(TEXTS):
        close(said[row], network(ids_of(text)).logits[0, -1].softmax(dim=-1), FLOAT32)

    names = {0: "O", 1: "B-PERSON", 2: "B-PLACE"}
    model, network = reader(name, "token-classification", id2label=names)
    frame = tagging.predict(model, TEXTS).frame
    for row, text in enumerate(TEXTS):
        chance = network(ids_of(text)).logits[0].softmax(dim=-1)
        found = frame[frame["text"] == row]
        wanted = []
        for word in text.split():
            start = text.index(word)
            best = chance[start + len(word) - 1].max(dim=-1)
            if int(best.indices):
                label = names[int(best.indices)].removeprefix("B-")
                wanted.append((word, label, float(best.values)))
        assert list(found["entity"]) == [word for word, _, _ in wanted]
        assert list(found["label"]) == [label for _, label, _ in wanted]
        close(found["score"].to_numpy(), torch.tensor([s for *_, s in wanted]), FLOAT32)


@pytest.mark.parametrize("name", NETWORKS)
def test_spans(name: str) -> None:
    model, network = reader(name, "question-answering")
    for question, context in (("who", "Ada did it."), ("when", "in 1843, or so")):
        ids = torch.cat((ids_of(question), torch.tensor([[line_end(model)]])), dim=1)
        ids = torch.cat((ids, ids_of(context), torch.tensor([[0]])), dim=1)
        logits = network(ids).logits[0]
        first, count = len(question) + 1, len(context)
        scores = {
            (a, b + 1): float(logits[first + a, 0] + logits[first + b, 1])
            for a in range(count)
            for b in range(a, count)
        }
        scores[0, 0] = float(logits[-1].sum())  # no answer
        best = max(scores, key=scores.__getitem__)
        got = answering.predict(model, question, context, stride=8).frame.iloc[0]
        # a blank at either end belongs to no token's characters
        assert got["answer"].strip() == context[slice(*best)].strip()
        assert got["score"] == pytest.approx(scores[best], rel=1e-5)


def line_end(model: Any) -> int:
    return int(model.tokenizer("\n").input_ids[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_for_probes(name: str) -> None:
    model, network = reader(name)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(2)] + ["blocks.1.attn.hook_z"]
    runs = [network(ids_of(text)) for text in TEXTS]
    for pos in (0, -1, 2, "mean"):
        with collected(model, TEXTS, names, pos) as found:
            for hook, (row, run) in ((h, pair) for h in names for pair in enumerate(runs)):
                whole = run[hook][0].flatten(1)
                wanted = whole.mean(dim=0) if isinstance(pos, str) else whole[pos]
                close(found[hook][row], wanted, FLOAT32)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stream_taken_apart(name: str) -> None:
    model, network = build(name)
    given = texts("left")
    ids, mask = given["input_ids"], given["attention_mask"]
    _, cache = model.run_with_cache(ids, attention_mask=mask)
    run = network(ids, mask)
    results = cache.stack_head_results()
    for layer in range(2):
        z = run[f"blocks.{layer}.attn.hook_z"]
        dense = network.weights[f"layers.{layer}.attention.dense.weight"]
        for head in range(3):
            columns = dense[:, head * 8 : head * 8 + 8]
            close(results[3 * layer + head], z[:, :, head] @ columns.T)
    streams = cache.accumulated_resid()
    close(streams[0], run["blocks.0.hook_resid_pre"])
    close(streams[-1], run["blocks.1.hook_resid_post"])
    attributed = cache.logit_attrs(cache.decompose_resid(), 3, 7).sum(dim=0)
    attributed = attributed + cache.logit_bias(3, 7)
    close(attributed, run.logits[..., 3] - run.logits[..., 7], FLOAT32)


def greedy(network: Network64, ids: Tensor, count: int, end: int | None) -> list[int]:
    """The likeliest token, again and again."""
    written: list[int] = []
    while len(written) < count and (not written or written[-1] != end):
        text = torch.cat((ids, torch.tensor([written], dtype=torch.long)), dim=1)
        written.append(int(network(text).logits[0, -1].argmax()))
    return written


def beams(
    network: Network64, ids: Tensor, width: int, count: int, power: float, end: int | None
) -> tuple[float, list[int]]:
    """The best of ``width`` beams; stops when as many texts have ended."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, count + 1):
        candidates = []
        for total, written in running:
            text = torch.cat((ids, torch.tensor([written], dtype=torch.long)), dim=1)
            scores = network(text).logits[0, -1].log_softmax(dim=-1)
            best = scores.topk(min(2 * width, len(scores)))
            candidates += [
                (total + float(score), [*written, int(token)])
                for score, token in zip(best.values, best.indices, strict=True)
            ]
        candidates = sorted(candidates, reverse=True)[: 2 * width]
        done = [written[-1] == end or length == count for _, written in candidates]
        ended += [
            (total / length**power, written)
            for (total, written), over in list(zip(candidates, done, strict=True))[:width]
            if over
        ]
        ended = sorted(ended, reverse=True)[:width]
        running = [c for c, over in zip(candidates, done, strict=True) if not over][:width]
        if len(ended) == width or not running:
            break
    return ended[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_greedy_texts(name: str) -> None:
    """A padded batch, except where angles depend on the longest of it; with and without a cache."""
    model, network = build(name, max_position_embeddings=64 if name not in RECENT else 5)
    given = texts("none" if name in RECENT else "left")
    for use_cache in (False,) if name in RECENT else (False, True):
        written = model.generate(
            **given, max_new_tokens=6, do_sample=False, eos_token_id=9, use_cache=use_cache
        )
        for row, own in enumerate(given["attention_mask"].bool()):
            wanted = greedy(network, given["input_ids"][row : row + 1, own], 6, 9)
            got = written[row, given["input_ids"].shape[1] :].tolist()
            assert got[: len(wanted)] == wanted
            assert set(got[len(wanted) :]) <= {1}


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("end", [None, 9])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in RECENT])
def test_beams(name: str, end: int | None, power: float) -> None:
    model, network = build(name)
    given = texts("left")
    found = model.generate(
        **given,
        **{"max_new_tokens": 5, "num_beams": 3, "length_penalty": power, "early_stopping": True},
        **{"eos_token_id": end, "output_scores": True, "return_dict_in_generate": True},
    )
    for row, own in enumerate(given["attention_mask"].bool()):
        ids = given["input_ids"][row : row + 1, own]
        score, wanted = beams(network, ids, 3, 5, power, end)
        got = found.sequences[row, given["input_ids"].shape[1] :].tolist()
        assert got[: len(wanted)] == wanted
        assert float(found.sequences_scores[row]) == pytest.approx(score, rel=1e-5)
