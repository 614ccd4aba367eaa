"""Live widgets without a browser: what it would send, and what comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.views import AttentionView, HeatmapView, TextView, attention_data
from neox_lab.widgets.live import INTERVAL, LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.static_output import Kept, together
from neox_lab.widgets.worker import Job, Worker

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The king went to the"
LONG = 120  # seconds; machines that run tests are slow


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.load()
    model.generation_config.eos_token_id = None  # texts do not end by themselves
    return model


@pytest.fixture(scope="module")
def sharp() -> Any:
    """A model with large weights everywhere, whose activations differ wherever texts do."""
    model = nl.load()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ask(widget: LiveWidget, action: str, **arguments: Any) -> None:
    """What the browser sends when something is clicked."""
    ask.count = getattr(ask, "count", 0) + 1
    widget.set_state({"request": {"id": ask.count, "action": action, **arguments}})


class Scripted(LiveWidget):
    """A widget whose work is whatever a test wants."""

    kinds = ("grid",)

    def __init__(self, work: Callable[[Any, Job], None]) -> None:
        self._work = work
        super().__init__(heading="Test")

    def _answer(self, job: Job, given: Any) -> None:
        self._work(self, job)


def heatmap(value: float) -> HeatmapView:
    return HeatmapView([[value]], ["row"], ["column"], title=f"{value}")


# The life of a widget.


def test_phases_from_request_to_result() -> None:
    phases = []
    view = heatmap(1.0)
    widget = Scripted(lambda w, job: w._show(job, view, [panel("map", view)]))
    widget.observe(lambda change: phases.append(change["new"]), "phase")
    assert widget.phase == "idle" and widget.result is None
    ask(widget, "run")
    assert widget.wait(LONG) is view
    assert phases == ["waiting", "running", "done"]
    assert [panel["key"] for panel in widget.panels] == ["map"]


def test_what_goes_wrong_is_said_and_raised_and_the_worker_lives_on() -> None:
    def fail(widget: Any, job: Job) -> None:
        raise ZeroDivisionError("nothing to divide by")

    widget = Scripted(fail)
    widget.run()
    with pytest.raises(ZeroDivisionError):
        widget.wait(LONG)
    assert widget.phase == "failed"
    assert widget.message == "ZeroDivisionError: nothing to divide by"
    view = heatmap(2.0)
    widget._work = lambda w, job: w._show(job, view, [])
    widget.run()
    assert widget.wait(LONG) is view
    assert widget.message == ""


def test_stop_ends_work_at_its_next_check_and_keeps_what_there_is() -> None:
    started = threading.Event()
    view = heatmap(3.0)

    def work(widget: Any, job: Job) -> None:
        widget._show(job, view, [])
        started.set()
        while True:
            time.sleep(0.001)
            job.check()

    widget = Scripted(work)
    widget.run()
    assert started.wait(LONG)
    with pytest.raises(TimeoutError, match="running"):
        widget.wait(0.01)
    ask(widget, "stop")
    assert widget.wait(LONG) is view
    assert (widget.phase, widget.message) == ("stopped", "Stopped.")


def test_work_that_still_waits_can_be_stopped_too() -> None:
    blocked = threading.Event()
    first = Scripted(lambda w, job: blocked.wait(LONG))
    ran = []
    second = Scripted(lambda w, job: ran.append(1))
    first.run()
    second.run()
    assert second.phase == "waiting"
    second.stop()
    blocked.set()
    first.wait(LONG)
    second.wait(LONG)
    assert second.phase == "stopped" and not ran


def test_a_newer_request_has_the_last_word() -> None:
    old, new = heatmap(1.0), heatmap(2.0)
    inside, on = threading.Event(), threading.Event()

    def slow(widget: Any, job: Job) -> None:
        inside.set()
        on.wait(LONG)
        widget._show(job, old, [panel("map", old)], now=True)  # without a look at the stop flag

    widget = Scripted(slow)
    widget.run()
    assert inside.wait(LONG)
    widget._work = lambda w, job: w._show(job, new, [panel("map", new)])
    phases: list[str] = []
    widget.run()
    assert widget.phase == "waiting"
    widget.observe(lambda change: phases.append(change["new"]), "phase")
    on.set()
    assert widget.wait(LONG) is new
    assert widget.panels == [panel("map", new)]
    assert phases == ["running", "done"], "the old one said that it was done"


def test_the_browser_is_told_at_most_twenty_times_a_second_and_always_the_last() -> None:
    told = []

    def work(widget: Any, job: Job) -> None:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            work.steps += 1
            widget._publish(job, progress=[work.steps, 0])

    work.steps = 0
    widget = Scripted(work)
    widget.observe(lambda change: told.append(change["new"]), "progress")
    start = time.monotonic()
    widget.run()
    widget.wait(LONG)
    assert work.steps > 100
    assert len(told) <= (time.monotonic() - start) / INTERVAL + 3
    assert told[-1] == [work.steps, 0]


def test_unknown_requests_and_unfit_values_are_refused_in_words(model: Any) -> None:
    widget = nl.widgets.generation(model, PROMPT)
    ask(widget, "close")
    assert "unknown request 'close'" in widget.message and widget.comm is not None
    ask(widget, "branch", position=0)
    assert "rank" in widget.message
    ask(widget, "branch", position="0", rank=0)
    assert widget.message == "position is '0'; expected int"
    ask(widget, "branch", position=0, rank=0, model=1)
    assert widget.message == "unknown argument 'model' of 'branch'"
    widget.set_state({"temperature": 7.0})
    assert "from 0.0 to 2.0" in widget.message and widget.temperature == 0.0
    widget.set_state({"request": {}})
    assert widget.phase == "idle"


def test_closing_stops_and_leaves_the_result(model: Any) -> None:
    widget = nl.widgets.generation(model, PROMPT)
    widget.length = 2000
    widget.run()
    while widget.result is None:
        time.sleep(0.005)
    widget.close()
    widget._job.finished.wait(LONG)
    assert isinstance(widget.result, TextView)


def test_a_program_that_ends_meanwhile_ends_cleanly() -> None:
    code = (
        "import neox_lab as nl\n"
        "model = nl.load()\n"
        "model.generation_config.eos_token_id = None\n"
        "widget = nl.widgets.generation(model, 'The king')\n"
        "widget.length = 2000\n"
        "widget.run()\n"
        "while not widget.progress[0]: pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=LONG)
    assert ended.returncode == 0, ended.stderr.decode()


def test_worker_does_one_thing_after_the_other() -> None:
    worker, seen, busy = Worker(), [], []

    def work(number: int) -> Callable[[Job], None]:
        def run(job: Job) -> None:
            busy.append(number)
            seen.append(len(busy))
            time.sleep(0.01)
            busy.remove(number)

        return run

    jobs = [Job(work(number)) for number in range(5)]
    for job in jobs:
        worker.submit(job)
    assert all(job.finished.wait(LONG) for job in jobs)
    assert seen == [1] * 5


# What stays without a kernel.


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is displayed, and updated, instead of being sent to a front end."""
    import IPython.display

    seen: list[tuple[str, dict[str, Any]]] = []
    for name in ("display", "update_display"):

        def note(data: Any, *, raw: bool = False, display_id: str = "", name: str = name) -> None:
            seen.append((name, data if raw else data._repr_mimebundle_()))

        monkeypatch.setattr(IPython.display, name, note)
    return seen


def test_below_the_widget_stands_its_result_for_readers_without_a_kernel(
    shown: list[tuple[str, dict[str, Any]]],
) -> None:
    view = heatmap(4.0)
    widget = Scripted(lambda w, job: w._show(job, view, []))
    widget._ipython_display_()
    live, empty = shown
    assert "application/vnd.jupyter.widget-view+json" in live[1]
    assert "text/html" not in live[1], "the picture would stand there twice"
    assert "<img" not in empty[1]["text/html"]
    widget.run()
    widget.wait(LONG)
    name, bundle = shown[-1]
    assert name == "update_display"
    assert "<img" in bundle["text/html"] and "<table" in bundle["text/html"]
    assert 'class="neox-current"' in bundle["text/html"]
    assert bundle["image/png"].startswith(b"\x89PNG")
    count = len(shown)
    widget.wait(LONG)
    assert len(shown) == count, "nothing new, nothing to update"


def test_pinned_results_stay_when_others_come(
    shown: list[tuple[str, dict[str, Any]]],
) -> None:
    views = [heatmap(5.0), heatmap(6.0)]
    widget = Scripted(lambda w, job: w._show(job, views[0], []))
    ask(widget, "pin")
    assert widget.message == "There is no result to pin yet."
    widget.run()
    widget.wait(LONG)
    ask(widget, "pin")
    assert "not shown" in widget.message
    widget._ipython_display_()
    ask(widget, "pin")
    assert widget.message == "Pinned below."
    html = shown[-1][1]["text/html"]
    assert html.count('class="neox-pinned"') == 1 and 'class="neox-current"' not in html
    widget._work = lambda w, job: w._show(job, views[1], [])
    widget.run()
    widget.wait(LONG)
    html = shown[-1][1]["text/html"]
    assert html.count('class="neox-pinned"') == 1 and html.count('class="neox-current"') == 1
    assert html.index("5.0") < html.index("6.0")


def test_the_widgets_own_bundle_has_its_result_too() -> None:
    view = heatmap(7.0)
    widget = Scripted(lambda w, job: w._show(job, view, [], beside=[heatmap(8.0)]))
    assert "image/png" not in widget._repr_mimebundle_()[0]
    widget.run()
    widget.wait(LONG)
    data, _ = widget._repr_mimebundle_()
    assert {"image/png", "text/html", "text/plain"} < set(data)
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"].count("neox-view") >= 2


def test_a_closed_widget_shows_its_result(shown: list[tuple[str, dict[str, Any]]]) -> None:
    view = heatmap(9.0)
    widget = Scripted(lambda w, job: w._show(job, view, []))
    widget.run()
    widget.wait(LONG)
    widget.close()
    widget._ipython_display_()
    assert shown == [("display", view._repr_mimebundle_())]


def test_nothing_shown_is_nothing_kept() -> None:
    assert together(()) == {}
    assert "<img" not in Kept().bundle()["text/html"]


# Generation.


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    return model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)[0].tolist()


def test_generation_writes_what_the_model_writes(model: Any) -> None:
    widget = nl.widgets.generation(model)
    widget.set_state({"prompt": PROMPT, "length": 9, "request": {"id": 1, "action": "run"}})
    view = widget.wait(LONG)
    ids = model.to_tokens(PROMPT)[0].tolist()
    assert [w.token for w in widget.branches[0].tokens] == greedy(model, ids, 9)[len(ids) :]
    assert view.continuation == [w.piece for w in widget.branches[0].tokens]
    assert widget.progress == [9, 9]
    first = widget.branches[0].tokens[0]
    logits = model(torch.tensor([ids])).logits[0, -1].detach()
    assert first.probability == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    assert [a.token for a in first.alternatives] == logits.topk(8).indices.tolist()


def test_a_branch_replaces_a_token_and_writes_on(model: Any) -> None:
    widget = nl.widgets.generation(model, PROMPT)
    widget.length = 8
    widget.run()
    widget.wait(LONG)
    first = list(widget.branches[0].tokens)
    ask(widget, "branch", position=2, rank=3)
    view = widget.wait(LONG)
    ids = model.to_tokens(PROMPT)[0].tolist()
    other = first[2].alternatives[3]
    start = [*ids, first[0].token, first[1].token, other.token]
    made = [w.token for w in widget.branches[1].tokens]
    assert [*ids, *made] == greedy(model, start, 5)
    assert widget.branches[0].tokens == first, "the first branch is as it was"
    assert view.probabilities[2] == pytest.approx(other.probability)
    buttons, text = widget.panels
    assert buttons["data"]["chosen"] == 1 and len(buttons["data"]["names"]) == 2
    assert text["on"] == {"branch": "branch"}
    ask(widget, "show", choice=0)
    assert widget.wait(LONG).continuation == [w.piece for w in first]
    ask(widget, "show", choice=5)
    assert "no branch 5" in widget.message
    ask(widget, "branch", position=8, rank=0)
    assert "no token 8" in widget.message
    ask(widget, "branch", position=0, rank=8)
    assert "no alternative 8" in widget.message


def test_a_branch_that_ends_the_text_ends_there() -> None:
    model = nl.load()
    model.generation_config.eos_token_id = None
    widget = nl.widgets.generation(model, PROMPT)
    widget.length = 6
    widget.run()
    widget.wait(LONG)
    end = model.generation_config.eos_token_id = 0
    written = widget.branches[0].tokens[1]
    stop = type(written.alternatives[0])(end, "<|endoftext|>", 0.1)
    changed = type(written)(written.token, written.piece, 0.5, 1.0, (stop,))
    widget.branches[0].tokens[1] = changed
    ask(widget, "branch", position=1, rank=0)
    widget.wait(LONG)
    assert len(widget.branches[1].tokens) == 2


def test_temperature_draws_and_stop_stops(model: Any) -> None:
    widget = nl.widgets.generation(model, PROMPT)
    widget.set_state({"temperature": 1.0, "length": 12})
    texts = set()
    for _ in range(3):
        ask(widget, "run")
        texts.add("".join(widget.wait(LONG).continuation))
    assert len(texts) > 1
    widget.length = 2000
    ask(widget, "run")
    while not widget.progress[0]:
        time.sleep(0.001)
    ask(widget, "stop")
    view = widget.wait(LONG)
    assert widget.phase == "stopped"
    assert 0 < len(view.continuation) < 2000
    assert len(view.continuation) == len(widget.branches[0].tokens)


def test_an_empty_prompt_is_explained(model: Any) -> None:
    widget = nl.widgets.generation(model)
    ask(widget, "run")
    with pytest.raises(InputError):
        widget.wait(LONG)
    assert "empty" in widget.message and widget.phase == "failed"


# Reading widgets.


def test_attention_of_another_text_and_what_was_locked(model: Any) -> None:
    widget = nl.widgets.attention(model, PROMPT)
    assert widget.wait(LONG).pieces == model.to_str_tokens(PROMPT)
    widget.set_state({"text": "A dog", "request": {"id": 1, "action": "run"}})
    assert widget.wait(LONG).pieces == model.to_str_tokens("A dog")
    ask(widget, "select", layer=2, head="mean", token=None)
    assert widget.selected == {"layer": 2, "head": "mean", "token": None}


def test_logit_lens_of_another_site(model: Any) -> None:
    widget = nl.widgets.logit_lens(model, PROMPT)
    widget.wait(LONG)
    widget.set_state({"site": "mlp_out", "request": {"id": 1, "action": "run"}})
    result = widget.wait(LONG)
    expected = nl.lens.logit_lens(model, PROMPT, "mlp_out")
    assert result.site == "mlp_out" and torch.equal(result.top, expected.top)
    offered = next(c["options"] for c in widget.controls if c["name"] == "site")
    assert ("resid_mid" in offered) != model.config.use_parallel_residual
    widget.set_state({"site": "mlp", "request": {"id": 2, "action": "run"}})
    with pytest.raises(InputError):
        widget.wait(LONG)
    assert "mlp_out" in widget.message


def test_probes_say_of_a_text_what_predict_says(model: Any) -> None:
    texts = [f"{a} {b} home" for a in ("The king", "A dog") for b in "abcdefgh"]
    found = nl.probing.probe(model, texts, ["king"] * 8 + ["dog"] * 8, sites="resid_post")
    widget = nl.widgets.probing(found, model, "The king a home")
    said = widget.wait(LONG)
    assert isinstance(said, HeatmapView)
    best = [found.labels[at] for at in said.values.argmax(axis=1)]
    names = [probe.name for probe in found.probes]
    assert best == [
        found.predict(model, ["The king a home"], name)["prediction"][0] for name in names
    ]
    ask(widget, "run")
    widget.wait(LONG)
    _, mistakes, answer = widget.panels
    assert found.best.name in mistakes["data"]["title"]
    assert "The king a home" in answer["data"]["title"]
    assert widget._repr_mimebundle_()[0]["text/html"].count("neox-view") >= 3, "all three are kept"
    alone = nl.widgets.probing(found)
    assert alone.wait(LONG) is found
    assert [control["name"] for control in alone.controls] == ["site"]
    alone.set_state({"site": "blocks.9", "request": {"id": 1, "action": "run"}})
    with pytest.raises(InputError):
        alone.wait(LONG)


@pytest.mark.filterwarnings("ignore")
def test_heads_say_what_their_tasks_say() -> None:
    labels = ["O", "B-PER", "I-PER"]
    classifier = nl.load(head="sequence-classification", labels=["no", "yes"])
    tagger = nl.load(head="token-classification", labels=labels)
    reader = nl.load(head="question-answering")
    one = nl.widgets.classification(classifier, "The king")
    expected = nl.tasks.classification.predict(classifier, "The king").frame
    assert one.wait(LONG).frame.equals(expected)
    bars = one.result.view()
    for label, shares in zip(["no", "yes"], bars.attributions, strict=True):
        lost = nl.attribution.occlusion(classifier, "The king", nl.attribution.class_logit(label))
        np.testing.assert_allclose(shares, lost.values[0], rtol=1e-5)
    two = nl.widgets.answering(reader, "Who?", "The king went home.")
    expected = nl.tasks.answering.predict(reader, "Who?", "The king went home.").frame
    assert two.wait(LONG).frame.equals(expected)
    three = nl.widgets.tagging(tagger, "The king")
    three.set_state({"text": "A dog went", "request": {"id": 1, "action": "run"}})
    assert three.wait(LONG).frame.equals(nl.tasks.tagging.predict(tagger, "A dog went").frame)
    empty = nl.widgets.answering(reader, "Who?")
    assert empty.phase == "idle"
    ask(empty, "run")
    with pytest.raises(InputError, match="Passage"):
        empty.wait(LONG)


def test_without_a_model_the_built_in_heads_read_an_example() -> None:
    from neox_lab.gym import labelled

    review = labelled.reviews("held-out", 1)[0]
    classes = nl.widgets.classification()
    assert classes.text == review["text"]
    assert classes.wait(LONG).frame["prediction"][0] in ("negative", "positive")
    answers = nl.widgets.answering()
    assert answers.question and answers.wait(LONG).frame["answer"][0] in answers.passage
    tags = nl.widgets.tagging(text="Mary went to Rome.")
    assert tags.text == "Mary went to Rome." and tags.wait(LONG) is tags.result


def test_models_with_another_head_are_refused_at_once(model: Any) -> None:
    base = nl.load(head="base")
    for make in (
        lambda: nl.widgets.generation(base),
        lambda: nl.widgets.logit_lens(base, PROMPT),
        lambda: nl.widgets.patching(base, "a", "b", " a", " b"),
        lambda: nl.widgets.classification(model),
        lambda: nl.widgets.answering(model),
        lambda: nl.widgets.tagging(model),
    ):
        with pytest.raises(InputError):
            make()


# Patching.

CLEAN, CORRUPTED = "The king went to the city", "The king went to a city"


def changed_at(model: Any) -> int:
    """The position of the only token that differs."""
    sides = model.to_str_tokens(CLEAN), model.to_str_tokens(CORRUPTED)
    return next(at for at, pair in enumerate(zip(*sides, strict=True)) if len(set(pair)) > 1)


@pytest.mark.parametrize(
    "site",
    (
        "resid_pre resid_post attn_out mlp_out z q k v z_all_pos q_all_pos k_all_pos v_all_pos "
        "pattern_all_pos pattern_by_dest"
    ).split(),
)
def test_a_cell_run_again_is_the_sweeps_cell(sharp: Any, site: str) -> None:
    widget = nl.widgets.patching(sharp, CLEAN, CORRUPTED, " a", " the")
    widget.set_state({"site": site, "length": 2, "request": {"id": 1, "action": "run"}})
    result = widget.wait(LONG)
    effects = np.abs(result.view().values)
    row, column = np.unravel_index(effects.argmax(), effects.shape)
    ask(widget, "select", row=int(row), column=int(column))
    widget.wait(LONG)
    at = tuple(widget.cell[axis] for axis in result.axes)
    assert abs(float(result.effect()[at])) > 1e-3, "a cell that changes nothing shows nothing"
    found = widget.differences
    assert found["patched"] == pytest.approx(float(result.values[at]), abs=2e-4)
    assert found["clean"] == pytest.approx(result.clean, abs=2e-4)
    assert found["corrupted"] == pytest.approx(result.corrupted, abs=2e-4)
    assert [p["key"] for p in widget.panels] == ["map", "clean", "corrupted", "patched"]
    assert not sharp.hook_stack.placements


def test_patching_tells_of_prompts_that_mislead_in_its_own_line(sharp: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        widget = nl.widgets.patching(sharp, f"{CLEAN} ", f"{CORRUPTED} ", " a", " the")
        widget.wait(60)
    assert widget.message.startswith("Click a field")
    assert "trailing_space: The prompt ends in a space" in widget.message
    sound = nl.widgets.patching(sharp, CLEAN, CORRUPTED, " a", " the")
    sound.wait(60)
    assert "mislead" not in sound.message


def test_patching_the_whole_prompt_writes_the_clean_continuation(sharp: Any) -> None:
    model = sharp
    widget = nl.widgets.patching(model, CLEAN, CORRUPTED, " a", " the")
    widget.wait(LONG)
    ask(widget, "select", row=0, column=changed_at(model))  # before the first block
    widget.wait(LONG)
    texts = {p["key"]: [t["text"] for t in p["data"]["pieces"]] for p in widget.panels[1:]}
    given = len(model.to_str_tokens(CLEAN))
    assert texts["patched"][given:] == texts["clean"][given:] != texts["corrupted"][given:]
    assert texts["patched"][:given] == texts["corrupted"][:given]


def test_patching_explains_what_is_wrong_and_stops(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*asked: Any, progress: Callable[[int, int], None]) -> Any:
        """Many small steps, each long enough to be seen."""

        def report(done: int, total: int) -> None:
            progress(done, total)
            time.sleep(INTERVAL)

        return nl.patching.sweep(*asked, budget=1, progress=report)

    monkeypatch.setattr("neox_lab.widgets._patching.sweep", slow)
    widget = nl.widgets.patching(model, CLEAN, "He said", " a", " the")
    with pytest.raises(InputError):
        widget.wait(LONG)
    assert widget.phase == "failed" and widget.message
    ask(widget, "select", row=0, column=0)
    assert widget.message == "There is no map yet."
    widget.corrupted = CORRUPTED
    widget.run()
    widget.wait(LONG)
    ask(widget, "select", row=99, column=0)
    assert "no field (99, 0)" in widget.message

    def stop(change: Any) -> None:
        if change["new"][0] and widget._job is not None:
            widget.stop()

    widget.observe(stop, "progress")
    ask(widget, "run")
    result = widget.wait(LONG)
    assert widget.phase == "stopped" and not result.complete
    row, column = (int(at[0]) for at in np.nonzero(result.effect().isnan().numpy()))
    ask(widget, "select", row=row, column=column)
    assert "not measured" in widget.message


# Threads, and what is sent.


def test_cells_that_run_meanwhile_are_not_disturbed(model: Any) -> None:
    ids = model.to_tokens(PROMPT)
    plain = model(ids).logits
    widget = nl.widgets.generation(model, PROMPT)
    widget.length = 150
    expected = greedy(model, ids[0].tolist(), 150)[ids.shape[1] :]
    widget.run()
    seen = []
    while not widget._job.finished.is_set():
        with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: torch.zeros_like(x))]):
            broken = model(ids).logits
        seen.append(torch.equal(model(ids).logits, plain) and not torch.equal(broken, plain))
    widget.wait(LONG)
    assert seen and all(seen)
    assert [w.token for w in widget.branches[0].tokens] == expected


def test_hostile_tokens_stay_text_and_scripts_stay_small(model: Any) -> None:
    hostile = "</script><img src=x onerror=alert(1)> &amp; \u2028 \ud83d"
    widget = nl.widgets.attention(model, hostile.encode("utf-8", "replace").decode())
    widget.wait(LONG)
    assert "".join(widget.panels[0]["data"]["pieces"]).count("<img") <= 1
    json.dumps(widget.panels)
    for kind in (
        nl.widgets.AttentionWidget,
        nl.widgets.GenerationWidget,
        nl.widgets.PatchingWidget,
        nl.widgets.ProbingWidget,
    ):
        assert len(kind._esm) < 100_000


def test_a_value_out_of_range_is_refused_in_the_words_of_the_form(model: Any) -> None:
    widget = nl.widgets.generation(model, "The king")
    widget.set_state({"length": 5000})
    assert widget.message == "“New tokens” must be a number from 1 to 2000; it stays 24."
    widget.set_state({"prompt": 5})
    assert widget.message == "“Prompt” must be something else; it stays 'The king'."
    widget.set_state({"panels": 5})
    assert "does not know" in widget.message


def test_pins_can_be_removed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = nl.widgets.attention(model, "The king")
    widget.wait()
    widget._ipython_display_()
    for action in ({"action": "pin"}, {"action": "pin"}):
        ask(widget, **action)
    assert widget.pins == 2
    ask(widget, "unpin", number=0)
    assert widget.pins == 1
    ask(widget, "unpin", number=3)
    assert "no pin 4" in widget.message


@pytest.mark.slow
def test_a_run_without_a_browser_keeps_the_last_cells_result(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    code = "import neox_lab as nl\nnl.widgets.attention(nl.load(), 'The king went')"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(made, timeout=300, kernel_name="python3").execute()
    outputs = made.cells[0].outputs
    kept = [out.get("data", {}).get("text/html", "") for out in outputs]
    assert any('class="neox-current"' in html for html in kept)
    assert any("image/png" in out.get("data", {}) for out in outputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, text: nl.widgets.attention(model, text),
        lambda model, text: nl.widgets.logit_lens(model, text),
        lambda model, text: nl.widgets.generation(model, text),
        lambda model, text: nl.widgets.patching(model, text + " king", text + " man", " a", " the"),
        lambda model, text: nl.explore(model, text),
    ],
    ids=["attention", "logit_lens", "generation", "patching", "explore"],
)
def test_a_text_too_long_for_the_model_is_told_in_the_widget(
    make: Any, recwarn: pytest.WarningsRecorder
) -> None:
    model = nl.load()
    model.config.max_position_embeddings = 40
    for text, told in (("The king went to the city. " * 6 + "The", True), (PROMPT, False)):
        widget = make(model, text)
        widget.run()
        widget.wait(LONG)
        assert ("made for 40" in widget.message) == told, widget.message
        assert widget.message.count("made for 40") <= 2
        widget.close()
    assert not [w for w in recwarn if "made for" in str(w.message)]  # no red block


def test_a_layer_that_is_left_out_of_a_long_text_can_be_chosen(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_data, "WEIGHTS", 2_000)
    monkeypatch.setattr(attention_data.attention_data, "__defaults__", (2_000,))
    widget = nl.widgets.attention(model, "The king went to the city. " * 12)
    widget.wait(LONG)
    data = widget.panels[0]["data"]
    layers = model.config.num_hidden_layers
    assert len(data["layers"]) < layers
    note = data["notes"][0]
    assert f"of {layers}" in note and ".layer(…)" in note and "above" in note
    (control,) = (each for each in widget.controls if each["name"] == "layer")
    assert control["options"] == ["all", *map(str, range(layers))]
    (missing, *_) = set(range(layers)) - set(data["layers"])
    widget.set_state({"layer": str(missing)})
    ask(widget, "run")
    view = widget.wait(LONG)
    assert isinstance(view, AttentionView)
    assert view.layers == widget.panels[0]["data"]["layers"] == [missing]
    whole = nl.views.attention(model, "The king went to the city. " * 12)
    np.testing.assert_allclose(view.patterns[0], whole.patterns[missing], atol=1e-5)
    widget.set_state({"layer": "-1"})
    ask(widget, "run")
    with pytest.raises(InputError, match="Layer"):
        widget.wait(LONG)
