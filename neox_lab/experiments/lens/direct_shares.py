"""What each part of the network adds to a logit directly, at every position.

The sums are those of ``ActivationCache``: this lays them out by layer and part, and says how far
they are from the logit. For one position, for neurons, and for other heads than the unembedding see
``nl.attribution.direct_logit_attribution``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import check, name_not_finite, whole
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.lens.reading import token_text
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.prompts import refuse_other_angles
from neox_lab.experiments.splices import IN_NODES, check_splices
from neox_lab.frames import make_frame
from neox_lab.head_names import head_name
from neox_lab.model.parts import at_least_float32, plain_layer_norm
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.views import HeatmapView

TOLERANCE = 1e-4
KINDS = ("embed", "attention", "mlp", "bias")
"""Kinds of parts that sum to the logit; heads and ``attention_bias`` split the attention."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the network.

    Attributes:
        name: such as ``"embed"``, ``"attention 2"``, ``"L2H0"``, ``"MLP2"``, ``"bias"``.
        kind: ``embed``, ``attention``, ``mlp`` or ``bias`` (of final layer norm and unembedding);
            ``head`` and ``attention_bias``, of which each attention consists.
        layer: number of its block, if it has one.
        head: number of the head, if it is one.
    """

    name: str
    kind: str
    layer: int | None = None
    head: int | None = None


@dataclasses.dataclass(frozen=True)
class DirectResult(Result):
    """Shares of a logit, or of a difference of two, through the final layer norm as it was.

    Attributes:
        shares: of each part in logits ``[part, batch, pos]``, float32 at least, on the CPU. Those
            of embedding, attentions, MLPs and ``bias`` sum to ``logit``.
        parts: what they are, by layer.
        logit: what the model computes ``[batch, pos]``.
        error: the largest distance of a sum from what it should be, of all positions of the texts:
            of all shares from the logit, and of heads and bias from their attention.
        target: whose logit, such as ``"' Mary' − ' John'"``.
        pieces: token strings, ``[batch][pos]``.
        mask: True for text and False for padding, ``[batch, pos]``.
    """

    shares: Tensor
    parts: list[Part]
    logit: Tensor
    error: float
    target: str
    pieces: list[list[str]]
    mask: Tensor

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each part, text and position; padding is left out.

        ``share`` of the kinds ``embed``, ``attention``, ``mlp`` and ``bias`` sums to ``logit``;
        ``head`` and ``attention_bias`` say again what ``attention`` consists of.
        """
        rows = [
            (
                *dataclasses.astuple(part),
                text,
                pos,
                self.pieces[text][pos],
                float(shares[text, pos]),
                float(self.logit[text, pos]),
            )
            for part, shares in zip(self.parts, self.shares, strict=True)
            for text, pos in self.mask.nonzero().tolist()
        ]
        own = [field.name for field in dataclasses.fields(Part)]
        own[0] = "part"
        frame = make_frame(rows, [*own, "text", "pos", "token", "share", "logit"])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def view(self, text: int = 0, pos: int = -1) -> HeatmapView:
        """One position: a row for each layer, with all it writes and what that consists of.

        Columns: ``all``, which is ``attention`` and ``MLP``; and the heads and ``b_O``, which are
        the attention.

        Args:
            text: which text.
            pos: which of its tokens.

        Raises:
            InputError: there is no such text or token.
        """
        from neox_lab.views import HeatmapView

        text, kept = self._kept(text)
        at = kept[entry("pos", pos, len(kept), InputError)]
        heads = [part.head for part in self.parts if part.head is not None]
        columns = ["all", "attention", "MLP", *(f"H{head}" for head in range(max(heads) + 1))]
        columns.append("b_O")
        layers = [part.layer for part in self.parts if part.layer is not None]
        rows = ["embed", *map(str, range(max(layers) + 1)), "bias"]
        values = torch.full((len(rows), len(columns)), float("nan"), dtype=self.shares.dtype)
        values[:, 0] = 0
        for part, share in zip(self.parts, self.shares[:, text, at], strict=True):
            row = {"embed": 0, "bias": -1}.get(part.kind, 1 + (part.layer or 0))
            if part.kind in KINDS:
                values[row, 0] += share
            if part.layer is not None:
                column = {"attention": 1, "mlp": 2, "attention_bias": -1}
                values[row, column.get(part.kind, 3 + (part.head or 0))] = share
        measured = torch.ones_like(values)
        measured[[0, -1], 1:] = 0
        return HeatmapView(
            values,
            rows,
            columns,
            "layer",
            "part",
            "share of the logit",
            title=f"Direct share of the logit of {self.target} after {self._token(text, at)}",
            measured=measured,
            note=f"The column “all” sums to the logit, {float(self.logit[text, at]):.4f}, "
            f"to within {self.error:.1e}.",
        )

    def positions(self, text: int = 0) -> HeatmapView:
        """One text: a row for each part but single heads, and a column for each position.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import HeatmapView

        text, kept = self._kept(text)
        summed = [at for at, part in enumerate(self.parts) if part.kind in KINDS]
        return HeatmapView(
            self.shares[summed][:, text, kept],
            [self.parts[at].name for at in summed],
            [self.pieces[text][pos] for pos in kept],
            "part",
            "token",
            "share of the logit",
            title=f"Direct share of the logit of {self.target} at each token",
            note=f"Each column sums to the logit, to within {self.error:.1e}.",
        )

    def _kept(self, text: int) -> tuple[int, list[int]]:
        """A text, and the positions of its own tokens."""
        text = entry("text", text, len(self.pieces), InputError)
        return text, self.mask[text].nonzero().flatten().tolist()

    def _token(self, text: int, at: int) -> str:
        from neox_lab.views.tokens import isolated, label

        return f"token {at}, {isolated(label(self.pieces[text][at], 16))}"


@torch.no_grad()
def direct(
    model: HookedModel, inputs: Inputs, token: str | int, minus: str | int | None = None
) -> DirectResult:
    """Split a token's logit into what each part of the network writes for it, at every position.

    share(c) = ⟨(c − mean c) / scale · γ, W_U[token]⟩, with the scale that the final layer norm had
    in this run (Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"). The
    shares are exact and sum to the logit; what a part does by way of later parts is theirs.

    Args:
        model: one with an unembedding, a ``GPTNeoXForCausalLM``.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        token: whose logit, as a string of exactly one token or as an id.
        minus: whose logit is subtracted.

    Returns:
        The shares of embedding, attentions, heads, MLPs and biases, with the logit and the error
        of their sum.

    Raises:
        InputError: a model without an unembedding, or an id out of range.
        TokenizerError: a string that is not exactly one token.
        HookError: a function is spliced in between heads and MLPs, PyTorch hooks are on the
            network, or shares do not sum to the logit because a hook has replaced a sum.
    """
    check_splices(model, IN_NODES, "The logit is no longer the sum of what the parts write.")
    if model.get_output_embeddings() is None:
        raise InputError(f"Logits of tokens need an unembedding; {type(model).__name__} has none.")
    check_parts(model)
    target = _id(model, "token", token)
    other = None if minus is None else _id(model, "minus", minus)
    prepared = model.prepare_inputs(inputs)
    inside = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")
    wanted = ["hook_embed", *(f"blocks.*.{name}" for name in inside), "ln_final.hook_scale"]
    output, cache = model.run_with_cache(inputs, wanted)
    ids = prepared["input_ids"]
    own = prepared.get("attention_mask", torch.ones_like(ids)).bool()
    refuse_other_angles(model, own, "inputs")
    logits = at_least_float32(output.logits)
    logit = logits[..., target] - (0 if other is None else logits[..., other])
    parts, shares = _shares(model, cache, target, other)
    error, size = _errors(parts, shares, logit)
    # Each share is at most rounded like the activations it is made of.
    allowed = max(TOLERANCE, 8 * torch.finfo(output.logits.dtype).eps) * (1 + size)
    if bool((own & (error > allowed)).any()):
        raise HookError(
            f"The shares sum to something else than the logit, by {float(error[own].max()):.3g}: a "
            "hook has replaced a sum, such as the residual stream. Leave its with block first."
        )
    bad = (~shares.isfinite().all(dim=0) & own).nonzero().tolist()
    name_not_finite("The logit", (f"text {text}, pos {pos}" for text, pos in bad))
    named = [
        repr(token_text(model.tokenizer, each)) for each in (target, other) if each is not None
    ]
    return DirectResult(
        shares=shares.cpu(),
        parts=parts,
        logit=logit.cpu(),
        error=float(error[own].max()),
        target=" − ".join(named),
        pieces=[[token_text(model.tokenizer, each) for each in row] for row in ids.tolist()],
        mask=own.cpu(),
    )


def _id(model: HookedModel, name: str, token: object) -> int:
    """A token's id."""
    if isinstance(token, str):
        return model.to_single_token(token)
    vocab = len(model.output_map.weight)
    return check(name, token, whole(least=0, most=vocab - 1), InputError)


def _shares(
    model: HookedModel, cache: ActivationCache, token: int, minus: int | None
) -> tuple[list[Part], Tensor]:
    """Parts in the order of the forward pass, and their shares ``[part, batch, pos]``."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    norm = plain_layer_norm(model.backbone.final_layer_norm, "final_layer_norm")
    rows = at_least_float32(model.output_map.weight)
    along = rows[token] if minus is None else rows[token] - rows[minus]
    onto = along * norm.weight.to(along)
    stack, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, apply_ln=True, return_labels=True, project_output_onto=onto
    )
    by_name = dict(zip(labels, stack, strict=True))
    attentions = torch.stack([cache["attn_out", layer] for layer in range(layers)])
    attention = cache.logit_attrs(attentions, token, minus)
    constant = cache.logit_bias(token, minus)
    found = [(Part("embed", "embed"), by_name["embed"])]
    zero = torch.zeros_like(attentions[0])
    for layer in range(layers):
        bias = cache.logit_attrs((zero + model.blocks[layer].b_O)[None], token, minus)[0]
        found += [
            (Part(f"attention {layer}", "attention", layer), attention[layer]),
            *(
                (Part(name, "head", layer, head), by_name[name])
                for head in range(heads)
                for name in [head_name(layer, head)]
            ),
            (Part(f"attention bias {layer}", "attention_bias", layer), bias),
            (Part(f"MLP{layer}", "mlp", layer), by_name[f"{layer}_mlp_out"]),
        ]
    found.append((Part("bias", "bias"), constant.expand_as(by_name["embed"])))
    parts = [part for part, _ in found]
    return parts, torch.stack([share.to(found[0][1]) for _, share in found])


def _errors(parts: list[Part], shares: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
    """How far sums are from what they should be ``[batch, pos]``, and how large what they add."""
    exact = shares.double()
    chosen = [at for at, part in enumerate(parts) if part.kind in KINDS]
    errors = [(exact[chosen].sum(dim=0) - logit.double()).abs()]
    layers = max(part.layer or 0 for part in parts)
    for layer in range(layers + 1):
        signs = [_SIGN.get(part.kind, 0.0) * (part.layer == layer) for part in parts]
        weights = torch.tensor(signs, dtype=torch.float64, device=shares.device)
        errors.append(torch.einsum("p,pbt->bt", weights, exact).abs())
    return torch.stack(errors).amax(dim=0), exact.abs().sum(dim=0)


_SIGN = {"attention": -1.0, "head": 1.0, "attention_bias": 1.0}
