"""Questions that train, and those about features, on several devices: the numbers of one device."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_cross_layer, random_dictionary
from logical_devices import AWAY, HOME, LogicalDevices
from test_questions_on_devices import ASKED, FIRST, ONE, numbers

import neox_lab as nl
from neox_lab.errors import HookError, InputError
from neox_lab.interchange import Pairs, Site
from neox_lab.sae import Crosscoder
from neox_lab.sae.activations import ReLU

D, LAYERS = 128, 4
DEVICES = (HOME, AWAY, HOME, AWAY)
NOWHERE = torch.device("cpu", 2)
MLP, RESID = "blocks.{}.hook_mlp_out", "blocks.{}.hook_resid_post"
IDS = torch.randint(2, 250, (6, 9), generator=torch.Generator().manual_seed(3))
TEXTS = [*ASKED[0], *ASKED[1]]


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load(dtype=torch.float64)


def spread(model: Any, devices: LogicalDevices) -> None:
    for layer, device in enumerate(DEVICES):
        devices.put(model.backbone.block(layer), device)
    model.backbone.devices = DEVICES


def transcoder(layer: int) -> Any:
    made = random_dictionary(
        D,
        f"blocks.{layer}.mlp.hook_in",
        site_out=MLP.format(layer),
        kind="ReLU",
        skip=layer == 1,
        seed=10 * layer,
    )
    return made.double()


def autoencoder(layer: int) -> Any:
    return random_dictionary(D, RESID.format(layer), kind="TopK", seed=99 + layer).double()


def layers_crosscoder() -> Any:
    randn = torch.Generator().manual_seed(5)
    shapes = (2, D, 30), (30,), (2, 30, D), (2, D)
    weights = [torch.randn(*shape, generator=randn) * 0.3 for shape in shapes]
    sites = [RESID.format(layer) for layer in (1, 2)]
    return Crosscoder(*weights, ReLU(), sites=sites, kind="ReLU").double()  # type: ignore[arg-type]


def halved(x: torch.Tensor, _: Any) -> torch.Tensor:
    return x * 0.5


def spliced(model: Any, *dictionaries: Any, error: bool) -> Any:
    """What an edit of features does to the logits, and what stands at the points."""
    acts = [point for point in ("hook_sae_input", "hook_sae_acts", "hook_sae_recons")]
    with model.spliced(*dictionaries, error=error):
        names = [name for name in model.hook_points if name.rpartition(".")[2] in acts]
        edited = [name for name in names if name.endswith("acts")]
        assert len(edited) >= len(dictionaries)
        hooks = [(name, lambda x, hook: x * 1.5) for name in edited]
        with model.hooks(hooks):
            output, cache = model.run_with_cache(IDS, names)
    return torch.cat([output.logits.flatten(), *(cache[name].flatten() for name in names)])


def trained_lens(model: Any) -> Any:
    settings = {"steps": 3, "tokens_per_step": 20, "batch_size": 2, "progress": False}
    made = nl.lens.TunedLens.train(model, IDS, **settings)
    return torch.cat([made.lens.weight.flatten(), made.lens.bias.flatten()])


def collected(model: Any, folder: Path) -> Any:
    names = [RESID.format(1), MLP.format(2)]
    stored = nl.activations.collect(model, IDS.tolist(), names, folder, progress=False)
    return torch.cat([stored[name][:] for name in names])


def pairs_of(rows: slice) -> Pairs:
    base, source = IDS[rows], IDS.flip(0)[rows] + 1
    return Pairs(base, source, [5, 6, 7][: len(base)], [8, 9, 10][: len(base)])  # type: ignore


def aligned(model: Any, question: Any, site: Any) -> Any:
    halves = pairs_of(slice(0, 3)), pairs_of(slice(3, 6))
    found = question(
        model, *halves, Site(site, -1), epochs=2, batch_size=2, nulls=1, progress=False
    )
    return found.frame


def circuit(model: Any) -> Any:
    made = [transcoder(1), autoencoder(1), transcoder(3)]
    found = nl.features.circuit(model, made, *ASKED[:1], ASKED[2], ASKED[1], steps=2)
    return torch.cat([numbers(found.frame).flatten(), numbers(found.edges(1e-3).frame).flatten()])


def pages(model: Any, folder: Path) -> Any:
    made = nl.features.top_examples(model, autoencoder(1), TEXTS, progress=False)
    index = nl.features.pages(made, folder, [0, 1, 2], progress=False)
    files = sorted(index.parent.rglob("*.html"))
    assert len(files) >= 4
    return torch.tensor([byte for path in files for byte in path.read_bytes()])


def graph(model: Any) -> Any:
    made = nl.circuits.attribution_graph(
        model, [transcoder(0), transcoder(1), transcoder(3)], FIRST.clean, interventions=2
    )
    parts = [made.nodes.drop(columns="name", errors="ignore"), made.edges, made.interventions]
    return torch.cat([numbers(part).flatten() for part in parts])


def trained(model: Any) -> Any:
    settings = {"latents": 16, "k": 4, "steps": 3, "batch_size": 32}
    found = nl.sae.train(model, texts=TEXTS, site=("resid_post", 1), **settings)
    return torch.cat([weight.flatten() for weight in found.dictionary.parameters()])


def removed(model: Any) -> Any:
    found = nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1))
    with found.removed():
        logits = model(IDS).logits
    weights = found.remove_from_weights().state_dict().values()
    projected = numbers(found.project(TEXTS[0]).frame)
    return torch.cat([part.flatten().cpu() for part in (logits, projected, *weights)])


def steering_curve(model: Any) -> Any:
    found = nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1))
    return found.evaluate(ONE, FIRST.clean, [0.0, 1.0], controls=1).frame


QUESTIONS: dict[str, Any] = {
    "features.active": lambda m, _: nl.features.active(m, transcoder(1), TEXTS).frame,
    "features.circuit": lambda m, _: circuit(m),
    "features.direct": lambda m, _: (
        nl.features.direct(m, autoencoder(3), FIRST.clean, FIRST.correct, FIRST.wrong).frame
    ),
    "features.effects": lambda m, _: (
        nl.features.effects(m, transcoder(1), *ASKED[:1], ASKED[2], ASKED[1], progress=False).frame
    ),
    "features.effects by gradient": lambda m, _: (
        nl.features.effects(
            m, autoencoder(1), *ASKED[:1], ASKED[2], ASKED[1], method="gradient", steps=2
        ).frame
    ),
    "features.effects across layers": lambda m, _: (
        nl.features.effects(
            *(m, random_cross_layer(LAYERS, D).double().layer(1), *ASKED[:1], ASKED[2]),
            progress=False,
        ).frame
    ),
    "features.pages": pages,
    "features.top_examples of neurons": lambda m, _: (
        nl.features.top_examples(m, "blocks.1.mlp.hook_post", TEXTS, progress=False).frame
    ),
    "sae.Dictionary": lambda m, _: spliced(m, transcoder(1), autoencoder(3), error=True),
    "sae.Dictionary alone": lambda m, _: spliced(m, transcoder(1), autoencoder(2), error=False),
    "sae.CrossLayerTranscoder": lambda m, _: spliced(
        m, random_cross_layer(LAYERS, D, skip=True).double(), error=True
    ),
    "sae.Crosscoder": lambda m, _: layers_crosscoder().check(m, TEXTS).frame,
    "sae.check": lambda m, _: transcoder(1).check(m, TEXTS).frame,
    "sae.check across layers": lambda m, _: (
        random_cross_layer(LAYERS, D).double().check(m, TEXTS).frame
    ),
    "sae.train": lambda m, _: trained(m),
    "circuits.attribution_graph": lambda m, _: graph(m),
    "activations.collect": collected,
    "lens.TunedLens.train": lambda m, _: trained_lens(m),
    "interchange.das": lambda m, _: aligned(m, nl.interchange.das, ("z", 1)),
    "interchange.boundless": lambda m, _: aligned(m, nl.interchange.boundless, ("resid_pre", 1)),
    "interchange.mask": lambda m, _: aligned(m, nl.interchange.mask, ("mlp_out", 3)),
    "interchange.sweep": lambda m, _: (
        nl.interchange.sweep(
            *(m, pairs_of(slice(0, 3)), pairs_of(slice(3, 6)), {"last": -1}),
            **{"epochs": 1, "nulls": 0, "progress": False},
        ).frame
    ),
    "interchange.accuracy": lambda m, _: (
        nl.interchange.accuracy(m, pairs_of(slice(0, 3)), Site(("pattern", 3), -1)).frame
    ),
    "steering.direction": lambda m, _: removed(m),
    "steering.evaluate": lambda m, _: steering_curve(m),
}


@pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_gives_the_same_numbers(name: str, model: Any, tmp_path: Path) -> None:
    expected = numbers(QUESTIONS[name](model, tmp_path / "one"))
    with LogicalDevices() as devices:
        spread(model, devices)
        try:
            found = numbers(QUESTIONS[name](model, tmp_path / "several"))
        finally:
            model.backbone.devices = None
        assert devices.moves
    assert len(expected.flatten()) > 0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_question_about_features_stands_above() -> None:
    """So does what trains; tests/oracle/test_spread_questions.py asks those of other rooms."""
    elsewhere = {
        **dict.fromkeys(("available", "load", "open", "read_circuit", "read_scores"), "files"),
        **dict.fromkeys(("acdc", "neuron_scores", "node_scores", "prune_edges", "scores"), "table"),
        "page": "one of pages",
        "plan": "counts",
        "planted": "makes a dictionary",
        "run": "asked in tests/oracle",
    }
    asked = {name.split(" ")[0] for name in QUESTIONS}
    for room in ("activations", "circuits", "features", "interchange", "sae"):
        module = getattr(nl, room)
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                assert f"{room}.{name}" in asked or name in elsewhere, f"{room}.{name}"


def test_a_dictionary_is_where_a_part_of_the_model_is(model: Any) -> None:
    """At the layer or the first device it is spliced in; questions want the first device."""
    made = autoencoder(1)
    hooks = [(RESID.format(1) + ".hook_sae_acts", halved)]
    with model.spliced(made):
        expected = model.run_with_hooks(IDS, hooks).logits
    with LogicalDevices() as devices:
        spread(model, devices)
        devices.put(made, AWAY)
        try:
            seen: list[torch.device] = []
            with (
                model.spliced(made),
                model.hooks([(hooks[0][0], lambda x, _: seen.append(x.device))]),
            ):
                found = model.run_with_hooks(IDS, hooks).logits
            assert found.device == HOME and seen == [AWAY]
            with pytest.raises(InputError, match="on cpu:1, the model on cpu; move one"):
                nl.features.active(model, made, TEXTS)
            devices.put(made, NOWHERE)
            with model.spliced(made), pytest.raises(HookError, match="is on cpu:2"):
                model(IDS)
        finally:
            model.backbone.devices = None
    assert torch.equal(found, expected)
