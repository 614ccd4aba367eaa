"""The package as a whole: importing, the hook table, the documentation page's example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import neox_lab as nl
from neox_lab.hooks.table import as_markdown

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("transformers", "pandas", "matplotlib", "IPython", "ipywidgets", "huggingface_hub")


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, neox_lab; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_the_classes_need_no_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import neox_lab as nl; model = nl.load()\n"
        "print(model.generate(model.to_tokens('The'), max_new_tokens=3).shape)"
    )
    assert run(code).strip() == "torch.Size([1, 4])"


def test_every_public_name_is_there() -> None:
    for name in nl.__all__:
        assert getattr(nl, name) is not None
    assert set(nl.__all__) <= set(dir(nl))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nl.nonsense


def test_the_page_shows_the_hook_table() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    shown = re.search("<!-- hook table -->\n(.*?)\n<!-- end", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == as_markdown(), "run python -m neox_lab.hooks.table"


def test_the_documentation_pages_example(tmp_path: Path, shared: Path) -> None:
    tokenizer = nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = nl.GPTNeoXConfig(**sizes, intermediate_size=64, eos_token_id=0)
    nl.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    model = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path).half()
    tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    prompt = (
        "GPTNeoX20B is a 20B-parameter autoregressive Transformer model developed by EleutherAI."
    )
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    gen_tokens = model.generate(input_ids, do_sample=True, temperature=0.9, max_length=100)
    gen_text = tokenizer.batch_decode(gen_tokens)[0]
    assert gen_text.startswith(prompt)
    assert gen_tokens.shape[1] == 100 or gen_tokens[0, -1] == 0


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_clean(path: Path) -> None:
    assert nl.views.notebook_faults(path) == []
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "image/png" in text, "no picture"


def test_a_model_shows_itself_as_a_tree() -> None:
    model = nl.load()
    shown = repr(model)
    assert shown.startswith(f"GPTNeoXForCausalLM: {model.num_parameters():,} parameters, ")
    inside = [p.name.split(".", 2)[2] for p in model.hook_points.values() if p.layer == 0]
    for name in ("hook_embed", "unembed.hook_out", "ln_final.hook_scale", *inside):
        assert name in shown
        assert f"<code>{name}</code>" in model._repr_html_()
    assert "hook points" in model._repr_html_()
