"""Which tokens there are, their ids, and which of them are special.

Ids come from three places: the model's vocabulary (0 to ``vocab_size - 1``), tokens added on top
of it in tokenizer.json (GPT-NeoX: runs of 2 to 24 spaces), and tokens added by the user. Special
tokens are added tokens with a role, such as padding; decoding can leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers import AddedToken, Tokenizer

from neox_lab.checks import plain, shown
from neox_lab.errors import TokenizerError, nearest
from neox_lab.tokenizer import pipeline
from neox_lab.tokenizer.settings import ROLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

LARGEST_ID = 2**32 - 1  # the Rust library holds ids in 32 bits

TokenLike = str | AddedToken
TokenIds: TypeAlias = "int | Sequence[int | Sequence[int] | Tensor] | Tensor | NDArray[np.integer]"
"""One id, a row of ids ``[pos]``, or a batch of rows ``[batch, pos]``."""


class SpecialToken:
    """One special token by role: its text, or None where the role is not filled.

    Setting a text that the vocabulary lacks adds it, so ``len(tokenizer)`` grows by one.
    """

    def __init__(self, role: str) -> None:
        self.role = role

    def __get__(self, vocabulary: Vocabulary, kind: type | None = None) -> str | None:
        return vocabulary.special_tokens_map.get(self.role)

    def __set__(self, vocabulary: Vocabulary, token: TokenLike | None) -> None:
        vocabulary.set_special_token(self.role, token)


class SpecialTokenId:
    """The id of one special token, or None; can be set to the id of any known token."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __get__(self, vocabulary: Vocabulary, kind: type | None = None) -> Any:  # int | None
        token = vocabulary.special_tokens_map.get(self.role)
        return None if token is None else vocabulary.convert_tokens_to_ids(token)

    def __set__(self, vocabulary: Vocabulary, token_id: int | None) -> None:
        token = None if token_id is None else vocabulary.convert_ids_to_tokens(token_id)
        if token_id is not None and not isinstance(token, str):
            raise TokenizerError(
                f"{self.role}_id={token_id!r}: no token has that id; the vocabulary holds "
                f"{len(vocabulary)} tokens. Add the token first with add_tokens."
            )
        vocabulary.set_special_token(self.role, token)


class Vocabulary:
    """Tokens and ids of a Rust tokenizer, and the roles that some tokens play."""

    bos_token = SpecialToken("bos_token")
    eos_token = SpecialToken("eos_token")
    unk_token = SpecialToken("unk_token")
    sep_token = SpecialToken("sep_token")
    pad_token = SpecialToken("pad_token")
    cls_token = SpecialToken("cls_token")
    mask_token = SpecialToken("mask_token")
    bos_token_id = SpecialTokenId("bos_token")
    eos_token_id = SpecialTokenId("eos_token")
    unk_token_id = SpecialTokenId("unk_token")
    sep_token_id = SpecialTokenId("sep_token")
    pad_token_id = SpecialTokenId("pad_token")
    cls_token_id = SpecialTokenId("cls_token")
    mask_token_id = SpecialTokenId("mask_token")
    SPECIAL_TOKENS_ATTRIBUTES = ROLES
    pad_token_type_id = 0
    backend = "tokenizers"  # the library that does the work

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._special: dict[str, str] = {}
        self._named: dict[str, str] = {}
        self._extra: list[str] = []
        self._find_misread()

    if not TYPE_CHECKING:  # else every misspelt attribute would have a type

        def __getattr__(self, name: str) -> Any:
            """A special token that was given a name of its own, or its id.

            Raises:
                AttributeError: there is neither such a token nor such an attribute.
            """
            named: dict[str, str] = self.__dict__.get("_named", {})
            if name in named:
                return named[name]
            if name.removesuffix("_id") in named:
                return self.convert_tokens_to_ids(named[name.removesuffix("_id")])
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The Rust tokenizer itself; changes to its vocabulary are changes to this object's."""
        return self._backend

    @property
    def decoder(self) -> object:
        """The Rust tokenizer's stage from tokens to text."""
        return self._backend.decoder

    # --- tokens and ids ---------------------------------------------------------------------

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without added ones; the model's embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Every token, as the vocabulary spells it, with its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    vocab = property(get_vocab)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added tokens by id, in order of ids."""
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens with their ids, in order of ids."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    added_tokens_encoder = property(get_added_vocab)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a token, or ids of a list of tokens; unknown ones get ``unk_token_id``."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        token_id = self._backend.token_to_id(tokens)
        unknown = self._special.get("unk_token")
        if token_id is None and unknown is not None:
            return self._backend.token_to_id(unknown)
        return token_id

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> Any:
        """Token of an id, or tokens of a row of ids, as the vocabulary spells them.

        Args:
            ids: an int, or ``[pos]`` as a list or tensor.
            skip_special_tokens: leave special tokens out of a row.

        Returns:
            A token, or a list of them; None for ids that no token has.

        Raises:
            TokenizerError: an id is negative.
        """
        single = isinstance(ids, int) or getattr(ids, "ndim", 1) == 0
        skipped = set(self.all_special_ids) if skip_special_tokens and not single else set()
        tokens = [
            self._backend.id_to_token(index) if index <= LARGEST_ID else None
            for index in row_of_ids(ids)
            if index not in skipped
        ]
        return tokens[0] if single else tokens

    def convert_tokens_to_string(self, tokens: Sequence[str | None]) -> str:
        """The text that a list of tokens stands for; None among them stands for nothing."""
        known = [token for token in tokens if token is not None]
        decoder = self._backend.decoder
        return str(decoder.decode(known)) if decoder is not None else " ".join(known)

    # --- adding tokens ----------------------------------------------------------------------

    def add_tokens(
        self, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False
    ) -> int:
        """Add tokens after the last id; those already known keep their id.

        Args:
            new_tokens: one or several.
            special_tokens: whether decoding may leave them out.

        Returns:
            The growth of ``len(tokenizer)``; the model's embedding needs as many rows.

        Raises:
            TokenizerError: a token is empty, or neither a str nor an AddedToken.
        """
        if isinstance(new_tokens, str | AddedToken):
            new_tokens = [new_tokens]
        for token in new_tokens:
            _check_token("token", token)
        with pipeline.BACKEND_LOCK:
            before = len(self)
            add = self._backend.add_special_tokens if special_tokens else self._backend.add_tokens
            add(list(new_tokens))
            self._find_misread()
            return len(self) - before

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Fill roles: ``{"pad_token": "<pad>", "extra_special_tokens": ["<a>", "<b>"]}``.

        Args:
            special_tokens_dict: tokens by role; those that the vocabulary lacks are added.
            replace_extra_special_tokens: forget the extra ones there were.

        Returns:
            The growth of ``len(tokenizer)``.

        Raises:
            TokenizerError: a role is unknown, or a token is empty or none.
        """
        known = [*ROLES, "extra_special_tokens", "additional_special_tokens"]
        for role in special_tokens_dict:
            if role not in known:
                raise TokenizerError(
                    f"{role!r} is not a role of a special token.{nearest(role, known)} "
                    f"Known are {', '.join(known)}."
                )
        before = len(self)
        for role, value in special_tokens_dict.items():
            if role in ROLES:
                self._fill(role, value)
            else:
                if isinstance(value, Mapping):
                    self._name_tokens(value)
                    continue
                kept = [] if replace_extra_special_tokens else self._extra
                self.extra_special_tokens = [*kept, *_token_list(value)]
        return len(self) - before

    def set_special_token(self, role: str, token: TokenLike | None) -> None:
        """Let ``token`` play ``role``; None leaves the role empty.

        A token that the vocabulary lacks is added; one that it has stays what it is, so text is
        split into the same tokens as before.

        Raises:
            TokenizerError: it is empty, or neither a str nor an AddedToken.
        """
        if token is None:
            self._special.pop(role, None)
            return
        _check_token(role, token)
        if self._backend.token_to_id(str(token)) is None:
            self.add_tokens([token], special_tokens=True)
        self._special[role] = str(token)

    def _fill(self, role: str, token: TokenLike | None) -> None:
        """Let ``token`` play ``role`` and make it special: whole in text, skipped in decoding."""
        if token is not None:
            self._make_special(role, token)
        self.set_special_token(role, token)

    def _make_special(self, role: str, token: TokenLike) -> None:
        _check_token(role, token)
        added = self._backend.get_added_tokens_decoder().values()
        if not any(known.special and known.content == str(token) for known in added):
            self.add_tokens([token], special_tokens=True)

    def _name_tokens(self, tokens: Mapping[str, TokenLike]) -> None:
        """Make tokens special under names of their own, or those of roles.

        Raises:
            TokenizerError: a name is that of something else that a tokenizer has.
        """
        for name, token in tokens.items():
            if name in ROLES:
                self._fill(name, token)
                continue
            if {name, f"{name}_id"} & set(dir(type(self))):
                raise TokenizerError(f"A special token cannot be named {name!r}: it is taken.")
            self._make_special(name, token)
            self._named[name] = str(token)

    def _find_misread(self) -> None:
        """Note the added tokens whose own text the Rust decoder takes for bytes, such as "café"."""
        added = self._backend.get_added_tokens_decoder()
        self._misread = {
            token_id: token
            for token_id, token in added.items()
            if self._backend.decode([token_id], skip_special_tokens=False) != token.content
        }

    # --- special tokens ---------------------------------------------------------------------

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Filled roles with their tokens, and tokens with names of their own."""
        filled = {role: self._special[role] for role in ROLES if role in self._special}
        return filled | self._named

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without one of the standard roles.

        A mapping names them: after ``{"image_token": "<image>"}`` there are ``image_token`` and
        ``image_token_id``, and ``special_tokens_map`` holds it.
        """
        return list(self._extra)

    @extra_special_tokens.setter
    def extra_special_tokens(
        self, tokens: Sequence[TokenLike] | Mapping[str, TokenLike] | None
    ) -> None:
        if isinstance(tokens, Mapping):
            self._name_tokens(tokens)
            tokens = ()
        listed = _token_list(tokens)
        for token in listed:
            self._make_special("extra_special_tokens", token)
        self._extra = list(dict.fromkeys(map(str, listed)))

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """The ids of ``extra_special_tokens``."""
        ids: list[int] = self.convert_tokens_to_ids(self._extra)
        return ids

    @extra_special_tokens_ids.setter
    def extra_special_tokens_ids(self, ids: Sequence[int] | None) -> None:
        ids = list(ids or [])
        tokens = self.convert_ids_to_tokens(ids)
        if None in tokens:
            raise TokenizerError(
                f"extra_special_tokens_ids={ids!r}: no token has the id {ids[tokens.index(None)]}; "
                f"the vocabulary holds {len(self)} tokens. Add the token first with add_tokens."
            )
        self.extra_special_tokens = tokens

    # transformers 4 called them "additional"
    additional_special_tokens = extra_special_tokens
    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, roles first."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids


def _check_token(name: str, token: object) -> None:
    if not isinstance(token, str | AddedToken) or not str(token):
        raise TokenizerError(f"{name}={token!r}; expected a str or AddedToken that is not empty.")
    if any("\ud800" <= character <= "\udfff" for character in str(token)):
        raise TokenizerError(f"{name}={token!r} holds half a character, which is in no text.")


def _token_list(tokens: object) -> list[TokenLike]:
    if tokens is None or isinstance(tokens, list | tuple):
        return list(tokens or [])
    raise TokenizerError(f"extra_special_tokens={tokens!r}; expected a list of tokens.")


def id_list(ids: object) -> int | list[Any]:
    """Ids as an int or (nested) lists of int, from lists, tuples, arrays and tensors.

    Raises:
        TokenizerError: an id is negative or no integer.
    """
    if hasattr(ids, "tolist"):
        ids = plain(ids)
    if isinstance(ids, list | tuple):
        if all(type(item) is int for item in ids) and min(ids, default=0) >= 0:
            return list(ids)
        try:
            return [id_list(item) for item in ids]
        except RecursionError:
            raise TokenizerError("Token ids are nested too deeply.") from None
    if not isinstance(ids, int):
        raise TokenizerError(
            f"Token ids are integers, and {shown(ids, 60)} is {type(ids).__name__}. Give an int, a "
            "list of int, or an integer tensor."
        )
    if ids < 0:
        hint = " (-100 marks labels to ignore: drop those positions.)" if ids == -100 else ""
        raise TokenizerError(f"Token ids cannot be negative, and {ids} was given.{hint}")
    return ids


def row_of_ids(ids: TokenIds) -> list[int]:
    """One row of ids ``[pos]`` as a list.

    Raises:
        TokenizerError: it is a batch of rows, or an id is negative or no integer.
    """
    row = id_list(ids)
    if isinstance(row, int):
        return [row]
    if any(isinstance(item, list) for item in row):
        raise TokenizerError("One row of token ids is needed here, and a batch of rows was given.")
    return row
