"""Weight files: which are found, what is read from them, what is refused, and how they are written.

No model is built here; see test_checkpoint.py for that.
"""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from neox_lab.checkpoint.files import find_weights, read_index, with_variant
from neox_lab.checkpoint.names import match, require_backbone
from neox_lab.checkpoint.reading import open_weights
from neox_lab.checkpoint.report import LoadingReport, merged
from neox_lab.checkpoint.saving import shard_limit, split
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.hub import HubOptions
from neox_lab.safetensors_files import write

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
ORDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
A, B = {"a": torch.arange(6.0).reshape(2, 3)}, {"b": torch.ones(4), "c": torch.zeros(2)}


def opened(folder: Path, **options: Any) -> Any:
    return open_weights(find_weights(folder, HubOptions(), **options))


def write_index(path: Path, table: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))


def write_shards(folder: Path, table: dict[str, str] | None = None) -> None:
    """Two shards with tensor a, and b and c; their index is ``table`` if given."""
    save_file(A, folder / "model-00001-of-00002.safetensors")
    save_file(B, folder / "model-00002-of-00002.safetensors")
    right = dict.fromkeys(A, "model-00001-of-00002.safetensors")
    right |= dict.fromkeys(B, "model-00002-of-00002.safetensors")
    write_index(folder / "model.safetensors.index.json", right if table is None else table)


def write_any(folder: Path, name: str) -> None:
    """A valid file of one of the four kinds; which one it is shows in the tensor's name."""
    tensor = {name: torch.ones(2)}
    if name.endswith(".index.json"):
        shard = name.replace(".index.json", "").replace(".", "-00001-of-00001.")
        torch.save(tensor, folder / shard) if "bin" in name else save_file(tensor, folder / shard)
        write_index(folder / name, {name: shard})
    elif name.endswith(".bin"):
        torch.save(tensor, folder / name)
    else:
        save_file(tensor, folder / name)


# --- which files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "present", [s for n in (1, 2, 4) for s in itertools.combinations(ORDER, n)]
)
def test_search_order(tmp_path: Path, present: tuple[str, ...]) -> None:
    for name in present:
        write_any(tmp_path, name)
    assert list(opened(tmp_path).tensors) == [present[0]]


@pytest.mark.parametrize(("only", "first"), [(True, ORDER[0]), (False, ORDER[2])])
def test_use_safetensors_restricts(tmp_path: Path, only: bool, first: str) -> None:
    for name in ORDER:
        write_any(tmp_path, name)
    assert list(opened(tmp_path, use_safetensors=only).tensors) == [first]


def test_variant(tmp_path: Path) -> None:
    assert with_variant(ORDER[0], "fp16") == "model.fp16.safetensors"
    assert with_variant(ORDER[1], "fp16") == "model.safetensors.index.fp16.json"
    save_file(A, tmp_path / "model.safetensors")
    save_file(B, tmp_path / "model.fp16.safetensors")
    assert set(opened(tmp_path, variant="fp16").tensors) == set(B)
    with pytest.raises(CheckpointError, match=r"model\.bf16\.safetensors.*there is.*model\.fp16"):
        opened(tmp_path, variant="bf16")


def test_no_weights_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    for name in (*ORDER, "flax_model.msgpack"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "..\\x",
     "C:\\x", "C:x", "a\0b", 7, None, ["x"]],
)  # fmt: skip
def test_index_may_only_name_files_beside_it(tmp_path: Path, name: Any) -> None:
    (tmp_path / "in").mkdir()
    save_file(A, tmp_path / "model.safetensors")
    path = tmp_path / "in" / "model.safetensors.index.json"
    write_index(path, {"a": name})
    with pytest.raises(CheckpointError, match=r"must lie beside|is no index"):
        read_index(path)
    with pytest.raises(CheckpointError):
        opened(tmp_path / "in")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', "{"])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="is no index"):
        opened(tmp_path)


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_shards(blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert set(opened(snapshot).tensors) == {"a", "b", "c"}


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards.*model-00002-of-00002"):
        opened(tmp_path)


def test_shards_that_contradict_their_index(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_shards(tmp_path, {"a": first, "b": second, "c": second, "d": second})
    with pytest.raises(CheckpointError, match="'d' is in model-00002"):
        opened(tmp_path)
    write_shards(tmp_path, {"a": first, "b": first, "c": second})
    with pytest.raises(CheckpointError, match="'b' is in model-00001"):
        opened(tmp_path)
    write_shards(tmp_path, {"a": first, "b": second})
    with pytest.raises(CheckpointError, match=r"1 tensors that their index does not list.*'c'"):
        opened(tmp_path)
    write_shards(tmp_path, {})
    with pytest.raises(CheckpointError, match="lists no tensors"):
        opened(tmp_path)
    write_shards(tmp_path)
    save_file({**A, **B}, tmp_path / first)
    with pytest.raises(CheckpointError, match="'b' is in two shards"):
        opened(tmp_path)


def test_old_masks_need_not_be_listed(tmp_path: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    save_file({**A, "gpt_neox.layers.0.attention.bias": torch.ones(2)}, tmp_path / shard)
    write_index(tmp_path / "model.safetensors.index.json", {"a": shard})
    assert "a" in opened(tmp_path).tensors


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_reading_gives_back_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: torch.randn(3, 5).to(dtype) for name in "xyz"}
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    save_file(tensors, tmp_path / "s" / "model.safetensors")
    torch.save(tensors, tmp_path / "t" / "pytorch_model.bin")
    for folder in ("s", "t"):
        source = opened(tmp_path / folder)
        for name, tensor in tensors.items():
            info = source.tensors[name]
            assert info.shape == (3, 5) and info.dtype == dtype
            read = source.read(name)
            source.release()
            assert read.dtype == dtype and torch.equal(read, tensor)


def test_bin_of_the_old_format(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(opened(tmp_path).read("a"), A["a"])


def test_bin_with_strange_strides(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(2, 3).t()}, tmp_path / "pytorch_model.bin")
    read = opened(tmp_path).read("a")
    assert read.is_contiguous() and read.shape == (3, 2)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    path.write_bytes(
        {
            "cut": data[:-5],
            "cut in the header": data[:20],
            "empty": b"",
            "longer": data + b"xxxx",
            "huge header": (2**60).to_bytes(8, "little") + data[8:],
            "no JSON": data[:8] + b"x" * header + data[8 + header :],
            "text": b"<html>404 Not Found</html>" * 10,
        }[how]
    )


@pytest.mark.parametrize(
    "how", ["cut", "cut in the header", "empty", "longer", "huge header", "no JSON", "text"]
)
def test_damaged_safetensors(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(A, path)
    damage(path, how)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*damaged.*again"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_placeholder_of_git_lfs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        opened(tmp_path)


class Harmful:
    """Would make a file if it were unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    harm = tmp_path / "harm"
    content = {"a": torch.ones(2), "b": Harmful(str(harm))}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"would run posix\.mkdir.*safetensors") as caught:
        opened(tmp_path)
    assert not harm.exists()
    assert "weights_only" not in str(caught.value)  # no advice to load it after all


@pytest.mark.parametrize("kind", ["bytes", "empty", "cut", "zip", "list", "numbers", "sparse"])
def test_bin_that_is_no_table_of_tensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(A, path)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"nonsense")
    elif kind in ("list", "numbers", "sparse"):
        sparse = torch.ones(2, 2).to_sparse()
        torch.save({"list": [1], "numbers": {"a": 1}, "sparse": {"a": sparse}}[kind], path)
    else:
        data = path.read_bytes()
        path.write_bytes({"bytes": bytes(range(256)), "empty": b"", "cut": data[:400]}[kind])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*(damaged|should hold a table)"):
        opened(tmp_path)


# --- which tensor goes where --------------------------------------------------------------------

HEAD = ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.dense.bias", "embed_out.weight")
BASE = ("embed_in.weight", "layers.0.attention.dense.bias")


@pytest.mark.parametrize(
    ("wanted", "found", "unexpected"),
    [
        (HEAD, HEAD, ()),
        (BASE, HEAD, ("embed_out.weight",)),
        (HEAD, BASE, ()),
        (BASE, BASE, ()),
        (HEAD, (*BASE, "embed_out.weight"), ()),
        (HEAD, (*HEAD[:2], "lm_head.weight"), ()),
        (HEAD, (*HEAD, "score.weight"), ("score.weight",)),
    ],
)
def test_prefix_and_head(
    wanted: tuple[str, ...], found: tuple[str, ...], unexpected: tuple[str, ...]
) -> None:
    result = match(wanted, found)
    assert result.unexpected == unexpected
    assert list(result.sources.values()) == [name for name in found if name not in unexpected]
    for target, source in result.sources.items():
        bare = source.removeprefix("gpt_neox.").replace("lm_head", "embed_out")
        assert target.removeprefix("gpt_neox.") == bare


def test_old_buffers_are_dropped_and_biases_are_not() -> None:
    old = [
        "gpt_neox.layers.3.attention.bias",
        "gpt_neox.layers.3.attention.masked_bias",
        "gpt_neox.layers.3.attention.rotary_emb.inv_freq",
        "gpt_neox.rotary_emb.inv_freq",
    ]
    result = match(HEAD, [*old, *HEAD])
    assert set(result.sources) == set(HEAD) and result.unexpected == ()


def test_two_tensors_for_one_parameter() -> None:
    with pytest.raises(CheckpointError, match=r"two tensors for 'embed_out\.weight'"):
        match(HEAD, [*HEAD, "lm_head.weight"])
    with pytest.raises(CheckpointError, match="two tensors"):
        match(HEAD, [*HEAD, *BASE])


@pytest.mark.parametrize(
    "found",
    [
        ("model.embed_tokens.weight", "lm_head.weight"),
        ("transformer.wte.weight",),
        ("score.weight",),
        (),
    ],
)
def test_other_architectures_are_refused(found: tuple[str, ...]) -> None:
    for wanted in (HEAD, BASE):
        with pytest.raises(CheckpointError, match="not of a GPT-NeoX model"):
            require_backbone(match(wanted, found), wanted)


def test_key_mapping_uses_the_first_expression_that_occurs() -> None:
    found = [f"_orig_mod.{name}" for name in HEAD]
    result = match(HEAD, found, {r"^_orig_mod\.": "", "gpt_neox": "never"})
    assert list(result.sources) == list(HEAD) and list(result.sources.values()) == found


# --- the report ---------------------------------------------------------------------------------


def test_layers_are_merged() -> None:
    names = [f"gpt_neox.layers.{i}.mlp.bias" for i in range(44)]
    assert merged(names) == ["gpt_neox.layers.{0...43}.mlp.bias"]
    assert merged(["layers.1.x", "layers.5.x", "layers.5.y", "embed"]) == [
        "embed", "layers.5.y", "layers.{1, 5}.x",
    ]  # fmt: skip


def test_report_as_table_and_as_dictionary() -> None:
    mismatch = ("embed_out.weight", (3, 2), (4, 2))
    report = LoadingReport(("layers.0.x", "layers.1.x"), ("score.weight",), (mismatch,))
    assert str(report).splitlines() == [
        "layers.{0...1}.x  missing     initialised",
        "embed_out.weight  mismatched  initialised: [3, 2] in the checkpoint, [4, 2] in the model",
        "score.weight      unexpected  not used",
    ]
    assert report.as_dict() == {
        "missing_keys": {"layers.0.x", "layers.1.x"},
        "unexpected_keys": {"score.weight"},
        "mismatched_keys": {mismatch},
        "error_msgs": [],
    }
    assert not report.complete
    assert LoadingReport(unexpected_keys=("score.weight",)).complete
    assert "every parameter" in str(LoadingReport())


# --- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("10 MB", 10**7), ("2MiB", 2**21), ("1.5kb", 1500), (7, 7)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert shard_limit(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 bananas", "-3GB", 0, "0GB", "5XB", None, "iB"])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        shard_limit(text)


@unhurried
@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 400))
def test_split_keeps_order_and_limit(lengths: list[int], limit: int) -> None:
    tensors = {str(i): torch.zeros(length) for i, length in enumerate(lengths)}
    shards = split(tensors, limit)
    assert [name for shard in shards for name in shard] == list(tensors)
    for shard in shards:
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= limit
    assert all(shards) or not tensors


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@unhurried
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        max_size=6,
    )
)
def test_written_files_are_safetensors(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, tuple[list[int], torch.dtype]]
) -> None:
    tensors = {name: torch.randn(shape).to(dtype) for name, (shape, dtype) in content.items()}
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    write(path, tensors, {"format": "pt"})
    read: dict[str, Tensor] = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_written_files_say_pt_and_start_aligned(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, A, {"format": "pt"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("a").data_ptr() % 64 == 0


def test_column_major_tensors_are_written_row_major(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    write(tmp_path / "model.safetensors", {"a": matrix.t().contiguous().t()}, {})
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], matrix)
