"""Dictionaries from a hub: the list costs one request, and only what is read is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file
from small_hub import MAIN, Repository, SmallHub
from test_loading_dictionaries import FILES, agrees

from neox_lab.errors import CheckpointError
from neox_lab.sae import available, load

NAME = "lab/dictionaries"


@pytest.fixture
def repository(hub: SmallHub) -> Repository:
    held = hub.repositories[NAME] = Repository()
    held.commits[MAIN] = {
        path.relative_to(FILES / "sparsify").as_posix(): path.read_bytes()
        for path in (FILES / "sparsify").rglob("*.*")
        if path.is_file()
    }
    return held


def test_one_of_a_repository(hub: SmallHub, repository: Repository) -> None:
    frame = available(NAME)
    assert frame["subfolder"].tolist() == [
        "group_max/layers.2.attention",
        "skip/seed1/layers.2.mlp",
        "transcoder/layers.2.mlp",
        "autoencoder/layers.2",
    ]
    assert frame["layer"].tolist() == [2] * 4
    assert not any("/resolve/" in request for request in hub.requests)
    dictionary = load(NAME, site=("resid_post", 2))
    agrees(dictionary, load_file(FILES / "sparsify/autoencoder/layers.2/expected.safetensors"))
    fetched = {request.split("/")[-1] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"cfg.json", "sae.safetensors"}
    with pytest.raises(CheckpointError, match="4 dictionaries fit"):
        load(NAME, revision="main")


def test_what_a_folder_s_name_says_is_not_fetched(hub: SmallHub, tmp_path: Path) -> None:
    held = hub.repositories[NAME] = Repository()
    for layer in range(4):
        folder = f"v1/blocks.{layer}.hook_resid_post_768"
        ours = load(FILES / "sae_lens/gated").save_pretrained(tmp_path)
        for path in (FILES / "sae_lens/standard").iterdir():
            held.commits[MAIN][f"{folder}/{path.name}"] = path.read_bytes()
        held.commits[MAIN][f"ours/mlp_out_layer{layer}/{ours.name}"] = ours.read_bytes()
    frame = available(NAME)
    assert sorted(frame["site"]) == sorted(
        f"blocks.{layer}.hook_{part}" for layer in range(4) for part in ("resid_post", "mlp_out")
    )
    assert not any("/resolve/" in request for request in hub.requests)
    assert load(NAME, site=("resid_post", 3)).kind == "ReLU"
    assert load(NAME, subfolder="ours", layer=1).kind == "Gated"


def test_a_list_of_transcoders_elsewhere_is_told(hub: SmallHub, repository: Repository) -> None:
    config = b"model_kind: transcoder_set\ntranscoders:\n- hf://a/b/layer_0?revision=main\n"
    repository.commits[MAIN] = {"config.yaml": config}
    with pytest.raises(CheckpointError, match=r"a list of files that lie elsewhere.*hf://a/b"):
        load(NAME)


def test_without_a_network_what_was_fetched_is_there(
    hub: SmallHub, repository: Repository, monkeypatch: Any
) -> None:
    load(NAME, subfolder="skip")
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(NAME, subfolder="skip").W_skip is not None
    with pytest.raises(CheckpointError, match=r"not in the local cache|no file"):
        load(NAME, subfolder="transcoder")


@pytest.mark.parametrize("offline", [True, False])
def test_a_name_of_nothing_is_told_plainly(
    hub: SmallHub, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError) as caught:
        load("nowhere")
    said = str(caught.value)
    reason = "network use is switched off" if offline else "the hub cannot be reached"
    for words in (
        "There is no directory 'nowhere' here", reason, "Ids on the hub look like",
        "Give a local directory that is there", "nl.gym.dictionaries()",
    ):  # fmt: skip
        assert words in said


def test_what_a_hub_does_not_have(hub: SmallHub, repository: Repository) -> None:
    with pytest.raises(CheckpointError, match=r"no revision .branch, tag, commit. 'nightly'"):
        load(NAME, revision="nightly")
    with pytest.raises(CheckpointError, match="The hub shows no model 'lab/nothing'"):
        available("lab/nothing")
    hub.repositories["lab/model"] = Repository()
    with pytest.raises(CheckpointError, match=r"no dictionary of a layout known.*config\.json"):
        load("lab/model")
