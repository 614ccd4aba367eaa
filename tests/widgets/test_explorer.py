"""The explorer's numbers are those of the public calls; what it cannot show it says in words."""

from __future__ import annotations

import csv
import io
import json
import warnings
from base64 import b64decode
from typing import Any

import numpy as np
import pytest
import torch

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.views.explorer import ExplorerView
from neox_lab.views.live import LIMIT, json_text
from neox_lab.widgets.explorer import ExplorerWidget

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The king went to the city and the queen went to the"
SECOND = "The king went to the city and the queen went to a"


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.load()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def widget(model: Any) -> ExplorerWidget:
    """Compared, and asked everything."""
    widget = nl.explore(model, PROMPT, SECOND)
    widget.wait()
    for what in ("ablation", "heads", "induction", "attribution", "off", "resid_pre", "writing"):
        ask(widget, what)
    return widget


def request(widget: ExplorerWidget, action: str, **arguments: object) -> None:
    """As a browser asks."""
    number = int(widget.request.get("id", 0)) + 1
    widget.set_state({"request": {"id": number, "action": action, **arguments}})


def ask(widget: ExplorerWidget, what: str) -> None:
    request(widget, "ask", what=what)
    widget.wait()
    assert widget.phase == "done", widget.message


def reading(widget: ExplorerWidget) -> dict[str, Any]:
    assert widget.result is not None
    data: dict[str, Any] = widget.result.data()["reading"]
    return data


def test_the_shares_sum_to_the_logit(model: Any, widget: ExplorerWidget) -> None:
    shares = reading(widget)["shares"]
    logits = model(model.to_tokens(PROMPT)).logits[0]
    assert np.allclose(np.sum(shares["values"], axis=1), logits.amax(-1).tolist(), atol=0.02)
    heads = model.config.num_hidden_layers * model.config.num_attention_heads
    places = [tuple(place) for place in shares["where"] if place and place[1] is not None]
    assert len(set(places)) == heads
    direct = nl.attribution.direct_logit_attribution(
        model, PROMPT, int(logits[-1].argmax()), by="head"
    )
    for (layer, head), value in zip(places, shares["values"][-1], strict=False):
        assert value == pytest.approx(float(direct.values[layer, head]), abs=2e-3)


def test_the_lens_and_the_candidates_are_the_models(model: Any, widget: ExplorerWidget) -> None:
    lens = reading(widget)["lens"]
    probabilities = model(model.to_tokens(PROMPT)).logits[0].softmax(-1).detach()
    for position, cell in enumerate(lens["candidates"][-1]):
        assert cell[0][1] == pytest.approx(float(probabilities[position].max()), abs=1e-4)
    early = nl.lens.logit_lens(model, PROMPT, top_k=1).top_probability[:, 0, :, 0]
    shown = [[cell[0][1] for cell in row] for row in lens["candidates"]]
    assert np.allclose(shown, early, atol=1e-4)


def test_answers_are_those_of_the_public_calls(model: Any, widget: ExplorerWidget) -> None:
    end = int(model(model.to_tokens(PROMPT)).logits[0, -1].argmax())
    other = int(model(model.to_tokens(SECOND)).logits[0, -1].argmax())
    metric = nl.patching.logit_difference(end)
    ablated = nl.patching.ablate(model, PROMPT, metric, progress=False).effect()
    effects = widget.effects
    assert np.allclose(effects["switched off, by head"]["values"], ablated, atol=1e-3)
    difference = nl.patching.logit_difference(end, other)
    for name, site, found in (
        ("heads", "z_all_pos", effects["patched, by head"]["values"]),
        ("stream", "resid_pre", widget.patching["values"]),
    ):
        swept = nl.patching.sweep(model, PROMPT, SECOND, difference, site, progress=False)
        assert np.allclose(found, swept.normalized(), atol=1e-3), name
    assert np.allclose(
        effects["induction score"]["values"], nl.detect.heads(model).values, atol=1e-3
    )
    occluded = nl.attribution.occlusion(model, PROMPT, metric).values[0]
    assert np.allclose(widget.attribution["values"], occluded, atol=1e-3)


def test_a_head_switched_off_is_the_run_with_its_mean(model: Any, widget: ExplorerWidget) -> None:
    request(widget, "select", state={"layer": 1, "head": 2, "position": 5})
    ask(widget, "off")

    def mean(z: Any, hook: Any) -> Any:
        z[:, :, 2] = z[:, :, 2].mean(dim=1, keepdim=True)
        return z

    hooked = model.run_with_hooks(PROMPT, [("blocks.1.attn.hook_z", mean)]).logits[0].softmax(-1)
    shown = [cell[0][1] for cell in widget.switched["candidates"]]
    assert np.allclose(shown, hooked.amax(-1).tolist(), atol=1e-4)
    assert widget.switched["name"].startswith("L1H2")


def test_the_difference_is_of_the_firsts_tokens(model: Any, widget: ExplorerWidget) -> None:
    about = model(model.to_tokens(PROMPT)).logits[0].argmax(-1)
    shares = [
        nl.lens.logit_lens(model, text, watch=about.tolist()).watched_probability[:, 0]
        for text in (PROMPT, SECOND)
    ]
    change = (shares[1] - shares[0]).diagonal(dim1=1, dim2=2)
    assert widget.compared["same"]
    assert np.allclose(widget.compared["change"], change, atol=2e-3)


def test_prompts_that_mislead_are_told_of_in_words(model: Any) -> None:
    widget = nl.explore(model, "The cat\u00a0saw a", "The dog\u00a0saw a")
    widget.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(widget, "ablation")
    assert "odd_characters: Token" in widget.message


def test_prompts_of_unequal_length_are_shown_and_not_patched(model: Any) -> None:
    widget = nl.explore(model, PROMPT, "The king")
    widget.wait()
    assert widget.compared["same"] is False and "change" not in widget.compared
    request(widget, "ask", what="resid_pre")
    with pytest.raises(InputError, match=r"token by token.* 15 and 2"):
        widget.wait()
    assert "15 and 2" in widget.message and widget.patching == {}


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "empty"), ("king " * 300, r"up to 256"), (PROMPT, None)]
)
def test_what_cannot_be_read_is_said(model: Any, prompt: str, words: str | None) -> None:
    widget = nl.explore(model, prompt)
    if words is None:
        request(widget, "ask", what="nonsense")
        assert "unknown question" in widget.message or "Nothing is read" in widget.message
        return
    with pytest.raises(InputError, match=words):
        widget.wait()
    request(widget, "ask", what="attribution")
    assert "Nothing is read yet" in widget.message


def test_a_model_that_does_not_write_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="does not predict tokens"):
        nl.explore(nl.load(head="sequence-classification"), PROMPT)  # type: ignore[arg-type]


def test_a_compiled_model_is_asked_for_what_was_compiled(model: Any) -> None:
    with pytest.raises(InputError, match=r"torch\.compile.* GPTNeoXForCausalLM .*_orig_mod"):
        nl.explore(torch.compile(model, backend="eager"), PROMPT)


def test_one_prompt_says_what_a_second_is_for(model: Any) -> None:
    widget = nl.explore(model, PROMPT)
    widget.wait()
    request(widget, "ask", what="swap")
    with pytest.raises(InputError, match="needs a second prompt"):
        widget.wait()
    request(widget, "branch", position=0, rank=0)
    assert "Nothing is written yet" in widget.message


def test_writing_branches_and_comes_back(model: Any, widget: ExplorerWidget) -> None:
    expected = model.generate(model.to_tokens(PROMPT), max_new_tokens=16, do_sample=False)
    text = [model.tokenizer.piece_text(int(token)) for token in expected[0, -16:]]
    assert [nl.views.label(piece, 24) for piece in text] == [
        token["text"] for token in widget.writing["tokens"]
    ]
    request(widget, "branch", position=2, rank=0)  # what stands there already: no new branch
    widget.wait()
    assert len(widget.writing["branches"]) == 1
    request(widget, "branch", position=2, rank=1)
    widget.wait()
    assert len(widget.writing["branches"]) == 2 and widget.writing["shown"] == 1
    request(widget, "show", choice=0)
    widget.wait()
    assert widget.writing["shown"] == 0


PANELS = ("lens", "pattern", "candidates", "parts", "heads", "attribution", "patching", "writing")


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_is_saved_in_three_forms(widget: ExplorerWidget, panel: str) -> None:
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "csv": b""}
    for form, begin in begins.items():
        request(widget, "save", panel=panel, form=form)
        assert widget.download["name"] == f"{panel}.{form}", widget.message
        content = b64decode(widget.download["content"])
        assert content.startswith(begin)
        if form == "csv":
            assert len(list(csv.reader(io.StringIO(content.decode())))) > 1


def python(widget: ExplorerWidget) -> dict[str, Any]:
    """What the copied code makes, run as it stands."""
    assert isinstance(widget.result, ExplorerView)
    found: dict[str, Any] = {}
    exec(widget.result.python, found)  # our own text, which users are to run
    return found


def test_the_same_in_python_makes_what_every_panel_shows(model: Any) -> None:
    widget = nl.explore(model, PROMPT, SECOND)
    widget.wait()
    request(widget, "select", state={"layer": 1, "head": 2, "position": 4, "row": 1})
    for what in ("ablation", "heads", "induction", "attribution", "off", "resid_pre", "writing"):
        ask(widget, what)
    request(widget, "branch", position=2, rank=1)
    widget.wait()
    request(widget, "select", state={"layer": 2, "head": 1, "position": 3, "row": 2})
    found, shown = python(widget), reading(widget)
    assert found["prompt"] == PROMPT and found["second"] == SECOND
    for lens, panel in (("lens", shown["lens"]), ("second_lens", widget.compared["lens"])):
        share = found[lens].top_probability[:, 0]
        cells = [[[one[1] for one in cell] for cell in row] for row in panel["candidates"]]
        assert np.allclose(share, cells, atol=1e-4), lens
    assert isinstance(widget.result, ExplorerView)
    pattern = widget.result.reading.attention.head(2, 1)
    assert found["pattern"].title == pattern.title == "Attention in layer 2, head 1"
    assert np.allclose(found["pattern"].patterns, pattern.patterns, atol=1e-6)
    for shares, panel in (("shares", shown), ("second_shares", widget.compared)):
        values = panel["shares"]["values"][3]
        parts = dict(zip(found[shares].labels["component"], found[shares].values, strict=True))
        called = {"embedding": "embed", "biases": "bias"}
        names = [called.get(name, name) for name in panel["shares"]["names"]]
        assert np.allclose([parts[name] for name in names], values, atol=1e-3, rtol=5e-3)
        assert found[shares].total == pytest.approx(sum(values), abs=2e-2)
    effects = widget.effects
    for name, values in (
        ("switched off, by head", found["ablated"].effect()),
        ("patched, by head", found["patched"].normalized()),
        ("induction score", found["detected"].values),
    ):
        assert np.allclose(effects[name]["values"], values, atol=1e-3), name
    assert np.allclose(widget.attribution["values"], found["occluded"].values[0], atol=1e-3)
    assert np.allclose(widget.patching["values"], found["swept"].normalized(), atol=1e-3)
    switched = [cell[0][1] for cell in widget.switched["candidates"]]
    assert np.allclose(switched, found["switched"].detach().amax(-1), atol=1e-4)
    text = [model.tokenizer.piece_text(int(token)) for token in found["written"][0, -16:]]
    assert [nl.views.label(piece, 24) for piece in text] == [
        token["text"] for token in widget.writing["tokens"]
    ]


def test_the_same_in_python_of_a_head_taken_from_the_second_prompt(model: Any) -> None:
    widget = nl.explore(model, PROMPT, SECOND)
    widget.wait()
    request(widget, "select", state={"layer": 1, "head": 2})
    ask(widget, "swap")
    shown = [cell[0][1] for cell in widget.switched["candidates"]]
    assert np.allclose(shown, python(widget)["switched"].detach().amax(-1), atol=1e-4)


def test_the_same_in_python_names_both_models_and_the_checkpoint(model: Any) -> None:
    early = nl.load(revision="step512")
    widget = nl.explore(model, PROMPT, against=early)
    widget.wait()
    shares = widget.compared["lens"]["candidates"]
    walk = nl.explore(model, PROMPT, revisions={"a": lambda: early, "b": lambda: model})
    walk.wait()
    assert isinstance(walk.result, ExplorerView)
    assert 'the function for "b"' in walk.result.python and "nl.load(" not in walk.result.python
    found: dict[str, Any] = {"model": model}
    exec(walk.result.python, found)
    walk = nl.explore(model, PROMPT, revisions=["step512", "step18000"])
    walk.wait()
    request(walk, "go_to", name="step512")
    walk.wait()
    lens = python(walk)["lens"].top_probability[:, 0, :, 0]
    assert np.allclose(lens, [[cell[0][1] for cell in row] for row in shares], atol=1e-4)


@pytest.mark.parametrize("text", ["{layer} {head} 'x' \\", '</script>"\n{position}', "a\\{head}"])
def test_no_prompt_is_taken_for_code(model: Any, text: str) -> None:
    widget = nl.explore(model, text)
    widget.wait()
    assert widget.result is not None
    assert isinstance(widget.result, ExplorerView)
    code = widget.result.python
    line = next(line for line in code.splitlines() if line.startswith("prompt = "))
    assert "{" not in line
    found: dict[str, Any] = {}
    exec(line, found)
    assert found["prompt"] == text


def test_a_slider_over_training(model: Any) -> None:
    names = ["step0", "step1000", "step18000"]
    widget = nl.explore(model, PROMPT, revisions=names)
    widget.wait()
    ask(widget, "induction")
    request(widget, "go_to", name="step0")
    widget.wait()
    assert widget.revision == "step0"
    early = nl.load(revision="step0")
    expected = nl.lens.logit_lens(early, PROMPT, top_k=1).top_probability[-1, 0, :, 0]
    shown = [cell[0][1] for cell in widget.reading["lens"]["candidates"][-1]]
    assert np.allclose(shown, expected, atol=1e-4)
    score = nl.detect.heads(early).values
    assert np.allclose(widget.effects["induction score"]["values"], score, atol=1e-3)
    assert widget.result is not None
    revisions = widget.result.data()["revisions"]
    assert revisions["names"] == names and revisions["chosen"] == "step0"
    assert set(revisions["readings"]) == {"step0", "step18000"}  # those that were run
    assert isinstance(widget.result, ExplorerView)
    assert 'nl.load(revision="step0")' in widget.result.python
    request(widget, "go_to", name="step7")
    assert "no revision 'step7'" in widget.message
    with pytest.raises(InputError, match="at least two"):
        nl.explore(model, PROMPT, revisions=["main"])


def test_another_model_on_the_same_prompt(model: Any) -> None:
    early = nl.load(revision="step512")
    widget = nl.explore(model, PROMPT, against=early)
    widget.wait()
    assert widget.compared["prompt"] == PROMPT and widget.compared["same"]
    expected = nl.lens.logit_lens(early, PROMPT, top_k=1).top_probability[-1, 0, :, 0]
    shown = [cell[0][1] for cell in widget.compared["lens"]["candidates"][-1]]
    assert np.allclose(shown, expected, atol=1e-4)
    request(widget, "ask", what="resid_pre")
    with pytest.raises(InputError, match="two models"):
        widget.wait()


def test_a_long_prompt_stays_within_the_budget(model: Any) -> None:
    text = "The king went to the city. " * 24
    widget = nl.explore(model, text, text.replace("king", "queen"))
    widget.wait()
    assert widget.result is not None
    assert len(json_text(widget.result.data())) < LIMIT


def test_a_state_that_makes_no_sense_changes_nothing(model: Any) -> None:
    widget = nl.explore(model, PROMPT)
    widget.wait()
    for state in ({"layer": 99, "head": -1}, {"position": "x", "row": 1.5}, {"layer": True}):
        request(widget, "select", state=state)
        ask(widget, "off")
        assert widget.switched["name"].startswith("L3H0")
    json.dumps(widget.state)


def test_examples_lead_where_the_model_knows_the_way(model: Any) -> None:
    widget = nl.explore(model, PROMPT)
    widget.wait()
    answers = [(" Stockholm", " Moscow"), (" Daniel", " Tom"), (" table", " museum")]
    for choice, ends in enumerate(answers):
        request(widget, "example", choice=choice)
        widget.wait()
        texts = [widget.prompt, widget.second]
        best = [int(model(model.to_tokens(text)).logits[0, -1].argmax()) for text in texts]
        begins = [int(model.to_tokens(end)[0, 0]) for end in ends]
        assert best == begins
        assert widget.compared["same"], "so that one can patch"
    request(widget, "example", choice=9)
    assert "no example 9" in widget.message


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": 5},
        {"prompt": None},
        {"second": 5},
        {"revisions": 5},
        {"revisions": "step0"},
        {"revisions": []},
        {"revisions": [1, 2]},
        {"revisions": ["step0", "step0"]},
        {"against": 5},
    ],
)
def test_odd_arguments_are_refused_in_words(model: Any, given: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        nl.explore(model, **{"prompt": PROMPT, **given})
    with pytest.raises(InputError, match="does not predict tokens"):
        nl.explore(None, PROMPT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weight", "at", "first", "named"),
    [
        ("gpt_neox.layers.2.mlp.dense_h_to_4h.bias", (0,), "blocks.2.mlp.hook_pre, at token 0", 1),
        ("gpt_neox.layers.1.attention.query_key_value.weight", (0, 0), "blocks.1.attn.hook_q,", 1),
        ("gpt_neox.embed_in.weight", "queen", "hook_embed, at token 1 (“·qu”)", 1),
        ("gpt_neox.final_layer_norm.bias", (3,), "unembed.hook_in, at token 0", 1),
        ("embed_out.weight", (7, 7), "unembed.hook_out, at token 0", 1),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h.weight", "large", "blocks.3.hook_mlp_out, at", 0),
    ],
)
def test_a_run_that_is_not_finite_says_where_it_breaks(
    weight: str, at: Any, first: str, named: int
) -> None:
    model = nl.load()
    text, values = " king queen", dict(model.named_parameters())[weight].data
    if at == "queen":
        values[int(model.to_tokens(" queen")[0, 0])] = np.inf
    elif at == "large":  # all weights are finite, what they make is not
        values[:] = 3e38
    else:
        values[at] = np.nan
    widget = nl.explore(model, text)
    with pytest.raises(InputError):
        widget.wait()
    assert first in widget.message
    assert (f"among the weights: {weight}." in widget.message) == bool(named)
    assert ("All weights are finite" in widget.message) != bool(named)
    if at == "queen":  # another prompt does not meet it
        widget.set_state({"prompt": " king"})
        request(widget, "run")
        widget.wait()
        assert widget.phase == "done" and widget.message == ""
