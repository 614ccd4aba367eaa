r"""Planted variables: a model in which we know what is written where, because we wrote it.

Tools that look for variables can only be believed if they find one that is known. This model reads
ten letters and ``=``, as in ``aBcdEFghij=``, and answers with one of 1024 tokens:

    a … j    ten variables, True where that letter is a capital
    answer   ``<n>`` for the number n with these ten binary digits, ``a`` the lowest one

**What is where.** Each of the ten has a direction of its own in the embedding, drawn at random, all
orthonormal and without a mean; a capital is that direction, a small letter its negative. The one
head of layer 0 that does something looks evenly at everything and writes ten other random
directions, ``DIRECTIONS``, into the stream. The unembedding reads those at ``=``. Layers 1 and 2
write nothing. So from the end of layer 0 on variable k stands at the last position along
``planted_variable.DIRECTIONS[:, k]``, and nowhere else where it would matter.

To exchange the whole stream there exchanges all ten variables, and gives another answer. They are
as many as ten so that whatever is exchanged for no good reason is hardly ever the right one alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.gym.planting import VOCABULARY, tokenizer

VARIABLES = "abcdefghij"
ANSWERS = 2 ** len(VARIABLES)
D_MODEL, HEADS, LAYERS, HEAD = 64, 4, 3, 1
STRENGTH = 2.0
"""By how much each variable speaks for an answer."""


def _directions() -> tuple[Tensor, Tensor]:
    """Directions of variables in the embedding and after layer 0, each ``[d_model, 10]``."""
    drawn = torch.randn(
        D_MODEL, 2 * len(VARIABLES), generator=torch.Generator().manual_seed(7), dtype=torch.float32
    )
    drawn -= drawn.mean(dim=0)  # layer norm takes the mean away, so there is none
    found = torch.linalg.qr(drawn.double()).Q.float()
    return found[:, : len(VARIABLES)], found[:, len(VARIABLES) :]


_READ, DIRECTIONS = _directions()
"""Where each variable stands, ``[d_model, 10]`` with orthonormal columns."""


def planted_variable() -> GPTNeoXForCausalLM:
    """The three-layer model with ten variables written by hand, in evaluation mode.

    ``planted_variable.DIRECTIONS`` has the direction of each, ``[d_model, 10]``, at the last
    position from ``resid_post`` of layer 0 on; ``nl.gym.CAUSAL["planted"]`` is its causal model.
    """
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY + ANSWERS,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4,  # the MLPs do nothing
        rotary_pct=0.25,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and none is kept
        model = GPTNeoXForCausalLM(config).float()
    model.tokenizer = tokenizer()
    model.tokenizer.backend_tokenizer.add_tokens([f"<{number}>" for number in range(ANSWERS)])
    step = 1 / math.sqrt(
        1 / D_MODEL + config.layer_norm_eps
    )  # layer norm makes a direction so long
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for variable, letter in enumerate(VARIABLES):
            for sign, written in ((-1, letter), (1, letter.upper())):
                model.W_E[model.to_single_token(written)] = sign * _READ[:, variable]
        model.blocks[0].W_V[HEAD][:, : len(VARIABLES)] = _READ / step
        model.blocks[0].W_O[HEAD][: len(VARIABLES)] = DIRECTIONS.T
        bits = torch.arange(ANSWERS)[:, None] >> torch.arange(len(VARIABLES)) & 1
        size = STRENGTH * math.sqrt(len(VARIABLES) / D_MODEL)
        model.W_U[:, VOCABULARY:] = size * DIRECTIONS @ (2 * bits.float() - 1).T
    return model.eval()


planted_variable.DIRECTIONS = DIRECTIONS  # type: ignore[attr-defined]
