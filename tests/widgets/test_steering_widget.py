"""The widget of steering without a browser: what it would send, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.views import StripView

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The film was"
LONG = 120  # seconds


@pytest.fixture(scope="module")
def happy() -> nl.steering.Direction:
    model = nl.load()
    model.generation_config.eos_token_id = None  # texts do not end by themselves
    good = [f"The {what} was {how}" for what in ("film", "song") for how in ("lovely", "great")]
    bad = [f"The {what} was {how}" for what in ("film", "song") for how in ("dull", "awful")]
    return nl.steering.direction(model, good, bad, site=("resid_post", 1))


def written(direction: nl.steering.Direction, scale: float, **how: Any) -> list[str]:
    model: Any = direction.model
    with direction.steer(scale, **how):
        ids = model.generate(PROMPT, max_new_tokens=12, do_sample=False)[0]
    return model.tokenizer.pieces(ids.tolist())[3:]


def shown(panel: dict[str, Any]) -> list[str]:
    return [piece["text"] for piece in panel["data"]["pieces"][1:]]


def test_the_text_changes_beside_the_original(happy: nl.steering.Direction) -> None:
    widget = nl.widgets.steering(happy, PROMPT)
    widget.wait(LONG)
    widget.set_state({"length": 12, "request": {"id": 1, "action": "run"}})
    for number, (scale, how) in enumerate(
        [(3.0, {"mode": "add"}), (-2.0, {"mode": "norm-preserving", "positions": "generated"})], 2
    ):
        widget.set_state({"scale": scale, **how, "request": {"id": number, "action": "run"}})
        result = widget.wait(LONG)
        assert isinstance(result, StripView)
        pieces = [piece.text for piece in result.pieces[1:]]
        plain = written(happy, 0.0)
        assert pieces == written(happy, scale, **how)
        assert [piece.kind == "changed" for piece in result.pieces[1:]] == [
            one != other for one, other in zip(pieces, plain, strict=True)
        ]
        assert f"scale {scale:g}" in result.title
        original, steered = widget.panels
        assert "itself" in original["data"]["title"]
        assert len(shown(steered)) == 12
    assert widget._repr_mimebundle_()[0]["text/html"].count("neox-view") >= 2, "both are kept"
    assert not happy.model.hook_stack.placements


def test_stopping_leaves_what_was_written(happy: nl.steering.Direction) -> None:
    widget = nl.widgets.steering(happy, PROMPT, 2.0)
    widget.wait(LONG)
    widget.set_state({"length": 400, "request": {"id": 1, "action": "run"}})
    while widget.phase not in ("running", "done"):
        pass
    widget.stop()
    widget._job.finished.wait(LONG)
    assert widget.phase == "stopped"
    assert widget.result is not None
    assert not happy.model.hook_stack.everywhere
    widget.set_state({"length": 5, "request": {"id": 2, "action": "run"}})
    widget.wait(LONG)
    assert len(widget.result.pieces) == 6


def test_what_cannot_be_steered_is_explained(happy: nl.steering.Direction) -> None:
    with pytest.raises(InputError, match="direction"):
        nl.widgets.steering("happy")  # type: ignore[arg-type]
    head = nl.load(head="sequence-classification")
    reader = nl.steering.direction(head, ["good"], ["bad"], site=("resid_post", 1))
    with pytest.raises(InputError, match="cannot write"):
        nl.widgets.steering(reader)
    widget = nl.widgets.steering(happy)
    widget.set_state({"request": {"id": 1, "action": "run"}})
    with pytest.raises(InputError, match="prompt"):
        widget.wait(LONG)
    assert "prompt" in widget.message


def test_the_original_is_written_anew_where_weights_were_edited() -> None:
    model: Any = nl.load()
    found = nl.steering.direction(model, ["good", "great"], ["bad", "awful"], site="resid_post")
    widget = nl.widgets.steering(found.at(("resid_post", 1)), PROMPT)
    widget.wait(LONG)
    for number, edit in enumerate((lambda w: w.mul_(-1), lambda w: w.data.mul_(-1)), 1):
        with torch.no_grad():
            edit(model.backbone.layers[2].mlp.dense_4h_to_h.weight)
        widget.set_state({"length": 8, "request": {"id": number, "action": "run"}})
        widget.wait(LONG)
        anew = written(found.at(("resid_post", 1)), 0.0)[:8]
        assert [text.replace("⏎\n", "\n") for text in shown(widget.panels[0])] == anew
