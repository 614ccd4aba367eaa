"""Several results on one page: a file to send, to print, to keep.

The page carries everything with it, runs no script but the views' own and asks nothing of any
network; it follows the reader's light or dark setting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from neox_lab.checks import TEXT, check, several, shown
from neox_lab.errors import InputError
from neox_lab.views.base import View, utf8, write_file
from neox_lab.views.markup import page
from neox_lab.views.tokens import html_text

Section = tuple[str, str | None, View | str | None]


def report(title: str, sections: Sequence[Section]) -> str:
    """One self-contained HTML page.

    No string is taken as HTML.

    Args:
        title: of the page.
        sections: each is (heading, paragraph or None, content or None). A content is a ``View``,
            shown with its picture and tables, or a string, shown as it is typed.

    Raises:
        InputError: a title or a section is something else.
    """
    check("title", title, TEXT, InputError)
    for section in several("sections", sections, "a list of sections", InputError):
        if not isinstance(section, tuple | list) or len(section) != 3 or not _is_section(*section):
            raise InputError(
                f"a section is {shown(section)}; expected (heading, paragraph or None, content or "
                "None), content a view or a string"
            )
    body = [f"<h1>{html_text(title)}</h1>"]
    for heading, paragraph, content in sections:
        parts = [f"<h2>{html_text(heading)}</h2>"]
        if paragraph is not None:
            parts.append(f"<p>{html_text(paragraph)}</p>")
        if isinstance(content, View):
            parts.append(content.to_html())
        elif content is not None:
            parts.append(f"<pre>{html_text(content)}</pre>")
        body.append("<section>\n" + "\n".join(parts) + "\n</section>")
    return page(title, "\n".join(body))


def _is_section(heading: object, paragraph: object, content: object) -> bool:
    return (
        isinstance(heading, str)
        and isinstance(paragraph, str | None)
        and isinstance(content, View | str | None)
    )


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write ``report(title, sections)`` to ``path`` (``*.html``), whole or not at all.

    Raises:
        InputError: the path does not end in ``.html``.
    """
    return write_file(path, ".html", utf8(report(title, sections)))
