"""A cross-layer transcoder in the network: a function at each layer that it writes.

    codes[s]  = encode(x[s])                                    of what stands at sites_in[s]
    error[j]  = target - (sum over s <= j of codes[s] @ W_dec[s, j], and b_dec[j])
    output[j] = recons[j] + error[j]

As with a dictionary, the error is of the unedited codes: what is edited in layer s changes the
tensors at ``sites_out[j]`` of layer s and of all after it by what the features write there, and
nothing takes that back. Layers after it read, too, and where what they read is other than before,
their codes and their errors are of what they read now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.errors import HookError
from neox_lab.hooks.splicing import Reading, SiteTap, Spliced
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.parts import at_least_float32
from neox_lab.sae.codes import Codes
from neox_lab.sae.cross_layer_inputs import Passed
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.sae.splicing import ACTS, ERROR, INPUT, RECONS, places, points_of, through_points

if TYPE_CHECKING:
    from neox_lab.sae.cross_layer import CrossLayerTranscoder


def splice_layers(
    transcoder: CrossLayerTranscoder,
    points: Mapping[str, HookPoint],
    known: Mapping[str, int],
    error: bool,
) -> list[Spliced]:
    """How a cross-layer transcoder goes into a network, see ``Hooked.spliced``.

    Args:
        transcoder: the transcoder.
        points: the network's hook points.
        known: lengths of the network's own axes.
        error: what the transcoder misses is added.

    Raises:
        HookNameError: the network has no such site.
        HookError: another width, sites in another order than layers, or features that are chosen
            among those of other tokens or layers.
    """
    if isinstance(transcoder.activation, SharedTopK):
        raise HookError(
            f"{transcoder!r} chooses its features among the tokens that are encoded together"
            f"{', of all layers at once' if transcoder.activation.joint else ''}; what is active "
            "at a token of the network would change with the batch. Splice in one that was made "
            "JumpReLU after training."
        )
    run, made, order = PassedLayers(transcoder), list[Spliced](), list(points)
    sites = zip(transcoder.sites_in, transcoder.sites_out, strict=True)
    for layer, (site_in, site_out) in enumerate(sites):
        who = f"Layer {layer} of {transcoder!r}"
        width = transcoder.d_in, transcoder.d_out
        read, written = places(who, (site_in, site_out), width, points, known)
        if made and order.index(made[-1].site) >= order.index(written.name):
            raise HookError(
                f"{who} writes {written.name!r}, which is not after {made[-1].site!r} of the layer "
                "before it. Features write to their layer and to those after it."
            )
        elsewhere = read.name != written.name
        function = SplicedLayer(run, layer, elsewhere, error)
        made.append(
            Spliced(
                written.name,
                function,
                points_of(read, written, error),
                {"latent": transcoder.latents},
                Reading(read.name, function.read) if elsewhere else None,
                () if made else [*transcoder.parameters()],
                made[0].site if made else written.name,
            )
        )
    return made


class PassedLayers:
    """What the layers that a run has passed read and found, until its last layer is passed."""

    def __init__(self, transcoder: CrossLayerTranscoder) -> None:
        """Of a run that has passed nothing yet."""
        self.transcoder, self.number = transcoder, 0
        self.x: dict[int, Tensor] = {}
        self.edited: dict[int, Passed] = {}
        self.acts: dict[int, tuple[Tensor, Tensor]] = {}
        self._codes: dict[int, Codes] = {}

    def clear(self, number: int = 0) -> None:
        """Forget everything, before run ``number`` or after the last layer."""
        self.number = number
        for held in (self.x, self.edited, self.acts, self._codes):
            held.clear()

    def codes(self, layer: int) -> Codes:
        """What the layer found in what stood there, edits left out."""
        if layer not in self._codes:
            self._codes[layer] = self.transcoder.encode_layer(layer, self.x[layer])
        return self._codes[layer]

    def recons(self, target: int) -> Tensor:
        """What unedited features write at a layer, with its bias.

        Raises:
            HookError: the run did not pass all layers before it.
        """
        missing = [layer for layer in range(target + 1) if layer not in self.x]
        if missing:
            raise HookError(
                f"{self.transcoder!r} is spliced in; what its features write at layer {target} is "
                f"a sum over all layers up to it, and this run did not pass layer {missing[0]}. "
                "Run the model from its first layer (start_at_layer=0)."
            )
        sources = range(target + 1)
        return self.transcoder.written_at(
            target, [self.codes(s) for s in sources], [self.x[s] for s in sources]
        )

    def change(self, target: int) -> Tensor | None:
        """How edits of layers up to this one change what is written at it; None without any."""
        transcoder, total = self.transcoder, None
        for source in sorted({*self.edited, *self.acts}):
            parts = []
            if source in self.edited:
                before = self.x[source], self.codes(source)
                parts.append(transcoder.difference(source, target, before, self.edited[source]))
            if source in self.acts:
                parts.append(transcoder.written(source, target, *self.acts[source]))
            for part in parts:
                total = part if total is None else total + part
        return total


class SplicedLayer:
    """The function that stands at ``sites_out`` of one layer."""

    def __init__(self, run: PassedLayers, layer: int, elsewhere: bool, error: bool) -> None:
        """What all layers share, the layer, whether it reads elsewhere, whether the error stays."""
        self.run, self.layer, self.elsewhere, self.error = run, layer, elsewhere, error
        self._read: Tensor | None = None

    def read(self, tensor: Tensor) -> None:
        """Keep what stands at ``sites_in`` until ``sites_out`` is reached in the same block."""
        self._read = tensor

    def __call__(self, tensor: Tensor, tap: SiteTap) -> Tensor | None:
        """The site's new tensor, or None to leave it.

        Raises:
            HookError: ``sites_in`` was not passed before, or the transcoder is on another device.
        """
        run = self.run
        if run.number != tap.run:
            run.clear(tap.run)
        run.x[self.layer] = self._source(tensor)
        self._let_edit(tensor, tap)
        new = self._written(tensor, tap)
        if self.layer + 1 == run.transcoder.layers:
            run.clear()
        return new

    def _let_edit(self, tensor: Tensor, tap: SiteTap) -> None:
        """Pass input and activations through their hook points; note what came back."""
        run, layer, transcoder = self.run, self.layer, self.run.transcoder
        x = at_least_float32(run.x[layer]) if tap.watched(INPUT) else run.x[layer]
        edited = tap(INPUT, x)
        if edited is not x:
            run.edited[layer] = edited, transcoder.encode_layer(layer, edited)
        if tap.watched(ACTS):
            codes = run.edited[layer][1] if layer in run.edited else run.codes(layer)
            acts = codes.dense().to(at_least_float32(tensor).dtype)
            new = tap(ACTS, acts)
            if new is not acts:
                run.acts[layer] = acts, new

    def _written(self, tensor: Tensor, tap: SiteTap) -> Tensor | None:
        """What the site goes on with; None where that is its tensor."""
        target, change = at_least_float32(tensor), self.run.change(self.layer)
        if self.error and not tap.watched(RECONS, ERROR):  # they sum to what is there
            return None if change is None else (target + change.to(target)).to(tensor.dtype)
        recons = self.run.recons(self.layer).to(target)
        after = recons if change is None else recons + change.to(target)
        new = through_points(target, recons, after, self.error, tap)
        return None if new is None else new.to(tensor.dtype)

    def _source(self, tensor: Tensor) -> Tensor:
        """What the layer reads."""
        transcoder, device = self.run.transcoder, self.run.transcoder.b_dec[self.layer].device
        if tensor.device != device:
            raise HookError(
                f"{transcoder!r} is on {device}, the model on {tensor.device}; move one: "
                f"transcoder.to({str(tensor.device)!r})."
            )
        if not self.elsewhere:
            return tensor
        x, self._read = self._read, None
        if x is None:
            raise HookError(
                f"{transcoder!r} is spliced in, and nothing passed "
                f"{transcoder.sites_in[self.layer]!r} before {transcoder.sites_out[self.layer]!r}: "
                "a module of another kind stands there."
            )
        return x
