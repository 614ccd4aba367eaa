"""The JSON that Anthropic's and Neuronpedia's front ends for attribution graphs read.

Ids are ``{layer}_{latent}_{pos}`` for features, ``E_{token}_{pos}`` for tokens, and for logits
``{layers + 1}_{token}_{pos}``, as circuit-tracer writes them. Its errors have ``0_{layer}_{pos}``,
which is also the id of a feature of layer 0; here they have the latent -1, ``{layer}_-1_{pos}``, so
that no two nodes share one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from neox_lab.checks import TEXT, check, several, shown
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import path_of, write_text

if TYPE_CHECKING:
    from neox_lab.circuits.attribution_graphs.result import AttributionGraph

SCHEMA = 1
_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "logit": "logit",
}


def write(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    slug: str,
    scan: str,
    groups: object,
    pinned: object,
) -> None:
    """Write a graph.

    Args:
        graph: as it is, so prune it first.
        path: ends in ``.json``.
        slug: its name, lower-case letters, digits and dashes.
        scan: what the front end calls the model with its transcoders.
        groups: supernodes: a name and the names of nodes.
        pinned: names of nodes.

    Raises:
        InputError: another ending, another kind of name, or nodes that are not there.
        CheckpointError: the file cannot be written.
    """
    place = path_of("path", path)
    if place.suffix != ".json":
        raise InputError(f"path={str(place)!r}; expected a name that ends in .json.")
    if not isinstance(slug, str) or not re.fullmatch(r"[a-z0-9-]+", slug):
        raise InputError(f"slug={shown(slug)}; expected lower-case letters, digits and dashes.")
    check("scan", scan, TEXT, InputError)
    rows = graph.nodes.to_dict("records")
    ids = [_id(row, graph.layers) for row in rows]
    known = dict(zip(graph.nodes["name"], ids, strict=True))
    named = {str(name): _listed(name, own, known) for name, own in _mapping(groups).items()}
    held = _listed("pinned", pinned, known)
    length = len(graph.tokens)
    nodes = [_node(row, one, length) for row, one in zip(rows, ids, strict=True)]
    answers = [node for node in nodes if node["is_target_logit"]]
    best = max(answers, key=lambda node: node["token_prob"])
    ends = (graph.links.source.tolist(), graph.links.target.tolist(), graph.links.weight.tolist())
    content = {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt_tokens": graph.tokens,
            "prompt": "".join(graph.tokens),
            "node_threshold": graph.kept[0],
            "schema_version": SCHEMA,
        },
        "qParams": {
            "pinnedIds": held,
            "supernodes": [[name, *own] for name, own in named.items()],
            "linkType": "both",
            "clickedId": best["node_id"],
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [
            {"source": ids[a], "target": ids[b], "weight": weight}
            for a, b, weight in zip(*ends, strict=True)
        ],
    }
    try:
        write_text(place, json.dumps(content, allow_nan=False))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(place)!r} cannot be written: {error}") from error


def _mapping(groups: object) -> Mapping[object, object]:
    """Supernodes as they were given.

    Raises:
        InputError: something else.
    """
    if not isinstance(groups, Mapping):
        raise InputError(
            f"groups={shown(groups)}; expected names of supernodes, each with the names of its "
            "nodes."
        )
    return groups


def _listed(what: object, given: object, known: Mapping[str, str]) -> list[str]:
    """The ids of nodes that were named.

    Raises:
        InputError: no names, or none of this graph.
    """
    names = several(str(what), given, "a list of names of nodes", InputError)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(
                f"{what}: there is no node {shown(name)} in this graph; a pruned one has fewer."
            )
    return [known[name] for name in names]


def _id(row: Mapping[Hashable, Any], layers: int) -> str:
    if row["kind"] == "feature":
        return f"{row['layer']}_{row['latent']}_{row['pos']}"
    if row["kind"] == "error":
        return f"{row['layer']}_-1_{row['pos']}"
    begin = "E" if row["kind"] == "token" else layers + 1
    return f"{begin}_{row['token_id']}_{row['pos']}"


def _node(row: Mapping[Hashable, Any], name: str, length: int) -> dict[str, Any]:
    """One node as the front end wants it."""
    layer, number = name.split("_")[:2]
    is_feature, is_logit = row["kind"] == "feature", row["kind"] == "logit"
    feature = int(number)
    if is_feature:
        both = int(layer) + feature
        feature = both * (both + 1) // 2 + feature  # Cantor's pairing of layer and latent
    said = ""
    if is_logit:
        chance = f" (p={row['probability']:.3f})" if math.isfinite(row["probability"]) else ""
        said = f'Output "{row["token"]}"{chance}'
    elif row["kind"] == "token":
        said = f'Emb: "{row["token"]}"'
    elif row["kind"] == "error":
        said = f"Err: mlp {layer} at {row['token']!r}"
    return {
        "node_id": name,
        "feature": None if feature < 0 else feature,
        "layer": layer,
        "ctx_idx": int(row["pos"]),
        "feature_type": _TYPES[row["kind"]],
        "token_prob": (_finite(row["probability"]) or 0.0) if is_logit else 0.0,
        "is_target_logit": is_logit,
        "run_idx": 0,
        "reverse_ctx_idx": length - 1 - int(row["pos"]),
        "jsNodeId": f"{layer}_{number}-{length - 1 - int(row['pos'])}",
        "clerp": said,
        "influence": float(row["influence"]),
        "activation": _finite(row["value"]) if is_feature else None,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
