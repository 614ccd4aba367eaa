"""Tokenizers of planted models: a vocabulary written by hand, read as GPT-NeoX's is."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from neox_lab.tokenizer import GPTNeoXTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def byte_level(vocabulary: models.Model, positions: int) -> GPTNeoXTokenizerFast:
    """A tokenizer without merges of its own; spaces are written ``Ġ``, and padding ends a text.

    Args:
        vocabulary: its tokens, ``END_OF_TEXT`` among them.
        positions: how many a text may have.
    """
    backend = Tokenizer(vocabulary)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return GPTNeoXTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=positions,
    )
