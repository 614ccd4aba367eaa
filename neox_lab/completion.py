"""Tab completion of names inside strings, and of settings, in IPython and Jupyter.

    %load_ext neox_lab
    model.run_with_cache(text, "blocks.0.at<TAB>
    cache["pat<TAB>
    nl.patching.sweep(model, clean, corrupted, metric, site="z_<TAB>
    nl.load("pythia-7<TAB>
    nl.GPTNeoXConfig(num_<TAB>

Hook names are those of the models in the user's namespace. (Caches complete their keys by
themselves.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext
    from IPython.core.interactiveshell import InteractiveShell

_IN_A_STRING = re.compile(r"['\"]([\w.]*)$")


_LOADING = re.compile(r"(?:\bload|from_pretrained)\(\s*['\"]([\w.\-/]*)$")
_SETTING = re.compile(r"\b(GPTNeoXConfig|GenerationConfig|generate|stream)\((?:.*,)?\s*(\w+)$")


def completions(line: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What stands unfinished at the end of ``line``, and the names that it may become.

    Args:
        line: what stands before the cursor.
        namespace: the user's variables; models among them say which hook names there are.
    """
    if found := _LOADING.search(line):
        from neox_lab.hub_models import KNOWN

        short = [name.partition("/")[2] for name in KNOWN]
        return found[1], [name for name in (*short, *KNOWN) if name.startswith(found[1])]
    if found := _SETTING.search(line):
        return found[2], [f"{name}=" for name in _settings(found[1]) if name.startswith(found[2])]
    start, names = hook_names(line, namespace)
    return start, names + [name for name in _short_names(namespace) if name.startswith(start)]


def _settings(call: str) -> list[str]:
    """Names of the settings that a call takes."""
    from neox_lab.config import GPTNeoXConfig
    from neox_lab.generation.settings import SETTINGS

    if call == "GPTNeoXConfig":
        return sorted(GPTNeoXConfig().to_dict())
    return sorted(SETTINGS)


def _short_names(namespace: Mapping[str, Any]) -> list[str]:
    """Short names of the hook points of the user's models, and of what can be swept."""
    from neox_lab.experiments.patching.sites import SITES
    from neox_lab.family.hooked import Hooked

    models = [value for value in namespace.values() if isinstance(value, Hooked)]
    full = [name for model in models for name in model.hook_names]
    short = {name.rpartition(".")[2].removeprefix("hook_"): None for name in full}
    return list({**short, **dict.fromkeys(SITES)}) if models else []


def hook_names(line: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The unfinished string at the end of ``line``, and the hook names that begin with it.

    Args:
        line: what stands before the cursor.
        namespace: the user's variables; models among them say which names there are.
    """
    from neox_lab.family.hooked import Hooked

    found = _IN_A_STRING.search(line)
    if found is None:
        return "", []
    models = [value for value in namespace.values() if isinstance(value, Hooked)]
    names = {name: None for model in models for name in model.hook_names}
    return found[1], [name for name in names if name.startswith(found[1])]


def install(shell: InteractiveShell) -> None:
    """Add the completion to an IPython shell; what ``%load_ext neox_lab`` calls."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher()  # type: ignore[untyped-decorator]
    def matcher(context: CompletionContext) -> dict[str, Any]:
        start, names = completions(context.line_with_cursor, shell.user_ns)
        found = [SimpleCompletion(name, type="name") for name in names]
        return {"completions": found, "matched_fragment": start, "suppress": bool(names)}

    shell.Completer.custom_matchers.append(matcher)
