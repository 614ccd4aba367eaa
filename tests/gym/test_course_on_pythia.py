"""The notebooks run on any Pythia: here on random weights of its shape, with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import neox_lab as nl

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT.parent / "shared" / "data" / "gpt-neox-20b-tokenizer.json"
FEW = ("00_start_here", "05_activation_patching", "24_heads_in_weights_and_texts")
"""Each asks something of another kind: of a prompt, of pairs of prompts, of weights."""


def random_pythia(folder: Path) -> Path:
    """A checkpoint of six layers; attention is far from even, and no bias is zero."""
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        rotary_pct=0.25,
    )
    model = nl.GPTNeoXForCausalLM(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not TOKENIZER.is_file(), reason="needs GPT-NeoX's tokenizer in shared/data")
@pytest.mark.parametrize("name", FEW)
def test_notebooks_run_on_a_random_pythia(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("NEOX_LAB_MODEL", str(random_pythia(tmp_path)))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600).execute(cwd=ROOT / "notebooks")
    shown = str([cell.get("outputs") for cell in notebook["cells"]])
    assert "1,054,464" not in shown, "not the built-in model"
