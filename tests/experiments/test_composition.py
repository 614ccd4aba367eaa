"""Composition of heads, against whole matrices with every rotation written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SIZES, randomize
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError

DISTANCES = [0, 1, 5, 40]


def random_model(std: float = 0.3, **overrides: Any) -> Any:
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**(SIZES | overrides))).eval()
    randomize(model, std=std)
    return model


@pytest.fixture(
    scope="module",
    params=[(True, 0.25), (False, 0.25), (True, 1.0), (False, 1.0)],
    ids=["parallel-quarter", "sequential-quarter", "parallel-whole", "sequential-whole"],
)
def model(request: pytest.FixtureRequest) -> Any:
    parallel, share = request.param
    return random_model(use_parallel_residual=parallel, rotary_pct=share)


def rotation(model: Any, distance: int) -> Tensor:
    """R(δ) ``[d_head, d_head]``: q R kᵀ is the product of q, turned by δ steps, and k."""
    d_head, turning = model.config.head_size, int(model.config.head_size * model.config.rotary_pct)
    matrix = torch.eye(d_head, dtype=torch.float64)
    for pair in range(turning // 2):
        angle = distance * 10000.0 ** (-2 * pair / turning)
        one, other = pair, pair + turning // 2
        matrix[one, one] = matrix[other, other] = math.cos(angle)
        matrix[one, other], matrix[other, one] = math.sin(angle), -math.sin(angle)
    return matrix


def weights(model: Any, layer: int, head: int) -> dict[str, Tensor]:
    """A head's matrices and biases with the layer norm before them, by hand, float64."""
    attention = model.gpt_neox.layers[layer].attention
    norm = model.gpt_neox.layers[layer].input_layernorm
    d_head = model.config.head_size
    rows = attention.query_key_value.weight.detach().double().view(-1, 3, d_head, 64)
    shifts = attention.query_key_value.bias.detach().double().view(-1, 3, d_head)
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    found = {}
    for part, letter in enumerate("QKV"):
        matrix = rows[head, part].T
        found[f"b{letter}"] = shifts[head, part] + shift @ matrix
        scaled = scale[:, None] * matrix
        found[letter] = scaled - scaled.mean(dim=0)
    output = attention.dense.weight.detach().double()[:, head * d_head : (head + 1) * d_head].T
    found["O"] = output - output.mean(dim=1, keepdim=True)
    return found


def one_score(
    model: Any,
    writer: tuple[int, int],
    reader: tuple[int, int],
    kind: str,
    turn: Tensor,
    bias: bool,
) -> float:
    """By whole matrices ``[d_model, d_model]``, biases as rows of augmented ones."""
    first, second = weights(model, *writer), weights(model, *reader)

    def rows(of: dict[str, Tensor], letter: str) -> Tensor:
        return torch.cat((of[letter], of[f"b{letter}"][None])) if bias else of[letter]

    a = rows(first, "V") @ first["O"]
    b = {
        "Q": lambda: second["Q"] @ turn @ rows(second, "K").T,
        "K": lambda: second["K"] @ turn.T @ rows(second, "Q").T,
        "V": lambda: second["V"] @ second["O"],
    }[kind]()
    return float((a @ b).norm() / a.norm() / b.norm())


def test_the_rotation_is_the_models(model: Any) -> None:
    tokens = torch.arange(2, 50)[None]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    read = cache["normalized", 1, "ln1"][0].double()
    of = weights(model, 1, 2)
    queries, keys = read @ of["Q"] + of["bQ"], read @ of["K"] + of["bK"]
    scores = cache["attn_scores", 1][0, 2].double() * math.sqrt(model.config.head_size)
    for query, key in ((47, 47), (47, 46), (30, 1), (12, 9)):
        expected = queries[query] @ rotation(model, query - key) @ keys[key]
        assert float(scores[query, key]) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_scores_are_those_of_whole_matrices(model: Any, kind: str, biases: bool) -> None:
    given: dict[str, Any] = {} if kind == "V" else {"distances": DISTANCES}
    found = nl.detect.composition(model, kind, biases=biases, **given)  # type: ignore[arg-type]
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    assert found.labels["writer"] == [f"L{layer}H{head}" for layer, head in heads]
    for row, writer in enumerate(heads):
        for column, reader in enumerate(heads):
            if writer[0] >= reader[0]:
                assert not found.is_computed[row, column]
                continue
            each = [
                one_score(model, writer, reader, kind, rotation(model, distance), biases)
                for distance in DISTANCES
            ]
            assert float(found.values[row, column]) == pytest.approx(sum(each) / 4, rel=1e-5)


@pytest.mark.parametrize("kind", ["Q", "K"])
def test_dimensions_that_are_not_rotated(kind: str) -> None:
    model = random_model(rotary_pct=0.25)
    turning = int(model.config.head_size * 0.25)
    still = torch.eye(model.config.head_size, dtype=torch.float64)
    still[:turning] = 0
    found = nl.detect.composition(model, kind, distances=None)  # type: ignore[arg-type]
    for writer, reader in (((0, 1), (2, 3)), ((1, 0), (2, 2)), ((0, 3), (1, 1))):
        row, column = writer[0] * 4 + writer[1], reader[0] * 4 + reader[1]
        expected = one_score(model, writer, reader, kind, still, False)
        assert float(found.values[row, column]) == pytest.approx(expected, rel=1e-5)


def test_scaled_rotary_embeddings_stretch_what_is_rotated() -> None:
    """In the types that multiply cosines and sines, queries and keys are both longer."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    model = random_model(rotary_pct=0.5, rope_parameters=scaling | {"rope_theta": 10000.0})
    cos, sin = model.backbone.rotary.angles(torch.tensor([[0, 3]]))
    d_head, half = model.config.head_size, model.config.head_size // 4
    turn = torch.eye(d_head, dtype=torch.float64)
    for pair in range(half):
        stretch = float(cos[0, 0, 0, pair])
        assert stretch > 1
        one, other = pair, pair + half
        turn[one, one] = turn[other, other] = stretch * float(cos[0, 1, 0, pair])
        turn[one, other] = stretch * float(sin[0, 1, 0, other])
        turn[other, one] = -turn[one, other]
    found = nl.detect.composition(model, "K", distances=3)
    expected = one_score(model, (0, 2), (1, 1), "K", turn, False)
    assert float(found.values[2, 5]) == pytest.approx(expected, rel=1e-5)


def test_at_distance_zero_it_is_the_score_of_the_folded_family(model: Any) -> None:
    for kind in ("Q", "K"):
        theirs = nl.folded(model).all_composition_scores(kind)  # type: ignore[arg-type]
        ours = nl.detect.composition(model, kind, distances=0)  # type: ignore[arg-type]
        kept = ours.is_computed
        torch.testing.assert_close(ours.values[kept], theirs.flatten(2).flatten(0, 1)[kept])


@pytest.mark.parametrize("distances", [(1, 2, 4), None], ids=["rotated", "not-rotated"])
def test_the_planted_pair_comes_first(distances: Any) -> None:
    model = nl.gym.planted()
    with torch.no_grad():  # so that other heads are not simply nothing
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter += 0.002 * torch.randn(parameter.shape, generator=generator)
    found = nl.detect.composition(model, "K", distances=distances)
    best, second = found.top(2).itertuples(index=False)
    assert (best.writer, best.reader) == ("L0H1", "L1H2")
    assert best.excess > 0.02
    assert second.excess < best.excess / 4


def test_a_head_that_does_nothing_scores_nothing() -> None:
    found = nl.detect.composition(nl.gym.planted(), "K")
    assert found.values[1, 6] > 0.05
    assert found.values[found.is_computed].count_nonzero() == 1


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_random_models_score_the_baseline(kind: str) -> None:
    """Weights that are drawn score what the control says, in mean and in spread."""
    model = random_model(hidden_size=128, num_attention_heads=8)
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            layer.input_layernorm.weight.fill_(1)
    found = nl.detect.composition(model, kind)  # type: ignore[arg-type]
    scores = found.values[found.is_computed]
    assert found.baseline == pytest.approx(float(scores.mean()), rel=0.01)
    assert found.spread == pytest.approx(float(scores.std()), rel=0.35)
    assert found.baseline == pytest.approx(1 / math.sqrt(127), rel=0.03)
    again = nl.detect.composition(model, kind)  # type: ignore[arg-type]
    other = nl.detect.composition(model, kind, seed=1)  # type: ignore[arg-type]
    assert again == found
    assert other.baseline != found.baseline
    assert torch.equal(other.values[found.is_computed], scores)


def test_the_built_in_model_reads_the_previous_token_where_induction_is_done() -> None:
    """From weights alone: the head that looks one back, to the heads that score for induction."""
    model = nl.load()
    best = nl.detect.composition(model, "K").top(4)
    back = nl.detect.heads(model, "previous_token").top(1).iloc[0]
    finders = nl.detect.heads(model, "induction").top(4)
    assert set(best["writer"]) == {f"L{back['layer']:.0f}H{back['head']:.0f}"}
    assert set(best["reader"]) == {
        f"L{layer}H{head}" for layer, head in zip(finders["layer"], finders["head"], strict=True)
    }
    young = nl.load(revision=nl.gym.revisions()[0])
    z = nl.detect.composition(young, "K").frame["z"]
    assert z.abs().max() < 4
    assert 0.7 < z.std() < 1.4, "before training scores spread as those of random matrices"


def test_frame_view_and_file(model: Any, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    found = nl.detect.composition(model, "Q")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.distances == [1, 2, 4, 8, 16, 32]  # of 64 positions
    frame = found.frame
    assert list(frame.columns) == ["writer", "reader", "score", "excess", "z"]
    assert len(frame) == 3 * 4 * 4
    row = frame[(frame["writer"] == "L0H3") & (frame["reader"] == "L2H1")].iloc[0]
    assert row["score"] == pytest.approx(float(found.values[3, 9]))
    assert row["excess"] == pytest.approx(row["score"] - found.baseline, abs=1e-6)
    assert row["z"] == pytest.approx(row["excess"] / found.spread, rel=1e-5)
    best = found.top(48)["excess"].tolist()
    assert best == sorted(best, reverse=True)
    view = found.view()
    assert view.row_labels == [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    assert view.column_labels == [f"L{layer}H{head}" for layer in (1, 2) for head in range(4)]
    assert view.centre == pytest.approx(found.baseline, abs=1e-4)
    assert view.values[3, 5] == pytest.approx(float(found.values[3, 9]))
    assert found.view("excess").centre == 0
    assert found.pairs(3).frame["name"][0] == " → ".join(found.top(1).iloc[0][:2])
    found.save(tmp_path / "c.safetensors")
    assert type(found).load(tmp_path / "c.safetensors") == found


def test_what_is_refused() -> None:
    model = random_model()
    for arguments, message in (
        ({"kind": "k"}, "one of Q, K, V"),
        ({"kind": "V", "distances": [1]}, "V has no query"),
        ({"kind": "V", "distances": None}, "V has no query"),
        ({"distances": 64}, "from 0 to 63"),
        ({"distances": [1, -1]}, "distances=-1"),
        ({"distances": []}, "at least one"),
        ({"distances": "1"}, "distances in tokens"),
        ({"biases": 1}, "biases=1"),
    ):
        with pytest.raises(InputError, match=message):
            nl.detect.composition(model, **arguments)
    with pytest.raises(InputError, match="All dimensions"):
        nl.detect.composition(random_model(rotary_pct=1.0), distances=None)
    with pytest.raises(InputError, match="one layer"):
        nl.detect.composition(random_model(num_hidden_layers=1))
