"""The same calls and the same numbers as TransformerLens 4.3, on one checkpoint.

Needs transformer_lens (``pip install neox_lab[bench]``); skipped without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import pair
from torch import Tensor

from neox_lab.compat.transformer_lens import HookedTransformer
from neox_lab.compat.transformer_lens.module_names import earlier_name

bridges = pytest.importorskip(
    "transformer_lens.model_bridge", reason="needs transformer_lens, which is not installed"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]

TEXT = "The cat sat on the mat. When Mary"
TEXTS = ["The cat sat", "When Mary and John went to the store"]
FLAGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
WEIGHTS = "W_E W_U b_U W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out".split()

Boot = Callable[[], Any]


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def checkpoint(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Boot]]:
    """A folder with a model and a tokenizer, and a function that boots a fresh bridge on it."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    theirs, _ = pair(vocab_size=50304, use_parallel_residual=request.param)
    theirs.save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    file = str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, pad_token="<|padding|>", **special
    ).save_pretrained(folder)

    def boot() -> Any:
        return bridges.TransformerBridge.boot_transformers(
            folder, device="cpu", dtype=torch.float32
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield folder, boot


@pytest.fixture(scope="module")
def models(checkpoint: tuple[str, Boot]) -> tuple[HookedTransformer, Any]:
    """Ours and theirs, with the weights as they are in the files."""
    folder, boot = checkpoint
    return HookedTransformer.boot_transformers(folder), boot()


def same(ours: Any, theirs: Any) -> None:
    """Assert that two answers are equal: tensors to 1e-4, anything else exactly."""
    assert isinstance(ours, tuple) == isinstance(theirs, tuple)
    if isinstance(ours, tuple):
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(ours, Tensor) and ours.is_floating_point():
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-4)
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"return_type": None},
    {"return_type": "loss"},
    {"return_type": "both"},
    {"return_type": "loss", "loss_per_token": True},
    {"prepend_bos": True},
    {"padding_side": "left"},
    {"padding_side": "left", "return_type": "loss"},
    {"stop_at_layer": 1},
    {"stop_at_layer": -1},
)


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_calls(models: tuple[HookedTransformer, Any], arguments: dict[str, Any]) -> None:
    ours, theirs = models
    for inputs in (TEXT, TEXTS, ours.to_tokens(TEXTS)):
        same(ours(inputs, **arguments), theirs(inputs, **arguments))


def test_text_helpers(models: tuple[HookedTransformer, Any]) -> None:
    def ask(model: Any) -> Iterator[Any]:
        for text in (TEXT, TEXTS):
            for prepend in (None, True, False):
                for side in ("left", "right"):
                    yield model.to_tokens(text, prepend_bos=prepend, padding_side=side)
                yield model.to_str_tokens(text, prepend_bos=prepend)
            yield model.to_string(model.to_tokens(text))
        yield model.to_str_tokens("naïve …")
        yield model.to_single_token(" cat")
        yield model.to_single_str_token(300)
        yield model.get_token_position(" sat", TEXT)
        yield model.get_token_position(" sat", model.to_tokens(TEXT), mode="last")
        yield model.tokens_to_residual_directions(" cat")
        yield model.tokens_to_residual_directions(model.to_tokens(TEXTS))
        yield model.tokens_to_residual_directions(model.to_tokens(" cat"))
        yield list(model.all_head_labels)

    ours, theirs = models
    for mine, other in zip(ask(ours), ask(theirs), strict=True):
        same(mine, other)


GENERATIONS: tuple[dict[str, Any], ...] = (
    {"do_sample": False},
    {"top_k": 5},
    {"top_p": 0.5, "freq_penalty": 1.0},
    {"temperature": 0.7, "freq_penalty": 0.5},
    {"return_type": "tokens"},
    {"stop_at_eos": False, "prepend_bos": True},
)


@pytest.mark.parametrize("arguments", GENERATIONS, ids=str)
def test_generation(models: tuple[HookedTransformer, Any], arguments: dict[str, Any]) -> None:
    for inputs in (TEXT, TEXTS, models[0].to_tokens(TEXT)):
        texts = []
        for model in models:
            torch.manual_seed(0)
            texts.append(model.generate(inputs, max_new_tokens=6, verbose=False, **arguments))
        same(*texts)


@pytest.mark.parametrize(
    "off", [None, *(pytest.param(flag, marks=pytest.mark.slow) for flag in FLAGS)]
)
def test_processed_weights(checkpoint: tuple[str, Boot], off: str | None) -> None:
    folder, boot = checkpoint
    flags = {flag: flag != off for flag in FLAGS}
    ours, theirs = HookedTransformer.from_pretrained(folder, **flags), boot()
    theirs.enable_compatibility_mode(disable_warnings=True, **flags)
    for name in WEIGHTS:
        same(getattr(ours, name), getattr(theirs, name))
    with torch.no_grad():
        (logits, cache), (other, their_cache) = (m.run_with_cache(TEXT) for m in (ours, theirs))
    same(logits, other)
    for name in set(cache) & set(their_cache.cache_dict):
        if not name.endswith("scores"):
            same(cache[name], their_cache[name])


CACHES: tuple[dict[str, Any], ...] = (
    {},
    {"names_filter": "blocks.1.attn.hook_z"},
    {"names_filter": ["hook_embed", "blocks.0.mlp.hook_post"], "remove_batch_dim": True},
    {"names_filter": lambda name: name.endswith(("hook_resid_pre", "hook_q", "hook_pattern"))},
    {"pos_slice": -1},
    {"pos_slice": (1, 4)},
    {"pos_slice": [0, 2]},
    {"stop_at_layer": 2, "device": "cpu"},
    {"return_type": "loss", "incl_bwd": True},
    {"prepend_bos": True, "remove_batch_dim": True, "return_type": None},
)


@pytest.mark.parametrize("arguments", CACHES, ids=lambda a: "+".join(a) or "all")
def test_caches(models: tuple[HookedTransformer, Any], arguments: dict[str, Any]) -> None:
    ours, theirs = models
    answer, cache = ours.run_with_cache(TEXT, **arguments)
    other, their_cache = theirs.run_with_cache(TEXT, **arguments)
    same(answer, other)
    shared_names = set(cache) & set(their_cache.cache_dict)
    plain = ours.run_with_cache(TEXT)[1]
    expected = {name.removesuffix("_grad") for name in their_cache.cache_dict} & set(plain)
    assert expected == {name.removesuffix("_grad") for name in shared_names}
    for name in shared_names:
        if name.endswith("scores") or (name.endswith("_grad") and "resid_mid" in name):
            continue  # masked with another number; their middle is the MLP's input alone
        same(cache[name], their_cache[name])


def test_hooks(models: tuple[HookedTransformer, Any]) -> None:
    def ask(model: Any) -> Iterator[Any]:
        names: list[str] = []

        def double(tensor: Tensor, hook: Any) -> Tensor:
            names.append(hook.name)
            return 2 * tensor

        def clear(tensor: Tensor, hook: Any) -> None:
            hook.ctx["layer"] = hook.layer()
            tensor[:, :, 1] = 0.0

        def is_mlp_out(name: str) -> bool:
            return name.endswith("hook_mlp_out")

        z = "blocks.1.attn.hook_z"
        yield model.run_with_hooks(TEXT, fwd_hooks=[(z, clear)])
        yield model.run_with_hooks(
            TEXT, return_type="loss", fwd_hooks=[(is_mlp_out, double), (z, clear)]
        )
        yield model.run_with_hooks(TEXT, fwd_hooks=[("blocks.0.attn.hook_pattern", double)])
        yield model(TEXT)
        model.add_hook("blocks.2.hook_resid_post", double)
        yield model(TEXT)
        with model.hooks(fwd_hooks=[("hook_embed", double)]):
            yield model(TEXTS)
            yield model.run_with_cache(TEXT, names_filter="blocks.1.hook_resid_pre")[1][
                "blocks.1.hook_resid_pre"
            ]
        model.reset_hooks()
        yield model(TEXT)
        model.add_perma_hook("blocks.0.hook_attn_out", double)
        model.reset_hooks()
        yield model(TEXT)
        model.reset_hooks(including_permanent=True)
        yield model(TEXT)
        yield len(names)

    ours, theirs = models
    with torch.no_grad():
        for mine, other in zip(ask(ours), ask(theirs), strict=True):
            same(mine, other)


def test_backward_hooks(models: tuple[HookedTransformer, Any]) -> None:
    found: list[dict[str, Tensor]] = []
    for model in models:
        found.append({})

        def keep(gradient: Tensor, hook: Any, kept: dict[str, Tensor] = found[-1]) -> None:
            kept[str(earlier_name(hook.name))] = gradient.clone()

        model.reset_hooks()
        for name in ("blocks.0.hook_resid_pre", "blocks.2.attn.hook_q", "blocks.1.mlp.hook_post"):
            model.add_hook(name, keep, "bwd")
        model(TEXT, return_type="loss").backward()
        model.reset_hooks()
    assert len(found[0]) == 3 and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        same(gradient, found[1][name])
