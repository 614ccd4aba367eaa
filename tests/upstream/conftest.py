"""Both libraries, and one small tokenizer in the files that both read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from upstream.library import Library, load

TEXTS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox runs on.",
    "Wonderful no inspiration example with subtoken along with an awesome pair",
    "This is a test sequence. This is the first sentence, and this sentence is different.",
    "Test this method. With these inputs and some extra tokens here. Hello world, hello there!",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are faster without helpers, and sums come out the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["transformers", "neox_lab"])
def library(request: pytest.FixtureRequest) -> Library:
    """The library that a behaviour is asked of."""
    return load(request.param)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer of GPT-NeoX's form: same parts, few merges."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(TEXTS, trainer)
    rust.add_tokens([AddedToken("    ", normalized=True)])
    rust.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "GPTNeoXTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
