"""Every activation and every head's answer, against the formulas in float64."""

from __future__ import annotations

import pytest
import torch
from settings64 import CLASSES, LENGTH, NETWORKS, SIDES, build, close, texts


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NETWORKS)
def test_activations(name: str, side: str) -> None:
    """Those that the run made, and those that the cache makes on access."""
    model, network = build(name)
    given = texts(side)
    output, cache = model.run_with_cache(given["input_ids"], attention_mask=given["attention_mask"])
    run = network(given["input_ids"], given["attention_mask"])
    close(output.logits, run.logits)
    for hook, wanted in run.seen.items():
        got = cache[hook]
        assert got.dtype == torch.float64, hook
        if "scores" in hook:  # at padding in front a very low number stands for minus infinity
            blind = wanted.isneginf().all(dim=-1, keepdim=True)
            got = torch.where(blind, wanted, got)
        close(got, wanted)
    missing = set(cache.keys()) - set(run.seen)
    others = {"attn_in", "q_input", "k_input", "v_input", "hook_in", "hook_result", "hook_out"}
    assert all(any(other in hook for other in others) for hook in missing), missing


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("head", CLASSES)
def test_answers_of_every_head(head: str, side: str) -> None:
    for name in ("default", "sequential", "dynamic"):
        model, network = build(name, head)
        given = texts(side)
        with torch.no_grad():
            output = model(**given)
        wanted = network(**{"ids": given["input_ids"], "mask": given["attention_mask"]}).logits
        if head == "question-answering":
            close(output.start_logits, wanted[..., 0])
            close(output.end_logits, wanted[..., 1])
        elif head == "sequence-classification":
            last = [int(row.nonzero().max()) for row in given["attention_mask"]]
            close(output.logits, wanted[range(3), last])
        else:
            close(output.logits, wanted)


@pytest.mark.parametrize("name", ["default", "sequential"])
def test_float64_is_float64_throughout(name: str) -> None:
    """Where angles are 0, and so exact in float32, nothing is left but rounding of float64."""
    model, network = build(name)
    ids, nowhere = texts()["input_ids"], torch.zeros(3, LENGTH, dtype=torch.long)
    mask = texts("right")["attention_mask"]
    run = network(ids, mask, positions=nowhere)
    arguments = {"attention_mask": mask, "position_ids": nowhere}
    output, cache = model.run_with_cache(ids, **arguments)
    seen = {}
    hooks = [(hook, lambda x, point: seen.update({point.name: x.clone()})) for hook in run.seen]
    written = [("blocks.*.ln?.hook_scale", lambda x, _: x.clone())]
    watched = model.run_with_hooks(ids, [*written, *hooks], **arguments)
    for logits in (output.logits, watched.logits):
        close(logits, run.logits, 1e-12)
    for hook, wanted in run.seen.items():
        close(cache[hook], wanted, 1e-12)
        close(seen[hook], wanted, 1e-12)


def test_a_row_alone_is_that_row_of_a_padded_batch() -> None:
    """The oracle itself: padding changes nothing where angles do not depend on the length."""
    _, network = build("yarn")
    for side in ("left", "right"):
        given = texts(side)
        together = network(given["input_ids"], given["attention_mask"])
        for row, own in enumerate(given["attention_mask"].bool()):
            alone = network(given["input_ids"][row : row + 1, own])
            close(together.logits[row, own], alone.logits[0])
