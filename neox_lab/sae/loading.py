"""One door to all published dictionaries.

    dictionary = nl.sae.load("EleutherAI/sae-pythia-70m-32k", site=("resid_post", 3))
    transcoder = nl.sae.load("a-cross-layer-transcoder")    # all layers at once
    nl.sae.available("EleutherAI/sae-pythia-70m-32k")       # which there are

What a file is, the file says: format, kind and site are recognised from names, configuration and
tensors, and ``dictionary.sources`` tells from which. Pickles are read without running code.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

import torch

from neox_lab.checks import (
    COUNT,
    SWITCH,
    TEXT,
    check,
    number,
    one_of,
    or_none,
    require_model,
    shown,
    whole,
)
from neox_lab.errors import CheckpointError, ConfigError, InputError, nearest
from neox_lab.frames import make_frame
from neox_lab.hub import PathOrId
from neox_lab.other_dictionary_names import DICTIONARY_ARGUMENTS
from neox_lab.other_names import names_ours_of
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.dictionary import Dictionary
from neox_lab.sae.formats import FORMATS, Format, Found, Given, Read, Source, source_of
from neox_lab.sae.proving import prove, prove_sites
from neox_lab.sae.sites import Site, hook_name, layer_of

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel

_NAMED = 12  # dictionaries in a message
_DAMAGED = "damaged:"
KINDS = ("ReLU", "TopK", "BatchTopK", "JumpReLU")


_NO_SOURCE = (
    "Which dictionary? Give source, a folder or a repository on the hub, such as "
    "nl.sae.load('EleutherAI/sae-pythia-70m-32k', site=('resid_post', 3)); "
    "nl.sae.available(source) lists what one holds. Those of the built-in "
    "model are nl.gym.dictionaries()."
)


@names_ours_of(*DICTIONARY_ARGUMENTS)
@torch.inference_mode(False)  # as with models
def load(
    source: PathOrId | None = None,
    *,
    site: Site | None = None,
    layer: int | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    model: HookedModel | None = None,
    kind: str | None = None,
    k: int | None = None,
    norm_scaling_factor: float | None = None,
    subtracts_b_dec: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Read:
    """Read a dictionary of any library.

    Where the source holds several, ``site``, ``layer`` and ``subfolder`` say which.

    Args:
        source: a directory, or an id on the hub.
        site: hook point that it writes, such as ``("resid_post", 3)``; also for files that do not
            say.
        layer: its block.
        subfolder: the folder within the source, or the file, or a folder above it; ``"."`` for
            what lies in no folder.
        revision: branch, tag or commit on the hub.
        model: the model it is for: a dictionary that does not fit is refused, and it is tried on a
            few built-in sentences, see ``Dictionary.check``; what is odd is warned of.
        kind: ``ReLU``, ``TopK``, ``BatchTopK`` or ``JumpReLU``, for files that do not say.
        k: active features, for files that do not say.
        norm_scaling_factor: what activations are multiplied by, for SAELens's
            ``expected_average_only_in``, whose files do not say.
        subtracts_b_dec: transcoders of sparsify of before 12 February 2025 take ``b_dec`` from
            their input; their files do not say.
        dtype: of the numbers, whatever they are stored in.
        device: where they go.

    Returns:
        The dictionary; its ``sources`` say where each fact came from. A ``CrossLayerTranscoder``
        or a ``Crosscoder`` where the files hold one; of a crosscoder, ``site`` is that of all its
        models, and it is tried only where you ask, with ``Crosscoder.check``.

    Raises:
        CheckpointError: there is none or there are several, the files are damaged or hostile, do
            not say enough, or hold something that is none of these.
        HookNameError: no network of this family has such a site, or ``model`` lacks it.
        HookError: ``model`` has another width.
        InputError: an argument is not what it can be, or there is no source.
    """
    given = Given(
        None if site is None else hook_name(site),
        check("kind", kind, or_none(one_of(*KINDS)), InputError),
        check("k", k, or_none(COUNT), InputError),
        check("norm_scaling_factor", norm_scaling_factor, or_none(number(above=0)), InputError),
        check("subtracts_b_dec", subtracts_b_dec, or_none(SWITCH), InputError),
        _dtype(dtype),
        _device(device),
    )
    if model is not None:
        require_model(model)
    layer = check("layer", layer, or_none(whole(least=0)), InputError)
    subfolder = check("subfolder", subfolder, or_none(TEXT), InputError)
    files = _source(source, revision)
    narrowed = files if subfolder is None else files.below(posixpath.normpath(subfolder))
    found = _chosen(files, _all(narrowed) or _all(files), given.site, layer, subfolder)
    if found.refused:
        raise CheckpointError(f"{_place(files, found)} is {found.refused}")
    try:
        dictionary = FORMATS[found.format].read(files, found, given)
    except ConfigError as error:
        raise CheckpointError(f"{_place(files, found)}: {error}") from error
    if isinstance(dictionary, CrossLayerTranscoder) and (given.site or layer is not None):
        raise InputError(
            f"{dictionary!r} reads and writes all layers at once; leave site and layer out, "
            "or name another dictionary with subfolder=."
        )
    if model is None:
        return dictionary
    if isinstance(dictionary, Dictionary):
        prove(dictionary, model)
    else:
        prove_sites(dictionary, model)
    return dictionary


@names_ours_of(*DICTIONARY_ARGUMENTS)
def available(source: PathOrId | None = None, revision: str | None = None) -> pd.DataFrame:
    """The dictionaries in a directory or a repository, none of them read.

    Args:
        source: a directory, or an id on the hub.
        revision: branch, tag or commit on the hub.

    Returns:
        One row for each: ``subfolder``, ``format``, ``site`` and ``layer`` (missing where only
        the user can say), and ``refused``: what it is, where it cannot be read.

    Raises:
        CheckpointError: there is no such place, or the hub cannot be reached.
        InputError: there is no source.
    """
    files = _source(source, revision)
    columns = ["subfolder", "format", "site", "layer", "refused"]
    rows = [
        dict(zip(columns, (each.place, each.format, each.site, _layer(each), each.refused),
                 strict=True))
        for each in _all(files)
    ]  # fmt: skip
    return make_frame(rows, columns).astype({"layer": "Int64"})


def _source(source: PathOrId | None, revision: object) -> Source:
    """The files.

    Raises:
        InputError: nobody says where they are.
        CheckpointError: there is no such place, or the hub cannot be reached.
    """
    if source is None:
        raise InputError(_NO_SOURCE)
    return source_of(source, check("revision", revision, or_none(TEXT), InputError))


def _all(files: Source) -> list[Found]:
    """Every dictionary of a source, by layer."""
    found = [each for form in FORMATS.values() for each in _of_format(form, files)]
    damaged = {each.place: each for each in reversed(found) if each.refused.startswith(_DAMAGED)}
    found = [each for each in found if damaged.get(each.place, each) is each]  # named once
    return sorted(found, key=lambda each: (_layer(each) or 0, each.site or "", each.place))


def _of_format(form: Format, files: Source) -> list[Found]:
    """The dictionaries of a format; in a directory one that is damaged does not hide the others.

    Raises:
        CheckpointError: something of a repository on the hub cannot be had.
    """
    try:
        return form.find(files)
    except CheckpointError:
        if not files.is_local:
            raise
    found = []
    for folder, own in files.apart():
        try:
            found += form.find(own)
        except CheckpointError as error:
            found.append(Found(form.name, folder, None, f"{_DAMAGED} {error}"))
    return found


def _chosen(
    files: Source, found: list[Found], site: str | None, layer: int | None, subfolder: str | None
) -> Found:
    """The one that is asked for.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    if not found:
        seen = ", ".join(files.names[:_NAMED]) or "no file"
        raise CheckpointError(
            f"{files.where!r} holds no dictionary of a layout known here "
            f"({', '.join(FORMATS)}). It holds: {seen}."
        )
    kept = found
    if subfolder is not None:
        name = posixpath.normpath(subfolder.strip("/"))
        if name == ".":  # as messages call the top; what lies below is not meant
            kept = [each for each in kept if each.place in ("", *_at_top(files))]
        else:
            kept = [each for each in kept if f"{each.place}/".startswith(f"{name}/")]
        if not kept:
            near = nearest(name, [each.place for each in found])
            raise CheckpointError(f"No dictionary is in {name!r}.{near}{_listed(files, found)}")
    if site is not None:
        kept = [each for each in kept if each.site in (None, site)]
    if layer is not None:
        kept = [each for each in kept if each.site is None or _layer(each) == layer]
    if not kept:
        asked = " and ".join(
            [f"site {site!r}"] * (site is not None) + [f"layer {layer}"] * (layer is not None)
        )
        raise CheckpointError(f"No dictionary has {asked}.{_listed(files, found)}")
    if site is not None or layer is not None:  # what says no site and is none is not meant
        kept = [each for each in kept if each.site or not each.refused] or kept
    if len(kept) > 1:
        raise CheckpointError(
            f"{len(kept)} dictionaries fit; say which with site=, layer= or subfolder=."
            f"{_listed(files, kept)}"
        )
    return kept[0]


def _at_top(files: Source) -> list[str]:
    """The files that lie in no folder."""
    return [name for name in files.names if "/" not in name]


def _listed(files: Source, found: list[Found]) -> str:
    """The dictionaries there are, in words."""
    said = [each.site or ("not readable" if each.refused else "site not said") for each in found]
    named = zip(found[:_NAMED], said, strict=False)
    names = [f"{each.place or '.'} ({words})" for each, words in named]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f" {files.where!r} holds: {', '.join(names)}{more}; see nl.sae.available()."


def _place(files: Source, found: Found) -> str:
    return f"{files.where}/{found.place}" if found.place else files.where


def _layer(found: Found) -> int | None:
    return None if found.site is None else layer_of(found.site)


def _dtype(dtype: object) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return dtype
    raise InputError(f"dtype={shown(dtype)}; expected a torch.dtype such as torch.float32.")


def _device(device: object) -> torch.device:
    try:
        return torch.device(device)  # type: ignore[call-overload]
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"device={shown(device)}; expected a device such as 'cpu'.") from error
