"""Two libraries behind one set of names, so that a behaviour is stated once and asked of both.

Bodies of tests are written in transformers' own terms. Where a name or the order of a constructor's
arguments is an inner matter of ours (processors, criteria), the name is translated here; where it
is something that a user of the classes types, it is not, and a difference is a gap.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from oracle import CLASSES, padding_masks, randomize, tokens
from torch import Tensor

import neox_lab as nl

# Much like transformers' own test model of GPT-NeoX; 4 of the 16 numbers of a head are turned.
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
    "pad_token_id": 98,
    "bos_token_id": 96,
    "eos_token_id": 97,
}
BASE, CAUSAL, SEQUENCE, TOKEN, ANSWER = CLASSES
WITH_LOSS = CLASSES[1:]


@dataclass(frozen=True)
class Library:
    """One of the two.

    Attributes:
        name: "transformers" or "neox_lab".
        classes: models, configuration, tokenizer, generation and output classes by upstream's name.
    """

    name: str
    classes: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """The class or factory that transformers calls ``name``."""
        return self.classes[name]

    @property
    def ours(self) -> bool:
        """Whether this is neox_lab."""
        return self.name == "neox_lab"

    def config(self, **values: Any) -> Any:
        """A small configuration; attention in the open, which outputs of attention need there."""
        config = self.GPTNeoXConfig(**(SIZES | values))
        if not self.ours:
            config._attn_implementation = "eager"
        return config

    def model(self, kind: str = CAUSAL, seed: int = 0, std: float = 0.2, **values: Any) -> Any:
        """A model whose weights depend on ``seed`` alone, in evaluation mode."""
        model = self.classes[kind](self.config(**values)).eval()
        randomize(model, std=std, seed=seed)
        return model


def _translated() -> dict[str, Callable[..., Any]]:
    """Our processors and criteria under upstream's names, with upstream's order of arguments."""
    p = importlib.import_module("neox_lab.generation.processors")
    w = importlib.import_module("neox_lab.generation.warpers")
    s = importlib.import_module("neox_lab.generation.stopping")
    marks = importlib.import_module("neox_lab.generation.watermark")

    def listed(token: int | list[int]) -> list[int]:
        return [token] if isinstance(token, int) else list(token)

    return {
        "MinLengthLogitsProcessor": lambda n, eos: p.MinLength(n, listed(eos)),
        "MinNewTokensLengthLogitsProcessor": lambda n, m, eos: p.MinNewTokens(n, m, listed(eos)),
        "TemperatureLogitsWarper": w.Temperature,
        "TopKLogitsWarper": lambda k, min_tokens_to_keep=1: w.TopK(k, min_tokens_to_keep),
        "TopPLogitsWarper": lambda p, min_tokens_to_keep=1: w.TopP(p, min_tokens_to_keep),
        "MinPLogitsWarper": lambda p, min_tokens_to_keep=1: w.MinP(p, min_tokens_to_keep),
        "TopHLogitsWarper": w.TopH,
        "TypicalLogitsWarper": lambda m, min_tokens_to_keep=1: w.Typical(m, min_tokens_to_keep),
        "EpsilonLogitsWarper": lambda e, min_tokens_to_keep=1: w.Epsilon(e, min_tokens_to_keep),
        "EtaLogitsWarper": lambda e, min_tokens_to_keep=1: w.Eta(e, min_tokens_to_keep),
        "RepetitionPenaltyLogitsProcessor": p.RepetitionPenalty,
        "EncoderRepetitionPenaltyLogitsProcessor": p.EncoderRepetitionPenalty,
        "NoRepeatNGramLogitsProcessor": p.NoRepeatNGram,
        "EncoderNoRepeatNGramLogitsProcessor": p.EncoderNoRepeatNGram,
        "SequenceBiasLogitsProcessor": p.SequenceBias,
        "NoBadWordsLogitsProcessor": lambda words, eos=(): p.NoBadWords(words, listed(eos)),
        "PrefixConstrainedLogitsProcessor": p.PrefixConstrained,
        "ForcedBOSTokenLogitsProcessor": p.ForcedBOS,
        "ForcedEOSTokenLogitsProcessor": lambda n, eos: p.ForcedEOS(n, listed(eos)),
        "InfNanRemoveLogitsProcessor": p.InfNanRemove,
        "ExponentialDecayLengthPenalty": lambda pair, eos, length: p.ExponentialDecayLengthPenalty(
            pair[0] + length, pair[1], listed(eos)
        ),
        "LogitNormalization": p.LogitNormalization,
        "SuppressTokensLogitsProcessor": p.SuppressTokens,
        "SuppressTokensAtBeginLogitsProcessor": p.SuppressTokensAtBegin,
        "WatermarkLogitsProcessor": lambda vocab, _device, *rest: marks.Watermark(vocab, *rest),
        "MaxLengthCriteria": s.MaxLength,
        "MaxTimeCriteria": s.MaxTime,
        "EosTokenCriteria": lambda eos: s.EndToken(listed(eos)),
        "StopStringCriteria": lambda tokenizer, strings: s.StopStrings(
            [strings] if isinstance(strings, str) else strings, tokenizer
        ),
    }


_SAME_NAMES = (
    *("GenerationConfig", "LogitsProcessor", "LogitsProcessorList", "StoppingCriteria"),
    *("StoppingCriteriaList", "TextStreamer", "TextIteratorStreamer", "AsyncTextIteratorStreamer"),
)
_OUTPUTS = ("GenerateDecoderOnlyOutput", "GenerateBeamDecoderOnlyOutput")


def _transformers() -> Library:
    from transformers.generation import utils

    classes = {name: getattr(transformers, name) for name in (*CLASSES, *_SAME_NAMES)}
    classes |= {name: getattr(transformers, name) for name in _translated()}
    classes |= {name: getattr(utils, name) for name in _OUTPUTS}
    classes["GPTNeoXConfig"] = transformers.GPTNeoXConfig
    classes["GPTNeoXTokenizerFast"] = transformers.GPTNeoXTokenizerFast
    return Library("transformers", classes)


def _neox_lab() -> Library:
    names = (*CLASSES, "GPTNeoXConfig", "GPTNeoXTokenizerFast")
    classes = {name: getattr(nl, name) for name in names}
    classes |= {name: getattr(nl.generation, name) for name in (*_SAME_NAMES, *_OUTPUTS)}
    return Library("neox_lab", classes | _translated())


_BOTH = {"transformers": _transformers, "neox_lab": _neox_lab}


def load(name: str) -> Library:
    """The library of that name."""
    return _BOTH[name]()


def gap(reason: str) -> Any:
    """Mark a behaviour that transformers has and neox_lab does not have yet.

    The test must pass on the one and fail on the other; mending the gap turns the mark red.
    """
    missing = pytest.param("neox_lab", marks=pytest.mark.xfail(reason=reason, strict=True))
    return pytest.mark.parametrize("library", ["transformers", missing], indirect=True)


def refuses(kind: type[Exception] | tuple[type[Exception], ...] = ValueError) -> Any:
    """``pytest.raises`` that asks for no words: they are each library's own."""
    return pytest.raises(kind)


def ids(batch: int = 3, pos: int = 7, seed: int = 0) -> Tensor:
    """Random token ids ``[batch, pos]``, none of them special."""
    return tokens(batch, pos, vocab=96, seed=seed)


def padded(batch: int = 3, pos: int = 12) -> Tensor:
    """A mask ``[batch, pos]`` of texts that are padded on the left, by different lengths."""
    mask = padding_masks(batch, pos)["left"]
    assert mask is not None
    return mask


def labels_for(kind: str, batch: int, pos: int) -> dict[str, Tensor]:
    """Arguments that make the forward pass of ``kind`` compute a loss."""
    if kind == ANSWER:
        zeros = torch.zeros(batch, dtype=torch.long)
        return {"start_positions": zeros, "end_positions": zeros + pos - 1}
    if kind == SEQUENCE:
        return {"labels": torch.arange(batch) % 2}
    return {"labels": torch.arange(batch * pos).view(batch, pos) % 2}
