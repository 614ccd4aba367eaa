"""From text to tokens and back, with TransformerLens's arguments."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.compat.transformer_lens.config import HookedTransformerConfig
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.tokenizer import GPTNeoXTokenizerFast

Text: TypeAlias = "str | list[str]"
Side: TypeAlias = Literal["left", "right"]


class Texts:
    """Text helpers."""

    native: GPTNeoXForCausalLM
    cfg: HookedTransformerConfig
    tokenizer: GPTNeoXTokenizerFast

    def encoded(
        self,
        text: Text,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        truncate: bool = True,
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``[batch, pos]`` of one text or several."""
        prepend = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        start = self.tokenizer.bos_token if prepend else ""
        texts = [f"{start}{each}" for each in ([text] if isinstance(text, str) else text)]
        batch = self.tokenizer(
            texts,
            padding=True,
            padding_side=padding_side,
            truncation=truncate,
            max_length=self.cfg.n_ctx if truncate else None,
            return_tensors="pt",
        )
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def to_tokens(
        self,
        input: Text,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Token ids ``[batch, pos]``; shorter texts are padded.

        Args:
            input: a text or several.
            prepend_bos: begin with the beginning-of-text token; None as ``cfg`` says.
            padding_side: None as the tokenizer says.
            move_to_device: to the model's device.
            truncate: cut what is longer than the model's context.
        """
        tokens = self.encoded(input, prepend_bos, padding_side, truncate)["input_ids"]
        return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_string(self, tokens: Tensor | list[int] | list[list[int]] | int) -> str | list[str]:
        """The text of token ids ``[pos]``, or one text a row of ``[batch, pos]``."""
        return self.native.to_string(torch.as_tensor(tokens))

    def to_str_tokens(
        self,
        input: Text | Tensor | list[Tensor],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> list[str] | list[list[str]]:
        """Each token's own text; a list of lists for a list of texts.

        Args:
            input: a text, several, or token ids ``[pos]`` or ``[1, pos]``.
            prepend_bos: begin with the beginning-of-text token; None as ``cfg`` says.
            padding_side: has no meaning: texts are taken one by one.
        """
        if isinstance(input, list):
            return [self._pieces(each, prepend_bos) for each in input]
        return self._pieces(input, prepend_bos)

    def _pieces(self, given: str | Tensor, prepend_bos: bool | None) -> list[str]:
        tokens = self.to_tokens(given, prepend_bos) if isinstance(given, str) else given
        return self.tokenizer.batch_decode(_one_row(tokens)[:, None])

    def to_single_token(self, string: str) -> int:
        """The id of a text that is exactly one token; TokenizerError if it is not."""
        return self.native.to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token."""
        return self._pieces(torch.tensor([int_token]), None)[0]

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: str | Tensor,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> int:
        """Where a token stands.

        Args:
            single_token: the token, or a text that is one.
            input: a text, or token ids ``[pos]`` or ``[1, pos]``.
            mode: ``"first"`` or ``"last"`` of several places.
            prepend_bos: as for ``to_tokens``.
            padding_side: has no meaning: there is one text.

        Raises:
            InputError: it does not occur.
        """
        check("mode", mode, one_of("first", "last"), InputError)
        tokens = self.to_tokens(input, prepend_bos) if isinstance(input, str) else input
        wanted = self._token(single_token)
        places = (_one_row(tokens) == wanted).nonzero().flatten().tolist()
        if not places:
            raise InputError(f"Token {wanted} does not occur in the prompt.")
        return int(places[0 if mode == "first" else -1])

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Tensor:
        """The unembedding's vectors of tokens ``[.., d_model]``; of a single one ``[d_model]``."""
        if isinstance(tokens, Tensor) and tokens.numel() > 1:
            return self.native.W_U.T[tokens]
        return self.native.W_U.T[self._token(tokens)]

    def _token(self, token: str | int | Tensor) -> int:
        return self.to_single_token(token) if isinstance(token, str) else int(token)


def _one_row(tokens: Tensor) -> Tensor:
    """Token ids ``[pos]`` of ``[pos]`` or ``[1, pos]``.

    Raises:
        InputError: there are several rows.
    """
    if tokens.dim() > 1 and tokens.shape[0] != 1:
        raise InputError(f"Token ids have shape {list(tokens.shape)}; expected one text.")
    return tokens.reshape(-1)
