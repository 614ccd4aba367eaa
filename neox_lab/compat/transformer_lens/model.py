"""A language model that answers to ``HookedTransformer``'s calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.compat.transformer_lens import state
from neox_lab.compat.transformer_lens.components import Block, Embed, LayerNorm, Unembed
from neox_lab.compat.transformer_lens.config import HookedTransformerConfig
from neox_lab.compat.transformer_lens.factored_matrix import FactoredMatrix
from neox_lab.compat.transformer_lens.generation import Generates
from neox_lab.compat.transformer_lens.hook_points import HookPoint
from neox_lab.compat.transformer_lens.loading_from_pretrained import (
    checkpoint_step,
    native_model,
    refuse_unknown,
)
from neox_lab.compat.transformer_lens.running import Runs
from neox_lab.compat.transformer_lens.text import Side
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.conversion import (
    ForeignModel,
    ForeignTokenizer,
    tokenizer_from_transformers,
)
from neox_lab.family.folded import folded
from neox_lab.family.text import tokenizer_of
from neox_lab.tokenizer import GPTNeoXTokenizerFast

_RETURNS_SELF = ("cuda", "cpu", "eval", "train", "half", "float", "double", "bfloat16")


class HookedTransformer(Runs, Generates):
    """A language model with TransformerLens's names and calls.

    What is not defined here is the model's own: ``W_Q``, ``QK``, ``parameters()``,
    ``accumulated_bias()``.

    Attributes:
        native: the model, with this package's calls.
        cfg: its configuration by TransformerLens's names.
        hook_dict: every hook point by name, in the order of the forward pass.
    """

    def __init__(
        self,
        model: GPTNeoXForCausalLM | HookedTransformerConfig,
        tokenizer: ForeignTokenizer | None = None,
        *,
        default_prepend_bos: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
    ) -> None:
        """The door to ``model``, whose weights it shares.

        Args:
            model: a language model, or the configuration of a new one.
            tokenizer: of a new model.
            default_prepend_bos: put the beginning-of-text token before texts.
            checkpoint_index: for ``cfg``.
            checkpoint_value: for ``cfg``.

        Raises:
            InputError: no language model of this package.
        """
        given = model
        if isinstance(model, HookedTransformerConfig):
            model = model.new_model()
            model.tokenizer = None if tokenizer is None else tokenizer_from_transformers(tokenizer)
        if not isinstance(model, GPTNeoXForCausalLM):
            raise InputError(
                f"model is {shown(model, 60)}; expected a GPTNeoXForCausalLM, as nl.load(name) "
                "returns it, or HookedTransformer.from_pretrained(name)."
            )
        self.native = model
        self.cfg = (
            given
            if isinstance(given, HookedTransformerConfig)
            else HookedTransformerConfig(
                model,
                default_prepend_bos=default_prepend_bos,
                checkpoint_index=checkpoint_index,
                checkpoint_value=checkpoint_value,
            )
        )
        self.hook_dict = {name: HookPoint(name) for name in model.hook_names}
        self._tokenizer = model.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | None = None,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        *,
        fold_value_biases: bool = True,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: ForeignModel | GPTNeoXForCausalLM | None = None,
        device: str | torch.device | None = None,
        tokenizer: ForeignTokenizer | None = None,
        default_prepend_bos: bool = False,
        default_padding_side: Side | None = None,
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        **others: object,
    ) -> Self:
        """A model with processed weights.

        Args:
            model_name: ``"pythia-70m"``, a name on the hub, a folder; None for the built-in model.
            fold_ln: see ``nl.folded``, as for the next two and ``fold_value_biases``.
            center_writing_weights: what is written has a mean of zero over d_model.
            center_unembed: the unembedding has a mean of zero over the vocabulary.
            fold_value_biases: ``b_V`` moves into ``b_O``.
            checkpoint_index: which of Pythia's 154 checkpoints.
            checkpoint_value: the checkpoint after this many steps.
            hf_model: a model in memory, of transformers or of this package, instead of files.
            device: where to; None for the CPU.
            tokenizer: None for the one beside the weights.
            default_prepend_bos: put the beginning-of-text token before texts.
            default_padding_side: None leaves the tokenizer's.
            dtype: of the weights.
            revision: branch or commit on the hub.
            others: arguments of TransformerLens's that mean nothing here, such as ``n_devices``.

        Raises:
            ConfigError: both kinds of checkpoint, one that does not exist, or unknown arguments.
        """
        refuse_unknown(others)
        step = checkpoint_step(checkpoint_index, checkpoint_value)
        if step is not None:
            revision = f"step{step}"
        native = native_model(model_name, hf_model, tokenizer, device, dtype, revision)
        model = cls(
            native,
            default_prepend_bos=default_prepend_bos,
            checkpoint_index=checkpoint_index,
            checkpoint_value=step,
        )
        model.process_weights_(fold_ln, center_writing_weights, center_unembed, fold_value_biases)
        if default_padding_side is not None:
            model.set_tokenizer(model.tokenizer, default_padding_side)
        return model

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str | None = None, **arguments: Any) -> Self:
        """``from_pretrained`` with the weights as they are in the files.

        Args:
            model_name: see ``from_pretrained``.
            arguments: its other arguments.
        """
        return cls.from_pretrained(
            model_name, False, False, False, fold_value_biases=False, **arguments
        )

    boot_transformers = from_pretrained_no_processing

    def __getattr__(self, name: str) -> Any:
        """What this class does not define: a hook point, or what the model has."""
        if name.startswith("__") or "hook_dict" not in self.__dict__:
            raise AttributeError(name)
        if name in self.hook_dict:
            return self.hook_dict[name]
        there = getattr(self.native, name)
        return _returning(self, there) if name in _RETURNS_SELF else there

    def __dir__(self) -> list[str]:
        """The names of this class and of the model, for completion."""
        return sorted({*super().__dir__(), *dir(self.native)})

    def __repr__(self) -> str:
        """The model as a tree of its hook points."""
        return f"HookedTransformer of {self.native!r}"

    @property
    def tokenizer(self) -> GPTNeoXTokenizerFast:
        """From text to ids and back; one without a padding token pads with the end-of-text token.

        Raises:
            TokenizerError: the model has none.
        """
        if self._tokenizer is None or self._tokenizer.pad_token is None:
            self.set_tokenizer(tokenizer_of(self.native))
        assert self._tokenizer is not None
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: GPTNeoXTokenizerFast) -> None:
        self.set_tokenizer(tokenizer)

    def set_tokenizer(
        self, tokenizer: GPTNeoXTokenizerFast, default_padding_side: Side | None = None
    ) -> None:
        """Use a tokenizer; it is copied where it has to be changed.

        Args:
            tokenizer: of this package.
            default_padding_side: None leaves the tokenizer's own.
        """
        if tokenizer.pad_token is None or default_padding_side is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            tokenizer.padding_side = default_padding_side or tokenizer.padding_side
        self._tokenizer = tokenizer

    @property
    def blocks(self) -> list[Block]:
        """The layers."""
        return [Block(self, layer, weights) for layer, weights in enumerate(self.native.blocks)]

    @property
    def embed(self) -> Embed:
        """Looking up tokens."""
        return Embed(self, "embed")

    @property
    def ln_final(self) -> LayerNorm:
        """The final layer norm."""
        return LayerNorm(self, "ln_final", self.native.backbone.final_layer_norm)

    @property
    def unembed(self) -> Unembed:
        """From the residual stream to logits."""
        return Unembed(self, "unembed")

    @property
    def QK(self) -> FactoredMatrix:  # noqa: N802
        """What heads look for, ``[layer, head, d_model, d_model]``."""
        return FactoredMatrix(*self.native.QK.pair)

    @property
    def OV(self) -> FactoredMatrix:  # noqa: N802
        """What heads move, ``[layer, head, d_model, d_model]``."""
        return FactoredMatrix(*self.native.OV.pair)

    @property
    def all_head_labels(self) -> HeadLabels:
        """``["L0H0", "L0H1", ..]``; also answers to being called, as it was a method once."""
        return HeadLabels(self.native.all_head_labels)

    @property
    def attn_head_labels(self) -> list[str]:
        """``all_head_labels``: every layer has attention."""
        return self.native.all_head_labels

    def tl_parameters(self) -> dict[str, Tensor]:
        """``named_parameters`` as a dict."""
        return dict(self.named_parameters())

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
    ) -> None:
        """Go on with a model of processed weights, see ``nl.folded``; ``native`` is a new model.

        Args:
            fold_ln: see ``nl.folded``, as for the rest.
            center_writing_weights: what is written has a mean of zero over d_model.
            center_unembed: the unembedding has a mean of zero over the vocabulary.
            fold_value_biases: ``b_V`` moves into ``b_O``.
        """
        if not (fold_ln or center_writing_weights or center_unembed or fold_value_biases):
            return
        self.native = folded(
            self.native,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
        ).as_model()
        self.cfg.follow(self.native, folded=fold_ln)

    def enable_compatibility_mode(
        self,
        disable_warnings: bool = False,
        no_processing: bool = False,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
    ) -> None:
        """``process_weights_``, unless ``no_processing``; names are as they were either way.

        Args:
            disable_warnings: has no meaning, for there are none.
            no_processing: leave the weights as they are.
            fold_ln: see ``process_weights_``, as for the rest.
            center_writing_weights: likewise.
            center_unembed: likewise.
            fold_value_biases: likewise.
        """
        if not no_processing:
            self.process_weights_(
                fold_ln, center_writing_weights, center_unembed, fold_value_biases
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Every weight by TransformerLens's name of it; ``native.state_dict()`` has ours."""
        return state.state_dict(self)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by TransformerLens's name of it, most of them parts of a larger one.

        ``requires_grad`` and ``grad`` are with the whole ones, ``native.named_parameters()``.
        """
        return iter(state.named_weights(self).items())

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True) -> None:
        """Write weights into the model's own; see ``state_dict`` for their names.

        Args:
            state_dict: weights by name.
            strict: refuse unknown and missing names.

        Raises:
            CheckpointError: they do not fit; nothing is written then.
        """
        state.load_state_dict(self, state_dict, strict)

    def load_and_process_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
    ) -> None:
        """``load_state_dict``, then ``process_weights_``.

        Args:
            state_dict: weights by name; those that are missing stay.
            fold_ln: see ``process_weights_``, as for the rest.
            center_writing_weights: likewise.
            center_unembed: likewise.
            fold_value_biases: likewise.

        Raises:
            CheckpointError: they do not fit; nothing is written then.
        """
        self.load_state_dict(state_dict, strict=False)
        self.process_weights_(fold_ln, center_writing_weights, center_unembed, fold_value_biases)

    def to(
        self, device_or_dtype: torch.device | torch.dtype | str | int, print_details: bool = True
    ) -> Self:
        """Move or convert the weights by ``device_or_dtype``; ``print_details`` has no meaning."""
        self.native.to(device_or_dtype)
        return self

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Set the switch; ``hook_result`` is always there."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Set the switch; ``hook_q_input`` and its like are always there."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Set the switch; ``hook_attn_in`` is always there."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Set the switch; ``hook_mlp_in`` is always there."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in


class HeadLabels(list[str]):
    """Labels, which calling returns, too."""

    def __call__(self) -> list[str]:
        """The labels."""
        return list(self)


TransformerBridge = HookedTransformer
"""The name of TransformerLens 4 for what was a ``HookedTransformer``."""


def _returning(answer: HookedTransformer, method: Callable[..., object]) -> Callable[..., object]:
    """``method``, which returns ``answer`` instead of the model it changed."""

    def call(*args: object, **kwargs: object) -> HookedTransformer:
        method(*args, **kwargs)
        return answer

    return call
