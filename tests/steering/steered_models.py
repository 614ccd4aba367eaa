"""Small models that read a token for each letter, large random weights, two kinds of texts."""

from __future__ import annotations

from typing import Any

from oracle import SIZES, randomize

import neox_lab as nl
from neox_lab.gym import planting

POSITIVE = ["abcd", "bbcdd", "acd", "aabd", "dcda", "bdca"]
NEGATIVE = ["efgh", "hgfee", "ehg", "ggfh", "hfeg", "fghe"]
SITE = "blocks.1.hook_resid_post"


def build(name: str = "GPTNeoXForCausalLM", **more: Any) -> Any:
    sizes = SIZES | {"vocab_size": 96, "pad_token_id": 0, "hidden_size": 32} | more
    model = getattr(nl, name)(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model)
    model.tokenizer = planting.tokenizer()
    return model
