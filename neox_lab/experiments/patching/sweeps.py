"""The questions: what does each part carry from clean to corrupted, and what if it is gone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from neox_lab.checks import check, one_of
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.ablation import Value, ablation_source
from neox_lab.experiments.patching.progress_report import ProgressReport
from neox_lab.experiments.patching.prompts import (
    Positions,
    PromptsLike,
    PromptsOrCache,
    are_moved,
    check_pairs,
    read_prompts,
    source_columns,
)
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.result_builder import build_result
from neox_lab.experiments.patching.runner import BUDGET, Question, Runner, check_ready
from neox_lab.experiments.patching.sites import Site, SiteName, find_sites, refuse_moved
from neox_lab.experiments.patching.sources import (
    AlignedPrompts,
    CachedSource,
    Source,
    SourcePrompts,
)
from neox_lab.experiments.prompt_doctor.inside import warn_of_prompts
from neox_lab.hooks.cache import ActivationCache
from neox_lab.hooks.table import axis_sizes
from neox_lab.selections import Selection

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


def sweep(
    model: HookedModel,
    clean: PromptsOrCache,
    corrupted: PromptsOrCache,
    metric: Metric,
    site: SiteName | Sequence[SiteName] = "resid_pre",
    *,
    direction: Literal["denoising", "noising"] = "denoising",
    positions: Positions | Literal["all"] | None = None,
    entries: Selection = None,
    budget: int = BUDGET,
    progress: bool | ProgressReport = True,
) -> PatchResult:
    """Replace one activation at a time by that of the source run, and read the metric.

    Exact: each number is that of a forward pass of its own (Meng et al., ROME, arXiv:2202.05262;
    Zhang and Nanda, "Towards best practices of activation patching", arXiv:2309.16042), but only
    what can differ is computed, see
    ``batched_forward`` (and ``hooked_forward``), and all goes up the layers together, so that each
    layer's weights are used once (``climb``). Prompts and answers that make the numbers mean
    something else are told in a ``PromptWarning``, see ``nl.check_prompts``.

    Args:
        model: any of the classes with a head, in evaluation mode.
        clean: the prompts with the behaviour: a string, a list of strings, token ids
            ``[batch, pos]``, or a mapping with ``input_ids`` and ``attention_mask``. Where patches
            come from, also an ActivationCache of any run with as many rows (or one) and positions.
        corrupted: the prompts without it, pair by pair of the same length.
        metric: ``logit_difference(...)`` or another of the named metrics, or a function from
            logits ``[batch, pos, vocab]`` (``[batch, label]`` for a text classifier, ``[batch,
            pos, 2]`` for question answering) to a scalar.
        site: one of ``sites.SITES``; or name, alias or short form of any hook point in a block with
            positions, such as ``"blocks.3.mlp.hook_post"``, all of which is replaced at one
            position after the other; or several with the same axes. Functions that are spliced in
            (``model.spliced_function``) are part of the network, and have sites of their own.
        direction: ``"denoising"`` patches clean activations into the corrupted run,
            ``"noising"`` corrupted ones into the clean run.
        positions: names of positions to patch instead of every one: ``{"subject": 3}``,
            ``{"subject": [3, 5]}`` for each pair, or ``{"subject": (clean, corrupted)}``, counted
            in each text's own tokens. ``"all"``, with ``entries``: all of them together.
        entries: with a hook point ``[batch, pos, own axis]`` as the site: numbers along its own
            axis, such as neurons or latents, or a slice or mask of it. Cells are then
            ``(pos, own axis)``, each one entry.
        budget: tokens that go through a block together. More memory, never another answer. What
            waits for its next block is in memory or, if that has no room, in a file without a name.
        progress: show a bar with the time left; or a function that is told how much is done and
            how much there is, and ends the sweep by raising KeyboardInterrupt.

    Returns:
        The metric of each cell. If interrupted, what is done, marked incomplete. A climb measures
        its cells in its last layer; a long sweep of a model in memory is several climbs, the cells
        of upper layers first, so something is done early. One of a model whose layers are read from
        files is a single climb, which reads each of them once: before its end nothing is measured.

    Raises:
        InputError: pairs of unequal length or equal prompts, an unknown site, a metric that does
            not fit the model or does not return one number.
        HookNameError: ``resid_mid`` of parallel blocks, or a hook point that is not there.
        HookError: hooks are in place, or a function spliced in above the last block.
        TokenizerError: a metric's token that is not exactly one token.
    """
    check("direction", direction, one_of("denoising", "noising"), InputError)
    check_ready(model)
    into, out_of = ("corrupted", "clean") if direction == "denoising" else ("clean", "corrupted")
    given: dict[str, PromptsOrCache] = {"clean": clean, "corrupted": corrupted}
    patched = read_prompts(model, given[into], into)
    told = {into: patched}
    sites, positions = _sites(model, site, entries, positions)
    if positions is not None and direction == "noising":
        positions = {n: at[::-1] if isinstance(at, tuple) else at for n, at in positions.items()}
    source: Source
    cache = given[out_of]
    if isinstance(cache, ActivationCache):
        cache.check_model(model)
        source = CachedSource(cache, patched)
    else:
        prompts = read_prompts(model, cache, out_of)
        sides = (prompts, patched) if direction == "denoising" else (patched, prompts)
        check_pairs(model, *sides, named=positions is not None)
        told = {"clean": sides[0], "corrupted": sides[1]}
        source = SourcePrompts(prompts)
        if positions is not None:
            columns = source_columns(positions, prompts, patched)
            if are_moved(prompts, patched, columns):
                refuse_moved(sites)
            source = AlignedPrompts(model, prompts, columns, metric)
    question = Question(model, patched, source, metric, sites, positions)
    runner = Runner(question, budget)
    warn_of_prompts(model, metric, told, named=positions is not None)
    return build_result(question, runner.run(progress), direction)


def ablate(
    model: HookedModel,
    inputs: PromptsLike,
    metric: Metric,
    site: SiteName | Sequence[SiteName] = "z_all_pos",
    value: Value = "mean",
    *,
    reference: PromptsLike | None = None,
    positions: Positions | Literal["all"] | None = None,
    entries: Selection = None,
    seed: int = 0,
    budget: int = BUDGET,
    progress: bool | ProgressReport = True,
) -> PatchResult:
    """Take one part away at a time, and read the metric.

    Args:
        model: see ``sweep``.
        inputs: the prompts, see ``sweep``.
        metric: see ``sweep``.
        site: see ``sweep``.
        value: what stands there instead: ``"zero"``, ``"mean"`` over all tokens of the reference
            texts, ``"mean_by_pos"`` column by column, or ``"resample"``: another text's. Padding
            is never counted or taken.
        reference: texts for means and resampling; None takes the inputs themselves.
        positions: see ``sweep``.
        entries: see ``sweep``.
        seed: of resampling.
        budget: see ``sweep``.
        progress: see ``sweep``.

    Returns:
        The metric of each cell; ``clean`` is the metric with nothing taken away.

    Raises:
        InputError: see ``sweep``; or reference texts that do not fit.
    """
    check_ready(model)
    patched = read_prompts(model, inputs, "inputs")
    sites, positions = _sites(model, site, entries, positions)
    source = ablation_source(model, patched, sites, value, reference, seed)
    question = Question(model, patched, source, metric, sites, positions)
    runner = Runner(question, budget)
    warn_of_prompts(model, metric, {"prompt": patched})
    return build_result(question, runner.run(progress), "ablation")


def _sites(
    model: HookedModel,
    asked: SiteName | Sequence[SiteName],
    entries: Selection,
    positions: Positions | Literal["all"] | None,
) -> tuple[list[Site], Positions | None]:
    """The sites asked for, see ``find_sites``, and positions with names.

    Raises:
        InputError: entries that a hook point does not have.
    """
    sizes = axis_sizes(model.config, batch=1, pos=1)
    parallel = model.config.use_parallel_residual
    if isinstance(positions, str) and positions == "all":
        return find_sites(asked, parallel, model.hook_points, entries, sizes, True), None
    return find_sites(asked, parallel, model.hook_points, entries, sizes, False), positions
