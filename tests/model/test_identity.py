"""Which model something belongs to: what is told apart, and what is the same."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from oracle import pair

import neox_lab as nl
from neox_lab.errors import CheckpointError, NeoxLabWarning
from neox_lab.model import identity as rule
from neox_lab.model.identity import identity, refuse_another, weights_print


def built_in() -> Any:
    return nl.load()


def test_the_same_model_is_the_same_wherever_its_numbers_stand() -> None:
    model = built_in()
    tokenizer = model.tokenizer
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)  # leaves settings behind
    assert identity(model) == identity(copy.deepcopy(model)) == identity(built_in())
    assert identity(model.half()) == identity(copy.deepcopy(model).float())
    model.train()
    model.config.hidden_dropout = 0.3
    assert identity(model) == identity(built_in().half())


@pytest.mark.parametrize("part", ["structure", "weights", "tokenizer"])
def test_what_differs_is_named(part: str) -> None:
    stored = list(identity(built_in()))
    other = built_in()
    if part == "structure":
        other.config.rope_parameters = other.config.rope_parameters | {"rope_theta": 5000.0}
    if part == "weights":
        with torch.no_grad():
            next(other.parameters())[-1, -1] += 1e-3
    if part == "tokenizer":
        other.tokenizer.add_tokens(["unheard of"])
    with pytest.raises(CheckpointError, match=f"^It belongs to another model: {part} differ"):
        refuse_another(stored, identity(other), "It")
    other.tokenizer = None
    if part == "tokenizer":  # one without a tokenizer may have any
        refuse_another(stored, identity(other), "It")


def test_seeds_shapes_and_classes_are_told_apart() -> None:
    names = ("GPTNeoXForCausalLM", "GPTNeoXModel")
    models = [pair(name, seed=seed)[1] for name in names for seed in (0, 1)]
    models.append(pair(names[0], num_attention_heads=8)[1])
    models.append(pair(names[0], use_parallel_residual=False)[1])
    assert len({identity(model) for model in models}) == len(models)
    assert identity(models[0]).weights == identity(models[-1]).weights


def test_files_of_before_are_taken_with_a_warning() -> None:
    with pytest.warns(NeoxLabWarning, match="^It does not say which model"):
        refuse_another(None, identity(built_in()), "It")
    for nonsense in ("abc", ["a"], 3):
        with pytest.raises(CheckpointError, match="in no known way"):
            refuse_another(nonsense, identity(built_in()), "It")


def test_large_weights_are_read_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches are read, and the end; small weights whole; a change everywhere is always seen."""
    monkeypatch.setattr(rule, "WHOLE", 100)
    monkeypatch.setattr(rule, "BLOCKS", 8)
    monkeypatch.setattr(rule, "BLOCK", 16)
    large, small = torch.randn(31, 37), torch.randn(128)
    before = weights_print([("large", large), ("small", small)])
    assert before == weights_print([("small", small), ("large", large.double().float())])
    seen = 0
    for at in range(large.numel()):
        changed = large.clone()
        changed.view(-1)[at] += 1
        seen += weights_print([("large", changed), ("small", small)]) != before
    assert 8 * 16 < seen <= 9 * 16
    for at in range(128):
        changed = small.clone()
        changed[at] += 1
        assert weights_print([("large", large), ("small", changed)]) != before
    scaled = large * (1 + 1e-6)
    assert weights_print([("large", scaled), ("small", small)]) != before


if __name__ == "__main__":  # how fast: python tests/model/test_identity.py
    sizes = {"hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 4096}
    config = nl.GPTNeoXConfig(**sizes, num_attention_heads=16, vocab_size=2**14)
    for model in (built_in(), nl.GPTNeoXForCausalLM(config)):
        start = time.perf_counter()
        identity(model)
        print(f"{model.num_parameters():,}: {time.perf_counter() - start:.3f} s")


def test_how_adapters_stand_belongs_to_a_model() -> None:
    peft = pytest.importorskip("peft")

    def adapted(alpha: int) -> Any:
        torch.manual_seed(3)
        model = nl.load()
        targets = ["dense", "dense_4h_to_h"]
        settings = {"target_modules": targets, "init_lora_weights": False}
        model.add_adapter(peft.LoraConfig(r=2, lora_alpha=alpha, **settings))
        return model.eval()

    one, same, other = adapted(8), adapted(8), adapted(64)
    assert identity(one) == identity(same)
    assert identity(one) != identity(other)
    before = identity(one)
    one.disable_adapters()
    assert identity(one) != before
    one.enable_adapters()
    assert identity(one) == before
