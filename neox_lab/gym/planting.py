r"""The planted model: a GPT-NeoX that does induction because its weights were written by hand.

A trained model can only be believed to contain a circuit. In this one we know: two heads, at
places we chose, do everything. It is the ground truth for tools that look for heads.

    model = nl.gym.planted()
    nl.detect.heads(model, "induction")        # finds nl.gym.planted.HEADS["induction"]

**The task.** In ``…A B … A`` the next token is probably B. Two heads can say so (Elhage et al.,
2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al., 2022, arXiv:2209.11895):
one writes at every position which token stood before it, the other one looks for a position before
which the present token stood, and copies the token found there.

**The residual stream** has 512 numbers. Three areas of 96, one number for each token of the
vocabulary, hold one-hot vectors; the other numbers stay zero.

    current     the token at this position              written by the embedding
    previous    the token one position earlier          written by layer 0, head 1
    prediction  the token to come                       written by layer 1, head 2

**Layer norm** sees n ones among d = 512 numbers, the same n at every position: 1 before layer 0
and 2 before layer 1. So it is the same map everywhere: it subtracts the mean n / d and multiplies
by s = 1 / √(n/d (1 - n/d) + eps). Every weight that reads divides by s, and the bias beside it adds
the mean again. What the heads work with is exactly one-hot.

**Layer 0, head 1: the previous token, by rotation alone.** W_Q and W_K are zero; the biases are
all there is. The first 32 of a head's 128 numbers are 16 pairs, and pair i turns by the angle
p θ_i at position p. The query bias points along the first axis of each pair, the key bias is that
vector turned by one step θ_i. So query and key point the same way where the key stands exactly one
position earlier, and the score is a Σ_i cos((distance - 1) θ_i). The fast pairs (θ_0 = 1) tell one
position from its neighbours, and the slow ones tell it from those a whole turn away. W_V reads
``current``, W_O writes ``previous``. The first position has only itself to look at, and notes its
own token as the one before.

**Layer 1, head 2: induction, by content alone.** The other 96 numbers of a head are not rotated.
W_Q reads ``current``. W_K reads ``previous`` minus half of ``current``. Query and key agree (1)
where the query's token stood just before the key. The subtracted half is for the first position,
whose note about itself would otherwise be a match: it counts one half, and a true match wins. Where
nothing matches, the head looks evenly at everything. W_V reads ``current``, W_O writes
``prediction``.

**The unembedding** reads ``prediction``. All other heads and both MLPs are zero: they write
nothing, and such a head looks evenly at all positions up to its own.

What it cannot do: it knows no language, has no view where nothing repeats, and if a token had
several successors, it mixes them.
"""

from __future__ import annotations

import math

import torch
from tokenizers import models
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.gym.planting_tokenizers import END_OF_TEXT, byte_level
from neox_lab.model.rotary import inverse_frequencies
from neox_lab.tokenizer import GPTNeoXTokenizerFast

HEADS = {"previous_token": (0, 1), "induction": (1, 2)}
"""What was planted, and at which (layer, head)."""

VOCABULARY = 96  # the end of a text, and the 95 printable characters of ASCII
D_HEAD, N_HEADS = 128, 4
D_MODEL = D_HEAD * N_HEADS
CURRENT, PREVIOUS, PREDICTION = (
    slice(start, start + VOCABULARY) for start in range(0, 3 * VOCABULARY, VOCABULARY)
)
PLAIN = slice(D_HEAD - VOCABULARY, D_HEAD)  # a head's numbers that are not rotated

SHARPNESS = 20.0  # score of the right position above the best wrong one; e^-20 is 2e-9
STRENGTH = 4.0  # size of the one in the prediction area


def planted() -> GPTNeoXForCausalLM:
    """The two-layer model with an induction circuit written by hand, in evaluation mode.

    Its tokens are single printable ASCII characters; any other byte reads as ``<|endoftext|>``.
    ``planted.HEADS`` says where the heads are: ``{"previous_token": (0, 1), "induction": (1, 2)}``.
    On distinct tokens that come again, it gives the right next token a probability above 0.99.
    """
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and none is kept
        model = GPTNeoXForCausalLM(_configuration()).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        identity = torch.eye(VOCABULARY, dtype=torch.float32)
        model.W_E[:, CURRENT] = identity
        model.W_U[PREDICTION] = identity
        _plant_previous_token(model)
        _plant_induction(model)
    model.tokenizer = tokenizer()
    return model.eval()


planted.HEADS = HEADS  # type: ignore[attr-defined]


def tokenizer() -> GPTNeoXTokenizerFast:
    """One token a character: token 0 ends a text, token ``ord(c) - 31`` is the character c."""
    letters = ["Ġ", *map(chr, range(33, 127))]  # byte-level vocabularies write a space as Ġ
    vocabulary = {letter: number for number, letter in enumerate([END_OF_TEXT, *letters])}
    letter_by_letter = models.BPE(vocab=vocabulary, merges=[], unk_token=END_OF_TEXT)
    return byte_level(letter_by_letter, _configuration().max_position_embeddings)


def _configuration() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        intermediate_size=4,  # the MLPs do nothing
        rotary_pct=0.25,
        use_parallel_residual=True,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def _step(ones: int) -> float:
    """How far apart layer norm puts 0 and 1, if ``ones`` of d_model numbers are 1, the rest 0."""
    share = ones / D_MODEL
    return 1 / math.sqrt(share * (1 - share) + _configuration().layer_norm_eps)


def _read_token(weight: Tensor, bias: Tensor, area: slice, ones: int, size: float) -> None:
    """Add to a head's weight ``[d_model, d_head]`` and bias: take ``size`` times the one-hot area.

    ``ones`` are the ones in the residual stream, by which layer norm scales.
    """
    weight[area, PLAIN] += size / _step(ones) * torch.eye(VOCABULARY, dtype=torch.float32)
    bias[PLAIN] += size * ones / D_MODEL  # layer norm took away the mean


def _plant_previous_token(model: GPTNeoXForCausalLM) -> None:
    """Write the previous-token head; see the module's docstring."""
    layer, head = HEADS["previous_token"]
    block = model.blocks[layer]
    angles, _ = inverse_frequencies(model.config)  # by which each pair turns in one step
    cos, sin = angles.cos(), angles.sin()
    pairs = len(cos)
    # Best wrong position: the query's own (distance 0), or distance 2.
    amplitude = SHARPNESS * math.sqrt(D_HEAD) / float((1 - cos).sum())
    block.b_Q[head, :pairs] = math.sqrt(amplitude)
    block.b_K[head, : 2 * pairs] = math.sqrt(amplitude) * torch.cat((cos, sin))
    _read_token(block.W_V[head], block.b_V[head], CURRENT, ones=1, size=1.0)
    block.W_O[head][PLAIN, PREVIOUS] = torch.eye(VOCABULARY, dtype=torch.float32)


def _plant_induction(model: GPTNeoXForCausalLM) -> None:
    """Write the induction head; see the module's docstring."""
    layer, head = HEADS["induction"]
    block = model.blocks[layer]
    size = math.sqrt(SHARPNESS * 2 * math.sqrt(D_HEAD))  # half a match is SHARPNESS below a match
    _read_token(block.W_Q[head], block.b_Q[head], CURRENT, ones=2, size=size)
    _read_token(block.W_K[head], block.b_K[head], PREVIOUS, ones=2, size=size)
    _read_token(block.W_K[head], block.b_K[head], CURRENT, ones=2, size=-size / 2)
    _read_token(block.W_V[head], block.b_V[head], CURRENT, ones=2, size=1.0)
    block.W_O[head][PLAIN, PREDICTION] = STRENGTH * torch.eye(VOCABULARY, dtype=torch.float32)
