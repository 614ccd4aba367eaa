"""Text in and out of a model that has a tokenizer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, overload

import torch
from torch import Tensor

from neox_lab.checks import ids_to_tensor, listed_texts, require_data, shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError, TokenizerError
from neox_lab.notices import tell_of_length
from neox_lab.other_names import names_ours

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")

Inputs: TypeAlias = "str | list[str] | Tensor"
"""A string, a list or column of strings (padded, masked), token ids ``[batch, pos]``, or, to start
at a layer, a residual stream ``[batch, pos, d_model]``."""


class TextHelpers:
    """From text to token ids and back, with the model's own tokenizer."""

    config: GPTNeoXConfig
    tokenizer: GPTNeoXTokenizerFast | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        raise NotImplementedError

    @names_ours
    def to_tokens(self, text: str | list[str]) -> Tensor:
        """Token ids ``[batch, pos]`` on the model's device; shorter texts are padded.

        No token is put in front: GPT-NeoX models are trained without one. A text longer than
        ``config.max_position_embeddings`` is told of by a ``NeoxLabWarning``.

        Raises:
            InputError: the text is empty.
            TokenizerError: the model has no tokenizer.
        """
        return self._encode(text)["input_ids"]

    @overload
    def to_str_tokens(self, text: str) -> list[str]: ...
    @overload
    def to_str_tokens(self, text: list[str]) -> list[list[str]]: ...
    @overload
    def to_str_tokens(self, text: Tensor) -> list[str] | list[list[str]]: ...
    @names_ours
    def to_str_tokens(self, text: str | list[str] | Tensor) -> list[str] | list[list[str]]:
        """Each token's own text, such as ``["The", " cat"]``; a list of lists for several texts.

        Tokens that are a fragment of a character are shown by their bytes, as in ``⟨E2⟩``.

        Args:
            text: a string, several strings, or token ids ``[pos]`` or ``[batch, pos]``.

        Raises:
            InputError: something else, or token ids of another shape.
            TokenizerError: the model has no tokenizer.
        """
        tokenizer = self._tokenizer()
        if isinstance(text, str):
            return tokenizer.pieces(tokenizer(text, verbose=False).input_ids)
        if isinstance(text, Tensor):
            if text.is_meta or text.layout is not torch.strided:
                raise InputError("text is a tensor without data, or a sparse one.")
            if text.dim() not in (1, 2):
                raise InputError(
                    f"Token ids have shape {list(text.shape)}; expected [pos] or [batch, pos]."
                )
            if text.dim() == 1:
                return tokenizer.pieces(text.tolist())
            rows = [tokenizer.pieces(row) for row in text.tolist()]
            return rows[0] if len(rows) == 1 else rows
        text = cast("list[str]", listed_texts(text))
        if not isinstance(text, list | tuple):
            raise InputError(
                f"{shown(text, 80)} is neither text nor token ids [pos] or [batch, pos]."
            )
        return [tokenizer.pieces(tokenizer(row, verbose=False).input_ids) for row in text]

    @overload
    def to_string(self, tokens: list[int] | int) -> str: ...
    @overload
    def to_string(self, tokens: Tensor) -> str | list[str]: ...
    def to_string(self, tokens: Tensor | list[int] | int) -> str | list[str]:
        """The text of token ids ``[pos]``, or one text a row for ``[batch, pos]``.

        Raises:
            TokenizerError: the model has no tokenizer.
        """
        return self._tokenizer().decode(tokens)

    def to_single_token(self, text: str) -> int:
        """The id of ``text``, which must be exactly one token.

        Raises:
            TokenizerError: it is none or several; the message shows which.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"{shown(text)} is no text; expected a string.")
        ids = self._tokenizer()(text).input_ids
        if len(ids) != 1:
            pieces = self._tokenizer().pieces(ids[:50])
            hint = (
                ""
                if text.startswith(" ")
                else " Most words are single tokens only with a leading space."
            )
            raise TokenizerError(
                f"{shown(text)} is {len(ids)} tokens, {pieces}; expected exactly one.{hint}"
            )
        return int(ids[0])

    def prepare_inputs(self, inputs: Inputs) -> dict[str, Tensor]:
        """Arguments of ``forward`` for whatever the user gave.

        More tokens than ``config.max_position_embeddings`` are told of by a ``NeoxLabWarning``.

        Returns:
            ``input_ids`` (with ``attention_mask`` for texts), or ``inputs_embeds``.

        Raises:
            InputError: neither text, ids ``[batch, pos]`` nor vectors, or an empty text.
            TokenizerError: text, and the model has no tokenizer.
            DeviceError: text, and the model's weights hold no numbers.
        """
        inputs = cast(Inputs, listed_texts(inputs))
        if isinstance(inputs, Tensor):
            if inputs.is_floating_point():
                if inputs.dim() != 3:
                    raise InputError(
                        f"Vectors have shape {list(inputs.shape)}; expected [batch, pos, d_model]."
                    )
                tell_of_length(inputs.shape[1], self.config.max_position_embeddings)
                return {"inputs_embeds": inputs}
            if inputs.dim() != 2:
                raise InputError(
                    f"Token ids have shape {list(inputs.shape)}; expected [batch, pos]. For a "
                    "single sequence [pos] use ids[None]."
                )
            if inputs.is_meta or inputs.layout is not torch.strided:
                raise InputError("inputs is a tensor without data, or a sparse one.")
            if inputs.dtype == torch.bool or inputs.is_complex():
                raise InputError(f"inputs is a {inputs.dtype} tensor; expected token ids.")
            tell_of_length(inputs.shape[1], self.config.max_position_embeddings)
            return {"input_ids": inputs.to(self.device).long()}
        if isinstance(inputs, str) or (
            isinstance(inputs, list | tuple) and inputs and all(isinstance(t, str) for t in inputs)
        ):
            require_data(self.device)
            prepared = self._encode(inputs if isinstance(inputs, str) else list(inputs))
            with_tokens = prepared["attention_mask"].any(dim=1)
            if empty := [row for row, some in enumerate(with_tokens.tolist()) if not some]:
                raise InputError(
                    f"Texts {empty[:5]} of this batch are empty: there is no token to run the "
                    "model on. Leave them out."
                )
            return prepared
        raise InputError(
            f"inputs is {shown(inputs, 80)}; expected a string, a list of strings, or a LongTensor "
            f"[batch, pos].{ids_to_tensor(inputs)}"
        )

    def last_token(self, input_ids: Tensor | None, logits: Tensor) -> Tensor | int:
        """Where each text is read: position of its last token ``[batch]``, or -1 for every end.

        Args:
            input_ids: token ids ``[batch, pos]``; None if vectors were given.
            logits: anything with as many rows, ``[batch, ..]``.

        Raises:
            InputError: several texts and no ``config.pad_token_id`` to find their ends.
        """
        pad = self.config.pad_token_id
        if pad is None and logits.shape[0] > 1:
            raise InputError(
                "Cannot handle batch sizes > 1 if no padding token is defined: where each text "
                "ends is unknown. Set model.config.pad_token_id."
            )
        if pad is None:
            return -1
        if input_ids is None:
            _log.warning(
                "Classifying inputs_embeds: padding cannot be seen, so each answer is read at the "
                "last position."
            )
            return -1
        ids = input_ids.to(logits.device)
        positions = torch.arange(ids.shape[1], device=logits.device, dtype=torch.int32)
        return (positions * (ids != pad)).argmax(dim=-1)

    def _encode(self, text: str | list[str]) -> dict[str, Tensor]:
        """Ids and mask ``[batch, pos]``, on the model's device.

        Raises:
            InputError: there is no token, or no text.
            TokenizerError: the model has no tokenizer.
        """
        texts = [text] if isinstance(text, str) else listed_texts(text)
        if not isinstance(texts, list | tuple):
            raise InputError(
                f"{shown(text, 80)} is no text; expected a string or a list of strings."
            )
        padding = len(texts) > 1
        batch = self._tokenizer()(texts, padding=padding, return_tensors="pt", verbose=False)
        ids = batch["input_ids"]
        tell_of_length(ids.shape[1], self.config.max_position_embeddings)
        if ids.shape[1] == 0:
            raise InputError("The text is empty: there is no token to run the model on.")
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": batch["attention_mask"].to(self.device),
        }

    def pieces_of(self, prepared: dict[str, Tensor]) -> list[str] | None:
        """The token strings of the first row, or None without a tokenizer or without ids."""
        if self.tokenizer is None or "input_ids" not in prepared:
            return None
        return self.tokenizer.pieces(prepared["input_ids"][0].tolist())

    def _tokenizer(self) -> GPTNeoXTokenizerFast:
        return tokenizer_of(self)


class _HasTokenizer(Protocol):
    @property
    def tokenizer(self) -> GPTNeoXTokenizerFast | None: ...


def tokenizer_of(model: _HasTokenizer) -> GPTNeoXTokenizerFast:
    """The model's tokenizer.

    Raises:
        TokenizerError: it has none.
    """
    if model.tokenizer is None:
        raise TokenizerError(
            "This model has no tokenizer. Load both with nl.load(...), or set model.tokenizer = "
            "nl.GPTNeoXTokenizerFast.from_pretrained(...)."
        )
    return model.tokenizer
