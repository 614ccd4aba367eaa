"""Pages of the site that lie elsewhere in the repository, or are made from docstrings.

``mkdocs`` calls what begins with ``on_``. Nothing is imported from the package, so the site needs
neither torch nor a kernel.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CITATION.cff": "CITATION.cff",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "LICENSE",
    "benchmarks/README.md": "benchmarks.md",
    "neox_lab/gym/README.md": "built-in-model-card.md",
}
"""Where files of the repository stand on the site; ``docs/`` is its root."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```python\n.*?^```$", re.DOTALL | re.MULTILINE)


def place(path: str) -> str:
    """Where a file of the repository stands on the site."""
    return PLACES.get(path, path.removeprefix("docs/"))


def moved(text: str, path: str) -> str:
    """The text of a file with its links as they are on the site."""

    def link(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(path), found[1]))
        return os.path.relpath(place(target), os.path.dirname(place(path)) or ".")

    return LINK.sub(link, text)


def constant(path: Path, name: str) -> Any:
    """The value of a constant in a Python file, read and not run; None if there is none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def source(module: str) -> Path:
    """The file of a module."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def described(module: str, name: str) -> str:
    """What documents a module under the name users type; its modules follow it."""
    listed = constant(source(module), "__all__") or []
    inside = {each: f"{module}.{each}" for each in listed if source(f"{module}.{each}").exists()}
    names = [each for each in listed if each not in inside]
    options = f"    options:\n      members: {names}\n" if names else ""
    later = "".join(f"## {name}.{each}\n\n{entry(path, 3)}" for each, path in inside.items())
    return f"# {name}\n\n::: {module}\n{options}\n{later}"


def entry(path: str, level: int, heading: str = "") -> str:
    """What documents one thing; without a heading, what is in it."""
    title = f"      show_root_heading: true\n      heading: {heading}\n" if heading else ""
    return f"::: {path}\n    options:\n      heading_level: {level}\n{title}\n"


def reference() -> dict[str, str]:
    """A page for each room that users type, and one for the names beside them."""
    package = source("neox_lab")
    rooms, homes = constant(package, "_ROOMS"), constant(package, "_HOME")
    pages = {f"api/{room}.md": described(path, f"nl.{room}") for room, path in rooms.items()}
    names = (entry(f"{home}.{name}", 2, f"nl.{name}") for name, home in homes.items())
    return {"api/index.md": "# nl\n\n" + "".join(names), **pages}


NOTEBOOKS = sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb"))
REFERENCE = reference()


def on_config(config: Any) -> Any:
    """List the pages that are made here in the navigation."""
    listed = {"Notebooks": NOTEBOOKS, "API": list(REFERENCE)}
    for part in config.nav:
        if isinstance(part, dict):
            part.update({name: pages for name, pages in listed.items() if name in part})
    return config


@event_priority(100)  # before the notebooks among the files are looked for
def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for path, at in PLACES.items():
        files.append(File.generated(config, at, abs_src_path=str(ROOT / path)))
    for at in NOTEBOOKS:
        files.append(File(at, str(ROOT), config.site_dir, config.use_directory_urls))
    for at, text in REFERENCE.items():
        files.append(File.generated(config, at, content=text))
    return files


def with_pictures(page: str, folder: Path = ROOT / "docs" / "gallery") -> str:
    """The gallery with each picture below its block; as it is where none were drawn."""
    words = folder / "words.json"
    known = json.loads(words.read_text(encoding="utf-8")) if words.exists() else {}
    numbers = itertools.count()

    def shown(block: re.Match[str]) -> str:
        at = f"{next(numbers):02}"
        said = re.sub(r"[\[\]\n]", " ", known.get(at, ""))
        return f"{block[0]}\n\n![{said}](gallery/{at}.png)" if at in known else block[0]

    return BLOCK.sub(shown, page)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their targets stand, and show the gallery's pictures."""
    at = page.file.src_uri
    if at == "gallery.md":
        markdown = with_pictures(markdown)
    paths = {new: old for old, new in PLACES.items()}
    return moved(markdown, paths.get(at, f"docs/{at}"))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Lead links between notebooks to their pages."""
    if not page.file.src_uri.startswith("notebooks/"):
        return output
    return re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="../\1/', output)
