"""What a GPT-NeoX model is, in numbers.

``gpt_neox`` has the settings themselves, and reads and writes ``config.json``; ``rope`` knows the
types of rotary embedding and what each needs; ``spellings`` settles what has several names.
"""

from neox_lab.config.gpt_neox import (
    ACTIVATIONS,
    ATTENTION_PATHS,
    GENERATION_PARAMETERS,
    PROBLEM_TYPES,
    GPTNeoXConfig,
)

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_PATHS",
    "GENERATION_PARAMETERS",
    "PROBLEM_TYPES",
    "GPTNeoXConfig",
]
