"""Direct logit attribution: who wrote the logit.

The residual stream that the head reads is a sum of what embedding, heads and MLPs wrote. With its
scale taken from the run, the final layer norm is linear, and so is the head. So the logit, or a
difference of logits, is a sum of one share for each of them, and of biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of, whole
from neox_lab.data.positions import TokenPosition
from neox_lab.errors import InputError
from neox_lab.experiments import metrics
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import BoundMetric, LogitMetric, Output
from neox_lab.experiments.prompt_pairs import Batch, batch
from neox_lab.experiments.splices import BELOW_OUTPUTS, IN_NODES, check_splices
from neox_lab.head_names import head_name
from neox_lab.model.attention import head_results
from neox_lab.model.parts import plain_layer_norm

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs

By = Literal["component", "layer", "head", "mlp", "neuron"]
_BY = ("component", "layer", "head", "mlp", "neuron")
_PARTS = (
    "hook_embed",
    *(f"blocks.*.{x}" for x in ("attn.hook_z", "mlp.hook_post", "hook_attn_out", "hook_mlp_out")),
)
Parts = Iterator[tuple[list[str], Tensor]]
"""Names, and what each of them wrote where the metric reads: ``[part, batch, term, d_model]``."""


@torch.no_grad()
def direct_logit_attribution(
    model: HookedModel,
    inputs: Inputs,
    correct: Output | LogitMetric,
    wrong: Output | None = None,
    pos: TokenPosition = -1,
    by: By = "component",
    top_k: int = 50,
) -> AttributionResult:
    """Split a logit, or a difference of two, into what each part of the model wrote.

    share(c) = Σ_term weight · ⟨(c − mean c) / scale · γ, W[output]⟩ at the position the term reads
    (Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"). The shares sum to
    the logit difference. They say what is written for the answer directly; what a part does by
    way of later parts is theirs.

    Args:
        model: any class with a head.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        correct: token or label whose logit is split (for question answering ``"start"`` or
            ``"end"``), or a metric such as ``span_logit(3, 5)``.
        wrong: token or label whose logit is subtracted.
        pos: where it is read, in each text's own tokens; a text classifier knows by itself.
        by: ``"component"``: embedding, every head, every MLP, biases. ``"layer"``: embedding,
            every attention and every MLP with their biases. ``"head"`` over (layer, head) and
            ``"mlp"`` over layers show a part of the sum. ``"neuron"``: like ``"component"`` with
            the ``top_k`` neurons of largest share by themselves, and the rest of each MLP.
        top_k: how many neurons.

    Returns:
        Shares in logits, mean over rows; ``total`` is what all of them sum to, ``facts["rest"]``
        what is not shown. ``check()`` compares with taking each part out of the final residual
        stream, layer norm computed anew.

    Raises:
        InputError: an unknown ``by``, or a metric that does not fit the model.
        HookError: a function is spliced in between heads and MLPs or, for neurons, behind these.
    """
    check("by", by, one_of(*_BY), InputError)
    check("top_k", top_k, whole(least=0), InputError)
    check_splices(
        model,
        BELOW_OUTPUTS if by == "neuron" else IN_NODES,
        "The logit is no longer the sum of what the parts write.",
    )
    metric = correct
    if not isinstance(metric, LogitMetric):
        metric = metrics.head_logit(model.head, metric, wrong, pos)
    ready = batch(model, inputs, metric)
    assert isinstance(ready.metric, BoundMetric)
    final = FinalStream.of(ready, ready.metric, _PARTS)
    neurons = final.largest_neurons(top_k) if by == "neuron" else []
    names, per_row = _over_parts(final, by, neurons, final.share)
    axes, labels = _axes(model, by, names)
    shape = [len(labels[axis]) for axis in axes]
    values = per_row.mean(dim=0)

    @torch.no_grad()
    def exact() -> Tensor:
        _, effects = _over_parts(final, by, neurons, final.effect_of_removing)
        return effects.mean(dim=0).reshape(shape)

    total = float(final.per_row.mean())
    return AttributionResult(
        values=values.reshape(shape),
        axes=axes,
        labels=labels,
        total=total,
        per_row=per_row.reshape(-1, *shape),
        title="Direct logit attribution",
        value_name=f"share of {metric.name}",
        facts={"rest": total - float(values.double().sum())},
        _exact=exact,
    )


def _axes(
    model: HookedModel, by: By, names: list[str]
) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Axes of the result, and the names of their entries."""
    layers = [str(layer) for layer in range(model.config.num_hidden_layers)]
    if by == "head":
        heads = [str(head) for head in range(model.config.num_attention_heads)]
        return ("layer", "head"), {"layer": layers, "head": heads}
    if by == "mlp":
        return ("layer",), {"layer": layers}
    return ("component",), {"component": names}


def _over_parts(
    final: FinalStream, by: By, neurons: list[list[int]], weigh: Callable[[Tensor, bool], Tensor]
) -> tuple[list[str], Tensor]:
    """Names of the parts, and a number for each of them, float32 on the CPU ``[batch, part]``."""
    names: list[str] = []
    numbers = []
    for some, vectors in final.parts(by, neurons):
        names += some
        numbers.append(weigh(vectors, some == ["bias"]).T.cpu())
    return names, torch.cat(numbers, dim=1)


@dataclasses.dataclass(frozen=True)
class FinalStream:
    """What the head reads where the metric reads, and what it was put together from.

    Attributes:
        model: the model that ran.
        at: activations by hook name, ``[batch, term, ..]``.
        stream: the final residual stream, ``[batch, term, d_model]``.
        weight: rows of the head times the weights of the metric, ``[batch, term, d_model]``.
        directions: what a vector of the stream is multiplied with to get its share.
        constant: what the biases of the final layer norm and of the head give, ``[batch]``.
        per_row: the metric, ``[batch]``.
    """

    model: HookedModel
    at: dict[str, Tensor]
    stream: Tensor
    weight: Tensor
    directions: Tensor
    constant: Tensor
    per_row: Tensor

    @classmethod
    def of(cls, ready: Batch, metric: BoundMetric, names: Sequence[str]) -> FinalStream:
        """Run the model once, and keep what stands at ``names`` besides."""
        model = ready.model
        last = f"blocks.{model.config.num_hidden_layers - 1}.hook_resid_post"
        output, cache = model.run_with_cache(ready.ids, [*names, last], **ready.arguments)
        rows = torch.arange(len(ready.ids), device=ready.ids.device)[:, None]
        at = {name: tensor[rows, metric.positions].float() for name, tensor in cache.items()}
        stream = at[last]
        norm = plain_layer_norm(model.backbone.final_layer_norm, "final_layer_norm")
        head_weight, head_bias = model.output_map
        weight = head_weight[metric.outputs].float() * metric.weights[:, None]
        scale = (stream.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
        along = weight * norm.weight.float()
        constant = (weight @ norm.bias.float()).sum(dim=1)
        if head_bias is not None:
            constant = constant + (head_bias[metric.outputs].float() * metric.weights).sum(dim=1)
        directions = (along - along.mean(dim=-1, keepdim=True)) / scale
        per_row = metric.per_row(metrics.output_logits(output)).float().cpu()
        return cls(model, at, stream, weight, directions, constant, per_row)

    def parts(self, by: By, neurons: list[list[int]]) -> Parts:
        """What was written, in the order of the forward pass; biases that are nobody's last."""
        blocks, every = self.model.blocks, by in ("component", "layer", "neuron")
        if every:
            yield ["embed"], self.at["hook_embed"][None]
        shared = torch.zeros_like(self.stream)
        for layer, block in enumerate(blocks):
            if by == "layer":
                yield [f"attention {layer}"], self.at[f"blocks.{layer}.hook_attn_out"][None]
            elif by != "mlp":
                results = self._heads(layer)
                yield [head_name(layer, head) for head in range(len(results))], results
                shared = shared + block.b_O.float()
            if by == "head":
                continue
            rest = self.at[f"blocks.{layer}.hook_mlp_out"]
            if by == "neuron" and neurons[layer]:
                chosen = neurons[layer]
                post = self.at[f"blocks.{layer}.mlp.hook_post"][..., chosen]
                vectors = post[..., None] * block.W_out[chosen].float()
                yield [f"L{layer}N{neuron}" for neuron in chosen], vectors.movedim(2, 0)
                rest = rest - vectors.sum(dim=2)
            yield [f"MLP{layer}" + " rest" * (by == "neuron")], rest[None]
        if every:
            yield ["bias"], shared[None]

    def _heads(self, layer: int) -> Tensor:
        """What each head of a layer wrote, ``[head, batch, term, d_model]``."""
        weight, _ = self.model.blocks[layer].block.attention.writing()
        z = self.at[f"blocks.{layer}.attn.hook_z"]
        return head_results(z, weight.float()).movedim(2, 0)

    def largest_neurons(self, count: int) -> list[list[int]]:
        """The ``count`` neurons of largest mean share, by layer."""
        shares = []
        for layer, block in enumerate(self.model.blocks):
            post = self.at[f"blocks.{layer}.mlp.hook_post"]
            along = self.directions @ block.W_out.float().T  # [batch, term, neuron]
            shares.append((post * along).sum(dim=1).mean(dim=0))
        stacked = torch.stack(shares)
        best = stacked.abs().flatten().topk(min(count, stacked.numel())).indices.tolist()
        width = stacked.shape[1]
        return [sorted(i % width for i in best if i // width == at) for at in range(len(shares))]

    def share(self, vectors: Tensor, constants: bool) -> Tensor:
        """Share of each vector, ``[part, batch]``; ``constants`` adds those of norm and head."""
        shares = (vectors * self.directions).sum(dim=(-2, -1))
        return shares + self.constant if constants else shares

    def effect_of_removing(self, vectors: Tensor, constants: bool) -> Tensor:
        """What the metric loses without each vector, with a new scale, ``[part, batch]``."""
        lost = self._read(self.stream) - self._read(self.stream - vectors)
        return lost + self.constant if constants else lost

    def _read(self, stream: Tensor) -> Tensor:
        """The metric of streams ``[.., batch, term, d_model]``, without the head's bias."""
        norm = plain_layer_norm(self.model.backbone.final_layer_norm, "final_layer_norm")
        weight, bias = norm.weight.float(), norm.bias.float()
        read = torch.nn.functional.layer_norm(stream, weight.shape, weight, bias, norm.eps)
        return (read * self.weight).sum(dim=(-2, -1))
