"""The door by itself: hooks that stay, parts that can be called, weights by name.

Numbers are compared with the native calls; ``test_hooked_transformer`` compares them with
TransformerLens.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SIZES, randomize, same, tokens
from torch import Tensor

import neox_lab as nl
import neox_lab.compat.transformer_lens as tl
from neox_lab.compat.transformer_lens import HookedTransformer, HookPoint
from neox_lab.compat.transformer_lens.loading_from_pretrained import (
    checkpoint_step,
)
from neox_lab.errors import CheckpointError, ConfigError, HookError, HookNameError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")
FLAGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


def native(**overrides: object) -> nl.GPTNeoXForCausalLM:
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES | overrides)).eval()
    randomize(model)
    return model


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    return nl.compat.transformer_lens(native(use_parallel_residual=request.param))


def test_the_module_can_be_called_and_imported_from() -> None:
    ours = native()
    assert nl.compat.transformer_lens is tl is sys.modules["neox_lab.compat.transformer_lens"]
    assert tl(ours).native is ours
    folded = tl(ours, **dict.fromkeys(FLAGS, True))
    assert folded.native is not ours and folded.cfg.normalization_type == "LNPre"
    assert tl.TransformerBridge is tl.HookedTransformer is HookedTransformer
    with pytest.raises(AttributeError, match="no_such"):
        _ = tl.no_such
    with pytest.raises(InputError, match="as nl"):
        tl(nl.GPTNeoXModel(nl.GPTNeoXConfig(**SIZES)))


def test_modules_that_are_named_after_a_class() -> None:
    names = ("ActivationCache", "FactoredMatrix", "HookedTransformer", "HookedTransformerConfig")
    for name in (*names, "SVDInterpreter"):
        module = importlib.import_module(f"neox_lab.compat.transformer_lens.{name}")
        assert getattr(module, name) is getattr(tl, name)
        assert isinstance(getattr(tl, name), type)
        assert not hasattr(module, "no_such")
    from neox_lab.compat.transformer_lens.FactoredMatrix import FactoredMatrix
    from neox_lab.compat.transformer_lens.model_bridge import TransformerBridge

    assert FactoredMatrix is tl.FactoredMatrix
    assert tl.model_bridge.TransformerBridge is TransformerBridge is HookedTransformer


def test_hooks_stay_until_they_are_taken_away(model: HookedTransformer) -> None:
    plain = model(tokens())
    seen: list[str] = []

    def double(tensor: Tensor, hook: HookPoint) -> Tensor:
        seen.append(hook.name)
        hook.ctx["runs"] = int(str(hook.ctx.get("runs", 0))) + 1
        assert hook.layer() == 1
        return 2 * tensor

    model.add_hook("blocks.1.hook_resid_post", double)
    for runs in (1, 2):
        assert not torch.equal(model(tokens()), plain)
        assert model.hook_dict["blocks.1.hook_resid_post"].ctx == {"runs": runs}
    model.reset_hooks()
    assert torch.equal(model(tokens()), plain) and len(seen) == 2
    assert model.hook_dict["blocks.1.hook_resid_post"].ctx == {}

    model.add_perma_hook(lambda name: name.endswith("1.hook_resid_post"), double)
    model.reset_hooks()
    assert not torch.equal(model(tokens()), plain)
    model.reset_hooks(including_permanent=True)
    assert torch.equal(model(tokens()), plain)


def test_hooks_of_a_block_go_and_others_stay(model: HookedTransformer) -> None:
    order: list[str] = []

    def note(tensor: Tensor, hook: HookPoint, name: str) -> None:
        order.append(name)

    name = "blocks.0.attn.hook_z"
    model.add_hook(name, partial(note, name="first"))
    model.blocks[0].attn.hook_z.add_hook(partial(note, name="before"), prepend=True)
    model.run_with_hooks(tokens(), fwd_hooks=[(name, partial(note, name="once"))])
    assert order == ["before", "first", "once"]
    with pytest.raises(ZeroDivisionError), model.hooks(fwd_hooks=[(name, partial(note, name="x"))]):
        raise ZeroDivisionError
    model(tokens())
    assert order[3:] == ["before", "first"]
    with pytest.raises(HookNameError), model.hooks([(name, note), ("no_such_hook", note)]):
        pass
    assert len(model.hook_dict[name].fwd_hooks) == 2
    with model.hooks([(name, partial(note, name="kept"))], reset_hooks_end=False):
        pass
    assert len(model.hook_dict[name].fwd_hooks) == 3
    with pytest.raises(HookError, match="fwd"):
        model.add_hook(name, note, dir="forward")  # type: ignore[arg-type]
    with pytest.raises(HookError, match="no layer"):
        model.hook_embed.layer()


def test_gradients_at_hooks(model: HookedTransformer) -> None:
    name, found = "blocks.1.hook_resid_pre", {}

    def keep(gradient: Tensor, hook: HookPoint) -> None:
        found[hook.name] = gradient.clone()

    model.add_hook(name, keep, dir="bwd")
    model(tokens(), return_type="loss").backward()
    model.reset_hooks()
    _, cache = model.run_with_cache(tokens(), return_type="loss", incl_bwd=True)
    same(found[name], cache[f"{name}_grad"])
    kept = model.add_caching_hooks(["hook_embed", name], incl_bwd=True)
    loss = model(tokens(), return_type="loss")
    loss.backward()
    assert set(kept) == {"hook_embed", name, "hook_embed_grad", f"{name}_grad"}
    same(kept[f"{name}_grad"], found[name])


def test_what_ran_with_a_cache_can_be_backpropagated(model: HookedTransformer) -> None:
    model(tokens(), return_type="loss").backward()
    expected = {name: p.grad.clone() for name, p in model.native.named_parameters()}
    model.zero_grad()
    loss, cache = model.run_with_cache(tokens(), return_type="loss")
    assert not any(cache[name].requires_grad for name in cache)
    loss.backward()
    for name, parameter in model.native.named_parameters():
        same(parameter.grad, expected[name])
    with torch.no_grad():
        assert not model.run_with_cache(tokens())[0].requires_grad
    assert not model.native.run_with_cache(tokens())[0].logits.requires_grad


def test_parts_can_be_called(model: HookedTransformer) -> None:
    logits, cache = model.run_with_cache(tokens())
    same(model.embed(tokens()), cache["hook_embed"])
    for layer, block in enumerate(model.blocks):
        before, after = cache["resid_pre", layer], cache["resid_post", layer]
        same(block(before), after)
        with model.hooks([(f"blocks.{layer}.hook_resid_post", lambda x, hook: 0 * x)]):
            assert not bool(block(before).any())
        normalised = block.ln1(before)
        same(block.attn(normalised, normalised, normalised), cache["attn_out", layer])
        middle = before if model.cfg.parallel_attn_mlp else cache["resid_mid", layer]
        same(block.mlp(block.ln2(middle)), cache["mlp_out", layer])
    same(model.unembed(model.ln_final(cache["resid_post", -1])), logits)
    same(model(cache["resid_pre", 1], start_at_layer=1), logits)
    same(model.blocks[1].attn.OV.AB, model.OV[1].AB)
    assert model.blocks[0].attn.W_Q.data_ptr() == model.native.blocks[0].W_Q.data_ptr()
    with pytest.raises(InputError, match="hook_k_input"):
        model.blocks[0].attn(logits[..., :64], logits[..., 1:65])
    with pytest.raises(AttributeError, match="no_such"):
        _ = model.blocks[0].no_such


@torch.no_grad()
def test_reading_goes_on_where_it_stopped(model: HookedTransformer) -> None:
    whole = model(tokens())
    cache = tl.HookedTransformerKeyValueCache.init_cache(model.cfg, model.cfg.device, 3)
    same(model(tokens()[:, :5], past_kv_cache=cache), whole[:, :5])
    cache.freeze()
    for _ in range(2):
        same(model(tokens()[:, 5:], past_kv_cache=cache), whole[:, 5:])
    cache.unfreeze()
    same(model(tokens()[:, 5:7], past_kv_cache=cache), whole[:, 5:7])
    same(model(tokens()[:, 7:], past_kv_cache=cache), whole[:, 7:])


@pytest.mark.parametrize("names", ["blocks.0.hook_out", ["blocks.1.attn.o.hook_in"], None])
def test_names_of_version_4(model: HookedTransformer, names: Any) -> None:
    earlier = {"blocks.0.hook_out": "blocks.0.hook_resid_post"}
    _, cache = model.run_with_cache(tokens(), names_filter=names)
    if names is None:
        behind_switches = ("hook_result", "_input", "hook_attn_in")
        listed = {name for name in model.hook_dict if not name.endswith(behind_switches)}
        assert set(cache) == listed
        assert all(name in cache for name in model.hook_dict)
    else:
        assert list(cache) == [
            earlier.get(names if isinstance(names, str) else "", "") or "blocks.1.attn.hook_z"
        ]


def test_weights_by_name(model: HookedTransformer) -> None:
    other = tl(native(use_parallel_residual=model.cfg.parallel_attn_mlp))
    randomize(other.native, seed=1)
    weights = copy.deepcopy(model.state_dict())
    plain = model(tokens())
    assert not torch.allclose(other(tokens()), plain)
    other.load_state_dict(weights)
    assert torch.equal(other(tokens()), plain)
    bad = weights | {"blocks.0.attn.W_Q": weights["embed.W_E"]}
    for wrong, words in (
        ({"embed.W_X": plain}, "unknown"),
        ({}, "missing"),
        (bad, "shape"),
        (weights | {"unembed.b_U": torch.ones(211)}, "no place"),
    ):
        with pytest.raises(CheckpointError, match=words):
            other.load_state_dict(wrong)
    assert torch.equal(other(tokens()), plain)
    with pytest.raises(RuntimeError, match="leaf"):
        dict(model.named_parameters())["blocks.0.attn.W_Q"].requires_grad = False
    folded = tl(model.native, fold_ln=True)
    assert not [name for name in folded.state_dict() if ".ln" in name or "ln_" in name]
    other.load_and_process_state_dict(weights)
    same(other(tokens()).log_softmax(-1), plain.log_softmax(-1), 2e-5)


def test_a_copy_has_hooks_of_its_own(model: HookedTransformer) -> None:
    model.add_hook("hook_embed", _zero)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens()), model(tokens()))
        twin.reset_hooks()
        assert not torch.equal(twin(tokens()), model(tokens()))
        assert twin.native is not model.native and twin.cfg.n_layers == 3
    attention, norm = model.blocks[1].attn, model.ln_final
    for again in (copy.copy, copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))):
        assert torch.equal(again(attention).W_Q, attention.W_Q)
        assert torch.equal(again(norm).w, norm.w)
    with pytest.raises(AttributeError, match=r"blocks\.1\.attn has no 'no_such'"):
        _ = attention.no_such


def test_names_in_a_tuple_or_a_list(model: HookedTransformer) -> None:
    two = ["blocks.0.hook_mlp_out", "blocks.2.attn.hook_z"]
    for names in (two, tuple(two), lambda name: name in two):
        assert list(model.run_with_cache(tokens(), names_filter=names)[1].cache_dict) == two
    one = model.run_with_cache(tokens(), names_filter=("z", 2))[1]
    assert list(one.cache_dict) == two[1:]


class Squares(tl.HookedRootModule):
    def __init__(self) -> None:
        super().__init__()
        self.hook_square = HookPoint()
        self.inner = torch.nn.ModuleDict({"hook_sum": HookPoint()})
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.inner["hook_sum"](self.hook_square(x * x) + 3).sum()
        return total


def test_a_module_of_ones_own() -> None:
    module, x = Squares(), torch.tensor([2.0, 5.0], requires_grad=True)
    assert list(module.hook_dict) == ["hook_square", "inner.hook_sum"]
    total, cache = module.run_with_cache(x, incl_bwd=True)
    assert total.item() == 35 and list(cache) == [
        *module.hook_dict,
        *(f"{name}_grad" for name in reversed(module.hook_dict)),
    ]
    assert cache["hook_square"].tolist() == [4, 25] and x.grad is not None
    assert cache["hook_square_grad"].tolist() == [1, 1] and x.grad.tolist() == [4, 10]
    double = [("inner.*", lambda gradient, hook: 2 * gradient)]
    with module.hooks(bwd_hooks=double):
        assert torch.autograd.grad(module(x), x)[0].tolist() == [8, 20]
    half = [(lambda name: name == "hook_square", lambda tensor, hook: tensor / 2)]
    assert module.run_with_hooks(x, fwd_hooks=half).item() == 20.5
    with pytest.raises(RuntimeError, match="mine"):
        module.run_with_hooks(x, fwd_hooks=[("hook_square", _raise)])
    assert module(x).item() == 35 and not any(p.has_hooks() for p in module.hook_points())
    module.add_perma_hook("hook_square", _zero)
    module.reset_hooks()
    assert module(x).item() == copy.deepcopy(module)(x).item() == 6
    with pytest.raises(HookNameError, match="hook_square"):
        module.add_hook("hook_sqare", _zero)


def _raise(tensor: Tensor, hook: HookPoint) -> None:
    raise RuntimeError("mine")


SETTINGS: dict[str, Any] = {
    **{"n_layers": 2, "d_model": 16, "n_ctx": 24, "d_head": 8, "d_vocab": 30, "act_fn": "relu"},
    **{"positional_embedding_type": "rotary", "rotary_dim": 4, "seed": 5, "d_vocab_out": 30},
}


@pytest.mark.parametrize("parallel", [True, False])
def test_a_new_model_of_a_configuration(parallel: bool) -> None:
    cfg = tl.HookedTransformerConfig(**SETTINGS, parallel_attn_mlp=parallel, use_attn_result=True)
    assert cfg.device == "cpu" and cfg.use_attn_result
    new = HookedTransformer(cfg)
    assert new.cfg is cfg and new(torch.arange(9)).shape == (1, 9, 30)
    config = new.native.config
    assert (config.num_attention_heads, config.intermediate_size) == (2, 64)
    assert (config.use_parallel_residual, config.rotary_ndims) == (parallel, 4)
    assert config.initializer_range == 0.2 and 0.15 < new.W_Q.std() < 0.25
    again = HookedTransformer(tl.HookedTransformerConfig.from_dict(cfg.to_dict()))
    assert torch.equal(again(torch.arange(9)), new(torch.arange(9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positional_embedding_type": "standard"}, "='standard' makes a model of another kind"),
        ({"normalization_type": None}, "expected 'LN'"),
        ({"attn_only": True}, "attn_only=True"),
        ({"n_heads": 3}, "d_head=8"),
        ({"d_vocab_out": 29}, "expected 30"),
        ({"n_layers": None}, "needs n_layers"),
        ({"act_fn": "solu_ln"}, "solu_ln"),
        ({"d_vocba": 3}, "Did you mean 'd_vocab'"),
        ({"attn_scale": 1.0}, "attn_scale"),
    ],
    ids=str,
)
def test_other_models_than_gpt_neox_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tl.HookedTransformerConfig(**SETTINGS | change)
    kept = {n: v for n, v in SETTINGS.items() if n != "positional_embedding_type"}
    with pytest.raises(ConfigError, match="standard"):
        tl.HookedTransformerConfig(**kept)


def test_a_cache_knows_the_door_it_came_through(model: HookedTransformer) -> None:
    cache = model.run_with_cache(tokens())[1]
    assert cache.model is model and cache.model.cfg.d_model == 64
    assert tl.ActivationCache(cache.cache_dict, model).model is model
    native_cache = model.native.run_with_cache(tokens())[1]
    assert native_cache.model is model.native


def _zero(tensor: Tensor, hook: HookPoint) -> Tensor:
    return 0 * tensor


def test_switches_change_nothing_and_the_rest_cannot_be_set(model: HookedTransformer) -> None:
    for name in ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"):
        getattr(model, f"set_{name}")(True)
        assert getattr(model.cfg, name) is True
    with pytest.raises(ConfigError, match="n_layers"):
        model.cfg.n_layers = 2
    with pytest.raises(AttributeError, match="n_layers"):
        _ = model.cfg.n_layer
    with pytest.raises(ConfigError, match="a language model"):
        tl.HookedTransformerConfig(nl.GPTNeoXModel(nl.GPTNeoXConfig(**SIZES)))
    assert model.cfg.to_dict()["d_vocab"] == 211 and "d_vocab=211" in repr(model.cfg)
    assert model.cfg.n_params == sum(
        model.W_Q[0].numel() * 4 * 3 if name == "W_Q" else 2 * model.W_in.numel()
        for name in ("W_Q", "W_in")
    )


def test_methods_that_change_the_model_return_the_door(model: HookedTransformer) -> None:
    assert model.eval() is model and model.to("cpu") is model and model.train() is model
    assert model.native.training
    assert model.to(torch.float64) is model and model.cfg.dtype == torch.float64


def test_hooks_act_while_writing() -> None:
    model = tl(nl.load())
    text = "The king went to the city of"
    plain = model.generate(text, max_new_tokens=3, do_sample=False)
    shapes: list[int] = []

    def count(tensor: Tensor, hook: HookPoint) -> Tensor:
        shapes.append(tensor.shape[1])
        return 0 * tensor

    model.add_hook("blocks.0.hook_resid_post", count)
    assert model.generate(text, max_new_tokens=3, do_sample=False) != plain
    assert shapes == [model.to_tokens(text).shape[1], 1, 1]


def test_hooks_take_hooks_away_within_a_run(model: HookedTransformer) -> None:
    seen: list[str] = []

    def once(tensor: Tensor, hook: HookPoint) -> Tensor:
        seen.append("once")
        hook.remove_hooks()
        return 0 * tensor

    plain, zeroed = (
        model(tokens()),
        model.run_with_hooks(tokens(), fwd_hooks=[("hook_embed", _zero)]),
    )
    model.add_hook("hook_embed", once)
    model.add_hook("blocks.1.hook_mlp_out", lambda tensor, hook: seen.append("later"))
    made = model.generate(tokens()[:1], max_new_tokens=3, do_sample=False, stop_at_eos=False)
    assert seen == ["once", *["later"] * 3]
    assert made[0, -3] == zeroed[0, -1].argmax()
    model.add_hook("hook_embed", lambda tensor, hook: model.reset_hooks())
    assert torch.equal(model(tokens()), plain)
    assert len(seen) == 4


def test_names_of_models_and_checkpoints() -> None:
    assert tl.loading.get_official_model_name("pythia-70m") == "EleutherAI/pythia-70m"
    assert tl.loading.get_official_model_name("somebody/pythia") == "somebody/pythia"
    labels, kind = tl.loading.get_checkpoint_labels("pythia-70m")
    assert len(labels) == 154 and kind == "step" and labels[10:12] == [512, 1000]
    assert checkpoint_step(-1, None) == 143_000 and checkpoint_step(None, 512) == 512
    assert checkpoint_step(None, None) is None
    for index, value in ((1, 1), (154, None)):
        with pytest.raises(ConfigError):
            checkpoint_step(index, value)


def test_arguments_of_loading(tmp_path: Path) -> None:
    ours = native()
    load = HookedTransformer.from_pretrained
    model = load("in memory", hf_model=ours, n_devices=1, refactor_factored_attn_matrices=False)
    same(model(tokens()).log_softmax(-1), ours(tokens()).logits.log_softmax(-1), 2e-5)
    raw = HookedTransformer.from_pretrained_no_processing("in memory", hf_model=ours)
    assert raw.native is ours
    for wrong in ({"fold_lm": True}, {"n_ctx": 8}, {"refactor_factored_attn_matrices": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            load("in memory", hf_model=ours, **wrong)
    with pytest.raises(ConfigError, match="GPTNeoXForCausalLM"):
        load(hf_model=nl.GPTNeoXModel(ours.config))  # type: ignore[arg-type]
    ours.save_pretrained(tmp_path)
    cfg = tl.loading_from_pretrained.get_pretrained_model_config(str(tmp_path))
    assert cfg.d_model == 64 and cfg.n_params == raw.cfg.n_params
    built_in = load(None, default_prepend_bos=True, default_padding_side="left")
    ids = built_in.to_tokens(["The king", "The king went to"])
    assert ids[0, 0] == built_in.tokenizer.pad_token_id
    assert ids[1, 0] == built_in.tokenizer.bos_token_id


def test_labels_and_caches_of_version_4(model: HookedTransformer) -> None:
    labels = tokens().clone()
    labels[:, :5] = -100
    losses = model(tokens(), return_type="loss", loss_per_token=True)
    same(model(tokens(), return_type="loss", labels=labels), losses[:, 4:].mean())
    logits, cache = model(tokens()[:, :5], return_type="logits_and_cache")
    rest, _ = model(tokens()[:, 5:], return_type="logits_and_cache", past_key_values=cache)
    same(torch.cat([logits, rest], dim=1), model(tokens()))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_gradients_of_weights_by_name(model: HookedTransformer) -> None:
    model(tokens(), return_type="loss").backward()
    qkv = model.native.gpt_neox.layers[1].attention.query_key_value
    grouped = qkv.weight.grad.view(4, 3, 16, 64)
    for part, name in enumerate("QKV"):
        found = getattr(model.blocks[1].attn, f"W_{name}").grad
        assert torch.equal(found, grouped[:, part].transpose(1, 2))
        bias = getattr(model.blocks[1].attn, f"b_{name}").grad
        assert torch.equal(bias, qkv.bias.grad.view(4, 3, 16)[:, part])
    block, layer = model.blocks[1], model.native.gpt_neox.layers[1]
    assert torch.equal(block.mlp.W_in.grad, layer.mlp.dense_h_to_4h.weight.grad.T)
    assert torch.equal(block.mlp.W_out.grad, layer.mlp.dense_4h_to_h.weight.grad.T)
    written = layer.attention.dense.weight.grad  # [d_model, head * d_head]
    assert torch.equal(block.attn.W_O.grad.flatten(0, 1), written.T)
    assert torch.equal(model.unembed.W_U.grad, model.native.embed_out.weight.grad.T)
    assert model.embed.W_E.grad is model.native.gpt_neox.embed_in.weight.grad
    gradient = torch.autograd.grad(model.W_Q.square().sum(), qkv.weight)[0]
    assert bool(gradient.any())  # a view still takes part in gradients
    model.zero_grad()
    assert model.unembed.W_U.grad is None


def test_losses_need_tokens_and_types_are_known(model: HookedTransformer) -> None:
    stream = model(tokens(), stop_at_layer=1)
    with pytest.raises(InputError, match="tokens="):
        model(stream, start_at_layer=1, return_type="loss")
    loss = model(stream, start_at_layer=1, return_type="loss", tokens=tokens())
    same(loss, model(tokens(), return_type="loss"))
    with pytest.raises(InputError, match="logits"):
        model(tokens(), return_type="logit")
