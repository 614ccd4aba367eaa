"""Every line of ``docs/coming-from.md`` runs, and where both sides give numbers they agree.

Our lines run on the built-in model under the name of Pythia's smallest. TransformerLens's lines run
through the door, and those of transformers in transformers, where it is installed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rooms import ROOT
from torch import Tensor

import neox_lab as nl
from neox_lab.gym import weights_directory

TEXT = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
PART = re.compile(r"^```(python(?: theirs)?)\n(.*?)^```$|^(\|[^\n]*\|)$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"^`([^`]+)`$")
WHAT_DIFFERS = "| number |"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hub's cache with the built-in model under the name of Pythia's smallest."""
    folder = tmp_path_factory.mktemp("hub")
    model = folder / "models--EleutherAI--pythia-70m"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    (model / "snapshots").mkdir()
    (model / "snapshots" / ("a" * 40)).symlink_to(weights_directory())
    with pytest.MonkeyPatch.context() as patch:
        for place in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            patch.setattr(f"huggingface_hub.constants.{place}", str(folder), raising=False)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield folder


def run(code: str, names: dict[str, Any]) -> Any:
    """Run lines, and give the value of the last one: of an expression, or of what it names."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(tree.body[:-1], []), "<page>", "exec"), names)
        return eval(compile(ast.Expression(last.value), "<page>", "eval"), names)
    exec(compile(tree, "<page>", "exec"), names)
    if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Name):
        return names[last.targets[0].id]
    return None


def same(theirs: Any, ours: Any) -> bool:
    """Whether two values of one kind agree; of two kinds nothing is said."""
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor) and theirs.shape == ours.shape:
        seen = theirs.isfinite()
        scale = float(theirs[seen].abs().max().clamp(min=1))
        return bool(((theirs - ours)[seen].abs() <= 1e-4 * scale).all())
    if isinstance(theirs, str | int | list) and isinstance(ours, type(theirs)):
        return bool(theirs == ours)
    return True


def parts(section: str) -> Iterator[tuple[str, str, str]]:
    """What stands in a section: for each part, what it is about, their code and ours."""
    for kind, block, row in PART.findall(section.partition("**Numbers that differ")[0]):
        if row:
            what, theirs, ours = (cell.strip() for cell in row.strip("|").split("|"))
            if CODE.match(ours):
                found = CODE.match(theirs)
                yield what, found[1] if found else "", CODE.match(ours)[1]  # type: ignore[index]
        elif kind == "python":
            yield "block", "", block
        else:
            yield "block", block, ""


def start() -> dict[str, Any]:
    names: dict[str, Any] = {}
    run(TEXT.partition("## ")[0].split("```python\n")[1].split("```")[0], names)
    return names


def walk(name: str, there: dict[str, Any] | None) -> int:
    """Run a section on both sides, as far as there is another side; count what was compared."""
    here, count = start(), 0
    for what, theirs, ours in parts(SECTIONS[name]):
        value = run(ours, here) if ours else None
        if theirs and there is not None:
            other = run(theirs, there)
            assert same(other, value), f"{name}, {what}: {other} there, {value} here"
            count += value is not None and type(other) is type(value)
    return count


@pytest.mark.parametrize("name", ["SAELens", "nnsight", "pyvene", "baukit"])
@pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")
def test_our_lines(name: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    walk(name, None)


def test_transformer_lens(hub: Path) -> None:
    from neox_lab.compat import transformer_lens

    there = start()
    door = transformer_lens.HookedTransformer
    there["model"] = door.from_pretrained_no_processing("pythia-70m")
    there |= {"HookedTransformer": door, "transformer_lens": transformer_lens}
    assert walk("TransformerLens", there) > 20


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="compares with transformers"
)
@pytest.mark.filterwarnings("ignore")
def test_transformers(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"text": start()["text"]}
    assert walk("transformers", there) > 5


def test_the_page_has_what_it_is_about() -> None:
    libraries = ["TransformerLens", "transformers", "SAELens", "nnsight", "pyvene", "baukit"]
    assert list(SECTIONS) == libraries
    limits = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert set(libraries) <= set(re.findall("^### (.+)$", limits, re.MULTILINE))
    rows = [part for section in SECTIONS.values() for part in parts(section)]
    assert len(rows) > 60
    assert torch.is_tensor(nl.load().W_E)
