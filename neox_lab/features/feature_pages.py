"""A page for each feature, and an index of them: files that open without a kernel or a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.checks import SWITCH, check, several, shown
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor
from neox_lab.features.page_parts import (
    STYLE,
    bars,
    examples,
    facts,
    histogram,
    others,
    section,
    summary,
)
from neox_lab.features.page_reading import looked_elsewhere
from neox_lab.features.pictures import title as title_of
from neox_lab.features.top_result import TopExamples
from neox_lab.files import StrPath, path_of, write_bytes
from neox_lab.progress import Progress
from neox_lab.selections import entry
from neox_lab.views.base import utf8, write_file
from neox_lab.views.live import fragment
from neox_lab.views.markup import page as html_page
from neox_lab.views.tokens import html_text, isolated, label

if TYPE_CHECKING:
    from neox_lab.features.top_result import Example

BYTES = 60_000
"""How large a page may be."""
ROOMS = ((20, 10, 64), (20, 10, 32), (12, 8, 24), (8, 5, 16), (5, 3, 10), (2, 1, 6))
"""Highest examples, further examples and tokens of each, until a page is small enough."""
INDEX = "index.html"
OURS = 'data-neox="page"'
LISTED = 500
"""Rows of the index where scripts are off."""


class Page(str):
    """The HTML of a page. A notebook shows it in a frame, so that neither's style meets the other.

    A frame follows the browser's light or dark setting, not the notebook's.
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        """The page in a frame in which nothing may run."""
        style = "width:100%;height:40rem;border:0;resize:vertical;overflow:auto"
        return f'<iframe sandbox srcdoc="{html_text(self)}" style="{style}"></iframe>'


def page(found: TopExamples, latent: int, path: StrPath | None = None) -> Page:
    """One feature on one page: its examples, how often and how high it is, what it speaks for.

    The page needs no kernel, no network and no script; it follows the reader's light or dark
    setting. It takes at most 60 KB: fewer examples, or fewer tokens of each, where they are long.

    Args:
        found: what ``top_examples`` gave.
        latent: which feature.
        path: where to write it (``*.html``), or None.

    Returns:
        The page as HTML, a text; in a notebook it is seen.

    Raises:
        InputError: this is nothing of the kind, there is no such feature, the model is not what it
            was, or ``path`` has another ending.
        OSError: the file cannot be written.
    """
    found = _found(found)
    target = None if path is None else path_of("path", path)
    made = _page(found, entry("latent", latent, found.source.latents, InputError), {})
    if target is not None:
        write_file(target, ".html", utf8(made))
    return Page(made)


def pages(
    found: TopExamples,
    folder: StrPath,
    latents: Sequence[int] | None = None,
    *,
    executor: AnyExecutor | None = None,
    progress: bool = True,
) -> Path:
    """A page for each of several features in a folder, and ``index.html`` to search them.

    The index is written last, so it never names a page that is not there. In a notebook beside the
    folder, ``IPython.display.IFrame("folder/index.html", "100%", 600)`` shows them; of a Jupyter
    server that asks for a token only the first is seen there, since browsers do not give its cookie
    to what a frame of that kind asks for. ``page`` needs no server.

    Args:
        found: what ``top_examples`` gave.
        folder: made if need be; pages of the same names are replaced.
        latents: which features; all that are active somewhere if None.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers read the
            examples again (``docs/many-machines.md``); None reads them here. The same pages.
        progress: show how far it is.

    Returns:
        The index.

    Raises:
        InputError: this is nothing of the kind, no feature, one that is not there, the model is not
            what it was, or the folder has an ``index.html`` that is none of ours, or
            workers could not load the model or what has features.
        LostWorkerError: the worker of a page was lost again and again.
        OSError: a file cannot be written.
    """
    found = _found(found)
    target = path_of("folder", folder).expanduser()
    progress = check("progress", progress, SWITCH, InputError)
    executor = check("executor", executor, EXECUTOR, InputError)
    if latents is None:
        chosen = [int(at) for at in found.active.nonzero()]
    else:
        given = several("latents", latents, "numbers of features", InputError)
        wanted = [entry("latents", at, found.source.latents, InputError) for at in given]
        chosen = list(dict.fromkeys(wanted))
    if not chosen:
        raise InputError("there is no feature to make a page of; none is active, or none was named")
    index = target / INDEX
    if index.exists() and OURS not in index.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{str(index)!r} is another program's; give another folder.")
    target.mkdir(parents=True, exist_ok=True)
    links = {latent: f"{latent}.html" for latent in chosen}
    rows: dict[int, list[str]] = {}
    with Progress(len(chosen), "page", silent=not progress) as bar:
        for latent in _read(found, chosen, executor):
            write_bytes(target / links[latent], utf8(_page(found, latent, links)))
            rows[latent] = [links[latent], *_row(found, latent)]
            bar.update()
    write_bytes(index, utf8(_index(found, [rows[latent] for latent in chosen])))
    return index


def _read(
    found: TopExamples, latents: Sequence[int], executor: AnyExecutor | None
) -> Iterator[int]:
    """The features, each as soon as all is known that its page needs."""
    if executor is None:
        yield from latents
        return
    looks = map(found.look_for, latents)
    for each in looked_elsewhere(executor, found._model, found._what, looks):
        with found.looked(each):
            yield each.latent


def _found(found: object) -> TopExamples:
    if isinstance(found, TopExamples):
        return found
    raise InputError(f"found={shown(found, 80)}; expected what nl.features.top_examples gives.")


def _page(found: TopExamples, latent: int, links: Mapping[int, str]) -> str:
    """The page, with as many examples as it has room for."""
    strips = found.strips(latent)
    name = title_of(found, latent)
    way = f'<p><a href="{INDEX}">All pages</a></p>' if links else ""
    before = [
        way,
        f"<h1>{html_text(isolated(label(name, 200)))}</h1>",
        summary(found, latent),
        section("What it speaks for", bars(found, latent)),
        section("How high it is", histogram(found, latent)),
    ]
    after = [
        section("Others like it", others(found, latent, links)),
        section("Where it came from", facts(found)),
    ]
    made = ""
    for top, further, tokens in ROOMS:
        body = []
        for heading, group in _groups(strips):
            most = top if group[0].group == "top" else further
            body.append(section(heading, examples(group, _spread(group, most), tokens)))
        made = html_page(label(name, 200), "\n".join(filter(None, (*before, *body, *after))), STYLE)
        if len(utf8(made)) <= BYTES:
            break
    return made


def _groups(strips: Sequence[Example]) -> list[tuple[str, list[Example]]]:
    """Examples under their headings."""
    headings = {
        ("train", "top"): "Where it is highest",
        ("train", "quantile"): "From its highest to its lowest windows",
        ("held-out", "top"): "Held-out documents: where it is highest",
        ("held-out", "quantile"): "Held-out documents: from highest to lowest",
    }
    found = [
        (heading, [one for one in strips if (one.split, one.group) == kind])
        for kind, heading in headings.items()
    ]
    return [(heading, group) for heading, group in found if group]


def _spread(group: Sequence[Example], most: int) -> list[Example]:
    """The first of the highest; of the others some from all over."""
    if group[0].group == "top" or len(group) <= most:
        return list(group[:most])
    return [group[at * len(group) // most] for at in range(most)]


def _row(found: TopExamples, latent: int) -> list[str]:
    """What the index says of a feature."""
    frame = found.examples(latent)
    highest = frame[(frame["split"] == "train") & (frame["group"] == "top")]
    tokens = list(dict.fromkeys(highest["token"]))[:6]
    promoted = list(found.logit_effects(latent, 3)["text"][:3])
    return [
        label(found.source.name_of(latent), 60),
        f"{float(found.density[latent]):.3g}",
        f"{float(found.highest[latent]):.4g}",
        " ".join(isolated(label(token, 20)) for token in tokens),
        " ".join(isolated(label(token, 20)) for token in promoted),
    ]


def _index(found: TopExamples, rows: Sequence[Sequence[str]]) -> str:
    """The index, with a table for readers whose scripts are off."""
    name = label(f"{found.source.title}, {found.model_name}", 200)
    columns = ["name", "density", "highest", "where it is highest", "speaks for"]
    data = {"title": name, "columns": columns, "rows": rows, "unit": "pages"}
    data["notes"] = [
        f"Density: share of {found.counted:,} tokens at which it is active. Then tokens at which "
        "it is highest, and those it adds most to the logits of."
    ]
    head = "".join(f"<th>{heading}</th>" for heading in columns)
    lines = []
    for file, first, *cells in rows[:LISTED]:
        link = f'<td><a href="{html_text(file)}">{html_text(first)}</a></td>'
        lines.append(f"<tr>{link}{''.join(f'<td>{html_text(c)}</td>' for c in cells)}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    cut = f"<p>The first {LISTED} of {len(rows)}.</p>" if len(rows) > LISTED else ""
    scrolled = f'<div class="neox-table">{table}</div>{cut}'
    view = fragment("index", data, "", scrolled)
    return html_page(name, f"<h1>{html_text(name)}</h1>\n{view}", ".neox-tables a{color:inherit}")
