"""What other libraries call things that have another name here: for messages.

Who asks a model, a cache, an output or a call for something that only TransformerLens has is told
what it is here, beside the door behind which it has its own name:

    model.cfg
    # AttributeError: GPTNeoXForCausalLM has no attribute 'cfg'. TransformerLens's cfg is
    # model.config here; nl.compat.transformer_lens(model) has it by that name.

Likewise of the libraries of dictionaries, which have no such door:

    nl.sae.SAE
    # AttributeError: module 'neox_lab.sae' has no attribute 'SAE'. SAELens's SAE is
    # nl.sae.load(source) here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class Names(dict[str, str]):
    """What a library calls things: what each is here, as code or in words that say so.

    Attributes:
        library: whose names these are.
        door: where here they have these names; empty where nowhere.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        library: str = "TransformerLens",
        door: str = "nl.compat.transformer_lens(model)",
    ) -> None:
        """See the class."""
        super().__init__(names)
        self.library, self.door = library, door


_HOOKS = "model.hooks([(name, function)])"
_FOLDED = "nl.folded(model)"
_LOSS = "model(tokens, labels=tokens).loss"
_KEPT = "model.run_with_cache(text, names_filter=name)"
_ALWAYS_THERE = "needless here: model.hook_names are all there, without a switch"
ENDS_BY_ITSELF = "needless here: hooks end with the with block or the call that places them"
_NO_POSITIONS = "nothing here: GPT-NeoX rotates queries and keys, it has no position embeddings"
_NOTHING_IN_FRONT = "model.tokenizer.bos_token + text here: no token is put in front by itself"

MODEL = Names(
    {
        "cfg": "model.config",
        "add_hook": _HOOKS,
        "add_perma_hook": _HOOKS,
        "reset_hooks": ENDS_BY_ITSELF,
        "remove_all_hook_fns": ENDS_BY_ITSELF,
        "clear_contexts": ENDS_BY_ITSELF,
        "hook_dict": "model.hook_points",
        "get_hook_point": "model.hook_points[name]",
        "list_hooks": "model.hook_names",
        "mod_dict": "dict(model.named_modules())",
        "get_caching_hooks": _KEPT,
        "add_caching_hooks": _KEPT,
        "cache_all": _KEPT,
        "cache_some": _KEPT,
        "set_use_attn_result": _ALWAYS_THERE,
        "set_use_split_qkv_input": _ALWAYS_THERE,
        "set_use_attn_in": _ALWAYS_THERE,
        "set_use_hook_mlp_in": _ALWAYS_THERE,
        "embed": "model.backbone.embed_in",
        "unembed": "model.output_head",
        "ln_final": "model.backbone.final_layer_norm",
        "W_pos": _NO_POSITIONS,
        "W_E_pos": _NO_POSITIONS,
        "pos_embed": _NO_POSITIONS,
        "input_to_embed": "model.run_with_cache(text, 'embed', stop_at_layer=0)",
        "loss_fn": _LOSS,
        "tokens_to_residual_directions": "model.W_U[:, token]",
        "to_single_str_token": "model.to_string(token)",
        "get_token_position": "model.to_str_tokens(text).index(piece)",
        "process_weights": _FOLDED,
        "process_weights_": _FOLDED,
        "enable_compatibility_mode": _FOLDED,
        "generate_stream": "model.stream(text, max_new_tokens=2)",
        "load_and_process_state_dict": "model.load_state_dict(weights)",
        "set_tokenizer": "model.tokenizer = tokenizer",
        "n_params_total": "model.num_parameters()",
        "tl_parameters": "dict(model.named_parameters())",
        "get_params": "model.blocks",
        "hook_embed": "model.hook_points['hook_embed']",
    }
)
"""Of a model: what it is here."""

_PART = "model.blocks[layer].block"

BLOCK = Names(
    {
        "attn": f"{_PART}.attention, whose weights are model.blocks[layer].W_Q and so on",
        "mlp": f"{_PART}.mlp, whose weights are model.blocks[layer].W_in and so on",
        "ln1": f"{_PART}.input_layernorm",
        "ln2": f"{_PART}.post_attention_layernorm",
    }
    | {
        hook: f"model.hook_points[f'blocks.{{layer}}.{hook}']"
        for hook in (
            "hook_resid_pre",
            "hook_resid_post",
            "hook_attn_in",
            "hook_attn_out",
            "hook_mlp_in",
            "hook_mlp_out",
            "hook_q_input",
            "hook_k_input",
            "hook_v_input",
        )
    }
)
"""Of one of ``model.blocks``."""

CACHE = Names(
    {
        "cache_dict": "dict(cache)",
        "toggle_autodiff": "model.run_with_cache(text, incl_bwd=function)",
        "logit_lens": "nl.lens.logit_lens(model, text)",
    }
)
"""Of a cache."""

CONFIG = Names(
    {
        "n_layers": "model.config.num_hidden_layers",
        "d_model": "model.config.hidden_size",
        "n_heads": "model.config.num_attention_heads",
        "d_head": "model.config.head_size",
        "d_mlp": "model.config.intermediate_size",
        "d_vocab": "model.config.vocab_size",
        "d_vocab_out": "model.config.vocab_size",
        "n_ctx": "model.config.max_position_embeddings",
        "act_fn": "model.config.hidden_act",
        "eps": "model.config.layer_norm_eps",
        "parallel_attn_mlp": "model.config.use_parallel_residual",
        "rotary_dim": "model.config.rotary_ndims",
        "rotary_base": "model.config.rotary_emb_base",
        "model_name": "model.config.name_or_path",
        "device": "model.device",
        "n_params": "model.num_parameters()",
        "default_prepend_bos": _NOTHING_IN_FRONT,
    }
)
"""Of a configuration."""

HOOK = Names({"ctx": "a dictionary of your own here, outside the hook"})
"""Of the hook point that a hook is called with."""

PACKAGE = Names(
    {
        "HookedTransformer": "nl.load(name)",
        "TransformerBridge": "nl.load(name)",
        "HookedTransformerConfig": "nl.GPTNeoXConfig",
        "TransformerBridgeConfig": "nl.GPTNeoXConfig",
        "TransformerLensKeyValueCache": "model(tokens, use_cache=True).past_key_values",
        "HookedTransformerKeyValueCache": "model(tokens, use_cache=True).past_key_values",
        "head_detector": "nl.detect.heads(model, 'induction')",
        "evals": "nl.gym.evaluate(model)",
        "utils": (
            "methods of model, such as model.to_str_tokens(text), and for get_act_name('v', 1) "
            "the pair ('v', 1)"
        ),
        "get_act_name": "the pair ('v', 1), wherever a name is asked for",
        "detect_head": "nl.detect.heads(model, 'previous_token', text)",
        "test_prompt": "nl.lens.logit_lens(model, text)",
        "ioi_dataset": "nl.gym.TASKS['ioi']",
    }
)
"""Of the package."""

ARGUMENTS = Names(
    {
        "return_type": "output.logits, or output.loss of model(tokens, labels=tokens)",
        "loss_per_token": (
            "-model(tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]"
        ),
        "prepend_bos": _NOTHING_IN_FRONT,
        "default_prepend_bos": _NOTHING_IN_FRONT,
        "padding_side": "model.tokenizer.padding_side = 'left'",
        "default_padding_side": "model.tokenizer.padding_side = 'left'",
        "truncate": "model.tokenizer(text, truncation=True)",
        "move_to_device": "needless here: ids are where the model is",
        "input": "the first argument, inputs",
        "past_kv_cache": "past_key_values=",
        "use_past_kv_cache": "use_cache=",
        "tokens": "input_ids=",
        "remove_batch_dim": "cache.remove_batch_dim()",
        "return_cache_object": "dict(cache)",
        "reset_hooks": ENDS_BY_ITSELF,
        "reset_hooks_start": ENDS_BY_ITSELF,
        "reset_hooks_end": ENDS_BY_ITSELF,
        "clear_contexts": ENDS_BY_ITSELF,
        "fold_ln": _FOLDED,
        "fold_value_biases": _FOLDED,
        "center_writing_weights": _FOLDED,
        "center_unembed": _FOLDED,
        "refactor_factored_attn_matrices": "model.QK and model.OV, which are factored",
        "checkpoint_index": "revision='step3000'",
        "checkpoint_value": "revision='step3000'",
        "hf_model": "nl.from_transformers(model, tokenizer)",
        "tokenizer": "model.tokenizer = tokenizer",
        "first_n_layers": "stop_at_layer=",
        "stop_at_eos": "eos_token_id=, None for a text that goes on",
        "freq_penalty": "frequency_penalty=",
        "verbose": "needless here: nothing is printed",
    }
)
"""Of calls."""


_SCALES = ("strength", "alpha", "coefficient", "factor")
_ONE_SITE = "site=('resid_post', layer)"

STEERED = (
    Names(
        {"coeff": "scale=", "operator": "mode=", "normalize": "mode='norm-preserving'"},
        "repeng",
        "",
    ),
    Names(
        {
            "multiplier": "scale=",
            "token_indices": "positions=",
            "min_token_index": "positions=slice(index, None)",
        },
        "steering-vectors",
        "",
    ),
    Names(
        dict.fromkeys(_SCALES, "scale=")
        | dict.fromkeys(("layer", "layers"), "direction.at(('resid_post', layer))")
        | dict.fromkeys(("pos", "position"), "positions="),
        "Another tool",
        "",
    ),
)
"""Of calls that steer."""

DIRECTIONS = (
    Names(
        {
            "dataset": "the arguments positive and negative",
            "hidden_layers": "site=, such as [('resid_post', 1), ('resid_post', 2)]",
            "max_batch_size": "batch_size=",
        },
        "repeng",
        "",
    ),
    Names(
        {
            "training_samples": "the argument positive, pairs of texts",
            "layer_type": "site='resid_post', 'attn_out' or 'mlp_out'",
            "read_token_index": "positions=",
            "aggregator": "method=",
        },
        "steering-vectors",
        "",
    ),
    Names(
        {"layer": _ONE_SITE, "layers": "site=[('resid_post', 1), ('resid_post', 2)]"}
        | dict.fromkeys(("pos", "position"), "positions=")
        | {"hook": "site=", "hook_name": "site="},
        "Another tool",
        "",
    ),
)
"""Of calls that find a direction."""

INTERCHANGED = (
    Names({"low_rank_dimension": "rank="}, "pyvene", ""),
    Names(
        dict.fromkeys(("k", "dim", "n_directions", "top"), "rank=")
        | {"lr": "learning_rate=", "n_epochs": "epochs=", "num_epochs": "epochs="}
        | dict.fromkeys(("layer", "pos", "position"), "site=Site(('resid_post', layer), pos=-1)"),
        "Another tool",
        "",
    ),
)
"""Of calls that look for a subspace."""


def ours(name: str, *tables: Names) -> str:
    """A sentence saying what is here what another library calls ``name``; empty if nothing is.

    Args:
        name: what was asked for.
        tables: some of the tables above; the first that has it counts.
    """
    for table in tables:
        if name in table:
            here = "" if " here" in table[name] else " here"
            door = f"; {table.door} has it by that name" if table.door else ""
            return f" {table.library}'s {name} is {table[name]}{here}{door}."
    return ""


def refuse(
    call: str,
    names: Iterable[str],
    known: Iterable[str] = (),
    tables: Sequence[Names] = (ARGUMENTS,),
) -> None:
    """Refuse arguments that only another library has, and say what they are here.

    Args:
        call: what was called.
        names: of the arguments given.
        known: names that the call has.
        tables: of the other libraries.

    Raises:
        TypeError: one of them is in a table, and not known.
    """
    for name in names:
        if name not in known and (meant := ours(name, *tables)):
            raise TypeError(f"{call}() has no argument {name!r}.{meant}")


class names_ours_of:  # noqa: N801  (a decorator)
    """Decorator: the function answers to arguments that only other libraries have with ours."""

    def __init__(self, *tables: Names) -> None:
        """The tables of these libraries."""
        self.tables = tables

    def __call__(self, function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        """The function, which refuses them."""
        known = frozenset(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            refuse(function.__name__, kwargs, known, self.tables)
            return function(*args, **kwargs)

        return call


names_ours = names_ours_of(ARGUMENTS)
"""Decorator: the function answers to arguments that only TransformerLens has with ours."""
