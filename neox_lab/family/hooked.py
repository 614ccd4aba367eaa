"""Hooks and caches on a model: what a user types."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import HookError
from neox_lab.frames import make_frame
from neox_lab.hooks.cache import ActivationCache
from neox_lab.hooks.hooking import HookList, HookStack, Placement
from neox_lab.hooks.names import Name, ShortForm
from neox_lab.hooks.recording import Recording
from neox_lab.hooks.splicing import (
    Spliceable,
    SplicedFunction,
    SplicedPoint,
    brought,
    splice,
    spliced_in,
)
from neox_lab.hooks.storage import Keeping, PosSlice
from neox_lab.hooks.table import axis_sizes
from neox_lab.model.hook_points import HookPoint
from neox_lab.other_dictionary_names import DICTIONARY_ARGUMENTS
from neox_lab.other_names import ARGUMENTS, names_ours, names_ours_of

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs


class Hooked:
    """Read and change any activation of the model by name."""

    config: GPTNeoXConfig
    own_hook_points: dict[str, HookPoint]
    hook_stack: HookStack

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Every hook point by name, in forward order, those of spliced functions included."""
        return self.hook_stack.extended(self.own_hook_points)

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Names of all hook points, in the order of the forward pass."""
        return tuple(self.hook_points)

    def hook_table(self) -> pd.DataFrame:
        """All hook points: ``name``, ``shape`` in axis names, ``meaning``, ``aliases``."""
        from neox_lab.hooks.whole_texts import WholeTexts

        rows = (
            {
                "name": point.name,
                "shape": f"[{', '.join(point.axes)}]",
                "meaning": point.meaning,
                "aliases": ", ".join(point.aliases),
            }
            for point in self.hook_points.values()
        )
        return WholeTexts(make_frame(rows))

    @names_ours
    @contextmanager
    def hooks(
        self, fwd_hooks: HookList = (), bwd_hooks: HookList = (), *, must_fire: bool = True
    ) -> Iterator[Self]:
        """Place hooks for the duration of a ``with`` block.

        Args:
            fwd_hooks: pairs ``(name, function)``. ``function(tensor, hook)`` returns None to leave
                the tensor (or to have edited it in place), or a tensor to replace it.
                ``hook.name`` and ``hook.layer`` say where it is called. A function that takes
                ``hook`` by keyword only is called so. Errors raised in it say where.
            bwd_hooks: likewise, called with gradients when the run is backpropagated.
            must_fire: raise if the model runs and a hook is never reached.

        Raises:
            HookNameError: a name matches no hook point; nothing is placed then.
            HookNeverFiredError: at the end of the block, see ``must_fire``.
        """
        placement = Placement(self.hook_points, fwd_hooks, bwd_hooks)
        with self.hook_stack.placed(placement, must_fire):
            yield self

    @contextmanager
    def spliced_function(
        self,
        site: str | ShortForm,
        function: SplicedFunction,
        points: Sequence[SplicedPoint],
        sizes: Mapping[str, int] | None = None,
        *,
        must_fire: bool = True,
    ) -> Iterator[Self]:
        """Put a function with hook points of its own into the network, for a ``with`` block.

        Args:
            site: the hook point whose tensor the function is given and may replace.
            function: from the tensor and a tap to the replacement, or None to leave the tensor.
                It sends its activations through the tap: ``acts = tap("hook_acts", acts)``.
            points: the function's own hook points, in the order in which it reaches them.
            sizes: lengths of axes that only these points have, such as ``{"latent": 4096}``.
            must_fire: raise if the model runs and the site is never reached.

        Yields:
            The model, whose ``hook_points`` now hold ``<site>.<name>`` for each of ``points``.

        Raises:
            HookNameError: no such site.
            HookError: points that exist already, or axes of unknown length.
            HookNeverFiredError: at the end of the block, see ``must_fire``.
        """
        known = axis_sizes(self.config, batch=1, pos=1)
        placement = splice(self.hook_points, site, function, points, sizes or {}, known)
        with self.hook_stack.placed(placement, must_fire):
            yield self

    @names_ours_of(*DICTIONARY_ARGUMENTS)
    @contextmanager
    def spliced(
        self,
        *dictionaries: Spliceable | Sequence[Spliceable] | Mapping[str, Spliceable],
        error: bool = True,
        must_fire: bool = True,
    ) -> Iterator[Self]:
        """Put dictionaries of features into the network, for a ``with`` block.

            with model.spliced(dictionary):
                _, cache = model.run_with_cache("The cat sat on the mat")
                cache["blocks.3.hook_mlp_out.hook_sae_acts"]      # [batch, pos, latent]

        At the site that a dictionary writes, ``site_out``, there are then hook points like any
        other:

        - ``hook_sae_input``: what it reads, before any normalisation;
        - ``hook_sae_acts``: activations of the features. The matrix exists only if this is watched;
        - ``hook_sae_recons``: what the features write, with the dictionary's bias;
        - ``hook_sae_error``: what stood at the site minus what the unedited features write.

        The site goes on with ``hook_sae_recons + hook_sae_error``: nothing edited, with the tensor
        it had; with ``hook_sae_acts`` of feature f changed by δ, with δ · W_dec[f] more. A
        transcoder reads at its ``site_in`` what the MLP reads, hooks there included.

        A cross-layer transcoder has these points at each of its ``sites_out``. ``hook_sae_acts``
        of layer s changed by δ, the sites of layer s and of every layer j after it go on with
        δ · W_dec(s, j)[f] more. With ``error=False`` each has the sum of what features of its layer
        and of those before it write. It needs runs that begin at its first layer.

        Args:
            dictionaries: ``nl.sae.Dictionary`` or ``nl.sae.CrossLayerTranscoder`` objects, or lists
                or mappings of them.
            error: add what a dictionary misses, so that nothing changes until something is edited
                (SAELens leaves it out unless told). False leaves what the features write alone,
                and no ``hook_sae_error``.
            must_fire: raise if the model runs and a site is never reached.

        Yields:
            The model.

        Raises:
            HookNameError: the model has no such site, such as a missing layer, or ``resid_mid`` of
                parallel blocks.
            HookError: a dictionary of another width, two at one site, no dictionary, or one that
                no single run can hold, such as a crosscoder.
            HookNeverFiredError: at the end of the block, see ``must_fire``.
        """
        known = axis_sizes(self.config, batch=1, pos=1)
        check("error", error, SWITCH, HookError)
        model = cast("HookedModel", self)
        devices = model.backbone.devices
        with ExitStack() as stack:
            for each in _flat(dictionaries):
                parts = each.splice(self.hook_points, known, error)
                if devices is not None:
                    parts = brought(parts, {model.device, *devices})
                for spliced in parts:
                    placement = spliced_in(self.hook_points, spliced, known)
                    stack.enter_context(self.hook_stack.placed(placement, must_fire))
            yield self

    @names_ours_of(ARGUMENTS, *DICTIONARY_ARGUMENTS)
    def run_with_hooks(
        self: HookedModel,
        inputs: Inputs,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        *,
        must_fire: bool = True,
        **forward_arguments: Any,
    ) -> Any:
        """Run once with hooks in place.

        Args:
            inputs: a string, a list of strings, or token ids ``[batch, pos]``.
            fwd_hooks: see ``hooks``.
            bwd_hooks: see ``hooks``; they belong to this run's graph and fire when it is
                backpropagated, also after this call returns.
            must_fire: see ``hooks``.
            forward_arguments: passed to ``forward``.

        Returns:
            What ``forward`` returns.
        """
        with self.hooks(fwd_hooks, bwd_hooks, must_fire=must_fire):
            return self(**self.prepare_inputs(inputs) | forward_arguments)

    @names_ours_of(ARGUMENTS, *DICTIONARY_ARGUMENTS)
    def run_with_cache(
        self: HookedModel,
        inputs: Inputs,
        names_filter: Name | Iterable[Name] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: PosSlice | None = None,
        incl_bwd: bool | Callable[[Any], Tensor] = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        *,
        lean: bool = False,
        budget: int | str | None = None,
        spill: str | os.PathLike[str] | None = None,
        keep_graph: bool = False,
        **forward_arguments: Any,
    ) -> tuple[Any, ActivationCache]:
        """Run once and keep activations.

        Args:
            inputs: a string, a list of strings, or token ids ``[batch, pos]``.
            names_filter: what to keep: a name, alias, glob, predicate, or several; None keeps
                every hook point.
            device: keep tensors there; None leaves them on the model's device.
            dtype: keep floating-point tensors in this dtype.
            pos_slice: keep only these positions: one (the axis stays), a slice or the tuple of
                its ends, a list, or a mask of all.
            incl_bwd: also keep gradients, as ``<name>_grad``: of ``output.loss``, or of the
                scalar that a function of the output returns. The weights' own ``.grad`` stay as
                they are.
            start_at_layer: first block to run; ``inputs`` is then the residual stream entering it.
            stop_at_layer: block to stop before; the output is then the residual stream entering it.
            lean: store residual streams only, and make any other activation of a block by running
                that block again when it is asked for.
            budget: bytes, or a size such as ``"2 GB"``; None means nine tenths of the free memory.
            spill: a file to write the cache to, memory-mapped, if it exceeds the budget. It takes
                its name when the run is over.
            keep_graph: record the output's graph where gradients are enabled, as any other run
                does, so that the output can be backpropagated; what is cached has none.
            forward_arguments: passed to ``forward``.

        Returns:
            What ``forward`` returns, and the cache. Without ``keep_graph`` the output has no graph.

        Raises:
            HookNameError: ``names_filter`` names no hook point.
            HookError: the cache exceeds the budget and there is no ``spill``; or ``lean`` was
                asked for in a run that cannot be repeated exactly.
            CheckpointError: ``spill`` exists or cannot be made, or the disk has no room.
        """
        arguments = self.prepare_inputs(inputs) | forward_arguments
        recording = Recording(
            self,
            arguments | {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer},
            names_filter,
            Keeping(device, dtype, pos_slice, names_filter is None),
            lean=lean,
            gradients=callable(incl_bwd) or check("incl_bwd", incl_bwd, SWITCH, HookError),
            pieces=self.pieces_of(arguments),
        )
        recording.reserve(budget, spill)
        graph = check("keep_graph", keep_graph, SWITCH, HookError)
        return recording.run(incl_bwd, keep_graph=graph)

    def cache_size(
        self: HookedModel,
        inputs: Inputs,
        names_filter: Name | Iterable[Name] | None = None,
        *,
        dtype: torch.dtype | None = None,
        pos_slice: PosSlice | None = None,
        lean: bool = False,
    ) -> int:
        """Bytes that ``run_with_cache`` with these arguments would store; nothing is run.

        Raises:
            HookNameError: ``names_filter`` names no hook point.
        """
        keeping = Keeping(None, dtype, pos_slice)
        arguments = self.prepare_inputs(inputs)
        return Recording(self, arguments, names_filter, keeping, lean=lean, pieces=None).nbytes

    def check(self: HookedModel, tokens: Tensor | None = None) -> pd.DataFrame:
        """Try every hook point: right shape, patterns sum to one, changing it changes the output.

        Args:
            tokens: ids ``[batch, pos]`` to run on; None takes six spread over the vocabulary.

        Returns:
            One row a hook point; the column ``ok`` sums it up. See ``neox_lab.family.check``.
            Weights that are not finite are named in a warning.
        """
        from neox_lab.family.check import check

        return check(self, tokens)


def _flat(
    dictionaries: Iterable[Spliceable | Sequence[Spliceable] | Mapping[str, Spliceable]],
) -> list[Spliceable]:
    """What is to be spliced in, one after another.

    Raises:
        HookError: nothing, or something that cannot.
    """
    found: list[Spliceable] = []
    for each in dictionaries:
        if isinstance(each, Mapping):
            found += each.values()
        else:
            found += each if isinstance(each, Sequence) else [each]
    wrong = [each for each in found if not callable(getattr(each, "splice", None))]
    if wrong or not found:
        raise HookError(
            f"spliced() takes dictionaries of features, such as nl.sae.load gives; got "
            f"{shown(wrong[0]) if wrong else 'none'}."
        )
    return found
