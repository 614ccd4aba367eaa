"""CPR and CMD as MIB defines them, from the file of scores on: by hand, on the built-in model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from circuit_oracle import ByHand
from test_eap_files import ours

import neox_lab as nl
from neox_lab.circuits import scores

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def circuit_of(told: dict[str, float], share: float, magnitude: bool) -> set[tuple[str, str]]:
    """The int(share n) edges of the highest score, without those that lead nowhere."""
    order = sorted(told, key=lambda name: -abs(told[name]) if magnitude else -told[name])
    kept = set()
    for name in order[: int(share * len(order))]:
        writer, reader = name.split("->")
        kept.add((ours(writer), ours(reader)))
    while True:
        heard = {"embed"} | {reader.split(".")[0] for _, reader in kept}
        used = {"logits"} | {writer for writer, _ in kept}
        left = {(w, r) for w, r in kept if w in heard and r.split(".")[0] in used}
        if left == kept:
            return kept
        kept = left


@pytest.mark.parametrize("magnitude", [False, True])
def test_cpr_and_cmd_are_those_of_the_reference(magnitude: bool, tmp_path: Path) -> None:
    model = nl.load().double()
    asked = nl.gym.TASKS["ioi"].pairs(40)
    length = len(model.tokenizer.encode(asked[0].clean))
    asked = [p for p in asked if len(model.tokenizer.encode(p.clean)) == length][:3]
    clean, corrupted = [p.clean for p in asked], [p.corrupted for p in asked]
    right, wrong = [p.correct for p in asked], [p.wrong for p in asked]
    metric = nl.patching.logit_difference(right, wrong)
    found = scores(model, clean, corrupted, metric, "eap-ig")
    found.to_eap_ig(tmp_path / "scores.json")
    edges = json.loads((tmp_path / "scores.json").read_text())["edges"]
    told = {name: edge["score"] for name, edge in edges.items()}

    hand, encode = ByHand(model), model.tokenizer.encode
    with torch.no_grad():
        sides = [(torch.tensor(encode(p.clean)), torch.tensor(encode(p.corrupted))) for p in asked]
        answers = [(encode(r)[0], encode(w)[0]) for r, w in zip(right, wrong, strict=True)]
        wrote = [hand.run(other)[0] for _, other in sides]

        def mean_difference(kept: set[tuple[str, str]]) -> float:
            each = []
            for (ids, _), (yes, no), theirs in zip(sides, answers, wrote, strict=True):
                logits = hand.under(ids, kept, theirs)[-1]
                each.append(float(logits[yes] - logits[no]))
            return sum(each) / len(each)

        whole = {tuple(map(ours, name.split("->"))) for name in told}
        most, least = mean_difference(whole), mean_difference(set())
        values = [
            (mean_difference(circuit_of(told, share, magnitude)) - least) / (most - least)
            for share in SHARES
        ]
    curve = found.faithfulness(random=0, helping=not magnitude)
    assert curve.frame["faithfulness"].tolist() == pytest.approx(values, rel=1e-6, abs=1e-6)
    cpr = cmd = 0.0
    for x, y, f, g in zip(SHARES, SHARES[1:], values, values[1:], strict=False):
        cpr += (y - x) * (f + g) / 2
        cmd += (y - x) * (abs(1 - f) + abs(1 - g)) / 2
    assert curve.cpr == pytest.approx(cpr, rel=1e-6)
    assert curve.cmd == pytest.approx(cmd, rel=1e-6)
    assert len(set(np.round(values, 6))) >= 5, "circuits of these sizes differ"
