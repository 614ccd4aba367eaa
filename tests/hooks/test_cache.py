"""Caches: what is stored, what is made, how large it is, and that it never changes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair, tokens

import neox_lab as nl
from neox_lab.errors import (
    CheckpointError,
    HookError,
    HookNameError,
    NeoxLabError,
    NeoxLabWarning,
)
from neox_lab.hooks.cache import ActivationCache


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def masked(batch: int = 3, pos: int = 12) -> torch.Tensor:
    mask = torch.ones(batch, pos, dtype=torch.long)
    mask[0, :4] = 0
    return mask


def equal(one: ActivationCache, other: ActivationCache, tolerance: float) -> None:
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


def test_everything_is_there_and_the_size_was_known(model: Any) -> None:
    _, cache = model.run_with_cache(tokens())
    assert tuple(cache) == model.hook_names
    assert cache.nbytes == model.cache_size(tokens())


@pytest.mark.parametrize(
    "names", ["blocks.*.attn.hook_q", "blocks.1.*", ["hook_embed", ("pattern", 2)], None]
)
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("positions", [None, -1, slice(2, 5), [0, -1]])
def test_sizes_are_predicted_exactly(model: Any, names: Any, dtype: Any, positions: Any) -> None:
    arguments = {"dtype": dtype, "pos_slice": positions}
    _, cache = model.run_with_cache(tokens(), names, **arguments)
    assert cache.nbytes == model.cache_size(tokens(), names, **arguments)


def test_what_is_made_on_access_equals_what_would_be_stored(model: Any) -> None:
    derived = ["blocks.*.attn.hook_result", "blocks.*.hook_?_input", "blocks.*.hook_attn_in"]
    _, everything = model.run_with_cache(tokens())
    _, stored = model.run_with_cache(tokens(), derived)
    assert not everything.frame.set_index("name").stored["blocks.0.attn.hook_result"]
    assert stored.frame.stored.all()
    for name in stored:
        torch.testing.assert_close(everything[name], stored[name], rtol=0, atol=1e-5)


def test_a_hook_that_writes_a_derived_point_makes_it_stored(model: Any) -> None:
    def silence(result: torch.Tensor, hook: Any) -> None:
        result[:, :, 1] = 0

    with model.hooks([("blocks.1.attn.hook_result", silence)]):
        _, cache = model.run_with_cache(tokens())
    assert cache["result", 1][:, :, 1].abs().max() == 0
    assert cache["result", 0][:, :, 1].abs().max() > 0


def test_lean_gives_the_same_and_takes_a_fraction(model: Any) -> None:
    arguments = {"attention_mask": masked()}
    output, full = model.run_with_cache(tokens(), **arguments)
    lean_output, lean = model.run_with_cache(tokens(), lean=True, **arguments)
    equal(full, lean, 2e-5)
    torch.testing.assert_close(output.logits, lean_output.logits, rtol=0, atol=1e-5)
    assert lean.nbytes == model.cache_size(tokens(), lean=True) < full.nbytes / 8
    assert lean.nbytes < sum(full[name].nbytes for name in full) / 20


def test_lean_on_a_part_of_the_layers(model: Any) -> None:
    _, full = model.run_with_cache(tokens())
    stream = full["resid_pre", 1]
    _, part = model.run_with_cache(stream, lean=True, start_at_layer=1, stop_at_layer=2)
    torch.testing.assert_close(part["pattern", 1], full["pattern", 1], rtol=0, atol=1e-5)
    with pytest.raises(HookNameError, match="not in this cache"):
        part["pattern", 2]
    with pytest.raises(HookNameError):
        part["unembed.hook_out"]


def test_lean_refuses_what_it_could_not_repeat(model: Any) -> None:
    with (
        model.hooks([("blocks.0.attn.hook_z", lambda z, hook: 0 * z)]),
        pytest.raises(HookError, match="without hooks"),
    ):
        model.run_with_cache(tokens(), lean=True)
    past = model(tokens()).past_key_values
    with pytest.raises(HookError, match="past_key_values"):
        model.run_with_cache(tokens(), lean=True, past_key_values=past)
    with pytest.raises(HookError, match="lean"):
        model.run_with_cache(tokens(), lean=True, dtype=torch.float16)
    with pytest.raises(HookError, match="lean"):
        model.run_with_cache(tokens(), lean=True, incl_bwd=True, labels=tokens())


def test_lean_refuses_dropout() -> None:
    model = pair(hidden_dropout=0.1)[1].train()
    with pytest.raises(HookError, match="dropout"):
        model.run_with_cache(tokens(), lean=True)


@pytest.mark.parametrize("name", [("result", 0), ("pattern", 0)])
def test_weights_that_changed_are_noticed(model: Any, name: Any) -> None:
    _, cache = model.run_with_cache(tokens(), lean=name[0] == "pattern")
    with torch.no_grad():
        model.gpt_neox.layers[0].attention.dense.weight.mul_(2)
    with pytest.raises(HookError, match="weights have changed"):
        cache[name]


def test_weights_that_were_replaced_or_converted_are_noticed(model: Any) -> None:
    _, cache = model.run_with_cache(tokens(), lean=True)
    dense = model.gpt_neox.layers[0].attention.dense
    old = dense.weight
    dense.weight = torch.nn.Parameter(torch.zeros_like(old))
    with pytest.raises(HookError, match="weights have changed"):
        cache["pattern", 1]
    dense.weight = old
    assert cache["pattern", 1].isfinite().all()
    model.double()
    with pytest.raises(HookError, match="weights have changed"):
        cache["pattern", 2]


def test_asking_a_lean_cache_inside_hooks_does_not_run_them(model: Any) -> None:
    _, full = model.run_with_cache(tokens())
    _, lean = model.run_with_cache(tokens(), lean=True)
    with model.hooks([("blocks.*.attn.hook_v", lambda v, hook: 0 * v)], must_fire=False):
        torch.testing.assert_close(lean["z", 1], full["z", 1], rtol=0, atol=1e-5)


def test_in_place_hooks_never_reach_what_was_cached(model: Any) -> None:
    def wreck(tensor: torch.Tensor, hook: Any) -> None:
        tensor.fill_(7.0)

    _, before = model.run_with_cache(tokens(), "blocks.0.*")
    with model.hooks([("blocks.1.hook_resid_pre", wreck)]):
        _, after = model.run_with_cache(tokens())
    torch.testing.assert_close(before["resid_post", 0], after["resid_post", 0], rtol=0, atol=1e-5)
    assert (after["resid_pre", 1] == 7).all()


def test_a_cache_over_budget_is_refused_with_advice(model: Any) -> None:
    with pytest.raises(HookError, match=r"budget is 1 KB.*names_filter.*lean.*spill"):
        model.run_with_cache(tokens(), budget="1 KB")
    model.run_with_cache(tokens(), budget="1 GB")


def test_spilling_keeps_the_same_numbers_in_a_file(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    _, full = model.run_with_cache(tokens())
    _, spilled = model.run_with_cache(tokens(), budget=1000, spill=path)
    equal(full, spilled, 0)
    assert path.stat().st_size > full.nbytes / 2
    again = ActivationCache.load(path, model)
    assert torch.equal(again["attn_scores", 1], full["attn_scores", 1])
    with pytest.raises(CheckpointError, match="exists"):
        model.run_with_cache(tokens(), budget=1000, spill=path)


@pytest.mark.parametrize("spilled", [False, True])
def test_what_the_run_read_is_in_the_file(model: Any, tmp_path: Path, spilled: bool) -> None:
    """Scores and patterns are made anew from it: without the mask they were off by 0.89."""
    path = tmp_path / "cache.safetensors"
    positions = (masked().cumsum(-1) - 1).clamp(min=0) + 2
    options = {"attention_mask": masked(), "position_ids": positions}
    spill = {"budget": 1000, "spill": path} if spilled else {}
    _, cache = model.run_with_cache(tokens(), **options, **spill)
    if not spilled:
        cache.save(path)
    again = ActivationCache.load(path, model)
    expected = model(tokens(), **options, output_attentions=True).attentions
    for layer, pattern in enumerate(expected):
        assert (again["pattern", layer] - pattern).abs().max() < 1e-5
    for name, tensor in (("input_ids", tokens()), *options.items()):
        assert torch.equal(getattr(again, name), tensor)
        assert name not in again
    assert list(again) == list(cache)


def test_a_cache_belongs_to_one_model(model: Any, tmp_path: Path) -> None:
    path, spilled = tmp_path / "saved", tmp_path / "spilled"
    _, cache = model.run_with_cache(tokens(), attention_mask=masked())
    cache.save(path)
    model.run_with_cache(tokens(), budget=1000, spill=spilled)
    other = pair("GPTNeoXForCausalLM", seed=3, use_parallel_residual=False)[1]
    for file in (path, spilled):
        with pytest.raises(CheckpointError, match=r"another model: .*weights.* differ"):
            ActivationCache.load(file, other)
        assert torch.equal(ActivationCache.load(file)["hook_embed"], cache["hook_embed"])
    # What was loaded, with or without the model, is saved as that model's.
    for loaded in (ActivationCache.load(path), ActivationCache.load(path, model)):
        loaded.to("cpu").save(tmp_path / "again")
        ActivationCache.load(tmp_path / "again", model)
        with pytest.raises(CheckpointError, match="another model"):
            ActivationCache.load(tmp_path / "again", other)


def test_a_cache_saved_after_its_weights_changed_is_nobodys(tmp_path: Path) -> None:
    model = pair()[1]
    _, cache = model.run_with_cache(tokens())
    with torch.no_grad():
        model.embed_out.weight.mul_(2)
    cache.save(tmp_path / "cache")
    with pytest.warns(NeoxLabWarning, match="does not say which model"):
        ActivationCache.load(tmp_path / "cache", model)


def test_a_spilled_cache_of_a_run_with_a_past(model: Any, tmp_path: Path) -> None:
    ids = tokens()
    runs = []
    for options in ({}, {"budget": 1000, "spill": tmp_path / "cache.safetensors"}):
        past = model(ids[:, :5], use_cache=True).past_key_values
        _, cache = model.run_with_cache(ids[:, 5:], past_key_values=past, **options)
        runs.append(cache)
    equal(*runs, 0)
    again = ActivationCache.load(tmp_path / "cache.safetensors", model)
    assert torch.equal(again["pattern", 1], runs[0]["pattern", 1])


def test_a_run_that_fails_leaves_no_file(model: Any, tmp_path: Path) -> None:
    spill = {"budget": 1000, "spill": tmp_path / "cache.safetensors"}
    with pytest.raises(HookError, match=r"unembed.hook_in.*\[3, 1, 64\].*logits_to_keep"):
        model.run_with_cache(tokens(), logits_to_keep=1, **spill)
    assert not any(tmp_path.iterdir())

    def interrupt(tensor: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), model.hooks([("blocks.1.hook_mlp_out", interrupt)]):
        model.run_with_cache(tokens(), **spill)
    assert not any(tmp_path.iterdir())
    model.run_with_cache(tokens(), **spill)


def test_saving_and_loading(model: Any, tmp_path: Path) -> None:
    _, cache = model.run_with_cache(tokens(), attention_mask=masked())
    path = cache.save(str(tmp_path / "deep" / "cache.safetensors"))
    assert path == tmp_path / "deep" / "cache.safetensors"
    again = ActivationCache.load(path, model)
    assert again.nbytes == cache.nbytes, "shared memory is written once"
    assert torch.equal(again.attention_mask, masked())
    for name in again:
        assert torch.equal(again[name], cache[name])
    assert again["gpt_neox.layers.1.mlp"].equal(cache["mlp_out", 1])


def test_files_that_are_no_caches(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Cannot read"):
        ActivationCache.load(tmp_path / "nowhere.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"12345678 nonsense")
    with pytest.raises(CheckpointError, match="Cannot read"):
        ActivationCache.load(tmp_path / "junk.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a saved cache"):
        ActivationCache.load(tmp_path / "other.safetensors")
    from neox_lab.safetensors_files import FileFormat

    file_format = FileFormat("cache", "neox_lab activation cache 1")
    for description in ({}, {"aliases": {}, "order": ["a", "b"]}, {"aliases": [], "order": ["a"]}):
        file_format.write(tmp_path / "foreign.safetensors", {"a": torch.ones(2)}, description)
        with pytest.raises(CheckpointError, match="does not list its tensors"):
            ActivationCache.load(tmp_path / "foreign.safetensors")


def test_a_failed_save_leaves_the_old_file(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "cache.safetensors"
    _, cache = model.run_with_cache(tokens(), "hook_embed")
    cache.save(path)
    old = path.read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neox_lab.safetensors_files.write", full_disk)
    with pytest.raises(CheckpointError, match="No space"):
        cache.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_names_in_a_cache(model: Any) -> None:
    _, cache = model.run_with_cache(tokens(), "blocks.0.attn.hook_q")
    assert "blocks.0.attn.hook_q" in cache
    assert ("q", 0) in cache
    assert ("q", 1) not in cache
    assert "nonsense" not in cache
    with pytest.raises(HookNameError, match="names_filter"):
        cache["k", 0]
    with pytest.raises(HookNameError, match=r"Did you mean 'blocks.0.attn.hook_q'") as told:
        cache["blocks.0.attn.hok_q"]
    assert str(told.value).startswith("No hook point"), "not in the quotes of a KeyError"
    for absent in ("blocks.0.attn.hook_k", "blocks.0.attn.hok_q", ("k", 0), "hook_embed_grad"):
        assert cache.get(absent) is None
        assert cache.get(absent, 5) == 5
    assert cache.get(("q", 0)) is cache["blocks.0.attn.hook_q"]
    assert len(cache) == 1
    assert cache._ipython_key_completions_() == ["blocks.0.attn.hook_q"]


def test_gradients_equal_autograd(model: Any) -> None:
    _, cache = model.run_with_cache(
        tokens(), "blocks.1.*", incl_bwd=lambda out: out.logits[:, -1, 3].sum()
    )
    embeds = model.gpt_neox.embed_in(tokens()).detach()
    kept: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        kept[hook.name] = tensor
        return tensor

    out = model.run_with_hooks(embeds, [("blocks.1.hook_resid_pre", keep)])
    expected = torch.autograd.grad(out.logits[:, -1, 3].sum(), kept["blocks.1.hook_resid_pre"])
    gradient = cache["blocks.1.hook_resid_pre_grad"]
    torch.testing.assert_close(gradient, expected[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(HookError, match="labels"):
        model.run_with_cache(tokens(), incl_bwd=True)


def test_gradients_where_they_are_switched_off(model: Any) -> None:
    def target(out: Any) -> torch.Tensor:
        return out.logits[:, -1, 3].sum()

    _, expected = model.run_with_cache(tokens(), "*.hook_z", incl_bwd=target)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens(), "*.hook_z", incl_bwd=target)
    equal(cache, expected, 0)
    with pytest.raises(HookError, match="no gradient flows"), torch.inference_mode():
        model.run_with_cache(tokens(), "*.hook_z", incl_bwd=target)


def test_every_point_has_its_gradient(model: Any) -> None:
    _, cache = model.run_with_cache(tokens(), incl_bwd=True, labels=tokens())
    assert {f"{name}_grad" for name in model.hook_names} <= set(cache)
    split = sum(cache[f"blocks.1.hook_{part}_input_grad"] for part in "qkv")
    torch.testing.assert_close(cache["blocks.1.hook_attn_in_grad"], split)


def test_gradients_count_for_the_budget_and_leave_the_weights_alone(
    model: Any, tmp_path: Path
) -> None:
    weights = list(model.parameters())
    model.requires_grad_(True)
    weights[0].grad = torch.ones_like(weights[0])
    _, cache = model.run_with_cache(tokens(), "*.hook_z", incl_bwd=True, labels=tokens())
    assert torch.equal(weights[0].grad, torch.ones_like(weights[0]))
    assert all(weight.grad is None for weight in weights[1:])
    assert cache.nbytes == 2 * model.cache_size(tokens(), "*.hook_z")
    options = {"incl_bwd": True, "labels": tokens(), "budget": cache.nbytes - 1}
    with pytest.raises(HookError, match="budget"):
        model.run_with_cache(tokens(), "*.hook_z", **options)
    with pytest.raises(HookError, match="incl_bwd or spill"):
        model.run_with_cache(tokens(), "*.hook_z", spill=tmp_path / "cache", **options)


def test_budgets_that_are_no_sizes(model: Any) -> None:
    with pytest.raises(HookError, match=r"budget='lots' is not a size.*2 GB"):
        model.run_with_cache(tokens(), budget="lots")


@pytest.mark.parametrize("name", sorted(set(nl.__all__) & {n for n in dir(nl) if "For" in n}))
def test_every_head_caches_everything(name: str) -> None:
    model = pair(name)[1]
    _, full = model.run_with_cache(tokens())
    assert tuple(full) == model.hook_names
    _, lean = model.run_with_cache(tokens(), lean=True)
    equal(full, lean, 2e-5)


def test_a_full_cache_grows_with_the_length_of_the_text_not_with_its_square(model: Any) -> None:
    stored = model.run_with_cache(tokens())[1].frame.set_index("name").stored
    assert not stored["blocks.0.attn.hook_attn_scores"]
    assert not stored["blocks.0.attn.hook_pattern"]
    short, long = (model.cache_size(torch.zeros(1, n, dtype=torch.long)) for n in (10, 40))
    assert long == 4 * short


def test_scores_that_look_at_earlier_keys_are_stored(model: Any, tmp_path: Path) -> None:
    ids = tokens()
    whole = model.run_with_cache(ids)[1]
    past = model(ids[:, :5], use_cache=True).past_key_values
    _, rest = model.run_with_cache(ids[:, 5:], past_key_values=past)
    torch.testing.assert_close(rest["pattern", 1], whole["pattern", 1][:, :, 5:], rtol=0, atol=1e-5)
    rest.save(tmp_path / "rest.safetensors")
    again = ActivationCache.load(tmp_path / "rest.safetensors", model)
    assert torch.equal(again["pattern", 1], rest["pattern", 1])
    # What was left out of a run with earlier keys cannot be made up for later.
    past = model(ids[:, :5], use_cache=True).past_key_values
    _, part = model.run_with_cache(ids[:, 5:], "*.hook_rot_?", past_key_values=past)
    part.save(tmp_path / "part.safetensors")
    again = ActivationCache.load(tmp_path / "part.safetensors", model)
    with pytest.raises(HookNameError, match="not in this cache"):
        again["attn_scores", 1]


def test_a_cache_of_texts_is_saved_and_loaded(tmp_path: Path) -> None:
    model = nl.load()
    _, cache = model.run_with_cache(["Mary went to the garden", "John slept"])
    cache.save(tmp_path / "cache.safetensors")
    for of in (model, nl.load(), None):
        again = type(cache).load(tmp_path / "cache.safetensors", of)
        assert again.pieces == cache.pieces
        assert torch.equal(again["resid_post", 2], cache["resid_post", 2])
    with pytest.raises(CheckpointError, match="weights differ"):
        type(cache).load(tmp_path / "cache.safetensors", nl.load(revision="step512"))


def test_patching_across_models_is_said_and_other_structures_refused() -> None:
    model, early = nl.load(), nl.load(revision="step512")
    clean, corrupted = "The best school of Sweden is in", "The best school of Russia is in"
    metric = nl.patching.logit_difference(5)
    with pytest.warns(NeoxLabWarning, match="patches across models"):
        nl.patching.sweep(model, early.run_with_cache(clean)[1], corrupted, metric, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for own in (model, nl.load()):
            cache = own.run_with_cache(clean)[1]
            nl.patching.sweep(model, cache, corrupted, metric, progress=False)
    other = nl.gym.planted()
    ids = model.to_tokens(clean) % other.config.vocab_size
    with pytest.raises(CheckpointError, match="structure"):
        nl.patching.sweep(model, other.run_with_cache(ids)[1], corrupted, metric, progress=False)


def test_a_cache_of_the_same_model_before_its_weights_changed_is_said() -> None:
    model = nl.load()
    clean, corrupted = "The best school of Sweden is in", "The best school of Russia is in"
    _, cache = model.run_with_cache(clean)
    with torch.no_grad():
        model.gpt_neox.layers[1].attention.dense.weight.mul_(1.5)
    metric = nl.patching.logit_difference(5)
    with pytest.warns(NeoxLabWarning, match="patches across models"):
        nl.patching.sweep(model, cache, corrupted, metric, progress=False)


def test_a_file_that_came_meanwhile_is_not_spilled_over(tmp_path: Path) -> None:
    model, path = nl.load(), tmp_path / "cache.safetensors"

    def somebody(tensor: Any, hook: Any) -> None:
        path.write_text("mine")

    with model.hooks([("blocks.0.hook_resid_post", somebody)]):
        with pytest.raises(CheckpointError, match="exists"):
            model.run_with_cache("Mary went", budget=10, spill=path)
    assert path.read_text() == "mine"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("spill", [3, "a\0b", "x" * 300, True])
def test_odd_places_to_spill_to(
    spill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NeoxLabError):
        nl.load().run_with_cache("Mary went", budget=10, spill=spill)
    assert list(tmp_path.iterdir()) == []
