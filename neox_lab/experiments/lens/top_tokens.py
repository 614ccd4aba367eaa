"""What logits of one position say about the next token, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.checks import check, shown, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.tokenizer import GPTNeoXTokenizerFast


def predictions(
    logits: Tensor, tokenizer: GPTNeoXTokenizerFast | None = None, top_k: int | None = None
) -> pd.DataFrame:
    """What logits say about the next token, as a table, the likeliest first.

    Args:
        logits: ``[vocab]``, of one position.
        tokenizer: for the column ``text``.
        top_k: how many tokens; None for all.

    Returns:
        ``rank`` (0 is the likeliest), ``token``, ``text`` where there is a tokenizer, ``logit``,
        ``log_probability`` and ``probability``.

    Raises:
        InputError: other logits, or ``top_k`` is no number of tokens.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 1 or logits.device.type == "meta":
        raise InputError("logits must be those of one position, [vocab], such as logits[0, -1].")
    if top_k is not None:
        top_k = check("top_k", top_k, whole(least=0), InputError)
    logits = logits.detach().float()
    order = logits.argsort(descending=True, stable=True)[:top_k]
    log_probability = logits.log_softmax(dim=-1)[order]
    columns: dict[str, object] = {"rank": range(len(order)), "token": order.tolist()}
    if tokenizer is not None:
        if isinstance(tokenizer, type) or not hasattr(tokenizer, "piece_text"):
            raise InputError(f"tokenizer={shown(tokenizer)}; expected a model's .tokenizer.")
        columns["text"] = [str(tokenizer.piece_text(token)) for token in order.tolist()]
    columns["logit"] = logits[order].tolist()
    columns["log_probability"] = log_probability.tolist()
    columns["probability"] = log_probability.exp().tolist()
    return make_frame(columns)
