"""Patching in any way at all: one run a row of a table, with a function of one's own that patches.

    generic_activation_patch(model, corrupted_tokens, clean_cache, metric, layer_pos_patch_setter,
                             "resid_pre", index_axis_names=("layer", "pos"))       [layer, pos]

TransformerLens's function, its patch setters, and its arguments. ``sweep`` knows what it patches
and computes many patches at once; here nothing is known, and every cell is a run of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from neox_lab.checks import (
    SWITCH,
    TEXT,
    check,
    one_of,
    plain,
    require_model,
    several,
    shown,
    whole,
)
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric, bind, evaluate, output_logits
from neox_lab.frames import make_frame
from neox_lab.hooks.names import exact
from neox_lab.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.model.hook_points import HookPoint

RANGE = whole(least=0)
MOST_ROWS = 100_000_000

PatchSetter = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""From the corrupted activation (which it may write into), the cell's indices and the clean
activation to the patched one."""

_SETTER_DOC = """{}

Args:
    corrupted_activation: is written into, ``[batch, ..]``.
    index: of the cell.
    clean_activation: what is copied, ``[batch, ..]``.

Returns:
    ``corrupted_activation``.

Raises:
    InputError: no such numbers or tensors.
"""


def _setter(indices: int, place: Callable[..., tuple[int | slice, ...]], doc: str) -> PatchSetter:
    """A setter that copies one part, told by indices behind the layer's."""

    def setter(
        corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
    ) -> Tensor:
        given = several("index", index, f"{indices} numbers, the layer first", InputError)
        if len(given) != indices:
            raise InputError(f"index={shown(given)}; expected {indices} numbers, the layer first.")
        both = {"corrupted_activation": corrupted_activation, "clean_activation": clean_activation}
        for name, activation in both.items():
            if not isinstance(activation, Tensor):
                raise InputError(f"{name}={shown(activation)}; expected a tensor.")
        part = place(*(check("index", number, whole(), InputError) for number in given[1:]))
        try:
            corrupted_activation[part] = clean_activation[part]
        except (IndexError, RuntimeError, TypeError) as error:
            raise InputError(
                f"index={shown(given)} of activations {list(corrupted_activation.shape)} and "
                f"{list(clean_activation.shape)}: {error}"
            ) from error
        return corrupted_activation

    setter.__doc__ = _SETTER_DOC.format(doc)
    return setter


_ALL = slice(None)
layer_pos_patch_setter = _setter(
    2, lambda pos: (_ALL, pos), "``index = [layer, pos]`` of ``[batch, pos, ..]``."
)
layer_pos_head_vector_patch_setter = _setter(
    3,
    lambda pos, head: (_ALL, pos, head),
    "``index = [layer, pos, head]`` of ``[batch, pos, head, ..]``.",
)
layer_head_vector_patch_setter = _setter(
    2,
    lambda head: (_ALL, _ALL, head),
    "``index = [layer, head]`` of ``[batch, pos, head, ..]``.",
)
layer_head_pattern_patch_setter = _setter(
    2,
    lambda head: (_ALL, head),
    "``index = [layer, head]`` of patterns ``[batch, head, dest, source]``.",
)
layer_head_pos_pattern_patch_setter = _setter(
    3,
    lambda head, dest: (_ALL, head, dest),
    "``index = [layer, head, dest]`` of patterns ``[batch, head, dest, source]``.",
)
layer_head_dest_src_pos_pattern_patch_setter = _setter(
    4,
    lambda head, dest, source: (_ALL, head, dest, source),
    "``index = [layer, head, dest, source]`` of patterns ``[batch, head, dest, source]``.",
)


def make_df_from_ranges(
    column_max_ranges: Sequence[int], column_names: Sequence[str]
) -> pd.DataFrame:
    """Every combination of numbers below ``column_max_ranges``, one a row, the last fastest.

    Args:
        column_max_ranges: how far each column counts.
        column_names: as many names.

    Raises:
        InputError: ranges that are no whole numbers, or not as many as names.
    """
    sizes = several("column_max_ranges", column_max_ranges, "a list of whole numbers", InputError)
    names = several("column_names", column_names, "a list of strings", InputError)
    names = [check("column_names", name, TEXT, InputError) for name in names]
    if len(sizes) != len(names):
        raise InputError(f"{len(sizes)} column_max_ranges and {len(names)} column_names.")
    most = [check("column_max_ranges", size, RANGE, InputError) for size in sizes]
    if math.prod(most) > MOST_ROWS:
        raise InputError(f"column_max_ranges={shown(sizes)} are more than {MOST_ROWS:,} rows.")
    return make_frame(itertools.product(*map(range, most)), columns=names)


@overload
def generic_activation_patch(
    model: HookedModel,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: Literal[False] = False,
) -> Tensor: ...
@overload
def generic_activation_patch(
    model: HookedModel,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    *,
    return_index_df: bool,
) -> Tensor | tuple[Tensor, pd.DataFrame]: ...
@torch.no_grad()
def generic_activation_patch(
    model: HookedModel,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> Tensor | tuple[Tensor, pd.DataFrame]:
    """Run the model once for every cell, each time with another patch, and read the metric.

    Hooks that are in place act on every run.

    Args:
        model: the model.
        corrupted_tokens: ids ``[batch, pos]``.
        clean_cache: of a run whose activations are patched in.
        patching_metric: from logits to one number.
        patch_setter: see ``PatchSetter``; the six of this module, or one of your own.
        activation_name: short name of an activation, such as ``"resid_pre"`` or ``"pattern"``.
        index_axis_names: axes to go through, from ``layer``, ``pos``, ``head`` (or
            ``head_index``), ``dest_pos`` and ``src_pos``; the layer first.
        index_df: or the cells, one a row of numbers, the layer first.
        return_index_df: also return the cells.

    Returns:
        The metric of each cell: an axis for each of ``index_axis_names``, or ``[row]``.

    Raises:
        InputError: dropout is on; both or none of axes and cells, an unknown axis, or a metric
            that returns no number.
        HookNameError: no such activation, or the cache does not hold it.
    """
    require_model(model)
    refuse_dropout(model)
    _check_arguments(clean_cache, patch_setter, activation_name)
    check("return_index_df", return_index_df, SWITCH, InputError)
    prepared = model.prepare_inputs(corrupted_tokens)
    if (index_axis_names is None) == (index_df is None):
        raise InputError("Give index_axis_names or index_df, one of the two.")
    if index_df is None:
        assert index_axis_names is not None
        shape = _sizes(model, prepared["input_ids"].shape[-1], index_axis_names)
        index_df = make_df_from_ranges(shape, index_axis_names)
    else:
        shape = [len(_cells(index_df))]
    cells = _cells(index_df)
    metric = bind(patching_metric, model, prepared)
    found = []
    with Progress(total=len(cells), unit="patch", delay=1) as bar:
        for cell in cells:
            name = exact((activation_name, cell[0]), model.hook_points)
            clean = _clean(clean_cache, name)

            def patch(
                corrupted: Tensor,
                hook: HookPoint,
                cell: list[int] = cell,
                clean: Tensor = clean,
            ) -> Tensor:
                return patch_setter(corrupted, cell, clean)

            with model.hooks([(name, patch)]):
                found.append(evaluate(metric, output_logits(model(**prepared))).float())
            bar.update()
    values = (
        torch.stack(found) if found else torch.zeros(0, device=model.device, dtype=torch.float32)
    )
    values = values.reshape(shape)
    return (values, index_df) if return_index_df else values


def _check_arguments(cache: object, setter: object, name: object) -> None:
    """What is called and looked up later is of the right kind."""
    if not isinstance(cache, Mapping):
        raise InputError(f"clean_cache={shown(cache)}; expected that of run_with_cache.")
    if not callable(setter):
        raise InputError(f"patch_setter={shown(setter)}; expected a function, see PatchSetter.")
    check("activation_name", name, TEXT, InputError)


def _clean(cache: ActivationCache, name: str) -> Tensor:
    """The activation that is patched in; a cache of ours says itself what it lacks."""
    try:
        return cache[name]
    except KeyError as error:
        raise InputError(
            f"clean_cache has no {name!r}; expected that of run_with_cache."
        ) from error


def _cells(table: object) -> list[list[int]]:
    """The rows of a table of whole numbers."""
    to_numpy = getattr(table, "to_numpy", None)
    rows = plain(to_numpy()) if callable(to_numpy) and not isinstance(table, type) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
        raise InputError(f"index_df={shown(table)}; expected a table of cells, one a row.")
    return [[check("index_df", number, whole(), InputError) for number in row] for row in rows]


def _sizes(model: HookedModel, length: int, axes: Sequence[str]) -> list[int]:
    """How many numbers each axis runs over."""
    heads = model.config.num_attention_heads
    known = {"layer": model.config.num_hidden_layers, "head": heads, "head_index": heads}
    known |= dict.fromkeys(("pos", "src_pos", "dest_pos"), length)
    given = several("index_axis_names", axes, f"some of {', '.join(known)}", InputError)
    return [known[check("index_axis_names", axis, one_of(*known), InputError)] for axis in given]
