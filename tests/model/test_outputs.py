"""Output objects: dictionaries, trees, and what PyTorch does with such; transformers as oracle."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import CLASSES, pair, tokens
from torch.utils import _pytree as pytree

from neox_lab.errors import InputError
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    TokenClassifierOutput,
)


def run(model: Any, **arguments: Any) -> Any:
    with torch.no_grad():
        return model(tokens(), labels=tokens(), output_hidden_states=True, **arguments)


@pytest.mark.parametrize("use_cache", [True, False])
def test_they_are_read_as_transformers_are(use_cache: bool) -> None:
    theirs, ours = (run(model, use_cache=use_cache) for model in pair())
    assert isinstance(ours, dict)
    assert list(ours) == list(theirs) == list(ours.keys())
    assert len(ours) == len(ours.values()) == len(ours.to_tuple()) == len(theirs)
    assert ours[1] is ours.logits is ours["logits"] is ours.get("logits") is dict(ours)["logits"]
    assert ours[:2] == (ours.loss, ours.logits)
    assert ("attentions" in ours) is False and ours.attentions is None
    with pytest.raises(KeyError, match="this CausalLMOutputWithPast has loss, logits"):
        ours["attentions"]


def test_they_are_written_by_name_and_by_attribute() -> None:
    outputs = [run(model) for model in pair()]
    for output in outputs:
        output["logits"] = torch.ones(2)
        assert torch.equal(output.logits, torch.ones(2)) and output[1] is output.logits
        output.loss = torch.zeros(())
        assert output["loss"] is output.loss is output[0]
        output.attentions = (torch.zeros(1),)
    assert list(outputs[1]) == list(outputs[0])
    outputs[1].loss = None
    assert "loss" not in outputs[1] and outputs[1].to_tuple()[0] is outputs[1].logits


@pytest.mark.parametrize("method", ["pop", "popitem", "setdefault", "clear", "__delitem__"])
def test_fields_cannot_be_taken_out(method: str) -> None:
    output = CausalLMOutputWithPast(logits=torch.ones(2))
    with pytest.raises(InputError, match="keeps its fields"):
        getattr(output, method)("logits")
    assert output.logits is output["logits"]


def test_they_are_made_with_either_name_of_the_cache() -> None:
    cache = KeyValueCache(1)
    for name in ("cache", "past_key_values"):
        output = CausalLMOutputWithPast(logits=torch.ones(2), **{name: cache})
        assert output.cache is output.past_key_values is output["past_key_values"] is cache
        assert list(output) == ["logits", "past_key_values"]
    assert BaseModelOutputWithPast(torch.ones(2)).cache is None
    assert dataclasses.replace(output, logits=None).cache is cache
    with pytest.raises(TypeError, match="TokenClassifierOutput has no cache"):
        TokenClassifierOutput(cache=cache)  # type: ignore[call-arg]


def test_they_and_caches_stay_what_they_are_where_transformers_is(tmp_path: Path) -> None:
    """They say that they are transformers' as well; whatever copies them goes by the type."""
    output = run(pair()[1])
    cache = output.past_key_values
    assert isinstance(cache, transformers.DynamicCache) and isinstance(cache, KeyValueCache)
    assert not isinstance(cache, transformers.StaticCache)
    assert not isinstance(output, transformers.modeling_outputs.TokenClassifierOutput)
    torch.save((output, cache), tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    for again in (*loaded[1:], copy.copy(cache), copy.deepcopy(cache)):
        assert type(again) is KeyValueCache and again.get_seq_length() == cache.get_seq_length()
        assert torch.equal(again.layers[1].values, cache.layers[1].values)
    assert type(loaded[0]) is type(output.__class__(logits=None)) is CausalLMOutputWithPast
    assert output.__class__.__name__ == "CausalLMOutputWithPast"


def test_they_are_made_as_dictionaries_are() -> None:
    """As gathering replicas makes them, and mixed precision."""
    output = run(pair()[1])
    for again in (
        type(output)((name, value) for name, value in output.items()),
        type(output)(dict(output)),
        copy.copy(output),
        pickle.loads(pickle.dumps(output)),
        copy.deepcopy(output),
        pytree.tree_map(lambda leaf: leaf, output),
    ):
        assert type(again) is type(output) and list(again) == list(output)
        assert torch.equal(again.logits, output.logits) and again[0] is again.loss
        cache = again.past_key_values
        assert torch.equal(cache.layers[1].keys, output.past_key_values.layers[1].keys)


def test_they_and_caches_are_trees_of_tensors() -> None:
    output = run(pair()[1])
    leaves = pytree.tree_leaves(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert len(leaves) == 2 + 2 * 3 + 4  # loss and logits, keys and values, hidden states
    halved = pytree.tree_map(lambda leaf: leaf.half(), output)
    assert isinstance(halved.past_key_values, KeyValueCache)
    assert halved.past_key_values.layers[2].values.dtype == halved.logits.dtype == torch.float16


def test_replicas_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's own code for data parallel training, whose last step needs a GPU."""
    from torch.nn.parallel import scatter_gather

    class Gather:
        @staticmethod
        def apply(_device: object, dim: int, *parts: torch.Tensor) -> torch.Tensor:
            return torch.cat([part[None] if part.dim() == 0 else part for part in parts], dim)

    monkeypatch.setattr(scatter_gather, "Gather", Gather)
    ours = pair()[1]
    gathered = scatter_gather.gather([run(ours), run(ours)], "cpu")
    assert type(gathered) is CausalLMOutputWithPast
    assert gathered.logits.shape == (6, 12, 211) and gathered.loss.shape == (2,)
    assert gathered.past_key_values.layers[0].keys.shape[0] == 6


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_returns_them(strict: bool) -> None:
    ours = pair()[1]
    exported = torch.export.export(ours, (), {"input_ids": tokens()}, strict=strict)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    for program in (exported, torch.export.load(file)):
        said = program.module()(input_ids=tokens(seed=1))
        assert type(said) is CausalLMOutputWithPast
        torch.testing.assert_close(said.logits, ours(tokens(seed=1)).logits)
        assert said.past_key_values.get_seq_length() == 12


def test_an_exported_model_asks_no_mask_and_no_length() -> None:
    """What is hidden, packed or long in the example must not be so for ever."""
    ours = pair()[1]
    length = torch.export.Dim("length", min=2, max=64)
    ones = torch.ones(3, 12, dtype=torch.long)
    exported = torch.export.export(
        ours,
        (),
        {"input_ids": tokens(), "attention_mask": ones, "use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}, "use_cache": None},
    ).module()
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = 0
    said = exported(input_ids=tokens(3, 20), attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(said, ours(tokens(3, 20), attention_mask=mask).logits)

    run = {"input_ids": tokens(), "use_cache": False}
    whole = torch.arange(12).expand(3, 12)
    exported = torch.export.export(ours, (), run | {"position_ids": whole}).module()
    said = exported(position_ids=whole % 5, **run).logits
    torch.testing.assert_close(said, ours(position_ids=whole % 5, **run).logits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_a_traced_model_asks_no_mask(name: str) -> None:
    ours = pair(name)[1]

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ours

        def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> Any:
            return self.model(input_ids, attention_mask=mask, use_cache=False, return_dict=False)[0]

    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad():
        traced = torch.jit.trace(Plain(), (tokens(), torch.ones_like(mask)))
        torch.testing.assert_close(traced(tokens(), mask), Plain()(tokens(), mask))
