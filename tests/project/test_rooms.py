"""The house stands: imports go down, nothing runs round, and the drawing is the house."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest
import rooms
from rooms import CONTRACT, Import, imports, modules, room

FLOOR = rooms.floors()
ALL = list(imports())
MAY_BE_ANYTHING = {
    "compat.transformer_lens.running.Runs._answer(output)": "what forward passes return",
    "compat.transformer_lens.running.Runs.run_with_cache.answer(output)": "likewise",
    "compat.transformer_lens.utils.get_corner(tensor)": "tensors, arrays and lists, as there",
    "compat.transformer_lens.utils.keep_single_column(dataset)": "of datasets, which may be absent",
    "compat.transformer_lens.utils.tokenize_and_concatenate(dataset)": "likewise",
    "dynamics.measures._printed(value)": "whatever a measure holds",
    "dynamics.tensors._fetched(entry)": "JSON of a file that may be damaged",
    "family.heads.GPTNeoXForCausalLM.__setattr__(value)": "users set what they like on a module",
    "frames._column(values)": "whatever pandas makes a column of",
    "kernels.linear._Product.backward(ctx)": "PyTorch has no type for what is kept there",
    "kernels.linear._Product.forward(ctx)": "likewise",
    "model.elsewhere.Elsewhere.__init__(of)": "stands for any module or method",
    "model.elsewhere.Elsewhere._seen(found)": "what such a thing holds",
    "model.elsewhere._moved(value)": "likewise",
    "sae.recipes._Jump.backward(ctx)": "PyTorch has no type for what is kept there",
    "sae.recipes._Jump.forward(ctx)": "likewise",
    "sae.sparse_products._Selected.backward(ctx)": "likewise",
    "sae.sparse_products._Selected.forward(ctx)": "likewise",
    "sae.sparse_products._Summed.backward(ctx)": "likewise",
    "sae.sparse_products._Summed.forward(ctx)": "likewise",
}
"""Parameters of which nothing more can be said than ``Any``, and why."""


def told(wrong: list[Import]) -> str:
    return "\n".join(f"{one.by}:{one.line} imports {one.of}" for one in wrong)


def test_every_room_has_a_floor() -> None:
    found = {room(name) for name in modules()}
    assert found == set(FLOOR), f"say in tests/project/rooms.py where {found ^ set(FLOOR)} stand"


def test_imports_go_down() -> None:
    """Local imports count like any other; types may name what a model is, from any floor."""
    wrong = [
        one
        for one in ALL
        if room(one.by) != room(one.of)
        and FLOOR.get(room(one.of), 0) >= FLOOR.get(room(one.by), 0)
        and not (one.for_types and one.of == CONTRACT)
    ]
    assert not wrong, told(wrong)


def test_no_module_imports_itself_by_a_detour() -> None:
    below = defaultdict(set)
    for one in ALL:
        if not one.for_types:
            below[one.by].add(one.of)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(below[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_only_packages_import_by_name() -> None:
    """``import_module`` hides an arrow; only ``__init__`` files use it, to hand names on late."""
    for name, path in modules().items():
        if path.name != "__init__.py" and "import_module(" in path.read_text(encoding="utf-8"):
            pytest.fail(f"{name} imports by name")


def test_no_module_is_hidden_by_a_name_of_its_package() -> None:
    """``from package import x`` must not mean a function here and a module there."""
    for name, path in modules().items():
        if path.name != "__init__.py":
            continue
        package = importlib.import_module(name)
        inside = {m.removeprefix(f"{name}.") for m in modules() if m.startswith(f"{name}.")}
        for public in inside.intersection(getattr(package, "__all__", ())):
            assert getattr(package, public) is sys.modules[f"{name}.{public}"], f"{name}.{public}"


def functions(tree: ast.AST, at: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a tree, each with where it stands."""
    for node in ast.iter_child_nodes(tree):
        name = f"{at}.{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else at
        if isinstance(node, ast.FunctionDef):
            yield name, node
        yield from functions(node, name)


def test_what_may_be_anything_says_why() -> None:
    """A parameter typed ``Any`` tells neither reader nor checker what it takes."""
    found = set()
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for where, node in functions(tree, name.removeprefix("neox_lab.")):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            found |= {
                f"{where}({argument.arg})"
                for argument in arguments
                if argument.annotation is not None and ast.unparse(argument.annotation) == "Any"
            }
    assert found == set(MAY_BE_ANYTHING)


def test_the_page_shows_the_rooms() -> None:
    shown = rooms.BLOCK.search(rooms.PAGE.read_text(encoding="utf-8"))
    assert shown is not None
    assert rooms.drawing() in shown[0], "run python tests/project/rooms.py"


@pytest.mark.slow
def test_every_module_can_be_the_first_that_is_imported() -> None:
    """A circle that only some orders of import run into would stop somebody else's script."""
    code = f"""
import importlib, sys, torch
for name in {list(modules())!r}:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "neox_lab"]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=rooms.ROOT)
