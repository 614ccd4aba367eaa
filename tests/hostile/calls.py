"""A good call of every public function, whose arguments are then replaced one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from calls_of_newer_rooms import newer_calls
from patching_oracle import small

import neox_lab as nl
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.gym import planting
from neox_lab.results import Result

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "pad_token_id": 0,
    "num_hidden_layers": 1,
    "hidden_size": 12,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
}


def reading(head: str = "causal-lm", **more: Any) -> Any:
    """A model that reads text, a token for each character."""
    model = small(head, **SIZES | more)
    model.tokenizer = planting.tokenizer()
    model.generation_config = nl.generation.GenerationConfig(max_new_tokens=2, pad_token_id=0)
    return model


def public() -> dict[str, Any]:
    """Every public function and class, by ``room.name``; errors and types of results apart."""
    rooms = {"": nl, **{n: getattr(nl, n) for n in nl.__all__}}
    found = {}
    for name, place in rooms.items():
        for each in getattr(place, "__all__", ()) if isinstance(place, ModuleType) else ():
            value = getattr(place, each)
            made = inspect.isclass(value) and issubclass(value, (Result, GPTNeoXPreTrainedModel))
            if not made and (inspect.isfunction(value) or inspect.isclass(value)):
                found[f"{name}.{each}".removeprefix(".")] = value
    return found


MODEL = reading()
TEXT, OTHER = "abcd", "abed"
METRIC = nl.patching.logit_difference("a", "b")
BOTH = {"model": MODEL, "clean": TEXT, "corrupted": OTHER, "metric": METRIC}
ABOUT = {"model": MODEL, "inputs": TEXT}
SWEPT = nl.patching.sweep(**BOTH, progress=False)
LABELS = ["x", "y", "x", "y", "x", "y", "y", "x"] * 3
TEXTS = [f"text {number}" for number in range(len(LABELS))]


def calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Functions by name, with arguments that are right."""
    tasks: dict[str, Any] = {}
    for task in ("classification", "answering", "tagging", "language", "likelihood"):
        tasks[task] = getattr(nl.tasks, task, None)
    view, lens = nl.views, nl.lens.logit_lens(MODEL, TEXT)
    attributed = nl.attribution.occlusion(MODEL, TEXT, METRIC)
    _, cache = MODEL.run_with_cache(TEXT)
    return {
        "load": (
            nl.load,
            {"name": Path("/nowhere"), "head": "base", "revision": None, "labels": None},
        ),
        "from_transformers": (nl.from_transformers, {"model": MODEL, "tokenizer": None}),
        "SplicedPoint": (
            nl.SplicedPoint,
            {"name": "x", "axes": "batch pos", "meaning": "m", "in_float32": False},
        ),
        "attribution.attribution_patch": (
            nl.attribution.attribution_patch,
            {**BOTH, "site": "resid_pre", "steps": 0, "positions": None},
        ),
        "attribution.class_logit": (
            nl.attribution.class_logit,
            {"label": "a", "other": "b"},
        ),
        "attribution.compare": (
            nl.attribution.compare,
            {"result": attributed, "exact": attributed.values, "k": 3},
        ),
        "attribution.direct_logit_attribution": (
            nl.attribution.direct_logit_attribution,
            {**ABOUT, "correct": "a", "wrong": "b", "pos": -1, "by": "component", "top_k": 3},
        ),
        "attribution.integrated_gradients": (
            nl.attribution.integrated_gradients,
            {**ABOUT, "metric": METRIC, "baseline": "mean", "steps": 2},
        ),
        "attribution.logit_difference": (_difference, {"correct": "a", "wrong": "b", "pos": -1}),
        "attribution.occlusion": (
            nl.attribution.occlusion,
            {**ABOUT, "metric": METRIC, "baseline": "mean", "window": 1},
        ),
        "attribution.span_logit": (nl.attribution.span_logit, {"start": 0, "end": 1}),
        "attribution.tag_logit": (nl.attribution.tag_logit, {"pos": 0, "tag": "a", "other": "b"}),
        "detect.copying_scores": (nl.detect.copying_scores, {"model": MODEL}),
        "detect.duplicate_token": (nl.detect.duplicate_token, {"tokens": torch.tensor([1, 1])}),
        "detect.heads": (
            nl.detect.heads,
            {
                "model": MODEL,
                "pattern": "induction",
                "inputs": "abab",
                "measure": "share",
                "batch_size": 2,
                "seed": 0,
            },
        ),
        "detect.induction": (nl.detect.induction, {"tokens": torch.tensor([1, 1])}),
        "detect.previous_token": (nl.detect.previous_token, {"tokens": torch.tensor([1, 1])}),
        "detect.repeated_tokens": (
            nl.detect.repeated_tokens,
            {"model": MODEL, "length": 3, "count": 2, "seed": 0},
        ),
        "generation.GenerationConfig": (
            nl.generation.GenerationConfig,
            {"max_new_tokens": 2, "temperature": 1.0, "do_sample": True, "top_k": 3}
            | {"eos_token_id": 0, "bad_words_ids": [[3]], "stop_strings": "a"}
            | {"sequence_bias": {(3,): 1.0}, "watermarking_config": {"bias": 1.0}},
        ),
        "generate": (
            _generate,
            {"inputs": TEXT, "max_new_tokens": 2, "do_sample": False}
            | {"temperature": 1.0, "top_k": 3, "top_p": 1.0, "eos_token_id": 0}
            | {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}
            | {"bad_words_ids": [[3]], "sequence_bias": {(3,): 1.0}, "stop_strings": "zz"}
            | {"attention_mask": None, "logits_processor": None, "stopping_criteria": None}
            | {"streamer": None, "generation_config": None},
        ),
        "generation.only": (
            nl.generation.only,
            {"function": lambda tensor, hook: None, "part": None, "steps": None},
        ),
        "gym.evaluate": (
            nl.gym.evaluate,
            {"model": MODEL, "tasks": ["ioi"], "count": 1, "part": "held-out", "seed": 0},
        ),
        "gym.repeat_loss": (
            nl.gym.repeat_loss,
            {"model": MODEL, "length": 3, "count": 2, "seed": 0},
        ),
        "gym.tasks": (nl.gym.tasks, {"examples": 1}),
        "gym.weights_directory": (
            nl.gym.weights_directory,
            {"revision": None, "head": "causal-lm"},
        ),
        "lens.logit_lens": (
            nl.lens.logit_lens,
            {**ABOUT, "site": "resid_pre", "watch": ["a"], "top_k": 2},
        ),
        "patching.ablate": (
            nl.patching.ablate,
            {**ABOUT, "metric": METRIC, "site": "z_all_pos", "value": "mean", "reference": OTHER}
            | {"positions": None, "entries": None, "seed": 0, "budget": 64, "progress": False},
        ),
        "patching.edge_sweep": (
            nl.patching.edge_sweep,
            {**BOTH, "senders": "all", "receivers": "all", "positions": None}
            | {"tokens_at_once": 64, "progress": False},
        ),
        "patching.path_patch": (
            nl.patching.path_patch,
            {**BOTH, "senders": "heads", "receivers": "logits", "through": "nothing"}
            | {"positions": None, "tokens_at_once": 64, "progress": False},
        ),
        "patching.side_logit": (nl.patching.side_logit, {"side": "start", "other": None, "pos": 0}),
        "patching.sweep": (
            nl.patching.sweep,
            {**BOTH, "site": "resid_pre", "direction": "denoising", "positions": None}
            | {"entries": None, "budget": 64, "progress": False},
        ),
        "probing.probe": (
            nl.probing.probe,
            {"model": MODEL, "texts": TEXTS, "labels": LABELS, "sites": "resid_post", "pos": -1}
            | {"method": "difference", "groups": None, "batch_size": 8, "memory": 10**9, "seed": 0},
        ),
        "tasks.TrainingSettings": (nl.tasks.TrainingSettings, vars(nl.tasks.TrainingSettings())),
        "views.AttentionView": (
            view.AttentionView,
            {"patterns": np.full((1, 1, 2, 2), 0.5), "pieces": ["a", "b"], "layers": [0]}
            | {"title": "t", "heads": None},
        ),
        "views.BarsView": (
            view.BarsView,
            {"names": ["a"], "values": [1.0], "title": "t", "note": "", "pieces": None}
            | {"attributions": None},
        ),
        "views.ConfusionView": (
            view.ConfusionView,
            {"counts": [[1, 0], [0, 1]], "names": ["a", "b"], "title": "t"},
        ),
        "views.CurvesView": (
            view.CurvesView,
            {"title": "t", "lines": {"a": view.Line([0, 1], [0.0, 1.0])}, "x_label": "x"}
            | {"y_label": "y", "x_names": None, "levels": None},
        ),
        "views.HeatmapView": (
            view.HeatmapView,
            {"values": [[1.0]], "row_labels": ["a"], "column_labels": ["b"], "row_axis": "r"}
            | {"column_axis": "c", "value_name": "v", "centre": 0.0, "title": "t"},
        ),
        "views.LensView": (
            view.LensView,
            {"candidates": [[["a"]]], "probabilities": [[[0.5]]], "entropy": [[1.0]]}
            | {"row_labels": ["r"], "pieces": ["a"], "title": "t"},
        ),
        "views.LensPairView": (
            view.LensPairView,
            {"first": lens.view(), "second": lens.view(), "pairs": [(0, 0)]}
            | {"least": [[0.1]] * len(lens.labels), "most": [[0.2]] * len(lens.labels)}
            | {"names": ("a", "b"), "title": "t"},
        ),
        "views.Line": (view.Line, {"x": [0], "y": [0.0], "low": None, "high": None}),
        "views.Piece": (
            view.Piece,
            {"text": "a", "note": "", "kind": None, "strength": 1.0, "details": {}, "marks": {}},
        ),
        "views.PredictionsView": (
            view.PredictionsView,
            {"pieces": ["a"], "candidates": [[("a", 0.5)]], "position": -1, "title": "t"},
        ),
        "views.ScatterView": (
            view.ScatterView,
            {"x": [0.0], "y": [1.0], "names": ["a"], "x_label": "x", "y_label": "y"}
            | {"marked": 1, "title": "t", "note": ""},
        ),
        "views.NetworkView": (
            view.NetworkView,
            {"names": ["a", "b"], "rows": [0, 1], "columns": [-1, 0], "row_labels": ["x", "y"]}
            | {"links": [view.Link(0, 1, 0.5, "q")], "value_name": "v", "title": "t", "note": ""}
            | {"signs": ["helps", "hurts"]}
            | {"boxes": ["a", "b"], "attention": None, "pages": ["", "p.html"]},
        ),
        "views.StripView": (
            view.StripView,
            {"pieces": [view.Piece("a")], "title": "t", "note": "", "found": (), "caption": "F"},
        ),
        "views.TextView": (
            view.TextView,
            {"prompt": ["a"], "continuation": ["b"], "probabilities": [0.5], "title": "t"}
            | {"alternatives": None},
        ),
        "views.TreeView": (
            view.TreeView,
            {"columns": ["a"], "groups": {"g": [["x"]]}, "title": "t"},
        ),
        "views.attention": (
            view.attention,
            {"model_or_cache": MODEL, "text": TEXT, "layer": 0, "batch_index": 0},
        ),
        "views.clean_notebook": (view.clean_notebook, {"path": folder / "no.ipynb"}),
        "views.notebook_faults": (
            view.notebook_faults,
            {"path": folder / "no.ipynb", "largest": 10},
        ),
        "views.hooks": (view.hooks, {"model": MODEL}),
        "views.label": (view.label, {"piece": "a", "limit": 3}),
        "views.report": (view.report, {"title": "t", "sections": [("h", None, view.hooks(MODEL))]}),
        "result.top": (SWEPT.top, {"count": 3}),
        "result.view": (SWEPT.view, {"normalized": False, "layer": 0}),
        "result.interval": (
            nl.patching.sweep(MODEL, [TEXT] * 2, [OTHER] * 2, METRIC, progress=False).interval,
            {"level": 0.9, "draws": 10, "seed": 0},
        ),
        "lens result": (lens.view, {}),
        "run_with_cache": (
            MODEL.run_with_cache,
            {"inputs": TEXT, "names_filter": None, "device": None, "pos_slice": None}
            | {"spill": None, "incl_bwd": False},
        ),
        "forward": (
            _forward,
            {"input_ids": torch.tensor([[1, 2]]), "attention_mask": None}
            | {"position_ids": None, "labels": None, "logits_to_keep": 0, "use_cache": None},
        ),
        "to_tokens": (MODEL.to_tokens, {"text": TEXT}),
        "to_str_tokens": (MODEL.to_str_tokens, {"text": TEXT}),
        "to_single_token": (MODEL.to_single_token, {"text": "a"}),
        "cache item": (cache.__getitem__, {"name": "hook_embed"}),
        "tokenizer": (
            _tokenize,
            {"text": TEXT, "padding": False, "truncation": False}
            | {"max_length": 5, "return_tensors": None, "text_pair": None},
        ),
        "decode": (MODEL.tokenizer.decode, {"token_ids": [3], "skip_special_tokens": False}),
        "GPTNeoXConfig": (nl.GPTNeoXConfig, _settings()),
        **newer_calls(MODEL, folder),
    }


def _difference(**arguments: Any) -> object:
    """A metric says what is wrong with it when it meets a model."""
    metric = nl.attribution.logit_difference(**arguments)
    return nl.attribution.occlusion(MODEL, TEXT, metric)


def _generate(**arguments: Any) -> object:
    return MODEL.generate(MODEL.to_tokens(arguments.pop("inputs")), **arguments)


def _forward(**arguments: Any) -> object:
    return MODEL(**arguments)


def _tokenize(**arguments: Any) -> object:
    return MODEL.tokenizer(**arguments)


def _settings() -> dict[str, Any]:
    config = nl.GPTNeoXConfig(hidden_size=24, num_attention_heads=3)
    names = [*config]
    return {n: getattr(config, n) for n in names if n not in ("name_or_path",)}
