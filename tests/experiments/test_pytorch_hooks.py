"""Every question about a model on which PyTorch hooks stand is exact, or refused by name.

The oracle knows no hooks: a twin whose weights are scaled so that a plain forward pass of it
computes what the hooks make of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapted import METRIC, build, close, ids
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.errors import HookError
from neox_lab.family.factored import FactoredMatrix

QUIET = {"progress": False}
HALF_OF_Z = ("blocks.*.attn.hook_z", lambda z, hook: 0.5 * z)
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_E", "W_U", "OV", "QK")
LAYER = "gpt_neox.layers.1"


def _sweep(site: str) -> Callable[[Any], Any]:
    return lambda model: nl.patching.sweep(model, ids(1), ids(0), METRIC, site, **QUIET).values


def _derived(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda model: read(model.run_with_cache(ids())[1])


def _generated(**settings: Any) -> Callable[[Any], Any]:
    def ask(model: Any) -> Tensor:
        found = model.generate(
            ids(),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )
        return torch.stack(found.logits)

    return ask


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "forward": lambda model: model(ids()).logits,
    "run_with_hooks": lambda model: model.run_with_hooks(ids(), [HALF_OF_Z]).logits,
    **{
        f"sweep {site}": _sweep(site)
        for site in ("z", "q", "pattern_all_pos", "resid_pre", "attn_out", "mlp_out", "resid_post")
    },
    "ablate": lambda model: nl.patching.ablate(model, ids(), METRIC, **QUIET).values,
    "path_patch": lambda model: (
        nl.patching.path_patch(model, ids(1), ids(0), METRIC, **QUIET).values
    ),
    "edge_sweep": lambda model: (
        nl.patching.edge_sweep(
            model, ids(1), ids(0), METRIC, ["L0H0", "L1H2"], ["L2H1.q", "logits"], **QUIET
        ).values
    ),
    "attribution nodes": lambda model: (
        nl.attribution.attribution_patch(model, ids(1), ids(0), METRIC, "z").values
    ),
    "attribution edges": lambda model: (
        nl.attribution.attribution_patch(model, ids(1), ids(0), METRIC, "edges").values
    ),
    "integrated gradients": lambda model: (
        nl.attribution.integrated_gradients(model, ids(), METRIC, steps=3).values
    ),
    "occlusion": lambda model: nl.attribution.occlusion(model, ids(), METRIC).values,
    "direct": lambda model: nl.attribution.direct_logit_attribution(model, ids(), METRIC).values,
    "lens": lambda model: nl.lens.logit_lens(model, ids()),
    "direct shares": lambda model: nl.lens.direct(model, ids(), 3, 7).shares,
    "heads": lambda model: nl.detect.heads(model, inputs=ids().repeat(1, 2)),
    "copying": lambda model: nl.detect.copying_scores(model),
    "generate": _generated(),
    "generate without a cache": _generated(use_cache=False),
    "beams": _generated(num_beams=2),
    "pattern": _derived(lambda cache: cache["pattern", 1]),
    "accumulated": _derived(lambda cache: cache.accumulated_resid()),
    "head results": _derived(lambda cache: cache.stack_head_results(-1)),
    **{name: (lambda model, name=name: getattr(model, name)) for name in WEIGHTS},
}


def scale(parameter: str, factor: float, bias: bool = True) -> Callable[[Any], None]:
    """Make a twin: the weight of a module times ``factor``, and its bias if it has one."""

    def twin(model: Any) -> None:
        module = model.get_submodule(parameter)
        with torch.no_grad():
            module.weight *= factor
            if bias and getattr(module, "bias", None) is not None:
                module.bias *= factor

    return twin


def double(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook that doubles what is handed on."""
    if isinstance(output, Tensor):
        return 2 * output
    if isinstance(output, tuple):
        return (2 * output[0], *output[1:])
    name = "logits" if "logits" in output else "last_hidden_state"
    output[name] = 2 * output[name]
    return output


def halve(_module: nn.Module, inputs: Any, named: Any) -> Any:
    """A forward pre-hook that halves what is read."""
    return (0.5 * inputs[0], *inputs[1:]), named


def look(*_: object) -> None:
    """A hook that changes nothing."""


DOUBLED = {
    "": "embed_out",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gpt_neox.embed_in": "gpt_neox.embed_in",
    "gpt_neox.emb_dropout": "gpt_neox.embed_in",
    f"{LAYER}.input_layernorm": f"{LAYER}.input_layernorm",
    f"{LAYER}.post_attention_layernorm": f"{LAYER}.post_attention_layernorm",
    f"{LAYER}.attention": f"{LAYER}.attention.dense",
    f"{LAYER}.attention.query_key_value": f"{LAYER}.attention.query_key_value",
    f"{LAYER}.attention.dense": f"{LAYER}.attention.dense",
    f"{LAYER}.mlp": f"{LAYER}.mlp.dense_4h_to_h",
    f"{LAYER}.mlp.dense_h_to_4h": f"{LAYER}.mlp.dense_h_to_4h",
    f"{LAYER}.mlp.dense_4h_to_h": f"{LAYER}.mlp.dense_4h_to_h",
    "gpt_neox.final_layer_norm": "gpt_neox.final_layer_norm",
    "embed_out": "embed_out",
}
"""From a module whose output is doubled to the one whose weights are, instead."""
HALVED = {
    f"{LAYER}.attention": f"{LAYER}.attention.query_key_value",
    f"{LAYER}.attention.query_key_value": f"{LAYER}.attention.query_key_value",
    f"{LAYER}.attention.dense": f"{LAYER}.attention.dense",
    f"{LAYER}.mlp": f"{LAYER}.mlp.dense_h_to_4h",
    f"{LAYER}.mlp.dense_h_to_4h": f"{LAYER}.mlp.dense_h_to_4h",
    f"{LAYER}.mlp.dense_4h_to_h": f"{LAYER}.mlp.dense_4h_to_h",
    "embed_out": "embed_out",
}
"""From a module whose input is halved to the one whose weight is, instead."""
LOOKED_AT = [*DOUBLED, LAYER]
CASES = [
    *(("double", place) for place in DOUBLED),
    *(("halve", place) for place in HALVED),
    *((kind, place) for kind in ("look", "look before") for place in LOOKED_AT),
    ("everywhere", ""),
]


def put(kind: str, place: str, model: Any) -> Any:
    """Place a hook; what is returned takes it away."""
    module = model.get_submodule(place)
    if kind == "halve":
        return module.register_forward_pre_hook(halve, with_kwargs=True)
    if kind == "look before":
        return module.register_forward_pre_hook(look)
    if kind == "everywhere":
        return nn.modules.module.register_module_forward_hook(of_layer_norms)
    return module.register_forward_hook(double if kind == "double" else look)


def twin_of(kind: str, place: str) -> Any:
    """A model without hooks that computes the same."""
    twin = build()
    if kind == "double":
        scale(DOUBLED[place], 2.0)(twin)
    elif kind == "halve":
        scale(HALVED[place], 0.5, bias=False)(twin)
    elif kind == "everywhere":
        for name, part in twin.named_modules():
            if isinstance(part, nn.LayerNorm):
                scale(name, 2.0)(twin)
    return twin


def of_layer_norms(module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A hook on every module there is, which doubles what layer norms hand on."""
    return 2 * output if isinstance(module, nn.LayerNorm) else None


def numbers(answer: Any) -> list[Tensor]:
    """Every tensor of an answer."""
    if isinstance(answer, Tensor):
        return [answer]
    if isinstance(answer, FactoredMatrix):
        return [answer.AB]
    return [value for value in vars(answer).values() if isinstance(value, Tensor)]


def answer_or_refusal(kind: str, place: str, question: str) -> list[Tensor] | None:
    """What a model with a hook answers; None if it refuses because of the hook."""
    model = build()
    handle = put(kind, place, model)
    try:
        return numbers(QUESTIONS[question](model))
    except HookError as error:
        if "PyTorch hook" not in str(error):
            raise
        return None
    finally:
        handle.remove()


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_exact_or_refused(question: str) -> None:
    answered = 0
    unhooked = numbers(QUESTIONS[question](build()))
    for kind, place in CASES:
        if not place and question in WEIGHTS:
            continue  # what is done to all that a model hands on is no part of a matrix
        found = answer_or_refusal(kind, place, question)
        if found is None:
            continue
        answered += 1
        looks = kind.startswith("look")
        wanted = unhooked if looks else numbers(QUESTIONS[question](twin_of(kind, place)))
        for a, b in zip(found, wanted, strict=True):
            if a.numel():
                close(a.double(), b.double(), 1e-4)
    # A hook at the embedding, at least, stands in nobody's way but theirs who move embeddings.
    assert answered or question in ("integrated gradients", "occlusion")


@pytest.mark.parametrize("question", ["forward", "run_with_hooks", "generate", "beams"])
def test_what_runs_whole_models_never_refuses(question: str) -> None:
    assert all(answer_or_refusal(kind, place, question) is not None for kind, place in CASES)
