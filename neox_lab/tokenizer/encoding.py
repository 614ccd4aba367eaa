"""From text to token ids.

A call checks its arguments, lets the Rust library encode all rows (truncating if asked), pads
them here, and picks the columns that were asked for. ``pad`` does the padding alone, for rows
that were encoded before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Encoding

from neox_lab import notices
from neox_lab.errors import TokenizerError
from neox_lab.padding import pad_row
from neox_lab.tokenizer import arguments, pipeline
from neox_lab.tokenizer.arguments import Lengths, Row, Texts, choose, named_arguments
from neox_lab.tokenizer.batch import BatchEncoding, as_tensor
from neox_lab.tokenizer.decoding import Decoder
from neox_lab.tokenizer.settings import Checked, flag, limit, names, side
from neox_lab.tokenizer.vocabulary import id_list

# Name in a BatchEncoding -> attribute of a Rust Encoding, and what padding fills it with.
COLUMNS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
FILL = {
    "token_type_ids": 0,
    "attention_mask": 0,
    "special_tokens_mask": 1,
    "offset_mapping": (0, 0),
}

Columns = Mapping[str, Any]
"""Lists or tensors by name, such as a ``BatchEncoding``."""


class Encoder(Decoder):
    """A vocabulary that turns text into ids, and back."""

    padding_side = Checked(side)
    truncation_side = Checked(side)
    model_max_length = Checked(limit)
    model_input_names = Checked(names)
    split_special_tokens = Checked(flag)

    @named_arguments
    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        max_target_length: int | None = None,
        tokenizer_kwargs: None = None,  # unpacked by ``named_arguments``
    ) -> BatchEncoding:
        """Turn a text, or a list of texts, into token ids.

        Args:
            text: a str or a list of str (with ``is_split_into_words`` a list of words, or a list
                of those); a row of a list may be a pair (text, text_pair).
            text_pair: second text of each row, in the same form.
            text_target: texts to learn, in the same form, whose ids become ``labels``; without
                ``text`` they are encoded in its place.
            text_pair_target: second text of each target.
            add_special_tokens: add what the post-processor adds (GPT-NeoX: nothing unless
                ``add_bos_token`` or ``add_eos_token``).
            padding: False; True or "longest"; "max_length".
            truncation: False; True or "longest_first"; "only_first"; "only_second". None means
                True where ``max_length`` is given without padding.
            max_length: in tokens; ``model_max_length`` where None.
            stride: tokens that each overflowing piece repeats.
            is_split_into_words: texts are lists of words.
            pad_to_multiple_of: round the padded length up.
            padding_side: "right" or "left"; the tokenizer's own where None.
            return_tensors: None for lists, "pt" for torch, "np" for NumPy; always int64.
            return_token_type_ids: 0 for text, 1 for text_pair, ``[batch, pos]``.
            return_attention_mask: 1 for tokens, 0 for padding, ``[batch, pos]``.
            return_overflowing_tokens: what was cut off becomes further rows, which
                ``overflow_to_sample_mapping`` ``[rows]`` assigns to texts.
            return_special_tokens_mask: 1 for added special tokens and padding, ``[batch, pos]``.
            return_offsets_mapping: characters (start, end) of each token, ``[batch, pos, 2]``.
            return_length: number of tokens of each row including padding, ``[batch]``.
            verbose: warn of arguments that do nothing and of texts that are too long.
            split_special_tokens: read special tokens in the text as text; the tokenizer's own
                setting where None.
            max_target_length: ``max_length`` of the targets, where it is another.
            tokenizer_kwargs: further arguments of this call as a dictionary, which win.

        Returns:
            What was asked for by name, with ``input_ids`` ``[batch, pos]`` among it; ``[pos]`` for
            one text and no ``return_tensors``.

        Raises:
            TokenizerError: text is none, arguments contradict, or rows have different lengths
                where a tensor is asked for.
        """
        wanted = {
            "input_ids": True,
            "token_type_ids": self._is_input("token_type_ids", return_token_type_ids),
            "attention_mask": self._is_input("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        settled = self._lengths(
            padding, truncation, max_length, stride, pad_to_multiple_of, verbose
        )
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens

        def encoded(text: Texts, text_pair: Texts | None, lengths: Lengths) -> BatchEncoding:
            rows, batched = arguments.arrange(text, text_pair, is_split_into_words)
            encodings = self._encode(
                rows, lengths, add_special_tokens, is_split_into_words, split_special_tokens
            )
            if verbose and lengths.max_length is None:
                self._warn_of_length(encodings)
            self._pad_encodings(encodings, lengths, padding_side)
            samples = list(range(len(encodings)))
            if return_overflowing_tokens:
                pieces = [[encoding, *encoding.overflowing] for encoding in encodings]
                samples = [sample for sample in samples for _ in pieces[sample]]
                encodings = list(itertools.chain.from_iterable(pieces))
            data: dict[str, Any] = {
                name: [getattr(encoding, attribute) for encoding in encodings]
                for name, attribute in COLUMNS.items()
                if wanted[name]
            }
            if return_length:
                data["length"] = [len(encoding) for encoding in encodings]
            if return_overflowing_tokens:
                data["overflow_to_sample_mapping"] = samples
            if return_tensors is None and not batched and not return_overflowing_tokens:
                data = {k: v[0] if isinstance(v[0], list) else v for k, v in data.items()}
            elif return_tensors is not None and not rows:
                raise TokenizerError("Unable to create tensor: there is no text in the batch.")
            return BatchEncoding(_converted(data, return_tensors), encodings)

        if text_target is None:
            if text is None:
                raise TokenizerError(
                    "Text is str, or a list of str for a batch: text and text_target are NoneType."
                )
            return encoded(text, text_pair, settled)
        shorter = settled if max_target_length is None else settled.to(max_target_length)
        targets = encoded(text_target, text_pair_target, shorter)
        if text is None:
            return targets
        batch = encoded(text, text_pair, settled)
        batch["labels"] = targets["input_ids"]
        return batch

    def encode(
        self,
        text: Texts,
        text_pair: Texts | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """The ``input_ids`` of a call: a list of ids, or ``[1, pos]`` with ``return_tensors``.

        Raises:
            TokenizerError: as a call does.
        """
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def tokenize(
        self,
        text: Texts,
        pair: Texts | None = None,
        add_special_tokens: bool = False,
        **options: Any,
    ) -> list[str]:
        """The tokens of one text as the vocabulary spells them ("Ġ" is a space), ``[pos]``.

        Raises:
            TokenizerError: as a call does.
        """
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a call adds to a text, or to a pair of texts."""
        return self._backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens that one text may have beside the special ones that a call adds."""
        return self.model_max_length - self.num_special_tokens_to_add(False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens that a pair of texts may have beside the special ones that a call adds."""
        return self.model_max_length - self.num_special_tokens_to_add(True)

    def _is_input(self, name: str, wanted: bool | None) -> bool:
        return name in self.model_input_names if wanted is None else wanted

    def _lengths(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        verbose: bool = True,
    ) -> Lengths:
        limit = self.model_max_length
        lengths = Lengths.resolve(
            padding, truncation, max_length, stride, pad_to_multiple_of, limit, verbose
        )
        if lengths.padding != "do_not_pad" and self.pad_token is None:
            raise TokenizerError(
                "Padding needs a padding token, and this tokenizer has none. Set one: "
                "tokenizer.pad_token = tokenizer.eos_token, or a new text, which is added."
            )
        return lengths

    def _encode(
        self,
        rows: list[Row],
        lengths: Lengths,
        add_special_tokens: bool,
        split_into_words: bool,
        split_special_tokens: bool,
    ) -> list[Encoding]:
        """Run the Rust tokenizer over rows, truncating but not padding."""
        special = 0
        if add_special_tokens and rows:
            special = self.num_special_tokens_to_add(any(isinstance(row, tuple) for row in rows))
        truncation = lengths.truncation_state(self.truncation_side, special)
        try:
            with pipeline.encoding_state(self._backend, truncation, split_special_tokens):
                return self._backend.encode_batch(
                    rows, is_pretokenized=split_into_words, add_special_tokens=add_special_tokens
                )
        except BaseException as error:
            # A panic of the Rust library is a BaseException of its own class.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise TokenizerError(
                f"The text cannot be encoded with truncation={lengths.truncation!r}, "
                f"max_length={lengths.max_length}, stride={lengths.stride}: {error}. Use "
                "truncation='longest_first', a larger max_length or a smaller stride."
            ) from error

    def _warn_of_length(self, encodings: list[Encoding]) -> None:
        longest = max(map(len, encodings), default=0)
        if longest > self.model_max_length:
            notices.tell(
                f"A text has {longest} tokens, more than the model's {self.model_max_length}: "
                "the model may fail on it. Shorten it, or call the tokenizer with truncation=True."
            )

    def _pad_encodings(
        self, encodings: list[Encoding], lengths: Lengths, padding_side: str | None
    ) -> None:
        direction = side("padding_side", padding_side or self.padding_side)
        if lengths.padding == "do_not_pad":
            return
        target = lengths.padded([len(encoding) for encoding in encodings])
        for encoding in encodings:
            encoding.pad(
                target, direction=direction, pad_id=self.pad_token_id, pad_token=self.pad_token
            )

    @named_arguments
    def pad(
        self,
        encoded_inputs: Columns | Sequence[Columns],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Bring rows that are already encoded to the same length.

        Args:
            encoded_inputs: a mapping of columns with ``input_ids`` among them (``[pos]`` or
                ``[batch, pos]``, lists or tensors), or a list of such mappings, one per row.
                Columns that no call of a tokenizer makes are passed on unpadded.
            padding: True or "longest", "max_length", or False.
            max_length: length for ``padding="max_length"``, in tokens.
            pad_to_multiple_of: round the padded length up.
            padding_side: "right" or "left"; the tokenizer's own where None.
            return_attention_mask: whether to return one; made of ones where missing.
            return_tensors: None, "pt" or "np"; where None, tensors come back as what they were.
            verbose: warn of arguments that do nothing.

        Returns:
            The columns by name.

        Raises:
            TokenizerError: there are no ``input_ids``, columns have different lengths, or there is
                no padding token.
        """
        columns, kind, single = _columns(encoded_inputs)
        lengths = self._lengths(padding, False, max_length, 0, pad_to_multiple_of, verbose)
        direction = side("padding_side", padding_side or self.padding_side)
        rows = columns["input_ids"]
        if return_attention_mask is False:
            columns.pop("attention_mask", None)
        elif self._is_input("attention_mask", return_attention_mask):
            columns.setdefault("attention_mask", [[1] * len(row) for row in rows])
        if lengths.padding != "do_not_pad":
            target = lengths.padded([len(row) for row in rows])
            fill = FILL | {"input_ids": self.pad_token_id}
            for name in fill.keys() & columns.keys():
                columns[name] = [
                    pad_row(row, target, fill[name], direction) for row in columns[name]
                ]
        data = {name: values[0] for name, values in columns.items()} if single else columns
        return BatchEncoding(_converted(data, return_tensors or kind))


def _converted(data: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """``data`` with every column as a tensor of ``kind``; as it is for None."""
    if kind is None:
        return data
    choose("return_tensors", kind, arguments.TENSORS)
    return {name: as_tensor(name, values, kind) for name, values in data.items()}


def _columns(
    encoded: Columns | Sequence[Columns],
) -> tuple[dict[str, list[Any]], str | None, bool]:
    """Columns as lists of rows, the kind of tensor they were, and whether there was one row."""
    if not isinstance(encoded, Mapping):
        rows = list(encoded)
        names = list(rows[0]) if rows else ["input_ids"]
        if any(set(row) != set(names) for row in rows):
            raise TokenizerError("The rows to pad must all have the same columns.")
        encoded = {name: [row[name] for row in rows] for name in names}
    if "input_ids" not in encoded:
        raise TokenizerError(
            f"pad needs the column 'input_ids', and was given {', '.join(encoded) or 'nothing'}."
        )
    kind = _tensor_kind(encoded["input_ids"])
    columns = {name: _as_list(values) for name, values in encoded.items()}
    ids = columns["input_ids"] = id_list(columns["input_ids"])
    single = isinstance(ids, list) and bool(ids) and not isinstance(ids[0], list)
    if single:
        columns = {name: [values] for name, values in columns.items()}
    for name, values in columns.items():
        if len(values) != len(columns["input_ids"]):
            raise TokenizerError(
                f"Column {name!r} has {len(values)} rows and 'input_ids' "
                f"{len(columns['input_ids'])}: they must agree."
            )
    return columns, kind, single


def _tensor_kind(values: object) -> str | None:
    first = values[0] if isinstance(values, list | tuple) and values else values
    if isinstance(first, torch.Tensor):
        return "pt"
    return "np" if hasattr(first, "tolist") else None


def _as_list(values: object) -> Any:
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [_as_list(value) for value in values]
    return values
