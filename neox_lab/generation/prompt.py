"""What generation starts from: tokens, or vectors, or nothing; with padding, or a past."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from neox_lab.checks import listed_texts, require_data, shown
from neox_lab.errors import GenerationError, TokenizerError, nearest
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.settings import IGNORED, REFUSED, SETTINGS
from neox_lab.model.key_value_cache import KeyValueCache, given_cache, is_cache
from neox_lab.other_names import ARGUMENTS, ours
from neox_lab.padding import pad_rows

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")

MODEL_ARGUMENTS = (
    *("input_ids", "attention_mask", "position_ids", "inputs_embeds"),
    *("past_key_values", "cache", "logits_to_keep", "labels"),
)
# What a batch may hold, and what is asked of code from the hub, of which there is none.
WITHOUT_MEANING = ("labels", "trust_remote_code")


@dataclass
class Prompt:
    """Where generation starts.

    Attributes:
        ids: token ids ``[batch, pos]``; with ``embeds`` alone, of length 0.
        embeds: vectors ``[batch, pos, d_model]`` to read instead of the ids, or None.
        mask: 1 for text and 0 for padding ``[batch, pos]``, or None where all is text.
        cache: keys and values of a beginning of the prompt, or None.
        positions: of what is read ``[batch or 1, pos]``, or None where they follow from the mask.
    """

    ids: Tensor
    embeds: Tensor | None = None
    mask: Tensor | None = None
    cache: KeyValueCache | None = None
    positions: Tensor | None = None

    @property
    def padding(self) -> Tensor | None:
        """True where ``ids`` are padding ``[batch, pos]``; None where all of them are text."""
        return None if self.mask is None or not self.ids.shape[1] else self.mask == 0

    def repeated(self, times: int) -> Prompt:
        """Every row ``times`` times, copies side by side."""
        if times == 1:
            return self
        # The user's cache stays as it is.
        cache = None if self.cache is None else KeyValueCache.copy_of(self.cache)
        if cache is not None:
            cache.batch_repeat_interleave(times)
        embeds, mask, positions = (
            None if tensor is None else tensor.repeat_interleave(times, dim=0)
            for tensor in (self.embeds, self.mask, self.positions)
        )
        return Prompt(self.ids.repeat_interleave(times, dim=0), embeds, mask, cache, positions)


def split_arguments(
    kwargs: Mapping[str, Any], others: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort arguments of ``generate`` into settings and what the model reads.

    ``others`` are names that exist beside these, for the suggestion in the message.

    Raises:
        GenerationError: an argument is neither; the message names it.
    """
    settings: dict[str, Any] = {}
    model_arguments: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in MODEL_ARGUMENTS:
            model_arguments[name] = value
        elif name in SETTINGS or name in REFUSED or name in IGNORED:
            settings[name] = value
        elif name in WITHOUT_MEANING or (name == "assistant_tokenizer" and value is None):
            continue
        elif name == "assistant_tokenizer":
            raise GenerationError(
                "assistant_tokenizer: an assistant has the vocabulary of its model here, so there "
                "is nothing to translate. Leave it out if the tokenizers are the same."
            )
        elif name == "token_type_ids":
            raise GenerationError(
                "token_type_ids is not used by GPT-NeoX: the model has one kind of token. Some "
                "tokenizers return it all the same; call the tokenizer with "
                "return_token_type_ids=False, or pass only input_ids and attention_mask."
            )
        else:
            known = [*SETTINGS, *MODEL_ARGUMENTS, *others]
            meant = ours(name, ARGUMENTS) or nearest(name, known)
            raise GenerationError(
                f"generate() got {name!r}, which is neither a setting of generation nor an input "
                f"of the model.{meant}"
            )
    return settings, model_arguments


def prepare(
    model: LanguageModel,
    inputs: object,
    model_arguments: dict[str, Any],
    settings: GenerationConfig,
    tokenizer: GPTNeoXTokenizerFast | None,
) -> Prompt:
    """The prompt, whatever form it was given in.

    Args:
        model: whose vocabulary and device count.
        inputs: text, texts, token ids ``[batch, pos]`` or ``[pos]``, or None.
        model_arguments: the named inputs, see ``MODEL_ARGUMENTS``.
        settings: special tokens.
        tokenizer: for texts.

    Raises:
        GenerationError: arguments that contradict each other or do not fit.
        TokenizerError: a text without a tokenizer.
        DeviceError: the model's weights hold no numbers.
    """
    require_data(model.device)
    given = {name: value for name, value in model_arguments.items() if value is not None}
    if inputs is not None and "input_ids" in given:
        raise GenerationError("The prompt was given twice, as inputs and as input_ids.")
    source = listed_texts(inputs) if inputs is not None else given.get("input_ids")
    mask = given.get("attention_mask")
    embeds = given.get("inputs_embeds")
    if _is_text(source):
        if mask is not None:
            raise GenerationError("attention_mask cannot go with a text: padding is made for it.")
        ids, mask = _encode(source, tokenizer, settings)
    else:
        ids = _token_ids(source, embeds, mask, settings, model.device)
    ids = ids.to(model.device)
    read = ids if embeds is None else embeds
    cache = _checked_cache(given_cache(given), read)
    if mask is None and cache is None:
        mask = _inferred_mask(ids, settings)
    mask = _checked_mask(mask, read, model.device)
    return Prompt(ids, embeds, mask, cache, _checked_positions(given.get("position_ids"), read))


def _is_text(source: object) -> TypeGuard[str | Sequence[str]]:
    return isinstance(source, str) or (
        isinstance(source, list | tuple)
        and bool(source)
        and all(isinstance(text, str) for text in source)
    )


def _encode(
    text: str | Sequence[str],
    tokenizer: GPTNeoXTokenizerFast | None,
    settings: GenerationConfig,
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of texts, padded on the left so that every row ends in its last token."""
    if tokenizer is None:
        raise TokenizerError(
            "A text can only be continued by a model with a tokenizer. Load both with "
            "nl.load(...), set model.tokenizer, or pass token ids."
        )
    rows = tokenizer([text] if isinstance(text, str) else list(text), verbose=False)["input_ids"]
    if min(len(row) for row in rows) == 0:
        raise GenerationError("A text is empty: there is no token to continue from.")
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else pad_token(settings)
    filler = filler or 0  # masked, so any token will do
    return pad_rows(rows, filler, "left")


def _token_ids(
    source: object,
    embeds: Tensor | None,
    mask: Tensor | None,
    settings: GenerationConfig,
    device: torch.device,
) -> Tensor:
    """Token ids ``[batch, pos]`` from a tensor, from nested lists, or from nothing."""
    if source is None and embeds is not None:
        return torch.zeros(embeds.shape[0], 0, dtype=torch.long, device=device)
    if source is None:
        if settings.bos_token_id is None:
            raise GenerationError(
                "There is no prompt, and no bos_token_id to start from. Pass inputs, or set "
                "bos_token_id."
            )
        rows = 1 if mask is None else mask.shape[0]
        return torch.full((rows, 1), settings.bos_token_id, dtype=torch.long, device=device)
    try:
        ids = source if isinstance(source, Tensor) else torch.tensor(source)
    except (TypeError, ValueError, RuntimeError):
        raise GenerationError(
            f"inputs is {shown(source, 80)}; expected a string, a list of strings, or token ids "
            "[batch, pos]."
        ) from None
    if ids.is_floating_point():
        raise GenerationError(
            f"inputs holds {ids.dtype}; expected token ids. Vectors are passed as inputs_embeds."
        )
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise GenerationError(f"inputs has shape {list(ids.shape)}; expected [batch, pos].")
    return ids.long()


def _inferred_mask(ids: Tensor, settings: GenerationConfig) -> Tensor | None:
    """Padding, where it can be told: by a padding token that does not also end texts.

    Not asked for texts whose beginning is in a cache: what was generated may hold that token.
    """
    pad = settings.pad_token_id
    if pad is None or pad in eos_tokens(settings) or ids.shape[1] == 0:
        return None
    return ids != pad


def _checked_mask(mask: Tensor | None, read: Tensor, device: torch.device) -> Tensor | None:
    """``mask`` if it fits and hides something, None if all is text.

    One row stands for all rows; ones for tokens that are still to come say nothing new.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_meta or mask.layout is not torch.strided:
        raise GenerationError(f"attention_mask={shown(mask)}; expected a tensor [batch, pos].")
    if mask.dim() == 2 and mask.shape[0] == 1:
        mask = mask.expand(read.shape[0], -1)
    if mask.dim() == 2 and bool((mask[:, read.shape[1] :] != 0).all()):
        mask = mask[:, : read.shape[1]]
    if mask.dim() != 2 or mask.shape[0] != read.shape[0] or mask.shape[1] != read.shape[1]:
        raise GenerationError(
            f"attention_mask has shape {list(mask.shape)}; expected [batch, pos] = "
            f"{list(read.shape[:2])}, a 1 for each token and a 0 for padding."
        )
    mask = mask.to(device).bool()
    if bool(mask.all()):
        return None
    if not bool(mask[:, -1].all()):
        _log.warning(
            "The prompt is padded on the right, so new tokens are put behind padding. Pad on "
            "the left: padding_side='left' when the tokenizer is loaded."
        )
    return mask.long()


def _checked_positions(positions: Tensor | None, read: Tensor) -> Tensor | None:
    """``position_ids`` ``[batch, pos]`` of all that is read; None if none were given."""
    if positions is None:
        return None
    batch, length = read.shape[:2]
    if positions.dim() != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != length:
        raise GenerationError(
            f"position_ids has shape {list(positions.shape)}; expected [batch, pos] = "
            f"{[batch, length]}, the place of each token of the prompt."
        )
    return positions.to(read.device).long().expand(batch, length)


def _checked_cache(cache: object, read: Tensor) -> KeyValueCache | None:
    if cache is None:
        return None
    if not is_cache(cache):
        raise GenerationError(
            f"past_key_values is a {type(cache).__name__}; expected the KeyValueCache that "
            "forward or generate returned, or transformers' DynamicCache (not offloaded, not "
            "quantized)."
        )
    if cache.get_seq_length() >= read.shape[1]:
        raise GenerationError(
            f"past_key_values holds {cache.get_seq_length()} positions and inputs {read.shape[1]}. "
            "Pass the whole text, the part that is in the cache included, and at least one token "
            "more; or shorten the cache with crop."
        )
    return cache if cache.layers else None  # theirs makes its layers when they are needed


def eos_tokens(settings: GenerationConfig) -> list[int]:
    """Tokens that end a text."""
    eos = settings.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


def pad_token(settings: GenerationConfig) -> int | None:
    """What finished rows are filled up with: the padding token, else the first ending token."""
    if settings.pad_token_id is not None:
        return int(settings.pad_token_id)
    return next(iter(eos_tokens(settings)), None)
