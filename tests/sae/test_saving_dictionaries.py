"""What is written is read again, by us and in the layouts of other libraries.

That those libraries load what is exported is seen with ``make_files.py exports``, where they are
installed; here the files are held against what the libraries wrote themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from safetensors.torch import load_file
from test_loading_dictionaries import EIGHT, FILES, KNOWN, agrees, given, suite

from neox_lab.errors import CheckpointError, ConfigError, InputError
from neox_lab.sae import Dictionary, Weights, available, load
from neox_lab.sae.activations import JumpReLU, ReLU, TopK
from neox_lab.sae.normalisation import constant_factor

TRANSCODER = ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out")


@pytest.mark.parametrize("name", KNOWN)
def test_our_own_file_keeps_everything(name: str, tmp_path: Path) -> None:
    dictionary = load(FILES / name, **given(name))
    path = dictionary.save_pretrained(tmp_path / "kept")
    again = load(tmp_path / "kept")
    agrees(again, load_file(FILES / name / "expected.safetensors"))
    for fact in ("kind", "site_in", "site_out", "sources", "expected_l0", "subtracts_b_dec"):
        assert getattr(again, fact) == getattr(dictionary, fact)
    assert again.normalise == dictionary.normalise
    assert path == tmp_path / "kept" / "dictionary.safetensors"
    assert available(tmp_path)["site"].tolist() == [dictionary.site_out]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


LAYOUTS = {
    "sae_lens": [name for name in KNOWN if name.startswith("sae_lens")]
    + [f"circuit_tracer/{kind}" for kind in ("relu", "jumprelu")]
    + [suite("BatchTopKTrainer", 4), suite("GatedSAETrainer", 1), "sparsify/autoencoder/layers.2"],
    "sparsify": [name for name in KNOWN if name.startswith("sparsify")]
    + [suite("TopKTrainer", 3), "sae_lens/topk", "sae_lens/topk_rescaled"],
}


@pytest.mark.parametrize(("layout", "name"), [(k, n) for k, v in LAYOUTS.items() for n in v])
def test_exported_files_say_the_same(layout: str, name: str, tmp_path: Path) -> None:
    dictionary = load(FILES / name, **given(name))
    place = dictionary.export(tmp_path, layout)
    again = load(tmp_path)
    expected = load_file(FILES / name / "expected.safetensors")
    x = expected["x"].flatten(-2) if expected["x"].dim() == 3 else expected["x"]
    torch.testing.assert_close(again(x), expected["out"].view_as(x), atol=2e-5, rtol=1e-5)
    assert (again.site_in, again.site_out) == (dictionary.site_in, dictionary.site_out)
    torch.testing.assert_close(again.encode(x).count, dictionary.encode(x).count)
    theirs = sorted(path.name for path in place.iterdir())
    assert theirs == ["cfg.json", {"sae_lens": "sae_weights", "sparsify": "sae"}[layout]
                      + ".safetensors"]  # fmt: skip


@pytest.mark.parametrize("layout", ["sae_lens", "sparsify"])
def test_configurations_have_the_entries_of_the_library_s_own(layout: str, tmp_path: Path) -> None:
    name = {"sae_lens": "sae_lens/topk", "sparsify": "sparsify/autoencoder/layers.2"}[layout]
    place = load(FILES / name).export(tmp_path, layout)
    ours, theirs = (json.loads((p / "cfg.json").read_text()) for p in (place, FILES / name))
    assert set(theirs) - set(ours) <= {"rescale_acts_by_decoder_norm"}
    assert set(ours) <= set(theirs)
    stored = [p.with_name(p.name) for p in sorted((FILES / name).glob("sae*.safetensors"))]
    kept, made = load_file(stored[0]), load_file(place / stored[0].name)
    assert {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in made.items()}


def random_weights(skip: bool = False) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 9), (9,), (9, 6), (6,), (6, 6))
    made = [torch.randn(*shape, generator=generator) for shape in shapes]
    return Weights(*made[: 5 if skip else 4])


@pytest.mark.parametrize("layout", ["sae_lens", "sparsify"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("transcoder", [True, False])
def test_what_is_folded_is_exact(
    layout: str, subtracts: bool, transcoder: bool, tmp_path: Path
) -> None:
    scale = None if layout == "sae_lens" and transcoder else torch.rand(9) + 0.5
    activation = ReLU() if scale is None else TopK(3, scale=scale)
    sites = TRANSCODER if transcoder else (EIGHT, None)
    dictionary = Dictionary(
        random_weights(skip=transcoder),
        activation,
        site_in=sites[0],
        site_out=sites[1],
        subtracts_b_dec=subtracts,
        normalise=constant_factor(0.3),
        kind="x",
    )
    dictionary.export(tmp_path, layout)
    x = 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(load(tmp_path)(x), dictionary(x), atol=2e-5, rtol=2e-5)


def made(activation: Any, **more: Any) -> Dictionary:
    settings = {"site_in": EIGHT, "kind": "x", **more}
    return Dictionary(random_weights(), activation, **settings)


def test_what_a_library_does_not_have_is_refused(tmp_path: Path) -> None:
    def doubled(x: Any) -> Any:
        return 2 * x, (0.5, 0.0)

    class Own(torch.nn.Module):
        def forward(self, pre: Any) -> Any:
            return pre

    place = tmp_path / "never"
    refused: list[tuple[Dictionary, str, str]] = [
        (made(TopK(3, negative=True)), "sae_lens", "SAELens has no dictionary like"),
        (made(JumpReLU(-torch.ones(9), negative=True)), "sae_lens", "SAELens has no"),
        (made(TopK(3), site_in=TRANSCODER[0], site_out=TRANSCODER[1]), "sae_lens", "none with"),
        (made(ReLU()), "sparsify", "TopK and GroupMax"),
        (made(TopK(3), normalise=doubled), "sparsify", "without normalisation"),
        (made(ReLU(), normalise=doubled), "sae_lens", "no such normalisation"),
        (made(TopK(3), site_in="blocks.1.hook_resid_pre"), "sparsify", "reads and writes one"),
    ]
    for dictionary, layout, message in refused:
        with pytest.raises(ConfigError, match=message):
            dictionary.export(place, layout)
    for dictionary in (made(Own()), made(ReLU(), normalise=doubled)):
        with pytest.raises(ConfigError, match="file can say"):
            dictionary.save_pretrained(place)
    assert not place.exists()
    with pytest.raises(InputError, match="expected one of sae_lens, sparsify"):
        made(ReLU()).export(place, "saelens")
    for write in (made(ReLU()).save_pretrained, lambda path: made(ReLU()).export(path, "sae_lens")):
        with pytest.raises(InputError, match="expected the path"):
            write(3)  # type: ignore[arg-type]
        (tmp_path / "file").write_text("kept")
        with pytest.raises(CheckpointError, match="Cannot write"):
            write(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "kept"


def test_files_of_ours_that_are_damaged(tmp_path: Path) -> None:
    from neox_lab.sae.saving import FILE_FORMAT

    path = made(TopK(3)).save_pretrained(tmp_path)
    tensors, facts = FILE_FORMAT.read(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for change, message in (
        ({"activation": {"name": "Own"}}, "'Own' is not known"),
        ({"activation": {"name": "TopK", "size": 3}}, "is no dictionary"),
        ({"normalise": "whitening"}, "'whitening' is not known"),
        ({"site_in": None}, "site_in=None"),
        ({"subtracts_b_dec": "no"}, "expected True or False"),
    ):
        FILE_FORMAT.write(path, tensors, facts | change)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    FILE_FORMAT.write(path, {**tensors, "rotation": torch.ones(1)}, facts)
    with pytest.raises(CheckpointError, match="holds rotation"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="Cannot read a dictionary"):
        load(tmp_path)


def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Path) -> None:
    dictionary = random_dictionary(64)
    kept = dictionary.save_pretrained(tmp_path).read_bytes()
    with torch.no_grad():
        dictionary.W_dec[3, 0] = torch.nan
    with pytest.raises(ConfigError, match="W_dec holds NaN"):
        dictionary.save_pretrained(tmp_path)
    for layout in ("sae_lens", "sparsify"):
        with pytest.raises(ConfigError, match="W_dec holds NaN"):
            dictionary.export(tmp_path / layout, layout)
        assert not (tmp_path / layout).exists()
    assert (tmp_path / "dictionary.safetensors").read_bytes() == kept
