"""What TransformerLens calls things that have another name here: one table, for messages.

Who asks a model, a cache, an output or a call for something that only TransformerLens has is told
what it is here, beside the door behind which it has its own name:

    model.cfg
    # AttributeError: GPTNeoXForCausalLM has no attribute 'cfg'. TransformerLens's cfg is
    # model.config here; nl.compat.transformer_lens(model) has it by that name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_HOOKS = "model.hooks([(name, function)])"
_FOLDED = "nl.folded(model)"
_LOSS = "model(tokens, labels=tokens).loss"
_KEPT = "model.run_with_cache(text, names_filter=name)"
_ALWAYS_THERE = "needless here: model.hook_names are all there, without a switch"
_ENDS_BY_ITSELF = "needless here: hooks end with the with block or the call that places them"
_NO_POSITIONS = "nothing here: GPT-NeoX rotates queries and keys, it has no position embeddings"
_NOTHING_IN_FRONT = "model.tokenizer.bos_token + text here: no token is put in front by itself"

MODEL: dict[str, str] = {
    "cfg": "model.config",
    "add_hook": _HOOKS,
    "add_perma_hook": _HOOKS,
    "reset_hooks": _ENDS_BY_ITSELF,
    "remove_all_hook_fns": _ENDS_BY_ITSELF,
    "clear_contexts": _ENDS_BY_ITSELF,
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
}
"""Of a model: what it is here."""

CACHE: dict[str, str] = {
    "cache_dict": "dict(cache)",
    "toggle_autodiff": "model.run_with_cache(text, incl_bwd=function)",
    "logit_lens": "nl.lens.logit_lens(model, text)",
}
"""Of a cache."""

CONFIG: dict[str, str] = {
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
"""Of a configuration."""

HOOK: dict[str, str] = {"ctx": "a dictionary of your own here, outside the hook"}
"""Of the hook point that a hook is called with."""

PACKAGE: dict[str, str] = {
    "HookedTransformer": "nl.load(name)",
    "TransformerBridge": "nl.load(name)",
    "HookedTransformerConfig": "nl.GPTNeoXConfig",
    "TransformerBridgeConfig": "nl.GPTNeoXConfig",
    "TransformerLensKeyValueCache": "model(tokens, use_cache=True).past_key_values",
    "HookedTransformerKeyValueCache": "model(tokens, use_cache=True).past_key_values",
    "head_detector": "nl.detect.heads(model, 'induction')",
    "evals": "nl.gym.evaluate(model)",
    "utils": "methods of model, such as model.to_str_tokens(text)",
    "test_prompt": "nl.lens.logit_lens(model, text)",
    "ioi_dataset": "nl.gym.TASKS['ioi']",
}
"""Of the package."""

ARGUMENTS: dict[str, str] = {
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
    "reset_hooks": _ENDS_BY_ITSELF,
    "reset_hooks_start": _ENDS_BY_ITSELF,
    "reset_hooks_end": _ENDS_BY_ITSELF,
    "clear_contexts": _ENDS_BY_ITSELF,
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
"""Of calls."""


def ours(name: str, table: dict[str, str]) -> str:
    """A sentence saying what is here what TransformerLens calls ``name``; empty if nothing is.

    Args:
        name: what was asked for.
        table: one of the tables above.
    """
    if name not in table:
        return ""
    is_code = " here" not in table[name]
    return (
        f" TransformerLens's {name} is {table[name]}{' here' if is_code else ''}; "
        "nl.compat.transformer_lens(model) has it by that name."
    )


def refuse(call: str, names: Iterable[str], known: Iterable[str] = ()) -> None:
    """Refuse arguments that only TransformerLens has, and say what they are here.

    Args:
        call: what was called.
        names: of the arguments given.
        known: names that the call has.

    Raises:
        TypeError: one of them is in the table, and not known.
    """
    for name in names:
        if name in ARGUMENTS and name not in known:
            raise TypeError(f"{call}() has no argument {name!r}.{ours(name, ARGUMENTS)}")


def names_ours(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Decorator: the function answers to arguments that only TransformerLens has with ours."""
    signature = inspect.signature(function)
    known = frozenset(signature.parameters)

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        refuse(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return call
