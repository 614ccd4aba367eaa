"""Good calls of what came after ``calls.py`` was long: prompts, training, patching one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from calls_of_circuits import calls_of_circuits
from calls_of_interchange import calls_of_interchange
from calls_of_steering import calls_of_steering
from dictionaries import random_dictionary

import neox_lab as nl
from neox_lab.sae.activations import ReLU

Call = tuple[Callable[..., Any], dict[str, Any]]


def newer_calls(model: Any, folder: Path) -> dict[str, Call]:
    """Functions by name, with arguments that are right."""
    name = folder / "revisions"
    for step in (0, 8):
        model.save_pretrained(name / f"step{step}")
        model.tokenizer.save_pretrained(name / f"step{step}")
    done = folder / "run"
    nl.dynamics.run(_measure, name, "all", to=done, progress=False)
    nl.activations.collect(model, ["abcd", "bc"], "resid_post", folder / "stored", progress=False)
    kept = {"model": model, "texts": ["abcd", "bc"], "sites": "resid_post", "dtype": "float16"}
    kept |= {"pos": "all", "skip_first": 1, "context": 3, "max_tokens": 5}
    return {
        "activations.collect": (
            _collect,
            {**kept, "batch_size": 2, "executor": None, "progress": False},
        ),
        "activations.open": (nl.activations.open, {"folder": folder / "stored", "verify": True}),
        "activations.plan": (nl.activations.plan, {**kept, "to": "."}),
        "check_prompts": (
            nl.check_prompts,
            {"model": model, "clean": "abcd", "corrupted": "abed", "answers": ("a", "b")},
        ),
        "folded": (
            nl.folded,
            {"model": model, "fold_ln": True, "center_writing_weights": True}
            | {"center_unembed": True, "fold_value_biases": False},
        ),
        "detect.composition": (
            nl.detect.composition,
            {"model": nl.gym.planted(), "kind": "K", "distances": [1, 2]}
            | {"biases": False, "seed": 0},
        ),
        "detect.head_statistics": (
            nl.detect.head_statistics,
            {"model": model, "texts": ["abcd", "abe"], "batch_size": 2, "seed": 0},
        ),
        "dynamics.audit": (nl.dynamics.audit, {"name": name}),
        "dynamics.compare": (
            nl.dynamics.compare,
            {"model_a": model, "model_b": model, "texts": "abcd"},
        ),
        "dynamics.read": (nl.dynamics.read, {"folder": done}),
        "dynamics.revisions": (nl.dynamics.revisions, {"name": name}),
        "dynamics.run": (
            nl.dynamics.run,
            {"measure": _measure, "name": name, "steps": "all", "head": "causal-lm"}
            | {"dtype": None, "device": None, "keep": "all", "to": None, "executor": None}
            | {"progress": False},
        ),
        "dynamics.tensor_measure": (_tensor_measure, {"name": "x", "function": _measure}),
        **_calls_of_features(model),
        **_calls_of_dictionaries(model, folder),
        "sae.planted": (
            nl.sae.planted,
            {"features": 6, "d_model": 4, "active": 2, "rows": 20, "noise": 0.1, "seed": 0},
        ),
        "sae.train": (
            nl.sae.train,
            {"source": model, "texts": ["abcd", "abed"], "site": ("resid_post", 0)}
            | {"site_out": None, "latents": 4, "kind": "topk", "k": 2, "skip": False, "steps": 1}
            | {"batch_size": 4, "held_out": 0.5, "seed": 0, "to": None, "recipe": None},
        ),
        **_calls_of_single_patches(model),
        **calls_of_circuits(model, folder),
        **calls_of_interchange(model, folder),
        **calls_of_steering(model, folder),
    }


def _calls_of_features(model: Any) -> dict[str, Call]:
    dictionary = random_dictionary(model.config.hidden_size, "blocks.0.hook_mlp_out")
    given = {"model": model, "dictionary": dictionary, "inputs": "abcd"}
    measured = given | {"metric": nl.patching.logit_difference("a", "b"), "progress": False}
    examples = nl.features.top_examples(model, dictionary, ["abcd"], progress=False)
    return {
        "features.active": (nl.features.active, given),
        "features.circuit": (
            _circuit,
            {**given, "metric": nl.patching.logit_difference("a", "b"), "corrupted": "abed"}
            | {"steps": 2, "sizes": [1, 2], "errors": "kept", "random": 1, "seed": 0},
        ),
        "features.circuit's edges": (
            nl.features.circuit(model, dictionary, "abcd", _total, steps=1).edges,
            {"threshold": 0.0, "node_threshold": 0.0},
        ),
        "features.circuit alone": (
            nl.features.circuit,
            {"model": model, "dictionaries": [dictionary], "inputs": "abcd", "metric": _total}
            | {"corrupted": None, "steps": 2},
        ),
        "features.direct": (nl.features.direct, {**given, "correct": "a", "wrong": 1, "pos": -1}),
        "features.effects": (
            nl.features.effects,
            {**measured, "corrupted": "abed", "method": "gradient", "steps": 2, "summed": True},
        ),
        "features.effects one by one": (nl.features.effects, {**measured, "budget": 20}),
        "features.Direction": (
            _direction,
            {"model": model, "vector": torch.ones(model.config.hidden_size), "bias": 0.5},
        ),
        "features.Head": (
            _head,
            {
                "model": model,
                "layer": 0,
                "head": 1,
                "along": torch.ones(model.config.hidden_size),
                "to": None,
            },
        ),
        "features.top_examples": (
            nl.features.top_examples,
            {"model": model, "what": dictionary, "texts": ["abcd", "abc"], "top": 2, "window": 3}
            | {"quantiles": 2, "held_out": 0.5, "context": 4, "skip_first": 1, "max_tokens": 7}
            | {"batch_size": 1, "together": [3, 0], "seed": 1, "progress": False},
        ),
        "gym.check": (
            nl.gym.check,
            {"exercise": "second choice", "answer": " a", "model": model},
        ),
        "gym.claim": (nl.gym.claim, {"holds": True, "sentence": "it holds"}),
        "gym.dictionaries": (nl.gym.dictionaries, {"model": nl.load()}),
        "gym.pairs": (
            nl.gym.pairs,
            {"model": nl.load(), "task": "ioi", "count": 2, "part": "train", "seed": 0},
        ),
        "gym.sealed.evaluate": (
            nl.gym.sealed.evaluate,
            {"model": nl.load(revision="step0"), "tasks": ["facts"], "batch_size": 64, "seed": 1},
        ),
        "features.TopExamples": (partial(_shown, examples), {"latent": 3, "count": 2}),
        "features.page": (_page, {"found": examples, "latent": 3}),
        "features.pages": (_pages, {"found": examples, "latents": [3, 0], "progress": False}),
        "views.ExamplesView": (
            nl.views.ExamplesView,
            {"examples": [nl.views.TextExample("a", ["b"], [1.0], 0)], "value_name": "v"}
            | {"title": "t", "note": ""},
        ),
        "views.TextExample": (
            _text_example,
            {"heading": "a", "pieces": ["b"], "values": [1.0], "at": 0},
        ),
        "model.spliced": (partial(_spliced, model), {"dictionary": dictionary, "error": True}),
    }


def _calls_of_dictionaries_of_several_sites(model: Any) -> dict[str, Call]:
    layers, d = model.config.num_hidden_layers, model.config.hidden_size
    sites = [f"blocks.{i}.hook_mlp_out" for i in range(layers)]
    eye, zero = torch.eye(d), torch.zeros(d)
    pairs = {(i, j): eye for i in range(layers) for j in range(i, layers)}
    many = nl.sae.CrossLayerTranscoder(
        nl.sae.CrossLayerWeights([eye] * layers, [zero] * layers, pairs, [zero] * layers),
        [ReLU()] * layers, sites_in=sites, sites_out=sites, kind="ReLU",
    )  # fmt: skip
    two = nl.sae.Crosscoder(
        torch.stack([eye, eye]), zero, torch.stack([eye, eye]), torch.zeros(2, d), ReLU(),
        sites=sites[:1] * 2, kind="ReLU",
    )  # fmt: skip
    inputs, texts = [torch.ones(3, d)] * layers, ["abcd", "bc"]
    both = inputs[:1] * 2
    return {
        "sae.CrossLayerTranscoder.check": (many.check, {"model": model, "texts": texts}),
        "sae.CrossLayerTranscoder.encode": (many.encode, {"inputs": inputs}),
        "sae.CrossLayerTranscoder.decode": (
            many.decode,
            {"codes": many.encode(inputs), "inputs": inputs},
        ),
        "sae.CrossLayerTranscoder.encode_layer": (many.encode_layer, {"layer": 0, "x": inputs[0]}),
        "sae.CrossLayerTranscoder.save_pretrained": (partial(_saved, many), {"folder": "kept"}),
        "sae.CrossLayerTranscoder.layer": (
            lambda layer, **given: nl.features.active(model, many.layer(layer), **given),
            {"layer": 0, "inputs": "abcd"},
        ),
        "features.top_examples of all layers": (
            nl.features.top_examples,
            {"model": model, "what": many, "texts": texts, "progress": False},
        ),
        "model.spliced across layers": (
            partial(_spliced, model),
            {"dictionary": many, "error": False},
        ),
        "sae.Crosscoder.save_pretrained": (partial(_saved, two), {"folder": "kept"}),
        "sae.Crosscoder.check": (two.check, {"models": [model, model], "texts": texts}),
        "sae.Crosscoder.encode": (two.encode, {"inputs": both}),
        "sae.Crosscoder.decode": (two.decode, {"codes": two.encode(both), "inputs": both}),
        "sae.Crosscoder.penalty": (two.penalty, {"codes": two.encode(both)}),
    }


def _calls_of_dictionaries(model: Any, folder: Path) -> dict[str, Call]:
    dictionary = random_dictionary(model.config.hidden_size, "blocks.0.hook_mlp_out")
    dictionary.save_pretrained(folder / "dictionary")
    asked = {"site": "blocks.0.hook_mlp_out", "layer": 0, "subfolder": None, "revision": None}
    said = {"kind": None, "k": None, "norm_scaling_factor": None, "subtracts_b_dec": None}
    return {
        "sae.available": (
            nl.sae.available,
            {"source": folder / "dictionary", "revision": None},
        ),
        "sae.load": (
            nl.sae.load,
            {"source": folder / "dictionary", **asked, "model": model, **said}
            | {"dtype": torch.float32, "device": "cpu"},
        ),
        **_calls_of_dictionaries_of_several_sites(model),
        "sae.Dictionary.encode": (dictionary.encode, {"x": torch.ones(3, dictionary.d_in)}),
        "sae.Dictionary.decode": (
            dictionary.decode,
            {"codes": dictionary.encode(torch.ones(3, dictionary.d_in))}
            | {"x": torch.ones(3, dictionary.d_in)},
        ),
        "sae.Dictionary.check": (dictionary.check, {"model": model, "texts": ["abcd", "bc"]}),
        "sae.Dictionary.save_pretrained": (partial(_saved, dictionary), {"folder": "kept"}),
        "sae.Dictionary.export": (
            partial(_exported, dictionary),
            {"folder": "kept", "layout": "sae_lens"},
        ),
    }


def _saved(dictionary: Any, folder: Any) -> Any:
    with tempfile.TemporaryDirectory() as place:
        inside = str(Path(place) / folder) if isinstance(folder, str) else folder
        return dictionary.save_pretrained(inside)


def _exported(dictionary: Any, folder: Any, layout: Any) -> Any:
    with tempfile.TemporaryDirectory() as place:
        inside = str(Path(place) / folder) if isinstance(folder, str) else folder
        return dictionary.export(inside, layout)


def _circuit(
    model: Any, dictionary: Any, inputs: Any, metric: Any, corrupted: Any, steps: Any, **asked: Any
) -> Any:
    found = nl.features.circuit(model, [dictionary], inputs, metric, corrupted, steps=steps)
    return found.faithfulness(**asked)


def _spliced(model: Any, dictionary: Any, error: Any) -> Any:
    with model.spliced(dictionary, error=error):
        return model("abcd").logits


def _direction(model: Any, vector: Any, bias: Any) -> Any:
    what = nl.features.Direction(vector, "blocks.0.hook_resid_post", bias)
    return nl.features.top_examples(model, what, ["abcd"], progress=False)


def _head(model: Any, **given: Any) -> Any:
    what = nl.features.Head(**given)
    return nl.features.top_examples(model, what, ["abcd"], progress=False)


def _shown(found: Any, latent: Any, count: Any) -> Any:
    found.view(latent), found.examples(latent), found.activations(latent)
    found.together(latent, count), found.nearest(latent, count)
    return found.logit_effects(latent, count)


def _page(found: Any, latent: Any) -> Any:
    return nl.features.page(found, latent)


def _pages(**given: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return nl.features.pages(folder=folder, **given)


def _text_example(**given: Any) -> Any:
    return nl.views.ExamplesView([nl.views.TextExample(**given)]).data()


def _collect(**given: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return nl.activations.collect(to=folder, **given)


def _calls_of_single_patches(model: Any) -> dict[str, Call]:
    logits = model("abcd").logits.detach()
    lens = nl.lens.logit_lens(model, "abcd")
    pattern = torch.eye(4).expand(1, 3, 4, 4)
    corrupted, clean = torch.zeros(1, 4, 3, 4, 4), torch.ones(1, 4, 3, 4, 4)
    found: dict[str, Call] = {
        "lens.compare": (nl.lens.compare, {"first": lens, "second": lens, "names": ("a", "b")}),
        "lens.LensResult.mean_surprise": (lens.mean_surprise, {"seed": 0}),
        "lens.direct": (
            nl.lens.direct,
            {"model": model, "inputs": "abcd", "token": "a", "minus": 1},
        ),
        "lens.predictions": (
            nl.lens.predictions,
            {"logits": logits[0, -1], "tokenizer": model.tokenizer, "top_k": 2},
        ),
        "lens.tuned_lens": (
            nl.lens.tuned_lens,
            {"model": model, "inputs": "abcd", "lens": _zero_lens(model), "site": "resid_pre"}
            | {"watch": ["a"], "top_k": 2},
        ),
        "lens.singular_vectors": (
            nl.lens.singular_vectors,
            {"model": model, "matrix": "OV", "layer": 0, "head": 0, "count": 2},
        ),
        "lens.svd": (
            nl.lens.svd,
            {"model": model, "matrix": "OV", "layer": 0, "head": 0}
            | {"count": 2, "top_k": 3, "seed": 0},
        ),
        "detect.pattern_score": (
            nl.detect.pattern_score,
            {"attention": pattern, "pattern": pattern[0, 0], "measure": "mul"}
            | {"exclude_first_token": False, "exclude_own_token": False},
        ),
        "patching.make_df_from_ranges": (
            nl.patching.make_df_from_ranges,
            {"column_max_ranges": [1, 2], "column_names": ["layer", "pos"]},
        ),
        "patching.generic_activation_patch": (
            nl.patching.generic_activation_patch,
            {"model": model, "corrupted_tokens": model.to_tokens("abed")}
            | {"clean_cache": model.run_with_cache("abcd")[1], "patching_metric": _total}
            | {"patch_setter": nl.patching.layer_pos_patch_setter}
            | {"activation_name": "resid_pre", "index_axis_names": ["layer", "pos"]}
            | {"index_df": None, "return_index_df": False},
        ),
    }
    places = {
        "layer_pos": (0, 1),
        "layer_pos_head_vector": (0, 1, 2),
        "layer_head_vector": (0, 2),
        "layer_head_pattern": (0, 2),
        "layer_head_pos_pattern": (0, 2, 1),
        "layer_head_dest_src_pos_pattern": (0, 2, 1, 0),
    }
    for name, index in places.items():
        setter = getattr(nl.patching, f"{name}_patch_setter")
        four = "pattern" in name
        found[f"patching.{name}_patch_setter"] = (
            setter,
            {"corrupted_activation": corrupted[:, 0] if four else corrupted[..., 0]}
            | {"index": index, "clean_activation": clean[:, 0] if four else clean[..., 0]},
        )
    return found


def _zero_lens(model: Any) -> nl.lens.TunedLens:
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return nl.lens.TunedLens(torch.zeros(layers, width, width), torch.zeros(layers, width))


def _total(logits: torch.Tensor) -> torch.Tensor:
    return logits.sum()


def _measure(model: Any) -> float:
    return 1.0


def _tensor_measure(name: Any, function: Any) -> object:
    return nl.dynamics.tensor_measure(name, function=function)
