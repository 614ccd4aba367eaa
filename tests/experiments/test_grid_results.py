"""Results over named axes: their tables, and what is left of them after a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neox_lab.errors import CheckpointError, InputError
from neox_lab.experiments.attribution import AttributionResult, TokenAttribution
from neox_lab.experiments.attribution.agreement import Agreement
from neox_lab.experiments.detection_result import HeadsResult
from neox_lab.experiments.patching import PatchResult
from neox_lab.experiments.probing_result import Probe, ProbeResult
from neox_lab.results import GridResult
from neox_lab.tasks.result import TaskResult

SAVED = Path(__file__).parent / "saved_by_0_1"
KINDS: list[type[GridResult]] = [PatchResult, AttributionResult, TokenAttribution, HeadsResult]
AXES = ("layer", "pos", "head", "source_pos", "site", "writer")
TEXT = st.text(max_size=5) | st.sampled_from(["", "\n", '"', "\ud800", "\x00", "the/The"])
NUMBER = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Any float32 or float64 numbers, in any order in memory."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    count = math.prod(shape)
    bits = draw(st.binary(min_size=count * dtype().nbytes, max_size=count * dtype().nbytes))
    array = np.frombuffer(bits, dtype=dtype).reshape(shape[::-1]).copy()
    return torch.from_numpy(array).permute(tuple(reversed(range(len(shape)))))


@st.composite
def results(draw: st.DrawFn, kind: type[GridResult]) -> GridResult:
    """Any result that could be."""
    if kind is HeadsResult:
        axes: tuple[str, ...] = ("layer", "head")
    elif kind is TokenAttribution:
        axes = ("text", "pos")
    else:
        axes = tuple(draw(st.lists(st.sampled_from(AXES), unique=True, max_size=3)))
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=len(axes), max_size=len(axes))))
    pairs = draw(st.integers(0, 2))
    samples = st.none() | tensors((pairs, *shape))
    names = st.dictionaries(TEXT, NUMBER, max_size=2)
    fields: dict[str, Any] = {
        "values": draw(tensors(shape)),
        "axes": axes,
        "labels": {
            axis: draw(st.lists(TEXT, min_size=size, max_size=size))
            for axis, size in zip(axes, shape, strict=True)
        },
    }
    if draw(st.booleans()):
        fields["computed"] = draw(tensors(shape)) > 0
    if kind is PatchResult:
        fields |= {
            "clean": draw(NUMBER),
            "corrupted": draw(NUMBER),
            "site": tuple(draw(st.lists(TEXT, min_size=1, max_size=2))),
            "metric": draw(TEXT),
            "direction": draw(st.sampled_from(["denoising", "noising", "ablation"])),
            "samples": draw(samples),
            "base_samples": draw(st.none() | tensors((pairs,))),
            "complete": draw(st.booleans()),
        }
    elif kind is HeadsResult:
        fields |= {"pattern": draw(TEXT), "measure": draw(TEXT), "queries": draw(st.integers())}
        fields["copying"] = draw(st.none() | tensors(shape))
        fields["samples"] = draw(samples)
        for name in ("entropy", "distance", "first_token"):
            fields[name] = draw(tensors(shape))
    else:
        fields |= {
            "total": draw(NUMBER),
            "per_row": draw(samples),
            "title": draw(TEXT),
            "value_name": draw(TEXT),
            "facts": draw(names),
        }
        if kind is TokenAttribution:
            fields["pieces"] = draw(st.lists(st.lists(TEXT, max_size=2), max_size=2))
            fields["totals"] = draw(st.lists(NUMBER, max_size=2))
    return kind(**fields)


def bits(value: object) -> object:
    """Something that is equal only for the very same numbers, NaN included, and the same types."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [bits(each) for each in value]
    return type(value), repr(value)


def contents(result: GridResult) -> dict[str, object]:
    """Every field."""
    return {f.name: bits(getattr(result, f.name)) for f in dataclasses.fields(result)}


def patch_result(**changes: Any) -> PatchResult:
    """A small one, with a cell that was not reached."""
    fields: dict[str, Any] = {
        "values": torch.tensor([[1.0, -4.0, math.nan], [0.5, 2.0, 2.0]]),
        "axes": ("layer", "pos"),
        "labels": {"layer": ["0", "1"], "pos": ["The", " cat", "The"]},
        "computed": torch.tensor([[True, True, False], [True, True, True]]),
        "clean": 1.0,
        "corrupted": 0.0,
        "site": ("resid_pre",),
        "metric": "a logit",
        "direction": "denoising",
    }
    return PatchResult(**fields | changes)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_gives_back_the_very_same_result(
    tmp_path_factory: pytest.TempPathFactory, kind: type[GridResult], data: st.DataObject
) -> None:
    result = data.draw(results(kind))
    path = tmp_path_factory.mktemp("results") / "new folder" / "result.safetensors"
    assert result.save(str(path)) == path
    again = kind.load(path)
    assert type(again) is kind
    assert contents(again) == contents(result)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("file", ["patching.safetensors", "ablation.safetensors"])
def test_patching_results_of_version_0_1_can_be_read(file: str) -> None:
    result = PatchResult.load(SAVED / file)
    assert result.to_csv() == (SAVED / file).with_suffix(".csv").read_text("utf-8")
    assert isinstance(result.axes, tuple) and isinstance(result.site, tuple)
    assert (result.samples is None, result.complete) == (False, True)
    with pytest.raises(CheckpointError):
        AttributionResult.load(SAVED / file)


@pytest.mark.parametrize(
    ("file", "kind", "other"),
    [
        ("attribution.json", AttributionResult, TokenAttribution),
        ("tokens.json", TokenAttribution, AttributionResult),
    ],
)
def test_attributions_of_version_0_1_can_be_read(
    file: str, kind: type[AttributionResult], other: type[AttributionResult]
) -> None:
    result = kind.load(SAVED / file)
    assert result.to_csv() == (SAVED / file).with_suffix(".csv").read_text("utf-8")
    assert result.values.dtype == torch.float32
    with pytest.raises(CheckpointError, match=f"not a saved {other.__name__}"):
        other.load(SAVED / file)
    with pytest.raises(CheckpointError):
        PatchResult.load(SAVED / file)


def test_another_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    patch_result().save(path)
    with pytest.raises(CheckpointError, match="PatchResult; it is not a saved HeadsResult"):
        HeadsResult.load(path)
    save_file({"values": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a saved result"):
        PatchResult.load(path)
    save_file({"values": torch.ones(2)}, path, {"neox_lab": "neox_lab result 2"})
    with pytest.raises(CheckpointError, match="reads 'neox_lab result 1'"):
        PatchResult.load(path)
    for name, content in (("nothing", None), ("text", b"{"), ("empty", b"")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for kind in KINDS:
            with pytest.raises(CheckpointError, match="Cannot read a"):
                kind.load(tmp_path / name)
    with pytest.raises(CheckpointError):
        PatchResult.load(tmp_path)
    with pytest.raises(CheckpointError, match="Cannot write"):
        patch_result().save(tmp_path / "text" / "below a file")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"site": "resid_pre"}, "'site' should be"),
    ({"clean": "1.0"}, "'clean' should be float"),
    ({"clean": True}, "'clean' should be float"),
    ({"complete": 1}, "'complete' should be bool"),
    ({"labels": {"layer": ["0", 1], "pos": ["a", "b", "c"]}}, "'labels' should be"),
    ({"labels": {"layer": ["0", "1"]}}, "name \\[2, 0\\] places"),
    ({"axes": ["layer"]}, "name \\[2\\] places"),
    ({"direction": "sideways"}, "expected one of denoising"),
    ({"values": [1.0]}, "'values' should be"),
    ({"_exact": "os.system"}, "no field '_exact'"),
    ({"metric": None}, "'metric' should be str"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_was_changed_by_hand_is_checked(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "result.safetensors"
    patch_result().save(path)
    stored = load_file(path)
    fields = {
        "axes": ["layer", "pos"],
        "labels": {"layer": ["0", "1"], "pos": ["The", " cat", "The"]},
        "clean": 1,
        "corrupted": 0.0,
        "site": ["resid_pre"],
        "metric": "a logit",
        "direction": "denoising",
        "complete": True,
    }

    def write(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        description = json.dumps({"kind": "PatchResult", "fields": fields})
        save_file(tensors, path, {"neox_lab": "neox_lab result 1", "description": description})

    write(fields, stored)
    assert contents(PatchResult.load(path)) == contents(patch_result())
    tensors = {name: tensor for name, tensor in stored.items() if name not in change}
    write(fields | change, tensors)
    with pytest.raises(CheckpointError, match=message):
        PatchResult.load(path)
    write({name: value for name, value in fields.items() if name not in change}, tensors)
    if change.keys() <= {"complete", "_exact"}:  # these need not be there
        PatchResult.load(path)
    else:
        with pytest.raises(CheckpointError, match="is missing"):
            PatchResult.load(path)
    write(fields, stored | {"values": torch.ones(2, 3, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match="floating-point"):
        PatchResult.load(path)


@pytest.mark.parametrize("file", ["new.safetensors", *("patching.safetensors", "tokens.json")])
def test_a_damaged_file_is_an_error_or_another_number(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    if file.startswith("new"):
        patch_result(samples=torch.ones(2, 2, 3)).save(path)
    else:
        path.write_bytes((SAVED / file).read_bytes())
    whole, kind = path.read_bytes(), TokenAttribution if file == "tokens.json" else PatchResult
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            again = kind.load(path)
        except CheckpointError:
            continue
        assert len(again.axes) == again.values.dim()
    for length in random.integers(len(whole), size=40):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            kind.load(path)


def test_a_loaded_result_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    patch_result().save(path)
    again = PatchResult.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert contents(again) == contents(patch_result())


def test_results_whose_parts_do_not_fit_cannot_be_made() -> None:
    for changes in (
        {"values": torch.zeros(2, 2)},
        {"values": torch.zeros(2, 3, dtype=torch.int64)},
        {"axes": ("layer", "head")},
        {"direction": "sideways"},
        {"samples": torch.zeros(4, 3, 2)},
        {"samples": torch.zeros(4, 2, 3), "base_samples": torch.zeros(3)},
        {"samples": torch.zeros(4, 2, 3), "base_samples": torch.zeros(1)},
        {"samples": torch.zeros(4, 2, 3), "base_samples": torch.zeros(4, 1)},
        {"computed": torch.ones(2, 3)},
        {"computed": torch.ones(3, 2, dtype=torch.bool)},
    ):
        with pytest.raises(InputError):
            patch_result(**changes)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 8))
def test_the_frame_has_every_cell_in_its_place(data: st.DataObject, count: int) -> None:
    result = data.draw(results(AttributionResult))
    cells = {
        tuple(
            place if axis in ("layer", "head", "pos", "source_pos") else result.labels[axis][place]
            for axis, place in zip(result.axes, at, strict=True)
        )
        + tuple(
            result.labels[axis][place]
            for axis, place in zip(result.axes, at, strict=True)
            if axis in ("pos", "source_pos")
        ): float(result.values[at])
        for at in itertools.product(*map(range, result.values.shape))
    }
    frame = result.frame
    tokens = [{"pos": "token", "source_pos": "source_token"}.get(axis) for axis in result.axes]
    columns = [*result.axes, *(name for name in tokens if name)]
    assert sorted(frame.columns) == sorted([*columns, "value"])
    there = result.values[result.is_computed].tolist()  # NaN that was computed is there
    np.testing.assert_array_equal(frame["value"], there)
    known = [value for value in there if not math.isnan(value)]
    for row in frame.to_dict("records"):
        place = tuple(row[name] for name in columns)
        assert place in cells
        if len(cells) == result.values.numel():  # every label once
            np.testing.assert_array_equal(cells[place], row["value"])
    best = sorted(known, key=abs, reverse=True)[:count]
    assert result.top(count)["value"].tolist() == best


def test_top_goes_by_the_effect_of_a_patch_and_by_the_score_of_a_head() -> None:
    best = patch_result(corrupted=2.0).top(3)
    assert best["effect"].tolist() == [-6.0, -1.5, -1.0]  # from the metric without any patch
    assert best["token"].tolist() == [" cat", "The", "The"]
    assert len(patch_result().top(100)) == 5
    scores = torch.tensor([[0.1, -0.9], [0.4, 0.2]])
    rest = dict.fromkeys(("copying", "entropy", "distance", "first_token"), torch.zeros(2, 2))
    heads = HeadsResult(
        values=scores,
        axes=("layer", "head"),
        labels={"layer": ["0", "1"], "head": ["0", "1"]},
        pattern="induction",
        measure="mul",
        queries=3,
        **rest,
    )
    found = heads.top()
    assert found[["layer", "head"]].values.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    assert list(found)[2:] == ["score", "copying", "entropy_bits", "distance", "first_token"]


def test_results_are_equal_where_their_contents_are(tmp_path: Path) -> None:
    one = patch_result(samples=torch.zeros(4, 2, 3), base_samples=torch.ones(4))
    one.save(tmp_path / "result.safetensors")
    again = PatchResult.load(tmp_path / "result.safetensors")
    assert one == again and not one != again and hash(one) == hash(again)
    assert len({one, again, patch_result()}) == 2
    for change in (
        {"values": torch.zeros(2, 3)},
        {"values": one.values.double()},
        {"corrupted": 0.5},
        {"samples": None},
        {"site": ("z",)},
        {"labels": {"layer": ["0", "2"], "pos": ["The", " cat", "The"]}},
    ):
        assert one != dataclasses.replace(one, **change)
    assert one != "one" and one != None  # noqa: E711


def test_results_of_every_kind_can_be_compared() -> None:
    for made in (task_result, agreement, probes):
        assert made(1.0) == made(1.0) and made(1.0) != made(2.0)
        assert made(math.nan) == made(math.nan) and hash(made(1.0)) == hash(made(2.0))


def task_result(number: float) -> TaskResult:
    frame = pd.DataFrame({"a": [number, 2.0], "text": ["x", "y"]})
    return TaskResult(frame, {"accuracy": number}, lambda: pytest.fail("is not asked"))


def agreement(number: float) -> Agreement:
    return Agreement(number, 1.0, 1.0, 1.0, pd.DataFrame({"miss": [number]}), 3, "x")


def probes(number: float) -> ProbeResult:
    weight = np.array([[number, 1.0]])
    probe = Probe("hook_embed", weight, weight[0], weight[0], None, 1, 1, 1, number, None)
    return ProbeResult([probe], ["a", "b"], 0.5, torch.tensor([1, 2]), (3, 1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_of_any_kind_are_kept_as_plain_ones(tmp_path: Path, dtype: torch.dtype) -> None:
    values = patch_result().values.to(dtype).requires_grad_()
    samples = torch.ones(2, 2, 3, dtype=dtype, requires_grad=True)
    result = patch_result(values=values, samples=samples, base_samples=samples[:, 0, 0])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for tensor in (result.values, result.samples, result.base_samples):
        assert tensor is not None and tensor.dtype == wide and not tensor.requires_grad
    assert result.frame["value"].dropna().tolist() == [1.0, -4.0, 0.5, 2.0, 2.0]
    result.save(tmp_path / "result.safetensors")
    assert PatchResult.load(tmp_path / "result.safetensors") == result


def test_a_number_that_no_float_holds(tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    patch_result().save(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    changed = {
        key: text.replace('"clean": 1.0', f'"clean": {10**400}') for key, text in header.items()
    }
    assert changed != header
    save_file(tensors, path, metadata=changed)
    with pytest.raises(CheckpointError, match="Cannot read a PatchResult"):
        PatchResult.load(path)
