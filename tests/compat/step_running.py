"""Run steps in a library, write down what they gave, and compare.

``python tests/compat/step_running.py`` writes ``recorded_steps.json`` anew, with the
TransformerLens that is installed and a hub's cache that ``lay_out_hub`` made::

    HF_HUB_OFFLINE=1 HF_HUB_CACHE=CACHE PYTHONPATH=tests/compat python tests/compat/step_running.py
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steps import MODEL, STEPS, Step
from torch import Tensor

RECORDED = Path(__file__).parent / "recorded_steps.json"
FLAGS = ("attn_result", "split_qkv_input", "hook_mlp_in", "attn_in")
SHOWN = 6
"""Numbers of a tensor that are written down as they are."""
TOLERANCE = 1e-4
"""Of the largest number of a tensor; absolute where that is below 1."""
OF_SINGULAR_VECTORS = 1e-3
"""The same for singular vectors: what one processor rounds otherwise than another turns those whose
values lie close together into each other, by the rounding divided by what the values differ by."""


def lay_out_hub(folder: Path, revisions: dict[str, Path]) -> None:
    """A hub's cache in which checkpoints go by the name of the steps' model.

    Args:
        folder: where; as ``HF_HUB_CACHE`` would say.
        revisions: the directory of each revision; ``main`` has the tokenizer of all.
    """
    model = folder / f"models--EleutherAI--{MODEL}"
    (model / "refs").mkdir(parents=True)
    for number, (revision, directory) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        (model / "refs" / revision).write_text(commit)
        (model / "snapshots" / commit).mkdir(parents=True)
        for source in (revisions["main"], directory):
            for file in source.iterdir():
                if file.is_file() and file.name != "training.json":
                    shutil.copy(file, model / "snapshots" / commit)


class Library:
    """A library's namespace and the models that its steps share.

    Args:
        tl: the namespace.
    """

    def __init__(self, tl: Any) -> None:
        self.tl = tl
        self._models: dict[str, Any] = {}

    def run(self, step: Step) -> list[Any]:
        """Run a step from a clean state, and give its result as a flat list."""
        names = inspect.signature(step.function).parameters
        given = {name: self.tl if name == "tl" else self._model(name) for name in names}
        torch.manual_seed(0)
        try:
            with torch.set_grad_enabled(step.grad):
                return list(flat(step.function(**given)))
        finally:
            for model in self._models.values():
                _restore(model)

    def _model(self, name: str) -> Any:
        if name not in self._models:
            make = self.tl.HookedTransformer
            load = make.from_pretrained if name == "model" else make.from_pretrained_no_processing
            self._models[name] = load(MODEL, device="cpu")
        return self._models[name]


def _restore(model: Any) -> None:
    model.reset_hooks(including_permanent=True)
    for flag in FLAGS:
        if getattr(model.cfg, f"use_{flag}", False):
            getattr(model, f"set_use_{flag}")(False)
    model.zero_grad()


def flat(result: Any) -> Iterator[Any]:
    """Tensors, numbers and texts of a nested result, in order."""
    if isinstance(result, dict):
        for name, value in result.items():
            yield str(name)
            yield from flat(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from flat(value)
    elif isinstance(result, np.ndarray | np.generic):
        yield from flat(torch.as_tensor(result))
    elif isinstance(result, Tensor):
        yield torch.view_as_real(result) if result.is_complex() else result.detach()
    else:
        yield result


def written(value: Any) -> Any:
    """What is written down of one value: all of it, or a tensor's shape and some numbers.

    The last of the numbers is a projection on a random direction, which all of the tensor is in.
    """
    if not isinstance(value, Tensor):
        return round(value, 7) if isinstance(value, float) else value
    numbers = value.double().flatten().nan_to_num(0.0, 0.0, 0.0)
    numbers = numbers * (numbers.abs() < 1e30)  # 4.3 masks with the lowest number
    if not len(numbers):
        return {"shape": list(value.shape), "numbers": [], "largest": 0.0}
    direction = torch.randn(len(numbers), generator=torch.Generator().manual_seed(1)).double()
    some = numbers[torch.linspace(0, len(numbers) - 1, min(SHOWN, len(numbers))).long()]
    kept = [*some.tolist(), float(numbers @ direction) / len(numbers) ** 0.5]
    return {
        "shape": list(value.shape),
        "numbers": [float(f"{number:.7g}") for number in kept],
        "largest": float(f"{float(numbers.abs().max()):.3g}"),
    }


def tolerance_of(name: str) -> float:
    """How far apart two libraries' numbers of a step may be."""
    return OF_SINGULAR_VECTORS if name.startswith("svd_interpreter/") else TOLERANCE


def difference(ours: list[Any], recorded: list[Any], tolerance: float = TOLERANCE) -> str:
    """What differs between a step's result and one that was written down; nothing: ``""``."""
    if len(ours) != len(recorded):
        return f"{len(ours)} values instead of {len(recorded)}"
    for number, (value, expected) in enumerate(zip(map(written, ours), recorded, strict=True)):
        if isinstance(expected, dict) and isinstance(value, dict):
            if value["shape"] != expected["shape"]:
                return f"value {number}: shape {value['shape']} instead of {expected['shape']}"
            scale = max(1.0, expected["largest"])
            far = [
                (a, b)
                for a, b in zip(value["numbers"], expected["numbers"], strict=True)
                if not abs(a - b) <= tolerance * scale
            ]
            if far:
                return f"value {number}: {far[0][0]} instead of {far[0][1]}"
        elif isinstance(expected, dict) or isinstance(value, dict):
            one = value["numbers"] if isinstance(value, dict) else value
            return f"value {number}: {one!r} of another kind than {expected!r}"
        elif isinstance(expected, float):
            if not abs(value - expected) <= tolerance * max(1.0, abs(expected)):
                return f"value {number}: {value!r} instead of {expected!r}"
        elif value != expected:
            return f"value {number}: {value!r} instead of {expected!r}"
    return ""


def far_apart(ours: list[Any], theirs: list[Any], tolerance: float = TOLERANCE) -> str:
    """What differs between two libraries' results of one step; nothing: ``""``."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape:
                return f"value {number}: shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            seen = (a.abs() < 1e30) & (b.abs() < 1e30) if a.is_floating_point() else a == a
            a, b = a[seen].double(), b[seen].double()
            scale = max(1.0, float(b.abs().max())) if len(b) else 1.0
            if len(a) and float((a - b).abs().max()) > tolerance * scale:
                return f"value {number}: {float((a - b).abs().max())} apart"
        elif fault := difference([a], [written(b)], tolerance):
            return f"value {number}, {fault}"
    return ""


def record() -> None:
    """Write down what the installed TransformerLens gives."""
    import importlib.metadata

    import transformer_lens
    import transformer_lens.utils

    library = Library(transformer_lens)
    found: dict[str, Any] = {}
    for name, step in STEPS.items():
        try:
            found[name] = [written(value) for value in library.run(step)]
        except Exception as fault:
            found[name] = None
            print(f"{name}: {type(fault).__name__}: {str(fault)[:300]}")
    version = importlib.metadata.version("transformer-lens")
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    head = f'  "transformer-lens": {json.dumps(version)}'
    RECORDED.write_text("{\n" + ",\n".join([head, *lines]) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
