"""Everything that writes files goes through ``neox_lab/files.py``: read from the source."""

from __future__ import annotations

import ast

import pytest
from rooms import PACKAGE

WRITING_METHODS = {"write_text", "write_bytes", "touch", "tofile", "savez", "save_file"}
MOVING = (
    "os.replace",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.",
    "tempfile.mk",
)
TABLES = {"to_csv", "to_json", "to_parquet", "to_pickle", "to_excel", "to_feather"}
EXCEPTIONS = {
    ("gym/train.py", "shutil.rmtree(options.out / 'run')"): "removes a run it began itself",
    (
        "gym/dictionary_training.py",
        "shutil.rmtree(options.out / 'run')",
    ): "removes a run it began itself",
    ("data/activations.py", "np.memmap(path, dtype=np.float32, mode='r+', shape=shape)"): (
        "in a temporary directory, in room that was reserved"
    ),
    ("tokenizer/fast.py", "self._backend.model.save(folder)"): "into a temporary directory",
}


def _is_staged(place: ast.expr) -> bool:
    """Whether it is what staging a file gave: ``stage(...)``, or a name that says so."""
    if isinstance(place, ast.Call):
        return ast.unparse(place.func) == "stage"
    return isinstance(place, ast.Name) and place.id == "temporary"


def _mode(call: ast.Call, position: int) -> str:
    given = [word.value for word in call.keywords if word.arg == "mode"]
    given += call.args[position : position + 1]
    return str(ast.literal_eval(given[0])) if given else "r"


def writes(source: str) -> list[str]:
    """The calls that write to a place which nobody staged."""
    found = []
    tree = ast.parse(source)
    buffers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in ("io.BytesIO()", "BytesIO()")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    opened = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name)
        and isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func) == "open"
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        first = call.args[0] if call.args else None
        bad = False
        if name == "open":
            assert first is not None
            bad = bool(set(_mode(call, 1)) & set("wax+")) and not _is_staged(first)
        elif method == "open" and owner is not None and ast.unparse(owner) not in ("Image", "os"):
            bad = bool(set(_mode(call, 0)) & set("wax+")) and not _is_staged(owner)
        elif method in WRITING_METHODS and owner is not None:
            bad = not _is_staged(owner)
        elif name in ("save_file", "safetensors.torch.save_file") or name.startswith(MOVING):
            bad = True
        elif name == "torch.save":  # by itself it does not say why it cannot write
            bad = ast.unparse(call.args[1]) not in opened | buffers
        elif name in ("np.save", "numpy.save", "json.dump", "pickle.dump"):
            bad = not (ast.unparse(call.args[1]) in opened | buffers or _is_staged(call.args[1]))
        elif method in ("savefig", "save") and name not in ("checkpoints.save", "files.save"):
            bad = first is None or ast.unparse(first) not in buffers
        elif method in TABLES and owner is not None and ast.unparse(owner).endswith("frame"):
            bad = first is not None
        elif name.endswith("memmap"):
            bad = True
        if bad:
            found.append(ast.unparse(call))
    return found


def test_the_package_writes_through_one_module() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), call)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "files.py"
        for call in writes(path.read_text(encoding="utf-8"))
    }
    assert found == EXCEPTIONS.keys(), "stage the file (neox_lab/files.py) and write to `temporary`"


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "Path(path).open('rb+')",
        "path.write_text('a')",
        "(folder / 'a').write_bytes(b'')",
        "torch.save(state, path)",
        "torch.save(state, temporary)",
        "save_file(tensors, path)",
        "card.save(path)",
        "os.replace(a, b)",
        "shutil.move(a, b)",
        "figure.savefig(path)",
        "self.frame.to_csv(path)",
    ],
)
def test_a_call_that_writes_in_place_is_found(source: str) -> None:
    assert writes(source) == [ast.unparse(ast.parse(source).body[0])]


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(temporary, 'wb')",
        "path.open('rb')",
        "stage(path).write_text('a')",
        "with open(temporary, 'wb') as file:\n    torch.save(state, file)",
        "out = io.BytesIO()\nfigure.savefig(out)",
        "self.frame.to_csv(index=False)",
    ],
)
def test_reading_and_staged_files_are_no_fault(source: str) -> None:
    assert writes(source) == []
