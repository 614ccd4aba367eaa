"""Revisions and their audit: hashes of files against names, with faults planted in each way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_hub import Repository, SmallHub

import neox_lab as nl
from neox_lab.built_in import weights_directory
from neox_lab.errors import CheckpointError
from neox_lab.steps import nearest_revisions, step_of

STEPS = [0, *(2**power for power in range(10)), *range(1000, 143_001, 1000)]
NAME = "EleutherAI/pythia-70m"


def pythia(shards: int = 1, form: str = "safetensors") -> Repository:
    """A repository with Pythia's 154 branches and ``main``, each with weights of its own."""
    repository = Repository(empty=True)
    repository.refs, repository.commits = {}, {}
    for step in STEPS:
        parts = {part: b"%d %d" % (step, part) * 50 for part in range(1, shards + 1)}
        put(repository, f"step{step}", shard_files(parts, form))
    last = repository.commits[repository.refs["step143000"]]
    put(repository, "main", last)
    return repository


def shard_files(parts: dict[int, bytes], form: str) -> dict[str, bytes]:
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    if len(parts) == 1:
        return {f"{stem}.{form}": parts[1]}
    return {f"{stem}-{n:05d}-of-{len(parts):05d}.{form}": data for n, data in parts.items()}


def put(repository: Repository, name: str, files: dict[str, bytes]) -> None:
    commit = hashlib.sha1(f"{name} {sorted(files.items())}".encode()).hexdigest()
    config = {"config.json": b'{"model_type": "gpt_neox"}', "README.md": b"a" * 3000}
    repository.commits[commit] = {**config, **files}
    repository.refs[name] = commit


def files_of(repository: Repository, name: str) -> dict[str, bytes]:
    files = repository.commits[repository.refs[name]]
    return {k: v for k, v in files.items() if k.endswith(("bin", "safetensors"))}


def asked(hub: SmallHub) -> list[str]:
    """What was asked about models; huggingface_hub may ask other things."""
    return [request for request in hub.requests if "/lab/" in request or NAME in request]


def faults(result: nl.dynamics.AuditResult) -> dict[str, str]:
    return dict(zip(result.bad["revision"], result.bad["fault"], strict=True))


def test_what_names_say() -> None:
    said = {
        "step0": 0,
        "step143000": 143000,
        "checkpoint-500": 500,
        "global_step20": 20,
        "stage1-step5000-tokens21B": 5000,
        "main": None,
        "stepping-stone1": None,
        "mystep7": None,
        "step": None,
        "v1.0": None,
    }
    assert {name: step_of(name) for name in said} == said
    known = ["main", "step0", "step1000", "step2000"]
    assert nearest_revisions("step1500", known).endswith("'step1000' and 'step2000'.")
    assert nearest_revisions("step9000", known).endswith("exist: 'step2000'.")
    assert "'main'" in nearest_revisions("mian", known)


def test_revisions_of_a_sound_repository(hub: SmallHub) -> None:
    hub.repositories[NAME] = pythia()
    start = time.perf_counter()
    frame = nl.dynamics.revisions(NAME)
    seconds, sent = time.perf_counter() - start, sum(hub.sent)
    print(f"155 revisions: {seconds:.2f} s, {sent} bytes, {len(asked(hub))} requests")
    assert len(asked(hub)) == 156 and sent < 5_000_000
    assert not any("resolve" in request for request in asked(hub))
    assert frame["revision"].tolist() == [*(f"step{step}" for step in STEPS), "main"]
    assert frame["step"].tolist()[:-1] == STEPS and pd.isna(frame["step"].iloc[-1])
    assert frame["tokens"].iloc[-2] == 299_892_736_000  # as the paper counts
    row = frame.iloc[20]
    data = files_of(hub.repositories[NAME], row["revision"])["model.safetensors"]
    at = row["files"].index("model.safetensors")
    assert row["sizes"][at] == len(data)
    assert row["hashes"][at] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert row["place"] == hub.repositories[NAME].refs[row["revision"]]

    hub.requests.clear()
    result = nl.dynamics.audit(NAME)
    assert len(asked(hub)) == 1, "a commit is asked for once"
    assert result.bad.empty and result.sentences == () and result.missing == ()
    put(hub.repositories[NAME], "step8", {"model.safetensors": b"new"})
    hub.requests.clear()
    again = nl.dynamics.revisions(NAME)
    assert len(asked(hub)) == 2
    assert (again["weights"] != frame["weights"]).sum() == 1


def test_a_repository_as_the_one_of_pythia_2_8b(hub: SmallHub) -> None:
    """Most early steps are final, ten others share a file, and ``main`` is wrapped otherwise."""
    repository = hub.repositories[NAME] = pythia()
    final = {"model.safetensors": b"the finished model"}
    other = {"model.safetensors": b"the finished model, in another file"}
    early = [f"step{step}" for step in STEPS if step <= 53_000]
    late = ["step54000", *(f"step{step}000" for step in (56, 57, 58, 59, 61, 62, 63, 64, 143))]
    for name in (*early, "main"):
        put(repository, name, final)
    for name in late:
        put(repository, name, other)
    result = nl.dynamics.audit(NAME)
    assert set(faults(result)) == {*early, *late} - {"step143000"}
    assert all("main" in faults(result)[name] for name in early)
    assert len(set(result.frame["group"].dropna())) == 2
    assert any(s.startswith("64 steps have the weights of main") for s in result.sentences)
    assert any("9 steps have the same weights as step143000" in s for s in result.sentences)
    assert any("main is not the same file as step143000" in s for s in result.sentences)
    assert "64 steps have the weights of main" in repr(result)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_of_two_steps(hub: SmallHub, form: str) -> None:
    repository = hub.repositories[NAME] = pythia(3, form)
    final, own = files_of(repository, "main"), files_of(repository, "step50000")
    first = min(final)
    put(repository, "step50000", {**own, first: final[first]})
    borrowed = files_of(repository, "step58000")
    put(repository, "step9000", {**files_of(repository, "step9000"), first: borrowed[first]})
    result = nl.dynamics.audit(NAME)
    assert set(faults(result)) == {"step50000", "step58000", "step9000"}
    assert faults(result)["step50000"] == f"shards of main: {first}"
    assert "step58000" in faults(result)["step9000"]
    assert result.frame["group"].dropna().nunique() == 1  # main and the last step
    assert sum("mixes two revisions" in sentence for sentence in result.sentences) == 3


def test_what_is_not_there(hub: SmallHub) -> None:
    repository = hub.repositories[NAME] = pythia(2)
    del repository.refs["step40000"], repository.refs["step2"]
    put(repository, "step4", {})
    lacking = files_of(repository, "step8")
    put(repository, "step8", {max(lacking): lacking[max(lacking)]})
    put(repository, "step1", files_of(repository, "step0"))
    result = nl.dynamics.audit(NAME)
    assert result.missing == (2, 40_000)
    assert faults(result) == {
        "step0": "same weights as step1",
        "step1": "same weights as step0",
        "step4": "no weights",
        "step8": "1 shards missing (safetensors)",
    }
    assert any("learning rate of 0" in sentence for sentence in result.sentences)


def test_an_earlier_step_than_the_last_is_main(hub: SmallHub) -> None:
    repository = hub.repositories["lab/other"] = pythia()
    put(repository, "main", files_of(repository, "step9000"))
    result = nl.dynamics.audit("lab/other")
    assert faults(result) == {"step9000": "same weights as main"}
    assert result.frame["tokens"].isna().all(), "of a model that is no Pythia nothing is guessed"


def test_wrong_names(hub: SmallHub) -> None:
    hub.repositories[NAME] = pythia()
    with pytest.raises(CheckpointError, match=r"'step1500'.*'step1000' and 'step2000'"):
        nl.load(NAME, revision="step1500")
    with pytest.raises(CheckpointError, match=r"'step1500'.*exist|'step1000' and 'step1250'"):
        nl.load(revision="step1100")
    with pytest.raises(CheckpointError, match="shows no model 'lab/nothing'"):
        nl.dynamics.revisions("lab/nothing")
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        nl.dynamics.revisions(3)  # type: ignore[arg-type]


def test_without_the_hub(hub: SmallHub) -> None:
    hub.repositories[NAME] = pythia()
    nl.dynamics.revisions(NAME)
    hub.down = True
    with pytest.raises(CheckpointError, match="cannot be reached"):
        nl.dynamics.revisions("lab/never-seen")


@pytest.mark.parametrize("answer", ["commit", "hash", "path"])
def test_a_hub_whose_answers_lead_elsewhere(
    hub: SmallHub, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories[NAME] = pythia()
    if answer == "commit":
        repository.refs["step3"] = "../../elsewhere"
        repository.commits["../../elsewhere"] = {}
    elif answer == "path":
        put(repository, "step1", {"../../model.safetensors": b"x"})
    else:
        import small_hub

        entry = {"type": "file", "path": "model.bin", "size": 3, "oid": "../../x"}
        monkeypatch.setattr(small_hub, "_entry", lambda *_: entry)
    with pytest.raises(CheckpointError):
        nl.dynamics.revisions(NAME)


def test_the_built_in_model() -> None:
    frame = nl.dynamics.revisions()
    assert frame["revision"].tolist() == [*nl.gym.revisions(), "main"]
    record = json.loads((weights_directory() / "training.json").read_text())
    last = frame[frame["step"] == record["steps"]]
    assert last["tokens"].item() == record["training_tokens"]
    result = nl.dynamics.audit()
    assert result.bad.empty and not result.sentences


def checkpoints(folder: Path, names: dict[str, float]) -> Path:
    """A directory of small checkpoints whose weights are a number."""
    for name, value in names.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
        torch.save({"w": torch.full((8,), value)}, folder / name / "pytorch_model.bin")
    return folder


def test_a_directory_of_checkpoints(tmp_path: Path) -> None:
    names = {f"checkpoint-{step}": step for step in (100, 200, 300, 400, 500, 700, 800)}
    folder = checkpoints(tmp_path / "run", {**names, "checkpoint-800": 300})
    (folder / "runs").mkdir()
    state = {"global_step": 200, "num_input_tokens_seen": 12345}
    (folder / "checkpoint-200" / "trainer_state.json").write_text(json.dumps(state))
    (folder / "checkpoint-300" / "config.json").write_text('{"tokens_per_step": 64}')
    result = nl.dynamics.audit(folder)
    assert result.missing == (600,)
    assert faults(result) == {"checkpoint-300": "same weights as checkpoint-800"}
    assert any("as checkpoint-800, the last step" in sentence for sentence in result.sentences)
    tokens = dict(zip(result.frame["step"], result.frame["tokens"], strict=True))
    assert tokens[200] == 12345 and tokens[300] == 19200 and pd.isna(tokens[100])

    # A file that was written again is hashed again, at the same size.
    weights = folder / "checkpoint-300" / "pytorch_model.bin"
    torch.save({"w": torch.full((8,), 1.5)}, weights)
    os.utime(weights, ns=(1, 1))
    assert nl.dynamics.audit(folder).bad.empty
    shutil.rmtree(folder / "checkpoint-800")
    assert nl.dynamics.audit(str(folder)).missing == (600,)


def test_large_files_that_differ_in_one_place(tmp_path: Path) -> None:
    """As when all but one layer was frozen: the parts that are hashed agree, the files do not."""
    data = bytearray(os.urandom(1 << 20) * 40)
    for step in (1, 2, 3):
        (tmp_path / f"step{step}").mkdir()
        data[300_000] = 3 if step == 3 else 1  # between two parts
        (tmp_path / f"step{step}" / "pytorch_model.bin").write_bytes(data)
    result = nl.dynamics.audit(tmp_path)
    assert faults(result) == {
        "step1": "same weights as step2",
        "step2": "same weights as step1",
    }
    assert result.frame["weights"].nunique() == 2


@pytest.mark.parametrize("numbers", [8, 5_000_000])
def test_equal_tensors_with_other_notes_beside_them(tmp_path: Path, numbers: int) -> None:
    tensor = torch.randn(numbers, generator=torch.Generator().manual_seed(0))
    for step in (1, 2, 3, 4):
        (tmp_path / f"step{step}").mkdir()
        if step == 3:
            tensor[numbers // 3] += 1
        tensors = {"w" if step < 4 else "v": tensor}
        notes = {"format": "pt", "step": str(step)}
        save_file(tensors, tmp_path / f"step{step}" / "model.safetensors", notes)
    result = nl.dynamics.audit(tmp_path)
    assert faults(result) == {"step1": "same weights as step2", "step2": "same weights as step1"}
    assert result.frame["weights"].nunique() == 4, "files are named by all their bytes"


def test_a_directory_without_steps(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folders of checkpoints with steps"):
        nl.dynamics.revisions(weights_directory())
    with pytest.raises(CheckpointError, match="no directory"):
        nl.dynamics.audit(tmp_path / "nothing")


def test_the_picture_of_an_audit(hub: SmallHub, tmp_path: Path) -> None:
    repository = hub.repositories[NAME] = pythia()
    for name in ("step16", "step32"):
        put(repository, name, files_of(repository, "main"))
    result = nl.dynamics.audit(NAME)
    view = result.view()
    marked = {piece.text for piece in view.pieces if piece.kind}
    assert marked == {"16", "32", "143000", "main"}
    assert {piece.kind for piece in view.pieces if piece.kind} == {"equal weights 1"}
    assert [piece.text for piece in view.pieces if piece.note] == ["16", "32"]
    result.to_html(tmp_path / "audit.html")
    assert "2 steps have the weights of main" in (tmp_path / "audit.html").read_text()
    assert result.to_png()[:4] == b"\x89PNG"
