r"""What planted circuits are made of: areas of the residual stream, and parts that read and write.

**Areas.** The residual stream is divided into areas, each a one-hot code: ``token`` has a number
for each word, ``duplicate`` a number for each name, and so on. A part reads some areas by matrices
that are written by hand, and writes to others.

**Layer norm, handled.** It subtracts the mean and divides by the standard deviation, and both
depend on all that is written. Two numbers of the stream undo that. The *anchor* is written by the
embedding of every token and is large (64), so that it decides the standard deviation nearly alone:
what else is written moves it by some percent at most, and every weight that reads is divided by
what layer norm does to the anchor. The *ground* is never written, so that after layer norm it holds
just what was subtracted: every weight that reads an area subtracts on the ground the sum of what it
reads, and the mean is gone, exactly.

**Distractors.** All other heads, all other neurons read every area at full strength, by matrices
drawn at random. They write just as strongly to an area ``waste``, which other distractors read and
no part of the circuit does, and very weakly (``LEAK``) to every area. So all edges carry something
and all scores differ from 0, but those outside the circuit by little.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

import torch
from tokenizers import models
from torch import Tensor

from neox_lab.checks import check, whole
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric, logit_difference
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.gym.examples import Pair
from neox_lab.gym.planting_tokenizers import END_OF_TEXT, byte_level
from neox_lab.tokenizer import GPTNeoXTokenizerFast

LAYERS, N_HEADS, D_HEAD, NEURONS, POSITIONS = 4, 4, 32, 48, 16
D_MODEL = N_HEADS * D_HEAD
PAIRS = 8  # that turn by position; the other numbers of a head do not
PLAIN = slice(2 * PAIRS, D_HEAD)
ANCHOR, GROUND, FIRST_AREA = 0, 1, 2
SIZE_OF_ANCHOR = 64.0
WASTE = 16

SHARPNESS = 10.0  # score of the right position above the best wrong one
STRENGTH = 8.0  # logit of an answer that stands in the stream as 1
LEAK = 0.002  # what distractors write to the areas of the circuit
SEED = 0


@dataclasses.dataclass(frozen=True)
class PlantedCircuit:
    """A model whose circuit is known, with prompts that need it.

    Attributes:
        name: the task.
        model: the model, in evaluation mode.
        edges: writer and reader of every edge that carries what the answer depends on and the two
            prompts of a pair do not share, such as ``("L2H0", "logits")``.
        parts: what each part of the circuit does, by its name.
    """

    name: str
    model: GPTNeoXForCausalLM
    edges: tuple[tuple[str, str], ...]
    parts: dict[str, str]
    _draw: Callable[[Random], Pair]

    def pairs(self, count: int = 8, seed: int = 0) -> list[Pair]:
        """Pairs of prompts, clean and corrupted, with the right and the wrong answer.

        Args:
            count: how many; they may repeat.
            seed: the same for the same pairs.

        Raises:
            InputError: ``count`` or ``seed`` is no whole number in range.
        """
        count = check("count", count, whole(least=1, most=100_000), InputError)
        seed = check("seed", seed, whole(least=0), InputError)
        random = Random(f"{self.name}/{seed}")
        return [self._draw(random) for _ in range(count)]

    def question(self, count: int = 8, seed: int = 0) -> dict[str, Any]:
        """The same, as it is asked: ``nl.circuits.scores(planted.model, **planted.question())``.

        Args:
            count: how many pairs.
            seed: the same for the same pairs.

        Returns:
            ``clean``, ``corrupted`` and ``metric``, the logit of the right answer minus that of the
            wrong one.

        Raises:
            InputError: ``count`` or ``seed`` is no whole number in range.
        """
        pairs = self.pairs(count, seed)
        metric: Metric = logit_difference([p.correct for p in pairs], [p.wrong for p in pairs])
        return {
            "clean": [pair.clean for pair in pairs],
            "corrupted": [pair.corrupted for pair in pairs],
            "metric": metric,
        }

    def __repr__(self) -> str:
        """What each part does, and the edges."""
        lines = [f"{self.name}: {len(self.edges)} edges"]
        lines += [f"  {name:<6} {does}" for name, does in self.parts.items()]
        return "\n".join([*lines, *(f"  {a} -> {b}" for a, b in self.edges)])


class Planting:
    """A model that is being written by hand; see the module.

    Attributes:
        model: the model.
        areas: which numbers of the residual stream each area is.
    """

    def __init__(self, words: Sequence[str], sizes: dict[str, int], parallel: bool) -> None:
        """A model that does nothing but write its tokens.

        Args:
            words: of the vocabulary, after the end of a text; most begin with a space.
            sizes: numbers of each area besides ``token`` and ``waste``.
            parallel: the wiring.
        """
        self.words = [END_OF_TEXT, *words]
        self.areas: dict[str, slice] = {}
        start = FIRST_AREA
        for name, size in {"token": len(self.words), **sizes, "waste": WASTE}.items():
            self.areas[name] = slice(start, start + size)
            start += size
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and none is kept
            configuration = _configuration(len(self.words), parallel)
            self.model = GPTNeoXForCausalLM(configuration).float()
        share = SIZE_OF_ANCHOR / D_MODEL
        variance = SIZE_OF_ANCHOR * share - share**2
        self.step = 1 / math.sqrt(variance + self.model.config.layer_norm_eps)
        self.taken: set[tuple[int, int]] = set()  # heads of the circuit
        self.neurons: dict[int, int] = {}  # of the circuit, by layer; the first ones
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(False)
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        self.model.W_E[:, ANCHOR] = SIZE_OF_ANCHOR
        self.model.W_E[:, self.areas["token"]] = torch.eye(len(self.words), dtype=torch.float32)
        self.model.tokenizer = tokenizer(self.words)

    def numbers(self, words: Sequence[str]) -> list[int]:
        """Tokens of words."""
        return [self.words.index(word) for word in words]

    def chosen(self, words: Sequence[str]) -> Tensor:
        """From tokens to their numbers among ``words``, ``[token, word]``."""
        return torch.eye(len(self.words), dtype=torch.float32)[:, self.numbers(words)]

    def reads(self, weight: Tensor, area: str, matrix: Tensor) -> None:
        """Add to a weight that reads the stream ``[d_model, any]``: ``matrix`` times an area.

        Args:
            weight: changed in place.
            area: its name.
            matrix: ``[number of the area, any]``.
        """
        weight[self.areas[area]] += matrix / self.step
        weight[GROUND] -= matrix.sum(dim=0) / self.step

    def head(
        self, layer: int, head: int, part: Literal["Q", "K", "V"], area: str, matrix: Tensor
    ) -> None:
        """Let a head read an area into its numbers that do not turn; those not given stay zero."""
        self.taken.add((layer, head))
        block = self.model.blocks[layer]
        weight = {"Q": block.W_Q, "K": block.W_K, "V": block.W_V}[part][head]
        wide = torch.zeros(len(matrix), D_HEAD, dtype=torch.float32)
        wide[:, PLAIN.start : PLAIN.start + matrix.shape[1]] = matrix
        self.reads(weight, area, wide)

    def head_writes(self, layer: int, head: int, area: str, size: float) -> None:
        """Let a head write its first numbers that do not turn to an area."""
        where = self.areas[area]
        count = where.stop - where.start
        weight = self.model.blocks[layer].W_O[head]
        weight[PLAIN.start : PLAIN.start + count, where] = size * torch.eye(
            count, dtype=torch.float32
        )

    def neuron(
        self, layer: int, read: dict[str, Tensor], threshold: float, area: str, wrote: Tensor
    ) -> None:
        """A neuron that writes ``wrote`` to an area where its sum is half above the threshold.

        Args:
            layer: of the MLP.
            read: what it sums: a weight for each number of areas ``[number]``.
            threshold: below it is silent.
            area: where it writes.
            wrote: ``[number]``, what it writes if the sum is 0.5 above the threshold.
        """
        block, at = self.model.blocks[layer], self.neurons.get(layer, 0)
        self.neurons[layer] = at + 1
        slope = 2 * SHARPNESS  # gelu(SHARPNESS) = SHARPNESS, gelu(-SHARPNESS) = 0
        for name, weights in read.items():
            self.reads(block.W_in[:, at : at + 1], name, slope * weights[:, None])
        block.b_in[at] = -slope * threshold
        block.W_out[at, self.areas[area]] = wrote / SHARPNESS

    def answers(self, area: str, words: Sequence[str]) -> None:
        """Let the unembedding read an area as words."""
        wide = torch.zeros(len(words), len(self.words), dtype=torch.float32)
        wide[range(len(words)), self.numbers(words)] = STRENGTH
        self.reads(self.model.W_U, area, wide)

    def finished(self) -> GPTNeoXForCausalLM:
        """The model, with distractors wherever the circuit is not."""
        generator = torch.Generator().manual_seed(SEED)
        everything = torch.zeros(D_MODEL, dtype=torch.float32)
        for where in self.areas.values():
            everything[where] = LEAK
        everything[self.areas["waste"]] = 1
        for layer, block in enumerate(self.model.blocks):
            for head in range(N_HEADS):
                if (layer, head) not in self.taken:
                    for weight in (block.W_Q, block.W_K, block.W_V):
                        self._reads_at_random(weight[head], generator)
                    drawn = torch.randn(D_HEAD, D_MODEL, generator=generator, dtype=torch.float32)
                    block.W_O[head][:] = drawn * everything / math.sqrt(D_HEAD)
            first = self.neurons.get(layer, 0)
            self._reads_at_random(block.W_in[:, first:], generator)
            drawn = torch.randn(NEURONS - first, D_MODEL, generator=generator, dtype=torch.float32)
            block.W_out[first:] = drawn * everything / math.sqrt(NEURONS)
        self.model.requires_grad_(True)
        return self.model.eval()

    def _reads_at_random(self, weight: Tensor, generator: torch.Generator) -> None:
        for name, where in self.areas.items():
            drawn = torch.randn(
                where.stop - where.start, weight.shape[1], generator=generator, dtype=torch.float32
            )
            if name == "waste":  # not one-hot: many parts have written to it
                drawn /= WASTE
            self.reads(weight, name, drawn)


def tokenizer(words: Sequence[str]) -> GPTNeoXTokenizerFast:
    """One token a word, with the space before it as in GPT-NeoX; the first one ends a text.

    Args:
        words: the vocabulary.
    """
    vocabulary = {word.replace(" ", "Ġ"): number for number, word in enumerate(words)}
    return byte_level(models.WordLevel(vocab=vocabulary, unk_token=END_OF_TEXT), POSITIONS)


def _configuration(vocabulary: int, parallel: bool) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=NEURONS,
        rotary_pct=2 * PAIRS / D_HEAD,
        rotary_emb_base=10,
        use_parallel_residual=parallel,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
