"""Every name that stands for a hook point: Hugging Face's paths, short forms, names alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import CLASSES, pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookNameError

WITHOUT_A_POINT = ("dropout", "rotary_emb", "query_key_value", "layers", "gpt_neox")
"""Ends of module paths whose output is not one tensor of ours, or is another module's."""


def outputs_of(model: Any, run: Any) -> dict[str, Tensor]:
    """What each module of a PyTorch model returned."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: object, given: object, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                seen[path] = output

        return hook

    handles = [m.register_forward_hook(keep(path)) for path, m in model.named_modules() if path]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("name", CLASSES)
def test_paths_of_transformers_name_the_outputs_of_its_modules(name: str, parallel: bool) -> None:
    theirs, ours = pair(name, use_parallel_residual=parallel)
    with torch.no_grad():
        seen = outputs_of(theirs, lambda: theirs(tokens()))
        _, cache = ours.run_with_cache(tokens())
    compared = 0
    for path, output in seen.items():
        if path.endswith(WITHOUT_A_POINT) or (name == CLASSES[0] and path == "final_layer_norm"):
            continue
        torch.testing.assert_close(cache[path], output, rtol=1e-4, atol=1e-4)
        compared += 1
        if path == "lm_head":
            torch.testing.assert_close(cache["embed_out"], output, rtol=1e-4, atol=1e-4)
    # A block has two layer norms, attention and MLP, and four parts of these, besides itself.
    assert compared == 9 * 3 + (1 if name == CLASSES[0] else 3)
    for path in cache.points["blocks.1.hook_mlp_out"].aliases:
        with ours.hooks([(path, lambda tensor, hook: 0 * tensor)]):
            assert not torch.equal(ours(tokens())[0], theirs(tokens())[0])


def test_what_is_no_one_tensor_of_ours_says_where_it_is() -> None:
    theirs, ours = pair()
    path = "gpt_neox.layers.1.attention.query_key_value"
    with torch.no_grad():
        seen = outputs_of(theirs, lambda: theirs(tokens()))
        _, cache = ours.run_with_cache(tokens())
    with pytest.raises(HookNameError, match=r"hook_q, attn.hook_k.*flatten\(2\)"):
        cache[path]
    q, k, v = (cache[name, 1] for name in "qkv")
    whole = torch.cat([q, k, v], dim=-1).flatten(2)
    torch.testing.assert_close(whole, seen[path], rtol=1e-4, atol=1e-4)
    base = pair(CLASSES[0])[1]
    with pytest.raises(HookNameError, match=r"output\.last_hidden_state"):
        base.run_with_cache(tokens(), "final_layer_norm")


NAMES = (
    "embed resid_pre resid_mid resid_post attn_out mlp_out mlp_in attn_in q_input k_input v_input "
    "q k v z rot_q rot_k result pattern attn_scores attn attn_logits query key value pre post "
    "mlp_pre mlp_post scale normalized"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_short_forms_are_transformerlens_s(name: str) -> None:
    """A short form means what ``get_act_name`` makes of it, where there is such a point."""
    utilities = pytest.importorskip("transformer_lens.utilities", reason="needs transformer_lens")
    _, cache = pair(use_parallel_residual=False)[1].run_with_cache(tokens())
    forms: list[tuple[Any, ...]] = [(name,), (f"{name}2",), (f"{name}1ln2",), (name, 0)]
    forms += [(name, 1, part) for part in ("ln1", "ln2", "a", "attn", "m", "mlp", "block", "b")]
    compared = 0
    for form in forms:
        try:
            wanted = utilities.get_act_name(*form)
        except (UnboundLocalError, ValueError, TypeError):
            continue
        part = form[2] if len(form) > 2 else "ln2" if "ln2" in form[0] else "b"
        belongs = part[0] == "b" or f".{part}" in wanted  # it ignores parts that do not fit
        if wanted in cache.points and belongs:
            assert torch.equal(cache[form if len(form) > 1 else form[0]], cache[wanted]), form
            compared += 1
    assert compared


def test_a_short_name_alone() -> None:
    ours = pair()[1]
    ours.requires_grad_(True)
    _, cache = ours.run_with_cache(tokens(), names_filter="pattern")
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    assert list(cache) == patterns
    assert torch.equal(cache["pattern1"], cache["pattern", 1])
    assert torch.equal(cache["attn", 1], cache["pattern", 1])
    with pytest.raises(HookNameError, match=r"3 hook points.*\('pattern', 0\)"):
        cache["pattern"]
    _, cache = ours.run_with_cache(tokens(), names_filter=["embed", "scale", "z2"])
    scales = [f"blocks.{layer}.{part}.hook_scale" for layer in range(3) for part in ("ln1", "ln2")]
    names = ["hook_embed", *scales, "blocks.2.attn.hook_z", "ln_final.hook_scale"]
    assert sorted(cache) == sorted(names)
    assert torch.equal(cache["embed"], cache["hook_embed"])
    assert torch.equal(cache["scale"], cache["ln_final.hook_scale"])

    seen: list[str] = []
    with ours.hooks([("pattern", lambda tensor, hook: seen.append(hook.name))]):
        ours(tokens())
    assert seen == patterns
    for wrong in ("patern", "pattern9", "", "hook_", "7", "q-1", "scale1ln3"):
        with pytest.raises(HookNameError):
            ours.run_with_cache(tokens(), names_filter=wrong)


def test_gradients_by_short_form() -> None:
    ours = pair()[1]
    ours.requires_grad_(True)
    _, cache = ours.run_with_cache(
        tokens(), ["pattern", "embed"], incl_bwd=lambda out: out[0].sum()
    )
    full = cache["blocks.1.attn.hook_pattern_grad"]
    for name in (("pattern_grad", 1), ("attn_grad", 1), "pattern1_grad"):
        assert name in cache
        assert torch.equal(cache[name], full)
    assert torch.equal(cache["embed_grad"], cache["hook_embed_grad"])
    _, cache = ours.run_with_cache(tokens(), "pattern")
    assert ("pattern_grad", 1) not in cache
    with pytest.raises(HookNameError, match="incl_bwd"):
        cache["pattern_grad", 1]
    assert isinstance(cache, nl.ActivationCache)
