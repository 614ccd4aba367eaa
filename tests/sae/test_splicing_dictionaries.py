"""Dictionaries in the network against hand-written hooks with dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import MLP, dense, random_dictionary
from oracle import CLASSES, padding_masks, pair, same, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.completion import hook_names
from neox_lab.errors import HookError, HookNameError, HookNeverFiredError
from neox_lab.sae.codes import Codes
from neox_lab.sae.normalisation import constant_factor, constant_norm, layer_norm

D = 64
RESID, IN = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in"
KINDS = ("ReLU", "TopK", "TopK signed", "TopK scaled", "JumpReLU", "Gated")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "subtracts b_dec": {"subtracts_b_dec": True},
    "layer norm": {"normalise": layer_norm},
    "constant norm": {"normalise": constant_norm, "subtracts_b_dec": True},
    "factor": {"normalise": constant_factor(0.3)},
    "skip": {"skip": True},
    "resid": {"site": RESID},
    "transcoder": {"site": IN, "site_out": MLP},
    "transcoder, skip": {"site": IN, "site_out": MLP, "skip": True},
    "transcoder, normalised": {"site": IN, "site_out": MLP, "normalise": layer_norm, "skip": True},
}


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def at(site: str, part: str) -> str:
    return f"{site}.hook_sae_{part}"


class ByHand:
    """Two hooks that do what the splice does, with dense matrices."""

    def __init__(self, dictionary: Any, edit: Any = None, *, error: bool = True) -> None:
        self.dictionary, self.edit, self.error = dictionary, edit, error
        self.x: Any = None
        self.kept: dict[str, Tensor] = {}

    def read(self, x: Tensor, hook: Any) -> None:
        self.x = x

    def write(self, target: Tensor, hook: Any) -> Tensor:
        x = self.x if self.dictionary.is_transcoder else target
        acts = self.dictionary.encode(x).dense()
        recons = dense(self.dictionary, acts, x)
        new = acts.clone() if self.edit is None else self.edit(acts.clone())
        self.kept = {"input": x, "acts": new, "recons": dense(self.dictionary, new, x)}
        out = self.kept["recons"]
        if self.error:
            self.kept["error"] = target - recons
            out = out + self.kept["error"]
        return out

    @property
    def hooks(self) -> Any:
        site_in, site_out = self.dictionary.site_in, self.dictionary.site_out
        return [(site_in, self.read)] * self.dictionary.is_transcoder + [(site_out, self.write)]


def variants() -> Any:
    cases = [(kind, "plain") for kind in KINDS] + [("ReLU", name) for name in VARIANTS]
    return pytest.mark.parametrize(("kind", "variant"), [*dict.fromkeys(cases)])


@variants()
@pytest.mark.parametrize("error", [True, False])
@torch.no_grad()
def test_it_is_what_dense_hooks_do(model: Any, kind: str, variant: str, error: bool) -> None:
    ours = random_dictionary(D, kind=kind, **VARIANTS[variant])
    mask = padding_masks()["left"]
    arguments = {"attention_mask": mask}
    codes = ours.encode(model.run_with_cache(tokens(), ours.site_in, **arguments)[1][ours.site_in])
    feature = int(codes.indices[1, 6, 0])

    def edit(acts: Tensor, hook: Any = None) -> Tensor:
        acts[..., feature] = 0
        acts[..., 7] += 0.5
        return acts

    for change in (None, edit):
        hand = ByHand(ours, change, error=error)
        expected = model.run_with_hooks(tokens(), hand.hooks, **arguments).logits
        with model.spliced(ours, error=error):
            hooks = [] if change is None else [(at(ours.site_out, "acts"), change)]
            with model.hooks(hooks):
                bare = model(tokens(), **arguments).logits
                output, cache = model.run_with_cache(tokens(), **arguments)
        same(bare, expected, 1e-4)
        same(output.logits, expected, 1e-4)
        for part, tensor in hand.kept.items():
            same(cache[at(ours.site_out, part)], tensor, 1e-4)
        assert (at(ours.site_out, "error") in cache) == error


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("variant", ["plain", "transcoder, skip", "layer norm"])
@torch.no_grad()
def test_nothing_edited_is_nothing_changed(name: str, variant: str) -> None:
    model = pair(name)[1]
    ours = random_dictionary(D, **VARIANTS[variant])
    more = random_dictionary(D, "blocks.0.hook_resid_post", kind="ReLU", seed=9)
    mask = padding_masks()["left"]

    def outcome(output: Any) -> list[Tensor]:
        return [x for x in output.to_tuple() if isinstance(x, Tensor)]

    plain = outcome(model(tokens(), attention_mask=mask))
    open_run, cache = model.run_with_cache(tokens(), attention_mask=mask)
    with model.spliced(ours, more), model.hooks([("*hook_sae_acts", lambda x, hook: None)]):
        copied = outcome(model(tokens(), attention_mask=mask))
    with model.spliced([ours, more]):
        unseen = outcome(model(tokens(), attention_mask=mask))
        read, after = model.run_with_cache(tokens(), attention_mask=mask)
    for left, right, seen in zip(plain, copied, unseen, strict=True):
        same(right, left)
        assert torch.equal(seen, left)
    for left, right in zip(outcome(read), outcome(open_run), strict=True):
        same(left, right)
    for site, tensor in cache.items():
        same(after[site], tensor)
    assert torch.equal(after[at(ours.site_out, "input")], after[ours.site_in])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_edit_changes_the_site_by_its_row_of_the_decoder(model: Any, variant: str) -> None:
    ours = random_dictionary(D, kind="ReLU", **VARIANTS[variant])
    _, plain = model.run_with_cache(tokens())
    acts = ours.encode(plain[ours.site_in]).dense()
    feature = int(acts[2, 5].argmax())
    with model.spliced(ours):

        def ablate(x: Tensor, hook: Any) -> None:
            x[..., feature] = 0

        with model.hooks([(at(ours.site_out, "acts"), ablate)]):
            _, cache = model.run_with_cache(tokens())
    factor = 1.0 if ours.is_transcoder else ours.normalise(plain[ours.site_in])[1][0]
    lost = factor * (acts[..., feature, None] * ours.W_dec[feature])
    assert lost.abs().max() > 0.1
    same(cache[ours.site_out], plain[ours.site_out] - lost)
    same(
        cache[at(ours.site_out, "recons")] + cache[at(ours.site_out, "error")], cache[ours.site_out]
    )


@torch.no_grad()
def test_every_point_can_be_replaced(model: Any) -> None:
    ours = random_dictionary(D, IN, site_out=MLP, kind="ReLU")
    other = {part: f"{MLP}.hook_sae_{part}" for part in ("input", "recons", "error")}
    with model.spliced(ours):
        _, cache = model.run_with_cache(tokens(seed=3), "*hook_sae*")
        _, plain = model.run_with_cache(tokens())

        def run(part: str) -> Tensor:
            patch = (other[part], lambda x, hook: cache[hook.name])
            with model.hooks([patch]):
                return model.run_with_cache(tokens(), MLP)[1][MLP]

        written = ours.decode(ours.encode(cache[other["input"]]))
        same(run("input"), written + plain[other["error"]])
        same(run("recons"), cache[other["recons"]] + plain[other["error"]])
        same(run("error"), plain[other["recons"]] + cache[other["error"]])


def test_gradients_are_those_of_dense_hooks(model: Any) -> None:
    wanted: list[Tensor] = []

    def start(x: Tensor, hook: Any) -> Tensor:
        wanted.append(x.detach().requires_grad_())
        return wanted[-1]

    def score(logits: Tensor) -> Tensor:
        return logits[:, -1, 3].sum()

    for variant in ("plain", "layer norm", "transcoder, skip"):
        ours = random_dictionary(D, kind="ReLU", **VARIANTS[variant])
        hand = ByHand(ours)
        embed = "hook_embed"
        out = model.run_with_hooks(tokens(), [(embed, start), *hand.hooks])
        expected = torch.autograd.grad(score(out.logits), [wanted[-1], *hand.kept.values()])
        by_part = dict(zip(hand.kept, expected[1:], strict=True))
        with model.spliced(ours):
            _, cache = model.run_with_cache(tokens(), incl_bwd=lambda out: score(out.logits))
            for part in ("acts", "recons", "error"):
                same(cache[f"{at(ours.site_out, part)}_grad"], by_part[part], 1e-4)
            got = model.run_with_hooks(tokens(), [(embed, start)])
            (plain,) = torch.autograd.grad(score(got.logits), wanted[-1])
        same(plain, expected[0], 1e-4)
        same(cache["hook_embed_grad"], expected[0], 1e-4)
        assert all(parameter.grad is None for parameter in ours.parameters())


@torch.no_grad()
def test_nothing_dense_unless_it_is_looked_at(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = random_dictionary(D)
    made: list[int] = []
    original = Codes.dense
    monkeypatch.setattr(Codes, "dense", lambda codes: made.append(1) or original(codes))
    monkeypatch.setattr("neox_lab.sae.bags.SPARSE", 0)  # as if it had many features
    with model.spliced(ours, error=False):
        model.run_with_cache(tokens(), "*hook_sae_recons")
        assert not made
        model.run_with_cache(tokens(), "*hook_sae_acts")
        assert len(made) == 1


@torch.no_grad()
def test_with_the_error_and_nobody_there_nothing_is_encoded(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = random_dictionary(D)

    def fail(*given: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(type(ours), "encode", fail)
    with model.spliced(ours):
        model(tokens())


@torch.no_grad()
def test_a_transcoder_reads_what_the_mlp_reads(model: Any) -> None:
    """Also what hooks that were placed later made of it."""
    ours = random_dictionary(D, IN, site_out=MLP)

    def double(x: Tensor, hook: Any) -> Tensor:
        return 2 * x

    with model.hooks([(IN, double)]):
        _, plain = model.run_with_cache(tokens(), [IN, MLP])
    with model.spliced(ours, error=False), model.hooks([(IN, double)]):
        _, cache = model.run_with_cache(tokens())
        same(cache[at(MLP, "input")], plain[IN])
        same(cache[MLP], ours(plain[IN]))
    with model.spliced(ours), model.hooks([(IN, double)]):
        _, cache = model.run_with_cache(tokens())
    same(cache[at(MLP, "error")], plain[MLP] - ours(plain[IN]))


@torch.no_grad()
def test_heads_side_by_side_are_one_tensor(model: Any) -> None:
    ours = random_dictionary(D, "blocks.1.attn.hook_z", kind="ReLU")
    _, plain = model.run_with_cache(tokens())
    with model.spliced(ours, error=False):
        _, cache = model.run_with_cache(tokens())
    same(cache["z", 1].flatten(2), ours(plain["z", 1].flatten(2)))
    assert cache["sae_acts", 1].shape == (3, 12, 40)


@torch.no_grad()
def test_half_precision_keeps_what_it_had() -> None:
    model = pair()[1].to(torch.bfloat16)
    plain = model(tokens()).logits
    for ours in (random_dictionary(D), random_dictionary(D, IN, site_out=MLP).to(torch.bfloat16)):
        with model.spliced(ours):
            copied = model.run_with_hooks(tokens(), [("*hook_sae_acts", lambda x, hook: None)])
            _, cache = model.run_with_cache(tokens(), "*hook_sae*")
            assert cache.nbytes == model.cache_size(tokens(), "*hook_sae*")
        assert torch.equal(copied.logits, plain)
        assert cache["sae_acts", 1].dtype == cache["sae_error", 1].dtype == torch.float32


@torch.no_grad()
def test_points_are_found_and_kept(model: Any, tmp_path: Path) -> None:
    ours = random_dictionary(D, "gpt_neox.layers.1.mlp")
    parts = ["input", "acts", "recons", "error"]
    with model.spliced(ours) as same_model:
        assert same_model is model
        names = list(model.hook_names)
        start = names.index(MLP)
        assert names[start + 1 : start + 5] == [at(MLP, part) for part in parts]
        row = model.hook_table().set_index("name").loc[at(MLP, "acts")]
        assert row["shape"] == "[batch, pos, latent]"
        assert at(MLP, "acts") in hook_names(f'x = "{MLP}.', {"model": model})[1]
        _, cache = model.run_with_cache(tokens())
        shared = cache[at(MLP, "input")].nbytes  # the site's own tensor
        assert cache.nbytes == model.cache_size(tokens()) - shared
        assert model.check().ok.all()
    cache.save(tmp_path / "cache.safetensors")
    again = nl.ActivationCache.load(tmp_path / "cache.safetensors", model)
    assert torch.equal(again["sae_acts", 1], cache["sae_acts", 1])


# ------------------------------------------------------------------------------------ generation


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("variant", ["layer norm", "transcoder, skip"])
@torch.no_grad()
def test_cached_generation_is_uncached_token_for_token(beams: int, variant: str) -> None:
    model = pair(eos_token_id=None)[1]
    ours = random_dictionary(D, kind="ReLU", **VARIANTS[variant])
    ids, mask = tokens(pos=6), torch.ones(3, 6, dtype=torch.long)
    ids[0, :3], mask[0, :3] = 1, 0
    hand = ByHand(ours, error=False)
    options = {"max_new_tokens": 8, "num_beams": beams, "attention_mask": mask}
    options |= {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}

    def generate(**more: Any) -> Tensor:
        return model.generate(ids, **options | more)

    plain = generate()
    with model.hooks(hand.hooks):
        expected = generate(use_cache=False)
    with model.spliced(ours, error=False):
        assert torch.equal(generate(), expected)
        assert torch.equal(generate(use_cache=False), expected)
    assert not torch.equal(expected, plain)

    def ablate(acts: Tensor, hook: Any) -> None:
        acts[..., ::2] = 0

    with model.spliced(ours):
        assert torch.equal(generate(), plain)
        with model.hooks([(at(MLP, "acts"), ablate)]):
            assert torch.equal(generate(), generate(use_cache=False))
            assert not torch.equal(generate(), plain)


# ---------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"d_in": 32}, HookError, r"reads tensors \[batch, pos, 32\].*64 numbers"),
        ({"d_in": 64, "d_out": 32, "site": IN, "site_out": MLP}, HookError, "writes tensors"),
        ({"d_in": 64, "site": "blocks.7.hook_mlp_out"}, HookNameError, "No hook point"),
        ({"d_in": 64, "site": "blocks.1.hook_resid_mid"}, HookNameError, "parallel"),
        ({"d_in": 64, "site": MLP, "site_out": IN}, HookError, "reads earlier than it writes"),
        (
            {"d_in": 64, "site": "blocks.0.mlp.hook_in", "site_out": MLP},
            HookError,
            "in the same block",
        ),
        ({"d_in": 12, "site": "blocks.1.attn.hook_pattern"}, HookError, "belongs to another"),
        ({"d_in": 64, "site": "blocks.1.mlp.hook_post"}, HookError, "96 numbers"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], error: type[Exception], message: str) -> None:
    model = pair()[1]
    fits = random_dictionary(D, "blocks.0.hook_resid_post")
    with pytest.raises(error, match=message), model.spliced(fits, random_dictionary(**given)):
        pass
    assert not model.hook_stack.placements


def test_two_at_one_site(model: Any) -> None:
    one, other = random_dictionary(D), random_dictionary(D, IN, site_out=MLP)
    with pytest.raises(HookError, match="another dictionary is spliced in"):
        model.spliced(one, other).__enter__()
    with model.spliced(one):
        with pytest.raises(HookError, match="another dictionary is spliced in"):
            model.spliced(other).__enter__()
        assert len(model.hook_stack.placements) == 1
    assert not model.hook_stack.placements


@pytest.mark.parametrize("given", [(), ("dictionary",), (3,), ([],), (None,), ({},)])
def test_what_is_no_dictionary(model: Any, given: Any) -> None:
    with pytest.raises(HookError, match="takes dictionaries of features"):
        model.spliced(*given).__enter__()
    with pytest.raises(HookError, match="error"):
        model.spliced(random_dictionary(D), error=3).__enter__()
    assert not model.hook_stack.placements


def test_nothing_is_left_behind(model: Any) -> None:
    names = model.hook_names
    with pytest.raises(KeyError), model.spliced(random_dictionary(D)):
        raise KeyError
    with (
        pytest.raises(HookNeverFiredError, match="hook_mlp_out"),
        model.spliced(random_dictionary(D)),
    ):
        model(tokens(), stop_at_layer=1)
    assert model.hook_names == names
    assert not model.hook_stack.placements
