"""Attribution graphs: which features of a prompt made the model say what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, require_model, whole
from neox_lab.circuits.attribution_graphs.edges import joined
from neox_lab.circuits.attribution_graphs.interventions import interventions_of
from neox_lab.circuits.attribution_graphs.nodes import node_table
from neox_lab.circuits.attribution_graphs.replacement import LocalReplacement
from neox_lab.circuits.attribution_graphs.result import AttributionGraph, scores, weights
from neox_lab.circuits.attribution_graphs.rows import Rows, influence, sparse
from neox_lab.circuits.attribution_graphs.targets import (
    Target,
    Targets,
    likeliest,
    own_targets,
    targets_of,
)
from neox_lab.circuits.attribution_graphs.transcoders import Transcoders, TranscodersLike
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.patching.prompts import PromptsLike, read_prompts
from neox_lab.experiments.prompt_doctor.inside import warn_of_prompts
from neox_lab.experiments.splices import check_splices
from neox_lab.model.parts import at_least_float32
from neox_lab.notices import tell
from neox_lab.progress import Progress
from neox_lab.views.tokens import label

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_ROWS = 128
EXACT = 1e-3  # conservation worse than this is said


@torch.inference_mode(False)
@torch.no_grad()
def attribution_graph(
    model: HookedModel,
    transcoders: TranscodersLike,
    prompt: PromptsLike,
    *,
    target: Target | None = None,
    max_features: int = 2_000,
    interventions: int = 8,
    progress: bool = True,
) -> AttributionGraph:
    """Trace next tokens, the likeliest or your own, back to features, errors and prompt tokens.

    Every MLP with a transcoder is replaced by its active features and what they miss; attention
    patterns and the denominators of layer norms stay as they were in this run. Then what each
    node adds to each later one is linear and exact, see ``replacement``. Layers without a
    transcoder, and positions of special tokens (which a model reads in a way of their own), have
    errors only.

    Args:
        model: a causal language model; float32, for numbers to be exact.
        transcoders: of its MLPs: one, a list or a mapping of them, or a cross-layer transcoder.
        prompt: one text, or its token ids ``[1, pos]``; padding is left out.
        target: what is explained: a token as text (``" Anna"``, with its space) or as id, or a list
            of them, each of which counts as much; a tuple of two is one thing, the logit of the
            first over that of the second. None for the likeliest tokens up to a probability of 0.95
            together, at most ten, each by its probability.
        max_features: so many features get a row of their own, those that matter most for the logits
            as far as is known when they are chosen.
        interventions: so many of the features that matter most are removed in real runs, whose
            outcome stands beside what the graph predicts.
        progress: a bar.

    Returns:
        Nodes, edges, how exact they are, and how well interventions agree.

    Raises:
        InputError: no transcoders of this model's MLPs, more than one prompt, no such target, no
            feature is active, or logits are NaN.
        TokenizerError: a target is not exactly one token.
        HookError: a function is spliced in, a hook that may change something is placed, or the
            model is not what the linear maps need.
    """
    require_model(model)
    if model.head != "causal-lm":
        raise InputError(
            f"attribution_graph needs a model with an unembedding; this one is a "
            f"{type(model).__name__}. Load it with head='causal-lm'."
        )
    refuse_dropout(model)
    check_splices(model, (), "An attribution graph takes the network's own parts.")
    check("progress", progress, SWITCH, InputError)
    if placed := model.hook_stack.changing:
        raise HookError(
            f"A hook is placed at {placed[0]!r}, and what it changes would be in no edge. Leave "
            "its with block first; a hook that only looks says so with nl.reads_only."
        )
    most = check("max_features", max_features, whole(least=1), InputError)
    count = check("interventions", interventions, whole(least=0), InputError)
    named = None if target is None else targets_of(model, target)
    found = Transcoders(model, transcoders)
    ids = _one_prompt(model, prompt)
    run = LocalReplacement(model, ids, found, _special(model, ids))
    if not bool(run.logits.isfinite().all()):
        raise InputError(
            "The logits of this prompt are NaN or infinite, so that there is nothing to trace. "
            "model.check() names weights that are not finite."
        )
    if not len(run.features):
        raise InputError(
            "No feature is active in this prompt (special tokens left out), so that there is "
            "nothing to trace."
        )
    logits = likeliest(run.logits) if named is None else own_targets(run.logits, *named)
    first = _trace_logits(run, logits)
    parts = _trace_features(run, logits, first, most, progress)
    graph = _made(run, logits, first, parts, count)
    if not graph.conservation <= EXACT:
        tell(
            f"Incoming edges miss a node's own value by up to {graph.conservation:.1e} of it; "
            f"rounding in {model.dtype} does that. Use model.float()."
        )
    return graph


def _one_prompt(model: HookedModel, prompt: PromptsLike) -> Tensor:
    """Token ids ``[pos]`` of the only prompt, without padding.

    Raises:
        InputError: there are several.
    """
    given = read_prompts(model, prompt, "prompt")
    if len(given.ids) != 1:
        raise InputError(
            f"prompt is {len(given.ids)} texts; an attribution graph is of one. Ask for each."
        )
    warn_of_prompts(model, None, {"prompt": given})
    return given.ids[0][given.own[0]]


def _special(model: HookedModel, ids: Tensor) -> Tensor:
    """True where a special token stands ``[pos]``."""
    config = model.config
    known = {config.bos_token_id, config.eos_token_id, config.pad_token_id}
    if model.tokenizer is not None:
        known |= set(model.tokenizer.all_special_ids)
    listed = sorted(one for one in known if isinstance(one, int))
    return torch.isin(ids, torch.tensor(listed, dtype=ids.dtype, device=ids.device))


def _trace_logits(run: LocalReplacement, logits: Targets) -> Rows:
    """What every source adds to the targets."""
    weight, bias = run.model.output_map
    covectors = logits.of(at_least_float32(weight))
    norm, last = run.final_norm(), len(run.ids) - 1
    constants = covectors @ norm.bias
    if bias is not None:
        constants = constants + logits.of(at_least_float32(bias))
    pos = torch.full_like(logits.ids, last)
    begun = norm.at(pos).back(covectors)
    values, constants = run.trace(torch.full_like(pos, run.layers), pos, begun, constants)
    return sparse(torch.arange(len(pos)), values, constants)


def _trace_features(
    run: LocalReplacement, logits: Targets, first: Rows, most: int, progress: bool
) -> list[tuple[int, Rows]]:
    """Rows of the features that matter most, by layer.

    Each batch is of those that matter most by what is known so far.
    """
    parts: list[tuple[int, Rows]] = []
    known = torch.zeros(len(run.features), dtype=torch.bool, device=run.ids.device)
    most = min(most, len(known))
    with Progress(most, "feature traced", silent=not progress) as bar:
        while int(known.sum()) < most:
            weight = influence(parts, logits.weight, first, run.sources)[: len(known)]
            weight = weight.masked_fill(known, -1)
            chosen = weight.topk(min(_ROWS, most - int(known.sum()))).indices
            order = run.features.layer[chosen].argsort(descending=True, stable=True)
            parts += _traced(run, chosen[order])
            known[chosen] = True
            bar.update(len(chosen))
    return parts


def _traced(run: LocalReplacement, chosen: Tensor) -> list[tuple[int, Rows]]:
    """Rows of some features, sorted by layer from the top; one ``Rows`` for each layer."""
    layer, pos = run.features.layer[chosen], run.features.pos[chosen]
    latent = run.features.latent[chosen]
    starts, constants = [], []
    for at in torch.unique(layer).flip(0).tolist():
        own = layer == at
        rows, bias = map(at_least_float32, run.transcoders.reading(at, latent[own]))
        constants.append(bias + rows @ run.reading_bias(at))
        starts.append(run.read_back(at, rows, pos[own]))
    values, constant = run.trace(layer, pos, torch.cat(starts), torch.cat(constants))
    found = []
    for at in torch.unique(layer).flip(0).tolist():
        own = layer == at
        found.append((at, sparse(chosen[own], values[own], constant[own])))
    return found


def _made(
    run: LocalReplacement,
    logits: Targets,
    first: Rows,
    parts: list[tuple[int, Rows]],
    count: int,
) -> AttributionGraph:
    """The graph of everything that was traced."""
    traced = torch.cat([rows.targets for _, rows in parts]).sort().values
    total = influence(parts, logits.weight, first, run.sources)
    features = total[: len(run.features)]
    unexplored = float((features.sum() - features[traced].sum()) / total.sum())
    tokens, answers = (_pieces(run.model, ids) for ids in (run.ids, logits.ids))
    if logits.minus is not None:
        less = _pieces(run.model, logits.minus)
        answers = [f"{label(answers[0])} over {label(less[0])}"]
    nodes = node_table(run, traced, logits, first, parts, tokens, answers)
    links = joined(traced, run.sources, len(run.features), first, parts)
    layers = torch.tensor(nodes["layer"].to_numpy(copy=True))
    nodes["influence"] = links.influence(weights(nodes), layers).numpy()
    replacement, completeness = scores(nodes, links)
    changes = interventions_of(run, traced, logits, nodes, links, count)
    unexplored = max(unexplored, 0.0)  # in this order NaN stays NaN
    return AttributionGraph(
        nodes, links, tokens, run.layers, changes, replacement, completeness, unexplored
    )


def _pieces(model: HookedModel, ids: Tensor) -> list[str]:
    """Tokens as text, or their ids where there is no tokenizer."""
    numbers = ids.tolist()
    if model.tokenizer is None:
        return [str(one) for one in numbers]
    return model.tokenizer.pieces(numbers)
