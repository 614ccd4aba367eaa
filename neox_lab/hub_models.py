"""GPT-NeoX models on the Hugging Face hub that people ask for by a part of their name.

    full_name("pythia-70m")             # "EleutherAI/pythia-70m"
    nearest_models("EleutherAI/pyhtia-70m")  # " Did you mean 'EleutherAI/pythia-70m' or ...?"

The list is for names, not for permission: any other repository loads by its full id.
"""

from __future__ import annotations

import difflib

_SIZES = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_SMALLEST = ("14m", "31m")
_SEEDED = (*_SMALLEST, "70m", "160m", "410m")

KNOWN: tuple[str, ...] = (
    *(f"EleutherAI/pythia-{size}" for size in (*_SMALLEST, *_SIZES)),
    *(f"EleutherAI/pythia-{size}-deduped" for size in _SIZES),
    *(f"EleutherAI/pythia-{size}{data}-v0" for size in _SIZES for data in ("", "-deduped")),
    *(f"EleutherAI/pythia-{size}-seed{seed}" for size in _SEEDED for seed in range(1, 10)),
    "EleutherAI/gpt-neox-20b",
    *(f"EleutherAI/polyglot-ko-{size}" for size in ("1.3b", "3.8b", "5.8b", "12.8b")),
    *(f"databricks/dolly-v2-{size}" for size in ("3b", "7b", "12b")),
    *(
        f"stabilityai/stablelm-{kind}-alpha-{size}"
        for kind in ("base", "tuned")
        for size in ("3b", "7b")
    ),
    *(f"togethercomputer/RedPajama-INCITE-{kind}-3B-v1" for kind in ("Base", "Chat", "Instruct")),
    *(f"togethercomputer/RedPajama-INCITE-7B-{kind}" for kind in ("Base", "Chat", "Instruct")),
    "togethercomputer/GPT-NeoXT-Chat-Base-20B",
)
"""Their ids."""

_FULL = {name.partition("/")[2].lower(): name for name in KNOWN}


def full_name(name: str) -> str | None:
    """The id of a model that is named without its organisation; None if none is known by it.

    Args:
        name: such as ``"pythia-70m"``, in letters of any size.
    """
    return _FULL.get(name.lower())


def nearest_models(name: str) -> str:
    """A sentence naming the known models closest to a name that nothing has; empty if none is.

    Args:
        name: an id, or an id's last part.
    """
    short = name.rpartition("/")[2].lower()
    if name in KNOWN or len(short) > 100:
        return ""
    if short in _FULL:
        return f" Did you mean {_FULL[short]!r}?"
    close = difflib.get_close_matches(short, list(_FULL), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(_FULL[one]) for one in close)}?" if close else ""
