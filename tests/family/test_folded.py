"""Models of folded weights answer as the model they were made of, and leave it alone."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from oracle import SIZES, padding_masks, randomize, same, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import ConfigError

FLAGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
pytestmark = pytest.mark.usefixtures("one_thread")


def made(**overrides: object) -> nl.GPTNeoXForCausalLM:
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES | overrides)).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_every_combination_of_steps(parallel: bool, biased: bool) -> None:
    model = made(use_parallel_residual=parallel, attention_bias=biased)
    before = copy.deepcopy(model.state_dict())
    masks = padding_masks()
    expected = {name: model(tokens(), attention_mask=mask).logits for name, mask in masks.items()}
    for values in itertools.product([True, False], repeat=len(FLAGS)):
        flags = dict(zip(FLAGS, values, strict=True))
        folded = nl.folded(model, **flags).as_model()
        for name, logits in expected.items():
            found = folded(tokens(), attention_mask=masks[name]).logits
            if flags["center_unembed"]:
                found, logits = found.log_softmax(-1), logits.log_softmax(-1)
            real = slice(None) if masks[name] is None else masks[name].bool()
            same(found[real], logits[real], 2e-5)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


@torch.no_grad()
def test_the_weights_are_what_they_should_be() -> None:
    model = made()
    folded = nl.folded(model, fold_value_biases=True).as_model()
    for block in folded.gpt_neox.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            assert bool((norm.weight == 1).all()) and bool((norm.bias == 0).all())
    assert not bool(folded.b_V.any())
    for written in (folded.W_E, folded.W_O, folded.W_out, folded.b_O, folded.b_out):
        assert float(written.mean(dim=-1).abs().max()) < 1e-6
    assert float(folded.W_U.mean(dim=-1).abs().max()) < 1e-6
    assert abs(float(folded.b_U.mean())) < 1e-6 and float(folded.b_U.abs().max()) > 0.1
    view = nl.folded(model, fold_value_biases=True)
    for name in ("W_E", "W_U", "b_U", "W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O"):
        assert torch.equal(getattr(view, name), getattr(folded, name))
    again = nl.folded(folded, fold_value_biases=True)  # folding what is folded changes nothing
    for name in ("W_E", "W_U", "b_U", "W_Q", "b_Q", "W_O", "b_O", "W_in", "W_out", "b_in"):
        same(getattr(again, name), getattr(folded, name))


def test_the_bias_is_saved_and_reaches_every_question(tmp_path: Path) -> None:
    model = made(tie_word_embeddings=True)
    model.tie_weights()
    folded = nl.folded(model, center_unembed=False).as_model()
    folded.save_pretrained(tmp_path)
    loaded = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(tokens()).logits
        same(loaded(tokens()).logits, expected, 2e-5)
        same(copy.deepcopy(folded)(tokens()).logits, expected, 2e-5)
    written = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(folded.generate(tokens(), **written), model.generate(tokens(), **written))
    metric = nl.patching.logit_difference(7, 9)
    clean, corrupted = tokens(), tokens(seed=1)

    def asked(of: nl.GPTNeoXForCausalLM) -> Tensor:
        sweep = nl.patching.sweep(of, clean, corrupted, metric)
        return torch.as_tensor(sweep.values)

    same(asked(folded), asked(model), 2e-5)
    lenses = [nl.lens.logit_lens(of, tokens()[:1]).frame for of in (model, folded)]
    assert list(lenses[0]["prediction"]) == list(lenses[1]["prediction"])


def test_gradients_reach_a_folded_model_and_not_the_other() -> None:
    model = made()
    folded = nl.folded(model).as_model()
    folded(tokens(), labels=tokens()).loss.backward()
    assert folded.embed_out.bias.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_unembedding_is_refused() -> None:
    with pytest.raises(ConfigError):
        nl.folded(nl.GPTNeoXModel(nl.GPTNeoXConfig(**SIZES))).as_model()
