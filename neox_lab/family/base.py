"""What all five classes share: configuration, hooks, text helpers, loading, and small services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError
from neox_lab.family import tree
from neox_lab.family.hooked import Hooked
from neox_lab.family.pretrained import Pretrained
from neox_lab.family.text import TextHelpers
from neox_lab.family.weights import WeightViews
from neox_lab.hooks.hooking import HookStack
from neox_lab.hooks.table import hook_points
from neox_lab.model.network import Network


class GPTNeoXPreTrainedModel(TextHelpers, Hooked, WeightViews, Pretrained):
    """Base of the five classes; not used by itself.

    A subclass builds its modules under Hugging Face's names and then calls ``_set_up``.
    """

    base_model_prefix: ClassVar[str] = "gpt_neox"
    main_input_name: ClassVar[str] = "input_ids"
    head: ClassVar[str]

    config: GPTNeoXConfig

    def _set_up(self, config: GPTNeoXConfig) -> None:
        """Finish construction: configuration, hooks, initial weights, tied weights."""
        self.config = config
        self.tokenizer = None
        self.own_hook_points = hook_points(config, self.head)
        self.hook_stack = HookStack()
        backbone = self.backbone
        if isinstance(backbone, Hooked):
            # One stack, so that hooks also fire when the backbone is called by itself.
            backbone.hook_stack = self.hook_stack
        if next(self.parameters()).device.type != "meta":
            self.apply(self._init_weights)
        self.tie_weights()

    @property
    def backbone(self) -> Network:
        """The network below the head (the model itself if it has no head)."""
        network = getattr(self, self.base_model_prefix, self)
        assert isinstance(network, Network)
        return network

    base_model = backbone

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices and embeddings normal(0, initializer_range), biases 0, layer norms 1 and 0."""
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    def tie_weights(self) -> None:
        """Share input and output embeddings if the configuration asks for it."""

    def __repr__(self) -> str:
        """The model as a tree of its hook points."""
        return tree.as_text(self)

    def _repr_html_(self) -> str:
        return tree.as_html(self)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first parameter."""
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, weight ``[vocab, d_model]``."""
        return self.backbone.embed_in

    def set_input_embeddings(self, embedding: nn.Embedding) -> None:
        """Replace the token embedding, weight ``[vocab, d_model]``."""
        self.backbone.embed_in = embedding

    def get_output_embeddings(self) -> nn.Linear | None:
        """The unembedding, weight ``[vocab, d_model]``; None for classes without one."""
        return None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights; tied weights count once."""
        excluded = (
            {id(p) for p in self.backbone.embed_in.parameters()} if exclude_embeddings else set()
        )
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in excluded and (parameter.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self) -> int:
        """Bytes that the weights take."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def can_generate(self) -> bool:
        """True for the class that has ``generate``."""
        return False

    @staticmethod
    def count_targets(batch: Mapping[str, Tensor]) -> int:
        """Over how many targets the loss of a batch is a mean: one a text, unless a class differs.

        Args:
            batch: arguments of ``forward``, targets included.
        """
        return len(batch["input_ids"])

    def gradient_checkpointing_enable(self, **_: object) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Takes effect in training mode, for runs without hooks; the key-value cache is off then.
        """
        self.backbone.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.backbone.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.backbone.gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the embeddings' output even if all weights are frozen."""
        self.backbone.embed_in.register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(True)
        )

    @torch.no_grad()
    def resize_token_embeddings(
        self, size: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of rows of the embeddings and of the configuration's vocab_size.

        Args:
            size: new number of rows.
            pad_to_multiple_of: round ``size`` up to a multiple of this.
            mean_resizing: new rows are the mean of the old ones plus a little noise, so that they
                start out plausible and change no prediction much (Hewitt, "Initializing New
                Word Embeddings", 2021); otherwise normal(0, initializer_range).

        Raises:
            ConfigError: ``size`` is not positive.
        """
        if size < 1:
            raise ConfigError(f"resize_token_embeddings({size}): expected at least 1 row.")
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        spread = None if mean_resizing else self.config.initializer_range
        embedding = self.backbone.embed_in
        output = self.get_output_embeddings()
        tied = output is not None and output.weight is embedding.weight
        embedding.weight = _resized(embedding.weight, size, spread)
        embedding.num_embeddings = size
        if output is not None:
            output.weight = embedding.weight if tied else _resized(output.weight, size, spread)
            output.out_features = size
        self.config.vocab_size = size
        return embedding


def _resized(weight: Tensor, size: int, spread: float | None) -> nn.Parameter:
    """``weight`` ``[rows, d_model]`` cut or grown to ``size`` rows; frozen if it was."""
    rows, d_model = weight.shape
    new = weight.new_empty(max(size - rows, 0), d_model)
    if spread is not None:
        new.normal_(0.0, spread)
    else:
        exact = weight.float()
        noise = 1e-4 * exact.std(dim=0) * torch.randn_like(new, dtype=torch.float32)
        new.copy_(exact.mean(dim=0) + noise)
    return nn.Parameter(torch.cat((weight[:size], new)), requires_grad=weight.requires_grad)
