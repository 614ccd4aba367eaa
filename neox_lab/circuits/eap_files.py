"""Scores and circuits in the files of EAP-IG (Hanna et al.), which MIB's track for circuits reads.

A ``.json`` file names nodes (``input``, ``a0.h3``, ``m0``, ``logits``) and edges
(``a0.h1->m1``, ``input->a0.h0<q>``); a ``.pt`` file holds the same as tensors, a row for each
writer and a column for each reader in the order of ``values`` here. Their scores are those of a
loss, the negative of the metric, so an edge that helps has a positive score there and a negative
one here: signs are turned on the way out and on the way in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neox_lab.checkpoint.reading import unpickled
from neox_lab.checkpoint.saving import write_with_torch
from neox_lab.checks import COUNT, check
from neox_lab.circuits.edges import edge_table
from neox_lab.errors import CheckpointError, InputError
from neox_lab.experiments.graph import Node, readers_of, writers_of
from neox_lab.files import path_of, read_json, staged_file, write_text

ENDINGS = (".json", ".pt")
_MOST = 2**13  # heads: GPT-NeoX-20B has 2,816, and a table of all pairs must fit into memory


class EapFile(NamedTuple):
    """What a file holds.

    Attributes:
        values: scores ``[writer, reader]`` with our sign; 0 where there is no edge.
        kept: True for edges of the circuit, ``[writer, reader]``.
        writers: the rows.
        readers: the columns.
        parallel: the wiring.
    """

    values: Tensor
    kept: Tensor
    writers: list[Node]
    readers: list[Node]
    parallel: bool


def write(path: str | os.PathLike[str], content: EapFile, d_model: int) -> None:
    """Write a file; one that is there stays until the new one is whole.

    Args:
        path: ends in ``.json`` or ``.pt``.
        content: scores and circuit.
        d_model: width of the model, which the layout notes.

    Raises:
        InputError: another ending.
        CheckpointError: it cannot be written.
    """
    place = _place(path)
    layers, heads = _sizes(content.writers)
    told: dict[str, Any] = {
        "n_layers": layers,
        "n_heads": heads,
        "parallel_attn_mlp": content.parallel,
        "d_model": check("d_model", d_model, COUNT, InputError),
    }
    table = edge_table(content.writers, content.readers, content.parallel)
    scores = -content.values.float().masked_fill(~table, 0)
    inside = _kept_nodes(content)
    names = [_writer(node) for node in content.writers]
    try:
        if place.suffix == ".json":
            edges = {
                f"{names[row]}->{_reader(content.readers[column])}": {
                    "score": float(scores[row, column]),
                    "in_graph": bool(content.kept[row, column]),
                }
                for row, column in table.nonzero().tolist()
            }
            nodes = {name: {"in_graph": name in inside} for name in [*names, "logits"]}
            write_text(place, json.dumps({"cfg": told, "nodes": nodes, "edges": edges}))
            return
        tensors: dict[str, Any] = {
            "cfg": told,
            "src_nodes": names,
            "dst_nodes": [*names[1:], "logits"],
            "edges_scores": scores,
            "edges_in_graph": content.kept.clone(),
            "nodes_in_graph": torch.tensor([name in inside for name in names]),
        }
        with staged_file(place) as temporary:
            write_with_torch(temporary, tensors)
    except OSError as error:
        raise CheckpointError(f"{str(place)!r} cannot be written: {error}") from error


def read(path: str | os.PathLike[str]) -> EapFile:
    """Read a file.

    Args:
        path: ends in ``.json`` or ``.pt``.

    Raises:
        InputError: another ending.
        CheckpointError: there is no such file, it is damaged or would run code, or it has edges
            that a model of its own shape has not.
    """
    place = _place(path)
    found = read_json(place) if place.suffix == ".json" else _unpickled(place)
    try:
        told = found["cfg"]
        layers, heads = _whole(told["n_layers"]), _whole(told["n_heads"])
        parallel = _truth(told["parallel_attn_mlp"])
        if not (0 < layers and 0 < heads and layers * heads <= _MOST):
            raise ValueError(f"{layers} layers of {heads} heads, above {_MOST} in all")
        writers, readers = writers_of(layers, heads), readers_of(layers, heads)
        table = edge_table(writers, readers, parallel)
        if place.suffix == ".json":
            values, kept = _of_names(found["edges"], writers, readers)
        else:
            values, kept = _tensor(found["edges_scores"]), _tensor(found["edges_in_graph"]) != 0
            if values.shape != table.shape or kept.shape != table.shape:
                raise ValueError(f"scores {list(values.shape)}, expected {list(table.shape)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{str(place)!r} is no file of EAP-IG: {type(error).__name__}: {error}"
        ) from error
    if bool((kept & ~table).any()) or bool(values.masked_fill(table, 0).any()):
        raise CheckpointError(
            f"{str(place)!r} has edges that a model with "
            f"{'parallel' if parallel else 'sequential'} blocks has not, such as from a head to "
            "the MLP of its own layer. For Pythia parallel_attn_mlp must be true where it is made."
        )
    return EapFile(-values.masked_fill(~table, 0), kept, writers, readers, parallel)


def _place(path: object) -> Path:
    place = path_of("path", path).expanduser()
    if place.suffix not in ENDINGS:
        raise InputError(f"path={str(path)!r}; EAP-IG's files end in .json or .pt.")
    return place


def _unpickled(place: Path) -> Mapping[str, Any]:
    found = unpickled(place)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{str(place)!r} holds a {type(found).__name__}; expected a dict.")
    return found


def _of_names(
    edges: Mapping[str, Any], writers: list[Node], readers: list[Node]
) -> tuple[Tensor, Tensor]:
    """Scores and edges ``[writer, reader]`` of a JSON file."""
    rows = {_writer(node): row for row, node in enumerate(writers)}
    columns = {_reader(node): column for column, node in enumerate(readers)}
    values = torch.zeros(len(writers), len(readers), dtype=torch.float32)
    kept = torch.zeros(len(writers), len(readers), dtype=torch.bool)
    for name, told in edges.items():
        writer, _, reader = name.partition("->")
        at = rows[writer], columns[reader]
        values[at] = float(told.get("score", 0.0))
        kept[at] = _truth(told["in_graph"])
    return values, kept


def _whole(given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(f"{given!r} is no whole number")
    return given


def _truth(given: object) -> bool:
    if given not in (True, False):  # "false" would be true
        raise ValueError(f"{given!r} is neither true nor false")
    return bool(given)


def _tensor(given: object) -> Tensor:
    """Numbers as float32, dense."""
    found = torch.as_tensor(given)
    if found.is_complex() or found.is_meta:
        raise ValueError(f"a tensor of {found.dtype} on {found.device}; expected numbers")
    return found.to_dense().float()


def _kept_nodes(content: EapFile) -> set[str]:
    """Nodes that an edge of the circuit begins or ends at."""
    rows = content.kept.any(dim=1).nonzero().flatten().tolist()
    columns = content.kept.any(dim=0).nonzero().flatten().tolist()
    ends = {_reader(content.readers[column]).split("<")[0] for column in columns}
    return ends | {_writer(content.writers[row]) for row in rows}


def _sizes(writers: list[Node]) -> tuple[int, int]:
    return 1 + max(n.layer for n in writers), 1 + max(n.head for n in writers)


def _writer(node: Node) -> str:
    if node.kind == "head":
        return f"a{node.layer}.h{node.head}"
    return {"embed": "input", "mlp": f"m{node.layer}"}[node.kind]


def _reader(node: Node) -> str:
    if node.kind == "head":
        return f"a{node.layer}.h{node.head}<{node.part}>"
    return f"m{node.layer}" if node.kind == "mlp" else "logits"
