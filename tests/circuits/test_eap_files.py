"""Files of EAP-IG: their names, their order, their sign; and what is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small
from test_circuit_runs import METRIC

from neox_lab.circuits import EdgeScores, read_circuit, read_scores, scores
from neox_lab.errors import CheckpointError, InputError


def found(parallel: bool = True) -> EdgeScores:
    model = small(use_parallel_residual=parallel)
    clean, corrupted = prompts(3, 8, first=2)
    return scores(model, clean, corrupted, METRIC, "eap")


def ours(name: str) -> str:
    """``a1.h2<q>`` as we call it."""
    if name.startswith("a"):
        layer, rest = name[1:].split(".h")
        head, _, part = rest.partition("<")
        return f"L{layer}H{head}" + (f".{part[:-1]}" if part else "")
    return {"input": "embed", "logits": "logits"}.get(name) or f"MLP{name[1:]}"


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("ending", ["json", "pt"])
def test_what_is_written_is_read(parallel: bool, ending: str, tmp_path: Path) -> None:
    result = found(parallel)
    circuit = result.circuit(edges=15)
    result.to_eap_ig(tmp_path / f"scores.{ending}")
    circuit.to_eap_ig(tmp_path / f"circuit.{ending}")
    again = read_scores(tmp_path / f"scores.{ending}")
    torch.testing.assert_close(again.values, result.values, equal_nan=True)
    assert again.labels == result.labels and again.parallel is parallel
    read = read_circuit(tmp_path / f"circuit.{ending}")
    assert torch.equal(read.kept, circuit.kept) and read.nodes == circuit.nodes
    kept = again.circuit(edges=15).kept
    assert torch.equal(kept, circuit.kept), "scores from a file choose the same circuit"
    with pytest.raises(InputError, match="d_model"):
        read.to_eap_ig(tmp_path / "again.json")
    read.to_eap_ig(tmp_path / f"again.{ending}", 24)
    if ending == "json":
        first = (tmp_path / "circuit.json").read_text()
        assert (tmp_path / "again.json").read_text() == first


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    result = found()
    result.circuit(edges=15).to_eap_ig(tmp_path / "circuit.json")
    told = json.loads((tmp_path / "circuit.json").read_text())
    assert told["cfg"] == {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": True, "d_model": 24}
    assert list(told["nodes"]) == [
        "input", "a0.h0", "a0.h1", "a0.h2", "m0", "a1.h0", "a1.h1", "a1.h2", "m1", "logits",
    ]  # fmt: skip
    assert len(told["edges"]) == 69 and "a0.h1->m0" not in told["edges"]
    frame = result.frame.set_index(["writer", "reader"])["value"]
    for name, edge in told["edges"].items():
        writer, reader = name.split("->")
        assert edge["score"] == pytest.approx(-frame[ours(writer), ours(reader)], abs=1e-6)
    inside = {n for name, e in told["edges"].items() if e["in_graph"] for n in name.split("->")}
    assert {n.split("<")[0] for n in inside} == {
        name for name, node in told["nodes"].items() if node["in_graph"]
    }
    result.to_eap_ig(tmp_path / "scores.pt")
    tensors = torch.load(tmp_path / "scores.pt", weights_only=True)
    assert tensors["edges_scores"].shape == (1 + 2 * 4, 2 * 10 + 1)
    # Columns: the q of all heads of a layer, their k, their v, its MLP; in the end the logits.
    by_name = told["edges"]
    assert tensors["edges_scores"][0, 4] == pytest.approx(by_name["input->a0.h1<k>"]["score"])
    assert tensors["edges_scores"][2, 16] == pytest.approx(by_name["a0.h1->a1.h0<v>"]["score"])
    assert tensors["edges_scores"][4, 19] == pytest.approx(by_name["m0->m1"]["score"])
    assert tensors["edges_scores"][8, 20] == pytest.approx(by_name["m1->logits"]["score"])


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    result = found(parallel=False)
    with pytest.raises(InputError, match="end in"):
        result.to_eap_ig(tmp_path / "scores.csv")
    for ending in ("json", "pt"):
        with pytest.raises(CheckpointError):
            read_scores(tmp_path / f"no.{ending}")
        (tmp_path / f"bad.{ending}").write_bytes(b"{}" if ending == "json" else b"bytes")
        with pytest.raises(CheckpointError):
            read_scores(tmp_path / f"bad.{ending}")
    result.to_eap_ig(tmp_path / "good.json")
    told = json.loads((tmp_path / "good.json").read_text())
    told["cfg"]["parallel_attn_mlp"] = True
    (tmp_path / "wiring.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="has not, such as from a head to the MLP"):
        read_circuit(tmp_path / "wiring.json")
    told["edges"] = {"a9.h0->m0": {"score": 1.0, "in_graph": True}}
    (tmp_path / "names.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"a9\.h0"):
        read_circuit(tmp_path / "names.json")

    class Code:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"cfg": Code()}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError):
        read_scores(tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("cfg", "n_layers"), 2.7),
        (("cfg", "n_heads"), True),
        (("cfg", "parallel_attn_mlp"), "false"),
        (("edges", "input->m0", "in_graph"), "False"),
        (("edges", "input->m0", "score"), 1e300),
    ],
)
def test_what_stands_there_in_another_kind_is_refused(
    place: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    clean, corrupted = prompts(2, 6, first=1)
    path = tmp_path / "scores.json"
    scores(small(), clean, corrupted, METRIC, "eap").to_eap_ig(path)
    found = json.loads(path.read_text())
    where = found
    for name in place[:-1]:
        where = where[name]
    where[place[-1]] = value
    path.write_text(json.dumps(found))
    for reads in (read_scores, read_circuit):
        with pytest.raises(CheckpointError, match="no file of EAP-IG"):
            reads(path)


def test_tensors_that_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    clean, corrupted = prompts(2, 6, first=1)
    path = tmp_path / "scores.pt"
    scores(small(), clean, corrupted, METRIC, "eap").to_eap_ig(path)
    found = torch.load(path)
    for value in (None, found["edges_scores"].to(torch.complex64)):
        torch.save({**found, "edges_scores": value}, path)
        with pytest.raises(CheckpointError, match="no file of EAP-IG"):
            read_scores(path)
    expected = read_scores_of(found, path)
    torch.save({**found, "edges_scores": found["edges_scores"].to_sparse()}, path)
    assert read_scores(path) == expected


def read_scores_of(found: dict[str, Any], path: Path) -> EdgeScores:
    torch.save(found, path)
    return read_scores(path)
