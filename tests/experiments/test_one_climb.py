"""Each layer's weights are used in one place and time of a question, however large it is."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.patching import spilling
from neox_lab.experiments.patching.sites import SITES

difference = nl.patching.logit_difference(5, 8)

USED: list[int] = []


class Weight(Tensor):
    """A weight of a block that notes whenever something is computed with it."""

    layer: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ("__get__", "is_inference"):  # shape, dtype, device
            USED.extend(each.layer for each in args if isinstance(each, cls))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Reads:
    """Stands for what reads layers from files; there is nothing to read."""

    @contextmanager
    def going(self, first: int, last: int) -> Iterator[range]:
        yield range(first, last)


def watched(**more: Any) -> Any:
    """A model of four layers that cost to be read, whose blocks' weights are watched."""
    model = small(num_hidden_layers=4, **more)
    model.backbone.store = Reads()
    for layer, block in enumerate(model.backbone.layers):
        for module in block.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    own = weight.detach().as_subclass(Weight)
                    own.layer, own._is_param = layer, True  # type: ignore[attr-defined]
                    module._parameters[name] = own  # type: ignore[assignment]
    USED.clear()
    return model


def visits() -> list[int]:
    """Layers in the order in which they were used, each stay once."""
    return [layer for layer, _ in itertools.groupby(USED)]


def everything(logits: Tensor) -> Tensor:
    """Reads all logits."""
    return logits.softmax(dim=-1)[..., 3].mean()


SWEEPS: dict[str, Callable[[Any, Tensor, Tensor], object]] = {
    "many groups": lambda *of: nl.patching.sweep(*of, difference, "z", budget=12, progress=False),
    "all logits": lambda *of: nl.patching.sweep(*of, everything, "k", budget=12, progress=False),
    "named positions": lambda *of: nl.patching.sweep(
        *of, difference, "resid_post", positions={"a": (3, 2)}, progress=False
    ),
    "edges": lambda *of: nl.patching.edge_sweep(*of, difference, tokens_at_once=60, progress=False),
    "paths": lambda *of: nl.patching.path_patch(
        *of, difference, "all", ["L1H0", "MLP2", "L3H1.q", "logits"], tokens_at_once=60
    ),
    "paths through MLPs": lambda *of: nl.patching.path_patch(
        *of, difference, "all", ["L1H0", "MLP2"], through="mlps", tokens_at_once=60
    ),
    "zero": lambda of, clean, _: nl.patching.ablate(of, clean, difference, "z", "zero"),
    "mean": lambda of, clean, other: nl.patching.ablate(
        of, clean, difference, ["attn_out", "mlp_out"], reference=other, budget=12
    ),
    "resample": lambda of, clean, _: nl.patching.ablate(of, clean, difference, "z", "resample"),
}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", SWEEPS)
def test_each_layer_once(name: str, parallel: bool) -> None:
    SWEEPS[name](watched(use_parallel_residual=parallel), *prompts(3, 5, 1))
    assert visits() == [0, 1, 2, 3]


@pytest.mark.parametrize("site", [site for site in SITES if site != "resid_mid"])
def test_each_layer_once_at_every_site(site: str) -> None:
    model = watched()
    nl.patching.sweep(model, *prompts(2, 5, 1), difference, site, budget=20, progress=False)
    assert visits() == [0, 1, 2, 3]


def test_each_layer_once_through_hooks_and_from_a_cache() -> None:
    model, (clean, corrupted) = watched(), prompts(2, 5, 1)
    whole = "blocks.2.mlp.hook_post"
    nl.patching.sweep(model, clean, corrupted, difference, whole, budget=12, progress=False)
    assert visits() == [0, 1, 2, 3]
    _, cache = model.run_with_cache(clean)
    USED.clear()
    nl.patching.get_act_patch_block_every(model, corrupted, cache, difference)
    assert visits() == [0, 1, 2, 3]
    _, own = model.run_with_cache(corrupted)
    USED.clear()
    every = nl.patching.get_act_patch_direct_path_all_sources(
        model, corrupted, cache, own, difference, verbose=False
    )
    assert visits() == [0, 1, 2, 3]
    one = nl.patching.get_act_patch_direct_path(
        model, corrupted, cache, own, difference, 1, 2, verbose=False
    )
    torch.testing.assert_close(every[1, 2], one, rtol=1e-4, atol=1e-4)
    assert bool(one[2:].any()) and not bool(one[:2].any())


@pytest.mark.parametrize("parallel", [True, False])
def test_rows_that_do_not_fit_wait_in_a_file(
    parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(num_hidden_layers=3, use_parallel_residual=parallel).double()
    given = (model, *prompts(3, 6, 1))
    sites = ["z", "k", "blocks.0.mlp.hook_post"]
    for metric, site in zip((difference, everything, difference), sites, strict=True):
        whole = nl.patching.sweep(*given, metric, site, progress=False)
        files: list[Tensor] = []
        mapped = spilling._mapped

        def note(x: Tensor, files: list[Tensor] = files, mapped: Any = mapped) -> Tensor:
            files.append(mapped(x))
            return files[-1]

        with monkeypatch.context() as patch:
            patch.setattr(spilling, "free_memory", lambda device: spilling.SHARE * 2000)
            patch.setattr(spilling, "_mapped", note)
            part = nl.patching.sweep(*given, metric, site, budget=12, progress=False)
        assert len(files) > 1
        torch.testing.assert_close(part.values, whole.values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["no folder", "full", "not mapped"])
def test_no_room_for_the_rows_that_wait(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: Any, **_more: Any) -> None:
        raise RuntimeError("unable to mmap") if kind == "not mapped" else OSError(ENOSPC, "full")

    monkeypatch.setattr(spilling, "free_memory", lambda device: spilling.SHARE * 2000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if kind == "no folder":
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    elif kind == "full":
        monkeypatch.setattr(spilling, "reserve", fails)
    else:
        monkeypatch.setattr(torch.UntypedStorage, "from_file", fails)
    model = small(num_hidden_layers=3)
    with pytest.raises(InputError, match=r"has no room for .* TMPDIR"):
        nl.patching.sweep(model, *prompts(3, 6, 1), difference, "z", budget=12, progress=False)
    assert not list(tmp_path.iterdir())
    assert not model.hook_stack.placements
