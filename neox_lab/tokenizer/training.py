"""Learning another vocabulary for the same pipeline.

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) begins with single bytes and makes a
new token of the most frequent pair of neighbours, again and again, until the vocabulary is full.
The other stages, which cut text into words and put special tokens around it, are taken over; only
the ids that they name are looked up anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from neox_lab.errors import TokenizerError
from neox_lab.tokenizer.pipeline import Spec, byte_level_parts, encoding_state, parts
from neox_lab.tokenizer.vocabulary import TokenLike

Corpus = Iterable[str] | Iterable[Sequence[str]]
"""Texts, or batches of texts."""


def learn(
    backend: Tokenizer,
    texts: Corpus,
    vocab_size: int,
    length: int | None,
    added: Sequence[TokenLike],
    renamed: Mapping[str, str],
    options: Mapping[str, Any],
) -> Tokenizer:
    """A Rust tokenizer with the stages of ``backend`` and merges learnt from ``texts``.

    Added tokens that are not special, such as GPT-NeoX's runs of spaces, follow the learnt ones.

    Args:
        backend: whose stages and added tokens are taken over; it stays as it is.
        texts: what to learn from.
        vocab_size: number of tokens to learn.
        length: how many texts there are, for the progress bar.
        added: special tokens beside those of ``backend``.
        renamed: new texts of special tokens by their old ones.
        options: further arguments of the trainer.

    Raises:
        TokenizerError: the vocabulary is not made of merges, or an argument is unknown.
    """
    with encoding_state(backend):
        spec: Spec = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise TokenizerError(f"A vocabulary of kind {model['type']} cannot be learnt anew here.")
    model |= {"vocab": {}, "merges": [], "unk_token": _renamed(model["unk_token"], renamed)}
    special = [_added_token(token, renamed) for token in spec["added_tokens"] if token["special"]]
    untrained = spec | {"added_tokens": [], "post_processor": None}
    trained = Tokenizer.from_str(json.dumps(untrained))
    trained.train_from_iterator(
        texts, _trainer(spec, vocab_size, [*special, *added], options), length=length
    )
    trained.add_tokens([_added_token(t, {}) for t in spec["added_tokens"] if not t["special"]])
    spec |= {key: json.loads(trained.to_str())[key] for key in ("model", "added_tokens")}
    for part in parts(spec["post_processor"]):
        _look_up_ids(part, trained, renamed)
    return Tokenizer.from_str(json.dumps(spec))


def _renamed(token: str | None, renamed: Mapping[str, str]) -> str | None:
    return None if token is None else renamed.get(token, token)


def _added_token(token: Mapping[str, Any], renamed: Mapping[str, str]) -> AddedToken:
    flags = {name: value for name, value in token.items() if name not in ("id", "content")}
    return AddedToken(renamed.get(token["content"], token["content"]), **flags)


def _trainer(
    spec: Spec, vocab_size: int, special: list[TokenLike], options: Mapping[str, Any]
) -> BpeTrainer:
    """The trainer that fits the stages of ``spec``."""
    fitting = {
        name: spec["model"][name]
        for name in ("continuing_subword_prefix", "end_of_word_suffix")
        if spec["model"][name] is not None
    }
    if byte_level_parts(spec["pre_tokenizer"]):
        fitting["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    try:
        return BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, **(fitting | dict(options))
        )
    except (TypeError, OverflowError) as error:
        raise TokenizerError(f"The trainer of tokenizers cannot be made: {error}.") from error


def _look_up_ids(part: Spec, trained: Tokenizer, renamed: Mapping[str, str]) -> None:
    """Give the special tokens that a step of the post-processor adds their new texts and ids."""

    def identified(token: str) -> tuple[str, int]:
        text = renamed.get(token, token)
        token_id = trained.token_to_id(text)
        if token_id is None:
            raise TokenizerError(
                f"{text!r} is put around each text and is not in the new vocabulary: add it with "
                "new_special_tokens=."
            )
        return text, token_id

    for known in part.get("special_tokens", {}).values():
        pairs = [identified(token) for token in known["tokens"]]
        known["tokens"] = [text for text, _ in pairs]
        known["ids"] = [token_id for _, token_id in pairs]
    for role in ("cls", "sep"):
        if role in part:
            part[role] = list(identified(part[role][0]))
