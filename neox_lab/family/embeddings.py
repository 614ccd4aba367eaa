"""Input and output embeddings: reading, replacing and resizing them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neox_lab import interrupts
from neox_lab.checks import check, whole
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import ConfigError
from neox_lab.model.network import Network
from neox_lab.model.parts import described


class Embeddings:
    """The two maps between tokens and vectors, under transformers' names."""

    config: GPTNeoXConfig

    @property
    def backbone(self) -> Network:
        """Embedding, blocks and final layer norm."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """Number of rows of the token embedding."""
        return self.config.vocab_size

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, weight ``[vocab, d_model]``."""
        return self.backbone.embed_in

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding, weight ``[vocab, d_model]``."""
        self.backbone.embed_in = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The unembedding, weight ``[vocab, d_model]``; None for classes without one."""
        return None

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Change the number of rows of the embeddings and of the configuration's vocab_size.

        Args:
            new_num_tokens: new number of rows; None leaves it, but for ``pad_to_multiple_of``.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: new rows are the mean of the old ones plus a little noise, so that they
                start out plausible and change no prediction much (Hewitt, "Initializing New
                Word Embeddings", 2021); otherwise normal(0, initializer_range).

        Returns:
            The token embedding.

        Raises:
            ConfigError: a number that is not a whole one above 0, or adapters or other modules
                stand where the embeddings were.
        """
        embedding = self.backbone.embed_in
        if new_num_tokens is None and not pad_to_multiple_of:
            return embedding
        output = self.get_output_embeddings()
        for module in (embedding, output):
            if not isinstance(module, nn.Embedding | nn.Linear | None):
                raise ConfigError(
                    f"There is {described(module)} in the place of embeddings. Resize them before "
                    "adapters are put in, or after merging these (PEFT: merge_and_unload())."
                )
        size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        check("new_num_tokens", size, whole(least=1), ConfigError)
        if pad_to_multiple_of:
            if not isinstance(pad_to_multiple_of, int):
                raise ConfigError(  # transformers' own words, misprint and all
                    "Asking to pad the embedding matrix to a multiple of "
                    f"`{pad_to_multiple_of}`, which is not and integer. Please make sure to pass "
                    "an integer."
                )
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        spread = None if mean_resizing else self.config.initializer_range
        tied = output is not None and output.weight is embedding.weight
        first = _resized(embedding.weight, size, spread)
        second = first if output is None or tied else _resized(output.weight, size, spread)
        with interrupts.held():  # all of it or nothing
            embedding.weight, embedding.num_embeddings = first, size
            if output is not None:
                output.weight, output.out_features = second, size
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
