"""Panels of the explorer that are computed when they are opened: their numbers, their Python."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.views import explorer as explorer_view
from neox_lab.views.drawing import number
from neox_lab.views.explorer import ExplorerView
from neox_lab.widgets.explorer import ExplorerWidget
from neox_lab.widgets.explorer.opened import OPENED, tuned_lens

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The best school of Sweden is in"
SECOND = "The best school of Russia is in"


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


def explored(model: Any, *prompts: str, **given: Any) -> ExplorerWidget:
    widget = nl.explore(model, *(prompts or (PROMPT, SECOND)), **given)
    widget.wait()
    return widget


def asked(widget: ExplorerWidget, what: str, **state: object) -> dict[str, Any]:
    """Ask as a browser does, and what the panel then has."""
    if state:
        widget.select({**widget.state, **state})
    widget.ask(what)
    widget.wait()
    found: dict[str, Any] = getattr(widget, what)
    return found


def python(widget: ExplorerWidget) -> dict[str, Any]:
    """What the copied code makes, run as it stands."""
    assert isinstance(widget.result, ExplorerView)
    found: dict[str, Any] = {}
    exec(widget.result.python, found)  # our own text, which users are to run
    return found


def random_model(**settings: object) -> Any:
    """A model of another shape with random weights, which came from elsewhere."""
    built_in = nl.load()
    config = nl.GPTNeoXConfig.from_dict(
        {**built_in.config.to_dict(), "num_hidden_layers": 2, "name_or_path": "x/y", **settings}
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    model.tokenizer = built_in.tokenizer
    return model


def test_features_are_those_of_the_dictionary_at_the_selected_layer(model: Any) -> None:
    widget = explored(model)
    found = asked(widget, "features", layer=1, position=4)
    made = python(widget)
    dictionary = nl.gym.dictionaries(model)["resid_post_1"]
    codes = dictionary.encode(model.run_with_cache(PROMPT)[1]["resid_post", 1])
    for pos, row in enumerate(found["rows"]):
        active = codes.values[0, pos] > 0
        expected = dict(
            zip(codes.indices[0, pos][active].tolist(), codes.values[0, pos].tolist(), strict=False)
        )
        assert {latent for latent, _, _ in row} == set(expected)
        for latent, activation, _ in row:
            assert activation == pytest.approx(expected[latent], rel=1e-3)
    token = int(model(model.to_tokens(PROMPT)).logits[0, 4].argmax())
    for latent, _, effect in found["rows"][4][:4]:

        def ablate(acts: Any, hook: Any, latent: int = latent) -> Any:
            acts[..., latent] = 0
            return acts

        name = "blocks.1.hook_resid_post.hook_sae_acts"
        with torch.no_grad(), model.spliced(dictionary, error=True):
            without = model.run_with_hooks(PROMPT, [(name, ablate)]).logits[0, 4, token]
            change = float(without - model(model.to_tokens(PROMPT)).logits[0, 4, token])
        assert effect == pytest.approx(change, abs=2e-3)
        at = made["effects"].labels["latent"].index(str(latent))
        assert effect == pytest.approx(float(made["effects"].values[at]), abs=1e-3)
    assert f"{100 * made['missed']:.0f} % of the variance" in found["control"]
    assert f"at once by {number(made['effects'].total, 2)}" in found["control"]
    assert "after token 4" in found["note"]
    assert found["of"] == {"layer": 1, "position": 4}
    assert widget.result is not None
    names = nl.gym.named_features().query("dictionary == 'resid_post_1'")
    assert set(found["names"]) <= set(names["feature"].astype(str))


def test_a_model_without_dictionaries_says_what_to_do() -> None:
    model = random_model()
    found = asked(explored(model), "features")
    assert set(found) == {"missing"} and "dictionaries={name: nl.sae.load" in found["missing"]
    early = nl.load(revision="step512")
    assert "belong to the built-in model" in asked(explored(early), "features")["missing"]


def test_dictionaries_that_were_given_are_used(model: Any) -> None:
    given = {"<b>mine": nl.gym.dictionaries(model)["resid_post_2"]}
    widget = explored(model, dictionaries=given)
    found = asked(widget, "features", layer=2)
    assert found["rows"][0] and found["names"] == {}
    assert "dictionary = dictionaries['<b>mine']" in found["code"]
    missing = asked(widget, "features", layer=0)["missing"]
    assert "blocks.0.hook_resid_post" in missing and "blocks.2.hook_resid_post" in missing
    with pytest.raises(InputError, match="expected a mapping"):
        nl.explore(model, PROMPT, dictionaries=[1])  # type: ignore[arg-type]


def test_another_prompt_takes_the_answers_away_and_a_page_keeps_them(
    model: Any, tmp_path: Any
) -> None:
    widget = explored(model)
    asked(widget, "features", open=["features"])
    assert isinstance(widget.result, ExplorerView)
    data = widget.result.data()
    assert data["state"]["open"] == ["features"] and data["parts"]["features"]["rows"]
    json.dumps(data)
    widget.result.to_html(tmp_path / "page.html")
    widget.save("features", "csv")
    assert b"feature" in b64decode(widget.download["content"])
    widget.prompt = SECOND
    widget.run()
    widget.wait()
    assert widget.features == {}
    with pytest.raises(InputError, match="nothing to save yet"):
        widget.save("features", "csv")


def test_the_tuned_lens_is_the_trained_one_and_is_trained_once(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned_lens, "DOCUMENTS", 30)
    monkeypatch.setattr(tuned_lens, "STEPS", 16)
    widget = explored(model)
    found = asked(widget, "tuned")
    made = python(widget)
    share = made["translated"].top_probability[:, 0]
    shown = [[[one[1] for one in cell] for cell in row] for row in found["candidates"]]
    assert torch.allclose(torch.tensor(shown), share, atol=2e-3)
    assert found["rows"] == widget.result.data()["reading"]["lens"]["rows"]  # type: ignore[union-attr]
    frame = made["training"].frame
    assert (frame["kl_bits"] < frame["logit_lens_kl_bits"]).all(), "worth its training"
    assert f"{frame['kl_bits'][0]:.2f} bits" in found["control"]
    (trained,) = widget._tools.trained.values()
    asked(widget, "tuned")
    assert list(widget._tools.trained.values()) == [trained]
    own = asked(explored(model, tuned=trained.lens), "tuned")
    assert "this prompt alone" in own["control"] and own["candidates"] == found["candidates"]


def test_steering_moves_the_second_prompt_to_the_first(model: Any) -> None:
    widget = explored(model)
    found = asked(widget, "steering", layer=3)
    made = python(widget)
    logits = [model(model.to_tokens(text)).logits[0, -1].detach() for text in (PROMPT, SECOND)]
    one, two = (int(each.argmax()) for each in logits)
    frame = made["steered"].frame.query("kind == 'direction'").set_index("scale")
    # After the last layer the last token at a scale of 1 is the first prompt's.
    assert frame["metric"][1.0] == pytest.approx(float(logits[0][one] - logits[0][two]), abs=1e-2)
    assert frame["metric"][0.0] == pytest.approx(float(logits[1][one] - logits[1][two]), abs=1e-2)
    line = found["curves"]["lines"][0]
    assert line["y"] == pytest.approx(frame["metric"].tolist(), abs=1e-2)
    moved = made["steered"]
    controls = [abs(each) for each in moved.control_effects["random"]]
    assert len(controls) == 8 and f"by {moved.effect:.2f}" in found["control"]
    assert f"at most {max(controls):.2f}" in found["control"]
    assert "needs a second prompt" in asked(explored(model, PROMPT), "steering")["missing"]
    direction = nl.steering.direction(model, [PROMPT], [SECOND], site=("resid_post", 1))
    given = asked(explored(model, PROMPT, direction=direction), "steering")
    assert given["of"] == {"position": 6} and "direction that was given" in given["note"]


def test_the_circuit_is_beside_random_ones(model: Any) -> None:
    widget = explored(model)
    found = asked(widget, "circuit")
    made = python(widget)
    links = sorted(abs(value) for value in found["network"]["value"])
    assert len(links) == made["circuit"].edges
    kept = made["circuit"].values[made["circuit"].kept].abs()
    assert links == pytest.approx(sorted(kept.tolist()), rel=1e-3)
    tested = made["evaluated"]
    assert tested.faithfulness > tested.random["faithfulness"].max()
    assert f"{tested.faithfulness:.2f} of the difference" in found["control"]
    assert "20 random circuits" in found["control"] and "no interval" in found["control"]
    assert "needs a second prompt" in asked(explored(model, PROMPT), "circuit")["missing"]


def test_training_follows_the_expected_token(model: Any) -> None:
    widget = explored(model)
    found = asked(widget, "training", position=6)
    made = python(widget)
    assert found["names"] == list(nl.gym.revisions())
    token = int(model(model.to_tokens(PROMPT)).logits[0, 6].argmax())
    early = nl.load(revision="step1000")
    ids = early.to_tokens(PROMPT)
    at = found["names"].index("step1000")
    lines = {line["name"]: line["y"] for line in found["curves"]["lines"]}
    for name, run in (("in the prompt", ids), ("after the last token alone", ids[:, -1:])):
        expected = early(run).logits[0, -1].softmax(-1)[token].item()
        assert lines[name][at] == pytest.approx(expected, rel=1e-3), name
        frame = made["measured"].frame.set_index("revision")
        assert frame[name]["step1000"] == pytest.approx(expected, rel=1e-4)
    assert lines["in the prompt"][-1] > 0.5 > lines["after the last token alone"][-1]


def test_training_says_which_checkpoints_it_needs(model: Any) -> None:
    names = ["step0", "step1000", "step18000"]
    widget = explored(model, revisions=names)
    found = asked(widget, "training")
    assert found["names"] == names
    asked(widget, "circuit")
    widget.go_to("step1000")
    widget.wait()
    assert widget.training == found and widget.circuit == {}, "of all checkpoints, and of one"
    widget.save("training", "svg")
    loads = {"a": lambda: nl.load(revision="step0"), "b": lambda: model}
    assert "functions" in asked(explored(model, revisions=loads), "training")["missing"]
    assert "revisions=[...]" in asked(explored(random_model()), "training")["missing"]
    assert "tuned=nl.lens.TunedLens" in asked(explored(random_model()), "tuned")["missing"]


@pytest.mark.parametrize("what", ["tuned", "features"])
def test_what_is_stopped_half_way_is_no_answer(model: Any, what: str) -> None:
    widget = explored(model)
    told = widget._publish

    def stops(job: Any, now: bool = False, **state: object) -> None:
        told(job, now, **state)
        if "progress" in state:
            job.stop()

    widget._publish = stops  # type: ignore[method-assign]
    widget.ask(what)
    widget.wait()
    assert widget.phase == "stopped" and getattr(widget, what) == {}
    assert model.hook_stack.changing == [] and widget._tools.trained == {}


def test_the_script_and_python_know_the_same_panels() -> None:
    script = (explorer_view.__file__.removesuffix("explorer.py")) + "assets/explorer_opened.js"
    block = Path(script).read_text(encoding="utf-8").split("const OPENED = {")[1].split("\n};")[0]
    keys = re.findall(r"^  (\w+): \{$", block, re.MULTILINE)
    assert tuple(keys) == explorer_view.OPENED == tuple(OPENED)
