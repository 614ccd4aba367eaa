"""Every setting of generation is read somewhere, and every processor is made by some setting."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SIZES, randomize, tokens

import neox_lab as nl
from neox_lab import generation
from neox_lab.generation import processors, warpers, watermark
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.processor_order import UserProcessors, processors_in_order
from neox_lab.generation.processors import LogitsProcessor
from neox_lab.generation.prompt import Prompt
from neox_lab.generation.settings import SETTINGS

FOLDER = Path(generation.__file__).parent
ASKING: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 5,
    "top_p": 0.5,
    "top_h": 0.5,
    "min_p": 0.1,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.001,
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "bad_words_ids": [[5]],
    "sequence_bias": {(5,): -2.0},
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 4,
    "suppress_tokens": [6],
    "begin_suppress_tokens": [7],
    "exponential_decay_length_penalty": (1, 1.5),
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "min_length": 9,
    "min_new_tokens": 9,
    "watermarking_config": {},
}
"""Settings that put a processor into the line, with a value that asks for it."""
OF_ARGUMENTS = {"PrefixConstrained", "ClassifierFreeGuidance", "FrequencyPenalty"}
"""Made for functions and prompts that the user brings, or brought ready made."""


def made(**asked: Any) -> set[type]:
    neutral: dict[str, Any] = {name: default for name, (default, _) in SETTINGS.items()}
    neutral |= {"top_k": 0, "eos_token_id": 2, "do_sample": True}
    settings = GenerationConfig(**(neutral | asked))
    line = processors_in_order(settings, Prompt(tokens()), UserProcessors(), SIZES["vocab_size"])
    return {type(processor) for processor in line}


def test_every_setting_is_read() -> None:
    read = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif path.name != "settings.py" and isinstance(node, ast.Constant):
                read.add(node.value)
    assert SETTINGS.keys() <= read, SETTINGS.keys() - read


@pytest.mark.parametrize("name", ASKING)
def test_each_setting_puts_one_processor_into_the_line(name: str) -> None:
    assert made() == set()
    assert len(made(**{name: ASKING[name]})) == 1


def test_every_processor_is_asked_for_by_a_setting() -> None:
    known = {
        item
        for module in (processors, warpers, watermark)
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, LogitsProcessor)
    }
    found = set().union(*(made(**{name: value}) for name, value in ASKING.items()))
    assert {kind.__name__ for kind in known - found} == {"LogitsProcessor"} | OF_ARGUMENTS
    every = made(**ASKING)
    assert every == found


@pytest.mark.parametrize("name", ASKING)
def test_each_of_them_changes_scores(name: str) -> None:
    """What is in the line is also run: scores are others than without it."""
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES | {"eos_token_id": 2})).eval()
    randomize(model)
    plain = {"top_k": 0, "do_sample": True, "max_new_tokens": 3, "eos_token_id": 2}
    asked = {**plain, name: ASKING[name]}
    if name == "min_length":
        asked[name] = 40
    if name == "forced_bos_token_id":
        start = torch.tensor([[8], [9], [10]])
    else:
        start = tokens(3, 6)
        start[:, -1] = start[:, 2]  # an n-gram that may come again
    unusual = {"remove_invalid_values"}  # there is nothing to remove

    def scores(settings: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        found = model.generate(
            start, return_dict_in_generate=True, output_scores=True, **settings
        ).scores
        return tuple(found)

    before, after = scores(plain), scores(asked)
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    assert same == (name in unusual)
