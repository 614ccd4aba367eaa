"""What counts as a feature: of dictionaries, neurons, heads, probes and directions alike.

A ``Source`` says which hook points are read and how their tensors become ``Codes``. Everything in
this room that asks where features are active takes any of these:

    dictionary                                        its features
    transcoder, transcoder.layer(2)                   those of all layers, of one
    "blocks.3.mlp.hook_post"                          the neurons of an MLP, or any other axis
    Head(2, 1)                                        how much a head writes
    Head(2, 1, along=vector)                          how much of it lies along a vector
    Head(2, 1, to="previous")                         how much it attends to something
    Direction(probe.direction("blocks.2.hook_resid_post", "joy"), "blocks.2.hook_resid_post")
    Source(...)                                       one's own

Activations of dictionaries are what their ``encode`` says. Of all others those above 0 are active.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from neox_lab.checks import COUNT, TEXT, check, number, one_of, or_none, shown
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.features.reading import require_device
from neox_lab.head_names import head_name
from neox_lab.hooks.names import exact
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.sae import Codes, CrossLayerTranscoder, Dictionary, TranscoderLayer
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.selections import entry

Read = Callable[[Mapping[str, Tensor], Tensor], Codes]
"""From a cache and the token ids ``[batch, pos]`` to codes ``[batch, pos, slot]``."""

ATTENDED = ("first", "previous", "itself")


@dataclass(frozen=True)
class Source:
    """Something that has features.

    Attributes:
        title: what it is, such as ``"TopK dictionary at blocks.1.hook_mlp_out"``.
        noun: what one of its features is called, such as ``"feature"`` or ``"neuron"``.
        sites: hook points that are read.
        latents: how many features.
        read: see ``Read``.
        directions: what each adds to the residual stream where it is active, ``[latent, d_model]``;
            None where nobody can say.
        labels: a name for each feature; its number if None.
        facts: where it came from, by name.
    """

    title: str
    noun: str
    sites: tuple[str, ...]
    latents: int
    read: Read
    directions: Tensor | None = None
    labels: tuple[str, ...] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read.

        Raises:
            InputError: numbers that do not fit together.
        """
        count = check("latents", self.latents, COUNT, InputError)
        for name, given in (("directions", self.directions), ("labels", self.labels)):
            if given is not None and len(given) != count:
                raise InputError(f"{name} are {len(given)}; there are {count} features.")

    def codes(self, cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        """What ``read`` gives, if these are codes of this source's features at these tokens.

        Args:
            cache: has ``sites``.
            ids: token ids ``[batch, pos]``.

        Raises:
            InputError: they are not.
        """
        found: object = self.read(cache, ids)
        if not isinstance(found, Codes):
            raise InputError(f"read of {self.title!r} gave {shown(found, 80)}; expected Codes.")
        shape, kind = list(found.indices.shape), found.indices.dtype
        if shape[:-1] != list(ids.shape) or found.latents != self.latents or kind != torch.int64:
            raise InputError(
                f"read of {self.title!r} gave codes {shape} of {found.latents} features, indices "
                f"{kind}; expected {[*ids.shape, 'slot']} of {self.latents}, torch.int64."
            )
        if found.indices.numel():
            low, high = (int(end) for end in found.indices.aminmax())
            if low < 0 or high >= self.latents:
                raise InputError(
                    f"read of {self.title!r} gave indices from {low} to {high}; there are "
                    f"{self.latents} features."
                )
        return found

    def name_of(self, latent: int) -> str:
        """Such as ``"neuron 12"``."""
        return f"{self.noun} {latent}" if self.labels is None else self.labels[latent]


@dataclass(frozen=True)
class Head:
    """An attention head as a feature.

    Without ``along`` and ``to`` its activation is the norm of what it writes.

    Attributes:
        layer: number of the block.
        head: number of the head.
        along: what it writes is projected on this, ``[d_model]``, taken to length 1.
        to: the attention it pays: to the ``"first"`` position, to the ``"previous"`` one, to
            ``"itself"``.
    """

    layer: int
    head: int
    along: Tensor | None = None
    to: str | None = None


@dataclass(frozen=True)
class Direction:
    """A direction at a hook point as a feature: a probe's, a steering vector.

    Its activation is ``x @ vector + bias``.

    Attributes:
        vector: ``[d]``, or several ``[latent, d]``.
        site: hook point.
        bias: added, so that what is above 0 counts as active.
        name: what it is.
    """

    vector: Tensor
    site: str
    bias: float = 0.0
    name: str = "direction"


OfDictionary = Dictionary | CrossLayerTranscoder | TranscoderLayer
What = Source | OfDictionary | Head | Direction | str | tuple[str, int]
"""Whatever has features."""


@torch.no_grad()
def source_of(model: HookedModel, what: What) -> Source:
    """How the features of something are read from a model.

    Args:
        model: whose activations they are.
        what: see the head of this file.

    Raises:
        InputError: it is nothing of the kind, or does not fit the site.
        HookNameError: the model has no such site.
    """
    if isinstance(what, Source):
        for site in what.sites:
            exact(site, model.hook_points)
        return what
    if isinstance(what, Dictionary):
        return _of_dictionary(model, what)
    if isinstance(what, TranscoderLayer):
        return _of_layers(model, what.transcoder, [what])
    if isinstance(what, CrossLayerTranscoder):
        return _of_layers(model, what, [what.layer(i) for i in range(what.layers)])
    if isinstance(what, Head):
        return _of_head(model, what)
    if isinstance(what, Direction):
        return _of_direction(model, what)
    if isinstance(what, str | tuple):
        return _of_axis(model, exact(what, model.hook_points))
    raise InputError(
        f"what={shown(what)}; expected a dictionary, a hook name (its neurons), or a Head, a "
        "Direction or a Source of nl.features."
    )


def _of_dictionary(model: HookedModel, dictionary: Dictionary) -> Source:
    site, out = (exact(s, model.hook_points) for s in (dictionary.site_in, dictionary.site_out))
    for name, width in ((site, dictionary.d_in), (out, dictionary.d_out)):
        _fit(model, name, width, "This dictionary")
    require_device(model, dictionary, dictionary.W_dec.device)

    def read(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        return dictionary.encode(cache[site].flatten(2))

    where = site if site == out else f"{site} to {out}"
    return Source(
        f"{dictionary.kind} dictionary at {where}",
        "feature",
        (site,),
        dictionary.latents,
        read,
        _into_stream(model, out, dictionary.W_dec.detach()),
        facts={"kind": dictionary.kind, "reads": site, "writes": out} | dictionary.sources,
    )


def _of_layers(
    model: HookedModel, transcoder: CrossLayerTranscoder, layers: list[TranscoderLayer]
) -> Source:
    """Features of layers of a cross-layer transcoder, those of one layer after those of another."""
    points = model.hook_points
    sites = [exact(layer.site_in, points) for layer in layers]
    out = [exact(site, points) for site in transcoder.sites_out[layers[0].number :]]
    for site in sites:
        _fit(model, site, transcoder.d_in, "This transcoder")
    for site in out:
        _fit(model, site, transcoder.d_out, "This transcoder")
    require_device(model, transcoder, transcoder.b_dec[0].device)
    if isinstance(transcoder.activation, SharedTopK):
        raise InputError(
            f"{transcoder!r} chooses its features among tokens that are encoded together, so what "
            "is active at a token depends on the batch; ask of one that was made JumpReLU."
        )

    def read(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        found = [
            layer.encode(cache[site].flatten(2)) for layer, site in zip(layers, sites, strict=True)
        ]
        indices = [codes.indices + i * transcoder.latents for i, codes in enumerate(found)]
        values = [codes.values for codes in found]
        total = len(layers) * transcoder.latents
        return Codes(torch.cat(indices, dim=-1), torch.cat(values, dim=-1), total)

    streams = [_into_stream(model, layer.site_out, layer.rows.detach()) for layer in layers]
    known = [each for each in streams if each is not None]
    labels = [
        f"layer {layer.number}, feature {at}" for layer in layers for at in range(layer.latents)
    ]
    where = sites[0] if len(sites) == 1 else f"{len(sites)} layers from {sites[0]} on"
    return Source(
        f"{transcoder.kind} cross-layer transcoder at {where}",
        "feature",
        tuple(dict.fromkeys(sites)),
        len(layers) * transcoder.latents,
        read,
        torch.cat(known) if len(known) == len(layers) else None,
        tuple(labels),
        {"kind": transcoder.kind, "reads": where, "writes": f"{out[0]} and later ones"}
        | transcoder.sources,
    )


def _of_axis(model: HookedModel, site: str) -> Source:
    width = _width(model, site)
    axis = model.hook_points[site].axes[2:]
    neurons = axis == ("d_mlp",)

    def read(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        return _positive(cache[site].flatten(2))

    labels = None
    if len(axis) == 2:
        inner = _shape(model, site)[1]
        labels = tuple(f"head {at // inner}, {axis[1]} {at % inner}" for at in range(width))
    return Source(
        f"{'neurons' if neurons else ' '.join(axis)} at {site}",
        "neuron" if neurons else axis[-1],
        (site,),
        width,
        read,
        _into_stream(model, site, None),
        labels,
        {"reads": site},
    )


def _of_direction(model: HookedModel, what: Direction) -> Source:
    site = exact(what.site, model.hook_points)
    bias = check("bias", what.bias, number(below=math.inf), InputError)
    vectors = _vectors("vector", what.vector, 2)
    _fit(model, site, vectors.shape[1], "This direction")
    name = check("name", what.name, TEXT, InputError)

    def read(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        x = cache[site].flatten(2)
        return _positive(x.to(vectors.dtype) @ vectors.to(x.device).T + bias)

    several = len(vectors) > 1
    return Source(
        f"{name} at {site}",
        name,
        (site,),
        len(vectors),
        read,
        _into_stream(model, site, vectors.to(model.device)),
        None if several else (name,),
        {"reads": site, "activation": f"x @ vector + {bias:g}, above 0"},
    )


def _of_head(model: HookedModel, what: Head) -> Source:
    layer = entry("layer", what.layer, len(model.blocks), InputError)
    head = entry("head", what.head, model.config.num_attention_heads, InputError)
    to = check("to", what.to, or_none(one_of(*ATTENDED)), InputError)
    if to is not None and what.along is not None:
        raise InputError("A Head is read either along a vector or by what it attends to.")
    name = head_name(layer, head)
    if to is not None:
        site = f"blocks.{layer}.attn.hook_pattern"
        told = f"attention of {name} to {'the ' if to != 'itself' else ''}{to} position"
        told = told.removesuffix(" position") if to == "itself" else told
        read = _attention(site, head, to)
        return Source(told, told, (site,), 1, read, labels=(told,), facts={"reads": site})
    site = f"blocks.{layer}.attn.hook_z"
    output = model.blocks[layer].W_O[head].detach()
    along = None if what.along is None else _vectors("along", what.along, 1)[0]
    if along is not None and along.shape != output.shape[1:]:
        raise InputError(f"along is {list(along.shape)}; expected [d_model], {output.shape[1]}.")
    unit = None if along is None else (along / along.norm()).to(output)

    def read_output(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        written = cache[site][:, :, head] @ output
        if unit is None:
            return _positive(written.norm(dim=-1, keepdim=True))
        return _positive((written @ unit)[..., None])

    told = f"what {name} writes" + ("" if unit is None else " along a vector")
    directions = None if unit is None else unit[None]
    facts = {"reads": site, "activation": "norm" if unit is None else "projection, above 0"}
    return Source(told, told, (site,), 1, read_output, directions, (told,), facts)


def _attention(site: str, head: int, to: str) -> Read:
    """How much a head attends from each position to something."""

    def read(cache: Mapping[str, Tensor], ids: Tensor) -> Codes:
        pattern = cache[site][:, head]  # [batch, query_pos, key_pos]
        if to == "first":
            paid = pattern[:, :, 0]
        elif to == "itself":
            paid = pattern.diagonal(dim1=1, dim2=2)
        else:
            paid = torch.nn.functional.pad(pattern.diagonal(-1, dim1=1, dim2=2), (1, 0))
        return _positive(paid[..., None])

    return read


def _positive(x: Tensor) -> Codes:
    """Every latent in a slot of its own, in the order of their numbers; 0 where not above 0.

    Sorting them, as codes of dictionaries are, would take longer than all the rest.
    """
    values = torch.where(x < 0, 0, x)  # keeps NaN
    return Codes(torch.arange(x.shape[-1], device=x.device).expand(x.shape), values, x.shape[-1])


def _vectors(name: str, value: object, most_axes: int) -> Tensor:
    """Vectors ``[latent, d]`` that a user gave, float32 at least.

    Raises:
        InputError: something else, or numbers that are not finite or all 0.
    """
    whole = isinstance(value, Tensor) and not value.is_meta and value.layout is torch.strided
    if isinstance(value, Tensor) and whole and value.is_floating_point():
        if 1 <= value.dim() <= most_axes and value.numel() and value.isfinite().all():
            vectors = value.detach().reshape(-1, value.shape[-1])
            if bool((vectors != 0).any(dim=1).all()):
                return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    shape = "[d]" if most_axes == 1 else "[d] or [latent, d]"
    raise InputError(
        f"{name}={shown(value, 80)}; expected a tensor {shape} of finite numbers that are not all "
        "0."
    )


def _shape(model: HookedModel, site: str) -> tuple[int, ...]:
    """What stands at one position of a site.

    Raises:
        InputError: it has no positions, or two of them.
    """
    point = model.hook_points[site]
    if point.axes[:2] != ("batch", "pos"):
        raise InputError(
            f"{site!r} is [{', '.join(point.axes)}]; features are read where there is something "
            "at each position, [batch, pos, ...]. For attention see nl.features.Head."
        )
    return shape_at(point, axis_sizes(model.config, batch=1, pos=1))[2:]


def _width(model: HookedModel, site: str) -> int:
    return math.prod(_shape(model, site))


def _fit(model: HookedModel, site: str, width: int, what: str) -> None:
    """Refuse what has another width than the site.

    Raises:
        InputError: it has.
    """
    if _width(model, site) != width:
        raise InputError(
            f"{what} is made for {width} numbers at a position; at {site!r} this model has "
            f"{_width(model, site)}. It belongs to another model or another site."
        )


def _into_stream(model: HookedModel, site: str, vectors: Tensor | None) -> Tensor | None:
    """What vectors at a site add to the residual stream, ``[latent, d_model]``.

    Args:
        model: the model.
        site: the site.
        vectors: ``[latent, d]``; None for the unit vectors of the site.

    Returns:
        None where the site does not write to the stream through one matrix.
    """
    point = model.hook_points[site]
    kind = site.rpartition(".")[2]
    matrix = None
    if kind == "hook_post" and point.layer is not None:
        matrix = model.blocks[point.layer].W_out
    elif kind == "hook_z" and point.layer is not None:
        matrix = model.blocks[point.layer].W_O.flatten(0, 1)
    elif kind.startswith("hook_resid") or kind in ("hook_embed", "hook_attn_out", "hook_mlp_out"):
        if vectors is not None:
            return vectors
        return torch.eye(model.config.hidden_size, device=model.device, dtype=torch.float32)
    if matrix is None:
        return None
    matrix = matrix.detach().float()
    return matrix if vectors is None else vectors.to(matrix) @ matrix
