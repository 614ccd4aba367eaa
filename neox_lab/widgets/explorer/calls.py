"""The explorer's pictures as the calls that make them, to take to a notebook.

``as_python`` writes what is there from the start, with places for the selection; every answer
brings the calls that made it, which the selection has moved away from since.
"""

from __future__ import annotations

from neox_lab.built_in import is_inside
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.widgets.explorer.reading import CANDIDATES, Reading


def as_python(
    model: GPTNeoXForCausalLM,
    first: Reading,
    second: Reading | None,
    revised: bool | None = None,
    against: GPTNeoXForCausalLM | None = None,
) -> str:
    """Code with ``{position}``, ``{layer}``, ``{head}`` and ``{revision}`` where these go.

    Args:
        model: the model.
        first: the reading on show.
        second: the other one, if there is one.
        revised: whether its name loads the checkpoint; False if a function does, None if there
            are no checkpoints.
        against: the model of the other one, if it is another.
    """
    lines = ["import neox_lab as nl", "", _loading("model", model, revised)]
    lines += [f"prompt = {_literal(first.prompt)}", *_reading("", "model", "prompt", first, first)]
    if second is not None:
        made_by = "model" if against is None else "other"
        lines += [] if against is None else ["", _loading("other", against, None)]
        lines += [f"second = {_literal(second.prompt)}"]
        lines += _reading("second_", made_by, "second", second, first)
    explored = "prompt" + ("" if second is None else ", second")
    explored += "" if against is None else ", against=other"
    return "\n".join([*lines, f"explorer = nl.explore(model, {explored})"])


def _reading(before: str, model: str, prompt: str, reading: Reading, first: Reading) -> list[str]:
    """What a reading is made of, each under a name that begins with ``before``."""
    lens, token = f"{before}lens", f"{before}token"
    lines = [f"{lens} = nl.lens.logit_lens({model}, {prompt}, top_k={CANDIDATES})"]
    if reading.length != first.length:  # what is selected is a place in the first
        return lines
    lines += [
        f"{before}pattern = nl.views.attention({model}, {prompt}).head({{layer}}, {{head}})",
        f"{token} = int({lens}.top[-1, 0, {{position}}, 0])  # expected after the selected token",
    ]
    if reading.view.shares is None:
        return lines
    split = f"nl.attribution.direct_logit_attribution({model}, {prompt}, {token}, pos={{position}})"
    return [*lines, f"{before}shares = {split}"]


def hooked(layer: int, head: int, swap: bool) -> str:
    """The run with the selected head's mean, or its output of the second prompt, in its place."""
    name = f"blocks.{layer}.attn.hook_z"
    source = f"z[:, :, {head}].mean(dim=1, keepdim=True)"
    before: list[str] = []
    if swap:
        before = [f'_, cache = model.run_with_cache(second, names_filter="{name}")', ""]
        source = f'cache["{name}"][:, :, {head}]'
    lines = [
        *before,
        "def replace(z, hook):",
        f"    z[:, :, {head}] = {source}",
        "    return z",
        "",
        f'switched = model.run_with_hooks(prompt, [("{name}", replace)]).logits[0].softmax(dim=-1)',
    ]
    return "\n".join(lines)


def continued(tokens: int, forced: list[int]) -> str:
    """The continuation: of the prompt, or of a branch that begins with ``forced`` tokens."""
    start = "model.to_tokens(prompt)"
    if forced:
        start = f"torch.cat([{start}, torch.tensor([{forced}])], dim=1)"
    call = f"written = model.generate({start}, max_new_tokens={tokens}, do_sample=False)"
    return f"import torch\n{call}" if forced else call


def _literal(text: str) -> str:
    """A string literal in which nothing looks like a place for the selection."""
    return repr(text).replace("{", r"\x7b")


def _loading(name: str, model: GPTNeoXForCausalLM, revised: bool | None) -> str:
    """The call that loads a model; of one that came from nowhere only its name."""
    source = model.name_or_path
    if revised is False or not source:
        which = "what the function for {revision} gives" if revised is False else "the one given"
        return f"# {name}: {which}; where it comes from is known to you only"
    arguments = [] if is_inside(source) else [_literal(source)]
    if revised:
        arguments.append("revision={revision}")
    return f"{name} = nl.load({', '.join(arguments)})"
