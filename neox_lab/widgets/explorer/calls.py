"""The explorer's pictures as the calls that make them, to take to a notebook."""

from __future__ import annotations

from neox_lab.built_in import is_inside
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.widgets.explorer.reading import Reading


def as_python(
    model: GPTNeoXForCausalLM, first: Reading, second: Reading | None, revision: str = ""
) -> str:
    """Code with ``{position}``, ``{layer}`` and ``{head}`` where the selection goes.

    Args:
        model: the model.
        first: the reading on show.
        second: the other one, if there is one.
        revision: the checkpoint; empty if ``model`` was loaded without naming one.
    """
    lines = [
        "import neox_lab as nl",
        "",
        f"model = {_loading(model, revision)}",
        f"prompt = {_literal(first.prompt)}",
        "nl.lens.logit_lens(model, prompt)",
        "nl.views.attention(model, prompt).head({layer}, {head})",
        "logits = model(model.to_tokens(prompt)).logits[0, {position}]",
        "metric = nl.patching.logit_difference(int(logits.argmax()), pos={position})",
        "nl.attribution.direct_logit_attribution(model, prompt, metric)",
        "nl.attribution.occlusion(model, prompt, metric)",
        "nl.patching.ablate(model, prompt, metric)",
    ]
    if second is not None and second.length == first.length:
        lines += [
            f"second = {_literal(second.prompt)}",
            "runs = [model(model.to_tokens(text)).logits[0, -1] for text in (prompt, second)]",
            "ends = [int(logits.argmax()) for logits in runs]",
            "difference = nl.patching.logit_difference(*ends)",
            'nl.patching.sweep(model, prompt, second, difference, "resid_pre")',
            'nl.patching.sweep(model, prompt, second, difference, "z_all_pos")',
        ]
    lines.append("nl.explore(model, prompt" + (", second)" if second is not None else ")"))
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A string literal in which nothing looks like a place for the selection."""
    return repr(text).replace("{", r"\x7b")


def _loading(model: GPTNeoXForCausalLM, revision: str) -> str:
    """The call that loads the model."""
    name = model.name_or_path
    arguments = [] if is_inside(name) else [_literal(name)]
    if revision:
        arguments.append(f"revision={_literal(revision)}")
    return f"nl.load({', '.join(arguments)})"
