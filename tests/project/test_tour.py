"""The tour and the command line, on the built-in model and on a checkpoint of transformers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import pair, randomize, tokens

import neox_lab as nl
from neox_lab.cli import main
from neox_lab.laboratory import notebooks
from neox_lab.tour import DEFAULT_PROMPT, occlude, sections, take
from neox_lab.views.live import kinds, script

ROOT = Path(__file__).resolve().parents[2]


def test_occlusion_replaces_one_token_at_a_time() -> None:
    model = pair(eos_token_id=0)[1]
    ids = tokens(1, 5)
    changed = ids.clone()
    changed[0, 3] = 0
    expected = model(changed).logits[0, -1].log_softmax(-1)[9]
    torch.testing.assert_close(occlude(model, ids, 9)[3], expected)


def test_the_tour_of_the_built_in_model() -> None:
    tour = take(nl.load(), DEFAULT_PROMPT, new_tokens=3)
    assert tour.activations == len(nl.load().hook_names)
    assert tour.clean >= float(tour.occlusion.min())
    assert tour.continuation.startswith(" Stockholm") and tour.clean > -0.1, "one it does well"
    told = sections(tour, nl.load())[-1][1] or ""
    for words in (tour.patching.title, told):  # what was replaced, and with what
        assert "<|endoftext|>" in words
        assert f"token {tour.corrupted} (" in words
        assert tour.pieces[tour.corrupted].strip() in words
    assert f"from {tour.clean:.2f} to {float(tour.occlusion[tour.corrupted]):.2f}" in told
    restored = tour.patching.values
    assert restored[0, tour.corrupted] == pytest.approx(1, abs=1e-4)
    assert abs(restored[:, : tour.corrupted]).max() == 0


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main(["tour", "--prompt", "We the people of <b>", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{nl.load().num_parameters():,} parameters" in printed
    assert "share of the prediction restored" in printed
    page = out.read_text(encoding="utf-8")
    assert set(re.findall(r"<script>(.*?)</script>", page, re.DOTALL)) <= set(map(script, kinds()))
    page = page.replace("http://www.w3.org/2000/svg", "")  # a name, nothing is fetched
    assert "<b>" not in page, "text from outside is escaped"
    assert "http://" not in page
    assert "https://" not in page


def test_the_command_on_a_checkpoint_of_transformers(tmp_path: Path, shared: Path) -> None:
    config = transformers.GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    theirs = transformers.GPTNeoXForCausalLM(config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    file = str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file).save_pretrained(tmp_path)
    out = tmp_path / "report.html"
    assert (
        main(["tour", "--model", str(tmp_path), "--prompt", "Hello world", "--out", str(out)]) == 0
    )
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "nowhere"),
        (["--prompt", "a"], "at least two tokens"),
        (["--prompt", "We the people", "--out", "report.txt"], ".html"),
        (["--prompt", ""], "empty"),
        (["--prompt", "king " * 2400], "up to 256"),
        (["--out", "nowhere/report.html"], "no folder"),
        (["--out", "folder.html"], "is a folder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    assert main(["tour", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("neox_lab ")


def command(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own, of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "neox_lab.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )


def test_a_terminal_without_our_letters_gets_escapes(tmp_path: Path) -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    running = command("tour", "--prompt", "The king went", cwd=tmp_path, env=environment)
    printed, wrong = running.communicate(timeout=240)
    assert running.returncode == 0, wrong
    assert b"\\u" in printed and b"Traceback" not in wrong
    assert (tmp_path / "neox-lab-tour.html").is_file()


def test_ctrl_c_is_for_the_tour_and_not_for_a_question_in_it() -> None:
    """Alone, generation returns what there is."""
    model, runs = nl.load(), 0

    def interrupt(value: Any, hook: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise KeyboardInterrupt

    with model.hooks([("blocks.0.hook_resid_pre", interrupt)]), pytest.raises(KeyboardInterrupt):
        take(model, DEFAULT_PROMPT)


def test_ctrl_c_and_a_reader_who_leaves_are_no_errors(tmp_path: Path) -> None:

    def hears_ctrl_c() -> None:  # background jobs of a shell begin deaf to it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    running = command("tour", "--prompt", "The king went", cwd=tmp_path, preexec_fn=hears_ctrl_c)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    _, wrong = running.communicate(timeout=240)
    # Python itself is still starting on a slow machine: then it says so in its own words.
    assert running.returncode in (130, -signal.SIGINT, 1), wrong
    if running.returncode == 130:
        assert wrong == b"neox-lab: stopped\n"
    left = command("tour", "--prompt", "The king went", cwd=tmp_path)
    assert left.stdout is not None and left.stderr is not None
    left.stdout.close()
    left.wait(timeout=240)
    assert b"Traceback" not in left.stderr.read()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have started JupyterLab."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: commands.append(command) or 0)
    return commands


def test_the_notebooks_are_copied_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    pytest.importorskip("jupyterlab")
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "--port", "8899", "--allow-root"]) == 0
    folder = tmp_path / "neox_lab_notebooks"
    source = notebooks()
    assert source is not None
    assert {p.name for p in folder.glob("*.ipynb")} == {p.name for p in source.glob("*.ipynb")}
    assert started[-1][3:] == [
        "neox_lab_notebooks/00_start_here.ipynb",
        "--port=8899",
        "--allow-root",
    ]
    changed = folder / "00_start_here.ipynb"
    changed.write_text("mine")
    assert main(["lab"]) == 0
    assert changed.read_text() == "mine", "what is there is left as it is"
    (tmp_path / "file").write_text("")
    assert main(["lab", "--folder", "file"]) == 1


def test_the_explorer_opens_run_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    pytest.importorskip("jupyterlab")
    monkeypatch.chdir(tmp_path)
    text = 'It\'s "quoted"'
    for _ in range(2):
        assert main(["explore", "--prompt", text]) == 0
    names = [command[3] for command in started]
    assert names == ["explore.ipynb", "explore-2.ipynb"]
    made = json.loads((tmp_path / "explore.ipynb").read_text(encoding="utf-8"))
    assert made["cells"][0]["source"][-1] == f"nl.explore(nl.load(), {text!r})"
    kinds_shown = {kind for out in made["cells"][0]["outputs"] for kind in out.get("data", {})}
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= kinds_shown
    assert main(["explore", "--prompt", ""]) == 1
    assert main(["explore", "--model", "./nowhere", "--prompt", "a"]) == 1
    assert not (tmp_path / "explore-3.ipynb").exists()
