"""The parts of a feature's page, as HTML without scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.views.tokens import html_text, isolated, label, readable, shorten, whole_characters

if TYPE_CHECKING:
    from neox_lab.features.top_result import Example, TopExamples

FAINTEST = 0.02
"""Share of the highest activation below which a token is not tinted."""
LONGEST = 40
"""Characters of a token."""
BARS = 8

STYLE = """
body { --more: #e66101; --less: #2a7bd0; --full: .72; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { --full: .55; } }
a { color: inherit; } h1 { margin: .2rem 0 .6rem; font-size: 1.5rem; }
.strip { margin: 0 0 .7rem; white-space: pre-wrap; line-height: 1.75; }
.strip small { display: block; line-height: 1.3; }
.strip b { font-weight: 400; border-radius: 3px; position: relative; unicode-bidi: isolate;
  background: color-mix(in srgb, var(--more) calc(var(--a) * var(--full) * 1%), transparent); }
.strip b.n { --more: var(--less); }
.strip b.p { outline: 1.5px solid var(--ink); }
[data-v]:hover::after, [data-v]:focus::after { content: attr(data-v); position: absolute; left: 0;
  bottom: 100%; z-index: 1; padding: 0 5px; font: 12px/1.5 system-ui, sans-serif;
  white-space: nowrap; color: var(--paper); background: var(--ink); border-radius: 3px; }
.two { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.bars { display: grid; grid-template-columns: minmax(4rem, auto) 1fr auto; gap: .15rem .6rem;
  align-items: center; font-size: .9rem; margin: .4rem 0; }
.bars > :nth-child(3n+1) { text-align: right; }
.bars i { display: block; height: .8rem; border-radius: 2px; background: var(--more);
  min-width: 1px; }
.bars i.n { background: var(--less); }
.columns { display: flex; align-items: flex-end; gap: 2px; height: 7rem; max-width: 32rem;
  border-bottom: 1px solid var(--soft); }
.columns i { flex: 1; position: relative; height: 100%; display: flex; align-items: flex-end; }
.columns i::before { content: ""; width: 100%; height: calc(var(--a) * 1%); min-height: 1px;
  background: #21918c; border-radius: 2px 2px 0 0; }
.ends { display: flex; justify-content: space-between; max-width: 32rem; color: var(--soft);
  font-size: .85rem; }
dl { display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: .15rem 1rem;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def section(heading: str, content: str) -> str:
    """A part under its heading; nothing where there is no content."""
    return f"<section><h2>{html_text(heading)}</h2>\n{content}</section>" if content else ""


def summary(found: TopExamples, latent: int) -> str:
    """How often a feature is active, and how much."""
    active = int(found.active[latent])
    share = f"{100 * float(found.density[latent]):.3g} %"
    said = f"Active at {active:,} of {found.counted:,} tokens ({share})"
    if active:
        mean, most = float(found.mean[latent]), float(found.highest[latent])
        said += f"; {mean:.4g} there on average, {most:.4g} at most"
    return f"<p>{said}.</p>"


def examples(group: Sequence[Example], chosen: Sequence[Example], tokens: int) -> str:
    """Texts with each token tinted by the activation; pointing at one shows it.

    Args:
        group: all of this kind.
        chosen: those that are shown.
        tokens: of each at most.
    """
    most = max((_largest(one) for one in chosen), default=1.0)
    parts = [_strip(one, most, tokens) for one in chosen]
    if len(chosen) < len(group):
        parts.append(f"<p><small>{len(chosen)} of {len(group)} are shown.</small></p>")
    return "\n".join(parts)


def _largest(one: Example) -> float:
    return float(np.nanmax(np.abs(np.append(one.values, abs(one.value)))))


def _strip(one: Example, most: float, tokens: int) -> str:
    """One text."""
    low = max(0, min(one.at - tokens * 3 // 4, len(one.pieces) - tokens))
    part = slice(low, low + tokens)
    values = one.values[part].tolist()
    marked = [abs(value) > FAINTEST * most for value in values]  # NaN is not
    marked[one.at - low] = True
    made = []
    texts = whole_characters(one.pieces[part], marked)
    for at, (text, value) in enumerate(zip(texts, values, strict=True)):
        shown = html_text(shorten(readable(text), LONGEST))
        if not marked[at]:
            made.append(shown)
            continue
        kinds = ("n" if value < 0 else "") + (" p" if at == one.at - low else "")
        kind = f' class="{kinds.strip()}"' if kinds else ""
        tint = 0 if math.isnan(value) else min(100, round(100 * abs(value) / most))
        made.append(f'<b{kind} style="--a:{tint}" data-v="{value:.4g}">{shown or "∅"}</b>')
    where = f"document {one.document}, position {one.position}"
    if one.group == "quantile":
        where = f"higher in {one.quantile:.0%} of its windows; {where}"
    return f'<p class="strip" dir="auto"><small>{one.value:.4g}; {where}</small>{"".join(made)}</p>'


def bars(found: TopExamples, latent: int) -> str:
    """The tokens it speaks for and against."""
    frame = found.logit_effects(latent, BARS)
    if not len(frame):
        return ""
    most = float(frame["effect"].abs().max()) or 1.0
    lists = []
    for heading, part in (("For", frame[frame["effect"] > 0]), ("Against", frame[::-1])):
        if heading == "Against":
            part = part[part["effect"] < 0]
        rows = []
        for text, effect in zip(part["text"][:BARS], part["effect"][:BARS], strict=True):
            token = _told(text, 24)
            kind = ' class="n"' if effect < 0 else ""
            width = f"width:{100 * abs(effect) / most:.0f}%"
            rows.append(
                f'<span>{token}</span><i{kind} style="{width}"></i><span>{_number(effect)}</span>'
            )
        lists.append(
            f'<div><strong>{heading}</strong><div class="bars">{"".join(rows)}</div></div>'
        )
    note = (
        "What it adds to the logits for an activation of 1, directly: through the final layer "
        "norm's centring and weight and the unembedding, without the norm's division and without "
        "what all tokens get alike."
    )
    return f'<div class="two">{"".join(lists)}</div>\n<p><small>{note}</small></p>'


def histogram(found: TopExamples, latent: int) -> str:
    """Tokens by activation."""
    frame = found.activations(latent)
    if not len(frame):
        return ""
    most = int(frame["tokens"].max())
    columns = []
    for low, high, tokens in frame.itertuples(index=False):
        said = f"{low:.3g} to {high:.3g}: {tokens:,} tokens"
        columns.append(f'<i style="--a:{100 * tokens / most:.1f}" data-v="{said}"></i>')
    ends = f"<span>{frame['low'].iloc[0]:.3g}</span><span>{frame['high'].iloc[-1]:.3g}</span>"
    note = f"Tokens by activation; the tallest bar is {most:,}. Two bars for each factor of 2."
    return (
        f'<div class="columns">{"".join(columns)}</div><div class="ends">{ends}</div>'
        f"<p><small>{note}</small></p>"
    )


def others(found: TopExamples, latent: int, links: Mapping[int, str]) -> str:
    """Features whose directions are alike, and those active at the same tokens."""
    parts = []
    near = found.nearest(latent)
    if len(near):
        columns = zip(near["latent"], near["name"], near["cosine"], strict=True)
        rows = [[_linked(at, name, links), _number(cosine)] for at, name, cosine in columns]
        parts.append(_table("Nearest by what they add", ("feature", "cosine"), rows))
    beside = found.together(latent, 5)
    if len(beside):
        shares = zip(beside["share"], beside["density"], strict=True)
        names = [
            _linked(at, name, links)
            for at, name in zip(beside["latent"], beside["name"], strict=True)
        ]
        rows = [
            [name, f"{share:.3g}", f"{density:.3g}"]
            for name, (share, density) in zip(names, shares, strict=True)
        ]
        looked_at = f"{beside['of'][0]:,}" + ("" if beside["exact"][0] else " drawn")
        caption = f"Active at the same tokens, of {looked_at}"
        parts.append(_table(caption, ("feature", "share", "share of all tokens"), rows))
    return f'<div class="two">{"".join(parts)}</div>' if parts else ""


def _linked(latent: int, name: str, links: Mapping[int, str]) -> str:
    text = _told(name, 60)
    return f'<a href="{links[latent]}">{text}</a>' if latent in links else text


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{html_text(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="neox-table"><p><strong>{html_text(caption)}</strong></p>{table}</div>'


def facts(found: TopExamples) -> str:
    """The source, the model, the texts and how they were read."""
    held = found.held_out_documents
    rows = {
        "what": found.source.title,
        **found.source.facts,
        "model": found.model_name,
        "texts": f"{found.corpus.documents:,} documents, {len(found.corpus.tokens):,} tokens"
        + (f"; {held:,} documents held out" if held else ""),
        "read": f"each document by itself, {found.context} tokens together",
        "not counted": f"{found.skip_first} at the start of what is read together",
        "an example": f"the highest token of {found.window} neighbours",
        "seed": str(found.seed),
    }
    cells = [
        f"<dt>{html_text(label(name, 40))}</dt><dd>{_told(str(value), 300)}</dd>"
        for name, value in rows.items()
    ]
    return f"<dl>{''.join(cells)}</dl>"


def _told(text: str, limit: int) -> str:
    """A text as HTML: every character visible, cut to a number of them."""
    return html_text(isolated(label(text, limit)))


def _number(value: float) -> str:
    """A number to three places, with a minus sign as wide as a plus."""
    return f"{value:.3f}".replace("-", "−")
