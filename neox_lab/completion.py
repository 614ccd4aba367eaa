"""Tab completion of hook names inside strings, in IPython and Jupyter.

    %load_ext neox_lab
    model.run_with_cache(text, "blocks.0.at<TAB>

Names are those of the models in the user's namespace. (Caches complete their keys by themselves.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext
    from IPython.core.interactiveshell import InteractiveShell

_IN_A_STRING = re.compile(r"['\"]([\w.]*)$")


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
        start, names = hook_names(context.line_with_cursor, shell.user_ns)
        completions = [SimpleCompletion(name, type="hook point") for name in names]
        return {"completions": completions, "matched_fragment": start, "suppress": bool(names)}

    shell.Completer.custom_matchers.append(matcher)
