"""A crosscoder: one set of features for several activations of the same tokens.

    codes = activation(sum over n of x[n] @ W_enc[n], and b_enc)
    written[n] = codes @ W_dec[n] + b_dec[n]

The n are models (a base model and a finetuned one, or revisions of one training) or layers of a
model. Lindsey et al., Sparse Crosscoders for Cross-Layer Features and Model Diffing, 2024.

How much a feature belongs to one of them, the norms of its rows say, see ``specificity``.
Crosscoders trained with L1 call too many features specific; with BatchTopK that is far rarer
(Minder et al., arXiv:2504.02922).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.checks import require_model, several, shown
from neox_lab.errors import ConfigError, HookError, InputError
from neox_lab.files import StrPath
from neox_lab.hooks.splicing import Spliced
from neox_lab.model.hook_points import HookPoint
from neox_lab.sae.activations import Activation
from neox_lab.sae.affine import Affine
from neox_lab.sae.answering import Answering
from neox_lab.sae.bags import rows_summed
from neox_lab.sae.codes import Codes, joined, require_codes
from neox_lab.sae.rows import Texts
from neox_lab.sae.saving import save_crosscoder
from neox_lab.sae.sites_checking import Rebuilt, SitesCheck, Tried, check_sites

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_DENSE = 2**24  # numbers of the matrix [token, latent] that exist at a time while encoding


class Crosscoder(Answering):
    """Features shared by several models or layers.

    Attributes:
        b_enc: ``[latent]``.
        b_dec: ``[n, d]``.
        activation: which features are active.
        penalty_weights: what an activation counts in the sparsity penalty, ``[latent]``; by
            default the sum over n of the norms of its rows.
        normalise: what is done to the inputs first, over ``[n, d]``; undone at the end.
        sites: hook point of each of the n. May be set: files seldom say which layers they are of.
        kind: what it is called, such as ``"BatchTopK"``.
        sources: where each fact about it came from.
        expected_l0: how many features it was made to have active at a token, or None.
    """

    penalty_weights: Tensor

    def __init__(
        self,
        W_enc: Tensor,  # noqa: N803
        b_enc: Tensor,
        W_dec: Tensor,  # noqa: N803
        b_dec: Tensor,
        activation: Activation,
        *,
        sites: Sequence[str],
        penalty_weights: Tensor | None = None,
        normalise: Affine | None = None,
        kind: str,
        sources: Mapping[str, str] | None = None,
        expected_l0: float | None = None,
    ) -> None:
        """Check that the tensors fit together.

        Args:
            W_enc: ``[n, d, latent]``.
            b_enc: ``[latent]``.
            W_dec: ``[n, latent, d]``.
            b_dec: ``[n, d]``.
            activation: which features are active.
            sites: hook point of each of the n.
            penalty_weights: ``[latent]``; see the class.
            normalise: statistics ``[n, d]``, or ``[]``.
            kind: what it is called.
            sources: where what is known comes from.
            expected_l0: active features of a token, where that is known.

        Raises:
            ConfigError: shapes that do not fit, or numbers that are not finite.
        """
        super().__init__()
        if W_enc.dim() != 3 or not W_enc.shape[0]:
            raise ConfigError(f"W_enc is {list(W_enc.shape)}; expected [n, d, latent].")
        n, d, latents = W_enc.shape
        if penalty_weights is None:
            penalty_weights = W_dec.detach().norm(dim=-1).sum(dim=0)
        _check(W_enc, b_enc, W_dec, b_dec, penalty_weights)
        # Rows of all n side by side, so that one product encodes and one sum of rows decodes.
        self.encoder = nn.Parameter(W_enc.permute(2, 0, 1).reshape(latents, n * d).contiguous())
        self.decoder = nn.Parameter(W_dec.permute(1, 0, 2).reshape(latents, n * d).contiguous())
        self.b_enc, self.b_dec = nn.Parameter(b_enc), nn.Parameter(b_dec)
        self.register_buffer("penalty_weights", penalty_weights)
        self.activation, self.normalise = activation, normalise
        self.sites, self.kind = tuple(sites), kind
        self.sources, self.expected_l0 = dict(sources or {}), expected_l0
        self._sites()

    @property
    def n(self) -> int:
        """How many models or layers share the features."""
        return self.b_dec.shape[0]

    @property
    def d(self) -> int:
        """Width of each."""
        return self.b_dec.shape[1]

    @property
    def latents(self) -> int:
        """How many features there are."""
        return self.encoder.shape[0]

    @property
    def W_enc(self) -> Tensor:  # noqa: N802
        """``[n, d, latent]``."""
        return self.encoder.view(self.latents, self.n, self.d).permute(1, 2, 0)

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        """``[n, latent, d]``."""
        return self.decoder.view(self.latents, self.n, self.d).transpose(0, 1)

    @property
    def specificity(self) -> Tensor:
        """Relative norms of each feature's rows, ``[n, latent]``, 1 in sum.

        Of two models, near 0 and 1 the feature belongs to one alone, near ½ to both. NaN where all
        rows of a feature are 0.
        """
        norms = self.W_dec.detach().norm(dim=-1)
        return norms / norms.sum(dim=0)

    def penalty(self, codes: Codes) -> Tensor:
        """The sparsity penalty of tokens: activations times their weights.

        Args:
            codes: ``[*tokens, slot]``.

        Returns:
            ``[*tokens]``.

        Raises:
            InputError: codes of another crosscoder.
        """
        require_codes(codes, self.latents)
        return (codes.values.abs() * self.penalty_weights[codes.indices]).sum(dim=-1)

    def encode(self, inputs: Sequence[Tensor]) -> Codes:
        """The active features of tokens.

        Args:
            inputs: for each of the n what stands at its site, of the same tokens
                ``[*tokens, d]``.

        Returns:
            Codes ``[*tokens, slot]``, in the crosscoder's dtype.

        Raises:
            InputError: another number of tensors, another width, or other tokens.
        """
        given = self._inputs(inputs)
        read = torch.stack([x.to(self.encoder.dtype) for x in given], dim=-2)
        if self.normalise is not None:
            read = self.normalise.into(read)
        step = max(1, _DENSE // self.latents)
        flat = read.reshape(-1, self.n * self.d)
        codes = joined(
            [
                self.activation(torch.nn.functional.linear(part, self.encoder, self.b_enc))
                for part in torch.split(flat, step)
            ]
        )
        values, scale = codes.values, getattr(self.activation, "scale", None)
        if scale is not None:  # features were compared by their penalty; what is active is pre
            values = values / scale[codes.indices].where(values != 0, 1)
        shape = (*given[0].shape[:-1], values.shape[-1])
        return Codes(codes.indices.view(shape), values.view(shape), self.latents)

    def decode(self, codes: Codes, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What the features stand for.

        Args:
            codes: ``[*tokens, slot]``.
            inputs: what was encoded; only its dtype matters.

        Returns:
            For each of the n ``[*tokens, d]``.

        Raises:
            InputError: codes of another crosscoder.
        """
        written = rows_summed(require_codes(codes, self.latents), self.decoder)
        written = written.view(*written.shape[:-1], self.n, self.d) + self.b_dec
        if self.normalise is not None:
            written = self.normalise.back(written)
        each = list(written.unbind(dim=-2))
        if inputs is None:
            return each
        return [y.to(x.dtype) for y, x in zip(each, self._inputs(inputs), strict=True)]

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``decode(encode(inputs), inputs)``: for each of the n ``[*tokens, d]``."""
        return self.decode(self.encode(inputs), inputs)

    def check(self, models: HookedModel | Sequence[HookedModel], texts: str | Texts) -> SitesCheck:
        """Try it on texts.

        Args:
            models: in the crosscoder's order; or one that has all its sites. The first one's
                tokenizer is used for all.
            texts: a few thousand tokens like those it was trained on, or lists of token ids.

        Returns:
            FVU of each model or layer and L0, with and without the first token of texts;
            ``warnings`` say what is odd.

        Raises:
            HookNameError: a model has no such site.
            HookError: another width.
            InputError: another number of models or sites, no texts, dropout is on, or there is no
                token.
            DataError: a text is longer than a model can read.
        """
        alone: object = [models] if isinstance(models, nn.Module) else models
        listed: list[HookedModel] = several("models", alone, "models, one each", InputError)
        for model in listed:
            require_model(model)
        if len(listed) not in (1, self.n):
            raise InputError(f"{len(listed)} models; expected {self.n}, or one with all sites.")
        if len(listed) == 1 and len(set(self.sites)) < self.n:
            raise InputError(
                f"One model for {self.n} activations of {self.sites[0]}; give {self.n} models, or "
                "set .sites to one model's layers."
            )
        sites = self._sites()
        tried = Tried(
            f"{self.kind} crosscoder, {self.latents:,} features",
            (self.d, self.d),
            self.latents,
            self._tried,
        )
        return check_sites(tried, listed, sites, sites, texts)

    def splice(
        self, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
    ) -> list[Spliced]:
        """Refuse to go into a network: no run has what the features are read from in time.

        Args:
            points: the network's hook points.
            known: lengths of the network's own axes.
            error: what it misses would be added.

        Raises:
            HookError: says what to do instead.
        """
        measure = "crosscoder.check({}, texts) measures how well it fits"
        if len(set(self.sites)) < self.n:
            raise HookError(
                f"{self!r} reads {self.n} models at {self.sites[0]}, and a run has the activations "
                "of one. Run each with run_with_cache and give what stands there to "
                "crosscoder.encode([first, second]); crosscoder.specificity says whose a feature "
                f"is, and {measure.format('models')}. (If these are layers of one model, set "
                "crosscoder.sites to them.)"
            )
        raise HookError(
            f"{self!r} reads all of its layers before it knows a feature, when the first of them "
            "has long been passed: it cannot write there in the same run. Take its features from "
            "a cache, crosscoder.encode([cache[site] for site in crosscoder.sites]); to change "
            "one, add a multiple of crosscoder.W_dec[i, feature] at crosscoder.sites[i] with "
            f"model.hooks; {measure.format('model')}. A cross-layer transcoder reads one layer at "
            "a time, and can be spliced in."
        )

    def save_pretrained(self, folder: StrPath) -> Path:
        """Write everything to ``dictionary.safetensors`` in a folder, for ``nl.sae.load``.

        Args:
            folder: made if need be; a file that is there is replaced when the new one is whole.

        Returns:
            Where the file is.

        Raises:
            InputError: ``folder`` is no path.
            ConfigError: the activation is one of your own, or numbers are not finite.
            CheckpointError: the file cannot be written.
        """
        return save_crosscoder(self, folder)

    def require_sound(self) -> None:
        """Refuse what would not be read again.

        Raises:
            ConfigError: numbers that are not finite, or other sites than there are activations.
        """
        self._sites()
        _check(self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.penalty_weights)
        for name, held in self.named_buffers():
            if name.startswith("normalise.") and not held.isfinite().all():
                raise ConfigError(f"{name} holds NaN or infinite numbers.")

    def _tried(self, inputs: list[Tensor], order: Tensor) -> Rebuilt:
        """What a check measures."""
        x = [each.to(self.b_dec.device) for each in inputs]
        codes, order = self.encode(x), order.to(self.b_dec.device)
        mixed = Codes(codes.indices[order], codes.values[order], codes.latents)
        return Rebuilt([codes.count] * self.n, self.decode(codes, x), self.decode(mixed, x))

    def _sites(self) -> tuple[str, ...]:
        """The hook points.

        Raises:
            ConfigError: there is not one for each.
        """
        sites = tuple(self.sites)
        if len(sites) != self.n or not all(isinstance(site, str) for site in sites):
            raise ConfigError(f"sites={shown(sites)}; expected {self.n} hook points.")
        return sites

    def _inputs(self, inputs: object) -> list[Tensor]:
        """The n inputs.

        Raises:
            InputError: another number of tensors, another width, or other tokens.
        """
        expected = f"expected {self.n} tensors [*tokens, {self.d}] of the same tokens"
        if isinstance(inputs, Mapping):
            of_layers = len(set(self.sites)) == self.n
            listed = (
                "[cache[site] for site in crosscoder.sites]" if of_layers else "[first, second]"
            )
            raise InputError(f"inputs is a cache or a mapping; {expected}: encode({listed}).")
        if not isinstance(inputs, list | tuple) or len(inputs) != self.n:
            raise InputError(f"inputs={shown(inputs)}; {expected}.")
        fits = [isinstance(x, Tensor) and x.shape[-1:] == (self.d,) for x in inputs]
        if not all(fits):
            raise InputError(f"inputs: {expected}; got {[_shape(x) for x in inputs]}.")
        if wrong := [x.dtype for x in inputs if not x.is_floating_point()]:
            raise InputError(f"inputs: {expected}, floating-point; got {wrong[0]}.")
        if len({x.shape for x in inputs}) > 1:
            raise InputError(f"inputs: {expected}; got {[_shape(x) for x in inputs]}.")
        return list(inputs)

    def __repr__(self) -> str:
        """What it is in one line."""
        where = " and ".join(dict.fromkeys(self.sites))
        return f"Crosscoder({self.kind}, {self.latents:,} features, {self.n} × {where}, d={self.d})"


def _check(
    W_enc: Tensor,  # noqa: N803
    b_enc: Tensor,
    W_dec: Tensor,  # noqa: N803
    b_dec: Tensor,
    penalty_weights: Tensor,
) -> None:
    """Refuse tensors that do not fit together or are not finite.

    Raises:
        ConfigError: names the tensor.
    """
    n, d, latents = W_enc.shape
    for name, tensor, shape in (
        ("W_enc", W_enc, [n, d, latents]),
        ("b_enc", b_enc, [latents]),
        ("W_dec", W_dec, [n, latents, d]),
        ("b_dec", b_dec, [n, d]),
        ("penalty_weights", penalty_weights, [latents]),
    ):
        if list(tensor.shape) != shape:
            raise ConfigError(
                f"{name} is {list(tensor.shape)}; beside W_enc {[n, d, latents]} it must be "
                f"{shape}."
            )
        if not tensor.isfinite().all():
            raise ConfigError(f"{name} holds NaN or infinite numbers.")


def _shape(x: object) -> object:
    return list(x.shape) if isinstance(x, Tensor) else shown(x)
