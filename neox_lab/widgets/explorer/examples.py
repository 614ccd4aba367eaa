"""Prompts to click, each with a second one that differs in one word and leads elsewhere."""

from __future__ import annotations

from neox_lab.built_in import is_inside
from neox_lab.family import GPTNeoXForCausalLM

BUILT_IN = (
    ("The best school of Sweden is in", "The best school of Russia is in"),
    (
        "Daniel and Tom came to the market. Then Tom showed a watch to",
        "Daniel and Tom came to the market. Then Daniel showed a watch to",
    ),
    (
        "ugly bag mirror perfect Nina table ugly bag mirror perfect Nina",
        "ugly bag mirror perfect Nina museum ugly bag mirror perfect Nina",
    ),
)
OTHERS = (
    (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
    ),
    ("The capital of France is the city of", "The capital of Italy is the city of"),
    ("The doctor said that he", "The nurse said that he"),
)


def examples(model: GPTNeoXForCausalLM) -> tuple[tuple[str, str], ...]:
    """Pairs of prompts that ``model`` should do well."""
    return BUILT_IN if is_inside(model.name_or_path) else OTHERS
