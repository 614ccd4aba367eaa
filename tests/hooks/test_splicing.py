"""A toy dictionary spliced into the network: its activations are hook points like any other.

What it must do is computed without it: by ordinary hooks, and by hand.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair, same, tokens
from torch import Tensor, nn

import neox_lab as nl
from neox_lab.completion import hook_names
from neox_lab.data.activations import collected, site_names
from neox_lab.errors import HookError, HookNameError, HookNeverFiredError
from neox_lab.family import tree
from neox_lab.hooks import SplicedPoint
from neox_lab.hooks.cache import ActivationCache

LATENT = 40
SITE = "blocks.1.hook_mlp_out"
ACTS, ERROR = f"{SITE}.hook_toy_acts", f"{SITE}.hook_toy_error"
POINTS = (
    SplicedPoint("hook_toy_acts", "batch pos latent", "which features are active"),
    SplicedPoint("hook_toy_error", "batch pos d_model", "what the features miss"),
)
SIZES = {"latent": LATENT}


class Toy(nn.Module):
    """relu(x W_enc + b) W_dec, and what that misses, halved, so that splicing changes the run."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.encoder = nn.Parameter(torch.randn(64, LATENT, generator=generator) / 8)
        self.decoder = nn.Parameter(torch.randn(LATENT, 64, generator=generator) / 6)

    def acts(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.encoder + 0.1)

    def without_taps(self, x: Tensor, _hook: Any = None) -> Tensor:
        recons = self.acts(x) @ self.decoder
        return recons + (x - recons) / 2

    def forward(self, x: Tensor, tap: Any) -> Tensor:
        acts = tap("hook_toy_acts", self.acts(x))
        recons = acts @ self.decoder
        return recons + tap("hook_toy_error", (x - recons) / 2)


TOY = Toy()


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def spliced(model: Any, site: Any = SITE, **options: Any) -> Any:
    return model.spliced_function(site, TOY, POINTS, SIZES, **options)


# --------------------------------------------------------------------------------------- finding


def test_its_points_are_in_the_table_as_long_as_it_is_in_place(model: Any) -> None:
    before = model.hook_names
    with spliced(model) as same_model:
        assert same_model is model
        names = list(model.hook_names)
        at = names.index(SITE)
        assert names[at + 1 : at + 3] == [ACTS, ERROR]
        assert [name for name in names if name not in (ACTS, ERROR)] == list(before)
        row = model.hook_table().set_index("name").loc[ACTS]
        assert row["shape"] == "[batch, pos, latent]"
        assert row.meaning == "which features are active"
        assert ACTS in hook_names('x = "blocks.1.hook_mlp_out.', {"model": model})[1]
    assert model.hook_names == before
    assert not hook_names('x = "blocks.1.hook_mlp_out.', {"model": model})[1]
    with pytest.raises(HookNameError):
        model.hooks([(ACTS, TOY.without_taps)]).__enter__()


def test_the_tree_shows_them() -> None:
    model = pair()[1]
    with spliced(model, "blocks.0.hook_mlp_out"):
        assert "hook_mlp_out.hook_toy_acts" in tree.as_text(model)
        assert "hook_mlp_out.hook_toy_acts" in tree.as_html(model)


@pytest.mark.parametrize(
    "name",
    [
        ACTS,
        ("toy_acts", 1),
        ("toy_acts", -2),
        "*.hook_toy_acts",
        lambda name: name.endswith("acts"),
    ],
)
@pytest.mark.parametrize("site", [SITE, ("mlp_out", 1), "gpt_neox.layers.1.mlp"])
@torch.no_grad()
def test_every_way_to_name_them_and_their_site(name: Any, site: Any) -> None:
    model = pair()[1]
    with spliced(model, site):
        _, cache = model.run_with_cache(tokens(), name)
        _, whole = model.run_with_cache(tokens(), "blocks.1.hook_mlp_out")
    assert list(cache) == [ACTS]
    assert list(whole) == [SITE], "the site's own name stays its own"


def test_sites_of_the_data_room() -> None:
    model = nl.load()
    enc = torch.randn(model.config.hidden_size, 5)

    def function(x: Tensor, tap: Any) -> None:
        tap("hook_few", x @ enc)

    few = SplicedPoint("hook_few", "batch pos few", "five directions")
    texts = ["The king", "went to the city of his father"]
    with model.spliced_function("blocks.0.hook_resid_post", function, [few], {"few": 5}):
        names = site_names(model, "few")
        assert names == ["blocks.0.hook_resid_post.hook_few"]
        with collected(model, texts, names, -1) as found:
            got = torch.tensor(found[names[0]])
    for text, row in zip(texts, got, strict=True):
        _, cache = model.run_with_cache(text)
        same(row, cache["resid_post", 0][0, -1] @ enc)


# --------------------------------------------------------------------------------------- reading


@torch.no_grad()
def test_what_is_read_is_what_the_toy_computes(model: Any) -> None:
    _, plain = model.run_with_cache(tokens())
    with model.hooks([(SITE, TOY.without_taps)]):
        expected, hooked = model.run_with_cache(tokens())
    with spliced(model):
        output, cache = model.run_with_cache(tokens())
        assert tuple(cache) == model.hook_names
        assert cache.nbytes == model.cache_size(tokens())
        assert cache.frame.set_index("name").loc[ACTS, "axes"] == "batch pos latent"
        assert tuple(cache[ACTS].shape) == (3, 12, LATENT)
    same(output.logits, expected.logits)
    same(cache[ACTS], TOY.acts(plain["mlp_out", 1]))
    same(cache[SITE], TOY.acts(plain["mlp_out", 1]) @ TOY.decoder + cache[ERROR])
    for name in hooked:
        same(cache[name], hooked[name])


SITES = (
    "hook_resid_pre",
    "hook_q_input",
    "ln1.hook_normalized",
    "attn.hook_in",
    "hook_mlp_in",
    "mlp.hook_in",
    "hook_attn_out",
    "hook_resid_post",
)


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_nothing_is_derived_across_it(model: Any, site: str) -> None:
    """What a full cache makes on access equals what passes each point, asked for alone."""
    name = f"blocks.1.{site}"
    axes = " ".join(model.hook_points[name].axes[:-1])
    points = [SplicedPoint("hook_toy_acts", f"{axes} latent", "features"), POINTS[1]]
    points[1] = points[1]._replace(axes=f"{axes} d_model")
    passing: dict[str, Tensor] = {}
    keep = nl.reads_only(lambda tensor, hook: passing.update({hook.name: tensor}))
    with model.spliced_function(name, TOY, points, SIZES):
        _, cache = model.run_with_cache(tokens())
        # Keys and values are parts of a product that also holds the queries of before.
        before = cache["hook_embed"].nbytes if site == "hook_q_input" else 0
        assert cache.nbytes == model.cache_size(tokens()) + before
        model.run_with_hooks(tokens(), [("*", keep)])
    assert set(cache) == set(passing)
    for full, tensor in passing.items():
        same(cache[full], tensor)


@torch.no_grad()
def test_caches_in_files(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    with spliced(model):
        _, cache = model.run_with_cache(tokens())
        _, spilled = model.run_with_cache(tokens(), budget=1000, spill=path)
        same(spilled[ACTS], cache[ACTS])
    cache.save(tmp_path / "saved.safetensors")
    for file in (path, tmp_path / "saved.safetensors"):
        again = ActivationCache.load(file, model)
        assert torch.equal(again["toy_acts", 1], cache[ACTS])
        assert torch.equal(again["result", 0], cache["result", 0])
    cut = spliced(model)
    with cut:
        _, part = model.run_with_cache(tokens(), ACTS, pos_slice=-1, dtype=torch.float16)
        assert part.nbytes == model.cache_size(tokens(), ACTS, pos_slice=-1, dtype=torch.float16)
    assert part[ACTS].shape == (3, 1, LATENT)


def test_sizes_in_half_precision() -> None:
    model = pair()[1].to(torch.bfloat16)
    enc = TOY.encoder.detach()

    def in_float32(x: Tensor, tap: Any) -> None:
        tap("hook_exact", torch.relu(x.float() @ enc))
        tap("hook_half", x[..., :7])

    points = [
        SplicedPoint("hook_exact", "batch pos latent", "features", in_float32=True),
        SplicedPoint("hook_half", "batch pos 7", "some numbers"),
    ]
    with model.spliced_function(SITE, in_float32, points, SIZES):
        _, cache = model.run_with_cache(tokens(), "*.hook_mlp_out.*")
        assert cache.nbytes == model.cache_size(tokens(), "*.hook_mlp_out.*")
    assert cache["exact", 1].dtype == torch.float32
    assert cache["half", 1].dtype == torch.bfloat16


def test_a_lean_cache_refuses_it(model: Any) -> None:
    with spliced(model), pytest.raises(HookError, match="without hooks"):
        model.run_with_cache(tokens(), lean=True)
    _, full = model.run_with_cache(tokens())
    _, lean = model.run_with_cache(tokens(), lean=True)
    with spliced(model):
        same(lean["mlp_out", 1], full["mlp_out", 1])


# -------------------------------------------------------------------------------------- changing


@torch.no_grad()
def test_a_feature_can_be_switched_off(model: Any) -> None:
    def without_feature(x: Tensor, _hook: Any) -> Tensor:
        acts = TOY.acts(x)
        acts[..., 3] = 0
        changed = acts @ TOY.decoder
        return changed + (x - changed) / 2

    def switch_off(acts: Tensor, hook: Any) -> None:
        assert hook.name == ACTS
        assert hook.layer == 1
        acts[..., 3] = 0

    expected = model.run_with_hooks(tokens(), [(SITE, without_feature)]).logits
    with spliced(model):
        plain = model(tokens()).logits
        got = model.run_with_hooks(tokens(), [(ACTS, switch_off)]).logits
    same(got, expected)
    assert not torch.allclose(got, plain, atol=1e-3)


@torch.no_grad()
def test_features_of_one_run_patched_into_another(model: Any) -> None:
    clean, corrupted = tokens(seed=1), tokens(seed=2)
    with spliced(model):
        _, cache = model.run_with_cache(clean)
        patch = [(name, lambda _, hook: cache[hook.name]) for name in (ACTS, ERROR)]
        got = model.run_with_hooks(corrupted, patch).logits
    stored = cache[SITE]
    same(got, model.run_with_hooks(corrupted, [(SITE, lambda x, hook: stored)]).logits)


def test_gradients_of_features_are_autograds(model: Any) -> None:
    kept: list[Tensor] = []

    def by_hand(x: Tensor, _hook: Any) -> Tensor:
        kept.append(TOY.acts(x))
        recons = kept[0] @ TOY.decoder
        return recons + (x - recons) / 2

    target = model.run_with_hooks(tokens(), [(SITE, by_hand)]).logits[:, -1, 3].sum()
    (expected,) = torch.autograd.grad(target, kept)
    with spliced(model):
        _, cache = model.run_with_cache(
            tokens(), incl_bwd=lambda output: output.logits[:, -1, 3].sum()
        )
        same(cache[f"{ACTS}_grad"], expected, 1e-4)
        assert {f"{name}_grad" for name in model.hook_names} <= set(cache)
        output = model.run_with_hooks(tokens(), bwd_hooks=[(ACTS, lambda g, hook: 0 * g)])
        output.logits.sum().backward()


@torch.no_grad()
def test_it_stands_in_line_with_hooks(model: Any) -> None:
    seen: dict[str, Tensor] = {}

    def note(key: str) -> Any:
        return nl.reads_only(lambda tensor, hook: seen.update({key: tensor}))

    with (
        model.hooks([(SITE, note("before"))]),
        spliced(model),
        model.hooks([(SITE, note("after"))]),
    ):
        model(tokens())
    same(seen["after"], TOY.without_taps(seen["before"]))


@torch.no_grad()
def test_two_at_one_site_and_one_inside_another(model: Any) -> None:
    def double(x: Tensor, tap: Any) -> Tensor:
        return tap("hook_double", 2 * x)

    after = SplicedPoint("hook_double", "batch pos d_model", "twice as much")
    inside = SplicedPoint("hook_double", "batch pos latent", "twice as much")
    with (
        spliced(model),
        model.spliced_function(SITE, double, [after]),
        model.spliced_function(ACTS, double, [inside], SIZES),
    ):
        names = [name for name in model.hook_names if name.startswith(SITE)]
        assert names == [SITE, ACTS, f"{ACTS}.hook_double", ERROR, f"{SITE}.hook_double"]
        _, cache = model.run_with_cache(tokens(), "blocks.1.hook_mlp_out*")
        order: list[str] = []
        note = nl.reads_only(lambda tensor, hook: order.append(hook.name))
        model.run_with_hooks(tokens(), [(name, note) for name in names])
    same(cache[ACTS], cache[f"{ACTS}.hook_double"])
    _, plain = model.run_with_cache(tokens(), SITE)
    same(cache[ACTS], 2 * TOY.acts(plain[SITE]))
    same(cache[SITE], cache[f"{SITE}.hook_double"])
    same(cache[SITE], 2 * (cache[ACTS] @ TOY.decoder + cache[ERROR]))
    assert sorted(order) == sorted(names)


@torch.no_grad()
def test_a_transcoder_reads_at_one_site_and_writes_at_another(model: Any) -> None:
    made: list[Tensor] = []

    def read(x: Tensor, tap: Any) -> None:
        made.append(tap("hook_toy_acts", TOY.acts(x)) @ TOY.decoder)

    def write(x: Tensor, _tap: Any) -> Tensor:
        return made.pop()

    def switch_off(acts: Tensor, _hook: Any) -> None:
        acts[..., 3] = 0

    site = "blocks.1.mlp.hook_in"
    with (
        model.spliced_function(site, read, POINTS[:1], SIZES),
        model.spliced_function(SITE, write, []),
    ):
        _, cache = model.run_with_cache(tokens())
        got = model.run_with_hooks(tokens(), [(f"{site}.hook_toy_acts", switch_off)]).logits
    same(cache[SITE], TOY.acts(cache[site]) @ TOY.decoder)
    acts = cache[f"{site}.hook_toy_acts"].clone()
    acts[..., 3] = 0
    expected = model.run_with_hooks(tokens(), [(SITE, lambda x, hook: acts @ TOY.decoder)]).logits
    same(got, expected)


def test_the_self_test_covers_them(model: Any) -> None:
    with spliced(model):
        report = model.check().set_index("name")
    assert {ACTS, ERROR} <= set(report.index)
    assert report.ok.all(), report[~report.ok]


@torch.no_grad()
def test_in_generation() -> None:
    model = nl.load()
    width = model.config.hidden_size
    enc = torch.randn(width, 9, generator=torch.Generator().manual_seed(1))
    prompt = model.to_tokens("The king went to")

    def function(x: Tensor, tap: Any) -> Tensor:
        acts = tap("hook_few", torch.relu(x @ enc))
        return x + (acts @ enc.T) / width

    def plain(x: Tensor, _hook: Any) -> Tensor:
        return x + (torch.relu(x @ enc) @ enc.T) / width

    site, few = "blocks.1.hook_resid_post", SplicedPoint("hook_few", "batch pos few", "features")
    options = {"max_new_tokens": 6, "return_dict_in_generate": True}
    steps: list[Any] = []
    with model.hooks([(site, plain)]):
        expected = model.generate(prompt, **options).sequences
    with model.spliced_function(site, function, [few], {"few": 9}):
        with model.hooks([(f"{site}.hook_few", lambda x, hook: steps.append(hook.step))]):
            got = model.generate(prompt, **options).sequences
        _, cache = model.run_with_cache(got[:, :-1], f"{site}.hook_few")
    assert torch.equal(got, expected)
    assert steps == list(range(6))
    assert cache["few", 1].shape == (1, got.shape[1] - 1, 9)


# --------------------------------------------------------------------------------------- leaving


def test_it_is_gone_after_an_error(model: Any) -> None:
    before, names = model(tokens()).logits, model.hook_names
    with pytest.raises(KeyError), spliced(model):
        raise KeyError
    assert model.hook_names == names

    def fails(x: Tensor, tap: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.spliced_function(SITE, fails, []):
        model(tokens())
    assert not model.hook_stack.placements
    assert torch.equal(model(tokens()).logits, before)


def test_other_threads_do_not_see_it(model: Any) -> None:
    plain, names = model(tokens()).logits, model.hook_names
    found: dict[str, Any] = {}

    def elsewhere() -> None:
        found["names"] = model.hook_names
        found["logits"] = model(tokens()).logits

    with spliced(model):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert model.hook_names != names
    assert found["names"] == names
    assert torch.equal(found["logits"], plain)


@torch.no_grad()
def test_the_backbone_by_itself_has_it_too(model: Any) -> None:
    with spliced(model):
        assert ACTS in model.gpt_neox.hook_names
        _, cache = model.gpt_neox.run_with_cache(tokens(), ACTS)
        _, whole = model.run_with_cache(tokens(), ACTS)
    assert torch.equal(cache[ACTS], whole[ACTS])
    head = SplicedPoint("hook_top", "batch pos vocab", "logits")
    with model.spliced_function("unembed.hook_out", lambda x, tap: tap("hook_top", x), [head]):
        assert model.hook_names[-1] == "unembed.hook_out.hook_top"
        assert "unembed.hook_out.hook_top" not in model.gpt_neox.hook_names
        _, cache = model.run_with_cache(tokens())
    assert torch.equal(cache["unembed.hook_out.hook_top"], cache["unembed.hook_out"])


# -------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("site", "points", "sizes", "message"),
    [
        (SITE, POINTS, {}, r"unknown length are \['latent'\]"),
        (SITE, POINTS, {"latent": 4, "d_model": 5}, "network does not have"),
        (SITE, (POINTS[0], POINTS[0]), SIZES, "would exist twice"),
        (SITE, (SplicedPoint("acts", "batch pos", "x"),), {}, "expected 'hook_"),
        (SITE, (SplicedPoint("hook_a.b", "batch pos", "x"),), {}, "expected 'hook_"),
        (SITE, (SplicedPoint("hook_z", "batch pos", "x"),), {}, "name of a point of the network"),
        ("blocks.7.hook_mlp_out", POINTS, SIZES, "No hook point"),
    ],
)
def test_points_that_cannot_be(site: str, points: Any, sizes: Any, message: str) -> None:
    model = pair()[1]
    with pytest.raises(HookError, match=message), model.spliced_function(site, TOY, points, sizes):
        pass
    assert not model.hook_stack.placements


def test_the_same_names_twice(model: Any) -> None:
    with spliced(model):
        with pytest.raises(HookError, match="would exist twice"), spliced(model):
            pass
        assert ACTS in model.hook_names
        with spliced(model, "blocks.2.hook_mlp_out"):
            assert len(model.hook_names) == len(set(model.hook_names))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, tap: tap("hook_toy_act", x), "Did you mean 'hook_toy_acts'"),
        (
            lambda x, tap: tap("hook_toy_acts", x),
            r"\[3, 12, 64\]; expected \[batch, pos, latent: 40",
        ),
        (lambda x, tap: tap("hook_toy_acts", x[0]), r"\[12, 64\]; expected \[batch, pos, latent"),
        (lambda x, tap: x[:1], r"shape \[1, 12, 64\]"),
        (lambda x, tap: 3, "returned int"),
    ],
)
def test_functions_that_break_their_word(function: Any, message: str) -> None:
    model = pair()[1]
    with (
        model.spliced_function(SITE, function, POINTS, SIZES),
        pytest.raises(HookError, match=message),
    ):
        model(tokens())


def test_a_site_that_is_never_reached(model: Any) -> None:
    with pytest.raises(HookNeverFiredError, match=r"blocks\.1\.hook_mlp_out"), spliced(model):
        model(tokens(), stop_at_layer=1)
    with spliced(model, must_fire=False):
        model(tokens(), stop_at_layer=1)


@torch.no_grad()
def test_what_nobody_watches_need_not_be_made(model: Any) -> None:
    wanted: list[bool] = []

    def function(x: Tensor, tap: Any) -> None:
        wanted.append(tap.watched("hook_toy_acts"))
        x.zero_()

    with model.spliced_function(SITE, function, POINTS, SIZES):
        _, cache = model.run_with_cache(tokens(), SITE)
        model.run_with_hooks(tokens(), [(ACTS, lambda x, hook: None)], must_fire=False)
    assert wanted == [False, True]
    assert cache[SITE].abs().max() == 0, "edited in place"


def test_a_file_has_no_room_for_what_never_came(tmp_path: Path) -> None:
    """A loaded cache must not hold zeros where the live one has nothing."""
    ours = pair("GPTNeoXForCausalLM")[1].eval()
    acts = SplicedPoint("hook_acts", "batch pos latent", "never sent")
    path = tmp_path / "cache.safetensors"
    ids = tokens(1, 3)
    with (
        ours.spliced_function("blocks.0.hook_mlp_out", lambda x, tap: None, [acts], {"latent": 4}),
        pytest.raises(HookError, match="never reached"),
    ):
        ours.run_with_cache(ids, budget=10, spill=path)
    assert not path.exists()


def test_a_file_has_no_room_for_another_dtype(tmp_path: Path) -> None:
    """What is kept must not be other numbers than what passed."""
    ours = pair("GPTNeoXForCausalLM")[1].eval().bfloat16()
    path = tmp_path / "cache.safetensors"

    def in_float32(x: Tensor, tap: Any) -> None:
        tap("hook_acts", x.float() / 3)

    def run(wide: bool, **options: Any) -> Any:
        acts = SplicedPoint("hook_acts", "batch pos d_model", "in float32", in_float32=wide)
        with ours.spliced_function("blocks.0.hook_mlp_out", in_float32, [acts]):
            return ours.run_with_cache(tokens(1, 3), budget=10, spill=path, **options)[1]

    with pytest.raises(HookError, match=r"float32 in this run; .*bfloat16.*in_float32"):
        run(wide=False)
    assert not path.exists()
    name = "blocks.0.hook_mlp_out.hook_acts"
    cache = run(wide=True)
    same(cache[name], cache["blocks.0.hook_mlp_out"].float() / 3)
    path.unlink()
    assert run(wide=False, dtype=torch.float32)[name].dtype == torch.float32


def test_methods_and_built_ins_can_promise_to_read() -> None:
    class Recorder:
        __slots__ = ("seen",)

        def __init__(self) -> None:
            self.seen: list[str] = []

        def note(self, tensor: Tensor, hook: Any) -> None:
            self.seen.append(hook.name)

    ours = pair("GPTNeoXForCausalLM")[1].eval()
    recorder = Recorder()
    ours.run_with_hooks(tokens(1, 3), [("hook_embed", nl.reads_only(recorder.note))])
    assert recorder.seen == ["hook_embed"]


def test_who_promised_to_read_does_not_write() -> None:
    ours = pair("GPTNeoXForCausalLM")[1].eval()

    @nl.reads_only
    def writes(tensor: Tensor, hook: Any) -> None:
        tensor.mul_(2)

    with torch.no_grad(), pytest.raises(HookError, match="wrote into"):
        ours.run_with_hooks(tokens(1, 3), [("blocks.0.hook_resid_pre", writes)])
