"""Tab completion of hook names, in a real IPython completer."""

from __future__ import annotations

from typing import Any

import pytest
from oracle import pair, tokens

from neox_lab.completion import completions, hook_names


@pytest.fixture(scope="module")
def shell() -> Any:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "neox_lab")
    shell.user_ns["model"] = pair(use_parallel_residual=False)[1]
    shell.user_ns["cache"] = shell.user_ns["model"].run_with_cache(tokens(), "blocks.1.*")[1]
    return shell


def completed(shell: Any, code: str) -> set[str]:
    """What the code might become."""
    from IPython.core.completer import provisionalcompleter

    with provisionalcompleter():
        found = list(shell.Completer.completions(code, len(code)))
    return {code[: item.start] + item.text for item in found}


@pytest.mark.parametrize(
    "code", ['model.run_with_cache("hi", "{}', "model.hooks([('{}", "filter = '{}"]
)
def test_names_inside_strings(shell: Any, code: str) -> None:
    assert completed(shell, code.format("blocks.2.attn.hook_rot")) == {
        code.format("blocks.2.attn.hook_rot_q"),
        code.format("blocks.2.attn.hook_rot_k"),
    }
    assert code.format("blocks.0.hook_resid_mid") in completed(shell, code.format("blocks.0.hook_"))


def test_keys_of_a_cache(shell: Any) -> None:
    found = completed(shell, 'cache["blocks.1.attn.hook_rot')
    assert {text.rstrip('"]') for text in found} == {
        'cache["blocks.1.attn.hook_rot_q',
        'cache["blocks.1.attn.hook_rot_k',
    }


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (
            'model.run_with_cache("hi", "patt',
            ["pattern", "pattern_all_pos", "pattern_by_dest", "pattern_by_dest_source"],
        ),
        ('model.hooks([(("attn_sc', ["attn_scores"]),
        ('nl.patching.sweep(model, a, b, metric, site="z_', ["z_all_pos"]),
        ('nl.load("gpt-neo', ["gpt-neox-20b"]),
        ('nl.load("EleutherAI/gpt', ["EleutherAI/gpt-neox-20b"]),
        ("nl.GPTNeoXConfig(hidden_s", ["hidden_size="]),
        ("nl.GPTNeoXConfig(vocab_size=9, hidden_s", ["hidden_size="]),
        ("model.generate(ids, max_new", ["max_new_tokens="]),
    ],
)
def test_short_forms_sites_models_and_settings(shell: Any, code: str, names: list[str]) -> None:
    start, found = completions(code, shell.user_ns)
    assert code.endswith(start) and found == names
    whole = {code.removesuffix(start) + name for name in names}
    assert whole <= completed(shell, code)


def test_keys_of_a_cache_by_short_name(shell: Any) -> None:
    assert 'cache["pattern' in {text.rstrip('"]') for text in completed(shell, 'cache["pat')}


def test_nothing_elsewhere(shell: Any) -> None:
    names = shell.user_ns
    assert hook_names("blocks.2.attn", names) == ("", [])
    assert hook_names('x = "finished" + blocks.', names)[1] == []
    assert hook_names('x = "blocks.', {})[1] == []
    assert hook_names('x = "nonsense', names)[1] == []
    for code in ("hidden_s", 'x = "z_', "print(hidden_s", "GPTNeoXConfig().hid"):
        assert completions(code, {})[1] == []
