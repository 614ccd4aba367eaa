"""Cross-layer transcoders in the network against hand-written hooks with dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import test_crosscoder as models
import torch
from dictionaries import random_cross_layer, random_dictionary
from oracle import CLASSES, padding_masks, pair, same, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, HookNameError, HookNeverFiredError, InputError
from neox_lab.sae import Crosscoder, CrossLayerTranscoder
from neox_lab.sae.activations import JumpReLU, ReLU
from neox_lab.sae.shared_top_k import SharedTopK

L, D = 3, 64
WHAT = {
    "plain": {},
    "jump": {"jump": True},
    "skip": {"skip": True},
    "received": {"received": True, "jump": True},
    "everything": {"jump": True, "skip": True, "received": True, "normalised": True},
    "in place": {"sites": ("blocks.{}.hook_resid_post",) * 2},
}
PARTS = ("input", "acts", "recons", "error")


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


def at(clt: CrossLayerTranscoder, layer: int, part: str) -> str:
    return f"{clt.sites_out[layer]}.hook_sae_{part}"


def encoded(clt: Any, layer: int, x: Tensor) -> Tensor:
    if clt.into:
        x = (x - clt.into[layer].mean) / clt.into[layer].scale
    pre = x @ clt.W_enc(layer) + clt.b_enc[layer]
    chosen = clt.activation[layer]
    return pre.relu() * (pre > chosen.threshold if isinstance(chosen, JumpReLU) else 1)


def decoded(clt: Any, target: int, acts: list[Tensor], x: list[Tensor]) -> Tensor:
    """A matrix for each pair of layers, and nothing sparse."""
    total = clt.b_dec[target]
    skips = clt.weights.W_skip
    for source in range(target + 1):
        a = acts[source]
        if clt.offset:
            a = (a + clt.offset[target]) * clt.scale[target] * (a != 0)
        total = total + a @ clt.W_dec(source, target)
        if (source, target) in skips:
            read = x[source]
            if clt.into:
                read = (read - clt.into[source].mean) / clt.into[source].scale
            total = total + read @ skips[source, target].T
    return total * clt.out[target].scale + clt.out[target].mean if clt.out else total


class ByHand:
    """Two hooks a layer that do what the splice does."""

    def __init__(self, clt: Any, edits: Any = None, *, error: bool = True) -> None:
        self.clt, self.edits, self.error = clt, edits or {}, error
        self.kept: dict[str, Tensor] = {}
        self.x: dict[int, Tensor] = {}
        self.acts: dict[int, Tensor] = {}
        self.new: dict[int, Tensor] = {}

    def read(self, layer: int) -> Any:
        def look(x: Tensor, hook: Any) -> None:
            self.x[layer] = x

        return look

    def write(self, layer: int) -> Any:
        def change(target: Tensor, hook: Any) -> Tensor:
            clt = self.clt
            if clt.sites_in[layer] == clt.sites_out[layer]:
                self.x[layer] = target
            self.acts[layer] = encoded(clt, layer, self.x[layer])
            self.new[layer] = self.acts[layer].clone()
            if layer in self.edits:
                self.new[layer] = self.edits[layer](self.acts[layer].clone())
            x = [self.x[i] for i in range(layer + 1)]
            unedited, recons = (
                decoded(clt, layer, [acts[i] for i in range(layer + 1)], x)
                for acts in (self.acts, self.new)
            )
            error = target - unedited
            parts = [self.x[layer], self.new[layer], recons, error]
            for part, tensor in zip(PARTS, parts[: 4 if self.error else 3], strict=False):
                self.kept[at(clt, layer, part)] = tensor
            return recons + error if self.error else recons

        return change

    @property
    def hooks(self) -> Any:
        elsewhere = self.clt.sites_in[0] != self.clt.sites_out[0]
        return [
            entry
            for i in range(self.clt.layers)
            for entry in [(self.clt.sites_in[i], self.read(i))] * elsewhere
            + [(self.clt.sites_out[i], self.write(i))]
        ]


def edits_of(clt: Any) -> Any:
    def first(acts: Tensor, hook: Any = None) -> Tensor:
        acts[..., 3] += 0.7
        acts[..., 4] = 0
        return acts

    def last(acts: Tensor, hook: Any = None) -> Tensor:
        acts[:, 2:, ::2] = 0
        return acts

    return {0: first, clt.layers - 1: last}


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("what", WHAT)
@torch.no_grad()
def test_it_is_what_dense_hooks_do(model: Any, what: str, error: bool) -> None:
    clt = random_cross_layer(**WHAT[what])
    arguments = {"attention_mask": padding_masks()["left"]}
    seen = []
    for edits in ({}, edits_of(clt), {1: edits_of(clt)[0]}):
        hand = ByHand(clt, edits, error=error)
        expected = model.run_with_hooks(tokens(), hand.hooks, **arguments).logits
        hooks = [(at(clt, layer, "acts"), edit) for layer, edit in edits.items()]
        with model.spliced(clt, error=error), model.hooks(hooks):
            bare = model(tokens(), **arguments).logits
            output, cache = model.run_with_cache(tokens(), **arguments)
        same(bare, expected, 1e-4)
        same(output.logits, expected, 1e-4)
        for name, tensor in hand.kept.items():
            same(cache[name], tensor, 1e-4)
        assert (at(clt, 1, "error") in cache) == error
        seen.append(expected)
    assert min((seen[0] - other).abs().max() for other in seen[1:]) > 0.1


@pytest.mark.parametrize("what", ["plain", "everything"])
@torch.no_grad()
def test_an_edit_adds_its_rows_to_the_layer_and_to_those_after_it(model: Any, what: str) -> None:
    """``delta * W_dec[s, j]`` at each: hooks that add just that give the same network."""
    clt, ids = random_cross_layer(**WHAT[what]), tokens()
    clt.offset = torch.nn.ParameterList()  # with which an edit from 0 on would not be linear
    plain = model.run_with_cache(ids, [*clt.sites_out])[1]
    for source in range(L):
        for delta in (0.5, 2.0):
            rows = [clt.W_dec(source, j)[7] for j in range(source, L)]
            if clt.scale:
                rows = [r * clt.scale[source + n][7] for n, r in enumerate(rows)]
            if clt.out:
                rows = [r * clt.out[source + n].scale for n, r in enumerate(rows)]

            def put(acts: Tensor, hook: Any, delta: float = delta) -> None:
                acts[:, 4:, 7] += delta

            def added(row: Tensor, delta: float = delta) -> Any:
                def add(x: Tensor, hook: Any) -> None:
                    x[:, 4:] += delta * row

                return add

            by_hand = [(clt.sites_out[source + n], added(row)) for n, row in enumerate(rows)]
            with model.hooks(by_hand):
                out, expected = model.run_with_cache(ids)
            with model.spliced(clt), model.hooks([(at(clt, source, "acts"), put)]):
                got, cache = model.run_with_cache(ids, [*clt.sites_out, "*hook_resid_post"])
                only = model(ids)
            same(got.logits, out.logits)
            same(only.logits, out.logits)
            for name, tensor in cache.items():
                same(tensor, expected[name])
            first = clt.sites_out[source]
            same(cache[first][:, 4:] - plain[first][:, 4:], (delta * rows[0]).expand(3, 8, D), 1e-4)
            for layer in range(source):
                assert torch.equal(cache[clt.sites_out[layer]], plain[clt.sites_out[layer]])


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_nothing_edited_is_nothing_changed(name: str) -> None:
    model, clt = pair(name)[1], random_cross_layer(skip=True)
    more = random_dictionary(D, "blocks.0.hook_resid_post", kind="ReLU", seed=9)
    mask = padding_masks()["left"]

    def outcome(output: Any) -> list[Tensor]:
        return [x for x in output.to_tuple() if isinstance(x, Tensor)]

    plain = outcome(model(tokens(), attention_mask=mask))
    with model.spliced(clt, more):
        unseen = outcome(model(tokens(), attention_mask=mask))
        read, cache = model.run_with_cache(tokens(), "*hook_sae*", attention_mask=mask)
    for left, right, seen in zip(plain, outcome(read), unseen, strict=True):
        assert torch.equal(seen, left)
        assert torch.equal(right, left)
    assert len(cache) == 4 * (L + 1)


def test_gradients_are_those_of_dense_hooks(model: Any) -> None:
    wanted: list[Tensor] = []

    def start(x: Tensor, hook: Any) -> Tensor:
        wanted.append(x.detach().requires_grad_())
        return wanted[-1]

    def score(logits: Tensor) -> Tensor:
        return logits[:, -1, 3].sum()

    for what in ("plain", "everything"):
        clt = random_cross_layer(**WHAT[what])
        hand = ByHand(clt)
        out = model.run_with_hooks(tokens(), [("hook_embed", start), *hand.hooks])
        names = [n for n in hand.kept if not n.endswith("input")]
        expected = torch.autograd.grad(
            score(out.logits), [wanted[-1], *(hand.kept[n] for n in names)]
        )
        with model.spliced(clt):
            _, cache = model.run_with_cache(tokens(), incl_bwd=lambda out: score(out.logits))
            for name, gradient in zip(names, expected[1:], strict=True):
                same(cache[f"{name}_grad"], gradient, 1e-4)
            got = model.run_with_hooks(tokens(), [("hook_embed", start)])
            (plain,) = torch.autograd.grad(score(got.logits), wanted[-1])
        same(plain, expected[0], 1e-4)
        same(cache["hook_embed_grad"], expected[0], 1e-4)
        assert all(parameter.grad is None for parameter in clt.parameters())


@pytest.mark.parametrize("what", ["plain", "everything"])
@torch.no_grad()
def test_every_point_can_be_replaced(model: Any, what: str) -> None:
    clt = random_cross_layer(**WHAT[what])
    sites, x = clt.sites_out, [*clt.sites_in]
    with model.spliced(clt):
        _, other = model.run_with_cache(tokens(seed=3), "*hook_sae*")
        _, plain = model.run_with_cache(tokens())

        def run(layer: int, part: str) -> Any:
            name = at(clt, layer, part)
            with model.hooks([(name, lambda x, hook: other[hook.name])]):
                return model.run_with_cache(tokens())[1]

        for layer in (0, 1):
            after = run(layer, "input")
            read = [plain[s] if i != layer else other[at(clt, i, "input")] for i, s in enumerate(x)]
            acts = [encoded(clt, i, r) for i, r in enumerate(read)]
            same(
                after[sites[layer]],
                decoded(clt, layer, acts, read) + plain[at(clt, layer, "error")],
            )
            later = [after[s] if i != layer else read[i] for i, s in enumerate(x)]
            acts = [encoded(clt, i, r) for i, r in enumerate(later)]
            expected = decoded(clt, 2, acts, later) + after[at(clt, 2, "error")]
            same(after[sites[2]], expected, 1e-4)
            for part, rest in (("recons", "error"), ("error", "recons")):
                after = run(layer, part)[sites[layer]]
                same(after, other[at(clt, layer, part)] + plain[at(clt, layer, rest)])


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_cached_generation_is_uncached_token_for_token(beams: int) -> None:
    model, clt = pair(eos_token_id=None)[1], random_cross_layer(skip=True)
    ids, mask = tokens(pos=6), torch.ones(3, 6, dtype=torch.long)
    ids[0, :3], mask[0, :3] = 1, 0
    hand = ByHand(clt, edits_of(clt), error=False)
    options = {"max_new_tokens": 8, "num_beams": beams, "attention_mask": mask}
    options |= {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}

    def generate(**more: Any) -> Tensor:
        return model.generate(ids, **options | more)

    def first(acts: Tensor, hook: Any) -> None:
        acts[..., 3] += 3

    plain = generate()
    hand = ByHand(clt, error=False)
    with model.hooks(hand.hooks):
        expected = generate(use_cache=False)
    with model.spliced(clt, error=False):
        assert torch.equal(generate(), expected)
        assert torch.equal(generate(use_cache=False), expected)
    with model.spliced(clt):
        assert torch.equal(generate(), plain)
        with model.hooks([(at(clt, 0, "acts"), first)]):
            edited = generate()
            assert torch.equal(edited, generate(use_cache=False))
            assert not torch.equal(edited, plain)
    by_hand = [
        (site, lambda x, hook, j=j: x + 3 * clt.W_dec(0, j)[3])
        for j, site in enumerate(clt.sites_out)
    ]
    with model.hooks(by_hand):
        assert torch.equal(generate(), edited)


@torch.no_grad()
def test_sweeps_and_runs_that_start_later(model: Any) -> None:
    """A sweep's runs begin where the patch is, and yet features of layers before it write."""
    clt = random_cross_layer()
    clean, corrupted = tokens(1, seed=1), tokens(1, seed=2)

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 3] - logits[:, -1, 5]

    for error in (True, False):
        with model.spliced(clt, error=error):
            for part in ("acts", "recons"):
                site = at(clt, 2, part)
                found = nl.patching.sweep(model, clean, corrupted, metric, site)
                _, cache = model.run_with_cache(clean, site)

                def patch(x: Tensor, hook: Any, held: Any = cache) -> None:
                    x[:, 4] = held[hook.name][:, 4]

                by_hand = metric(model.run_with_hooks(corrupted, [(site, patch)]).logits)
                assert abs(float(found.values.flatten()[4]) - float(by_hand)) < 1e-4
    stream = model.run_with_cache(clean)[1]["resid_pre", 1]
    plain = model(clean).logits
    with model.spliced(clt, must_fire=False):
        assert torch.equal(model(inputs_embeds=stream, start_at_layer=1).logits, plain)
        with pytest.raises(HookError, match=r"did not pass layer 0.*start_at_layer=0"):
            model.run_with_cache(stream, start_at_layer=1)
        model.run_with_cache(clean, stop_at_layer=1)  # what this leaves is no part of the next
        with pytest.raises(HookError, match="did not pass layer 0"):
            model.run_with_cache(stream, start_at_layer=1)
        same(model.run_with_cache(clean)[0].logits, plain)
    assert not model.hook_stack.placements


@torch.no_grad()
def test_with_the_error_and_nobody_there_nothing_is_encoded(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clt = random_cross_layer()
    with model.spliced(clt):
        names = list(model.hook_names)
        table = model.hook_table().set_index("name")
        for layer in range(L):
            start = names.index(clt.sites_out[layer])
            assert names[start + 1 : start + 5] == [at(clt, layer, part) for part in PARTS]
            assert table.loc[at(clt, layer, "acts"), "shape"] == "[batch, pos, latent]"
        assert model.check().ok.all()
        monkeypatch.setattr(CrossLayerTranscoder, "encode_layer", None)
        model(tokens())
    half = pair()[1].to(torch.bfloat16)
    plain = half(tokens()).logits
    monkeypatch.undo()
    for made in (random_cross_layer(), random_cross_layer().to(torch.bfloat16)):
        with half.spliced(made):
            output, cache = half.run_with_cache(tokens(), "*hook_sae*")
        assert torch.equal(output.logits, plain)
        assert cache["sae_acts", 1].dtype == torch.float32


def test_one_layer_is_encoded_alone() -> None:
    clt = random_cross_layer(normalised=True, jump=True)
    x = [torch.randn(2, 5, D, generator=torch.Generator().manual_seed(i)) for i in range(L)]
    for layer, codes in enumerate(clt.encode(x)):
        alone = clt.encode_layer(layer, x[layer])
        assert torch.equal(alone.values, codes.values)
        same(alone.dense(), encoded(clt, layer, x[layer]))
    for wrong in (-1, 3, 0.5, "1", None, True):
        with pytest.raises(InputError, match="layer="):
            clt.encode_layer(wrong, x[0])  # type: ignore[arg-type]
    for wrong_x in (x[0][..., :5], x[0].long(), torch.zeros(()), "a", None):
        with pytest.raises(InputError, match=r"expected floating-point \[\*tokens, 64\]"):
            clt.encode_layer(0, wrong_x)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ refusing


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        ({"d": 32}, HookError, r"Layer 0 of .* reads tensors \[batch, pos, 32\]"),
        ({"layers": 4}, HookNameError, "No hook point"),
        ({"sites": ("blocks.{}.hook_mlp_out", "blocks.{}.mlp.hook_in")}, HookError, "earlier than"),
        ({"sites": ("blocks.0.mlp.hook_in", "blocks.{}.hook_mlp_out")}, HookError, "same block"),
        ({"sites": ("blocks.1.hook_mlp_out",) * 2}, HookError, "not after"),
    ],
)
def test_what_does_not_fit(made: Any, error: Any, message: str) -> None:
    model = pair()[1]
    fits = random_dictionary(D, "blocks.0.hook_resid_post")
    with pytest.raises(error, match=message):
        model.spliced(fits, random_cross_layer(**made)).__enter__()
    with pytest.raises(HookError, match="another dictionary is spliced in"):
        model.spliced(random_dictionary(D), random_cross_layer()).__enter__()
    with pytest.raises(HookError, match="another dictionary is spliced in"):
        model.spliced(random_cross_layer(), random_cross_layer()).__enter__()
    with (
        pytest.raises(HookNeverFiredError, match="hook_mlp_out"),
        model.spliced(fits, random_cross_layer()),
    ):
        model(tokens(), stop_at_layer=1)
    assert not model.hook_stack.placements


def test_features_that_compete_are_refused() -> None:
    model, clt = pair()[1], random_cross_layer()
    for joint in (True, False):
        clt.activation = SharedTopK(3, joint=joint)
        with pytest.raises(HookError, match=r"that are encoded together.*JumpReLU"):
            model.spliced(clt).__enter__()
        with pytest.raises(InputError, match="see encode"):
            clt.encode_layer(0, torch.zeros(2, D))


def crosscoder(*sites: str) -> Crosscoder:
    n = len(sites)
    return Crosscoder(
        models.randn(1, n, D, 20), models.randn(2, 20), models.randn(3, n, 20, D),
        models.randn(4, n, D), ReLU(), sites=sites, kind="ReLU",
    )  # fmt: skip


def test_crosscoders_are_refused_in_words() -> None:
    model = pair()[1]
    layers = crosscoder("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
    with pytest.raises(HookError, match=r"W_dec.*model.hooks.*cross-layer transcoder"):
        model.spliced(layers).__enter__()
    with pytest.raises(HookError, match=r"2 models.*run_with_cache.*encode.*specificity.*\.sites"):
        model.spliced(crosscoder(*["blocks.1.hook_resid_post"] * 2)).__enter__()
    assert not model.hook_stack.placements
    with torch.no_grad():  # what the message says to do
        _, cache = model.run_with_cache(tokens())
        codes = layers.encode([cache[site] for site in layers.sites])
        assert codes.count.shape == (3, 12)
        with pytest.raises(InputError, match=r"floating-point; got torch.int64"):
            layers.encode([cache[site].long() for site in layers.sites])
        with pytest.raises(InputError, match=r"encode\(\[cache\[site\] for site"):
            layers.encode(cache)  # type: ignore[arg-type]
        steer = [
            (site, lambda x, hook, i=i: x + 2 * layers.W_dec[i, 5])
            for i, site in enumerate(layers.sites)
        ]
        changed = model.run_with_hooks(tokens(), steer).logits
        assert (changed - model(tokens()).logits).abs().max() > 0.1
