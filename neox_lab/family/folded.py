"""The same model with layer norm folded into its weights, as a view or as a model.

    nl.folded(model).W_Q                       [layer, head, d_model, d_head]
    nl.folded(model).as_model()                a GPTNeoXForCausalLM of these weights

Layer norm scales and shifts by learned numbers before every matrix that reads the residual stream.
Moving those numbers into the matrices gives an equivalent model whose layer norms only centre and
scale, so that its weights can be read, and multiplied with each other, as they are. The view stores
and changes nothing: each matrix is computed from the model's weights when asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.checks import SWITCH, check, require_model
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family.weights import LayerWeights, StackedWeights, WeightViews
from neox_lab.model.block import Block
from neox_lab.model.parts import plain_layer_norm

if TYPE_CHECKING:
    from neox_lab.family.heads import GPTNeoXForCausalLM


@dataclass(frozen=True)
class Folding:
    """What is done to weights; each step leaves log-probabilities as they are.

    Attributes:
        fold_ln: matrices take in the weight and bias of the layer norm before them, and their
            columns are centred over d_model, whose mean layer norm removes.
        center_writing_weights: what is written to the residual stream is centred over d_model.
        center_unembed: the unembedding is centred over the vocabulary: logits move by one number
            a position.
        fold_value_biases: ``b_O`` takes in ``b_V``, as each head's pattern sums to one.
    """

    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = False


class FoldedLayerWeights(LayerWeights):
    """One block's weights with its layer norms folded in and what it writes centred."""

    def __init__(self, block: Block, folding: Folding) -> None:
        """The weights of ``block`` after the steps of ``folding``."""
        super().__init__(block)
        self.folding = folding

    def _norm(self, name: str) -> nn.LayerNorm:
        return plain_layer_norm(getattr(self.block, name), name)

    def _reading(self, norm: str, matrix: Tensor) -> Tensor:
        return _fold(self._norm(norm), matrix) if self.folding.fold_ln else matrix

    def _reading_bias(self, norm: str, matrix: Tensor, bias: Tensor) -> Tensor:
        return bias + self._norm(norm).bias @ matrix if self.folding.fold_ln else bias

    def _writing(self, matrix: Tensor) -> Tensor:
        return _centred(matrix) if self.folding.center_writing_weights else matrix

    def _qkv(self, part: int) -> Tensor:
        return self._reading("input_layernorm", super()._qkv(part))

    def _qkv_bias(self, part: int) -> Tensor:
        bias = self._reading_bias("input_layernorm", super()._qkv(part), super()._qkv_bias(part))
        moved = self.folding.fold_value_biases and part == 2
        return torch.zeros_like(bias) if moved else bias

    @property
    def W_in(self) -> Tensor:  # noqa: N802
        """Residual stream to neurons, ``[d_model, d_mlp]``."""
        return self._reading("post_attention_layernorm", super().W_in)

    @property
    def b_in(self) -> Tensor:
        """Bias of the neurons, ``[d_mlp]``."""
        return self._reading_bias("post_attention_layernorm", super().W_in, super().b_in)

    @property
    def W_O(self) -> Tensor:  # noqa: N802
        """From what a head read to the residual stream, ``[head, d_head, d_model]``."""
        return self._writing(super().W_O)

    @property
    def b_O(self) -> Tensor:  # noqa: N802
        """Bias that attention adds to the residual stream, ``[d_model]``."""
        bias = self._writing(super().b_O)
        if not self.folding.fold_value_biases:
            return bias
        values = self._reading_bias("input_layernorm", super()._qkv(2), super()._qkv_bias(2))
        return bias + torch.einsum("hd,hdm->m", values, self.W_O)

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        """Neurons to residual stream, ``[d_mlp, d_model]``."""
        return self._writing(super().W_out)

    @property
    def b_out(self) -> Tensor:
        """Bias that the MLP adds to the residual stream, ``[d_model]``."""
        return self._writing(super().b_out)


class FoldedWeights(StackedWeights):
    """Weights of an equivalent model whose layer norms have neither weight nor bias.

    A reading matrix takes in the weight and bias of the layer norm before it:
    W' = diag(w) W and b' = b + β W. Layer norm removes the mean over d_model, so that whatever
    is written may be centred, and so may the columns of whatever reads. A softmax ignores a
    constant, so ``W_U`` and ``b_U`` are centred over the vocabulary too: logits move by one number
    a position, log-probabilities stay. Values keep their bias ``b_V`` unless asked otherwise.
    """

    def __init__(self, model: WeightViews, folding: Folding = Folding()) -> None:
        """The weights of ``model`` after the steps of ``folding``."""
        self.model = model
        self.config: GPTNeoXConfig = model.config
        self.folding = folding

    @property
    def blocks(self) -> tuple[FoldedLayerWeights, ...]:
        """Each layer's folded weights."""
        return tuple(FoldedLayerWeights(layer.block, self.folding) for layer in self.model.blocks)

    @property
    def _norm(self) -> nn.LayerNorm:
        return plain_layer_norm(self.model.backbone.final_layer_norm, "final_layer_norm")

    @property
    def W_E(self) -> Tensor:  # noqa: N802
        """Token embeddings ``[vocab, d_model]``."""
        embeddings = self.model.W_E
        return _centred(embeddings) if self.folding.center_writing_weights else embeddings

    @property
    def W_U(self) -> Tensor:  # noqa: N802
        """Unembedding ``[d_model, vocab]``; ConfigError as for the model."""
        unembedding = self.model.W_U
        if self.folding.fold_ln:
            unembedding = _fold(self._norm, unembedding)
        return _centred(unembedding) if self.folding.center_unembed else unembedding

    @property
    def b_U(self) -> Tensor:  # noqa: N802
        """Bias of the unembedding ``[vocab]``; ConfigError as for the model."""
        bias = self.model.b_U
        if self.folding.fold_ln:
            bias = bias + self._norm.bias @ self.model.W_U
        return _centred(bias) if self.folding.center_unembed else bias

    @torch.no_grad()
    def as_model(self) -> GPTNeoXForCausalLM:
        """A language model of these weights, a copy, in evaluation mode.

        Its unembedding has a bias (``config.embed_out_bias``), which other libraries' GPT-NeoX has
        not: they cannot load what it saves. Tied embeddings are untied.

        Raises:
            ConfigError: the model has no unembedding.
        """
        from neox_lab.family.heads import GPTNeoXForCausalLM

        unembedding, bias = self.W_U, self.b_U
        config = GPTNeoXConfig.from_dict(self.config.to_dict())
        config.update({"tie_word_embeddings": False, "attention_bias": True})
        config.update({"embed_out_bias": True})
        made = GPTNeoXForCausalLM(config)
        made.to(unembedding.device, unembedding.dtype).eval()
        made.embed_out.weight.copy_(unembedding.T)
        made.embed_out.bias.copy_(bias)
        made.W_E.copy_(self.W_E)
        for ours, theirs in zip(made.blocks, self.blocks, strict=True):
            for name in _OF_BLOCK:
                getattr(ours, name).copy_(getattr(theirs, name))
        if not self.folding.fold_ln:
            _copy_norms(self.model.backbone, made.backbone)
        if isinstance(self.model, GPTNeoXForCausalLM):
            made.tokenizer = self.model.tokenizer
            made.generation_config = self.model.generation_config
        return made


_OF_BLOCK = "W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out".split()


def folded(
    model: WeightViews,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = False,
) -> FoldedWeights:
    """The model's weights with layer norms folded in and centred; the model stays as it is.

    With ``x = cache["normalized", l, "ln1"]``, queries are ``x @ folded(model).blocks[l].W_Q``
    plus ``b_Q``. See FoldedWeights; ``folded(model).as_model()`` is a model of these weights.

    Args:
        model: any of the five classes.
        fold_ln: see ``Folding``, as for the other three.
        center_writing_weights: what is written has a mean of zero over d_model.
        center_unembed: the unembedding has a mean of zero over the vocabulary.
        fold_value_biases: ``b_V`` moves into ``b_O``.

    Raises:
        InputError: no model of this package, or what is neither True nor False.
    """
    require_model(model)
    flags = {"fold_ln": fold_ln, "center_writing_weights": center_writing_weights}
    flags |= {"center_unembed": center_unembed, "fold_value_biases": fold_value_biases}
    checked = {name: check(name, value, SWITCH, InputError) for name, value in flags.items()}
    return FoldedWeights(model, Folding(**checked))


def _fold(norm: nn.LayerNorm, matrix: Tensor) -> Tensor:
    """diag(norm.weight) ``matrix`` ``[.., d_model, out]``, its columns centred over d_model."""
    scaled = norm.weight[:, None] * matrix
    return scaled - scaled.mean(dim=-2, keepdim=True)


def _centred(matrix: Tensor) -> Tensor:
    """``matrix`` with a mean of zero along its last axis."""
    return matrix - matrix.mean(dim=-1, keepdim=True)


def _copy_norms(source: nn.Module, target: nn.Module) -> None:
    """Weight and bias of every layer norm of ``source``."""
    norms = {name: part for name, part in source.named_modules() if name.endswith("norm")}
    for name, norm in norms.items():
        target.get_submodule(name).load_state_dict(plain_layer_norm(norm, name).state_dict())
