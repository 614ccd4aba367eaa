"""The two libraries and the small tokenizer of `tests/upstream`, for everything put around them."""

from __future__ import annotations

import os

import pytest
from upstream.conftest import library, one_thread, tokenizer_folder

# Nothing here reads the hub, and nothing may wait for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__all__ = ["library", "one_thread", "tokenizer_folder"]


@pytest.fixture
def tokenizer(library, tokenizer_folder):
    """The small tokenizer as the library's own class."""
    return library.GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
