"""The Rust tokenizer: how one is built, looked into and edited.

A GPT-NeoX pipeline has five stages: a normalizer (Unicode NFC), a pre-tokenizer (bytes, split at
words), a model (byte-pair merges), a post-processor (trims spaces off the character offsets, may
add special tokens) and a decoder (bytes back to text). The stages but the model are small, and
their JSON form is the one description that every version of ``tokenizers`` shares, so edits go
through it.

The Rust object also remembers how to truncate and to pad. ``encoding_state`` lends it a state
for one call and puts back what was there, so no call can change the next; a lock keeps calls of
different threads apart.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from neox_lab.errors import CheckpointError, TokenizerError
from neox_lab.files import StrPath

Spec = dict[str, Any]
Merge = str | Sequence[str]
"""Two tokens that are merged: a pair, or a line of a merges.txt."""

STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")
BACKEND_LOCK = threading.RLock()


def load_backend(
    tokenizer_file: StrPath | None = None,
    vocab_file: StrPath | None = None,
    merges_file: StrPath | None = None,
    tokenizer_object: Tokenizer | None = None,
) -> Tokenizer:
    """Build a Rust tokenizer from one source: a tokenizer.json, a vocabulary, or a copied object.

    Raises:
        TokenizerError: not exactly one source is given.
        CheckpointError: a file is missing or damaged.
    """
    sources = [tokenizer_file, vocab_file or merges_file, tokenizer_object]
    if sum(source is not None for source in sources) != 1 or bool(vocab_file) != bool(merges_file):
        raise TokenizerError(
            "A tokenizer is built from exactly one of tokenizer_file=, vocab_file= together with "
            "merges_file=, or tokenizer_object=. For a model's directory or hub id use "
            "GPTNeoXTokenizerFast.from_pretrained(...)."
        )
    if tokenizer_object is not None:
        return copy.deepcopy(tokenizer_object)
    for file in (tokenizer_file, vocab_file, merges_file):
        if file is not None and not os.path.isfile(file):
            raise CheckpointError(f"There is no file {os.fspath(file)!r}.")
    try:
        if tokenizer_file is not None:
            return Tokenizer.from_file(os.fspath(tokenizer_file))
        return _byte_level(BPE.from_file(os.fspath(vocab_file or ""), os.fspath(merges_file or "")))
    except Exception as error:  # the Rust library raises plain Exception
        damaged = tokenizer_file or f"{vocab_file} with {merges_file}"
        raise CheckpointError(
            f"{str(damaged)!r} does not hold a tokenizer: {error}. It should be written by "
            "save_pretrained or by the tokenizers library; download or save it again."
        ) from error


def from_vocabulary(
    vocab: Mapping[str, int], merges: StrPath | Sequence[Merge] | None
) -> Tokenizer:
    """The GPT-NeoX pipeline around a vocabulary in memory.

    Args:
        vocab: ids by token.
        merges: pairs of tokens, or the lines of a merges.txt; None for none.

    Raises:
        TokenizerError: a merge is no pair, or names a token that is not in the vocabulary.
    """
    if isinstance(merges, str | os.PathLike):
        raise TokenizerError("merges= must be a list of merges where vocab= is a dictionary.")
    lines = [m for m in merges or () if not (isinstance(m, str) and m.startswith("#version"))]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in lines]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise TokenizerError(f"merges= holds {pair!r}, which is no pair of tokens.")
    try:
        model = BPE(dict(vocab), [(first, second) for first, second in pairs])
    except Exception as error:  # the Rust library raises plain Exception
        raise TokenizerError(f"vocab= and merges= make no vocabulary: {error}.") from error
    return _byte_level(model)


def _byte_level(model: BPE) -> Tokenizer:
    """The GPT-NeoX pipeline around a byte-level vocabulary."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    _write(backend, read_pipeline(backend) | {"post_processor": byte_level}, "post_processor")
    return backend


def read_pipeline(backend: Tokenizer) -> Spec:
    """The four small stages in JSON form: stage name -> description, or None where absent."""
    empty = Tokenizer(BPE())
    for stage in STAGES:
        setattr(empty, stage, getattr(backend, stage))
    spec: Spec = json.loads(empty.to_str())
    return spec


def _write(backend: Tokenizer, spec: Spec, *stages: str) -> None:
    """Replace the named stages of ``backend`` by those of ``spec``."""
    built = Tokenizer.from_str(json.dumps(spec))
    with BACKEND_LOCK:
        for stage in stages:
            setattr(backend, stage, getattr(built, stage))


def parts(stage: Spec | None) -> list[Spec]:
    """The steps of a stage in order, with nested sequences laid flat."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    steps = next(stage[name] for name in _CHILDREN if name in stage)
    return [part for step in steps for part in parts(step)]


def byte_level_parts(stage: Spec | None) -> list[Spec]:
    """The steps of a stage that work on bytes."""
    return [part for part in parts(stage) if part["type"] == "ByteLevel"]


def prefix_space(backend: Tokenizer) -> bool | None:
    """Whether a space is put before each text; None where the pipeline has no byte level."""
    found = byte_level_parts(read_pipeline(backend)["pre_tokenizer"])
    return bool(found[0]["add_prefix_space"]) if found else None


def set_prefix_space(backend: Tokenizer, add: bool) -> None:
    """Put a space before each text or not.

    Raises:
        TokenizerError: the pipeline has no byte level.
    """
    spec = read_pipeline(backend)
    before = byte_level_parts(spec["pre_tokenizer"])
    if not before:
        raise TokenizerError("add_prefix_space needs a byte-level pre-tokenizer; this has none.")
    for part in before + byte_level_parts(spec["post_processor"]):
        part["add_prefix_space"] = add  # the post-processor's copy decides which space is trimmed
    _write(backend, spec, "pre_tokenizer", "post_processor")


def trims_offsets(backend: Tokenizer) -> bool:
    """Whether the character offsets of a token leave out its leading space."""
    found = byte_level_parts(read_pipeline(backend)["post_processor"])
    return any(part["trim_offsets"] for part in found)


def set_trimming(backend: Tokenizer, trim: bool) -> None:
    """Leave leading spaces out of character offsets, or keep them in."""
    spec = read_pipeline(backend)
    steps = parts(spec["post_processor"])
    found = byte_level_parts(spec["post_processor"])
    for part in found:
        part["trim_offsets"] = trim
    if not found:
        add = bool(prefix_space(backend))
        steps.insert(0, {"type": "ByteLevel", "add_prefix_space": add, "trim_offsets": trim})
    spec["post_processor"] = {"type": "Sequence", "processors": steps}
    _write(backend, spec, "post_processor")


def set_template(
    backend: Tokenizer, bos: tuple[str, int] | None, eos: tuple[str, int] | None
) -> None:
    """Make each sequence begin with ``bos`` and end with ``eos`` (token, id), where given."""
    spec = read_pipeline(backend)

    def around(sequence: str, type_id: int) -> list[Spec]:
        def piece(token: tuple[str, int]) -> Spec:
            return {"SpecialToken": {"id": token[0], "type_id": type_id}}

        middle: Spec = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*([piece(bos)] if bos else []), middle, *([piece(eos)] if eos else [])]

    template: Spec = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]}
            for token, token_id in filter(None, (bos, eos))
        },
    }
    steps = [*byte_level_parts(spec["post_processor"]), template]
    spec["post_processor"] = {"type": "Sequence", "processors": steps}
    _write(backend, spec, "post_processor")


@contextlib.contextmanager
def encoding_state(
    backend: Tokenizer, truncation: Spec | None = None, split_special_tokens: bool = False
) -> Iterator[None]:
    """Lend ``backend`` a truncation for one block, without padding, then restore its own state."""
    with BACKEND_LOCK:
        own = (backend.truncation, backend.padding, backend.encode_special_tokens)
        try:
            _set_state(backend, truncation, None, split_special_tokens)
            yield
        finally:
            _set_state(backend, *own)


def _set_state(
    backend: Tokenizer, truncation: Spec | None, padding: Spec | None, split_special_tokens: bool
) -> None:
    if truncation != backend.truncation:
        if truncation is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(**truncation)
    if padding != backend.padding:
        if padding is None:
            backend.no_padding()
        else:
            backend.enable_padding(**padding)
    if split_special_tokens != backend.encode_special_tokens:
        backend.encode_special_tokens = split_special_tokens
