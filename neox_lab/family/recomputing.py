"""Trading time for memory in training: activations that are computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar

from torch.utils.hooks import RemovableHandle

from neox_lab.model.network import Network
from neox_lab.model.parts import let_gradients_begin

_log = logging.getLogger("neox_lab")


class Recomputes:
    """Activation checkpointing, and inputs that want gradients, under transformers' names."""

    supports_gradient_checkpointing: ClassVar[bool] = True
    _inputs_want_gradients: RemovableHandle | None = None

    @property
    def backbone(self) -> Network:
        """Embedding, blocks and final layer norm."""
        raise NotImplementedError

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, object] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Takes effect in training mode, for runs without hooks and without a key-value cache of
        earlier positions. Gradients are the same whatever the arguments say.

        Args:
            activation_checkpointing_kwargs: of ``torch.utils.checkpoint``; blocks are never
                recomputed reentrantly, so nothing in it makes a difference.
            every_n_layers: every block is recomputed; another number is ignored with a warning.
            offload: activations stay where they are; True is ignored with a warning.
        """
        if every_n_layers != 1 or offload:
            _log.warning(
                "Every block is recomputed, and activations stay on their device: every_n_layers=%s"
                " and offload=%s change nothing.",
                every_n_layers,
                offload,
            )
        self.backbone.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.backbone.gradient_checkpointing = False

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.backbone.gradient_checkpointing

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, object] | None = None, **more: object
    ) -> None:
        """``activation_checkpointing_enable`` by its older name, ``more`` as there."""
        every, offload = more.get("every_n_layers", 1), more.get("offload", False)
        assert isinstance(every, int)
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, every, bool(offload))

    def gradient_checkpointing_disable(self) -> None:
        """``activation_checkpointing_disable`` by its older name."""
        self.activation_checkpointing_disable()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """``is_activation_checkpointing`` by its older name."""
        return self.is_activation_checkpointing

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' output even if all weights are frozen."""
        self.disable_input_require_grads()
        embedding = self.backbone.embed_in
        self._inputs_want_gradients = embedding.register_forward_hook(let_gradients_begin)

    def disable_input_require_grads(self) -> None:
        """Undo ``enable_input_require_grads``."""
        if self._inputs_want_gradients is not None:
            self._inputs_want_gradients.remove()
        self._inputs_want_gradients = None
