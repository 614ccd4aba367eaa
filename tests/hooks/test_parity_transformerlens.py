"""Same names, same numbers as TransformerLens 4.3, wherever both have them.

Needs transformer_lens (``pip install neox_lab[bench]``); skipped without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import pair, tokens
from torch import Tensor

from neox_lab.errors import HookNameError
from neox_lab.family.folded import folded

bridges = pytest.importorskip(
    "transformer_lens.model_bridge", reason="needs transformer_lens, which is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")

FLAGS = ((), ("attn_result", "split_qkv_input", "hook_mlp_in"), ("attn_in",))
BEHIND_FLAGS = ("hook_result", "_input", "hook_mlp_in", "hook_attn_in")
DEAD_THERE = ("hook_rot_q", "hook_rot_k")
LAYERS = 3

Boot = Callable[..., Any]


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Boot]]:
    """Our model, and a function that boots a fresh bridge on the same weights."""
    theirs, ours = pair(use_parallel_residual=request.param)
    directory = tmp_path_factory.mktemp("checkpoint")
    theirs.save_pretrained(directory)
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
    file = str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **special).save_pretrained(directory)

    def boot(*flags: str) -> Any:
        bridge = bridges.TransformerBridge.boot_transformers(
            str(directory), device="cpu", dtype=torch.float32
        )
        for flag in flags:
            getattr(bridge, f"set_use_{flag}")(True)
        return bridge

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield ours.requires_grad_(True), boot


@pytest.fixture(scope="module")
def caches(models: tuple[Any, Boot]) -> tuple[Any, Any]:
    """Everything cached, by us and by a raw bridge."""
    ours, boot = models
    with torch.no_grad():
        return ours.run_with_cache(tokens())[1], boot().run_with_cache(tokens())[1]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality to ``tolerance`` of the largest number (absolute, if that is below 1)."""
    scale = float(b.detach().abs().max().clamp(min=1)) if b.numel() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def same_stack(ours: Any, theirs: Any) -> None:
    close(ours[0].detach(), theirs[0].detach())
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "raw")
def test_every_hook_point(models: tuple[Any, Boot], flags: tuple[str, ...]) -> None:
    ours, boot = models
    with torch.no_grad():
        output, cache = ours.run_with_cache(tokens())
        logits, theirs = boot(*flags).run_with_cache(tokens())
    close(output.logits, logits)
    missing = [name for name in cache if name not in theirs.cache_dict]
    assert all(name.endswith((*DEAD_THERE, *BEHIND_FLAGS)) for name in missing)
    for name in cache:
        if name in missing:
            continue
        mine, other = cache[name], theirs[name]
        if name.endswith("scores"):  # they mask with the lowest number, we with minus infinity
            seen = mine.isfinite()
            assert (other[~seen] < -1e30).all()
            mine, other = mine[seen], other[seen]
        close(mine, other)


def test_flags_cover_everything(models: tuple[Any, Boot]) -> None:
    """With the three sets of flags every name of ours but the dead ones has been compared."""
    ours, boot = models
    found: set[str] = set()
    for flags in FLAGS:
        with torch.no_grad():
            found |= set(boot(*flags).run_with_cache(tokens())[1].cache_dict)
    left = [name for name in ours.hook_names if name not in found]
    assert all(name.endswith(DEAD_THERE) for name in left)


def gradients(model: Any, names: list[str], logits: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """Gradients of a scalar of the logits at hook points."""
    found: dict[str, Tensor] = {}

    def save(name: str) -> Any:
        def hook(gradient: Tensor, hook: Any) -> None:
            found[name] = gradient.clone()

        return name, hook

    with model.hooks(bwd_hooks=[save(name) for name in names]):
        logits(model(tokens())).log_softmax(-1)[..., 7].sum().backward()
    return found


@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "raw")
def test_gradients_at_hooks(models: tuple[Any, Boot], flags: tuple[str, ...]) -> None:
    ours, boot = models
    bridge = boot(*flags)
    there = set(bridge.run_with_cache(tokens())[1].cache_dict)
    names = [name for name in ours.hook_names if name in there]
    mine = gradients(ours, names, lambda output: output.logits)
    theirs = gradients(bridge, names, lambda logits: logits)
    silent = [name for name in names if name not in theirs]
    # With flags, their layer norm 1 has no gradient, before or after its weight and bias.
    assert all(".ln1." in name or name.endswith("attn.hook_in") for name in silent)
    assert bool(silent) == bool(flags)
    for name in theirs:
        if name.endswith("hook_resid_mid"):
            # Theirs is another name for the MLP's input: without the path around the MLP.
            around = mine[name.replace("resid_mid", "resid_post")]
            close(mine[name] - around, theirs[name])
        else:
            close(mine[name], theirs[name])


def test_weights(models: tuple[Any, Boot]) -> None:
    ours, boot = models
    bridge = boot()
    for name in "W_E W_U W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out".split():
        close(getattr(ours, name).detach(), getattr(bridge, name).detach())
    close(ours.QK.AB.detach(), bridge.QK.AB.detach())
    close(ours.OV.AB.detach(), bridge.OV.AB.detach())
    for layer in range(LAYERS + 1):
        close(ours.accumulated_bias(layer).detach(), bridge.accumulated_bias(layer).detach())
    for mode in "QKV":
        theirs = bridge.all_composition_scores(mode)
        close(ours.all_composition_scores(mode), theirs.scores.detach())
    assert ours.all_head_labels == theirs.head_labels


def test_folded_weights(models: tuple[Any, Boot]) -> None:
    ours, boot = models
    bridge = boot()
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    names = "W_E W_U b_U W_Q W_K W_V W_O W_in W_out b_Q b_K b_V b_O b_in b_out"
    for name in names.split():
        close(getattr(folded(ours), name).detach(), getattr(bridge, name).detach())


@pytest.mark.parametrize("layer", [None, -1, 0, 2, LAYERS])
@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("pos", [None, 3, [0, 5]], ids=str)
def test_stacks(caches: Any, layer: int | None, apply_ln: bool, pos: Any) -> None:
    ours, theirs = caches
    k = {"layer": layer, "apply_ln": apply_ln, "pos_slice": pos, "return_labels": True}
    same_stack(ours.accumulated_resid(**k), theirs.accumulated_resid(**k))
    for mode in ("all", "mlp", "attn"):
        same_stack(ours.decompose_resid(mode=mode, **k), theirs.decompose_resid(mode=mode, **k))
    remainder = layer != 0  # of layer 0 they return the rest of the whole model
    k["incl_remainder"] = remainder
    same_stack(ours.stack_head_results(**k), theirs.stack_head_results(**k))
    k["neuron_slice"] = [1, 40]
    same_stack(ours.stack_neuron_results(**k), theirs.stack_neuron_results(**k))


@pytest.mark.parametrize("layer", [None, 0, 2])
@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("directions", [None, 1, 4])
def test_full_decomposition(
    caches: Any, layer: int | None, apply_ln: bool, expand: bool, directions: int | None
) -> None:
    ours, theirs = caches
    k: dict[str, Any] = {"layer": layer, "apply_ln": apply_ln, "expand_neurons": expand}
    if directions is not None:
        drawn = torch.randn(64, directions, generator=torch.Generator().manual_seed(0))
        k["project_output_onto"] = drawn[:, 0] if directions == 1 else drawn
    same_stack(
        ours.get_full_resid_decomposition(return_labels=True, **k),
        theirs.get_full_resid_decomposition(return_labels=True, **k),
    )


def test_what_the_mlp_reads(models: tuple[Any, Boot], caches: Any) -> None:
    """``mlp_input`` on sequential blocks; on parallel ones theirs adds what the MLP never sees."""
    if models[0].config.use_parallel_residual:
        with pytest.raises(KeyError):
            caches[1].accumulated_resid(1, mlp_input=True)
        assert torch.equal(
            caches[0].accumulated_resid(1, mlp_input=True)[-1], caches[0]["mlp_in", 1]
        )
        return
    ours, theirs = caches
    for layer in range(LAYERS):
        k: dict[str, Any] = {"layer": layer, "mlp_input": True, "return_labels": True}
        for apply_ln in (False, True):
            k["apply_ln"] = apply_ln
            same_stack(ours.accumulated_resid(**k), theirs.accumulated_resid(**k))
            same_stack(ours.decompose_resid(**k), theirs.decompose_resid(**k))
            full = ours.get_full_resid_decomposition(**k)
            same_stack(full, theirs.get_full_resid_decomposition(**k))
    k = {"incl_mid": True, "return_labels": True}
    same_stack(ours.accumulated_resid(**k), theirs.accumulated_resid(**k))


def test_parallel_blocks_have_a_middle_here_and_none_there(
    models: tuple[Any, Boot], caches: Any
) -> None:
    ours, theirs = caches
    if models[0].config.use_parallel_residual:
        with pytest.raises(KeyError):
            theirs.accumulated_resid(incl_mid=True)
        with pytest.raises(HookNameError, match="parallel"):
            _ = ours["resid_mid", 0]
    assert len(ours.accumulated_resid(incl_mid=True)) == 2 * LAYERS + 1


def test_single_pieces(caches: Any) -> None:
    ours, theirs = caches
    for arguments in ((1,), (1, 7), (1, [3, 4], 5), (0, slice(9), -1)):
        mine, other = (cache.get_neuron_results(*arguments) for cache in caches)
        close(mine, other.detach())
    close(ours.stack_activation("pattern", 2), theirs.stack_activation("pattern", 2))
    stack = ours.decompose_resid(2)
    close(ours.apply_ln_to_stack(stack, 2), theirs.apply_ln_to_stack(stack, 2))
    row = ours.apply_ln_to_stack(stack[:, :, 4], 2, pos_slice=4, batch_slice=1)
    close(row, theirs.apply_ln_to_stack(stack[:, :, 4], 2, pos_slice=4, batch_slice=1))
    lens = ours.apply_ln_to_stack(ours.accumulated_resid(), recompute_ln=True)
    close(lens, theirs.apply_ln_to_stack(ours.accumulated_resid(), recompute_ln=True).detach())


TARGETS = {
    "one": (7, {}),
    "one a row": (torch.tensor([7, 8, 9]), {}),
    "one a position": (tokens()[0], {}),
    "one a place": (tokens(), {}),
    "last position": (torch.tensor([7, 8, 9]), {"pos_slice": -1}),
    "some rows": (torch.tensor([7, 8]), {"batch_slice": [2, 0]}),
}


@pytest.mark.parametrize("target", TARGETS)
def test_logit_attrs(models: tuple[Any, Boot], target: str) -> None:
    """Against a bridge with layer norm folded in; differences, as it centres the unembedding."""
    ours, boot = models
    bridge = boot()
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    right, k = TARGETS[target]
    wrong = right + 100 if isinstance(right, int) else right.flip(0)
    with torch.no_grad():
        caches = [model.run_with_cache(tokens())[1] for model in (ours, bridge)]
        pos = k.get("pos_slice")
        for name in ("decompose_resid", "stack_head_results"):
            stacks = [getattr(cache, name)(pos_slice=pos) for cache in caches]
            mine, theirs = (
                cache.logit_attrs(stack, right, wrong, **k)
                for cache, stack in zip(caches, stacks, strict=True)
            )
            close(mine, theirs)
