"""Head detection: planted heads are found, and every number is what a plain loop gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CLASSES, SIZES, pair, randomize
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.experiments.detection_result import HeadsResult
from neox_lab.gym import planting

TEXTS = ["abcabc bca", "the cat the hat the mat", "zz", "one two one two one", "qwertyqwe"]
STATISTICS = ("entropy", "distance", "first_token")


def random_model(name: str = "GPTNeoXForCausalLM", **overrides: Any) -> Any:
    sizes = SIZES | {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0} | overrides
    model = getattr(nl, name)(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model, std=0.3)
    model.tokenizer = planting.tokenizer()
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return random_model(use_parallel_residual=request.param)


def looks(pattern: str, tokens: list[int], query: int, key: int) -> bool:
    """Whether a head of that kind looks from ``query`` to ``key``, by the definition in words."""
    return {
        "previous_token": key == query - 1,
        "duplicate_token": key < query and tokens[key] == tokens[query],
        "induction": 0 < key <= query and tokens[key - 1] == tokens[query],
    }[pattern]


def by_hand(model: Any, texts: list[Tensor], pattern: str) -> dict[str, Tensor]:
    """Every number, text by text without padding, head by head, query by query."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    names = ("share", "mul", "abs", *STATISTICS)
    values = {name: torch.zeros(layers, heads) for name in names}
    with torch.no_grad():
        caches = [model.run_with_cache(text[None])[1] for text in texts]
    for layer in range(layers):
        for head in range(heads):
            on, off, lucky, rows = 0.0, 0.0, 0, 0
            entropies, distances, firsts = [], [], []
            for text, cache in zip(texts, caches, strict=True):
                attention = cache["pattern", layer][0, head].tolist()
                ids = text.tolist()
                for query, row in enumerate(attention):
                    target = [looks(pattern, ids, query, key) for key in range(len(ids))]
                    on += sum(a for a, wanted in zip(row, target, strict=True) if wanted)
                    off += sum(abs(a - wanted) for a, wanted in zip(row, target, strict=True))
                    lucky, rows = lucky + any(target), rows + 1
                    if query:
                        entropies.append(-sum(a * math.log(a) for a in row if a > 0))
                        distances.append(sum(a * (query - key) for key, a in enumerate(row)))
                        firsts.append(row[0])
            numbers = (on / lucky, on / rows, 1 - off / rows)
            means = [sum(column) / len(column) for column in (entropies, distances, firsts)]
            for name, number in zip(names, (*numbers, *means), strict=True):
                values[name][layer, head] = number
    return values


@pytest.mark.parametrize("pattern", ["induction", "previous_token"])
def test_planted_heads_are_found_and_nothing_else(pattern: str) -> None:
    model = nl.gym.planted()
    layer, head = nl.gym.planted.HEADS[pattern]
    result = nl.detect.heads(model, pattern)
    assert result.values[layer, head] > 0.99
    others = result.values.clone()
    others[layer, head] = 0
    assert others.max() < 0.1
    best = result.top(1).iloc[0]
    assert (best["layer"], best["head"]) == (layer, head)
    # On text too, whatever its length.
    texts = ["the cat saw the cat", "abcdefgh abcdefgh"]
    assert nl.detect.heads(model, pattern, texts).values.argmax() == layer * 4 + head


def test_no_planted_head_looks_at_duplicates() -> None:
    assert nl.detect.heads(nl.gym.planted(), "duplicate_token").values.max() < 0.1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pattern", ["induction", "previous_token", "duplicate_token"])
def test_numbers_are_those_of_a_plain_loop(model: Any, pattern: str, side: str) -> None:
    texts = [model.to_tokens(text)[0] for text in TEXTS]
    expected = by_hand(model, texts, pattern)
    model.tokenizer.padding_side = side
    for measure in ("share", "mul", "abs"):
        result = nl.detect.heads(model, pattern, TEXTS, measure=measure, batch_size=2)
        torch.testing.assert_close(result.values, expected[measure], rtol=0, atol=1e-5)
        for name in STATISTICS:
            torch.testing.assert_close(getattr(result, name), expected[name], rtol=1e-5, atol=1e-5)
        looked = sum(
            any(looks(pattern, text.tolist(), query, key) for key in range(len(text)))
            for text in texts
            for query in range(len(text))
        )
        assert result.queries == looked


@pytest.mark.parametrize("measure", ["share", "mul", "abs"])
def test_texts_are_kept_apart(model: Any, measure: str) -> None:
    texts = [*TEXTS, "qwer"]  # of which the last has no token twice
    result = nl.detect.heads(model, "duplicate_token", texts, measure=measure, batch_size=2)
    assert result.samples.shape == (6, *result.values.shape)
    for text, sample in zip(TEXTS, result.samples[:5], strict=True):
        alone = nl.detect.heads(model, "duplicate_token", text, measure=measure)
        torch.testing.assert_close(sample, alone.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.samples[0], alone.values)
    assert bool(result.samples[5].isnan().all()) == (measure == "share")


def test_scores_of_attention_at_hand(model: Any) -> None:
    tokens = nl.detect.repeated_tokens(model, length=10, count=1)
    cache = model.run_with_cache(tokens)[1]
    target = nl.detect.induction(tokens[0])
    attention = torch.stack([cache["pattern", layer][0] for layer in range(3)])
    for measure in ("mul", "abs"):
        wanted = nl.detect.heads(model, "induction", tokens, measure=measure).values
        found = nl.detect.pattern_score(attention, target, measure)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    own, first = torch.eye(20, dtype=torch.bool), torch.zeros(20, 20, dtype=torch.bool)
    first[:, 0] = True
    target = nl.detect.previous_token(tokens[0])
    for no_first, no_own in ((True, False), (False, True), (True, True)):
        left = attention.masked_fill((first & no_first) | (own & no_own), 0)
        aim = target.masked_fill((first & no_first) | (own & no_own), 0)
        chosen = {"exclude_first_token": no_first, "exclude_own_token": no_own}
        share = nl.detect.pattern_score(attention, target, **chosen)
        torch.testing.assert_close(share, (left * aim).sum((2, 3)) / left.sum((2, 3)))
        near = nl.detect.pattern_score(attention, target, "abs", **chosen)
        torch.testing.assert_close(near, 1 - (left - aim).abs().sum((2, 3)) / 20)
    with pytest.raises(InputError, match="as many queries as keys"):
        nl.detect.pattern_score(attention, target[:5])


def test_batches_and_order_change_nothing(model: Any) -> None:
    expected = nl.detect.heads(model, "induction", TEXTS, batch_size=1)
    for texts, batch_size in ((TEXTS, 3), (TEXTS, 100), (TEXTS[::-1], 2), (TEXTS * 2, 4)):
        result = nl.detect.heads(model, "induction", texts, batch_size=batch_size)
        for name in ("values", *STATISTICS):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name))


@settings(max_examples=20)
@given(ids=st.lists(st.integers(2, 8), min_size=2, max_size=20))
def test_patterns_by_their_definition(ids: list[int]) -> None:
    tokens = torch.tensor(ids)
    for name, function in nl.detect.PATTERNS.items():
        places = range(len(ids))
        expected = [[float(looks(name, ids, query, key)) for key in places] for query in places]
        assert function(tokens).tolist() == expected


def test_a_pattern_of_ones_own(model: Any) -> None:
    tokens = nl.detect.repeated_tokens(model, length=10, count=3)
    named = nl.detect.heads(model, "induction", tokens)
    function = nl.detect.heads(model, nl.detect.induction, tokens)
    matrix = nl.detect.heads(model, nl.detect.induction(tokens[0]), tokens)
    for result in (function, matrix):
        torch.testing.assert_close(result.values, named.values)
    assert (named.pattern, matrix.pattern) == ("induction", "matrix")

    def two_back(tokens: Tensor) -> Tensor:
        return torch.eye(len(tokens), dtype=torch.bool).roll(-2, dims=1).tril(-2)

    result = nl.detect.heads(model, two_back, TEXTS[3:])
    assert result.pattern == "two_back"
    assert result.queries == sum(len(text) - 2 for text in TEXTS[3:])
    odd = nl.detect.heads(model, torch.eye(7))  # repeated tokens of that length
    assert odd.queries == 7 * 8


@pytest.mark.parametrize("name", CLASSES)
def test_all_five_classes(name: str) -> None:
    model = random_model(name)
    expected = nl.detect.heads(random_model("GPTNeoXForCausalLM"), "previous_token", TEXTS)
    backbone = random_model("GPTNeoXForCausalLM").backbone.state_dict()
    model.backbone.load_state_dict(backbone)
    result = nl.detect.heads(model, "previous_token", TEXTS)
    torch.testing.assert_close(result.values, expected.values)
    assert result.copying is None
    result = nl.detect.heads(model, "previous_token", TEXTS, copying=True)
    assert bool(result.copying.isnan().all()) == (name != "GPTNeoXForCausalLM")


def test_it_sees_what_hooks_do_and_leaves_none(model: Any) -> None:
    def look_back(pattern: Tensor, hook: Any) -> Tensor:
        pattern[:, 1] = torch.eye(pattern.shape[-1]).roll(-1, dims=1).tril()
        return pattern

    with model.hooks([("blocks.1.attn.hook_pattern", look_back)]):
        result = nl.detect.heads(model, "previous_token")
    assert result.values[1, 1] == 1
    assert nl.detect.heads(model, "previous_token").values[1, 1] < 0.9
    with pytest.raises(InputError):
        nl.detect.heads(model, torch.ones(3, 3))
    assert not model.hook_stack.placements


def test_half_precision(model: Any) -> None:
    expected = nl.detect.heads(model, "induction")
    half = random_model(use_parallel_residual=model.config.use_parallel_residual).bfloat16()
    result = nl.detect.heads(half, "induction")
    assert result.values.dtype == torch.float32
    torch.testing.assert_close(result.entropy, expected.entropy, rtol=0.1, atol=0.1)


def test_repeated_tokens(model: Any) -> None:
    tokens = nl.detect.repeated_tokens(model, length=20, count=5, seed=3)
    assert tokens.shape == (5, 40)
    assert torch.equal(tokens[:, :20], tokens[:, 20:])
    assert all(len(set(row.tolist())) == 20 for row in tokens)
    assert torch.equal(tokens, nl.detect.repeated_tokens(model, length=20, count=5, seed=3))
    assert not torch.equal(tokens, nl.detect.repeated_tokens(model, length=20, count=5, seed=4))
    many = nl.detect.repeated_tokens(model, length=400, count=4)
    assert set(many.flatten().tolist()) == set(range(1, 96))  # not 0, which ends a text
    bare = random_model(bos_token_id=3, eos_token_id=5, pad_token_id=None)
    bare.tokenizer = None
    drawn = set(nl.detect.repeated_tokens(bare, length=2000).flatten().tolist())
    assert drawn == set(range(211)) - {3, 5}


# --- copying ------------------------------------------------------------------------------------


def test_copying_is_that_of_the_whole_matrix() -> None:
    model = random_model(vocab_size=40)

    def wreck(tensor: Tensor, hook: Any) -> Tensor:
        return tensor[:, [5]]  # no token that stands alone has a position 5

    with model.hooks([("blocks.0.hook_resid_pre", wreck)], must_fire=False):
        found = nl.detect.copying_scores(model)
    with torch.no_grad():
        alone = [model.run_with_cache(torch.tensor([[token]]))[1] for token in range(40)]
    last = model.backbone.final_layer_norm
    unembed = (last.weight[:, None] * model.W_U).double()
    d = model.config.hidden_size
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    for layer, block in enumerate(model.blocks):
        norm = model.backbone.layers[layer].input_layernorm
        read = torch.cat([cache["normalized", layer, "ln1"][0] for cache in alone]).double()
        for head in range(model.config.num_attention_heads):
            value = norm.weight.double()[:, None] * block.W_V[head].double()
            logits = read @ value @ block.W_O[head].double() @ centre @ unembed
            logits = logits - logits.mean(dim=1, keepdim=True)
            eigenvalues = torch.linalg.eigvals(logits)
            expected = eigenvalues.sum().real / eigenvalues.abs().sum()
            assert abs(found[layer, head] - expected) < 1e-3


@pytest.mark.parametrize("sample", [2048, 60])
def test_copying_of_planted_heads(sample: int) -> None:
    model = nl.gym.planted()
    layer, head = nl.gym.planted.HEADS["induction"]
    found = nl.detect.copying_scores(model, sample)
    assert found[layer, head] > 0.999
    found[layer, head] = math.nan
    assert found.isnan().all()  # nobody else writes what the unembedding reads
    with torch.no_grad():
        model.blocks[layer].W_O[head].neg_()
    assert nl.detect.copying_scores(model, sample)[layer, head] < -0.999


# --- the result ---------------------------------------------------------------------------------


def test_the_result_as_table_and_picture(tmp_path: Path) -> None:
    plain = nl.detect.heads(nl.gym.planted())
    assert "copying" not in plain.frame
    with pytest.raises(InputError, match=r"heads\(.., copying=True\)"):
        plain.view("copying")
    result = nl.detect.heads(nl.gym.planted(), copying=True)
    frame = result.frame
    columns = ["layer", "head", "score", "copying", "entropy_bits", "distance", "first_token"]
    assert list(frame.columns) == columns
    assert len(frame) == 8
    row = frame.iloc[6]
    assert (row["layer"], row["head"], round(row["score"], 3)) == (1, 2, 1.0)
    assert list(result.top(3)["score"]) == sorted(frame["score"], reverse=True)[:3]
    text = result.to_csv(tmp_path / "heads.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "heads.csv"), frame, check_dtype=False, rtol=1e-5
    )
    assert text.startswith("layer,head,score")
    assert result.to_png(tmp_path / "heads.png").startswith(b"\x89PNG")
    assert "<svg" in result.to_svg()
    assert "induction" in result.to_html()
    assert {"text/plain", "text/html", "image/png"} <= set(result._repr_mimebundle_())
    assert "layer 1, head 2" in repr(result)
    for column in columns[2:]:
        assert len(result.view(column).frame) == 8
    bits = torch.tensor(frame["entropy_bits"].to_numpy()).view(2, 4)
    torch.testing.assert_close(bits.exp2(), result.entropy.exp())  # as many equal choices
    assert result.view("entropy_bits").value_name == "entropy of attention (bits)"
    result.save(tmp_path / "heads.safetensors")  # a saved result holds tensors, in nats as ever
    assert HeadsResult.load(tmp_path / "heads.safetensors").frame.equals(frame)
    with pytest.raises(InputError, match="entropy"):
        result.view("entropi")
    with pytest.raises(AttributeError):
        _ = result.nonsense


# --- what cannot be asked -----------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"pattern": "inductoin"}, "Did you mean 'induction'"),
    ({"pattern": 3}, "a name"),
    ({"measure": "mult"}, "share, mul, abs"),
    ({"pattern": torch.eye(4), "inputs": TEXTS[:1]}, r"\[10, 10\]"),
    ({"pattern": torch.eye(10)[0], "inputs": TEXTS[:1]}, r"\[10, 10\]"),
    ({"pattern": torch.ones(10, 10), "inputs": TEXTS[:1]}, "above the diagonal"),
    ({"pattern": 2 * torch.eye(10), "inputs": TEXTS[:1]}, "0 to 1"),
    ({"pattern": math.nan * torch.eye(10), "inputs": TEXTS[:1]}, "0 to 1|diagonal"),
    ({"pattern": lambda tokens: [[1.0]], "inputs": TEXTS[:1]}, "tensor"),
    ({"pattern": torch.zeros(10, 10), "inputs": TEXTS[:1]}, "anything to look at"),
    ({"pattern": "duplicate_token", "inputs": ["abc", "def"]}, "repeated_tokens"),
    ({"pattern": "induction", "inputs": "abcdef"}, "repeated_tokens"),
    ({"inputs": ["abab", "a"]}, "Text 1 has 1 token"),
    ({"inputs": torch.zeros(1, 4, 64)}, "token ids"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_what_cannot_be_asked(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nl.detect.heads(model, **arguments)


def test_no_tokens_to_repeat(model: Any) -> None:
    with pytest.raises(InputError, match="expected a whole number from 1"):
        nl.detect.repeated_tokens(model, length=0)


# --- beside TransformerLens ---------------------------------------------------------------------


def test_same_scores_as_transformer_lens(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridges = pytest.importorskip(
        "transformer_lens.model_bridge", reason="needs transformer_lens, which is not installed"
    )
    from transformer_lens.head_detector import detect_head

    theirs, ours = pair(vocab_size=50304)
    theirs.save_pretrained(tmp_path)
    nl.GPTNeoXTokenizerFast(
        tokenizer_file=str(shared / "data" / "gpt-neox-20b-tokenizer.json")
    ).save_pretrained(tmp_path)
    ours.tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bridge = bridges.TransformerBridge.boot_transformers(
        str(tmp_path), device="cpu", dtype=torch.float32
    )
    text = "The cat saw the dog and the cat saw the dog again, and the dog saw the cat."
    tokens = bridge.to_tokens(text)  # with a token in front
    names: list[tuple[str, Callable[[Tensor], Tensor] | str]] = [
        ("previous_token_head", "previous_token"),
        ("duplicate_token_head", "duplicate_token"),
        ("induction_head", "induction"),
    ]
    for their_name, name in names:
        for measure, tolerance in (("mul", 1e-5), ("abs", 6e-4)):  # they round abs to 3 digits
            expected = detect_head(bridge, text, their_name, error_measure=measure)
            found = nl.detect.heads(ours, name, tokens, measure=measure)
            torch.testing.assert_close(found.values, expected.float(), rtol=0, atol=tolerance)


def test_no_text_is_read_otherwise_beside_longer_ones() -> None:
    """Where the rotary embedding looks at the longest text of a batch."""
    model = random_model(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "short_factor": [1.0, 1.1],
            "long_factor": [4.0, 9.0],
            "original_max_position_embeddings": 12,
        }
    )
    alone = nl.detect.heads(model, "induction", TEXTS, batch_size=1)
    together = nl.detect.heads(model, "induction", TEXTS, batch_size=8)
    for name in ("values", *STATISTICS):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=0, atol=1e-5)
    hand = by_hand(model, [model.to_tokens(text)[0] for text in TEXTS], "induction")
    torch.testing.assert_close(alone.entropy, hand["entropy"].float(), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="batch_size=0"):
        nl.detect.heads(model, "induction", TEXTS, batch_size=0)
