"""Cross-layer transcoders and crosscoders written and read again, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_cross_layer as layers
import test_crosscoder as models
import torch
from torch import Tensor, nn

from neox_lab.errors import CheckpointError, ConfigError, HookNameError, InputError
from neox_lab.sae import Crosscoder, CrossLayerTranscoder, available, load
from neox_lab.sae.saving import FILE_FORMAT
from neox_lab.sae.shared_top_k import SharedTopK

MORE = dict.fromkeys(("skip_connection", "enable_feature_offset", "enable_feature_scale"), True) | {
    "decoder_tying": "per_source"
}
KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "jumprelu, all there is": {"activation_fn": "jumprelu", **MORE},
    "shared decoders": {"decoder_tying": "per_source"},
    "statistics": {"normalization_method": "mean_std", "statistics": True},
    "topk": {"activation_fn": "topk", "topk_k": 3, "topk_mode": "per_layer"},
    "batchtopk": {"activation_fn": "batchtopk", "batchtopk_k": 3},
}


def same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def alike(module: nn.Module, again: nn.Module) -> None:
    held, other = module.state_dict(), again.state_dict()
    assert list(held) == list(other)
    same(held.values(), other.values())
    for fact in ("kind", "sources", "sites_in", "sites_out", "sites", "expected_l0", "decoder_of"):
        assert getattr(module, fact, None) == getattr(again, fact, None)


@pytest.mark.parametrize("name", KINDS)
def test_a_cross_layer_transcoder(name: str, tmp_path: Path) -> None:
    settings = dict(KINDS[name])
    layers.coding(tmp_path / "theirs", statistics=settings.pop("statistics", False), **settings)
    clt, x = load(tmp_path / "theirs") if name != "statistics" else load(tmp_path), layers.inputs()
    assert isinstance(clt, CrossLayerTranscoder)
    path = clt.save_pretrained(tmp_path / "ours" / "deep")
    again = load(tmp_path / "ours")
    assert isinstance(again, CrossLayerTranscoder)
    alike(clt, again)
    same([c.values for c in again.encode(x)], [c.values for c in clt.encode(x)])
    same(again(x), clt(x))
    assert (again.activation == clt.activation) or not isinstance(clt.activation, SharedTopK)
    assert [p.name for p in path.parent.iterdir()] == ["dictionary.safetensors"]
    row = available(tmp_path / "ours").iloc[0]
    assert (row["subfolder"], row["format"], row["site"]) == ("deep", "neox_lab", None)
    with pytest.raises(InputError, match="leave site and layer out"):
        load(tmp_path / "ours", layer=1)


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_circuit_tracer_s_files_as_ours(name: str, tmp_path: Path) -> None:
    clt = load(layers.FILES / name)
    clt.save_pretrained(tmp_path)
    alike(clt, load(tmp_path))


def crosscoders() -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    statistics = {
        "activation_mean": models.randn(5, models.N, models.D),
        "activation_std": models.randn(6, models.N, models.D).abs() + 0.2,
        "target_rms": torch.tensor(1.0),
    }
    top_k = {"k": torch.tensor(4), "threshold": torch.tensor(-1.0)}
    jump = {"k": torch.tensor(4), "threshold": torch.tensor(0.4)}
    return {
        "relu": (models.tensors(), {}),
        "statistics": (models.tensors(**statistics), {"code_normalization": "SAE"}),
        "top k by penalty": (models.tensors(**top_k), {}),
        "batch top k": (models.tensors(**jump), {"code_normalization": "NONE"}),
    }


@pytest.mark.parametrize("name", crosscoders())
def test_a_crosscoder(name: str, tmp_path: Path) -> None:
    held, config = crosscoders()[name]
    coder = load(models.write(tmp_path / "theirs", held, **config), site=("resid_post", 3))
    assert isinstance(coder, Crosscoder)
    coder.save_pretrained(tmp_path / "ours")
    again, x = load(tmp_path / "ours"), models.inputs()
    assert isinstance(again, Crosscoder)
    alike(coder, again)
    same([again.encode(x).values, *again(x)], [coder.encode(x).values, *coder(x)])
    assert load(tmp_path / "ours", site=("resid_post", 3)).sites == coder.sites
    with pytest.raises(CheckpointError, match="No dictionary has site"):
        load(tmp_path / "ours", site=("resid_post", 2))
    coder.sites = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
    coder.save_pretrained(tmp_path / "ours")
    assert load(tmp_path / "ours").sites == coder.sites
    assert available(tmp_path / "ours")["site"].tolist() == [None]


def small(tmp_path: Path) -> tuple[CrossLayerTranscoder, Crosscoder]:
    layers.coding(tmp_path / "clt", activation_fn="jumprelu", **MORE)
    coder = load(models.write(tmp_path / "coder", models.tensors()), site=("resid_post", 3))
    return load(tmp_path / "clt"), coder  # type: ignore[return-value]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    class Own(nn.Module):
        def forward(self, pre: Any) -> Any:
            return pre

    clt, coder = small(tmp_path)
    for made in (clt, coder):
        place = tmp_path / type(made).__name__
        with pytest.raises(InputError, match="expected the path"):
            made.save_pretrained(3)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="Cannot write"):
            made.save_pretrained(tmp_path / "clt" / "cfg.json")
        kept = made.save_pretrained(place).read_bytes()
        bad = made.decoders[2] if isinstance(made, CrossLayerTranscoder) else made.decoder
        with torch.no_grad():
            before = bad[0, 0].clone()
            bad[0, 0] = torch.nan
        with pytest.raises(ConfigError, match=r"W_dec.*holds NaN"):
            made.save_pretrained(place)
        with torch.no_grad():
            bad[0, 0] = before
        activation = made.activation
        made.activation = [Own()] * 3 if isinstance(made, CrossLayerTranscoder) else Own()
        with pytest.raises(ConfigError, match="not one that a file can say"):
            made.save_pretrained(place)
        made.activation = activation
        assert (place / "dictionary.safetensors").read_bytes() == kept
        assert [p.name for p in place.iterdir()] == ["dictionary.safetensors"]
        for statistics in ("threshold",) if made is clt else ():
            getattr(made.activations[1], statistics)[3] = torch.nan
            with pytest.raises(ConfigError, match="threshold of layer 1"):
                made.save_pretrained(place)
    clt.sites_in = ("blocks.0.mlp.hook_in",)
    with pytest.raises(ConfigError, match="sites_in has 1 entries for 3 layers"):
        clt.save_pretrained(tmp_path / "never")
    coder.sites = ("blocks.0.mlp.hook_in",)
    with pytest.raises(ConfigError, match="expected 2 hook points"):
        coder.save_pretrained(tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_damaged_files(tmp_path: Path) -> None:
    clt, coder = small(tmp_path)
    changes: dict[Any, list[tuple[dict[str, Any], str]]] = {
        clt: [
            ({"what": "transcoder"}, "what 'transcoder' is not known"),
            ({"what": []}, "is not known"),
            ({"what": "crosscoder"}, "lacks W_enc"),
            ({"activation": {"name": "Other"}}, "is not known"),
            ({"activation": [{"name": "JumpReLU"}]}, "which no such dictionary has|entries|is no"),
            ({"activation": {"name": "SharedTopK", "k": -1}}, "k=-1"),
            ({"activation": {"name": "SharedTopK", "k": 3, "joint": 1}}, "joint=1"),
            ({"decoders": None}, "decoders=None"),
            ({"decoders": [[0, 0]]}, "decoders"),
            ({"decoders": [[0, 0, 0]]}, "speaks of other W_dec"),
            ({"skips": [[0]]}, "skips"),
            ({"skips": [[0, 7]]}, "lacks W_skip.0.7"),
            ({"sites_in": ["a"]}, "sites_in has 1 entries"),
            ({"sites_out": "abc"}, "sites_out='abc'"),
            ({"sites_out": ["a"]}, "which no such dictionary has"),
            ({"kind": 3}, "kind=3"),
        ],
        coder: [
            ({"sites": ["a"]}, "expected 2 hook points"),
            ({"sites": [1, 2]}, "sites=1"),
            ({"activation": {"name": "TopK"}}, "is no crosscoder"),
            ({"expected_l0": "x"}, "expected_l0='x'"),
        ],
    }
    for made, listed in changes.items():
        path = made.save_pretrained(tmp_path / "file")
        tensors, facts = FILE_FORMAT.read(path)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        for change, message in listed:
            FILE_FORMAT.write(path, tensors, facts | change)
            with pytest.raises(CheckpointError, match=message):
                load(tmp_path / "file")
        for name in tensors:
            FILE_FORMAT.write(path, {n: t for n, t in tensors.items() if n != name}, facts)
            with pytest.raises(CheckpointError, match=r"lacks|tensors for|needs|other W_dec|is no"):
                load(tmp_path / "file")
        FILE_FORMAT.write(path, {**tensors, "rotation": torch.ones(1)}, facts)
        with pytest.raises(CheckpointError, match="holds rotation"):
            load(tmp_path / "file")


def test_a_file_names_the_sites_of_its_model(tmp_path: Path) -> None:
    clt, _ = small(tmp_path)
    clt.save_pretrained(tmp_path / "kept")
    import neox_lab as nl

    clt.sites_in = tuple(f"blocks.{i + 40}.mlp.hook_in" for i in range(3))
    clt.save_pretrained(tmp_path / "far")
    with pytest.raises(HookNameError):
        load(tmp_path / "far", model=nl.load())
