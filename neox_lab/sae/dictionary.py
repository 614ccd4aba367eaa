"""A dictionary: features that a tensor of the network is a sparse sum of.

    codes = encode(x)                                    few features, each with an activation
    x ≈ decode(codes) = sum of activation * W_dec[feature] + b_dec

An autoencoder writes back what it read (``site_out == site_in``). A transcoder reads what goes into
an MLP and writes what comes out of it, perhaps with a linear path ``W_skip`` beside the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from neox_lab.checks import shown
from neox_lab.errors import ConfigError, InputError
from neox_lab.files import StrPath
from neox_lab.hooks.splicing import Spliced
from neox_lab.model.hook_points import HookPoint
from neox_lab.sae import screening
from neox_lab.sae.activations import Activation, TopK
from neox_lab.sae.answering import Answering
from neox_lab.sae.bags import rows_summed
from neox_lab.sae.checking import Check, check_fit
from neox_lab.sae.codes import Codes, joined, require_codes
from neox_lab.sae.exporting import export
from neox_lab.sae.normalisation import Normalise, unchanged
from neox_lab.sae.rows import Texts
from neox_lab.sae.saving import save
from neox_lab.sae.splicing import splice

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

DENSE = 2**24
"""Numbers of the matrix [token, latent] that exist at a time while encoding: 64 MB in float32."""


class Weights(NamedTuple):
    """The tensors of a dictionary.

    Attributes:
        W_enc: ``[d_in, latent]``.
        b_enc: ``[latent]``.
        W_dec: ``[latent, d_out]``.
        b_dec: ``[d_out]``.
        W_skip: ``[d_out, d_in]``, or None.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None = None

    def check(self) -> None:
        """Refuse tensors that do not fit together or are not finite.

        Raises:
            ConfigError: names the tensor.
        """
        if self.W_enc.dim() != 2 or self.W_dec.dim() != 2:
            raise ConfigError("W_enc must be [d_in, latent] and W_dec [latent, d_out].")
        (d_in, latents), d_out = self.W_enc.shape, self.W_dec.shape[1]
        if not d_in * latents * d_out:
            raise ConfigError(
                f"W_enc is {[d_in, latents]} and W_dec {list(self.W_dec.shape)}; there must be a "
                "feature, and something to read and to write."
            )
        expected = {
            "b_enc": [latents],
            "W_dec": [latents, d_out],
            "b_dec": [d_out],
            "W_skip": [d_out, d_in],
        }
        for name, tensor in self._asdict().items():
            if tensor is None:
                continue
            if name in expected and list(tensor.shape) != expected[name]:
                raise ConfigError(
                    f"{name} is {list(tensor.shape)}; beside W_enc {[d_in, latents]} it must be "
                    f"{expected[name]}."
                )
            if not tensor.isfinite().all():
                raise ConfigError(f"{name} holds NaN or infinite numbers.")


class Dictionary(Answering):
    """Features at one place of the network.

    One of your own tensors, here random ones::

        import torch, neox_lab as nl
        from neox_lab.sae.activations import TopK  # or ReLU, JumpReLU

        model = nl.load()
        d, latents = model.config.hidden_size, 300
        weights = nl.sae.Weights(
            W_enc=torch.randn(d, latents), b_enc=torch.zeros(latents),
            W_dec=torch.randn(latents, d), b_dec=torch.zeros(d),
        )
        mine = nl.sae.Dictionary(
            weights, TopK(8), site_in="blocks.2.hook_resid_post", kind="TopK"
        )
        mine.check(model, ["Mary has the key."])    # does it fit its site?
        nl.features.active(model, mine, "Mary has the key.")
        mine.save_pretrained("mine")                # nl.sae.load("mine") reads it

    Attributes:
        W_enc: ``[d_in, latent]``.
        b_enc: ``[latent]``.
        W_dec: ``[latent, d_out]``.
        b_dec: ``[d_out]``.
        W_skip: ``[d_out, d_in]``, or None.
        activation: which features are active.
        subtracts_b_dec: ``b_dec`` is taken from the input first.
        normalise: what is done to the input first; undone at the end, except in transcoders.
        site_in: hook point it reads.
        site_out: hook point it writes.
        kind: what it is called, such as ``"TopK"``.
        sources: where each fact about it came from.
        expected_l0: how many features it was made to have active at a token; None where nobody
            said.
    """

    W_skip: Tensor | None
    activation: Activation

    def __init__(
        self,
        weights: Weights,
        activation: Activation,
        *,
        site_in: str,
        site_out: str | None = None,
        subtracts_b_dec: bool = False,
        normalise: Normalise = unchanged,
        kind: str,
        sources: Mapping[str, str] | None = None,
        expected_l0: float | None = None,
    ) -> None:
        """Check that the tensors, ``weights``, fit together; see the class for what they are.

        Raises:
            ConfigError: shapes that do not fit, or numbers that are not finite.
        """
        super().__init__()
        self.site_in = site_in
        self.site_out = site_in if site_out is None else site_out
        self.subtracts_b_dec, self.normalise, self.kind = subtracts_b_dec, normalise, kind
        self.sources, self.expected_l0 = dict(sources or {}), expected_l0
        weights.check()
        # Held as [latent, d_in], so that a feature is a row of both matrices.
        self.encoder = nn.Parameter(weights.W_enc.T.contiguous())
        self.b_enc = nn.Parameter(weights.b_enc)
        self.W_dec = nn.Parameter(weights.W_dec.contiguous())
        self.b_dec = nn.Parameter(weights.b_dec)
        self.W_skip = None if weights.W_skip is None else nn.Parameter(weights.W_skip)
        self.activation = activation
        self._screen: screening.Screen | None = None
        if subtracts_b_dec and self.d_in != self.d_out:
            raise ConfigError("b_dec can be taken from the input only where both have one width.")

    @property
    def W_enc(self) -> Tensor:  # noqa: N802
        """``[d_in, latent]``."""
        return self.encoder.T

    @property
    def weights(self) -> Weights:
        """The tensors."""
        return Weights(self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.W_skip)

    @property
    def latents(self) -> int:
        """How many features there are."""
        return self.encoder.shape[0]

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.W_dec.shape[1]

    @property
    def is_transcoder(self) -> bool:
        """It writes elsewhere than it reads."""
        return self.site_in != self.site_out

    def encode(self, x: Tensor) -> Codes:
        """The active features of tokens.

        Args:
            x: ``[*tokens, d_in]``, what stands at ``site_in``.

        Returns:
            Codes ``[*tokens, slot]``, in the dictionary's dtype.

        Raises:
            InputError: another width, or no activations.
        """
        self._require(x)
        read, _ = self.normalise(x.to(self.encoder.dtype))
        tokens = read.reshape(-1, self.d_in)
        codes = self._screened(tokens)
        if codes is None:
            step = max(1, DENSE // self.latents)
            codes = joined([self.activation(self.pre(part)) for part in torch.split(tokens, step)])
        shape = (*x.shape[:-1], codes.indices.shape[-1])
        return Codes(codes.indices.view(shape), codes.values.view(shape), self.latents)

    def _require(self, x: object) -> None:
        """Refuse what cannot be encoded, and say what to give.

        Raises:
            InputError: another width, or no tensor.
        """
        if isinstance(x, Tensor) and x.shape[-1:] == (self.d_in,) and x.is_floating_point():
            return
        wanted = f"this dictionary reads what stands at {self.site_in}, [*tokens, {self.d_in}]"
        if isinstance(x, Tensor):
            shape = list(x.shape)
            heads = x.dim() > 1 and x.shape[-1] * x.shape[-2] == self.d_in
            if not x.is_floating_point():
                raise InputError(f"x is {x.dtype} {shape}; {wanted}, floating-point.")
            raise InputError(f"x is {shape}; {wanted}." + " Give x.flatten(-2)." * heads)
        if isinstance(x, Mapping):
            raise InputError(
                f"x is a cache or a mapping; {wanted}: encode(cache[{self.site_in!r}])."
            )
        raise InputError(
            f"x={shown(x, 80)}; {wanted}: of a text it is in model.run_with_cache(text)[1]; "
            "nl.features.active(model, dictionary, text) answers for it at once."
        )

    def _screened(self, tokens: Tensor) -> Codes | None:
        """The codes by a shortcut that gives the same, where there is one."""
        chosen, weights = self.activation, (self.encoder, self.b_enc)
        watched = torch.is_grad_enabled() and any(t.requires_grad for t in (tokens, *weights))
        if not isinstance(chosen, TopK) or not chosen.is_plain or watched:
            return None
        if not screening.helps(tokens, self.latents, chosen.k):
            return None
        if self._screen is None or not screening.is_of(self._screen, *weights):
            self._screen = screening.screen(self.encoder.detach(), self.b_enc.detach())
        read = tokens - self.b_dec if self.subtracts_b_dec else tokens
        values, indices = screening.top_k(read, *weights, chosen.k, self._screen)
        return Codes(indices, values.relu(), self.latents)

    def pre(self, read: Tensor) -> Tensor:
        """What the features are chosen from, ``[token, latent]``, of normalised input."""
        if self.subtracts_b_dec:
            read = read - self.b_dec
        return torch.nn.functional.linear(read, self.encoder, self.b_enc)

    def decode(self, codes: Codes, x: Tensor | None = None) -> Tensor:
        """What the features stand for.

        Args:
            codes: ``[*tokens, slot]``.
            x: what was encoded, ``[*tokens, d_in]``; needed by skip paths and by normalisations of
                each token, which are undone with it.

        Returns:
            ``[*tokens, d_out]``, in the dtype of ``x``, or in the dictionary's.

        Raises:
            InputError: codes of another dictionary, ``x`` of other tokens, or it is needed.
        """
        require_codes(codes, self.latents)
        if x is None and (self.W_skip is not None or self.normalise is not unchanged):
            raise InputError("Give decode the x that was encoded: it has a part in the output.")
        if x is None:
            return self._sum(codes) + self.b_dec
        self._require(x)
        if x.shape[:-1] != codes.indices.shape[:-1]:
            shapes = [list(tensor.shape[:-1]) for tensor in (x, codes.indices)]
            raise InputError(f"x is of tokens {shapes[0]}, the codes are of {shapes[1]}.")
        written = self._sum(codes) + self.b_dec
        original = x.to(self.encoder.dtype)
        if not self.is_transcoder:
            factor, shift = self.normalise(original)[1]
            written = factor * written + shift
        if self.W_skip is not None:
            written = written + torch.nn.functional.linear(original, self.W_skip)
        return written.to(x.dtype)

    def _sum(self, codes: Codes) -> Tensor:
        """Rows of ``W_dec`` times their activations, summed, ``[*tokens, d_out]``."""
        values = codes.values
        scale = getattr(self.activation, "scale", None)
        if scale is not None:
            values = values / scale[codes.indices]
        return rows_summed(Codes(codes.indices, values, self.latents), self.W_dec)

    def written(self, before: Tensor, after: Tensor, x: Tensor) -> Tensor:
        """How the output changes with the activations.

        Args:
            before: activations, ``[*tokens, latent]``.
            after: other activations, of the same shape.
            x: what was encoded, ``[*tokens, d_in]``.

        Returns:
            ``[*tokens, d_out]``, in the dtype of ``before``: for each feature its change times its
            row of ``W_dec``, at the scale of the input.
        """
        change, rows = after - before, self.rows
        if not change.requires_grad:  # few features change, unless all are looked through
            changed = (change != 0).flatten(0, -2).any(dim=0).nonzero()[:, 0]
            change, rows = change[..., changed], rows[changed]
        written = change.to(rows.dtype) @ rows
        if not self.is_transcoder:
            written = self.normalise(x.to(rows.dtype))[1][0] * written
        return written.to(before.dtype)

    @property
    def rows(self) -> Tensor:
        """What features of activation 1 write ``[latent, d_out]``, before the norm is restored."""
        scale = getattr(self.activation, "scale", None)
        return self.W_dec if scale is None else self.W_dec / scale[:, None]

    def splice(
        self, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
    ) -> list[Spliced]:
        """How it goes into a network; ``model.spliced(dictionary)`` asks.

        Args:
            points: the network's hook points.
            known: lengths of the network's own axes.
            error: what it misses is added.

        Raises:
            HookError: it does not fit there.
        """
        return [splice(self, points, known, error)]

    def check(self, model: HookedModel, texts: str | Texts) -> Check:
        """Try it on texts, at its site and at those around it.

        Args:
            model: whose activations.
            texts: a few thousand tokens like those it was trained on, or lists of token ids.

        Returns:
            FVU and L0 at each site, with and without the first token of texts, beside published
            figures where these are known; ``warnings`` say what is odd.

        Raises:
            HookError: another width, or a site that the model lacks.
            InputError: no model, no texts, dropout is on, or there is no token.
            DataError: a text is longer than the model can read.
        """
        return check_fit(self, model, texts)

    def save_pretrained(self, folder: StrPath) -> Path:
        """Write everything to ``dictionary.safetensors`` in a folder, for ``nl.sae.load``.

        Args:
            folder: made if need be; a file that is there is replaced when the new one is whole.

        Returns:
            Where the file is.

        Raises:
            InputError: ``folder`` is no path.
            ConfigError: the activation or the normalisation is one of your own, or weights are not
                finite.
            CheckpointError: the file cannot be written.
        """
        return save(self, folder)

    def export(self, folder: StrPath, layout: str) -> Path:
        """Write files that another library loads, in float32.

        Args:
            folder: made if need be.
            layout: ``"sae_lens"`` (version 6), or ``"sparsify"``, which has a folder in it that is
                called after the module.

        Returns:
            The folder with the files.

        Raises:
            InputError: ``folder`` is no path, or there is no such layout.
            ConfigError: that library has no such dictionary, or weights are not finite.
            CheckpointError: the files cannot be written.
        """
        return export(self, folder, layout)

    def forward(self, x: Tensor) -> Tensor:
        """``decode(encode(x), x)``, ``[*tokens, d_out]``."""
        return self.decode(self.encode(x), x)

    def __repr__(self) -> str:
        """What it is in one line."""
        where = self.site_in + (f" -> {self.site_out}" if self.is_transcoder else "")
        return f"Dictionary({self.kind}, {self.latents:,} features of {where}, d={self.d_in})"
