"""Dictionaries that the libraries themselves wrote give the libraries' own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neox_lab.errors import CheckpointError, HookNameError, InputError
from neox_lab.sae import available, load
from neox_lab.sae.activations import JumpReLU, TopK

FILES = Path(__file__).parent / "files"
"""Made by ``make_files.py``."""

SUITE = "dictionary_learning/saebench_pythia-160m-deduped/{}_EleutherAI_pythia-160m-deduped_ctx1024"
POST, MLP, ATTN = (f"blocks.2.hook_{name}" for name in ("resid_post", "mlp_out", "attn_out"))
MLP_IN = "blocks.2.mlp.hook_in"


def suite(name: str, number: int) -> str:
    return SUITE.format(name) + f"_0108/resid_post_layer_8/trainer_{number}"


LEARNED, EIGHT = "dictionary_learning/pythia-70m-deduped", "blocks.8.hook_resid_post"
KNOWN: dict[str, tuple[str, str, str]] = {
    "sparsify/autoencoder/layers.2": ("TopK", POST, POST),
    "sparsify/group_max/layers.2.attention": ("GroupMax", ATTN, ATTN),
    "sparsify/transcoder/layers.2.mlp": ("TopK", MLP_IN, MLP),
    "sparsify/skip/seed1/layers.2.mlp": ("TopK", MLP_IN, MLP),
    f"{LEARNED}/mlp_out_layer1/10_32768": ("ReLU", *["blocks.1.hook_mlp_out"] * 2),
    f"{LEARNED}/embed/10_32768": ("ReLU", "hook_embed", "hook_embed"),
    suite("StandardTrainerAprilUpdate", 0): ("ReLU", EIGHT, EIGHT),
    suite("New", 0): ("ReLU", EIGHT, EIGHT),
    suite("GatedSAETrainer", 1): ("Gated", EIGHT, EIGHT),
    suite("JumpReluTrainer", 2): ("JumpReLU", EIGHT, EIGHT),
    suite("TopKTrainer", 3): ("TopK", EIGHT, EIGHT),
    suite("BatchTopKTrainer", 4): ("BatchTopK", EIGHT, EIGHT),
    suite("MatryoshkaBatchTopKTrainer", 5): ("Matryoshka BatchTopK", EIGHT, EIGHT),
    "sae_lens/standard": ("ReLU", POST, POST),
    "sae_lens/standard_not_subtracted": ("ReLU", POST, POST),
    "sae_lens/layer_norm": ("ReLU", POST, POST),
    "sae_lens/constant_norm": ("ReLU", POST, POST),
    "sae_lens/hook_z": ("ReLU", "blocks.2.attn.hook_z", "blocks.2.attn.hook_z"),
    "sae_lens/gated": ("Gated", POST, POST),
    "sae_lens/jumprelu": ("JumpReLU", POST, POST),
    "sae_lens/topk": ("TopK", POST, POST),
    "sae_lens/topk_rescaled": ("TopK", POST, POST),
    "sae_lens/abstopk": ("signed TopK", POST, POST),
    "sae_lens/transcoder": ("ReLU", MLP_IN, MLP),
    "sae_lens/skip_transcoder": ("ReLU", MLP_IN, MLP),
    "sae_lens/jumprelu_transcoder": ("JumpReLU", MLP_IN, MLP),
    "circuit_tracer/relu": ("ReLU", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
    "circuit_tracer/jumprelu": ("JumpReLU", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
    "circuit_tracer/topk": ("TopK", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
}


def given(name: str) -> dict[str, Any]:
    return {"layer": 1} if name.startswith("circuit_tracer") else {}


def agrees(dictionary: Any, expected: dict[str, Tensor]) -> None:
    x = expected["x"]
    x = x.flatten(-2) if x.dim() == 3 else x
    codes = dictionary.encode(x)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(codes.dense(), expected["acts"], **close)
    torch.testing.assert_close(dictionary.decode(codes, x), expected["out"].view_as(x), **close)
    assert (expected["acts"] != 0).any(dim=1).all()


def test_every_file_is_known_here() -> None:
    made = {path.parent.relative_to(FILES).as_posix() for path in FILES.rglob("expected.*")}
    assert made == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_a_library_s_file_gives_the_library_s_numbers(name: str) -> None:
    dictionary = load(FILES / name, **given(name))
    agrees(dictionary, load_file(FILES / name / "expected.safetensors"))
    assert (dictionary.kind, dictionary.site_in, dictionary.site_out) == KNOWN[name]
    assert {"format", "kind", "site", "subtracts_b_dec"} <= set(dictionary.sources)


def test_one_of_many_is_asked_for_by_place_site_or_layer() -> None:
    frame = available(FILES)
    assert len(frame) == len(KNOWN) + 3  # circuit-tracer's have two layers
    assert set(frame["format"]) == {
        "sparsify", "SAELens", "dictionary_learning", "circuit-tracer",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"32 dictionaries fit.*site=, layer= or subfolder="):
        load(FILES)
    assert load(FILES, site="hook_embed").kind == "ReLU"
    assert load(FILES / "dictionary_learning", layer=1).site_in == "blocks.1.hook_mlp_out"
    assert load(FILES, subfolder="sae_lens/gated").kind == "Gated"
    assert load(FILES, subfolder="sparsify/", site=("attn_out", 2)).kind == "GroupMax"
    with pytest.raises(CheckpointError, match=r"2 dictionaries fit.*seed1/layers.2.mlp"):
        load(FILES / "sparsify", site="gpt_neox.layers.2.mlp")
    with pytest.raises(CheckpointError, match="No dictionary has layer 7"):
        load(FILES, layer=7)
    with pytest.raises(CheckpointError, match="Did you mean 'sae_lens/gated'"):
        load(FILES, subfolder="sae_lens/gate")
    with pytest.raises(HookNameError, match="hook_resid_post"):
        load(FILES, site="blocks.2.hook_resid_pots")
    for wrong in ({"layer": -1}, {"k": 0}, {"kind": "relu"}, {"dtype": torch.int8}, {"device": 1j}):
        with pytest.raises(InputError):
            load(FILES, **wrong)  # type: ignore[arg-type]


def changed(tmp_path: Path, name: str, **settings: Any) -> Path:
    """A copy with other settings in its configuration; None takes one away."""
    place = tmp_path / name
    shutil.copytree(FILES / name, place)
    config = json.loads((place / "cfg.json").read_text()) | settings
    kept = {key: value for key, value in config.items() if value is not None}
    (place / "cfg.json").write_text(json.dumps(kept))
    return place


def other_tensors(place: Path, file: str, **tensors: Tensor | None) -> None:
    found: dict[str, Any] = {**load_file(place / file), **tensors}
    save_file({key: value for key, value in found.items() if value is not None}, place / file)


def parts(place: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of sparsify, and an input."""
    return load_file(place / "sae.safetensors"), load_file(place / "expected.safetensors")["x"]


def test_signed_codes_of_early_sparsify(tmp_path: Path) -> None:
    place = changed(tmp_path, "sparsify/autoencoder/layers.2", signed=True, num_latents=None)
    stored, x = parts(place)
    pre = (x - stored["b_dec"]) @ stored["encoder.weight"].T + stored["encoder.bias"]
    kept = pre.where(pre.abs() >= pre.abs().topk(3).values[:, -1:], 0)
    assert (kept < 0).any()
    torch.testing.assert_close(load(place).encode(x).dense(), kept)


def test_transcoders_of_early_sparsify_subtract(tmp_path: Path) -> None:
    place = FILES / "sparsify/transcoder/layers.2.mlp"
    stored, x = parts(place)
    pre = (x - stored["b_dec"]) @ stored["encoder.weight"].T + stored["encoder.bias"]
    kept = pre.relu().where(pre >= pre.topk(3).values[:, -1:], 0)
    early = load(place, subtracts_b_dec=True)
    torch.testing.assert_close(early.encode(x).dense(), kept)
    assert early.sources["subtracts_b_dec"] == "the argument"
    assert "12 February 2025" in load(place).sources["subtracts_b_dec"]


def test_a_configuration_that_contradicts_the_weights(tmp_path: Path) -> None:
    name = "sparsify/autoencoder/layers.2"
    for number, (setting, message) in enumerate(
        [({"num_latents": 25}, "the weights have 24"), ({"activation": "gelu"}, "'gelu' is not")]
    ):
        with pytest.raises(CheckpointError, match=message):
            load(changed(tmp_path / str(number), name, **setting))
    moved = tmp_path / "somewhere"
    shutil.copytree(FILES / name, moved)
    with pytest.raises(CheckpointError, match=r"nothing says where.*give site="):
        load(moved)
    assert load(moved, site=("mlp_out", 4)).site_out == "blocks.4.hook_mlp_out"


def test_the_decoder_of_an_autoencoder_is_scaled_and_that_is_said() -> None:
    dictionary = load(FILES / LEARNED, layer=1)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(24))
    assert "scaled to norm 1" in dictionary.sources["decoder"]


def test_batch_top_k_before_its_threshold_is_known(tmp_path: Path) -> None:
    for name in (suite("BatchTopKTrainer", 4), suite("MatryoshkaBatchTopKTrainer", 5)):
        place = tmp_path / name
        shutil.copytree(FILES / name, place)
        assert isinstance(load(place).activation, JumpReLU)
        stored = torch.load(place / "ae.pt", weights_only=True)
        torch.save({**stored, "threshold": torch.tensor(-1.0)}, place / "ae.pt")
        early = load(place)
        assert isinstance(early.activation, TopK) and early.activation.k == 3
        assert "not estimated yet" in early.sources["threshold"]


def test_top_k_and_batch_top_k_are_not_guessed(tmp_path: Path) -> None:
    shutil.copytree(FILES / suite("BatchTopKTrainer", 4), tmp_path / "resid_post_layer_8")
    place = tmp_path / "resid_post_layer_8"
    (place / "config.json").unlink()
    with pytest.raises(CheckpointError, match="kind='TopK' or kind='BatchTopK'"):
        load(place)
    assert isinstance(load(place, kind="TopK").activation, TopK)
    assert isinstance(load(place, kind="BatchTopK").activation, JumpReLU)


def test_early_top_k_has_its_k_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "resid_post_layer_8"
    shutil.copytree(FILES / suite("TopKTrainer", 3), place)
    stored = torch.load(place / "ae.pt", weights_only=True)
    torch.save({n: t for n, t in stored.items() if n not in ("k", "threshold")}, place / "ae.pt")
    expected = load_file(place / "expected.safetensors")
    agrees(load(place), expected)
    (place / "config.json").unlink()
    with pytest.raises(CheckpointError, match="give k="):
        load(place, kind="TopK")
    agrees(load(place, kind="TopK", k=3), expected)


def test_p_annealing_is_told(tmp_path: Path) -> None:
    name = suite("StandardTrainerAprilUpdate", 0)
    shutil.copytree(FILES / name, tmp_path / "resid_post_layer_8")
    config = {"trainer": {"trainer_class": "PAnnealTrainer", "dict_class": "AutoEncoder"}}
    (tmp_path / "resid_post_layer_8" / "config.json").write_text(json.dumps(config))
    dictionary = load(tmp_path)
    assert dictionary.kind == "P-annealed ReLU" and "PAnnealTrainer" in dictionary.sources["kind"]
    agrees(dictionary, load_file(FILES / name / "expected.safetensors"))


def test_an_interrupted_training_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "resid_post_layer_8"
    place.mkdir()
    state = torch.load(FILES / suite("TopKTrainer", 3) / "ae.pt", weights_only=True)
    torch.save({"step": 5, "ae": state, "optimizer": {}, "norm_factor": 3.0}, place / "ae.pt")
    with pytest.raises(CheckpointError, match=r"stopped .*biases are not scaled back"):
        load(place)


def test_steps_of_a_training(tmp_path: Path) -> None:
    place = tmp_path / suite("TopKTrainer", 3)
    shutil.copytree(FILES / suite("TopKTrainer", 3), place)
    (place / "checkpoints").mkdir()
    for step in (0, 100):
        shutil.copy(place / "ae.pt", place / f"checkpoints/ae_{step}.pt")
    expected = load_file(place / "expected.safetensors")
    assert len(available(tmp_path)) == 1  # the finished one
    agrees(load(tmp_path), expected)
    agrees(load(tmp_path, subfolder=f"{suite('TopKTrainer', 3)}/checkpoints/ae_100.pt"), expected)
    with pytest.raises(CheckpointError, match="2 dictionaries fit"):
        load(place / "checkpoints", kind="TopK")
    agrees(load(place / "checkpoints", subfolder="ae_0.pt", kind="TopK"), expected)
    (place / "ae.pt").unlink()
    assert len(available(place)) == 2
    agrees(load(place, subfolder="checkpoints/ae_0.pt"), expected)


def test_narrow_numbers_become_wide(tmp_path: Path) -> None:
    place = changed(tmp_path, "sparsify/autoencoder/layers.2")
    narrow = {n: t.bfloat16() for n, t in load_file(place / "sae.safetensors").items()}
    save_file(narrow, place / "sae.safetensors")
    assert torch.equal(load(place).W_dec, narrow["W_dec"].float())
    assert load(place, dtype=torch.float64).b_enc.dtype is torch.float64


def test_saelens_of_before_version_6(tmp_path: Path) -> None:
    for name, old in {
        "standard": {"architecture": None, "apply_b_dec_to_input": None},
        "topk": {"architecture": "standard", "k": None, "activation_fn_str": "topk",
                 "activation_fn_kwargs": {"k": 3}, "normalize_activations": False},
    }.items():  # fmt: skip
        flat = {"hook_point": POST, "hook_point_head_index": None, "metadata": None, **old}
        place = changed(tmp_path, f"sae_lens/{name}", **flat)
        expected = load_file(place / "expected.safetensors")
        agrees(load(place), expected)
        assert load(place).sources["format"].startswith("SAELens of before version 6")
        weights = load_file(place / "sae_weights.safetensors")
        other_tensors(place, "sae_weights.safetensors", scaling_factor=torch.ones(24))
        agrees(load(place), expected)
        other_tensors(place, "sae_weights.safetensors", scaling_factor=2 * torch.ones(24))
        with pytest.raises(CheckpointError, match="finetuning factor"):
            load(place)
        assert weights


def test_a_scale_that_is_not_in_the_file_is_asked_for(tmp_path: Path) -> None:
    place = changed(tmp_path, "sae_lens/standard", normalize_activations="expected_average_only_in")
    with pytest.raises(CheckpointError, match="Give norm_scaling_factor="):
        load(place)
    dictionary = load(place, norm_scaling_factor=0.25)
    plain, x = load(FILES / "sae_lens/standard"), 3 * torch.ones(2, 8)
    torch.testing.assert_close(dictionary.encode(x).dense(), plain.encode(x / 4).dense())
    torch.testing.assert_close(dictionary(x), 4 * plain(x / 4))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"architecture": "temporal"}, "temporal SAE"),
        ({"architecture": "matching_pursuit"}, "matching-pursuit"),
        ({"architecture": "new_kind"}, "'new_kind' is not known"),
        ({"normalize_activations": "covariance_whitening"}, "whitening' is not known"),
        ({"apply_b_dec_to_input": "yes"}, "expected True or False"),
        ({"metadata": {"hook_head_index": 3, "sae_lens_version": "6.0.0"}}, "head 3 alone"),
        ({"architecture": "topk"}, "k=None"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
    ],
)
def test_what_saelens_says_and_is_not_read(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(changed(tmp_path, "sae_lens/standard", **setting))


def test_a_set_of_top_k_transcoders_without_its_yaml_can_be_told(tmp_path: Path) -> None:
    place = tmp_path / "topk"
    shutil.copytree(FILES / "circuit_tracer/topk", place)
    (place / "config.yaml").unlink()
    taken_for_relu = load(place, layer=1)
    assert taken_for_relu.kind == "ReLU" and "TopK looks the same" in taken_for_relu.sources["kind"]
    expected = load_file(place / "expected.safetensors")
    assert (expected["acts"] < 0).any()
    agrees(load(place, layer=1, kind="TopK", k=18), expected)
    with pytest.raises(CheckpointError, match="k=None"):
        load(place, layer=1, kind="TopK")
    (place / "config.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match="YAML"):
        load(place, layer=1)


def test_gemma_scope_s_names_are_the_other_way_round(tmp_path: Path) -> None:
    stored = load_file(FILES / "circuit_tracer/jumprelu/layer_1.safetensors")
    renamed = {
        "w_enc": stored["W_enc"].T.contiguous(),
        "w_dec": stored["W_dec"],
        "b_enc": stored["b_enc"],
        "b_dec": stored["b_dec"],
        "threshold": stored["activation_function.threshold"],
    }
    save_file(renamed, tmp_path / "layer_1.safetensors")
    agrees(load(tmp_path), load_file(FILES / "circuit_tracer/jumprelu/expected.safetensors"))


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_s_names_multiplied_out(tmp_path: Path, skip: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    shapes = {"w_enc": (5, 9), "w_dec": (9, 5), "b_enc": (9,), "b_dec": (5,), "threshold": (9,)}
    shapes |= {"affine_skip_connection": (5, 5)} if skip else {}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["threshold"] = made["threshold"].abs()
    save_file(made, tmp_path / "layer_3.safetensors")
    dictionary = load(tmp_path)
    assert (dictionary.site_in, dictionary.site_out) == (
        "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out",
    )  # fmt: skip
    x = torch.randn(4, 5, generator=generator)
    acts, out = torch.zeros(4, 9), torch.zeros(4, 5)
    for token in range(4):
        for latent in range(9):
            pre = made["b_enc"][latent].clone()
            for d in range(5):
                pre += x[token, d] * made["w_enc"][d, latent]
            acts[token, latent] = pre if pre > made["threshold"][latent] else 0
        for d in range(5):
            out[token, d] = made["b_dec"][d]
            for latent in range(9):
                out[token, d] += acts[token, latent] * made["w_dec"][latent, d]
            for read in range(5 if skip else 0):
                out[token, d] += x[token, read] * made["affine_skip_connection"][read, d]
    assert (acts > 0).sum() > 5 and dictionary.kind == "JumpReLU"
    torch.testing.assert_close(dictionary.encode(x).dense(), acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary(x), out, atol=1e-5, rtol=1e-5)
    del made["threshold"]
    save_file(made, tmp_path / "layer_3.safetensors")
    with pytest.raises(CheckpointError, match="lacks threshold"):
        load(tmp_path)


def test_what_is_no_dictionary_of_one_site_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a cross-layer transcoder"):
        load(changed(tmp_path, "sparsify/autoencoder/layers.2", cross_layer=12))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("")
    with pytest.raises(CheckpointError, match=r"no dictionary of a layout known.*readme.md"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("form", "file", "damage"),
    [
        ("ours", "dictionary.safetensors", b"\xff" * 100),
        ("sae_lens/standard", "cfg.json", b"["),
        ("circuit_tracer/relu", "config.yaml", b"a: ["),
    ],
)
def test_one_that_is_damaged_does_not_hide_the_others(
    tmp_path: Path, form: str, file: str, damage: bytes
) -> None:
    place = tmp_path / "all" / "damaged"
    if form == "ours":
        random_dictionary(8, "blocks.0.hook_resid_post").save_pretrained(place)
    else:
        shutil.copytree(FILES / form, place)
    (place / file).write_bytes(damage)
    good = random_dictionary(8, "blocks.1.hook_mlp_out")
    for name in ("sound", "sound/below"):
        good.save_pretrained(tmp_path / "all" / name)
    for choice in ({"subfolder": "sound/below"}, {"subfolder": "./sound/below/"}):
        agreed = load(tmp_path / "all", **choice)
        assert torch.equal(agreed.W_dec, good.W_dec)
    shutil.rmtree(tmp_path / "all" / "sound" / "below")
    assert torch.equal(load(tmp_path / "all", layer=1).W_dec, good.W_dec)
    assert torch.equal(load(tmp_path / "all", site=("mlp_out", 1)).W_dec, good.W_dec)
    table = available(tmp_path / "all").set_index("subfolder")
    assert table.loc["damaged", "refused"].startswith("damaged:")
    assert table.loc["sound", "refused"] == "" and len(table) == 2
    with pytest.raises(CheckpointError, match="is damaged: "):
        load(tmp_path / "all", subfolder="damaged")
    with pytest.raises(CheckpointError, match=r"2 dictionaries fit.*damaged \(not readable\)"):
        load(tmp_path / "all")


def hostile(place: Path, kind: str) -> str:
    """Damage a copy of sparsify's autoencoder, or put an ae.pt beside; what must be said."""
    weights, config = place / "sae.safetensors", place / "cfg.json"
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        return "damaged or cut short"
    if kind == "garbage":
        weights.write_bytes(b"\xff" * 100)
        return "damaged or cut short"
    if kind == "json":
        config.write_text("{")
        return "cannot be read as JSON"
    if kind == "list":
        config.write_text("[]")
        return "expected a JSON object"
    if kind == "k":
        config.write_text('{"k": "many", "d_in": 8}')
        return "k='many'"
    if kind == "nan":
        other_tensors(place, weights.name, W_dec=torch.full((24, 8), torch.nan))
        return "W_dec holds NaN"
    if kind == "shape":
        other_tensors(place, weights.name, b_dec=torch.zeros(9))
        return r"b_dec is \[9\]"
    if kind == "missing":
        other_tensors(place, weights.name, b_dec=None)
        return "lacks b_dec"
    assert kind == "unknown"
    other_tensors(place, weights.name, rotation=torch.zeros(2))
    return "holds rotation, which no such dictionary has"


@pytest.mark.parametrize(
    "kind", ["cut", "garbage", "json", "list", "k", "nan", "shape", "missing", "unknown"]
)
def test_damaged_files_are_one_clear_error(tmp_path: Path, kind: str) -> None:
    place = changed(tmp_path, "sparsify/autoencoder/layers.2")
    message = hostile(place, kind)
    with pytest.raises(CheckpointError, match=message):
        load(place)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    place = tmp_path / "resid_out_layer1"
    place.mkdir()
    for content in (nn.Linear(2, 2), {"bias": 3}, [1], {"encoder.weight": torch.zeros(2, 2)}):
        torch.save(content, place / "ae.pt")
        with pytest.raises(CheckpointError, match=r"refused|no tensor|expected named|lacks"):
            load(place)
    (place / "ae.pt").write_bytes(b"PK\3\4 cut")
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load(place)
