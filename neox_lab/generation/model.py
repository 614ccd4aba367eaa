"""What generation asks of a model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from neox_lab.config import GPTNeoXConfig
from neox_lab.hooks.points import HookPoint
from neox_lab.model.network import Network


class LanguageModel(Protocol):
    """A causal language model: calling it gives an output with ``logits``."""

    config: GPTNeoXConfig
    tokenizer: Any
    hook_stack: Any
    hook_points: dict[str, HookPoint]

    @property
    def backbone(self) -> Network:
        """The network below the unembedding."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def hooks(self, fwd_hooks: Any, *, must_fire: bool) -> AbstractContextManager[Any]:
        """Place hooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward."""
