"""The rooms of the package, from the ground up: written down here and nowhere else.

The drawing in ``docs/architecture.md`` is made from this list by ``python tests/project/rooms.py``,
and ``test_rooms.py`` reads every import and holds it against it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "neox_lab"
CONTRACT = "neox_lab.family.contract"
"""What any room may name in a type: what a model is."""

FLOORS: tuple[tuple[str, str], ...] = (
    ("errors.py", "what can go wrong, in one tree"),
    ("other_names.py", "what TransformerLens calls things, for messages"),
    ("other_dictionary_names.py", "what libraries of dictionaries call things, likewise"),
    (
        "checks.py memory.py padding.py progress.py",
        "small tools: values in range, memory, rows of one length, bars",
    ),
    ("interrupts.py", "Ctrl-C: kept waiting for a moment, or ending what needs the whole"),
    ("executors.py", "independent pieces of work, sent to other processes and machines"),
    ("notices.py", "what must be known about an answer"),
    ("named.py", "mappings that say what they have"),
    ("frames.py", "tables of numbers and of any text"),
    ("kinship.py", "being taken for transformers' classes"),
    ("head_names.py", "how a head is called"),
    ("selections.py", "which entries of an axis, read in one way"),
    ("dropout.py", "one gate at the door of every question"),
    ("sizes.py", "sizes of memory and files, as people write them"),
    ("files.py", "files whole or absent"),
    ("work_folders.py", "folders that one piece of work has for itself"),
    ("safetensors_files.py", "tensors with a description, in one kind of file"),
    (
        "hub_answers.py steps.py hub_models.py",
        "what a hub may answer; names of revisions and of models",
    ),
    ("hub.py hub_upload.py", "where files come from, and go to"),
    ("hub_revisions.py", "which revisions a hub has, and what each holds"),
    ("config/ tokenizer/", "what a model is; text to tokens and back"),
    ("views/", "results as pictures, knowing nobody"),
    ("results.py", "what every answer does to be seen, saved and compared"),
    ("kernels/", "products and layouts of weights: how fast, never what"),
    ("model/", "the pure network: hook points, rotary, attention, block, the one loop"),
    ("streaming/", "layers of models larger than memory, read from their files as they are needed"),
    ("hooks/", "the table, names, hooking, caching, taking the stream apart"),
    ("checkpoint/ generation/", "files to tensors and back; tokens one after another"),
    ("built_in.py", "where the built-in model lies"),
    ("family/", "the contract of a hooked model; the five classes; nl.load"),
    ("data/", "tables, padding, batches, activations of many texts, statistics"),
    ("activations/", "activations of texts in a folder: collected once, read many times"),
    ("experiments/", "questions: patching, paths, attribution, lens, detection, probing"),
    ("sae/", "dictionaries of features: read, proven, spliced in, trained"),
    ("circuits/", "circuits: edges scored, chosen, tested against chance"),
    ("interchange/", "does a site carry a variable: exchanges, DAS, causal models, nulls"),
    ("features/", "questions about features: where active, to what effect, in which circuit"),
    ("dynamics/", "questions over training: revisions, their audit, one measure at many steps"),
    ("tasks/", "train, evaluate and use the heads"),
    ("gym/", "the built-in model's world, training and tests"),
    ("steering/", "directions: found, judged, steered along, taken out"),
    ("completion.py widgets/", "tab completion; live controls"),
    ("compat/", "other libraries' names, on ours"),
    ("__init__.py", "the names users type"),
    ("tour.py", "the main job without a notebook, in those names"),
    ("laboratory.py", "JupyterLab on the notebooks, or on the explorer"),
    ("cli.py", "the command"),
)
"""Rooms of one floor and what they are for. A room imports from floors above it in this list."""


@dataclass(frozen=True)
class Import:
    """One import of one of the package's modules by another.

    Attributes:
        by: the module that imports.
        of: the module that is imported.
        line: where.
        for_types: it stands under ``if TYPE_CHECKING`` and never runs.
    """

    by: str
    of: str
    line: int
    for_types: bool


def floors() -> dict[str, int]:
    """The number of each room's floor, 0 for the ground."""
    return {
        room.removesuffix("/").removesuffix(".py"): number
        for number, (rooms, _) in enumerate(FLOORS)
        for room in rooms.split()
    }


def room(module: str) -> str:
    """The room a module stands in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports() -> Iterator[Import]:
    """Every import of one module of the package by another, wherever it stands in the file."""
    known = modules()
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(inside)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for statement in node.body
            for inside in ast.walk(statement)
        }
        for node in ast.walk(tree):
            for target in _targets(node, known):
                if target != name:
                    yield Import(name, target, getattr(node, "lineno", 0), id(node) in for_types)


def _targets(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    if isinstance(node, ast.ImportFrom) and node.module in known:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in known else node.module


def drawing() -> str:
    """The floors as the page shows them."""
    widest = max(len(rooms) for rooms, _ in FLOORS)
    lines = [f"  {rooms:<{widest}}  {words}".rstrip() for rooms, words in FLOORS]
    return "\n".join(["```", "neox_lab/", *lines, "```"])


PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile("(<!-- rooms -->\n).*?(\n<!-- end of rooms -->)", re.DOTALL)


def write_page() -> None:
    """Put the drawing into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda m: m[1] + drawing() + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    write_page()
    sys.stdout.write(drawing() + "\n")
