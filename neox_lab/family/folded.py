"""The same model with layer norm folded into its weights, as a view.

    folded(model).W_Q             [layer, head, d_model, d_head]

Layer norm scales and shifts by learned numbers before every matrix that reads the residual stream.
Moving those numbers into the matrices gives an equivalent model whose layer norms only centre and
scale, so that its weights can be read, and multiplied with each other, as they are. Nothing is
stored and nothing is changed: each matrix is computed from the model's weights when asked for.
"""

from __future__ import annotations

from torch import Tensor, nn

from neox_lab.family.weights import LayerWeights, StackedWeights, WeightViews
from neox_lab.model.parts import plain_layer_norm


class FoldedLayerWeights(LayerWeights):
    """One block's weights with its layer norms folded in and what it writes centred."""

    def _norm(self, name: str) -> nn.LayerNorm:
        return plain_layer_norm(getattr(self.block, name), name)

    def _qkv(self, part: int) -> Tensor:
        return _fold(self._norm("input_layernorm"), super()._qkv(part))

    def _qkv_bias(self, part: int) -> Tensor:
        from_norm = self._norm("input_layernorm").bias @ super()._qkv(part)
        return super()._qkv_bias(part) + from_norm

    @property
    def W_in(self) -> Tensor:  # noqa: N802
        """Residual stream to neurons, ``[d_model, d_mlp]``."""
        return _fold(self._norm("post_attention_layernorm"), super().W_in)

    @property
    def b_in(self) -> Tensor:
        """Bias of the neurons, ``[d_mlp]``."""
        return super().b_in + self._norm("post_attention_layernorm").bias @ super().W_in

    @property
    def W_O(self) -> Tensor:  # noqa: N802
        """From what a head read to the residual stream, ``[head, d_head, d_model]``."""
        return _centred(super().W_O)

    @property
    def b_O(self) -> Tensor:  # noqa: N802
        """Bias that attention adds to the residual stream, ``[d_model]``."""
        return _centred(super().b_O)

    @property
    def W_out(self) -> Tensor:  # noqa: N802
        """Neurons to residual stream, ``[d_mlp, d_model]``."""
        return _centred(super().W_out)

    @property
    def b_out(self) -> Tensor:
        """Bias that the MLP adds to the residual stream, ``[d_model]``."""
        return _centred(super().b_out)


class FoldedWeights(StackedWeights):
    """Weights of an equivalent model whose layer norms have neither weight nor bias.

    A reading matrix takes in the weight and bias of the layer norm before it:
    W' = diag(w) W and b' = b + β W. Layer norm removes the mean over d_model, so that whatever
    is written may be centred, and so may the columns of whatever reads. A softmax ignores a
    constant, so ``W_U`` and ``b_U`` are centred over the vocabulary too: logits move by one number
    a position, log-probabilities stay. Values keep their bias ``b_V``.
    """

    def __init__(self, model: WeightViews) -> None:
        """The folded weights of ``model``."""
        self.model = model
        self.config = model.config

    @property
    def blocks(self) -> tuple[FoldedLayerWeights, ...]:
        """Each layer's folded weights."""
        return tuple(FoldedLayerWeights(layer.block) for layer in self.model.blocks)

    @property
    def _norm(self) -> nn.LayerNorm:
        return plain_layer_norm(self.model.backbone.final_layer_norm, "final_layer_norm")

    @property
    def W_E(self) -> Tensor:  # noqa: N802
        """Token embeddings ``[vocab, d_model]``."""
        return _centred(self.model.W_E)

    @property
    def W_U(self) -> Tensor:  # noqa: N802
        """Unembedding ``[d_model, vocab]``; ConfigError as for the model."""
        return _centred(_fold(self._norm, self.model.W_U))

    @property
    def b_U(self) -> Tensor:  # noqa: N802
        """Bias of the unembedding ``[vocab]``; ConfigError as for the model."""
        return _centred(self._norm.bias @ self.model.W_U)


def folded(model: WeightViews) -> FoldedWeights:
    """The model's weights with layer norms folded in and centred; the model stays as it is.

    With ``x = cache["normalized", l, "ln1"]``, queries are ``x @ folded(model).blocks[l].W_Q``
    plus ``b_Q``. See FoldedWeights.
    """
    return FoldedWeights(model)


def _fold(norm: nn.LayerNorm, matrix: Tensor) -> Tensor:
    """diag(norm.weight) ``matrix`` ``[.., d_model, out]``, its columns centred over d_model."""
    scaled = norm.weight[:, None] * matrix
    return scaled - scaled.mean(dim=-2, keepdim=True)


def _centred(matrix: Tensor) -> Tensor:
    """``matrix`` with a mean of zero along its last axis."""
    return matrix - matrix.mean(dim=-1, keepdim=True)
