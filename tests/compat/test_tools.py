"""TransformerLens's tools on our models: the same calls and the same numbers as in 4.3.

Needs transformer_lens (``pip install neox_lab[bench]``); skipped without it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from oracle import pair
from torch import Tensor

import neox_lab.compat.transformer_lens as ours_module
from neox_lab.compat.transformer_lens import ActivationCache, HookedTransformer
from neox_lab.errors import HookError, HookNameError, InputError

lens = pytest.importorskip(
    "transformer_lens", reason="needs transformer_lens, which is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and Anna went to the store, Anna gave a drink to"
LAYERS, HEADS = 3, 4


def ask(module: str) -> tuple[Any, Any]:
    """A tool of ours and of theirs."""
    name = {"utils": "utilities"}.get(module, module)
    mine = importlib.import_module(f"neox_lab.compat.transformer_lens.{module}")
    return mine, importlib.import_module(f"transformer_lens.{name}")


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HookedTransformer, Any]]:
    """Ours and theirs, both with processed weights."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    pair(vocab_size=50304, use_parallel_residual=request.param)[0].save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    file = str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=file, pad_token="<|padding|>", **special
    ).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        theirs = lens.TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
        theirs.enable_compatibility_mode(disable_warnings=True)
        with torch.no_grad():
            yield HookedTransformer.from_pretrained(folder), theirs


@pytest.fixture
def caches(models: tuple[HookedTransformer, Any]) -> list[Any]:
    """Of a run on two texts."""
    return [model.run_with_cache(model.to_tokens([TEXT, OTHER]))[1] for model in models]


def same(mine: Any, other: Any, tolerance: float = 1e-4) -> None:
    """Assert that two answers are equal: tensors to 1e-4 of the largest number."""
    if isinstance(mine, tuple):
        assert len(mine) == len(other)
        for one, two in zip(mine, other, strict=True):
            same(one, two, tolerance)
    elif isinstance(mine, Tensor) and mine.is_floating_point():
        scale = float(other.detach().abs().max().clamp(min=1)) if other.numel() else 1.0
        torch.testing.assert_close(
            mine.detach(), other.detach(), rtol=0, atol=tolerance * scale, check_dtype=False
        )
    elif isinstance(mine, Tensor):
        assert torch.equal(mine, other)
    elif isinstance(mine, pd.DataFrame):
        pd.testing.assert_frame_equal(mine, other, check_dtype=False, atol=tolerance)
    else:
        assert mine == other


# --- the cache ------------------------------------------------------------------------------------

NAMES: tuple[Any, ...] = (
    ("resid_post", -1),
    ("resid_pre", 0),
    ("pattern", 1),
    ("pattern", 1, "attn"),
    ("attn", 1),
    ("scale", 2, "ln1"),
    ("normalized", 2, "ln2"),
    ("mlp_post", 0),
    ("attn_out", -2),
    ("q", 2),
    "embed",
    "scale",
    "k2",
    "scale1ln1",
    "pre0",
    "blocks.1.hook_mlp_out",
    "ln_final.hook_normalized",
)


@pytest.mark.parametrize("name", NAMES, ids=str)
def test_names(caches: list[Any], name: Any) -> None:
    same(caches[0][name], caches[1][name])
    assert name in caches[0]


STACKS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("accumulated_resid", (), {"layer": -1, "return_labels": True}),
    ("accumulated_resid", (), {"layer": 2, "pos_slice": -1, "apply_ln": True}),
    ("decompose_resid", (), {"layer": -1, "pos_slice": -1, "return_labels": True}),
    ("decompose_resid", (), {"mode": "attn", "incl_embeds": False, "apply_ln": True}),
    ("stack_head_results", (), {"layer": -1, "pos_slice": -1, "return_labels": True}),
    ("stack_head_results", (2,), {"incl_remainder": True, "apply_ln": True}),
    ("stack_neuron_results", (1,), {"pos_slice": -1, "return_labels": True}),
    ("get_full_resid_decomposition", (), {"expand_neurons": False, "return_labels": True}),
    ("get_neuron_results", (2,), {"neuron_slice": [1, 5], "pos_slice": -1}),
    ("stack_activation", ("pattern",), {}),
    ("stack_activation", ("scale", -1, "ln1"), {}),
)


@pytest.mark.parametrize("asked", STACKS, ids=lambda asked: f"{asked[0]}-{asked[2]}")
@pytest.mark.parametrize("rows", ["batch", "one row", "batch removed"])
def test_stacks(
    models: tuple[HookedTransformer, Any],
    asked: tuple[str, tuple[Any, ...], dict[str, Any]],
    rows: str,
) -> None:
    method, given, named = asked
    text = TEXT if rows == "batch removed" else [TEXT, OTHER]
    found = []
    for model in models:
        cache = model.run_with_cache(
            model.to_tokens(text), remove_batch_dim=rows == "batch removed"
        )[1]
        if rows == "one row":
            cache = cache.apply_slice_to_batch_dim(1)
        found.append(getattr(cache, method)(*given, **named))
    same(*found)


def test_logit_attributions(models: tuple[HookedTransformer, Any], caches: list[Any]) -> None:
    right, wrong = (
        models[0].to_tokens([f" {a}", f" {b}"])[:, 0]
        for a, b in (("Mary", "John"), ("John", "Anna"))
    )
    tokens = models[0].to_tokens([TEXT, OTHER])
    found: list[list[Tensor]] = [[], []]
    for answers, cache in zip(found, caches, strict=True):
        stack = cache.decompose_resid(pos_slice=-1)
        answers.append(cache.logit_attrs(stack, right, wrong, pos_slice=-1))
        answers.append(cache.logit_attrs(stack, " Mary", " John", pos_slice=-1))
        answers.append(cache.logit_attrs(cache.stack_head_results(), tokens))
        heads = cache.stack_head_results(pos_slice=-1)
        answers.append(cache.apply_ln_to_stack(heads, layer=-1, pos_slice=-1))
        one = stack[:, 1]
        answers.append(
            cache.logit_attrs(one, right[1], pos_slice=-1, batch_slice=1, has_batch_dim=False)
        )
        final = cache["resid_post", -1][:, -1]  # as every tutorial does
        answers.append(cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1))
    same(tuple(found[0]), tuple(found[1]))


def test_head_results_are_computed_once_asked(caches: list[Any]) -> None:
    for cache in caches:
        cache.compute_head_results()
    same(caches[0]["result", 1], caches[1]["result", 1])


def test_what_changes_a_cache(models: tuple[HookedTransformer, Any]) -> None:
    ours = models[0]
    cache = ours.run_with_cache(TEXT)[1]
    pattern = cache["pattern", 0]
    assert cache.remove_batch_dim() is cache
    assert not cache.has_batch_dim
    assert torch.equal(cache["pattern", 0], pattern[0])
    assert cache.to("cpu") is cache
    assert set(cache.keys()) == set(cache.cache_dict)
    assert len(cache) == len(list(cache)) == len(cache.values()) == len(cache.items())
    assert "blocks.0.attn.hook_pattern" in cache.cache_dict
    assert not any(name.endswith("hook_result") for name in cache.cache_dict)
    cache.cache_dict["mine"] = torch.ones(3)
    assert torch.equal(cache["mine"], torch.ones(3))
    back = pickle.loads(pickle.dumps(cache))
    assert isinstance(back, ActivationCache)
    assert not back.has_batch_dim
    assert torch.equal(back["pattern", 0], pattern[0])
    same(back.decompose_resid(), cache.decompose_resid())
    two = ours.run_with_cache([TEXT, OTHER])[1]
    with pytest.raises(HookError, match="2 rows"):
        two.remove_batch_dim()
    with pytest.raises(HookNameError):
        two["pattern", 7]
    assert ("pattern", 7) not in two
    try:
        two.toggle_autodiff(True)
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(False)


def test_caches_of_hooks_and_of_gradients(models: tuple[HookedTransformer, Any]) -> None:
    """What the notebook on attribution patching does."""
    model = models[0]
    kept: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = tensor.detach()

    def keep_gradient(tensor: Tensor, hook: Any) -> None:
        gradients[hook.name] = tensor.detach()

    def wanted(name: str) -> bool:
        return name.endswith(("hook_z", "hook_resid_pre", "hook_pattern", "hook_resid_post"))

    model.reset_hooks()
    model.add_hook(wanted, keep, "fwd")
    model.add_hook(wanted, keep_gradient, "bwd")
    tokens = model.to_tokens([TEXT, OTHER])
    with torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        logits = model(tokens)
        logits[:, -1, 300].sum().backward()
    model.reset_hooks()
    cache, slopes = ActivationCache(kept, model), ActivationCache(gradients, model)
    full = model.run_with_cache(tokens)[1]
    for name in (("z", 1), ("resid_pre", 2), ("pattern", 0)):
        same(cache[name], full[name])
    same(cache.accumulated_resid(), full.accumulated_resid())
    # a step along the last stream's gradient changes the logit by as much as it says
    step = 1e-3 * slopes["resid_post", -1]
    moved = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.2.hook_resid_post", lambda tensor, hook: tensor + step)]
    )
    change = (moved - logits)[:, -1, 300].sum()
    torch.testing.assert_close(
        change.detach(), (step * slopes["resid_post", -1]).sum(), rtol=0.05, atol=1e-4
    )


# --- matrices -------------------------------------------------------------------------------------


def test_factored_matrices(models: tuple[HookedTransformer, Any]) -> None:
    mine, other = (model.OV for model in models)
    for name in ("AB", "BA", "A", "B", "S", "shape", "ndim", "ldim", "rdim", "mdim", "pair"):
        same(getattr(mine, name), getattr(other, name))
    assert mine.has_leading_dims == other.has_leading_dims
    same(mine.norm(), other.norm())
    same(mine.T.AB, other.T.AB)
    same(mine.make_even().AB, other.make_even().AB)
    same(mine.get_corner(2), other.get_corner(2))
    same((mine[1] @ mine[0]).AB, (other[1] @ other[0]).AB)
    same((models[0].W_E[:5] @ mine).AB, (models[1].W_E[:5] @ other).AB)
    same((mine[0] @ models[0].W_U[:, :3]).AB, (other[0] @ models[1].W_U[:, :3]).AB)
    same(mine.unsqueeze(0).AB, other.unsqueeze(0).AB)
    same((2 * mine).AB, (2 * other).AB)
    for index in (0, (0, 1), (slice(None), 2), (0, 1, 3), (0, 1, slice(2), -1), (..., 0)):
        same(mine[index].AB, other[index].AB)
    same(mine.eigenvalues.abs().sum(-1), other.eigenvalues.abs().sum(-1))
    left, right = (m.U * m.S[..., None, :] @ m.Vh.mT for m in (mine, other))
    same(left, right)
    assert mine.Vh.shape == other.Vh.shape
    same(mine.collapse_l().norm(), other.collapse_l().norm())
    mine_utils, their_utils = ask("utils")
    scores = [
        tool.composition_scores(model.OV, model.QK)
        for tool, model in zip((mine_utils, their_utils), models, strict=True)
    ]
    same(*scores)
    same(*(library.FactoredMatrix(mine.A, mine.B).AB for library in (ours_module, lens)))


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors(models: tuple[HookedTransformer, Any], kind: str) -> None:
    head = {"head_index": 2}  # which is of no account for neurons
    mine, other = (
        library.SVDInterpreter(model).get_singular_vectors(kind, 1, num_vectors=3, **head)
        for library, model in zip((ours_module, lens), models, strict=True)
    )
    assert mine.shape == other.shape
    signs = torch.sign((mine * other).sum(dim=0, keepdim=True))
    same(mine * signs, other)


# --- heads ----------------------------------------------------------------------------------------

REPEATED = "one two three four one two three four one two"


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("kind", ["previous_token_head", "duplicate_token_head", "induction_head"])
def test_head_detection(models: tuple[HookedTransformer, Any], kind: str, measure: str) -> None:
    mine, other = ask("head_detector")
    asked: tuple[dict[str, Any], ...] = (
        {},
        {"exclude_bos": True},
        {"exclude_current_token": True, "heads": [(0, 1), (2, 3), (0, 0)]},
        {"heads": {1: [0, 2]}},
    )
    for arguments in asked:
        for text in (REPEATED, [REPEATED, TEXT]):
            same(
                *(
                    tool.detect_head(model, text, kind, error_measure=measure, **arguments)
                    for tool, model in zip((mine, other), models, strict=True)
                ),
                tolerance=1.1e-3 if measure == "abs" else 1e-4,  # rounded to three places
            )
    tokens = models[0].to_tokens(REPEATED)
    patterns = [getattr(tool, f"get_{kind}_detection_pattern")(tokens) for tool in (mine, other)]
    same(*patterns)
    cache = models[0].run_with_cache(REPEATED, remove_batch_dim=True)[1]
    cached = mine.detect_head(models[0], REPEATED, patterns[0], cache=cache)
    same(cached, other.detect_head(models[1], REPEATED, patterns[1]))


# --- patching -------------------------------------------------------------------------------------


def metric(logits: Tensor) -> Tensor:
    return (logits[:, -1, 300] - logits[:, -1, 301]).mean()


PATCHES = (
    "resid_pre",
    "attn_out",
    "attn_head_out_by_pos",
    "attn_head_q_all_pos",
    "attn_head_pattern_all_pos",
    "attn_head_all_pos_every",
    "block_every",
)


@pytest.mark.parametrize("name", PATCHES)
def test_patching(models: tuple[HookedTransformer, Any], name: str) -> None:
    found = []
    for tool, model in zip(ask("patching"), models, strict=True):
        clean = model.run_with_cache(model.to_tokens(TEXT[:20]))[1]
        corrupted = model.to_tokens(OTHER[:20])
        found.append(getattr(tool, f"get_act_patch_{name}")(model, corrupted, clean, metric))
    same(*found)


def test_patching_in_any_way(models: tuple[HookedTransformer, Any]) -> None:
    cells = pd.DataFrame({"layer": [2, 0, 1], "pos": [3, 3, 8]})
    found: list[list[Any]] = [[], []]
    for answers, tool, model in zip(found, ask("patching"), models, strict=True):
        clean = model.run_with_cache(TEXT)[1]
        given = (model, model.to_tokens(OTHER), clean, metric)
        answers.append(tool.get_act_patch_attn_head_v_all_pos(*given, return_index_df=True))
        setter = tool.layer_head_vector_patch_setter
        answers.append(
            tool.generic_activation_patch(
                *given, setter, "z", index_axis_names=("layer", "head_index")
            )
        )
        answers.append(
            tool.generic_activation_patch(
                *given, tool.layer_pos_patch_setter, "mlp_out", index_df=cells, return_index_df=True
            )
        )
        answers.append(tool.make_df_from_ranges([2, 3], ["layer", "pos"]))

        def double(tensor: Tensor, hook: Any) -> Tensor:
            return 2 * tensor

        model.add_hook("blocks.1.hook_mlp_out", double)
        answers.append(tool.get_act_patch_attn_head_out_all_pos(*given))
        model.reset_hooks()
    same(tuple(found[0]), tuple(found[1]))


# --- helpers --------------------------------------------------------------------------------------


def test_names_of_activations() -> None:
    mine, other = ask("utils")
    asked = [
        *((name,) for name in ("k6", "scale4ln1", "pre5", "embed", "hook_embed", "scale", "a.b")),
        *((name, 2) for name in ("q", "attn", "mlp_post", "resid_mid", "result", "rot_q", "value")),
        *(("scale", 1, part) for part in ("ln1", "ln2")),
        ("k", 6, "a"),
        ("pre", 2, "m"),
        ("resid_pre", 3, "block"),
        ("normalized",),
    ]
    for arguments in asked:
        assert mine.get_act_name(*arguments) == other.get_act_name(*arguments)


def test_losses_and_drawing(models: tuple[HookedTransformer, Any]) -> None:
    mine, other = ask("utils")
    model = models[0]
    tokens = model.to_tokens([TEXT, "A cat"])
    logits, mask = model(tokens), mine.get_attention_mask(model.tokenizer, tokens, False)
    assert mask.tolist() == other.get_attention_mask(model.tokenizer, tokens, False).tolist()
    for per_token in (False, True):
        arguments = (logits, tokens, None, per_token)
        same(mine.lm_cross_entropy_loss(*arguments), other.lm_cross_entropy_loss(*arguments))
        arguments = (logits, tokens, mask, per_token)
        same(mine.lm_cross_entropy_loss(*arguments), other.lm_cross_entropy_loss(*arguments))
        same(*(tool.lm_accuracy(logits, tokens, per_token) for tool in (mine, other)))
    asked: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 0.0},
        {"top_k": 5},
        {"top_p": 0.7, "temperature": 0.5},
        {"freq_penalty": 2.0, "tokens": tokens},
        {"repetition_penalty": 1.5, "tokens": tokens, "temperature": 0.0},
    )
    for named in asked:
        drawn = []
        for tool in (mine, other):
            torch.manual_seed(0)
            drawn.append(tool.sample_logits(logits[:, -1].clone(), **named))
        same(*drawn)
    with pytest.raises(InputError, match="tokens="):
        mine.sample_logits(logits[:, -1], freq_penalty=1.0)
    frames = [tool.logits_to_df(logits[0, -1], model.tokenizer, top_k=7) for tool in (mine, other)]
    same(*frames)


def test_tensors() -> None:
    mine, other = ask("utils")
    tensor = torch.randn(4, 5, 6)
    for given in (2, -1, (1, 3), (2,), (0, 4, 2), [0, 3], torch.tensor([1, 2]), None):
        for dim in (0, 1, -1):
            same(*(tool.Slice(given).apply(tensor, dim) for tool in (mine, other)))
        for tool in (mine, other):
            assert tool.Slice(given).mode == other.Slice(given).mode
            assert tool.Slice(given).indices(4).tolist() == other.Slice(given).indices(4).tolist()
        same(*(tool.Slice.unwrap(given).apply(tensor, 1) for tool in (mine, other)))
    for given in (tensor, [1.5, 2], (3,), 4, tensor.bfloat16(), tensor.numpy()):
        assert mine.to_numpy(given).tolist() == other.to_numpy(given).tolist()
    for name in ("remove_batch_dim", "transpose", "get_corner"):
        for given in (tensor, tensor[:1]):
            same(*(getattr(tool, name)(given) for tool in (mine, other)))
    for name in ("is_square", "is_lower_triangular"):
        for given in (tensor[0], torch.eye(3), torch.ones(3, 3)):
            assert getattr(mine, name)(given) == getattr(other, name)(given)
    same(mine.gelu_new(tensor), other.gelu_new(tensor))
    assert mine.get_device() == other.get_device()
    with pytest.raises(InputError, match="input_slice='a'"):
        mine.Slice("a")


@pytest.mark.parametrize("answer", ["Mary", [" Mary", " John"], "Mary Poppins"], ids=str)
def test_answers_are_printed(models: tuple[HookedTransformer, Any], answer: Any) -> None:
    printed = []
    for tool, model in zip(ask("utils"), models, strict=True):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            tool.test_prompt(TEXT, answer, model, prepend_bos=True)
        printed.append("".join(out.getvalue().split()))  # rich breaks long lines
    assert printed[0] == printed[1]


def test_defaults_for_a_while(models: tuple[HookedTransformer, Any]) -> None:
    for tool, model in zip(ask("utils"), models, strict=True):
        before = model.to_tokens(["A cat", "A"])
        with tool.LocallyOverridenDefaults(model, prepend_bos=True, padding_side="left"):
            assert model.to_tokens(["A cat", "A"])[0, 0] == 0
            assert model.to_tokens(["A cat", "A"])[1].tolist()[-2:] == [0, before[1, 0]]
        assert torch.equal(model.to_tokens(["A cat", "A"]), before)


def test_texts_in_rows(models: tuple[HookedTransformer, Any]) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets, which is not installed")
    texts = [TEXT, "A cat.", "", OTHER * 3]
    for rows, length, start in ((texts, 8, True), (texts, 11, False), (texts[1:2], 30, True)):
        found = []
        for tool in ask("utils"):
            data = datasets.Dataset.from_dict({"text": rows, "other": [1] * len(rows)})
            made = tool.tokenize_and_concatenate(
                data,
                models[1].tokenizer,
                max_length=length,
                add_bos_token=start,
                num_proc=None,
            )
            found.append(made[:]["tokens"])
        assert found[0].tolist() == found[1].tolist()
    ours = ask("utils")[0].tokenize_and_concatenate(data, models[0].tokenizer, max_length=30)
    assert ours[:]["tokens"].tolist() == found[1].tolist()


# --- evaluations ----------------------------------------------------------------------------------


def test_evaluations(models: tuple[HookedTransformer, Any]) -> None:
    mine, other = ask("evals")
    same(*(tool.sanity_check(model) for tool, model in zip((mine, other), models, strict=True)))
    losses = []
    for tool, model in zip((mine, other), models, strict=True):
        torch.manual_seed(0)
        losses.append(tool.induction_loss(model, batch_size=2, subseq_len=12, device="cpu"))
    same(*losses)
    batches = [
        {"tokens": models[0].to_tokens([TEXT, OTHER])},
        {"tokens": models[0].to_tokens(TEXT)},
    ]
    mean = [
        tool.evaluate_on_dataset(model, batches, device="cpu")
        for tool, model in zip((mine, other), models, strict=True)
    ]
    assert mean[0] == pytest.approx(mean[1], abs=1e-4)
    for named in ({}, {"symmetric": True, "prepend_bos": False}, {"names": ["Ann", "Bo", "Cy"]}):
        sets = [
            tool.IOIDataset(model.tokenizer, num_samples=6, seed=3, **named)
            for tool, model in zip((mine, other), models, strict=True)
        ]
        assert len(sets[0]) == len(sets[1])
        for index in range(6):
            for key in ("prompt", "IO", "S"):
                assert sets[0][index][key].tolist() == sets[1][index][key].tolist()
