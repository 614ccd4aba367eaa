"""What the rest of the package may ask of a model.

Every room that takes a model says here, by type, what it needs of it:

    HookedNetwork     a network whose activations have names: what hooks and caches run
      HookedModel     any of the five classes: text goes in, a head may stand on top
        LanguageModel the class that predicts tokens and can generate

These are protocols (PEP 544): a class that has the members is one, whatever it inherits. The five
classes of this room are checked against them where they are defined. Rooms below this one, which
the classes are made of, name these types in annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, overload

import torch
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.model.hook_points import HookPoint

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.text import Inputs
    from neox_lab.family.weights import LayerWeights
    from neox_lab.generation.generation_config import GenerationConfig
    from neox_lab.generation.stream import StreamStep
    from neox_lab.hooks.cache import ActivationCache
    from neox_lab.hooks.hooking import HookList, HookStack
    from neox_lab.hooks.names import Name, ShortForm
    from neox_lab.hooks.splicing import Spliceable, SplicedFunction, SplicedPoint
    from neox_lab.hooks.storage import PosSlice
    from neox_lab.model.network import Network
    from neox_lab.model.parts import Affine
    from neox_lab.tokenizer import GPTNeoXTokenizerFast


class HookedNetwork(Protocol):
    """A network whose activations have names.

    Attributes:
        config: its shape.
        hook_stack: the hooks in force.
        training: True in training mode, when dropout is on.
    """

    config: GPTNeoXConfig
    hook_stack: HookStack
    training: bool

    @property
    def hook_points(self) -> dict[str, HookPoint]:
        """Every hook point by name, in the order of the forward pass."""

    @property
    def backbone(self) -> Network:
        """Embedding, blocks and final layer norm."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""

    def hook_table(self) -> pd.DataFrame:
        """What can be read and changed; see ``Hooked.hook_table``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights, with the way to each of them."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules, with the way to each of them."""

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``forward``; each class returns an output of its own kind."""

    def prepare_inputs(self, inputs: Inputs) -> dict[str, Tensor]:
        """Arguments of ``forward``; see ``TextHelpers.prepare_inputs``."""

    def pieces_of(self, prepared: dict[str, Tensor]) -> list[str] | None:
        """The token strings of the first row; None without a tokenizer or without ids."""

    def hooks(
        self, fwd_hooks: HookList = (), bwd_hooks: HookList = (), *, must_fire: bool = True
    ) -> AbstractContextManager[object]:
        """Place hooks for a ``with`` block; see ``Hooked.hooks``."""

    def spliced_function(
        self,
        site: str | ShortForm,
        function: SplicedFunction,
        points: Sequence[SplicedPoint],
        sizes: Mapping[str, int] | None = None,
        *,
        must_fire: bool = True,
    ) -> AbstractContextManager[object]:
        """Put a function into the network for a ``with`` block; see ``Hooked``."""

    def spliced(
        self,
        *dictionaries: Spliceable | Sequence[Spliceable] | Mapping[str, Spliceable],
        error: bool = True,
        must_fire: bool = True,
    ) -> AbstractContextManager[object]:
        """Put dictionaries of features into the network for a ``with`` block; see ``Hooked``."""

    def run_with_hooks(
        self,
        inputs: Inputs,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        *,
        must_fire: bool = True,
        **forward_arguments: Any,
    ) -> Any:
        """Run once with hooks; see ``Hooked.run_with_hooks``."""

    def run_with_cache(
        self,
        inputs: Inputs,
        names_filter: Name | Iterable[Name] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: PosSlice | None = None,
        incl_bwd: bool | Callable[[Any], Tensor] = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        **forward_arguments: Any,
    ) -> tuple[Any, ActivationCache]:
        """Run once and keep activations; see ``Hooked.run_with_cache``."""


class HookedModel(HookedNetwork, Protocol):
    """Any of the five classes.

    Attributes:
        head: which of them it is.
        tokenizer: from text to ids and back; None until one is set.
        revision: the commit it was loaded from, for a model from the hub.
    """

    head: ClassVar[str]
    tokenizer: GPTNeoXTokenizerFast | None
    revision: str | None

    @property
    def blocks(self) -> Sequence[LayerWeights]:
        """The weights of each layer by their names in the literature; see ``WeightViews``."""

    @property
    def output_head(self) -> nn.Module:
        """The linear map on top; an error for the class without one."""

    @property
    def output_map(self) -> Affine:
        """Its weight ``[vocab or label, d_model]`` and bias, adapters included."""

    def get_output_embeddings(self) -> nn.Linear | None:
        """The unembedding, weight ``[vocab, d_model]``; None for classes without one."""

    def eval(self) -> object:
        """Turn dropout off."""

    def train(self, mode: bool = True) -> object:
        """Turn dropout on or off."""

    @staticmethod
    def count_targets(batch: Prepared) -> int:
        """Over how many targets the loss of a batch is a mean."""

    def training_loss(self, batch: Prepared) -> Tensor:
        """The loss that training minimises, a scalar."""

    def last_token(self, input_ids: Tensor | None, logits: Tensor) -> Tensor | int:
        """Where each text ends, ``[batch]``, or -1; see ``TextHelpers.last_token``."""

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Tensor:
        """Sum of the biases that the blocks before ``layer`` added, ``[d_model]``."""

    def to_tokens(self, text: str | list[str]) -> Tensor:
        """Token ids ``[batch, pos]``."""

    @overload
    def to_str_tokens(self, text: str) -> list[str]: ...
    @overload
    def to_str_tokens(self, text: list[str]) -> list[list[str]]: ...
    @overload
    def to_str_tokens(self, text: Tensor) -> list[str] | list[list[str]]: ...
    def to_str_tokens(self, text: str | list[str] | Tensor) -> list[str] | list[list[str]]:
        """Each token's own text."""

    @overload
    def to_string(self, tokens: list[int] | int) -> str: ...
    @overload
    def to_string(self, tokens: Tensor) -> str | list[str]: ...
    def to_string(self, tokens: Tensor | list[int] | int) -> str | list[str]:
        """The text of token ids."""

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token."""


class LanguageModel(HookedModel, Protocol):
    """The class that predicts tokens.

    Attributes:
        generation_config: what ``generate`` does where a call does not say otherwise.
    """

    generation_config: GenerationConfig

    def generate(
        self,
        inputs: str | list[str] | Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **arguments: Any,
    ) -> Any:
        """Continue a text; see ``GenerationMixin.generate``."""

    def stream(self, inputs: str | Tensor | None = None, **arguments: Any) -> Iterator[StreamStep]:
        """Continue one text, token by token; see ``stream`` of the class."""


Prepared = Mapping[str, Tensor]
"""Arguments of ``forward``, as ``prepare_inputs`` makes them."""
