"""Modules of somebody's own and PyTorch hooks: what holds for upstream's forward holds for ours.

What calls parts of a network by themselves gives what whole forward passes give, or names what
stands in the way before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import METRIC, build, close, ids, with_lora
from oracle import pair, tokens
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.errors import ConfigError, HookError, HookNameError, HookNeverFiredError
from neox_lab.experiments.lens import logit_lens
from neox_lab.experiments.paths.path_patching import edge_sweep

TAKEN_APART: dict[str, Callable[[Any], object]] = {
    "sweep": lambda model: nl.patching.sweep(model, ids(1), ids(0), METRIC, "z", progress=False),
    "ablate": lambda model: nl.patching.ablate(model, ids(), METRIC, progress=False),
    "edge_sweep": lambda model: edge_sweep(model, ids(1), ids(0), METRIC, progress=False),
    "edges": lambda model: nl.attribution.attribution_patch(model, ids(1), ids(0), METRIC, "edges"),
    "direct": lambda model: nl.attribution.direct_logit_attribution(model, ids(), METRIC),
    "lens": lambda model: logit_lens(model, ids()),
}
PLACES = [
    "gpt_neox",
    "gpt_neox.layers.1",
    "gpt_neox.layers.1.attention",
    "gpt_neox.layers.1.attention.query_key_value",
    "gpt_neox.layers.1.attention.dense",
    "gpt_neox.layers.1.mlp",
    "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "gpt_neox.layers.1.input_layernorm",
    "gpt_neox.final_layer_norm",
    "embed_out",
]


class Scaled(nn.Module):
    """A module of somebody's own, which reads its input alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.inner(x)


class Mixing(nn.Module):
    """Lets each token see the one before."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, dims=-2)


def one_forward_pass_a_cell(model: Any) -> Tensor:
    """The sweep of z by its definition: ``[layer, pos, head]``."""
    clean = model.run_with_cache(ids(1), ["blocks.*.attn.hook_z"])[1]
    values = torch.empty(3, 6, 4)
    for layer, pos, head in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():

        def patch(z: Tensor, hook: Any, at: Any = (slice(None), pos, head)) -> None:
            z[at] = clean[hook.name][at]

        with torch.no_grad():
            logits = model.run_with_hooks(ids(0), [(f"blocks.{layer}.attn.hook_z", patch)]).logits
        values[layer, pos, head] = METRIC.bind(model, {"input_ids": ids(0)}).per_row(logits).mean()
    return values


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("question", TAKEN_APART)
def test_hooks_that_would_be_skipped_are_named(place: str, question: str) -> None:
    model = build()
    handle = model.get_submodule(place).register_forward_hook(lambda *_: None)
    with pytest.raises(HookError, match=f"^{place} has a PyTorch hook"):
        TAKEN_APART[question](model)
    handle.remove()
    handle = model.get_submodule(place).register_forward_pre_hook(lambda *_: None)
    with pytest.raises(HookError, match=f"^{place} has a PyTorch hook"):
        TAKEN_APART[question](model)
    handle.remove()
    TAKEN_APART[question](model)


def test_hooks_at_the_embedding_are_called() -> None:
    model = build()
    model.gpt_neox.embed_in.register_forward_hook(lambda module, inputs, out: 2 * out.flip(-1))
    values = nl.patching.sweep(model, ids(1), ids(0), METRIC, "z", progress=False).values
    close(values, one_forward_pass_a_cell(model))
    with pytest.raises(HookError, match="embed_in"):
        _ = model.W_E


def test_gradients_can_be_let_in_without_refusing_anything() -> None:
    model = build()
    model.enable_input_require_grads()
    assert model.W_E is model.gpt_neox.embed_in.weight
    for ask in TAKEN_APART.values():
        ask(model)


@pytest.mark.parametrize("name", ["W_O", "W_Q", "W_U", "W_in"])
def test_weights_behind_hooks_are_refused(name: str) -> None:
    places = {"W_O": "attention.dense", "W_Q": "attention.query_key_value", "W_U": "embed_out"}
    model = build()
    for module_name, module in model.named_modules():
        if module_name.endswith(places.get(name, "mlp.dense_h_to_4h")):
            module.register_forward_hook(lambda *_: None)
    with pytest.raises(HookError, match="PyTorch hook"):
        getattr(model, name)


def double(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook that doubles whatever tensor comes first."""
    if isinstance(output, Tensor):
        return 2 * output
    if isinstance(output, tuple):
        return (2 * output[0], *output[1:])
    output.last_hidden_state = 2 * output.last_hidden_state
    return output


def halve(module: nn.Module, inputs: Any) -> Any:
    """A forward pre-hook for modules that are called with one tensor."""
    (x,) = inputs
    return (0.5 * x,)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    ("place", "hook", "before"),
    [
        ("gpt_neox", double, False),
        ("gpt_neox.final_layer_norm", double, False),
        ("gpt_neox.layers.1.mlp", double, False),
        ("gpt_neox.layers.1.mlp", halve, True),
        ("gpt_neox.layers.1.attention.dense", halve, True),
        ("gpt_neox.layers.1.post_attention_layernorm", double, False),
        ("gpt_neox.embed_in", double, False),
    ],
)
def test_hooks_act_as_upstream(place: str, hook: Any, before: bool, watched: bool) -> None:
    theirs, ours = pair()
    for model in (theirs, ours):
        module = model.get_submodule(place)
        (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
    given = tokens(2, 7, 211)
    with torch.no_grad():
        expected = theirs(given).logits
    if watched:
        output, cache = ours.run_with_cache(given)
        cache["mlp_out", 1], cache["pre", 1], cache["resid_post", 2]
    else:
        output = ours(given)
    close(output.logits, expected)


def test_what_a_hooked_layer_norm_hands_on_is_kept_not_made() -> None:
    model = build()
    model.gpt_neox.layers[1].input_layernorm.register_forward_hook(lambda m, i, out: 2 * out)
    seen = []
    model.gpt_neox.layers[1].attention.query_key_value.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    cache = model.run_with_cache(ids())[1]
    close(cache["blocks.1.attn.hook_in"], seen[0])
    with pytest.raises(HookError, match=r"layer norm at ln1"):
        model.run_with_hooks(ids(), [("blocks.1.ln1.hook_scale", lambda t, hook: 2 * t)])


def test_results_of_a_hooked_projection_are_refused_only_when_asked_for() -> None:
    model = build()
    model.gpt_neox.layers[1].attention.dense.register_forward_hook(lambda m, i, out: 2 * out)
    output, cache = model.run_with_cache(ids())
    close(output.logits, model(ids()).logits)
    cache["result", 0]
    with pytest.raises(HookError, match=r"attention\.dense"):
        cache["result", 1]
    with pytest.raises(HookError, match=r"attention\.dense"):
        model.run_with_hooks(ids(), [("blocks.1.attn.hook_result", lambda t, hook: 0 * t)])


def replace(model: Any, place: str, make: Callable[[nn.Module], nn.Module]) -> None:
    parent, _, name = place.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, name, make(getattr(owner, name)))


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("gpt_neox.layers.1.mlp", Scaled),
        ("gpt_neox.layers.1.mlp", lambda inner: nn.Linear(64, 64)),
        ("gpt_neox.layers.1.attention.dense", Scaled),
        ("gpt_neox.layers.1.attention.query_key_value", nn.Sequential),
        ("gpt_neox.layers.1.input_layernorm", Scaled),
        ("gpt_neox.final_layer_norm", Scaled),
        ("gpt_neox.embed_in", nn.Sequential),
        ("gpt_neox.embed_in", lambda inner: nn.Sequential(inner, nn.Tanh())),
        ("lm_head", nn.Sequential),
        ("lm_head", lambda inner: nn.Linear(64, 211)),
    ],
)
def test_replacements_act_as_upstream(place: str, make: Any) -> None:
    theirs, ours = pair()
    for model in (theirs, ours):
        torch.manual_seed(0)
        replace(model, place, make)
    given = tokens(2, 7, 211)
    with torch.no_grad():
        close(ours(given).logits, theirs(given).logits)
        names = ["blocks.*.hook_resid_post", "blocks.*.hook_mlp_out"]
        output, cache = ours.run_with_cache(given, names)
        close(output.logits, ours(given).logits)
        lean = ours.run_with_cache(given, lean=True)[1]
        close(lean["mlp_out", 2], cache["mlp_out", 2])
        new = ours.generate(given, max_new_tokens=3, do_sample=False)
        expected = theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=3, do_sample=False
        )
    assert torch.equal(new, expected)


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("gpt_neox.layers.1.mlp", Scaled),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h", Scaled),
        ("gpt_neox.layers.1.attention.dense", Scaled),
        ("gpt_neox.layers.1.attention.query_key_value", Scaled),
        ("gpt_neox.layers.1.post_attention_layernorm", Scaled),
        ("gpt_neox.final_layer_norm", Scaled),
        ("gpt_neox.embed_in", nn.Sequential),
        ("embed_out", Scaled),
    ],
)
def test_sweeps_are_exact_with_modules_that_treat_tokens_alone(place: str, make: Any) -> None:
    model = build()
    replace(model, place, make)
    values = nl.patching.sweep(model, ids(1), ids(0), METRIC, "z", progress=False).values
    close(values, one_forward_pass_a_cell(model))


@pytest.mark.parametrize("question", ["sweep", "edge_sweep", "direct"])
def test_modules_that_mix_tokens_are_refused(question: str) -> None:
    model = build()
    replace(model, "gpt_neox.layers.1.mlp", lambda _: Mixing())
    model(ids())
    with pytest.raises(HookError, match=r"layers\.1\.mlp is a Mixing"):
        TAKEN_APART[question](model)


def test_blocks_and_attention_of_other_classes_are_refused() -> None:
    model = build()
    attention = type(model.gpt_neox.layers[1].attention)

    class Louder(attention):  # type: ignore[misc, valid-type]
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            return 2 * super().forward(*arguments, **named)

    model.gpt_neox.layers[1].attention.__class__ = Louder
    with pytest.raises(HookError, match=r"layers\.1\.attention is a Louder"):
        TAKEN_APART["sweep"](model)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("gpt_neox.layers.1.attention.dense", "W_O"),
        ("gpt_neox.layers.1.attention.query_key_value", "W_Q"),
        ("embed_out", "W_U"),
    ],
)
def test_what_is_no_linear_map_has_no_weight(place: str, name: str) -> None:
    model = build()
    replace(model, place, lambda inner: nn.Sequential(inner, nn.Tanh()))
    with pytest.raises(HookError, match="not one linear map"):
        getattr(model, name)
    if name != "W_Q":  # nobody's share depends on how queries are made
        with pytest.raises(HookError, match="not one linear map"):
            TAKEN_APART["direct"](model)


def test_a_replaced_mlp_has_no_neurons() -> None:
    model = build()
    replace(model, "gpt_neox.layers.1.mlp", Scaled)
    output, cache = model.run_with_cache(ids())
    close(output.logits, model(ids()).logits)
    cache["pre", 0]
    with pytest.raises(HookNameError):
        cache["pre", 1]
    with pytest.raises(HookNeverFiredError):
        model.run_with_hooks(ids(), [("blocks.1.mlp.hook_pre", lambda t, hook: None)])
    with pytest.raises(HookError, match="mlp is a Scaled"):
        _ = model.W_in
    with pytest.raises(HookError, match="mlp is a Scaled"):
        cache.stack_neuron_results(-1)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_fetched_when_they_are_needed(where: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    plain, away = build(), build()
    if where == "cpu":
        accelerate.cpu_offload(away, execution_device="cpu")
    else:
        accelerate.disk_offload(away, tmp_path, execution_device="cpu")
    assert next(away.parameters()).is_meta
    cache, expected = (model.run_with_cache(ids())[1] for model in (away, plain))
    assert list(cache) == list(expected)
    for name, tensor in expected.items():
        close(cache[name], tensor)
    assert torch.equal(
        away.generate(ids(), max_new_tokens=3, do_sample=False),
        plain.generate(ids(), max_new_tokens=3, do_sample=False),
    )
    close(away.W_Q, plain.W_Q)
    sweeps = [
        nl.patching.sweep(model, ids(1), ids(0), METRIC, "z", progress=False).values
        for model in (away, plain)
    ]
    close(*sweeps)
    with pytest.raises(HookError, match="final_layer_norm is a LayerNorm whose forward"):
        TAKEN_APART["direct"](away)


def test_embeddings_behind_other_modules_are_not_resized() -> None:
    model = build()
    replace(model, "gpt_neox.embed_in", nn.Sequential)
    with pytest.raises(ConfigError, match="a Sequential in the place of embeddings"):
        model.resize_token_embeddings(60)


def test_quantized_matrices_have_no_weight() -> None:
    model = build()
    plain = model(ids()).logits

    def quantized(inner: nn.Module) -> nn.Module:
        class Rounded(nn.Module):
            """Weights and inputs of eight bits, as torch.ao's dynamic quantization has them."""

            def __init__(self) -> None:
                super().__init__()
                self.scale = float(inner.weight.detach().abs().max()) / 127
                self.register_buffer("stored", (inner.weight / self.scale).round().to(torch.int8))
                self.register_buffer("bias", inner.bias.detach())

            def forward(self, x: Tensor) -> Tensor:
                step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-9) / 127
                weight = self.stored.to(x.dtype).T * self.scale
                return (x / step).round() @ weight * step + self.bias

        return Rounded()

    replace(model, "gpt_neox.layers.1.attention.dense", quantized)
    close(model(ids()).logits, plain, 0.2)
    ask = {"site": "resid_pre", "progress": False}
    nl.patching.sweep(model, ids(1), ids(0), METRIC, **ask)  # only calls it
    for question in ("sweep", "direct"):
        with pytest.raises(HookError, match=r"attention\.dense is a Rounded.*not one linear map"):
            TAKEN_APART[question](model)
    with pytest.raises(HookError, match="not one linear map"):
        _ = model.OV


def test_tying_weights_leaves_adapters_alone() -> None:
    model = with_lora(build(tie_word_embeddings=True), ["embed_out"])
    before = [name for name, _ in model.named_parameters()]
    logits = model(ids()).logits
    model.tie_weights()
    assert [name for name, _ in model.named_parameters()] == before
    assert torch.equal(model(ids()).logits, logits)
