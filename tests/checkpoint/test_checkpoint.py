"""Whole models from files and back, with transformers as the judge."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import CLASSES, SIZES, pair, randomize, same, tokens
from safetensors.torch import load_file, save_file
from small_hub import STEP, Repository, SmallHub

import neox_lab as nl
from neox_lab import notices
from neox_lab.checkpoint import load_into
from neox_lab.checkpoint.loading import to_device
from neox_lab.errors import CheckpointError, ConfigError, ShapeError

CAUSAL = "GPTNeoXForCausalLM"


def theirs_saved(folder: Path, name: str = CAUSAL, layout: str = "single", **overrides: Any) -> Any:
    """A model with large random weights, saved by transformers; ``dtype`` is that of the file."""
    dtype = overrides.pop("dtype", torch.float32)
    model = getattr(transformers, name)(transformers.GPTNeoXConfig(**SIZES | overrides)).eval()
    randomize(model)
    model.to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB" if "sharded" in layout else "50GB")
    if layout == "bin":
        tensors = load_file(folder / "model.safetensors")
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif layout == "sharded bin":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for key, file in index["weight_map"].items():
            index["weight_map"][key] = file.replace("safetensors", "bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors.index.json").unlink()
        for path in folder.glob("*.safetensors"):
            torch.save(load_file(path), path.with_suffix(".bin"))
            path.unlink()
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    """State dict under the names on disk."""
    return {key.replace("lm_head", "embed_out"): value for key, value in model.state_dict().items()}


def assert_same_weights(one: Any, other: Any) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert tensor.dtype == second[key].dtype, key
        assert torch.equal(tensor, second[key]), key


def rewrite(folder: Path, change: Any) -> None:
    """Apply ``change`` to the dict of tensors in ``model.safetensors``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "sharded bin"])
def test_theirs_to_ours_to_theirs(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    theirs = theirs_saved(tmp_path / "theirs", layout=layout, dtype=dtype)
    ours, info = nl.GPTNeoXForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(info.values())
    assert_same_weights(ours, theirs)
    if dtype == torch.float32:
        same(ours(tokens()).logits, theirs(tokens()).logits)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="60KB" if "sharded" in layout else "5GB")
    assert ("sharded" in layout) == (tmp_path / "ours" / "model.safetensors.index.json").exists()
    back, info = transformers.GPTNeoXForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    assert_same_weights(back, theirs)
    again = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same_weights(again, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_there_and_back(tmp_path: Path, name: str) -> None:
    theirs = theirs_saved(tmp_path / "theirs", name, num_labels=5)
    ours = getattr(nl, name).from_pretrained(tmp_path / "theirs")
    assert not ours.training
    assert_same_weights(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [name] and config["dtype"] == "float32"
    assert_same_weights(getattr(transformers, name).from_pretrained(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("stored", CLASSES)
@pytest.mark.parametrize("wanted", CLASSES)
def test_every_class_from_every_checkpoint(tmp_path: Path, stored: str, wanted: str) -> None:
    theirs_saved(tmp_path, stored, num_labels=5)
    ours, info = getattr(nl, wanted).from_pretrained(tmp_path, output_loading_info=True)
    theirs, expected = getattr(transformers, wanted).from_pretrained(
        tmp_path, output_loading_info=True
    )
    in_our_names = {name.replace("lm_head", "embed_out") for name in expected["missing_keys"]}
    expected["missing_keys"] = in_our_names
    assert info == expected
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys()
    for key in mine.keys() - expected["missing_keys"]:
        assert torch.equal(mine[key], other[key]), key


def test_index_is_like_theirs(tmp_path: Path) -> None:
    theirs, ours = pair()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    read = [
        json.loads((tmp_path / who / "model.safetensors.index.json").read_text())
        for who in ("ours", "theirs")
    ]
    assert read[0]["metadata"] == read[1]["metadata"]
    assert list(read[0]["weight_map"]) == list(read[1]["weight_map"])  # the same names, sorted
    for name in set(read[0]["weight_map"].values()):
        assert (tmp_path / "ours" / name).is_file()


def test_variant_there_and_back(tmp_path: Path) -> None:
    _, ours = pair()
    ours.save_pretrained(tmp_path)
    randomize(ours, seed=1)
    ours.save_pretrained(tmp_path, variant="other", max_shard_size="60KB")
    for library in (nl, transformers):
        read = getattr(library, CAUSAL).from_pretrained(tmp_path, variant="other")
        assert_same_weights(read, ours)
    assert (tmp_path / "model.safetensors").exists()


# --- names, tied weights, what is missing -------------------------------------------------------


def test_lm_head_and_missing_prefix_and_old_buffers(tmp_path: Path) -> None:
    theirs = theirs_saved(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            short = name.removeprefix("gpt_neox.").replace("embed_out", "lm_head")
            tensors[short] = tensors.pop(name)
        tensors["layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors["layers.0.attention.masked_bias"] = torch.tensor(-1e9)
        tensors["layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(tmp_path, change)
    ours, info = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("case", ["input only", "output only", "equal", "different", "neither"])
def test_tied_embeddings(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs_saved(tmp_path)
    set_config(tmp_path, tie_word_embeddings=True)
    inside, outside = "gpt_neox.embed_in.weight", "embed_out.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if case in ("input only", "neither"):
            del tensors[outside]
        if case in ("output only", "neither"):
            del tensors[inside]
        if case == "equal":
            tensors[outside] = tensors[inside].clone()

    rewrite(tmp_path, change)
    ours, info = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    tied = ours.embed_out.weight is ours.gpt_neox.embed_in.weight
    assert tied == (case != "different")
    assert ("both are kept" in caplog.text) == (case == "different")
    assert info["missing_keys"] == ({inside} if case == "neither" else set())
    if case != "neither":
        theirs = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path)
        assert_same_weights(ours, theirs)
    ours.save_pretrained(tmp_path / "again")
    stored = load_file(tmp_path / "again" / "model.safetensors")
    assert inside in stored and (outside in stored) == (not tied)
    for library in (nl, transformers):
        back = getattr(library, CAUSAL).from_pretrained(tmp_path / "again")
        assert_same_weights(back, ours)


def test_the_built_in_model_is_named_alike_on_every_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="neox_lab")
    nl.load(head="token-classification", labels=["O", "B-X"])
    assert " neox_lab/gym/weights has none" in caplog.text


def test_missing_parameters_are_initialised_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs_saved(tmp_path, "GPTNeoXModel")
    gone = ["layers.1.attention.query_key_value.weight", "layers.1.attention.query_key_value.bias",
            "final_layer_norm.weight", "final_layer_norm.bias", "embed_in.weight"]  # fmt: skip
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in gone])
    ours, info = nl.GPTNeoXModel.from_pretrained(
        tmp_path, output_loading_info=True, initializer_range=0.5
    )
    assert info["missing_keys"] == set(gone)
    assert "is not complete" in caplog.text and "final_layer_norm.bias" in caplog.text
    assert str(tmp_path) in caplog.text
    weight = ours.layers[1].attention.query_key_value.weight
    assert abs(weight.std().item() - 0.5) < 0.03
    assert abs(ours.embed_in.weight.std().item() - 0.5) < 0.03
    assert not ours.layers[1].attention.query_key_value.bias.any()
    assert torch.equal(ours.final_layer_norm.weight, torch.ones(64))
    assert not ours.final_layer_norm.bias.any()


def test_complete_load_draws_no_random_numbers_and_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs_saved(tmp_path)
    before = torch.random.get_rng_state()
    nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"attention_bias": False}, "layers.{0...2}.attention.dense.bias"),
        ({"num_hidden_layers": 2}, "layers.2.mlp.dense_h_to_4h.weight"),
    ],
)
@pytest.mark.parametrize("name", [CAUSAL, "GPTNeoXModel"])
def test_weights_of_the_network_that_are_left_out_are_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, lost: str, name: str
) -> None:
    theirs_saved(tmp_path, name)
    set_config(tmp_path, **change)
    getattr(nl, name).from_pretrained(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and lost in record.message
    assert "so it computes something else" in record.message


def test_a_head_that_is_left_out_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs_saved(tmp_path)
    nl.GPTNeoXModel.from_pretrained(tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("GPTNeoXForSequenceClassification", {"score.weight"}),
        ("GPTNeoXForTokenClassification", {"classifier.weight", "classifier.bias"}),
        ("GPTNeoXForQuestionAnswering", {"qa_outputs.weight", "qa_outputs.bias"}),
    ],
)
def test_a_head_to_be_trained_is_mentioned_and_one_that_is_lost_is_said_aloud(
    tmp_path: Path,
    name: str,
    keys: set[str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "in_notebook", lambda: True)
    caplog.set_level("INFO", logger="neox_lab")
    theirs_saved(tmp_path)
    capsys.readouterr()
    model, info = getattr(nl, name).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == keys
    out, err = capsys.readouterr()
    assert out.startswith(f"The head of this {name} (") and "is new" in out
    assert all(key in out for key in keys) and out.count("\n") == 1 and "new" not in err
    assert [record.levelname for record in caplog.records] == ["INFO"] * len(caplog.records)

    caplog.clear()
    model.save_pretrained(tmp_path / "own")  # this one says that it has the head
    path = tmp_path / "own" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k not in keys}, path)
    _, info = getattr(nl, name).from_pretrained(tmp_path / "own", output_loading_info=True)
    assert info["missing_keys"] == keys
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is not complete" in caplog.text and not capsys.readouterr().out


def test_a_new_head_does_not_hide_what_else_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs_saved(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("gpt_neox.final_layer_norm.bias"))
    nl.GPTNeoXForSequenceClassification.from_pretrained(tmp_path)
    assert "final_layer_norm.bias" in caplog.text and "score.weight" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"


def test_key_mapping_and_state_dict(tmp_path: Path) -> None:
    theirs, ours = pair()
    ours.save_pretrained(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors["module." + name] = tensors.pop(name)

    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match="not of a GPT-NeoX model"):
        nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    mapped = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, key_mapping={r"^module\.": ""})
    assert_same_weights(mapped, theirs)
    given = nl.GPTNeoXForCausalLM.from_pretrained(
        None, config=ours.config, state_dict=theirs.state_dict()
    )
    assert_same_weights(given, theirs)
    given.gpt_neox.embed_in.weight.data.zero_()
    assert theirs.gpt_neox.embed_in.weight.any()  # the caller's tensors are not shared


def test_other_shapes(tmp_path: Path) -> None:
    theirs_saved(tmp_path, "GPTNeoXForSequenceClassification", num_labels=5)
    name = "GPTNeoXForSequenceClassification"
    with pytest.raises(CheckpointError, match=r"score.*\[5, 64\].*\[3, 64\].*ignore_mismatched"):
        getattr(nl, name).from_pretrained(tmp_path, num_labels=3)
    reports = []
    for library in (nl, transformers):
        model, info = getattr(library, name).from_pretrained(
            tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert model.score.weight.shape == (3, 64)
        reports.append(info)
    assert reports[0] == reports[1]


# --- dtypes and devices -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", None, "bfloat16", "torch.float32", torch.float64])
def test_dtype(tmp_path: Path, dtype: Any) -> None:
    stored = theirs_saved(tmp_path, dtype=torch.float16)
    ours = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    wanted = torch.float16
    if dtype not in ("auto", None):
        wanted = getattr(torch, str(dtype).removeprefix("torch."))
    assert {parameter.dtype for parameter in ours.parameters()} == {wanted}
    assert ours.config.dtype == wanted
    assert_same_weights(ours, stored.to(wanted))


def test_dtype_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    theirs_saved(tmp_path, dtype=torch.float16)
    set_config(tmp_path, dtype=None, torch_dtype=None)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(tmp_path, change)
    assert nl.GPTNeoXForCausalLM.from_pretrained(tmp_path).dtype == torch.float16


def test_unknown_dtype(tmp_path: Path) -> None:
    theirs_saved(tmp_path)
    for wrong in ("flaot16", "int8", torch.int64, 16):
        with pytest.raises(ConfigError, match=r"dtype=.*expected one of auto, float32"):
            nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype=wrong)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    theirs_saved(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["embed_out.weight"] = tensors["embed_out.weight"].to(torch.int8)

    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"'embed_out.weight' has dtype I8.*Quantised"):
        nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)


def test_devices() -> None:
    cpu = torch.device("cpu")
    for place in (None, "cpu", cpu, {"": "cpu"}, {"gpt_neox": "cpu", "lm_head": cpu}):
        assert to_device(place) == cpu
    for plan in ("auto", "balanced", "balanced_low_0", "sequential"):
        assert to_device(plan).type in ("cpu", "cuda", "mps")
    spread = {"gpt_neox": "cpu", "embed_out": "disk"}
    for wrong in ("even", spread, {"": "disk"}, {}, "cuda:77", 77, 1.5):
        with pytest.raises(ConfigError, match="device_map="):
            to_device(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_load_to_a_gpu_and_save_from_it(tmp_path: Path) -> None:
    theirs = theirs_saved(tmp_path / "theirs", dtype=torch.float16)
    for device_map in ("auto", 0, "cuda:0", {"": 0}):
        ours = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "theirs", device_map=device_map)
        assert {p.device for p in ours.parameters()} == {torch.device("cuda:0")}
    ours.save_pretrained(tmp_path / "ours")
    assert_same_weights(nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "ours"), theirs)


# --- mapping, sharing, memory -------------------------------------------------------------------


def test_training_a_mapped_model_leaves_its_file_alone(tmp_path: Path) -> None:
    theirs_saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    ours = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_two_names_for_one_memory_become_two_parameters(tmp_path: Path) -> None:
    theirs_saved(tmp_path, layout="bin")
    tensors = torch.load(tmp_path / "pytorch_model.bin")
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    ours = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        ours.embed_out.weight.zero_()
    assert ours.gpt_neox.embed_in.weight.any()


MEASURE = """
import re, sys, torch
from pathlib import Path
from neox_lab import GPTNeoXForCausalLM

def peak():  # of this program alone; ru_maxrss starts with that of the process that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
model = GPTNeoXForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2])
for parameter in model.parameters():
    parameter.data.view(-1).max()
print(peak() - before)
print(model.get_memory_footprint())
assert "sympy" not in sys.modules, "building on the meta device imported half of PyTorch"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "sharded bin"])
def test_peak_memory(tmp_path: Path, layout: str) -> None:
    """At most 1.1 times the weights and 200 MB, pages of mapped files included."""
    config = nl.GPTNeoXConfig(
        vocab_size=50304, hidden_size=1024, num_hidden_layers=12,
        num_attention_heads=16, intermediate_size=4096,
    )  # fmt: skip
    with torch.device("meta"):
        model = nl.GPTNeoXForCausalLM(config)
    tensors = {
        name: torch.full(p.shape, 0.5, dtype=torch.float16) for name, p in model.named_parameters()
    }
    model.save_pretrained(
        tmp_path, state_dict=tensors, max_shard_size="100MB" if "sharded" in layout else "5GB"
    )
    if "bin" in layout:
        for path in tmp_path.glob("*.safetensors"):
            whole = path.name == "model.safetensors"
            name = "pytorch_model.bin" if whole else path.with_suffix(".bin").name
            torch.save(load_file(path), tmp_path / name)
            path.unlink()
        for path in tmp_path.glob("*.index.json"):
            text = path.read_text().replace(".safetensors", ".bin")
            (tmp_path / "pytorch_model.bin.index.json").write_text(text)
            path.unlink()
    for dtype in ("float16", "float32"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), dtype],
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak, size = map(int, done.stdout.split())
        assert peak < 1.1 * size + 200e6, f"{dtype}: {peak / size:.2f} times the weights"


# --- saving safely ------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saving_over_the_directory_a_model_is_mapped_from(tmp_path: Path) -> None:
    theirs = theirs_saved(tmp_path)
    ours = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    assert_same_weights(ours, theirs)
    assert_same_weights(nl.GPTNeoXForCausalLM.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize(
    ("first", "second"), [("50GB", "60KB"), ("60KB", "50GB"), ("60KB", "90KB")]
)
def test_files_of_an_earlier_save_go(tmp_path: Path, first: str, second: str) -> None:
    _, ours = pair()
    ours.save_pretrained(tmp_path, max_shard_size=first)
    (tmp_path / "model.other.safetensors").write_bytes(b"of another variant")
    (tmp_path / "notes.txt").write_text("mine")
    randomize(ours, seed=1)
    ours.save_pretrained(tmp_path, max_shard_size=second)
    for library in (nl, transformers):
        assert_same_weights(getattr(library, CAUSAL).from_pretrained(tmp_path), ours)
    names = set(snapshot(tmp_path))
    assert {"notes.txt", "model.other.safetensors"} <= names
    index = tmp_path / "model.safetensors.index.json"
    listed = {"model.safetensors"}
    if index.exists():
        listed = {index.name, *json.loads(index.read_text())["weight_map"].values()}
    assert {name for name in names if "safetensors" in name} == {*listed, "model.other.safetensors"}


@pytest.mark.parametrize("size", ["50GB", "60KB"])
def test_full_disk_leaves_the_old_checkpoint_intact(tmp_path: Path, size: str) -> None:
    theirs, ours = pair()
    ours.save_pretrained(tmp_path, max_shard_size=size)
    before = snapshot(tmp_path)
    randomize(ours, seed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the system refuses longer files
    try:
        with pytest.raises(CheckpointError, match=r"failed.*is kept"):
            ours.save_pretrained(tmp_path, max_shard_size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(tmp_path) == before
    assert_same_weights(nl.GPTNeoXForCausalLM.from_pretrained(tmp_path), theirs)


def test_disk_error_in_the_second_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    ours.save_pretrained(tmp_path, max_shard_size="60KB")
    before = snapshot(tmp_path)
    calls = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="Input/output error"):
        ours.save_pretrained(tmp_path, max_shard_size="60KB")
    assert snapshot(tmp_path) == before
    assert_same_weights(nl.GPTNeoXForCausalLM.from_pretrained(tmp_path), theirs)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    _, ours = pair()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        ours.save_pretrained(tmp_path / "file")
    for wrong in (torch.ones(2, dtype=torch.int64), torch.ones(2, device="meta"), "text"):
        with pytest.raises(CheckpointError, match=r"'embed_out.weight' cannot be stored"):
            ours.save_pretrained(tmp_path / "new", state_dict={"embed_out.weight": wrong})
    assert not (tmp_path / "new").exists()


def test_state_dict_is_saved_under_the_names_on_disk(tmp_path: Path) -> None:
    theirs, ours = pair()
    ours.save_pretrained(tmp_path, state_dict=theirs.state_dict())
    assert "embed_out.weight" in load_file(tmp_path / "model.safetensors")
    assert_same_weights(nl.GPTNeoXForCausalLM.from_pretrained(tmp_path), theirs)


# --- sources ------------------------------------------------------------------------------------


def test_configuration_is_read_from_the_source(tmp_path: Path) -> None:
    theirs = theirs_saved(tmp_path)
    ours, report = load_into(nl.GPTNeoXForCausalLM, tmp_path)
    assert report.complete
    assert_same_weights(ours, theirs)
    with pytest.raises(ConfigError, match="Without a source"):
        load_into(nl.GPTNeoXForCausalLM, None)


def test_other_model_types_are_refused_by_name(tmp_path: Path) -> None:
    theirs_saved(tmp_path)
    set_config(tmp_path, model_type="gpt_neox_japanese")
    with pytest.raises(ConfigError, match="gpt_neox_japanese"):
        nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)


FROM_HUB = """
import sys, torch
from neox_lab import GPTNeoXForCausalLM
model = GPTNeoXForCausalLM.from_pretrained("lab/model", revision="step3000")
torch.save(model.state_dict(), sys.argv[1])
"""


def test_sharded_model_from_a_hub(tmp_path: Path, server: SmallHub) -> None:

    theirs = theirs_saved(tmp_path / "theirs", layout="sharded")
    repository = server.repositories["lab/model"] = Repository()
    repository.commits[STEP] = snapshot(tmp_path / "theirs")
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
    }
    for offline in ("0", "1"):
        server.down = offline == "1"
        subprocess.run(
            [sys.executable, "-c", FROM_HUB, str(tmp_path / f"{offline}.bin")],
            cwd=Path(__file__).resolve().parents[2],
            env={**environment, "HF_HUB_OFFLINE": offline},
            check=True,
        )
        read = torch.load(tmp_path / f"{offline}.bin")
        for name, tensor in weights(theirs).items():
            assert torch.equal(read[name], tensor)
    server.down = False


def test_layers_are_compared_before_they_are_made(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    nl.GPTNeoXModel(nl.GPTNeoXConfig(**sizes, num_hidden_layers=2)).save_pretrained(tmp_path)
    with pytest.raises(ShapeError, match="5000000 layers and the checkpoint 2"):
        nl.GPTNeoXModel.from_pretrained(tmp_path, num_hidden_layers=5_000_000)
    model = nl.GPTNeoXModel.from_pretrained(
        tmp_path, num_hidden_layers=5, ignore_mismatched_sizes=True
    )
    assert len(model.layers) == 5
