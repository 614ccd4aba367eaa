"""Sweeps through spliced functions give the numbers of one hooked forward pass for each cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from oracle import same
from patching_oracle import one_by_one, prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import HookError, HookNameError, InputError
from neox_lab.experiments.metrics import bind, output_logits
from neox_lab.experiments.patching.ablation import _draw
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.experiments.patching.sites import SITES
from neox_lab.hooks import SplicedPoint

WIDTH, LATENT = 24, 30
POINTS = [SplicedPoint("hook_acts", "batch pos latent", "which features are active")]
# Padding is read on purpose here, by functions that read everything.
pytestmark = pytest.mark.filterwarnings("ignore::neox_lab.errors.PromptWarning")
difference = nl.patching.logit_difference(3, 7)


def any_function(logits: Tensor) -> Tensor:
    """Reads everything."""
    return (logits.softmax(dim=-1)[..., 3] * torch.arange(logits.shape[1])).sum(dim=1).mean()


class Autoencoder:
    """A dictionary with few active features, which gives back something else than its input."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.encoder = torch.randn(WIDTH, LATENT, generator=generator) / 4
        self.decoder = torch.randn(LATENT, WIDTH, generator=generator) / 4

    def __call__(self, x: Tensor, tap: Any) -> Tensor:
        acts = tap("hook_acts", torch.relu(x @ self.encoder - 0.5))
        return acts @ self.decoder + x.flip(-1) / 3


def looks_around(x: Tensor, tap: Any) -> Tensor:
    """Mixes positions, also with later ones."""
    acts = tap("hook_acts", torch.relu(x.mean(dim=1, keepdim=True) + x)[..., :10])
    return x * 0.5 + acts.mean(dim=1, keepdim=True).repeat(1, 1, 3)[..., :WIDTH]


@contextmanager
def spliced(model: Any, *sites: str) -> Iterator[None]:
    """An autoencoder of its own at each of ``sites``."""
    with ExitStack() as stack:
        for number, site in enumerate(sites):
            function = Autoencoder(number)
            stack.enter_context(
                model.spliced_function(site, function, POINTS, {"latent": LATENT}, must_fire=False)
            )
        yield


MLP_OUT = "blocks.1.hook_mlp_out"
EVERYWHERE = (
    "hook_embed",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_pre",
    MLP_OUT,
    "blocks.1.hook_attn_out",
)


def swept(model: Any, clean: Any, corrupted: Any, metric: Any, site: Any, **more: Any) -> Any:
    return nl.patching.sweep(model, clean, corrupted, metric, site, progress=False, **more)


def left_padded(batch: int, pos: int) -> Tensor:
    mask = torch.ones(batch, pos, dtype=torch.long)
    mask[0, :2] = 0
    return mask


def padded(ids: Tensor, mask: Tensor | None) -> Any:
    return ids if mask is None else {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def position_by_position(
    model: Any, source: Any, patched: Any, metric: Any, name: str, value: Any = None
) -> Tensor:
    """The metric with all that stands at ``name`` replaced, one position after the other."""
    sides = [x if isinstance(x, dict) else {"input_ids": x} for x in (source, patched)]
    if value is None:
        _, cache = model.run_with_cache(sides[0]["input_ids"], name, **_mask(sides[0]))
        value = cache[name]
    bound = bind(metric, model, sides[1])
    values = []
    for pos in range(sides[1]["input_ids"].shape[1]):

        def put(x: Tensor, _: Any, pos: int = pos) -> None:
            x[:, pos] = value[:, pos]

        output = model.run_with_hooks(sides[1]["input_ids"], [(name, put)], **_mask(sides[1]))
        values.append(bound(output_logits(output)))
    return torch.stack(values)


def _mask(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in arguments.items() if name == "attention_mask"}


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_every_site_with_functions_everywhere(site: str, parallel: bool, padding: bool) -> None:
    if site == "resid_mid" and parallel:
        pytest.skip("parallel blocks have no resid_mid")
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 5, 1)
    mask = left_padded(2, 5) if padding else None
    for metric, places in itertools.product((difference, any_function), ([MLP_OUT], EVERYWHERE)):
        plain = one_by_one(model, clean, corrupted, metric, site, mask)
        with spliced(model, *places):
            wanted = one_by_one(model, clean, corrupted, metric, site, mask)
            got = swept(model, padded(clean, mask), padded(corrupted, mask), metric, site)
        same(got.values, wanted)
        assert got.axes == SITES[site].axes and got.complete
        assert float(wanted.max() - wanted.min()) > 0.003  # patching does something
        assert float((wanted - plain).abs().max()) > 0.01  # and so do the functions


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("metric", [difference, any_function])
@pytest.mark.parametrize("budget", [1, 17, 4096])
def test_every_hook_point_with_positions(
    parallel: bool, padding: bool, metric: Any, budget: int
) -> None:
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(2, 5, 1)
    mask = left_padded(2, 5) if padding else None
    sides = padded(clean, mask), padded(corrupted, mask)
    moved = 0
    with spliced(model, *EVERYWHERE):
        names = [
            point.name
            for point in model.hook_points.values()
            if point.axes[:2] == ("batch", "pos") and point.name.startswith(("blocks", "hook_em"))
        ]
        assert "hook_embed.hook_acts" in names and f"{MLP_OUT}.hook_acts" in names
        for name in names:
            wanted = position_by_position(model, *sides, metric, name)
            got = swept(model, *sides, metric, name, budget=budget)
            same(got.values, wanted)
            assert got.axes == ("pos",) and got.site == (name,)
            moved += float(wanted.max() - wanted.min()) > 0.003
    assert moved > len(names) / 2


def test_functions_that_look_ahead() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, 3)
    early = nl.patching.logit_difference(3, 7, pos=1)  # left of all that differs
    place = model.spliced_function(
        "blocks.0.hook_resid_post",
        looks_around,
        [SplicedPoint("hook_acts", "batch pos few", "ten numbers")],
        {"few": 10},
    )
    with place:
        for site in ("resid_pre", "v", "z_all_pos"):
            wanted = one_by_one(model, clean, corrupted, early, site)
            same(swept(model, clean, corrupted, early, site).values, wanted)
            assert float(wanted.max() - wanted.min()) > 0.001
        name = "blocks.0.hook_resid_post.hook_acts"
        same(
            swept(model, clean, corrupted, early, name).values,
            position_by_position(model, clean, corrupted, early, name),
        )


def test_every_way_to_name_a_hook_point() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    with spliced(model, MLP_OUT):
        wanted = swept(model, clean, corrupted, difference, f"{MLP_OUT}.hook_acts")
        short = swept(model, clean, corrupted, difference, ("acts", -1))
        assert short.site == wanted.site
        torch.testing.assert_close(short.values, wanted.values, rtol=0, atol=0)
        both = swept(model, clean, corrupted, difference, [("acts", 1), MLP_OUT])
        assert both.axes == ("site", "pos")
        same(both[f"{MLP_OUT}.hook_acts"].values, wanted.values)
        alias = swept(model, clean, corrupted, difference, "gpt_neox.layers.1.mlp")
        same(both[MLP_OUT].values, alias.values)
        assert "pos" in wanted.frame.columns and wanted.view() is not None
    assert not torch.equal(swept(model, clean, corrupted, difference, MLP_OUT).values, alias.values)


@pytest.mark.parametrize("metric", [difference, any_function])
def test_single_entries(metric: Any) -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    latents = [7, 0, 11, 29, 4]
    with spliced(model, *EVERYWHERE):
        for name, numbers in (
            (f"{MLP_OUT}.hook_acts", latents),
            ("blocks.0.mlp.hook_pre", [39, 2]),
        ):
            got = swept(model, clean, corrupted, metric, name, entries=numbers, budget=50)
            assert got.axes == ("pos", model.hook_points[name].axes[-1])
            assert got.labels[got.axes[1]] == list(map(str, numbers))
            _, cache = model.run_with_cache(clean, name)
            _, own = model.run_with_cache(corrupted, name)
            for column, number in enumerate(numbers):
                value = own[name].clone()
                value[..., number] = cache[name][..., number]
                wanted = position_by_position(model, clean, corrupted, metric, name, value)
                same(got.values[:, column], wanted)
        name = f"{MLP_OUT}.hook_acts"
        zero = nl.patching.ablate(
            model, clean, metric, name, "zero", entries=latents, progress=False
        )
        value = model.run_with_cache(clean, name)[1][name].clone()
        value[..., 11] = 0
        same(zero.values[:, 2], position_by_position(model, clean, clean, metric, name, value))
        for site, wrong in (
            *(("z", [1]), (name, [30]), (name, []), (name, [2, 2]), (name, [1, -29])),
            *((name, [1.5]), (name, [True, False]), (name, True), (name, (2, 1))),
        ):
            with pytest.raises(InputError, match="entries"):
                swept(model, clean, corrupted, metric, site, entries=wrong)
        mask = torch.arange(30) % 7 == 4
        for same_ones in (mask, slice(4, None, 7), (4, None, 7), [4, 11, 18, -5], range(4, 30, 7)):
            got = swept(model, clean, corrupted, metric, name, entries=same_ones)
            assert got.labels["latent"] == ["4", "11", "18", "25"]
            one = swept(model, clean, corrupted, metric, name, entries=11)
            same(got.values[:, 1], one.values[:, 0])
        with pytest.raises(InputError, match="three"):
            swept(model, clean, corrupted, metric, "blocks.0.attn.hook_q", entries=[1])


def test_without_a_splice_a_hook_point_is_the_site_it_is() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    for name, site in (("hook_mlp_out", "mlp_out"), ("hook_resid_pre", "resid_pre")):
        wanted = swept(model, clean, corrupted, difference, site)
        got = swept(model, clean, corrupted, difference, f"blocks.1.{name}")
        same(got.values, wanted.values[1])
        same(got.samples, wanted.samples[:, 1])
        assert got.clean == pytest.approx(wanted.clean, abs=1e-5)


@pytest.mark.parametrize("head", ["sequence-classification", "question-answering"])
def test_heads(head: str) -> None:
    model = small(head)
    clean, corrupted = prompts(2, 5, 1)
    metrics: list[Any] = [lambda logits: (logits.softmax(dim=-1)[..., 1] ** 2).sum()]
    metrics.append(
        nl.patching.class_logit(1, 2) if "class" in head else nl.patching.span_logit(2, 3)
    )
    with spliced(model, *EVERYWHERE):
        for metric, site in itertools.product(metrics, ("resid_post", "k")):
            wanted = one_by_one(model, clean, corrupted, metric, site)
            same(swept(model, clean, corrupted, metric, site).values, wanted)
        name = "blocks.0.hook_resid_post.hook_acts"
        for metric in metrics:
            wanted = position_by_position(model, clean, corrupted, metric, name)
            same(swept(model, clean, corrupted, metric, name).values, wanted)


def test_named_positions_that_move_and_noising() -> None:
    model = small()
    clean, corrupted = prompts(2, 6, 1)
    name = f"{MLP_OUT}.hook_acts"
    where: dict[str, Any] = {"subject": (1, 3), "last": -1}
    with spliced(model, *EVERYWHERE):
        _, cache = model.run_with_cache(clean, [name, MLP_OUT])
        for site in (name, MLP_OUT, "mlp_out"):
            full = MLP_OUT if site == "mlp_out" else site
            got = swept(model, clean, corrupted, difference, site, positions=where).values
            value = cache[full].clone()
            value[:, 3] = cache[full][:, 1]
            wanted = position_by_position(model, clean, corrupted, difference, full, value)
            same(got if site != "mlp_out" else got[1], wanted[[3, 5]])
        noised = swept(model, clean, corrupted, difference, name, direction="noising")
        same(noised.values, position_by_position(model, corrupted, clean, difference, name))
        cached = swept(model, model.run_with_cache(clean)[1], corrupted, difference, name)
        same(cached.values, swept(model, clean, corrupted, difference, name).values)


@pytest.mark.parametrize("value", ["zero", "mean", "mean_by_pos", "resample"])
@pytest.mark.parametrize("site", [f"{MLP_OUT}.hook_acts", "mlp_out", "z", "v_all_pos"])
def test_ablation(value: Any, site: str) -> None:
    model = small()
    clean, _ = prompts(3, 5, 1)
    with spliced(model, MLP_OUT, "blocks.0.hook_attn_out"):
        got = nl.patching.ablate(model, clean, difference, site, value, progress=False)
        hook = site if "." in site else f"blocks.1.{SITES[site].hook}"
        _, cache = model.run_with_cache(clean, hook)
        found = cache[hook]
        stand_in = {
            "zero": lambda: torch.zeros_like(found),
            "mean": lambda: found.flatten(0, 1).mean(dim=0).expand_as(found),
            "mean_by_pos": lambda: found.mean(dim=0, keepdim=True).expand_as(found),
            "resample": lambda: found[
                _draw(Prompts(clean, None), Prompts(clean, None), True, 0, False)
            ],
        }[value]()
        if site in ("z", "v_all_pos"):
            whole = found.clone()
            pos = 3 if site == "z" else slice(None)
            whole[:, pos, 2] = stand_in[:, pos, 2]
            output = model.run_with_hooks(clean, [(hook, lambda x, _: whole)])
            wanted = bind(difference, model, {"input_ids": clean})(output_logits(output))
            same(got.values[1, 3, 2] if site == "z" else got.values[1, 2], wanted)
        else:
            wanted = position_by_position(model, clean, clean, difference, hook, stand_in)
            same(got.values if "." in site else got.values[1], wanted)


def test_what_is_refused() -> None:
    model = small()
    clean, corrupted = prompts(2, 5, 1)
    with spliced(model, "ln_final.hook_normalized"):
        with pytest.raises(HookError, match=r"ln_final\.hook_normalized"):
            swept(model, clean, corrupted, difference, "z")
        with pytest.raises(HookError, match=r"ln_final\.hook_normalized"):
            nl.patching.ablate(model, clean, difference)
    with (
        spliced(model, MLP_OUT),
        model.hooks([("blocks.0.hook_mlp_out", lambda x, _: x)], must_fire=False),
        pytest.raises(HookError, match="Hooks are in place"),
    ):
        swept(model, clean, corrupted, difference, "z")
    for name in ("blocks.0.attn.hook_pattern", "ln_final.hook_normalized", "embed_out.hook_in"):
        with pytest.raises((InputError, HookNameError), match=name.split(".")[0]):
            swept(model, clean, corrupted, difference, name)
    with pytest.raises(HookNameError, match="hook_acts"):
        swept(model, clean, corrupted, difference, f"{MLP_OUT}.hook_acts")
    with spliced(model, MLP_OUT), pytest.raises(InputError, match="same axes"):
        swept(model, clean, corrupted, difference, ["z", f"{MLP_OUT}.hook_acts"])
