"""The network as a graph: who writes to the residual stream, and who reads it.

    writers    embed   L0H0 .. L5H7   MLP0 .. MLP5
    readers    L0H0.q  L0H0.k  L0H0.v ..   MLP0 ..   logits

Every writer adds to one residual stream, and every later reader sees the sum. So there is an edge
from each writer to each reader that comes after it, and a change can be sent along one edge alone
(Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor

from neox_lab.checks import several, shown
from neox_lab.errors import InputError
from neox_lab.experiments.splices import IN_NODES, check_splices
from neox_lab.head_names import head_name

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Kind = Literal["embed", "head", "mlp", "logits"]
Part = Literal["", "q", "k", "v"]

_WRITING = {"embed": "hook_embed", "head": "attn.hook_result", "mlp": "hook_mlp_out"}
FEATURES = "Features of a dictionary are scored by nl.features.circuit, without a with block."
_NAME = re.compile(r"L(?P<layer>\d+)H(?P<head>\d+)(?:\.(?P<part>[qkv]))?|MLP(?P<mlp>\d+)")


@dataclass(frozen=True)
class Node:
    """One writer or reader.

    Attributes:
        kind: what it is.
        layer: its block; -1 for the embedding, the number of blocks for the logits.
        head: number of the head, for heads.
        part: which input of a head, for readers.
    """

    kind: Kind
    layer: int
    head: int = 0
    part: Part = ""

    @property
    def name(self) -> str:
        """As users write it: ``"embed"``, ``"L3H2"``, ``"L3H2.q"``, ``"MLP3"``, ``"logits"``."""
        if self.kind == "head":
            return head_name(self.layer, self.head) + (f".{self.part}" if self.part else "")
        return f"MLP{self.layer}" if self.kind == "mlp" else self.kind

    @property
    def writing_hook(self) -> str:
        """Where what a writer adds to the residual stream can be seen."""
        name = _WRITING[self.kind]
        return name if self.kind == "embed" else f"blocks.{self.layer}.{name}"

    @property
    def reading_hook(self) -> str:
        """Where what a reader takes from the residual stream can be seen."""
        if self.kind == "logits":
            return f"blocks.{self.layer - 1}.hook_resid_post"
        name = f"hook_{self.part}_input" if self.kind == "head" else "hook_mlp_in"
        return f"blocks.{self.layer}.{name}"

    def part_of(self, found: Tensor) -> Tensor:
        """The node's own part of what stands at its hook, ``[batch, pos, d_model]``."""
        return found[:, :, self.head] if self.kind == "head" else found

    def precedes(self, reader: Node, parallel: bool) -> bool:
        """Whether ``reader`` sees what this writer wrote.

        Args:
            reader: a reader.
            parallel: the wiring; in sequential blocks the MLP reads its own block's attention.
        """
        own = self.kind == "head" and reader.kind == "mlp" and not parallel
        return self.layer < reader.layer or (own and self.layer == reader.layer)


def node_of(name: str, layers: int) -> Node:
    """The node of a name.

    Args:
        name: as in ``Node.name``.
        layers: blocks of the model.

    Raises:
        InputError: no node is called so.
    """
    if name in ("embed", "logits"):
        return Node("embed", -1) if name == "embed" else Node("logits", layers)
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(
            f"No node is called {name!r}; names are embed, L0H1, L0H1.q, MLP0, logits."
        )
    if found["mlp"] is not None:
        return Node("mlp", int(found["mlp"]))
    part = cast(Part, found["part"] or "")
    return Node("head", int(found["layer"]), int(found["head"]), part)


def check_whole(model: HookedModel) -> None:
    """Refuse functions spliced in between the nodes: the stream would not be their writers' sum.

    Raises:
        HookError: there is one; those within a head or an MLP are part of its node.
    """
    why = "The residual stream is no longer the sum of what parts write."
    check_splices(model, IN_NODES, f"{why} {FEATURES}")


def writers(model: HookedModel) -> list[Node]:
    """All writers, in the order in which they write."""
    return writers_of(model.config.num_hidden_layers, model.config.num_attention_heads)


def writers_of(layers: int, heads: int) -> list[Node]:
    """Those of a model of so many layers, with so many heads in each."""
    found = [Node("embed", -1)]
    for layer in range(layers):
        found += [Node("head", layer, head) for head in range(heads)]
        found.append(Node("mlp", layer))
    return found


def readers(model: HookedModel) -> list[Node]:
    """All readers, in the order in which they read."""
    return readers_of(model.config.num_hidden_layers, model.config.num_attention_heads)


def readers_of(layers: int, heads: int) -> list[Node]:
    """Those of a model of so many layers, with so many heads in each."""
    found: list[Node] = []
    parts: tuple[Part, ...] = ("q", "k", "v")
    for layer in range(layers):
        for part in parts:
            found += [Node("head", layer, head, part) for head in range(heads)]
        found.append(Node("mlp", layer))
    return [*found, Node("logits", layers)]


def find_writers(model: HookedModel, names: str | Iterable[str]) -> list[Node]:
    """Writers by name; ``"heads"``, ``"mlps"`` and ``"all"`` stand for several.

    Raises:
        InputError: no writer has that name.
    """
    return _find(names, writers(model), "writer")


def find_readers(model: HookedModel, names: str | Iterable[str]) -> list[Node]:
    """Readers by name; a head without a part is its three inputs; sets as in ``find_writers``.

    Raises:
        InputError: no reader has that name.
    """
    return _find(names, readers(model), "reader")


def _find(names: str | Iterable[str], known: list[Node], what: str) -> list[Node]:
    wanted = [names]
    if not isinstance(names, str):
        wanted = several(f"{what}s", names, "names such as ['L0H1', 'MLP2']", InputError)
    found: list[Node] = []
    for name in wanted:
        if not isinstance(name, str):
            raise InputError(
                f"{what}s holds {shown(name)}; expected names such as 'L1H2', head 2 of layer 1."
            )
        kind = {"heads": "head", "mlps": "mlp"}.get(name)
        same = [
            node
            for node in known
            if name in ("all", node.name, node.name.split(".")[0]) or node.kind == kind
        ]
        if not same:
            raise InputError(_unknown(name, known, what))
        found += same
    return list(dict.fromkeys(found))


def _unknown(name: str, known: list[Node], what: str) -> str:
    layers = 1 + max(node.layer for node in known if node.kind == "mlp")
    heads = 1 + max(node.head for node in known)
    hint = ""
    there = {node.name.split(".")[0].casefold(): node.name.split(".")[0] for node in known}
    if meant := there.get(name.split(".")[0].casefold()):  # 'l1h2', or a part that nobody writes
        hint = f" Did you mean {meant!r}?"
    elif _NAME.fullmatch(name):
        hint = f" The model has {layers} layers and {heads} heads in each, counted from 0."
    names = "embed, L0H1 (a head), MLP0" if what == "writer" else "L0H1.q, L0H1, MLP0, logits"
    return (
        f"No {what} {name!r}. Names are {names}; 'heads', 'mlps' and 'all' stand for several.{hint}"
    )
