"""Cache arithmetic: whatever is taken apart adds up again, in every wiring and with every head."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracle import SIZES, padding_masks, randomize, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import ConfigError, HookError, HookNameError
from neox_lab.hooks.cache import ActivationCache

LAYERS, HEADS, D_MLP = SIZES["num_hidden_layers"], SIZES["num_attention_heads"], 96
WIRINGS = [
    {"use_parallel_residual": parallel, "attention_bias": bias}
    for parallel in (True, False)
    for bias in (True, False)
]
SELECTIONS = (None, 3, -1, slice(2, 7), slice(None, None, 4), [0, 5, -1], torch.tensor([1, 1]))


def build(name: str = "GPTNeoXForCausalLM", seed: int = 0, **overrides: Any) -> Any:
    model = getattr(nl, name)(nl.GPTNeoXConfig(**SIZES | overrides)).eval()
    randomize(model, seed=seed)
    return model


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality to ``tolerance`` of the largest number (absolute, if that is below 1)."""
    scale = float(b.detach().abs().max().clamp(min=1)) if b.numel() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@pytest.fixture(
    scope="module", params=WIRINGS, ids=lambda w: "-".join(str(v)[0] for v in w.values())
)
def run(request: pytest.FixtureRequest) -> tuple[Any, Tensor, ActivationCache]:
    model = build(**request.param)
    output, cache = model.run_with_cache(tokens(), attention_mask=padding_masks()["left"])
    return model, output.logits, cache


def entering(cache: ActivationCache, layer: int, mlp_input: bool = False) -> Tensor:
    """The residual stream read at ``layer``, straight from the hooks."""
    if mlp_input:
        return cache["mlp_in", layer]
    return cache["resid_pre", layer] if layer < LAYERS else cache["resid_post", layer - 1]


PLACES = [(layer, False) for layer in range(LAYERS + 1)] + [
    (layer, True) for layer in range(LAYERS)
]


def test_accumulated_resid(run: Any) -> None:
    _, _, cache = run
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    for layer, entry in enumerate(stack):
        assert torch.equal(entry, entering(cache, layer))
    assert torch.equal(cache.accumulated_resid(-1), stack)
    assert torch.equal(cache.accumulated_resid(LAYERS), stack)
    assert torch.equal(cache.accumulated_resid(1), stack[:2])


def test_accumulated_resid_in_the_middle(run: Any) -> None:
    model, _, cache = run
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    for layer in range(LAYERS):
        middle = stack[2 * layer + 1]
        close(middle, cache["resid_pre", layer] + cache["attn_out", layer])
        if not model.config.use_parallel_residual:
            assert torch.equal(middle, cache["resid_mid", layer])
    stack, labels = cache.accumulated_resid(1, mlp_input=True, return_labels=True)
    parallel = model.config.use_parallel_residual
    assert labels == ["0_pre", "1_pre"] if parallel else ["0_pre", "1_pre", "1_mid"]
    assert torch.equal(stack[-1], cache["mlp_in", 1])


def test_accumulated_resid_gives_logits_after_the_final_norm(run: Any) -> None:
    model, logits, cache = run
    lens = cache.accumulated_resid(apply_ln=True) @ model.W_U
    close(lens[-1].detach(), logits)
    early = model.backbone.final_layer_norm(cache["resid_pre", 1]) @ model.W_U
    close(lens[1].detach(), early.detach())


@pytest.mark.parametrize(("layer", "mlp_input"), PLACES)
def test_decompose_resid_sums_to_what_is_read(run: Any, layer: int, mlp_input: bool) -> None:
    model, _, cache = run
    stack, labels = cache.decompose_resid(layer, mlp_input, return_labels=True)
    close(stack.sum(0), entering(cache, layer, mlp_input))
    assert labels[0] == "embed"
    assert labels[1:3] in ([], ["0_attn_out"], ["0_attn_out", "0_mlp_out"])
    own = mlp_input and not model.config.use_parallel_residual
    assert len(labels) == len(stack) == 1 + 2 * layer + own
    for label, entry in zip(labels[1:], stack[1:], strict=True):
        block, _, name = label.partition("_")
        assert torch.equal(entry, cache[name, int(block)])


def test_decompose_resid_modes(run: Any) -> None:
    _, _, cache = run
    attention, labels = cache.decompose_resid(mode="attn", incl_embeds=False, return_labels=True)
    assert labels == ["0_attn_out", "1_attn_out", "2_attn_out"]
    mlps, labels = cache.decompose_resid(mode="mlp", return_labels=True)
    assert labels == ["embed", "0_mlp_out", "1_mlp_out", "2_mlp_out"]
    close(attention.sum(0) + mlps.sum(0), cache["resid_post", 2])
    assert cache.decompose_resid(0, incl_embeds=False).shape == (0, 3, 12, 64)
    with pytest.raises(HookError, match="'all', 'mlp' or 'attn'"):
        cache.decompose_resid(mode="heads")


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_heads_sum_to_attention_outputs(run: Any, layer: int) -> None:
    model, _, cache = run
    stack, labels = cache.stack_head_results(layer, return_labels=True)
    assert labels == model.all_head_labels[: layer * HEADS]
    assert stack.shape == (layer * HEADS, 3, 12, 64)
    for block in range(layer):
        heads = stack[block * HEADS : (block + 1) * HEADS].sum(0)
        close(heads + model.b_O[block].detach(), cache["attn_out", block])
        close(stack[block * HEADS + 2], cache["result", block][:, :, 2])
    everything, labels = cache.stack_head_results(layer, True, incl_remainder=True)
    assert labels[-1] == "remainder"
    close(everything.sum(0), entering(cache, layer))


@pytest.mark.parametrize(("layer", "mlp_input"), PLACES)
def test_neurons_sum_to_mlp_outputs(run: Any, layer: int, mlp_input: bool) -> None:
    model, _, cache = run
    arguments = {"mlp_input": mlp_input, "pos_slice": [2, 11]}
    stack, labels = cache.stack_neuron_results(layer, return_labels=True, **arguments)
    assert len(labels) == len(stack) == layer * D_MLP
    for block in range(layer):
        neurons = stack[block * D_MLP : (block + 1) * D_MLP].sum(0)
        close(neurons + model.b_out[block].detach(), cache["mlp_out", block][:, [2, 11]])
    everything, labels = cache.stack_neuron_results(
        layer, None, None, True, True, mlp_input=mlp_input
    )
    assert labels[-1] == "remainder"
    close(everything.sum(0), entering(cache, layer, mlp_input))


def test_chosen_neurons(run: Any) -> None:
    _, _, cache = run
    every = cache.stack_neuron_results(-1).view(LAYERS, D_MLP, 3, 12, 64)
    some, labels = cache.stack_neuron_results(-1, None, [7, 90], return_labels=True)
    assert labels == ["L0N7", "L0N90", "L1N7", "L1N90", "L2N7", "L2N90"]
    close(some, every[:, [7, 90]].flatten(0, 1))
    one, labels = cache.stack_neuron_results(-1, None, 7, return_labels=True)
    assert labels == ["L0N7", "L1N7", "L2N7"]
    close(one, every[:, 7])
    close(cache.get_neuron_results(1, 7, 3), every[1, 7, :, 3])
    close(cache.get_neuron_results(1, pos_slice=3), every[1, :, :, 3].transpose(0, 1))


@pytest.mark.parametrize("expand_neurons", [True, False])
@pytest.mark.parametrize("apply_ln", [True, False])
@pytest.mark.parametrize(("layer", "mlp_input"), PLACES)
def test_full_decomposition(
    run: Any, layer: int, mlp_input: bool, apply_ln: bool, expand_neurons: bool
) -> None:
    model, _, cache = run
    arguments = (layer, mlp_input, expand_neurons, apply_ln)
    stack, labels = cache.get_full_resid_decomposition(*arguments, return_labels=True)
    assert len(labels) == len(stack) == len(set(labels))
    own = mlp_input and not model.config.use_parallel_residual
    heads, mlps = (layer + own) * HEADS, layer * (D_MLP if expand_neurons else 1)
    assert labels[:heads] == model.all_head_labels[:heads]
    assert labels[heads + mlps :] == ["embed", "bias"]
    whole = entering(cache, layer, mlp_input)
    if apply_ln:
        norm = "ln_final" if layer == LAYERS else f"blocks.{layer}.ln{1 + mlp_input}"
        whole = cache[f"{norm}.hook_normalized"]
    close(stack.sum(0), whole)

    generator = torch.Generator().manual_seed(1)
    onto = torch.randn(64, 5, generator=generator)
    projected = cache.get_full_resid_decomposition(*arguments, project_output_onto=onto)
    close(projected, stack @ onto)
    along_one = cache.get_full_resid_decomposition(*arguments, project_output_onto=onto[:, 1])
    close(along_one, stack @ onto[:, 1])


@pytest.mark.parametrize("which", SELECTIONS, ids=str)
@pytest.mark.parametrize("apply_ln", [True, False])
def test_positions(run: Any, which: Any, apply_ln: bool) -> None:
    _, _, cache = run
    index = slice(None) if which is None else which
    for made in (
        lambda **k: cache.decompose_resid(apply_ln=apply_ln, **k),
        lambda **k: cache.stack_head_results(2, apply_ln=apply_ln, incl_remainder=True, **k),
        lambda **k: cache.stack_neuron_results(
            1, neuron_slice=slice(5), apply_ln=apply_ln, incl_remainder=True, **k
        ),
        lambda **k: cache.get_full_resid_decomposition(1, apply_ln=apply_ln, **k),
        lambda **k: cache.accumulated_resid(apply_ln=apply_ln, **k),
    ):
        close(made(pos_slice=which), made()[:, :, index])


def test_layer_norm_of_a_stack(run: Any) -> None:
    _, _, cache = run
    for layer, mlp_input in PLACES:
        stack = cache.decompose_resid(layer, mlp_input)
        norm = "ln_final" if layer == LAYERS else f"blocks.{layer}.ln{1 + mlp_input}"
        whole = cache[f"{norm}.hook_normalized"]
        close(cache.apply_ln_to_stack(stack, layer, mlp_input).sum(0), whole)
        rows = cache.apply_ln_to_stack(stack, layer, mlp_input, batch_slice=[2, 0])
        close(rows.sum(0), whole[[2, 0]])
        row = cache.apply_ln_to_stack(stack[:, :, 4], layer, mlp_input, 4, batch_slice=1)
        close(row.sum(0), whole[1, 4])
        alone = stack[:, 1]
        row = cache.apply_ln_to_stack(alone, layer, mlp_input, batch_slice=1, has_batch_dim=False)
        close(row.sum(0), whole[1])


@pytest.mark.parametrize(
    ("right", "wrong"), [(5, 17), ([3, 4, 5], [200, 8, 5])], ids=["one", "row"]
)
def test_shares_sum_to_logits(run: Any, right: Any, wrong: Any) -> None:
    _, logits, cache = run
    rows = torch.arange(3)[:, None]
    places = torch.arange(12)
    ids = torch.as_tensor(right).expand(3)[:, None]
    wrong_ids = torch.as_tensor(wrong).expand(3)[:, None]
    difference = logits[rows, places, ids] - logits[rows, places, wrong_ids]
    for stack in (
        cache.decompose_resid(),
        cache.stack_head_results(incl_remainder=True),
        cache.get_full_resid_decomposition(expand_neurons=False),
        cache.get_full_resid_decomposition(),
    ):
        constant = cache.logit_bias(right)
        constant = constant[:, None] if constant.dim() else constant
        close(cache.logit_attrs(stack, right).sum(0) + constant, logits[rows, places, ids])
        constant = cache.logit_bias(right, wrong)
        constant = constant[:, None] if constant.dim() else constant
        close(cache.logit_attrs(stack, right, wrong).sum(0) + constant, difference)


def test_tokens_of_every_shape(run: Any) -> None:
    model, logits, cache = run
    stack = cache.decompose_resid()
    targets = tokens(seed=9)
    at_places = logits.gather(2, targets[..., None])[..., 0]
    close(cache.logit_attrs(stack, targets).sum(0) + cache.logit_bias(targets), at_places)
    by_place = targets[0]
    shares = cache.logit_attrs(stack, by_place)
    close(shares.sum(0) + cache.logit_bias(by_place), logits[:, torch.arange(12), by_place])
    assert torch.equal(cache.logit_attrs(stack, by_place[None]), shares)
    last = stack[:, :, -1]
    ids = torch.tensor([7, 8, 9])
    shares = cache.logit_attrs(last, ids, pos_slice=-1).sum(0) + cache.logit_bias(ids)
    close(shares, logits[torch.arange(3), -1, ids])
    shares = cache.logit_attrs(stack, ids[1:2], batch_slice=[1]).sum(0) + cache.logit_bias(8)
    close(shares, logits[1:2, :, 8])
    alone = cache.logit_attrs(last[:, 2], 9, None, -1, 2, has_batch_dim=False)
    close(alone.sum() + cache.logit_bias(9), logits[2, -1, 9])


def test_tokens_that_do_not_fit(run: Any) -> None:
    _, _, cache = run
    stack = cache.decompose_resid()
    with pytest.raises(HookError, match="from 0 to 210"):
        cache.logit_attrs(stack, 211)
    with pytest.raises(HookError, match="from 0 to 210"):
        cache.logit_attrs(stack, -1)
    with pytest.raises(HookError, match="whole numbers"):
        cache.logit_attrs(stack, torch.tensor(1.0))
    with pytest.raises(HookError, match="one a row"):
        cache.logit_attrs(stack, [1, 2, 3, 4])
    with pytest.raises(HookError, match=r"\[3\], tokens \[\]"):
        cache.logit_attrs(stack, 1, [1, 2, 3])
    with pytest.raises(HookError, match="pass the pos_slice"):
        cache.logit_attrs(stack[:, :, -1], 1)


def test_stacks_with_any_axes_in_front(run: Any) -> None:
    """One stream ``[batch, d_model]``, and ``[layer, head, batch, d_model]``."""
    _, _, cache = run
    heads = cache.stack_head_results(pos_slice=-1).unflatten(0, (LAYERS, HEADS))
    wanted = cache.apply_ln_to_stack(heads.flatten(0, 1), pos_slice=-1)
    close(cache.apply_ln_to_stack(heads, pos_slice=-1), wanted.unflatten(0, (LAYERS, HEADS)))
    shares = cache.logit_attrs(heads.flatten(0, 1), [7, 8, 9], pos_slice=-1)
    close(cache.logit_attrs(heads, [7, 8, 9], pos_slice=-1).flatten(0, 1), shares)
    some = cache.apply_ln_to_stack(heads, pos_slice=-1, batch_slice=[2, 0])
    close(some.flatten(0, 1), wanted[:, [2, 0]])

    final = cache["resid_post", -1]
    close(cache.apply_ln_to_stack(final), cache["ln_final.hook_normalized"])
    close(
        cache.apply_ln_to_stack(final[:, -1], -1, pos_slice=-1),
        cache["ln_final.hook_normalized"][:, -1],
    )
    row = cache.logit_attrs(final[1, -1], 7, None, -1, 1, has_batch_dim=False)
    close(row, cache.logit_attrs(final, 7)[1, -1])
    by_head = cache.stack_head_results().unflatten(0, (LAYERS, HEADS))
    for ids in ([7, 8, 9], tokens()[0], tokens()):
        shares = cache.logit_attrs(by_head, ids)
        close(shares.flatten(0, 1), cache.logit_attrs(by_head.flatten(0, 1), ids))


HEADS_OF_CLASSES = {
    "GPTNeoXForSequenceClassification": "score",
    "GPTNeoXForTokenClassification": "classifier",
    "GPTNeoXForQuestionAnswering": "qa_outputs",
}


@pytest.mark.parametrize("name", HEADS_OF_CLASSES)
@pytest.mark.parametrize("parallel", [True, False])
def test_other_heads(name: str, parallel: bool) -> None:
    labels = {0: "noun", 1: "verb"}
    model = build(name, use_parallel_residual=parallel, id2label=labels)
    _, cache = model.run_with_cache(tokens())
    logits = cache[f"{HEADS_OF_CLASSES[name]}.hook_out"]
    stack = cache.get_full_resid_decomposition()
    for label in range(2):
        shares = cache.logit_attrs(stack, label).sum(0) + cache.logit_bias(label)
        close(shares, logits[..., label])
    names = ("start", "end") if name.endswith("Answering") else ("noun", "verb")
    shares = cache.logit_attrs(stack, *names).sum(0) + cache.logit_bias(*names)
    close(shares, logits[..., 0] - logits[..., 1])
    with pytest.raises(HookError, match=names[1]):
        cache.logit_attrs(stack, "verbs")


def test_no_head() -> None:
    _, cache = build("GPTNeoXModel").run_with_cache(tokens())
    stack = cache.decompose_resid(apply_ln=True)
    close(stack.sum(0), cache["ln_final.hook_normalized"])
    with pytest.raises(ConfigError, match="GPTNeoXModel has no head"):
        cache.logit_attrs(stack, 1)


def test_missing_activations_are_named() -> None:
    model = build()
    _, cache = model.run_with_cache(tokens(), names_filter="blocks.*.hook_attn_out")
    with pytest.raises(
        HookNameError, match=r"names_filter=\['hook_embed', 'blocks.\*.hook_mlp_out'"
    ):
        cache.decompose_resid()
    with pytest.raises(HookNameError, match=r"blocks.\*.attn.hook_z"):
        cache.stack_head_results()
    with pytest.raises(HookNameError, match=r"blocks.\*.mlp.hook_post"):
        cache.stack_neuron_results(2)
    with pytest.raises(HookNameError, match=r"ln_final.hook_scale"):
        cache.decompose_resid(mode="attn", incl_embeds=False, apply_ln=True)
    sparse = [
        "hook_embed",
        "blocks.*.hook_attn_out",
        "blocks.*.hook_mlp_out",
        "ln_final.hook_scale",
    ]
    output, cache = model.run_with_cache(tokens(), names_filter=sparse)
    shares = cache.logit_attrs(cache.decompose_resid(), 7).sum(0) + cache.logit_bias(7)
    close(shares, output.logits[..., 7])


def test_arguments_out_of_range(run: Any) -> None:
    _, _, cache = run
    with pytest.raises(HookError, match="expected 0 to 3"):
        cache.decompose_resid(4)
    with pytest.raises(HookError, match="expected 0 to 3"):
        cache.stack_head_results(-2)
    with pytest.raises(HookError, match="mlp_input=True needs a layer from 0 to 2"):
        cache.decompose_resid(mlp_input=True)
    with pytest.raises(HookError, match="recompute_ln"):
        cache.apply_ln_to_stack(cache.decompose_resid(1), 1, recompute_ln=True)


def test_head_results_from_z_alone() -> None:
    model = build()
    _, full = model.run_with_cache(tokens())
    _, cache = model.run_with_cache(tokens(), names_filter="blocks.*.attn.hook_z")
    close(cache.stack_head_results(pos_slice=-1), full.stack_head_results()[:, :, -1])
    assert ("result", 1) not in cache
    cache.compute_head_results()
    close(cache["result", 1], full["result", 1])
    _, one = model.run_with_cache(tokens(), names_filter="blocks.*.attn.hook_z", pos_slice=4)
    close(one.stack_head_results(), full.stack_head_results()[:, :, 4:5])
    close(one.stack_head_results(pos_slice=0), full.stack_head_results()[:, :, 4])


def test_edited_results_are_the_ones_stacked() -> None:
    model = build()
    edit = ("blocks.1.attn.hook_result", lambda result, hook: result * 2)
    with model.hooks([edit]):
        _, cache = model.run_with_cache(tokens())
    stack = cache.stack_head_results(2, incl_remainder=True)
    close(stack[HEADS : 2 * HEADS].sum(0) + model.b_O[1].detach(), cache["attn_out", 1])


def test_lean_and_loaded_caches_agree(tmp_path: Any) -> None:
    model = build(use_parallel_residual=False)
    _, full = model.run_with_cache(tokens())
    _, lean = model.run_with_cache(tokens(), lean=True)
    full.save(tmp_path / "cache.safetensors")
    loaded = ActivationCache.load(tmp_path / "cache.safetensors", model=model)
    wanted = full.get_full_resid_decomposition(apply_ln=True)
    close(lean.get_full_resid_decomposition(apply_ln=True), wanted)
    close(loaded.get_full_resid_decomposition(apply_ln=True), wanted)
    orphan = ActivationCache.load(tmp_path / "cache.safetensors")
    close(orphan.decompose_resid(apply_ln=True).sum(0), full["ln_final.hook_normalized"])
    with pytest.raises(HookError, match="model=model"):
        orphan.stack_head_results(1)


def test_stack_activation() -> None:
    _, cache = build().run_with_cache(tokens())
    patterns = cache.stack_activation("pattern")
    assert torch.equal(patterns[2], cache["pattern", 2])
    assert cache.stack_activation("pattern", 2).shape[0] == 2
    assert torch.equal(cache.stack_activation("scale", 1, "ln2")[0], cache["scale", 0, "ln2"])


def test_half_precision_caches_and_gradients() -> None:
    """Kept in bfloat16, the parts are coarse, but the arithmetic runs; it never records a graph."""
    model = build()
    output, cache = model.run_with_cache(tokens(), dtype=torch.bfloat16)
    stack = cache.get_full_resid_decomposition(apply_ln=True)
    assert not stack.requires_grad
    shares = cache.logit_attrs(cache.decompose_resid(), 5)
    assert not shares.requires_grad
    close(shares.sum(0) + cache.logit_bias(5), output.logits[..., 5], tolerance=0.05)


@settings(max_examples=15, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_any_shape_adds_up(
    parallel: bool, bias: bool, layers: int, batch: int, pos: int, seed: int
) -> None:
    model = build(
        seed=seed, use_parallel_residual=parallel, attention_bias=bias, num_hidden_layers=layers
    )
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, pos, generator=generator) < 0.7).long()
    ids = tokens(batch, pos, seed=seed)
    output, cache = model.run_with_cache(ids, attention_mask=mask)
    layer = seed % (layers + 1)
    whole = cache["resid_pre", layer] if layer < layers else cache["resid_post", layer - 1]
    close(cache.get_full_resid_decomposition(layer).sum(0), whole)
    stack = cache.stack_head_results(incl_remainder=True)
    shares = cache.logit_attrs(stack, ids, ids.flip(0)).sum(0) + cache.logit_bias(ids, ids.flip(0))
    picked = [output.logits.gather(2, which[..., None])[..., 0] for which in (ids, ids.flip(0))]
    close(shares, picked[0] - picked[1])
