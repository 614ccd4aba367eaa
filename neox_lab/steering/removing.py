"""Taking a direction out of a model: by hooks, or out of the weights for good.

Everything the residual stream holds was written there by the embedding, by attention
(``attention.dense``) and by the MLPs (``mlp.dense_4h_to_h``), each with its bias. If none of them
writes along a unit vector u, the stream never has a component along it, and the network computes
what it computes when u is ablated from the stream everywhere:

    W_E' = W_E (1 − u uᵀ)        W' = (1 − u uᵀ) W        b' = (1 − u uᵀ) b

Layer norm subtracts each vector's mean after that, which is along (1, 1, …): what is behind a norm
has a component along u again unless u is at right angles to that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.errors import HookError, InputError
from neox_lab.hooks.hooking import Placement
from neox_lab.steering.edits import Edit, Steering

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.steering.directions import Direction

STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


def the_vector(direction: Direction) -> Tensor:
    """The only vector of a direction, which must be one of the residual stream.

    Raises:
        InputError: it has several, or one of another tensor.
    """
    model = direction.model
    if len(direction.sites) != 1:
        raise InputError(
            f"this direction has {len(direction.sites)} vectors, one for each site; choose which "
            "to remove: direction.at(site)"
        )
    ((name, at),) = direction.sites.items()
    axes = model.hook_points[name].axes
    if axes != ("batch", "pos", "d_model"):
        raise InputError(
            f"{name!r} is [{', '.join(axes)}]; only a direction of the residual stream, [batch, "
            "pos, d_model], can be removed from it"
        )
    return at.vector


@contextmanager
def removed(direction: Direction) -> Iterator[HookedModel]:
    """See ``Direction.removed``."""
    model, vector = direction.model, the_vector(direction)
    points = model.hook_points
    placement = Placement(points, (), ())
    edit = Edit(vector.to(model.device), "ablate", 1.0, 0.0)
    for name, point in points.items():
        if name.endswith(STREAM):
            placement.entries.append((name, [Steering(point, edit, None)]))
    with model.hook_stack.placed(placement, must_fire=False):
        yield model


def remove_from_weights(direction: Direction) -> HookedModel:
    """See ``Direction.remove_from_weights``."""
    vector = the_vector(direction).double()
    unit = vector / vector.norm()
    model = copy.deepcopy(direction.model)
    network = model.backbone
    if network.store is not None:
        raise HookError(
            "Layers of this model are read from their files for each pass, so changes of their "
            "weights would be lost. Load it without max_memory=, or take the direction out of "
            "activations: with direction.removed():"
        )
    _untie(model)
    with torch.no_grad():
        embedding = network.embed_in
        if type(embedding) is not nn.Embedding:
            raise HookError(_not_plain("embed_in", embedding))
        _project(embedding.weight, unit, 1)
        for layer in range(model.config.num_hidden_layers):
            block = network.block(layer)
            parts = {"attention": block.attention.dense, "mlp": block.neurons().dense_4h_to_h}
            for name, part in parts.items():
                if not isinstance(part, nn.Linear) or hasattr(part, "base_layer"):
                    raise HookError(_not_plain(f"layers.{layer}.{name}", part))
                _project(part.weight, unit, 0)
                if part.bias is not None:
                    _project(part.bias, unit, 0)
    return model


def _project(weight: Tensor, unit: Tensor, axis: int) -> None:
    """Take the component along ``unit`` out of an axis of a weight, in place."""
    wide = weight.double().movedim(axis, -1)
    along = unit.to(wide.device)
    left = wide - (wide @ along)[..., None] * along
    weight.copy_(left.movedim(-1, axis))


def _untie(model: HookedModel) -> None:
    """Give the unembedding weights of its own: it only reads, and stays as it is."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.backbone.embed_in.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _not_plain(name: str, part: object) -> str:
    return (
        f"{name} is a {type(part).__name__}, whose weights are not one matrix; merge adapters "
        "first, or remove the direction with hooks"
    )
