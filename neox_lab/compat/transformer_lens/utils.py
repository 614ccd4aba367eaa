"""``utils``: TransformerLens's helpers, those that a notebook on a Pythia model meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from neox_lab.compat.transformer_lens.names import get_act_name
from neox_lab.errors import InputError
from neox_lab.experiments.lens import predictions
from neox_lab.family.factored import composition_scores
from neox_lab.family.losses import next_token_hits, text_loss
from neox_lab.frames import make_frame
from neox_lab.generation import processors, sampling, warpers
from neox_lab.model.activations import ACTIVATION_FUNCTIONS
from neox_lab.padding import joined_rows, mask_of
from neox_lab.selections import take

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.compat.transformer_lens.model import HookedTransformer
    from neox_lab.compat.transformer_lens.text import Side
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

__all__ = [
    "USE_DEFAULT_VALUE",
    "LocallyOverridenDefaults",
    "Slice",
    "SliceInput",
    "composition_scores",
    "gelu_new",
    "get_act_name",
    "get_attention_mask",
    "get_corner",
    "get_device",
    "get_input_with_manually_prepended_bos",
    "is_lower_triangular",
    "is_square",
    "keep_single_column",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logits_to_df",
    "override_or_use_default_value",
    "print_gpu_mem",
    "remove_batch_dim",
    "sample_logits",
    "test_prompt",
    "to_numpy",
    "tokenize_and_concatenate",
    "transpose",
]

USE_DEFAULT_VALUE = None
SliceInput: TypeAlias = "int | tuple[int, ...] | Sequence[int] | slice | Tensor | np.ndarray | None"
gelu_new = ACTIVATION_FUNCTIONS["gelu_new"]


# --- tensors --------------------------------------------------------------------------------------


def to_numpy(tensor: object) -> np.ndarray:
    """A tensor, list, tuple or number as an array; bfloat16 as float32."""
    if isinstance(tensor, Tensor):
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return np.asarray(tensor)


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first ``n`` entries of every axis of ``tensor``; of a FactoredMatrix, still factored."""
    return tensor[(slice(n),) * tensor.ndim]


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """``[1, ..]`` without its first axis; any other tensor is itself."""
    return tensor[0] if tensor.dim() and tensor.shape[0] == 1 else tensor


def transpose(tensor: Tensor) -> Tensor:
    """The last two axes of ``[.., row, column]`` exchanged."""
    return tensor.mT


def is_square(x: Tensor) -> bool:
    """Whether ``x`` is a square matrix ``[n, n]``."""
    return x.dim() == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether ``x`` is a square matrix ``[n, n]`` with zeros above its diagonal."""
    return is_square(x) and x.equal(x.tril())


class Slice:
    """Part of an axis: a number (the axis goes), a tuple (start, stop, step), a list, or None.

    Attributes:
        slice: what an axis is indexed with.
        mode: ``"int"``, ``"slice"``, ``"array"`` or ``"identity"``.
    """

    def __init__(self, input_slice: SliceInput = None) -> None:
        """Read what was given.

        Args:
            input_slice: the part, as the class says.

        Raises:
            InputError: it is none of these.
        """
        given = (
            input_slice.tolist() if isinstance(input_slice, Tensor | np.ndarray) else input_slice
        )
        self.slice: int | slice | list[int]
        if given is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(given, tuple):
            self.slice, self.mode = slice(*given), "slice"
        elif isinstance(given, slice):
            self.slice, self.mode = given, "slice"
        elif isinstance(given, int | np.integer) and not isinstance(given, bool):
            self.slice, self.mode = int(given), "int"
        elif isinstance(given, list):
            self.slice, self.mode = given, "array"
        else:
            raise InputError(f"input_slice={input_slice!r}; expected a number, a tuple or a list.")

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """That part of axis ``dim`` of ``tensor`` ``[..]``; a single number takes the axis away."""
        return take(tensor, dim % tensor.dim(), self.slice, "input_slice", InputError)

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The numbers of the entries, of an axis of length ``max_ctx``.

        Raises:
            InputError: ``max_ctx`` is missing, which only a single number does without.
        """
        if isinstance(self.slice, int):
            return np.array([self.slice])
        if max_ctx is None:
            raise InputError("max_ctx: how long is the axis? Only a single number needs it not.")
        return np.arange(max_ctx)[self.slice]

    def __repr__(self) -> str:
        """What it is."""
        return f"Slice: {self.slice} Mode: {self.mode} "

    @classmethod
    def unwrap(cls, slice_input: Slice | SliceInput) -> Slice:
        """A Slice of whatever was given; a single number keeps its axis."""
        if isinstance(slice_input, Slice):
            return slice_input
        made = cls(slice_input)
        return cls([made.slice]) if isinstance(made.slice, int) else made


# --- losses, logits, tokens drawn from them -------------------------------------------------------


def lm_cross_entropy_loss(
    logits: Tensor,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """Cross entropy of each next token, in nats; see ``text_loss``.

    Args:
        logits: ``[batch, pos, vocab]``.
        tokens: ids that were read, ``[batch, pos]``.
        attention_mask: 0 for padding ``[batch, pos]``.
        per_token: the loss of each token but the first ``[batch, pos - 1]``.

    Returns:
        The mean over tokens, a scalar, unless ``per_token``.
    """
    return text_loss(logits, tokens, attention_mask, per_token=per_token)


def lm_accuracy(logits: Tensor, tokens: Tensor, per_token: bool = False) -> Tensor:
    """How often the likeliest next token is the one that follows; see ``next_token_hits``.

    Args:
        logits: ``[batch, pos, vocab]``.
        tokens: ids that were read, ``[batch, pos]``.
        per_token: whether, for each token but the first ``[batch, pos - 1]``.

    Returns:
        The share of hits, a scalar, unless ``per_token``.
    """
    hits = next_token_hits(logits, tokens)
    return hits if per_token else hits.float().mean()


def logits_to_df(
    logits: Tensor, tokenizer: GPTNeoXTokenizerFast | None = None, top_k: int | None = None
) -> pd.DataFrame:
    """What ``logits`` ``[vocab]`` say, the likeliest first; see ``nl.lens.predictions``.

    Args:
        logits: of one position ``[vocab]``.
        tokenizer: adds a column of the tokens' strings.
        top_k: only so many; None for all.
    """
    found = predictions(logits, None, top_k)
    columns: dict[str, object] = {"token_index": found["token"]}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([token]) for token in found["token"]]
    columns["logit"] = found["logit"]
    columns["log_prob"] = found["log_probability"]
    columns["probability"] = found["probability"]
    return make_frame(columns)


def sample_logits(
    final_logits: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: Tensor | None = None,
) -> Tensor:
    """One token a row ``[batch]``, drawn from logits ``[batch, vocab]``.

    Args:
        final_logits: of the last position ``[batch, vocab]``.
        top_k: draw from so many of the likeliest.
        top_p: draw from the likeliest that hold this share; has no effect beside ``top_k``.
        temperature: divides the logits; 0 takes the likeliest token.
        freq_penalty: what a logit loses for each time that its token stands in ``tokens``.
        repetition_penalty: divides positive logits of tokens in ``tokens``, multiplies others.
        tokens: the text so far ``[batch, pos]``, for the penalties.

    Raises:
        InputError: a frequency penalty without ``tokens``.
        GenerationError: a negative frequency penalty.
    """
    if freq_penalty and tokens is None:
        raise InputError("freq_penalty counts tokens of the text so far; pass tokens=.")
    text = final_logits.new_zeros(len(final_logits), 0).long() if tokens is None else tokens
    steps: list[processors.LogitsProcessor] = []
    if repetition_penalty != 1.0:
        steps.append(processors.RepetitionPenalty(repetition_penalty))
    if temperature != 0:
        steps.append(warpers.Temperature(temperature))
        if freq_penalty:
            steps.append(processors.FrequencyPenalty(freq_penalty))
        if top_k is not None:
            steps.append(warpers.TopK(top_k))
        elif top_p is not None:
            steps.append(warpers.TopP(top_p))
    scores = processors.LogitsProcessorList(steps)(text, final_logits)
    return sampling.choose(scores.float(), sample=temperature != 0)


@torch.no_grad()
def print_answer(
    prompt: str,
    answer: str | list[str],
    model: HookedTransformer,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how likely an answer is after a prompt, token by token, and what is likelier.

    Args:
        prompt: what the model reads.
        answer: what should follow; of several only the first tokens are compared.
        model: the model.
        prepend_space_to_answer: put a space before an answer that does not begin with one.
        print_details: print more than the ranks.
        prepend_bos: as for ``model.to_tokens``.
        top_k: how many of the likeliest tokens to print.
    """
    answers = [answer] if isinstance(answer, str) else answer
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    several = len(answers) > 1
    ids = [model.to_tokens(text, prepend_bos=False)[0] for text in answers]
    asked = torch.stack([row[:1] for row in ids]) if several else ids[0][None]
    read = model.to_tokens(prompt, prepend_bos=prepend_bos).expand(len(asked), -1)
    logits = model(torch.cat((read, asked), dim=1))
    if print_details:
        pieces = [model.to_str_tokens(text, prepend_bos=False) for text in answers]
        print("Tokenized prompt:", model.to_str_tokens(prompt, prepend_bos=prepend_bos))
        print(
            "Tokenized answers:" if several else "Tokenized answer:",
            pieces if several else pieces[0],
        )
    ranks = []
    for at in range(asked.shape[1]):
        tables = [predictions(row[read.shape[1] - 1 + at]) for row in logits]
        rows = [
            table[table["token"] == int(token)].iloc[0]
            for table, token in zip(tables, asked[:, at], strict=True)
        ]
        named = [model.to_string([int(row["token"])]) for row in rows]
        ranks.append([(text, int(row["rank"])) for text, row in zip(named, rows, strict=True)])
        if print_details:
            _print_position(model, several, rows, named, tables[0].head(top_k))
    print("Ranks of the answer tokens:", ranks if several else [found for (found,) in ranks])


test_prompt = print_answer
test_prompt.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def _print_position(
    model: HookedTransformer,
    several: bool,
    rows: Sequence[pd.Series[Any]],
    named: Sequence[object],
    best: pd.DataFrame,
) -> None:
    """The lines about one position."""
    print(f"Performance on answer token{'s' if several else ''}:")
    for text, row in zip(named, rows, strict=True):
        print(
            f"Rank: {int(row['rank']): <8} Logit: {row['logit']:5.2f} "
            f"Prob: {row['probability']:6.2%} Token: |{text}|"
        )
    for _, row in best.iterrows():
        print(
            f"Top {int(row['rank'])}th token. Logit: {row['logit']:5.2f} "
            f"Prob: {row['probability']:6.2%} Token: |{model.to_string([int(row['token'])])}|"
        )


# --- texts ----------------------------------------------------------------------------------------


def get_attention_mask(
    tokenizer: GPTNeoXTokenizerFast,
    tokens: Tensor,
    prepend_bos: bool,
    padding_side: Side | None = None,
) -> Tensor:
    """0 for padding, 1 for text ``[batch, pos]``; see ``mask_of``.

    Where padding is also the beginning-of-text token, its last one before a text is text.

    Args:
        tokenizer: which token pads.
        tokens: ids ``[batch, pos]``.
        prepend_bos: they begin with the beginning-of-text token.
        padding_side: where padding is; None for the tokenizer's.
    """
    side = padding_side or tokenizer.padding_side
    mask = mask_of(tokens, tokenizer.pad_token_id, side)
    if side == "left" and prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        mask = mask.roll(-1, dims=-1) | mask
    return mask


def get_input_with_manually_prepended_bos(
    bos_token: str | None, input: str | list[str]
) -> str | list[str]:
    """``input``, a text or several, with ``bos_token`` in front."""
    start = bos_token or ""
    return start + input if isinstance(input, str) else [start + text for text in input]


def keep_single_column(dataset: Any, col_name: str) -> Any:
    """A Hugging Face ``dataset`` with only the column ``col_name``."""
    return dataset.remove_columns([name for name in dataset.features if name != col_name])


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: GPTNeoXTokenizerFast,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = None,
    set_format: bool = True,
) -> Any:
    """A Hugging Face dataset's texts, joined by end-of-text tokens and cut into rows.

    Args:
        dataset: with a column of texts.
        tokenizer: from text to ids.
        streaming: a dataset that comes bit by bit.
        max_length: tokens of a row.
        column_name: which column.
        add_bos_token: begin each row with the beginning-of-text token.
        num_proc: has no meaning: the tokenizer is quick enough.
        set_format: let the dataset return tensors.

    Returns:
        A dataset with the column ``tokens``.
    """
    start = [tokenizer.bos_token_id] if add_bos_token else []

    def rows(examples: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = tokenizer(examples[column_name], add_special_tokens=False)["input_ids"]
        length, end = max_length - len(start), tokenizer.eos_token_id
        cut = joined_rows(texts, length, end, tokenizer.pad_token_id)
        return {"tokens": [start + row for row in cut.tolist()]}

    only = keep_single_column(dataset, column_name)
    made = only.map(rows, batched=True, remove_columns=[column_name])
    if set_format and not streaming:
        made.set_format(type="torch", columns=["tokens"])
    return made


# --- devices and defaults -------------------------------------------------------------------------


def get_device() -> str:
    """``"cuda"`` where there is a GPU, otherwise ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def print_gpu_mem(step_name: str = "") -> None:
    """Print how much memory of the GPU is taken."""
    taken = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print(f"{step_name} ~ {taken / 2**30:.2f} GiB allocated on GPU.")


def override_or_use_default_value(default_flag: object, override: object = None) -> object:
    """``override``, or ``default_flag`` where that is None."""
    return default_flag if override is None else override


@contextmanager
def LocallyOverridenDefaults(  # noqa: N802 (its name there)
    model: HookedTransformer, *, prepend_bos: bool | None = None, padding_side: Side | None = None
) -> Iterator[None]:
    """Other defaults for a ``with`` block: ``cfg.default_prepend_bos``, the padding side.

    Args:
        model: whose defaults.
        prepend_bos: put the beginning-of-text token before texts; None leaves it as it is.
        padding_side: of the tokenizer; None leaves it as it is.
    """
    before = model.cfg.default_prepend_bos, model.tokenizer.padding_side
    if prepend_bos is not None:
        model.cfg.default_prepend_bos = prepend_bos
    if padding_side is not None:
        model.tokenizer.padding_side = padding_side
    try:
        yield
    finally:
        model.cfg.default_prepend_bos, model.tokenizer.padding_side = before
