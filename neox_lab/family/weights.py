"""A model's weights under TransformerLens's names, seen in place.

    model.blocks[3].W_Q           [head, d_model, d_head]: a view; writing to it changes the model
    model.W_Q                     [layer, head, d_model, d_head]: all layers stacked, a copy
    model.OV[3, 5]                what head 5 of layer 3 moves, as a FactoredMatrix

Vectors multiply from the left, ``q = x @ W_Q + b_Q``, so every matrix is the transpose of the
stored one. GPT-NeoX stores queries, keys and values in one matrix whose rows are grouped by head:
[q | k | v] of head 0, then of head 1, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from neox_lab.checks import check, whole
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError, InputError
from neox_lab.family.factored import FactoredMatrix
from neox_lab.head_names import head_name
from neox_lab.model.block import Block
from neox_lab.model.network import Network
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.model.parts import Affine, affine, embeddings, refuse_hooks
from neox_lab.other_names import BLOCK, ours


class LayerWeights:
    """Weights of one block.

    Matrices are views of the parameters, which take part in gradients and show the parameters'
    as their ``grad``; to write into one, use
    ``with torch.no_grad(): model.blocks[0].W_Q[2] = 0``. Biases a model does not have
    (``attention_bias=False``) read as zeros. Where an adapter (LoRA) or another module stands in
    a matrix's place, it is the matrix that this amounts to, a copy; HookError if it is none. Of a
    block on another device than the embedding copies are brought, through which gradients flow.
    """

    def __init__(self, block: Block) -> None:
        """The weights of ``block``."""
        self.block = block

    def __getattr__(self, name: str) -> NoReturn:
        """Called for what is not there.

        Raises:
            AttributeError: always; what TransformerLens's blocks have by that name is told.
        """
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.{ours(name, BLOCK)}")

    def _qkv(self, part: int) -> Tensor:
        attention = self.block.attention
        grouped = (attention.heads, 3, attention.d_head, -1)
        weight = attention.reading().weight
        return _seen(weight, lambda w: w.reshape(grouped)[:, part].transpose(1, 2))

    def _qkv_bias(self, part: int) -> Tensor:
        attention = self.block.attention
        weight, bias = attention.reading()
        if bias is None:
            return weight.new_zeros(attention.heads, attention.d_head)
        return _seen(bias, lambda b: b.view(attention.heads, 3, -1)[:, part])

    @property
    def W_Q(self) -> Tensor:  # noqa: N802
        """Residual stream to queries, ``[head, d_model, d_head]``."""
        return self._qkv(0)

    @property
    def W_K(self) -> Tensor:  # noqa: N802
        """Residual stream to keys, ``[head, d_model, d_head]``."""
        return self._qkv(1)

    @property
    def W_V(self) -> Tensor:  # noqa: N802
        """Residual stream to values, ``[head, d_model, d_head]``."""
        return self._qkv(2)

    @property
    def b_Q(self) -> Tensor:  # noqa: N802
        """Bias of the queries, ``[head, d_head]``."""
        return self._qkv_bias(0)

    @property
    def b_K(self) -> Tensor:  # noqa: N802
        """Bias of the keys, ``[head, d_head]``."""
        return self._qkv_bias(1)

    @property
    def b_V(self) -> Tensor:  # noqa: N802
        """Bias of the values, ``[head, d_head]``."""
        return self._qkv_bias(2)

    @property
    def W_O(self) -> Tensor:  # noqa: N802
        """From what a head read to the residual stream, ``[head, d_head, d_model]``."""
        attention = self.block.attention
        grouped = (-1, attention.heads, attention.d_head)
        return _seen(attention.writing().weight, lambda w: w.reshape(grouped).permute(1, 2, 0))

    @property
    def b_O(self) -> Tensor:  # noqa: N802
        """Bias that attention adds to the residual stream, ``[d_model]``."""
        weight, bias = self.block.attention.writing()
        return weight.new_zeros(len(weight)) if bias is None else bias

    @property
    def W_in(self) -> Tensor:  # noqa: N802
        """Residual stream to neurons, ``[d_model, d_mlp]``."""
        return _seen(self.block.neurons().reading().weight, torch.t)

    @property
    def b_in(self) -> Tensor:
        """Bias of the neurons, ``[d_mlp]``."""
        weight, bias = self.block.neurons().reading()
        return weight.new_zeros(len(weight)) if bias is None else bias

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        """Neurons to residual stream, ``[d_mlp, d_model]``."""
        return _seen(self.block.neurons().writing().weight, torch.t)

    @property
    def b_out(self) -> Tensor:
        """Bias that the MLP adds to the residual stream, ``[d_model]``."""
        weight, bias = self.block.neurons().writing()
        return weight.new_zeros(len(weight)) if bias is None else bias

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """What heads look for ``[head, d_model, d_model]``; see ``StackedWeights``."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """What heads move ``[head, d_model, d_model]``; see ``StackedWeights``."""
        return FactoredMatrix(self.W_V, self.W_O)


def _seen(weight: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    """A view of a parameter; its ``grad`` is the same view of the parameter's."""
    seen = view(weight)
    if weight.is_leaf and weight.grad is not None:
        seen.grad = view(weight.grad)
    return seen


class StackedWeights:
    """All layers' weights at once, ``[layer, ..]``; stacking copies."""

    config: GPTNeoXConfig

    @property
    def blocks(self) -> Sequence[LayerWeights]:
        """Weights by layer."""
        raise NotImplementedError

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(block, name) for block in self.blocks])

    @property
    def W_Q(self) -> Tensor:  # noqa: N802
        """Residual stream to queries, ``[layer, head, d_model, d_head]``."""
        return self._stack("W_Q")

    @property
    def W_K(self) -> Tensor:  # noqa: N802
        """Residual stream to keys, ``[layer, head, d_model, d_head]``."""
        return self._stack("W_K")

    @property
    def W_V(self) -> Tensor:  # noqa: N802
        """Residual stream to values, ``[layer, head, d_model, d_head]``."""
        return self._stack("W_V")

    @property
    def W_O(self) -> Tensor:  # noqa: N802
        """From what heads read to the residual stream, ``[layer, head, d_head, d_model]``."""
        return self._stack("W_O")

    @property
    def W_in(self) -> Tensor:  # noqa: N802
        """Residual stream to neurons, ``[layer, d_model, d_mlp]``."""
        return self._stack("W_in")

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        """Neurons to residual stream, ``[layer, d_mlp, d_model]``."""
        return self._stack("W_out")

    @property
    def b_Q(self) -> Tensor:  # noqa: N802
        """Bias of the queries, ``[layer, head, d_head]``."""
        return self._stack("b_Q")

    @property
    def b_K(self) -> Tensor:  # noqa: N802
        """Bias of the keys, ``[layer, head, d_head]``."""
        return self._stack("b_K")

    @property
    def b_V(self) -> Tensor:  # noqa: N802
        """Bias of the values, ``[layer, head, d_head]``."""
        return self._stack("b_V")

    @property
    def b_O(self) -> Tensor:  # noqa: N802
        """Bias that attention adds, ``[layer, d_model]``."""
        return self._stack("b_O")

    @property
    def b_in(self) -> Tensor:
        """Bias of the neurons, ``[layer, d_mlp]``."""
        return self._stack("b_in")

    @property
    def b_out(self) -> Tensor:
        """Bias that the MLP adds, ``[layer, d_model]``."""
        return self._stack("b_out")

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """What heads look for, W_Q W_Kᵀ ``[layer, head, d_model, d_model]``.

        Without rotation: the score of query and key is ``x_q QK x_kᵀ / √d_head`` only in the
        dimensions that are not rotated, or where query and key stand at the same position.
        Biases are left out.
        """
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """What heads move, W_V W_O ``[layer, head, d_model, d_model]``; biases are left out."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def all_head_labels(self) -> list[str]:
        """``["L0H0", "L0H1", ..]``, by layer, then head."""
        heads = range(self.config.num_attention_heads)
        return [head_name(layer, head) for layer in range(len(self.blocks)) for head in heads]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """Sum of the biases that the blocks before ``layer`` added, ``[d_model]``.

        Args:
            layer: 0 to the number of layers.
            mlp_input: up to what the MLP of ``layer`` reads: also its attention's bias, in
                sequential blocks (in parallel ones both read the same).
            include_mlp_biases: count ``b_out`` too, not only ``b_O``.

        Raises:
            InputError: there is no such layer, or nothing there has an MLP.
        """
        blocks = self.blocks
        layer = check("layer", layer, whole(least=0, most=len(blocks) - mlp_input), InputError)
        total = torch.zeros_like(blocks[0].b_O)
        for block in blocks[:layer]:
            total = total + block.b_O
            if include_mlp_biases:
                total = total + block.b_out
        if mlp_input and not self.config.use_parallel_residual:
            total = total + blocks[layer].b_O
        return total

    @torch.no_grad()
    def all_composition_scores(self, mode: Literal["Q", "K", "V"]) -> Tensor:
        """How strongly each head reads what each head of an earlier layer writes.

        ‖OV₁ X₂‖ / (‖OV₁‖ ‖X₂‖) with X = QK, QKᵀ or OV for mode Q, K or V (Elhage et al., 2021);
        published figures use folded weights (``nl.folded``). Biases are left out, and so is the
        rotation: scores of Q and K are those at relative distance 0. Random matrices score about
        1 / √d_model, not 0.

        Returns:
            ``[layer, head, layer, head]``, writer first; 0 where the writer is not earlier.

        Raises:
            ConfigError: another mode.
        """
        readers = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}
        if mode not in readers:
            raise ConfigError(f"all_composition_scores({mode!r}); expected 'Q', 'K' or 'V'.")
        writes, reads = self.OV.collapse_l(), readers[mode]().collapse_r()
        layers, heads, rank, _ = writes.shape
        norms = writes.norm(dim=(-2, -1))[..., None, None] * reads.norm(dim=(-2, -1))
        scores = writes.new_zeros(layers, heads, layers, heads)
        for early in range(layers):
            for late in range(early + 1, layers):
                both = writes[early].flatten(0, 1) @ reads[late].transpose(0, 1).flatten(1)
                parts = both.view(heads, rank, heads, rank)
                scores[early, :, late] = parts.norm(dim=(1, 3))
        return scores / norms


class WeightViews(StackedWeights):
    """TransformerLens's names on a model; see the module's docstring."""

    head: ClassVar[str]

    @property
    def backbone(self) -> Network:
        """The network below the head."""
        raise NotImplementedError

    @property
    def blocks(self) -> tuple[LayerWeights, ...]:
        """Each layer's weights, as views."""
        network = self.backbone
        return tuple(LayerWeights(network.at_home(layer)) for layer in range(len(network.layers)))

    @property
    def output_head(self) -> nn.Module:
        """The head: ``nn.Linear``, or what was put in its place.

        Raises:
            ConfigError: this model has none.
        """
        if self.head not in OUTPUT_HEADS:
            raise ConfigError(
                f"{type(self).__name__} has no head: it returns the final residual stream. Load "
                f"the checkpoint with one: {', '.join(OUTPUT_HEADS)}."
            )
        head: nn.Module = getattr(self, OUTPUT_HEADS[self.head].module)
        return head

    @property
    def output_map(self) -> Affine:
        """Weight ``[vocab or label, d_model]`` and bias of the head, adapters included.

        Raises:
            ConfigError: this model has none.
            HookError: what stands there is no linear map.
        """
        return affine(self.output_head, self.config.hidden_size, OUTPUT_HEADS[self.head].module)

    @property
    def W_E(self) -> Tensor:  # noqa: N802
        """Token embeddings ``[vocab, d_model]``: the parameter itself.

        Raises:
            HookError: PyTorch hooks stand where tokens are looked up, or on their dropout.
        """
        refuse_hooks(self.backbone.emb_dropout, "emb_dropout")
        return embeddings(self.backbone.embed_in, self.config.vocab_size)

    @property
    def W_U(self) -> Tensor:  # noqa: N802
        """Unembedding ``[d_model, vocab]``: a view.

        Raises:
            ConfigError: this model's head is not an unembedding.
        """
        weight = self.output_map.weight
        if OUTPUT_HEADS[self.head].outputs != "vocab":
            name = OUTPUT_HEADS[self.head].module
            raise ConfigError(
                f"{type(self).__name__} has no unembedding W_U. Its head is model.{name}, with "
                f"model.{name}.weight [label, d_model] = {list(weight.shape)}; W_U needs "
                "head='causal-lm'."
            )
        return _seen(weight, torch.t)

    @property
    def b_U(self) -> Tensor:  # noqa: N802
        """Bias of the unembedding ``[vocab]``: GPT-NeoX has none, so zeros; folded models have one.

        Raises:
            ConfigError: this model's head is not an unembedding.
        """
        unembedding, bias = self.W_U, self.output_map.bias
        return unembedding.new_zeros(unembedding.shape[1]) if bias is None else bias

    def __dir__(self) -> list[str]:
        """All names but those that this head has no answer to; torch.jit asks for every one."""
        absent = set() if self.head == "causal-lm" else {"W_U", "b_U"}
        if self.head not in OUTPUT_HEADS:
            absent |= {"output_head", "output_map"}
        return [name for name in super().__dir__() if name not in absent]
