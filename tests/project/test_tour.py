"""The tour and the command line, on the built-in model and on a checkpoint of transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from oracle import pair, randomize, tokens

import neox_lab as nl
from neox_lab.cli import main
from neox_lab.tour import DEFAULT_PROMPT, occlude, take
from neox_lab.views.live import kinds, script


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
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tour", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
