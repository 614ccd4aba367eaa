"""What all five classes share: configuration, hooks, text helpers, loading, and small services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from neox_lab.checks import COUNT, check, listed_texts
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family import tree
from neox_lab.family.embeddings import Embeddings
from neox_lab.family.hooked import Hooked
from neox_lab.family.pretrained import Pretrained
from neox_lab.family.recomputing import Recomputes
from neox_lab.family.text import Inputs, TextHelpers
from neox_lab.family.weights import WeightViews
from neox_lab.hooks.hooking import HookStack
from neox_lab.hooks.table import hook_points
from neox_lab.kinship import Kin
from neox_lab.model.network import Network
from neox_lab.other_dictionary_names import WITH_DICTIONARIES
from neox_lab.other_names import MODEL, ours
from neox_lab.streaming import devices_of, refuse_loading, refuse_moves, refuse_training

if TYPE_CHECKING:
    from neox_lab.streaming.plan import MemoryPlan


class GPTNeoXPreTrainedModel(
    Kin, TextHelpers, Hooked, WeightViews, Embeddings, Recomputes, Pretrained
):
    """Base of the five classes; not used by itself.

    A subclass builds its modules under Hugging Face's names and then calls ``_set_up``.
    """

    kin_module: ClassVar[str] = "transformers.modeling_utils"
    kin_name: ClassVar[str | None] = "PreTrainedModel"
    config_class: ClassVar[type[GPTNeoXConfig]] = GPTNeoXConfig
    base_model_prefix: ClassVar[str] = "gpt_neox"
    main_input_name: ClassVar[str] = "input_ids"
    input_modalities: ClassVar[str] = "text"
    model_tags: ClassVar[list[str] | None] = None
    head: ClassVar[str]

    # What libraries around transformers ask of a class: how it may be split over devices, which
    # attention it has, which weights are special.
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa: ClassVar[bool] = True
    _supports_attention_backend: ClassVar[bool] = True
    _supports_flash_attn: ClassVar[bool] = False
    _supports_flex_attn: ClassVar[bool] = False
    _can_compile_fullgraph: ClassVar[bool] = True
    _is_stateful: ClassVar[bool] = False
    _can_record_outputs: ClassVar[None] = None
    _keep_in_fp32_modules: ClassVar[set[str]] = set()
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = set()
    _keys_to_ignore_on_load_missing: ClassVar[None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[None] = None
    _tied_weights_keys: ClassVar[dict[str, str] | None] = None

    config: GPTNeoXConfig
    name_or_path: str
    revision: str | None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """``forward``, with hooks; a text, or a list of texts, may stand for the token ids.

        Args:
            arguments: as ``forward`` takes them. A text becomes ids, and several are padded and
                masked, as ``run_with_cache`` does it.
            named: of ``forward``.

        Returns:
            What ``forward`` returns.

        Raises:
            InputError: no text and no tensor, or an empty text.
            TokenizerError: a text, and the model has no tokenizer.
        """
        first = listed_texts(arguments[0]) if arguments else None
        if isinstance(first, str | list | tuple):
            prepared = self.prepare_inputs(first)  # type: ignore[arg-type]
            arguments = (prepared.pop("input_ids"), *arguments[1:])
            named = prepared | named
        return super().__call__(*arguments, **named)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """A module, parameter or buffer; called where an object has no such attribute itself.

        Raises:
            AttributeError: there is none; what other libraries call otherwise is told.
        """
        modules = self.__dict__.get("_modules", {})
        if name in modules:  # every forward pass comes here
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not (hint := ours(name, MODEL, WITH_DICTIONARIES)):
                raise
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.{hint}")

    def _set_up(self, config: GPTNeoXConfig) -> None:
        """Finish construction: configuration, hooks, initial weights, tied weights."""
        self.config = config
        self.name_or_path = config.name_or_path
        self.revision = None  # the commit, for a model from the hub
        self.tokenizer = None
        self.own_hook_points = hook_points(config, self.head)
        self.hook_stack = HookStack([])
        backbone = self.backbone
        if isinstance(backbone, Hooked):
            # One stack, so that hooks also fire when the backbone is called by itself.
            backbone.hook_stack = self.hook_stack
        self.init_weights()
        self._recompute_if_configured()

    def init_weights(self) -> None:
        """Draw all weights anew, and tie them if the configuration asks for it."""
        if next(self.parameters()).device.type != "meta":
            self.apply(self._init_weights)
        self.tie_weights()

    def post_init(self) -> None:
        """What classes derived in transformers' way call at the end of their construction.

        Everything has been done by then but tying; weights that a model has are not drawn again.
        """
        self.tie_weights()

    def _recompute_if_configured(self) -> None:
        """Obey ``gradient_checkpointing`` of a configuration, which is used up by that."""
        if self.config.to_dict().get("gradient_checkpointing"):
            self.activation_checkpointing_enable()
            del self.config.gradient_checkpointing

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

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode.

        Raises:
            TrainingError: training, and layers of this model are read from their files.
        """
        if mode:
            refuse_training(self)
        return super().train(mode)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights by name, as ``nn.Module`` does.

        Raises:
            DeviceError: some are of layers that are read from their files.
            RuntimeError: see ``nn.Module``.
        """
        refuse_loading(self, state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What .to(), .half(), .cuda() and the like come down to.
        refuse_moves(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (network := self.backbone).devices is not None:
            network.devices = devices_of(network)
        return self

    def tie_weights(self) -> None:
        """Share input and output embeddings if the configuration asks for it."""

    def __repr__(self) -> str:
        """The model as a tree of its hook points."""
        return tree.as_text(self)

    def _repr_html_(self) -> str:
        return tree.as_html(self)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return False

    @classmethod
    def is_remote_code(cls) -> bool:
        """False: no code comes from the hub."""
        return False

    @classmethod
    def is_custom_code(cls) -> bool:
        """True: transformers' renamings of weights are not for this class."""
        return True

    def get_decoder(self) -> Network:
        """The network below the head: the whole model is a decoder."""
        return self.backbone

    @property
    def device(self) -> torch.device:
        """Where the first parameter is, or, if accelerate holds it elsewhere, where it runs."""
        place = next(self.parameters()).device
        if place.type == "meta":
            hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
            lent = (getattr(hook, "execution_device", None) for hook in hooks)
            return next((torch.device(device) for device in lent if device is not None), place)
        return place

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first parameter."""
        return next(self.parameters()).dtype

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

    def memory_plan(
        self,
        read_rate: float | None = None,
        *,
        prompts: Inputs | None = None,
        new_tokens: int = 1,
    ) -> MemoryPlan:
        """What lives where, what a pass reads from files, and what questions cost.

        Args:
            read_rate: bytes a second that the disk brings; None measures it, on one layer if none
                was read yet (what the system keeps in memory of the file comes faster).
            prompts: a string, a list of strings, or token ids ``[batch, pos]``: what a cache, a
                sweep or generating takes beside the weights, for these. Nothing is run.
            new_tokens: how many tokens are to be generated, each with a pass.

        Returns:
            A small table: ``.frame`` has the parts of the model, ``.questions`` their passes.

        Raises:
            InputError: a rate that is no number above 0, no prompts, or no number of tokens.
            CheckpointError: a layer that is read to measure the rate cannot be.
        """
        from neox_lab.streaming.plan import Asked, memory_plan

        about = Asked(new_tokens=check("new_tokens", new_tokens, COUNT, InputError))
        if prompts is not None:
            batch, pos = self.prepare_inputs(prompts)["input_ids"].shape
            about = about._replace(batch=batch, pos=pos, cache=self.cache_size(prompts))
        return memory_plan(self, read_rate, about)

    @classmethod
    def can_generate(cls) -> bool:
        """True for the class that has ``generate``."""
        return False

    @staticmethod
    def count_targets(batch: Mapping[str, Tensor]) -> int:
        """Over how many targets the loss of a batch is a mean: one a text, unless a class differs.

        Args:
            batch: arguments of ``forward``, targets included.
        """
        return len(batch["input_ids"])

    def training_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss that training minimises: ``forward``'s own, unless that counts padding.

        Args:
            batch: arguments of ``forward``, targets included.
        """
        loss: Tensor = self(**batch).loss
        return loss
