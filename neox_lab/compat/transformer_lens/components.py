"""A model's parts by TransformerLens's names: ``blocks[3].attn.W_Q``, ``unembed(x)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neox_lab.compat.transformer_lens.factored_matrix import FactoredMatrix
from neox_lab.compat.transformer_lens.hook_points import HookPoint
from neox_lab.errors import InputError

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer
    from neox_lab.family.weights import LayerWeights


_WEIGHTS = ("W_", "b_", "QK", "OV")


class Component:
    """Part of a model; its hook points are attributes, such as ``blocks[0].attn.hook_q``."""

    def __init__(self, model: HookedTransformer, name: str) -> None:
        """The part ``name``, such as ``blocks.0.attn``."""
        self.model, self.name = model, name

    def __getattr__(self, name: str) -> HookPoint:
        """A hook point of this part."""
        if name.startswith("hook_"):
            return self.model.points_of(f"{self.name}.{name}")[0]
        # Copying asks before there is a name.
        raise AttributeError(f"{self.__dict__.get('name', 'A component')} has no {name!r}.")

    def __repr__(self) -> str:
        """The name."""
        return f"{type(self).__name__}({self.name!r})"


class Embed(Component):
    """Looking up tokens."""

    @property
    def W_E(self) -> Tensor:  # noqa: N802
        """Token embeddings ``[vocab, d_model]``."""
        return self.model.native.W_E

    def __call__(self, tokens: Tensor) -> Tensor:
        """Their embeddings ``[batch, pos, d_model]``."""
        return self.model.native.backbone.look_up(tokens)


class Unembed(Component):
    """From the residual stream to logits."""

    @property
    def W_U(self) -> Tensor:  # noqa: N802
        """Unembedding ``[d_model, vocab]``."""
        return self.model.native.W_U

    @property
    def b_U(self) -> Tensor:  # noqa: N802
        """Its bias ``[vocab]``."""
        return self.model.native.b_U

    def __call__(self, residual: Tensor) -> Tensor:
        """Logits ``[.., vocab]`` of what the final layer norm returned."""
        logits: Tensor = self.model.native.output_head(residual)
        return logits


class LayerNorm(Component):
    """A layer norm: ``w`` and ``b``, and a call."""

    def __init__(self, model: HookedTransformer, name: str, norm: nn.Module) -> None:
        """The layer norm ``name``."""
        super().__init__(model, name)
        self.norm = norm

    @property
    def w(self) -> Any:
        """Weight ``[d_model]``."""
        return self.norm.weight

    @property
    def b(self) -> Any:
        """Bias ``[d_model]``."""
        return self.norm.bias

    def __call__(self, residual: Tensor) -> Tensor:
        """Normalised ``[.., d_model]``."""
        normalised: Tensor = self.norm(residual)
        return normalised


class BlockPart(Component):
    """Attention or MLP: weights by name."""

    def __init__(
        self, model: HookedTransformer, layer: int, part: str, weights: LayerWeights
    ) -> None:
        """The part ``part`` of layer number ``layer``, which has ``weights``."""
        super().__init__(model, f"blocks.{layer}.{part}")
        self.layer, self.weights = layer, weights

    def __getattr__(self, name: str) -> Any:
        """A weight or a hook point of this part."""
        return getattr(self.weights, name) if name[:2] in _WEIGHTS else super().__getattr__(name)


class Attention(BlockPart):
    """Attention: ``W_Q``, ``W_K``, ``W_V``, ``W_O``, their biases, ``QK`` and ``OV``."""

    def __call__(
        self,
        query_input: Tensor,
        key_input: Tensor | None = None,
        value_input: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What it adds to the stream ``[batch, pos, d_model]``, from what ``ln1`` returned.

        Args:
            query_input: ``[batch, pos, d_model]``.
            key_input: the same tensor, or None.
            value_input: likewise; inputs that differ are put in with hooks.
            attention_mask: 0 for padding ``[batch, pos]``.

        Raises:
            InputError: inputs that differ.
        """
        if any(own is not None and own is not query_input for own in (key_input, value_input)):
            raise InputError(
                "attn() takes one input for queries, keys and values; give other inputs with hooks "
                "at hook_q_input, hook_k_input or hook_v_input."
            )
        native = self.model.native
        with self.model.in_force():
            taps = native.hook_stack.taps()
            return native.backbone.attend_alone(self.layer, query_input, attention_mask, taps)

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """What its heads look for ``[head, d_model, d_model]``."""
        return FactoredMatrix(self.weights.W_Q, self.weights.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """What its heads move ``[head, d_model, d_model]``."""
        return FactoredMatrix(self.weights.W_V, self.weights.W_O)


class MLP(BlockPart):
    """The MLP: ``W_in``, ``W_out``, their biases, and a call."""

    def __call__(self, normalised: Tensor) -> Tensor:
        """What it adds to the stream ``[batch, pos, d_model]``, from what ``ln2`` returned."""
        with self.model.in_force():
            tap = self.model.native.hook_stack.taps().block(self.layer)
            written: Tensor = self.weights.block.mlp(normalised, tap=tap)
        return written


class Block(Component):
    """One layer: ``attn``, ``mlp``, ``ln1``, ``ln2``, and a call."""

    def __init__(self, model: HookedTransformer, layer: int, weights: LayerWeights) -> None:
        """Layer number ``layer``, which has ``weights``."""
        super().__init__(model, f"blocks.{layer}")
        self.layer, block = layer, weights.block
        self.attn = Attention(model, layer, "attn", weights)
        self.mlp = MLP(model, layer, "mlp", weights)
        self.ln1 = LayerNorm(model, f"{self.name}.ln1", block.input_layernorm)
        self.ln2 = LayerNorm(model, f"{self.name}.ln2", block.post_attention_layernorm)

    def __call__(self, resid_pre: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The residual stream after this layer ``[batch, pos, d_model]``, from the one before."""
        with self.model.in_force():
            run = self.model.native(
                inputs_embeds=resid_pre,
                attention_mask=attention_mask,
                start_at_layer=self.layer,
                stop_at_layer=self.layer + 1,
                use_cache=False,
            )
        after: Tensor = run.last_hidden_state
        return after
