"""How one token is shown: every mark visible, no token able to break the page it stands on.

A byte-level tokenizer cuts text wherever it likes, so pieces begin with spaces, consist of
nothing but newlines, hold half a character or half an HTML tag. A label makes each of them
readable: a leading or trailing space is ``·``, a newline ``⏎``, a tab ``⇥``, and a character that
shows nothing by itself (a control, a direction mark, an odd space) is written as its number,
``⟨U+200B⟩``. Bytes that are no whole character reach this file as ``⟨E2⟩`` already.

Three places show labels, and each has its own trap: HTML (``html_text``), matplotlib, where a
dollar sign starts a formula (``figure_text``), and running text, where one Hebrew or Arabic token
would turn its neighbours around (``isolated``).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from neox_lab.checks import COUNT, check, shown
from neox_lab.errors import InputError

ELLIPSIS = "…"
VISIBLE = {"\n": "⏎", "\t": "⇥"}
INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"})
RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
ROUNDS = 3  # tries to cut different texts differently
FRAGMENT = re.compile("⟨([89A-F][0-9A-F])⟩")  # a byte that is no character by itself
MARK = re.compile(r"⟨[^⟨⟩]*⟩|.", re.DOTALL)


def label(piece: str, limit: int | None = None) -> str:
    """``piece`` with every character visible, on one line, cut in the middle beyond ``limit``.

    ``limit`` counts characters; a ``⟨…⟩`` group is kept or left out whole. An empty piece becomes
    ``∅``. A label's own label is the label, so it does no harm to call this twice.

    Raises:
        InputError: ``piece`` is no text, or ``limit`` no number of characters.
    """
    if not isinstance(piece, str):
        raise InputError(f"a label is made of a string; got {shown(piece)}")
    if limit is not None:
        limit = check("limit", limit, COUNT, InputError)
    if not piece:
        return "∅"
    core = piece.strip(" ")
    start = len(piece) - len(piece.lstrip(" ")) if core else len(piece)
    end = len(piece) - len(piece.rstrip(" ")) if core else 0
    written = "·" * start + "".join(map(_visible, core)) + "·" * end
    if unicodedata.combining(written[0]):
        written = "◌" + written  # an accent alone would climb onto its neighbour
    return written if limit is None else shorten(written, limit)


def _visible(character: str) -> str:
    """One character as itself, as its sign, or as its number when it would show nothing."""
    if character == " " or unicodedata.category(character) not in INVISIBLE_CATEGORIES:
        return character
    return VISIBLE.get(character) or f"⟨U+{ord(character):04X}⟩"


def readable(piece: str) -> str:
    """A piece inside running text: its own spaces, everything invisible visible."""
    core = piece.strip(" ")
    if not core:
        return piece
    start, end = piece.split(core, 1)
    return f"{start}{label(core)}{end}"


def shorten(text: str, limit: int) -> str:
    """``text`` cut in its middle to at most ``limit`` characters, with an ellipsis."""
    if len(text) <= limit:
        return text
    marks = MARK.findall(text)
    front: list[str] = []
    back: list[str] = []
    room = limit - len(ELLIPSIS)
    while marks:
        at_front = len(front) <= len(back)
        mark = marks.pop(0 if at_front else -1)
        if len(mark) > room:
            break
        room -= len(mark)
        (front if at_front else back).append(mark)
    return "".join([*front, ELLIPSIS, *reversed(back)])


def characters(pieces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Each character that several pieces make together, and which pieces, in the text's order.

    Args:
        pieces: tokens in the order of the text; bytes that are no whole character as ``⟨E2⟩``.
    """
    parts: list[tuple[int, int]] = []  # a byte or, for text between bytes, -1; and its piece
    for at, piece in enumerate(pieces):
        for mark in MARK.findall(piece) if "⟨" in piece else "x":
            fragment = FRAGMENT.fullmatch(mark)
            parts.append((int(fragment[1], 16) if fragment else -1, at))
    found = []
    start = 0
    while start < len(parts):
        size = next((size for size in (4, 3, 2) if _is_character(parts[start : start + size])), 1)
        run = parts[start : start + size]
        owners = sorted({at for _, at in run})
        if len(owners) > 1:
            found.append((bytes(byte for byte, _ in run).decode(), owners))
        start += size
    return found


def _is_character(parts: Sequence[tuple[int, int]]) -> bool:
    """Whether these bytes are exactly one character."""
    try:
        return len(bytes(byte for byte, _ in parts).decode()) == 1 and len(parts) > 1
    except ValueError:  # no byte, or no UTF-8
        return False


def told(pieces: Sequence[str]) -> list[str]:
    """Pieces for rows of tokens; a byte says which character it is of: ``⟨E2⟩ of €``."""
    made = dict.fromkeys(range(len(pieces)), "")
    for character, owners in characters(pieces):
        made |= {at: made[at] + character for at in owners}
    return [f"{piece} of {made[at]}" if made[at] else piece for at, piece in enumerate(pieces)]


def whole_characters(pieces: Sequence[str], marked: Sequence[bool]) -> list[str]:
    """Pieces for running text: of a character in unmarked pieces the first one has it whole.

    Args:
        pieces: tokens in the order of the text.
        marked: which of them stand out, so that each says by itself what it is of, see ``told``.
    """
    texts, shown = list(pieces), told(pieces)
    for character, owners in characters(texts):
        if not any(marked[at] for at in owners):
            for at in owners:
                shown[at] = texts[at] = FRAGMENT.sub("", texts[at])
            shown[owners[0]] = texts[owners[0]] = texts[owners[0]] + character
    return shown


def labels(pieces: Sequence[str], limit: int) -> list[str]:
    """The label of each piece, cut to at most ``limit`` characters so that none are alike.

    Different pieces have different labels: where the usual cut would make two the same, it is made
    where they differ; where that does not do, the label ends in its place in the list, from 1.
    """
    return _told_apart(pieces, [label(piece) for piece in pieces], limit)


def figure_texts(pieces: Sequence[str], limit: int) -> list[str]:
    """``labels`` for matplotlib."""
    drawn = [_drawable(label(piece)) for piece in pieces]
    return [text.replace("$", r"\$") for text in _told_apart(pieces, drawn, limit)]


def _told_apart(pieces: Sequence[str], texts: Sequence[str], limit: int) -> list[str]:
    """``texts`` of ``pieces``, cut; those of different pieces differ."""
    written = dict(zip(pieces, texts, strict=True))
    cut = {text: shorten(text, limit) for text in written.values()}
    rivals = {text: {text} for text in cut}  # those it was ever taken for
    for _ in range(ROUNDS):
        alike: dict[str, set[str]] = {}
        for text, short in cut.items():
            alike[short] = alike.get(short, set()) | {text}
        for group in (group for group in alike.values() if len(group) > 1):
            group = set().union(*(rivals[text] for text in group))
            rivals |= dict.fromkeys(group, group)
            cut |= _cut_where_they_differ(sorted(group), limit)
    places = {piece: place for place, piece in reversed(list(enumerate(pieces, 1)))}
    found: dict[str, str] = {}
    taken = set()
    for piece, text in written.items():
        short, place = cut[text], places[piece]
        while short in taken:
            number = f" #{place}"
            short = shorten(text, max(1, limit - len(number))) + number
            place += len(pieces)
        taken.add(short)
        found[piece] = short
    return [found[piece] for piece in pieces]


def _cut_where_they_differ(group: Sequence[str], limit: int) -> dict[str, str]:
    """Different texts cut so that what is between their common start and end stays, if it fits."""
    written = {text: MARK.findall(text) for text in group}
    start = _common(list(written.values()))
    end = _common([marks[start:][::-1] for marks in written.values()])
    found = {}
    for text, marks in written.items():
        front, back = "".join(marks[:start]), "".join(marks[len(marks) - end :])
        own = shorten("".join(marks[start : len(marks) - end]), limit - 2 * len(ELLIPSIS))
        room = limit - len(own)
        front = shorten(front, max(1, room - min(len(back), room // 2))) if front else ""
        back = shorten(back, max(1, room - len(front))) if back else ""
        found[text] = front + own + back
    return found


def _common(lists: Sequence[Sequence[str]]) -> int:
    """How many entries all begin with."""
    for at, entries in enumerate(zip(*lists, strict=False)):
        if len(set(entries)) > 1:
            return at
    return min(map(len, lists))


def sentence(text: str, limit: int) -> str:
    """``text`` as a label that is cut between words: some of its beginning and some of its end."""
    written = label(text)
    if len(written) <= limit:
        return written
    room = limit - len(f" {ELLIPSIS} ")
    front, back = written[: room // 2 + 1], written[-(room // 2) - 1 :]
    if " " not in front or " " not in back:
        return shorten(written, limit)
    return f"{front[: front.rindex(' ')]} {ELLIPSIS} {back[back.index(' ') + 1 :]}"


def html_text(text: str) -> str:
    """``text`` for HTML, inside an element or inside an attribute in double quotes."""
    return html.escape(text, quote=True)


def isolated(text: str) -> str:
    """``text`` kept from turning its neighbours around, if it is written right to left."""
    if any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in text):
        return f"\u2068{text}\u2069"
    return text


def figure_text(text: str, limit: int | None = None) -> str:
    """``text`` for matplotlib: no formulas, and no glyph that its own font does not have."""
    shown = _drawable(text)
    shown = shown if limit is None else shorten(shown, limit)
    return shown.replace("$", r"\$")


def _drawable(text: str) -> str:
    """``text`` without glyphs that matplotlib's own font does not have."""
    glyphs = _font_characters()
    return "".join(c if c in glyphs else f"⟨U+{ord(c):04X}⟩" for c in text)


@lru_cache(maxsize=1)
def _font_characters() -> frozenset[str]:
    """The characters that DejaVu Sans, which matplotlib carries with it, can draw."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import get_font

    font = get_font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    return frozenset(map(chr, font.get_charmap()))


def display_width(text: str) -> int:
    """How many terminal columns ``text`` takes: wide characters two, combining ones none."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    """The terminal columns of one character."""
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
