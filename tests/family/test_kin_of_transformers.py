"""Models, outputs and tokenizers that are taken for transformers' own and stay ours."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapted import build, ids
from oracle import CLASSES, pair, same, tokens
from torch import nn
from torch.utils import _pytree as pytree

import neox_lab as nl

CAUSAL = "GPTNeoXForCausalLM"
SMALL = {"num_hidden_layers": 2}
every_class = pytest.mark.parametrize("kind", CLASSES)


@every_class
def test_a_model_is_taken_for_one_of_transformers(kind: str, tmp_path: Path) -> None:
    """So that its Trainer calls ``save_pretrained``; nothing else about the model changes."""
    _, ours = pair(kind, **SMALL)
    own = getattr(nl, kind)
    assert isinstance(ours, transformers.PreTrainedModel) and isinstance(ours, own)
    assert not isinstance(ours, getattr(transformers, kind))
    assert type(ours) is own and ours.__class__.__name__ == kind
    assert issubclass(ours.__class__, own)
    assert type(ours.__class__(ours.config)) is own
    ours.__class__.from_pretrained(None, config=ours.config, state_dict=ours.state_dict())
    for again in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(again) is own
        same(again(tokens())[0], ours(tokens())[0])
    torch.save(ours, tmp_path / "whole.pt")
    assert type(torch.load(tmp_path / "whole.pt", weights_only=False)) is own


def test_a_class_can_still_be_exchanged() -> None:
    _, ours = pair(CAUSAL, **SMALL)

    class Other(nl.GPTNeoXForCausalLM):
        pass

    ours.__class__ = Other
    assert type(ours) is Other


def test_a_model_of_somebodys_own_keeps_its_state() -> None:
    _, ours = pair(CAUSAL, **SMALL)
    ours.__class__ = Forgetful
    ours.notes = "long"
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is Forgetful and not hasattr(again, "notes")
    same(again(tokens())[0], ours(tokens())[0])


class Forgetful(nl.GPTNeoXForCausalLM):
    """Does not keep its notes."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "notes"}


def test_parametrizing_a_model_itself_leaves_it_ours() -> None:
    """PyTorch derives a class from ``model.__class__`` and puts it there."""
    model = build()
    model.own = nn.Parameter(torch.ones(3))
    nn.utils.parametrize.register_parametrization(model, "own", nn.Tanh())
    assert type(model).__mro__[1] is nl.GPTNeoXForCausalLM
    assert transformers.PreTrainedModel not in type(model).__mro__
    same(model.own, torch.ones(3).tanh())
    assert isinstance(model, transformers.PreTrainedModel)
    nn.utils.parametrize.remove_parametrizations(model, "own")
    assert isinstance(model, nl.GPTNeoXForCausalLM) and "own" in dict(model.named_parameters())
    model(ids())


def outputs() -> list[Any]:
    model = build()
    return [
        model(ids(), labels=ids(), use_cache=False, output_attentions=True),
        build("GPTNeoXModel")(ids(), use_cache=False),
        model.generate(ids(), max_new_tokens=2, return_dict_in_generate=True, use_cache=False),
    ]


@pytest.mark.parametrize("number", range(3))
def test_an_output_is_taken_for_one_of_transformers(number: int, tmp_path: Path) -> None:
    output = outputs()[number]
    own = type(output)
    assert isinstance(output, transformers.utils.ModelOutput) and isinstance(output, own)
    assert own.__mro__[1].__module__.startswith("neox_lab") and output.__class__ is not own
    assert repr(output).startswith(own.__name__ + "(")
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) > len(output) - 1 and all(isinstance(x, torch.Tensor) for x in leaves)
    torch.save(output, tmp_path / "output.pt")
    for again in (
        copy.copy(output),
        copy.deepcopy(pytree.tree_map(torch.detach, output)),
        pickle.loads(pickle.dumps(output)),
        pytree.tree_unflatten(leaves, spec),
        torch.load(tmp_path / "output.pt", weights_only=False),
    ):
        assert type(again) is own and list(again) == list(output)
        same(again[0], output[0])
    theirs = transformers.utils.ModelOutput(dict(output))
    same(theirs[0], output[0])


def test_a_tokenizer_is_taken_for_one_of_transformers() -> None:
    tokenizer = nl.load().tokenizer
    own = nl.GPTNeoXTokenizerFast
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase) and type(tokenizer) is own
    assert not isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    shown = tokenizer("once upon a time").input_ids
    for again in (
        copy.copy(tokenizer),
        copy.deepcopy(tokenizer),
        *(pickle.loads(pickle.dumps(tokenizer, protocol)) for protocol in range(2, 6)),
    ):
        assert type(again) is own and repr(again) == repr(tokenizer)
        assert again("once upon a time").input_ids == shown
    assert type(tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)) is own
