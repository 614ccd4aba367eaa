"""The cells of TransformerLens's notebooks and of the ARENA course run through the door.

``steps/`` has our port of the calls they make. Each step runs with only the library changed, and
its numbers are those that TransformerLens gave: 3.9, whose API the notebooks are written for, as
written down in ``recorded_steps.json``, and 4.3 side by side where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from step_running import RECORDED, Library, difference, far_apart, lay_out_hub, tolerance_of
from steps import STEPS

from neox_lab.gym import weights_directory

CONFIGURATION = "a model of another kind than GPT-NeoX is made from a configuration"
ELSEWHERE = {
    "arena_othello/configuration_of_the_game": CONFIGURATION,
    "grokking/configuration_of_one_layer": CONFIGURATION,
    "no_position/configuration_from_a_dictionary": CONFIGURATION,
    "no_position/configuration_of_ones_own": CONFIGURATION,
    "no_position/loss_of_the_previous_token": CONFIGURATION,
    "no_position/model_without_positions": CONFIGURATION,
    "pythia_notebooks/accumulated_biases": (
        "an MLP of a parallel block does not read what attention writes; there its bias is added"
    ),
    "pythia_notebooks/tokenizer_of_the_model": (
        "the tokenizer's own calls put no beginning-of-text token; there it is changed so that"
        " they do"
    ),
}
"""Steps that do not run as they stand, or give something else, and why."""

NOT_IN_FOUR = {
    "arena_intro_to_mech_interp/hook_dict": "hook points have other names",
    "arena_indirect_objects/path_to_values_of_a_head": "add_hook has no level",
    "arena_intro_to_mech_interp/pattern_from_queries_and_keys": "hook_rot_q never fires",
    "arena_othello/configuration_of_the_game": CONFIGURATION,
    "arena_transformer_from_scratch/attention_called": "attention returns patterns as well",
    "arena_transformer_from_scratch/block_called": "blocks called alone leave out the rotation",
    "arena_transformer_from_scratch/names_and_shapes_of_activations": "more names",
    "arena_transformer_from_scratch/names_and_shapes_of_weights": "parameters have other names",
    "arena_transformer_from_scratch/rotated_keys": "hook_rot_q never fires",
    "attribution_patching/gradients_of_the_stream": "the names of some gradients",
    "attribution_patching/loss_backward": "weights have no gradients of their own",
    "attribution_patching/names_of_heads": "all_head_labels is a list",
    "attribution_patching/streams": "the names of some gradients",
    "config_overhaul/attention": "the configuration has other values",
    "config_overhaul/configuration_without_weights": "no longer a public call",
    "config_overhaul/names": "the model's name has its organisation",
    "config_overhaul/normalisation": "the configuration has other values",
    "config_overhaul/official_name": "no longer a public call",
    "config_overhaul/parameters": "the configuration has other values",
    "config_overhaul/positions": "the configuration has other values",
    "exploratory_analysis/composition_of_all_heads": "all_head_labels is a list",
    "grokking/biases_without_gradients": "parameters have other names",
    "grokking/configuration_of_one_layer": CONFIGURATION,
    "grokking/weights_into_a_state_dict": "parameters have other names",
    "main_demo/cache_on_a_device": "more names",
    "main_demo/configuration": "the configuration has other values",
    "main_demo/names_of_parameters": "parameters have other names",
    "no_position/configuration_from_a_dictionary": CONFIGURATION,
    "no_position/configuration_of_ones_own": CONFIGURATION,
    "no_position/loss_of_the_previous_token": CONFIGURATION,
    "no_position/model_without_positions": CONFIGURATION,
    "pythia_notebooks/cache_to_a_device": "more names",
    "pythia_notebooks/half_of_the_name_in_an_attribute": "the model's name has its organisation",
    "pythia_notebooks/hooks_taken_away_by_their_level": "add_hook has no level",
    "pythia_notebooks/keep_for_other_tokens": "a cache of version 3 is passed over",
    "pythia_notebooks/names_of_a_filter_as_a_list": "more names",
}
"""Steps of version 3 that TransformerLens 4.3 itself does not run, or answers differently."""

EXPECTED = json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hub's cache with the built-in model under the name of Pythia's smallest."""
    folder = tmp_path_factory.mktemp("hub")
    lay_out_hub(folder, {"main": weights_directory(), "step512": weights_directory("step512")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield folder


@pytest.fixture(scope="module")
def door(hub: Path, one_thread: None) -> Library:
    from neox_lab.compat import transformer_lens

    return Library(transformer_lens)


@pytest.fixture(scope="module")
def version_four(hub: Path, one_thread: None) -> Library:
    from version_four import namespace

    return Library(namespace())


def cases(without: dict[str, str]) -> list[Any]:
    """All steps; those that are known to differ are marked, and a mended one turns red."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=without[name]))
        if name in without
        else name
        for name in STEPS
    ]


@pytest.mark.parametrize("name", cases(ELSEWHERE))
def test_step(name: str, door: Library) -> None:
    assert not difference(door.run(STEPS[name]), EXPECTED[name], tolerance_of(name))


def test_how_many_run() -> None:
    assert set(EXPECTED) == {"transformer-lens", *STEPS}
    assert EXPECTED["transformer-lens"] == "3.9.0"
    assert (len(STEPS), len(ELSEWHERE)) == (359, 8)
    page = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
    assert "Of 359 steps" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None,
    reason="needs transformer_lens, which is not installed",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in STEPS if name not in NOT_IN_FOUR | ELSEWHERE])
def test_step_in_version_four(name: str, door: Library, version_four: Library) -> None:
    """All of every tensor, not only the numbers that were written down."""
    ours, theirs = door.run(STEPS[name]), version_four.run(STEPS[name])
    assert not far_apart(ours, theirs, tolerance_of(name))
