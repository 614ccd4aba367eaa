"""One measure at many revisions: against a plain loop, killed, twice at once, with a hub."""

from __future__ import annotations

import copy
import errno
import functools
import json
import os
import pickle
import random
import re
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_hub import Repository, SmallHub

import neox_lab as nl
from neox_lab.built_in import weights_directory
from neox_lab.dynamics.measures import _parts, fingerprint
from neox_lab.dynamics.running import choose
from neox_lab.dynamics.sources import PYTHIA_STEPS, PYTHIA_TOKENS, Revision, source_of
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "The cat sat on the mat."
STEPS = [0, 512, 1250, 18000]


def embedding_norm(model: Any) -> float:
    return float(model.gpt_neox.embed_in.weight.detach().double().norm())


def run(measure: Callable[[Any], object], *arguments: Any, **options: Any) -> Any:
    return nl.dynamics.run(measure, *arguments, progress=False, **options)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


# --- what a run is ---------------------------------------------------------------------------


def test_a_run_is_the_loop() -> None:
    result = run(embedding_norm, steps="all")
    names = nl.gym.revisions()
    assert result.frame["revision"].tolist() == list(names)
    assert result.frame["value"].tolist() == [embedding_norm(nl.load(revision=n)) for n in names]
    assert result.frame["tokens"].tolist()[-1] == 36_352_000
    assert list(result.frame.columns) == [
        "revision", "step", "tokens", "value", "weights", "fault", "error"
    ]  # fmt: skip
    assert (result.frame["fault"] == "").all() and (result.frame["error"] == "").all()


def test_answers_of_every_kind() -> None:
    def mapping(model: Any) -> dict[str, object]:
        return {"norm": model.gpt_neox.embed_in.weight.norm(), "layers": 4, "bad": float("nan")}

    frame = run(mapping, steps=STEPS).frame
    assert frame["layers"].dtype == np.int64 and frame["bad"].isna().all()
    ours = run(functools.partial(nl.gym.evaluate, tasks=["ioi", "facts"], count=8), steps=STEPS)
    assert len(ours.frame) == 8
    plain = nl.gym.evaluate(nl.load(revision="step512"), ["ioi", "facts"], count=8).frame
    rows = ours.frame[ours.frame["step"] == 512].reset_index(drop=True)
    same(rows[list(plain.columns)], plain)
    loss = run(lambda model: nl.tasks.likelihood.perplexity(model, TEXT), steps=[512])
    metrics = dict(nl.tasks.likelihood.perplexity(nl.load(revision="step512"), TEXT).metrics)
    metrics["measured_tokens"] = metrics.pop("tokens")
    assert loss.frame[list(metrics)].iloc[0].to_dict() == metrics
    lens = run(lambda model: nl.lens.logit_lens(model, TEXT), steps=[0])
    same(
        lens.frame[["layer", "entropy_bits"]],
        nl.lens.logit_lens(nl.load(revision="step0"), TEXT).frame[["layer", "entropy_bits"]].astype(
            {"entropy_bits": np.float64}
        ),
    )  # fmt: skip


def test_maps_have_a_slider(tmp_path: Path) -> None:
    result = run(nl.detect.heads, steps=STEPS)
    view = result.view()
    assert list(view.maps) == ["0", "512", "1250", "18000"]
    scores = nl.detect.heads(nl.load(revision="step1250"))
    np.testing.assert_allclose(view.maps["1250"].values, scores.values)
    assert scores.values[1].min() > 0.3 > scores.values[0].max(), "the induction jump"
    early = result.frame[result.frame["step"] == 512]
    assert early["score"].max() < 0.1
    data = view.data()
    assert data["names"] == list(view.maps) and len(data["texts"]) == 4
    assert len(set(map(str, (each._colours()[1].vmax for each in view.maps.values())))) == 1
    result.to_html(tmp_path / "heads.html")
    assert result.curves("score").x_names == ["0", "512", "1250", "18000"]
    assert len(result.curves("score").lines) == 10  # of 16 heads
    text = result.to_csv()
    assert text.splitlines()[0].startswith("revision,step,tokens,layer,head,score")


def test_curves_have_intervals() -> None:
    result = run(functools.partial(nl.gym.evaluate, tasks=["ioi", "facts"], count=8), steps=STEPS)
    view = result.view()
    assert set(view.lines) == {"ioi", "facts"} and view.y_label == "accuracy"
    rows = result.frame[result.frame["task"] == "ioi"]
    np.testing.assert_allclose(view.lines["ioi"].low, rows["accuracy_low"].astype("float32"))
    with pytest.raises(InputError, match=r"column='accuracies'.*Did you mean 'accuracy'"):
        result.curves("accuracies")
    with pytest.raises(InputError, match="no maps"):
        result.slider()


def test_one_model_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def measure(model: Any) -> int:
        alive.append(weakref.ref(model))
        return sum(each() is not None for each in alive)

    assert run(measure, steps="all").frame["value"].tolist() == [1] * 10


# --- which steps -----------------------------------------------------------------------------


def test_doubling_steps() -> None:
    pythia = [Revision(f"step{s}", s, s * PYTHIA_TOKENS, "", "") for s in PYTHIA_STEPS]
    source = source_of("EleutherAI/pythia-70m")
    chosen = [each.step for each in choose(source, pythia, "log")]
    assert chosen == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000,
                      32000, 64000, 128000, 143000]  # fmt: skip
    named = choose(source, pythia, [np.int64(1000), "step4", 1000])
    assert [each.name for each in named] == ["step4", "step1000"]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([1100], "no revision 'step1100'.*'step1000' and 'step1250'"),
        (["step1100"], "'step1000' and 'step1250'"),
        (["mian"], "Did you mean 'main'"),
        (["0"], "no revision '0'.*A step is a number, not a text"),
        ([True], "steps has True"),
        ([], "expected 'log', 'all' or a list"),
        ("al", "Did you mean 'all'"),
        (5, "expected 'log', 'all' or a list"),
        ([None], "steps has None"),
    ],
)
def test_wrong_steps(steps: Any, words: str) -> None:
    with pytest.raises((CheckpointError, InputError), match=words):
        run(embedding_norm, steps=steps)


# --- errors ----------------------------------------------------------------------------------


def test_an_error_of_one_revision_is_recorded(tmp_path: Path) -> None:
    broken = {"at": 1}

    def measure(model: Any) -> float:
        norm = embedding_norm(model)
        if broken["at"] and norm < 50 and norm > 40:  # step 512
            raise ZeroDivisionError("no luck")
        return norm

    with pytest.warns(NeoxLabWarning, match=r"1 of 4 revisions could not be measured.*no luck"):
        result = run(measure, steps=STEPS, to=tmp_path)
    assert result.frame["error"].tolist() == ["", "ZeroDivisionError: no luck", "", ""]
    assert result.frame["value"].isna().tolist() == [False, True, False, False]
    assert len(result.curves().lines["value"].y) == 3
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.record.json")}
    (tmp_path / "run.json").write_text(
        (tmp_path / "run.json").read_text().replace(fingerprint(measure), "X")
    )
    broken["at"] = 0  # what it closes over has changed, so it is another measure
    with pytest.raises(CheckpointError, match="another kind"):
        run(measure, steps=STEPS, to=tmp_path)
    text = (tmp_path / "run.json").read_text().replace('"X"', json.dumps(fingerprint(measure)))
    (tmp_path / "run.json").write_text(text)
    again = run(measure, steps=STEPS, to=tmp_path)
    assert (again.frame["error"] == "").all()
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.record.json")}
    assert [name for name in before if before[name] != after[name]] == ["step512.record.json"]


def test_a_broken_measure_ends_the_run() -> None:
    calls = []

    def measure(model: Any) -> float:
        calls.append(1)
        raise TypeError("wrong call")

    with pytest.raises(InputError, match=r"fails at every revision.*\(3\).*wrong call"):
        run(measure, steps="all")
    assert len(calls) == 3


@pytest.mark.parametrize("answer", ["text", None, [1, 2], torch.zeros(2), object(), {1: 2}])
def test_answers_that_are_none(answer: object) -> None:
    with pytest.raises(InputError, match="fails at every revision"):
        run(lambda model: answer, steps=[0])


def test_columns_that_are_taken() -> None:
    frame = run(lambda model: {"step": 3, "tokens": 7}, steps=[512]).frame
    assert frame.loc[0, ["step", "measured_step", "measured_tokens"]].tolist() == [512, 3, 7]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neox_lab.dynamics import records

    write, calls = records.write_text, []

    def full(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(records, "write_text", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*goes on from there"):
        run(embedding_norm, steps=STEPS, to=tmp_path)
    monkeypatch.setattr(records, "write_text", write)
    assert len(nl.dynamics.read(tmp_path).frame) == 2
    same(
        run(embedding_norm, steps=STEPS, to=tmp_path).frame, run(embedding_norm, steps=STEPS).frame
    )


# --- folders ---------------------------------------------------------------------------------


def slow_norm(model: Any) -> dict[str, float]:
    time.sleep(0.02)
    return {"norm": embedding_norm(model), "first": float(model.gpt_neox.embed_in.weight[0, 0])}


def test_killed_twenty_times_it_ends_with_the_same_frame(tmp_path: Path) -> None:
    whole = run(slow_norm, steps="all").frame
    chance = random.Random(0)
    finished = killed = 0
    while killed < 20:
        child = os.fork()
        if not child:
            try:
                run(slow_norm, steps="all", to=tmp_path / "run")
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        finished += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        killed += 1
        if finished:  # begin again, somewhere else
            tmp_path, finished = tmp_path / "again", 0
            tmp_path.mkdir()
    same(run(slow_norm, steps="all", to=tmp_path / "run").frame, whole)
    same(nl.dynamics.read(tmp_path / "run").frame, whole)


LONG = {
    "sweep": lambda model, told: nl.patching.sweep(*prompts(model), progress=told).values.sum(),
    "edges": lambda model, told: nl.patching.edge_sweep(
        *prompts(model), progress=told
    ).values.nansum(),
    "text": lambda model, told: written(model, told).shape[1],
}


def prompts(model: Any) -> tuple[Any, ...]:
    (pair,) = nl.gym.TASKS["ioi"].pairs(1)
    return model, pair.clean, pair.corrupted, nl.patching.logit_difference(" a", " the")


def written(model: Any, told: Callable[[int, int], None]) -> torch.Tensor:
    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            told(0, 0)

        def end(self) -> None:
            pass

    return model.generate("The king", max_new_tokens=4, do_sample=False, streamer=Streamer())  # type: ignore[no-any-return]


@pytest.mark.parametrize("question", LONG)
def test_an_interrupted_question_is_no_answer(question: str) -> None:
    """Asked alone it would return what there is; here that would stand for all of it."""
    asked: list[int] = []

    def told(done: int, total: int) -> None:
        asked[-1] += 1
        if len(asked) == 2 and asked[-1] == 2:
            raise KeyboardInterrupt

    def measure(model: Any) -> float:
        asked.append(0)
        return float(LONG[question](model, told))

    with pytest.raises(KeyboardInterrupt):
        run(measure, steps=STEPS)
    assert len(asked) == 2
    found = run(measure, steps=STEPS).frame["value"]
    assert len(found) == len(STEPS) and found.notna().all()


def test_a_folder_keeps_what_was_asked(tmp_path: Path) -> None:
    few = run(embedding_norm, steps=[0, 512], to=tmp_path)
    assert len(few.frame) == 2
    calls = []

    more = run(embedding_norm, steps=[512, 1250], to=tmp_path)
    assert more.frame["step"].tolist() == [512, 1250]
    assert nl.dynamics.read(tmp_path).frame["step"].tolist() == [0, 512, 1250]
    heads = run(nl.detect.heads, steps=[0, 1250], to=tmp_path / "heads")
    assert nl.dynamics.read(tmp_path / "heads") == heads
    assert run(nl.detect.heads, steps=[0, 1250], to=tmp_path / "heads") == heads
    assert not calls


def test_faults_are_kept_with_the_answers(tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(weights_directory(), tmp_path / "model" / f"step{step}")
    with pytest.warns(NeoxLabWarning, match="not what their names say"):
        result = run(embedding_norm, tmp_path / "model", "all", to=tmp_path / "run")
    assert result.frame["fault"].tolist() == ["same weights as step2", ""]
    assert nl.dynamics.read(tmp_path / "run") == result


def test_folders_that_are_refused(tmp_path: Path) -> None:
    run(embedding_norm, steps=[0], to=tmp_path / "a")
    with pytest.raises(CheckpointError, match="another kind: measure"):
        run(slow_norm, steps=[0], to=tmp_path / "a")
    with pytest.raises(CheckpointError, match="another kind: dtype"):
        run(embedding_norm, steps=[0], to=tmp_path / "a", dtype=torch.float64)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="holds other things"):
        run(embedding_norm, steps=[0], to=tmp_path / "b")
    with pytest.raises(CheckpointError):
        nl.dynamics.read(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine.txt"]


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    def measure(model: Any) -> int:
        with pytest.raises(CheckpointError, match="Another run writes"):
            run(measure, steps=[0], to=tmp_path)
        return 1

    assert run(measure, steps=[0], to=tmp_path).frame["value"].tolist() == [1]


def test_a_record_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    whole = run(embedding_norm, steps=STEPS, to=tmp_path).frame
    (tmp_path / "step512.record.json").write_text('{"rows": [')
    (tmp_path / "step0.record.json").unlink()
    same(run(embedding_norm, steps=STEPS, to=tmp_path).frame, whole)


WORD = "cat"


def test_what_makes_a_measure_another() -> None:
    def made(word: str, number: int = 1) -> Callable[[Any], object]:
        return lambda model: (word, number, WORD, sorted({"a", "b", "c"}))

    assert fingerprint(made("a")) == fingerprint(made("a"))
    assert fingerprint(made("a")) != fingerprint(made("b"))
    before = fingerprint(made("a"))
    globals()["WORD"] = "dog"
    changed = fingerprint(made("a"))
    globals()["WORD"] = "cat"
    assert before != changed
    bound = [functools.partial(nl.gym.evaluate, count=n) for n in (1, 1, 2)]
    assert fingerprint(bound[0]) == fingerprint(bound[1]) != fingerprint(bound[2])
    # Sets have another order in each process.
    assert list(_parts(frozenset("cab"), {})) == ["'a'", "'b'", "'c'"]


# --- executors -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ProcessPoolExecutor, ThreadPoolExecutor])
def test_an_executor_gives_the_same_frame(kind: Any, tmp_path: Path) -> None:
    plain = run(slow_norm, steps=STEPS)
    with kind(2) as executor:
        same(run(slow_norm, steps=STEPS, executor=executor, to=tmp_path).frame, plain.frame)
    same(run(slow_norm, steps=STEPS, to=tmp_path).frame, plain.frame)


@pytest.mark.parametrize("how", ["shut down", "wrong answers", "interrupted"])
def test_what_was_done_before_an_executor_failed_is_kept(tmp_path: Path, how: str) -> None:
    class Failing(ThreadPoolExecutor):
        """Answers twice, and fails then."""

        calls = 0

        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls > 2 and how == "interrupted":
                raise KeyboardInterrupt
            if self.calls > 2 and how == "shut down":
                self.shutdown()
            if self.calls > 2 and how == "wrong answers":
                return super().submit(int)
            return super().submit(function, *arguments, **named)

    error = KeyboardInterrupt if how == "interrupted" else InputError
    with Failing(1) as executor, pytest.raises(error):
        run(slow_norm, steps=STEPS, executor=executor, to=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.endswith(".tmp") or ".neox_lab" in name]
    done = len(list(tmp_path.glob("*.record.json")))
    with ThreadPoolExecutor(1) as executor:
        found = run(slow_norm, steps=STEPS, executor=executor, to=tmp_path)
    same(found.frame, run(slow_norm, steps=STEPS).frame)
    assert done < len(STEPS)


def test_a_measure_that_cannot_be_sent() -> None:
    with ProcessPoolExecutor(1) as executor:
        with pytest.raises(InputError, match="can import"):
            run(lambda model: 1, steps=[0], executor=executor)


# --- a hub -----------------------------------------------------------------------------------


def repository(names: dict[str, str]) -> Repository:
    """Revisions of the built-in model under other names, each with the tokenizer."""
    made = Repository(empty=True)
    made.refs, made.commits = {}, {}
    kept = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    texts = {name: (weights_directory() / name).read_bytes() for name in kept}
    for at, (name, of) in enumerate(names.items(), 1):
        folder = weights_directory(of)
        files = {n: (folder / n).read_bytes() for n in ("config.json", "model.safetensors")}
        made.refs[name] = f"{at:040x}"
        made.commits[made.refs[name]] = {**texts, **files}
    return made


def weights_in(cache: Path) -> list[Path]:
    return [path for path in (cache / "hub").rglob("*.safetensors") if path.exists()]


def test_a_run_over_a_hub(hub: SmallHub, tmp_path: Path) -> None:
    names = {"step0": "step0", "step512": "step512", "step1250": "step1250", "main": "main"}
    hub.repositories["lab/model"] = repository(names)
    waited = []

    def measure(model: Any) -> float:
        """Wait until somebody asks for the weights of the revision after this one."""
        norm = embedding_norm(model)
        commits = [f"{at:040x}" for at in (1, 2, 3)]
        at = (waited and len(waited)) or 0
        waited.append(at)
        until = time.monotonic() + 20
        while at < 2 and not any(
            f"/{commits[at + 1]}/model.safetensors" in request for request in hub.requests
        ):
            assert time.monotonic() < until, "the next revision was not fetched meanwhile"
            time.sleep(0.01)
        return norm

    result = run(measure, "lab/model", "all")
    expected = run(embedding_norm, steps=[0, 512, 1250]).frame
    assert result.frame["value"].tolist() == expected["value"].tolist()
    assert result.frame["weights"].tolist() == expected["weights"].tolist()
    assert result.frame["tokens"].isna().all()
    assert len(weights_in(tmp_path)) == 3
    hub.sent.clear()
    again = run(embedding_norm, "lab/model", "all")
    assert again.frame["value"].tolist() == expected["value"].tolist()
    assert sum(hub.sent) < 50_000, "what is in the cache is not fetched again"


def test_what_was_downloaded_is_deleted_and_nothing_else(hub: SmallHub, tmp_path: Path) -> None:
    names = {"step0": "step0", "step1": "step0", "step512": "step512", "step1250": "step1250"}
    hub.repositories["lab/model"] = repository(names)
    nl.load("lab/model", revision="step512")
    before = sorted(path for path in (tmp_path / "hub").rglob("*") if path.is_file())
    with pytest.warns(NeoxLabWarning, match=r"2 of the revisions .*same weights as step"):
        result = run(embedding_norm, "lab/model", "all", keep="none")
    assert (result.frame["error"] == "").all()
    assert result.frame["fault"].tolist()[:2] == ["same weights as step1", "same weights as step0"]
    left = sorted(path for path in (tmp_path / "hub").rglob("*") if path.is_file())
    assert [path for path in before if path not in left] == []
    more = [path for path in left if path not in before and ".no_exist" not in path.parts]
    more = [path for path in more if "refs" not in path.parts and ".locks" not in path.parts]
    assert [path.name for path in more] == ["neox_lab-revisions.json"]
    assert nl.load("lab/model", revision="step512") is not None


def test_what_a_killed_run_downloaded_is_deleted_by_the_next(hub: SmallHub, tmp_path: Path) -> None:
    names = {"step0": "step0", "step512": "step512", "step1250": "step1250"}
    hub.repositories["lab/model"] = repository(names)
    nl.load("lab/model", revision="step1250")
    folder = tmp_path / "run"

    class KilledError(BaseException):
        """As sudden as a signal: nothing that was downloaded is deleted."""

    def measure(model: Any) -> float:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nl.dynamics.running.Fetcher, "release", lambda *_: None)
        patch.setattr(nl.dynamics.running, "fingerprint", lambda _: "the same")
        with pytest.raises(KilledError):
            run(measure, "lab/model", "all", keep="none", to=folder)
    assert len(weights_in(tmp_path)) >= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nl.dynamics.running, "fingerprint", lambda _: "the same")
        result = run(embedding_norm, "lab/model", ["step1250"], keep="none", to=folder)
    assert len(result.frame) == 1
    assert len(weights_in(tmp_path)) == 1, "what was there before stays"
    assert not list(folder.glob(".downloaded-*"))


def test_a_revision_that_cannot_be_had(hub: SmallHub) -> None:
    names = {"step0": "step0", "step512": "step512", "step1250": "step1250"}
    hub.repositories["lab/model"] = repository(names)
    del hub.repositories["lab/model"].commits[f"{2:040x}"]["model.safetensors"]
    with pytest.warns(NeoxLabWarning) as warned:
        result = run(embedding_norm, "lab/model", "all")
    assert [bool(error) for error in result.frame["error"]] == [False, True, False]
    assert result.frame["fault"].tolist() == ["", "no weights", ""]
    assert len(warned) == 2


def test_a_disk_that_fills_while_downloading(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["lab/model"] = repository({"step0": "step0", "step512": "step512"})
    import huggingface_hub

    download = huggingface_hub.hf_hub_download

    def full(name: str, file: str, *arguments: Any, **options: Any) -> str:
        if file == "model.safetensors" and options["revision"].endswith("2"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return download(name, file, *arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*keep='none'"):
        run(embedding_norm, "lab/model", "all", to=tmp_path / "run")
    assert len(nl.dynamics.read(tmp_path / "run").frame) == 1
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(run(embedding_norm, "lab/model", "all", to=tmp_path / "run").frame) == 2


# --- tensors ---------------------------------------------------------------------------------


def first_row(weight: torch.Tensor, bias: torch.Tensor) -> dict[str, float]:
    return {"norm": float(weight.double().norm()), "bias": float(bias.double().sum())}


NAMES = ("gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.bias")


def test_tensors_are_read_without_a_model(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = nl.dynamics.tensor_measure(*NAMES, function=first_row)
    plain = run(measure, steps=STEPS).frame
    whole = [measure(nl.load(revision=f"step{step}")) for step in STEPS]
    np.testing.assert_allclose(plain["norm"], [each["norm"] for each in whole])
    np.testing.assert_allclose(plain["bias"], [each["bias"] for each in whole])
    hub.repositories["lab/model"] = repository({f"step{step}": f"step{step}" for step in STEPS})
    size = (weights_directory() / "model.safetensors").stat().st_size
    hub.sent.clear()
    far = run(measure, "lab/model", "all").frame
    assert sum(hub.sent) < 0.5 * size * len(STEPS)
    print(f"{sum(hub.sent)} of {size * len(STEPS)} bytes")
    same(far[["norm", "bias"]], plain[["norm", "bias"]])
    with ProcessPoolExecutor(2) as executor:
        same(run(measure, steps=STEPS, executor=executor).frame, plain)


def test_tensors_that_are_not_there() -> None:
    measure = nl.dynamics.tensor_measure("gpt_neox.embed_in.wieght", function=torch.norm)
    with pytest.raises(InputError, match=r"embed_in.wieght.*Did you mean|embed_in.weight"):
        run(measure, steps=[0])
    with pytest.raises(InputError, match="names of tensors"):
        nl.dynamics.tensor_measure(function=torch.norm)
    with pytest.raises(InputError, match="function"):
        nl.dynamics.tensor_measure("a", function=3)  # type: ignore[arg-type]


NUMBERS: dict[str, Callable[[float], object]] = {
    "tensor": lambda x: torch.tensor([1.0, x]),
    "half tensor": lambda x: torch.tensor([1.0, x]).half(),
    "complex tensor": lambda x: torch.tensor([1.0, x * 1j]),
    "sparse tensor": lambda x: torch.tensor([[1.0, x]]).to_sparse(),
    "whole numbers": lambda x: torch.tensor([1, int(x)]),
    "array": lambda x: np.array([1.0, x]),
    "texts": lambda x: np.array(["a", str(x)]),
    "frame": lambda x: pd.DataFrame({"a": [1.0, x]}),
    "path": lambda x: Path(f"{x}.csv"),
    "module": lambda x: torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, x]])),
    "in a list": lambda x: [{"numbers": torch.tensor([1.0, x])}],
    "lens": lambda x: nl.lens.TunedLens(torch.full((1, 2, 2), x), torch.zeros(1, 2)),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_measure_with_other_numbers_is_another(kind: str) -> None:
    def ask(model: Any, numbers: object) -> float:
        return 0.0

    made = NUMBERS[kind]
    one, again, other = (
        fingerprint(functools.partial(ask, numbers=made(x))) for x in (2.0, 2.0, 3.0)
    )
    assert one == again and one != other


class Threshold:
    """A measure that is an object."""

    def __init__(self, least: float, next_to: object = None) -> None:
        self.least, self.next_to = least, next_to

    def __call__(self, model: Any) -> float:
        return self.least


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([1, 2], [3]), ([1], [2, 3])),
        (Threshold(1), Threshold(2)),
        (Threshold(1, Threshold(3)), Threshold(1, Threshold(4))),
        (nl.lens.TunedLens(torch.zeros(1, 2, 2), torch.zeros(1, 2)),
         nl.lens.TunedLens(torch.ones(1, 2, 2), torch.zeros(1, 2))),
    ],
)  # fmt: skip
def test_objects_by_what_they_hold(one: Any, other: Any) -> None:
    asked = [functools.partial(slow_norm, what=x) for x in (one, copy.deepcopy(one), other)]
    first, again, another = map(fingerprint, asked)
    assert first == again != another
    assert fingerprint(Threshold(1)) == fingerprint(Threshold(1)) != fingerprint(Threshold(2))


def test_rows_that_were_read_are_no_part_of_a_measure(tmp_path: Path) -> None:
    stored = nl.activations.collect(nl.load(), [TEXT, TEXT], "resid_post", tmp_path)
    asked = functools.partial(embedding_norm, stored)
    before, size = fingerprint(asked), len(pickle.dumps(stored))
    assert len(stored["resid_post", 0][:]) == len(stored)
    assert fingerprint(asked) == before
    assert len(pickle.dumps(stored)) < size + 2000
    halves = [functools.partial(embedding_norm, half) for half in stored.split(0.5)]
    assert len({before, *map(fingerprint, halves)}) == 3


def test_curves_are_of_what_is_measured_and_say_so() -> None:
    """Not of the numbers of layers, which are missing for parts that belong to none."""

    def parts(model: Any) -> pd.DataFrame:
        norm = embedding_norm(model)
        rows = [(None, "embed", norm), (0, "MLP", norm / 3), (1, "MLP", norm / 7)]
        return pd.DataFrame(rows, columns=["layer", "part", "share"])

    result = run(parts, steps=STEPS)
    view, wanted = result.curves(), run(embedding_norm, steps=STEPS).frame["value"]
    assert view.y_label == "share"
    assert list(view.lines) == ["embed", "layer 0, MLP", "layer 1, MLP"]
    for line, factor in zip(view.lines.values(), (1, 3, 7), strict=True):
        np.testing.assert_allclose(np.asarray(line.y), wanted / factor)
    heads = functools.partial(nl.detect.head_statistics, texts=TEXT)
    assert run(heads, steps=STEPS[:2]).curves().y_label == "mean"


def test_a_line_follows_a_place_not_the_token_in_it() -> None:
    result = run(lambda model: nl.lens.logit_lens(model, "The king went"), steps=STEPS)
    lines = result.curves("probability").lines
    assert len(lines) == 10 and all(len(line.y) == len(STEPS) for line in lines.values())
    kept = result.frame.query("layer == 'final' and pos == 2")
    np.testing.assert_array_equal(lines["final, pos 2,  went"].y, kept["probability"])


def of_one_row(model: Any) -> dict[str, float]:
    small = embedding_norm(model) / 1000
    return {"loss": small, "bits": small / 3, "perplexity": 400 * small}


def of_kinds(model: Any) -> pd.DataFrame:
    kinds = ["distance", "entropy_bits"]
    rows = [
        {"layer": layer, "head": head, "statistic": kind, "whole": whole}
        | {"mean": embedding_norm(model) * (1 + head) + layer}
        for layer in range(2) for head in range(4) for kind in kinds for whole in (True, False)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_numbers_of_different_kinds_have_panels_of_their_own() -> None:
    view = run(of_one_row, steps=[0, 512]).curves()
    assert {name: line.y_label for name, line in view.lines.items()} == {
        "loss": "loss, bits", "bits": "loss, bits", "perplexity": "perplexity",
    }  # fmt: skip
    view = run(of_kinds, steps=[0, 512]).curves()
    assert view.panels == ["distance", "entropy_bits"] and len(view.lines) == 10
    assert all(line.y_label in name for name, line in view.lines.items())
    assert all(re.match(r"L[01]H[0-3], ", name) for name in view.lines)
    assert any(name.endswith("not whole") for name in view.lines)
