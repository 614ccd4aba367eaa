"""Whether a metric of the user's own reads logits of padding, found out without the model.

Its gradient is 0 where it reads nothing, so logits that were drawn tell it; no forward pass is
made. The metrics of this package count each text's own tokens and need no such test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from neox_lab.experiments.metrics import BoundMetric, LogitMetric

if TYPE_CHECKING:
    from neox_lab.experiments.patching.prompts import Prompts
    from neox_lab.experiments.prompt_doctor.items import Reader

LARGEST = 1 << 24
"""Logits that are drawn at most; nothing is found out about larger batches."""


def padding_read(
    reader: Reader, metric: object, sides: Mapping[str, Prompts]
) -> dict[str, Sequence[bool]]:
    """Of each row of each padded batch whether ``metric`` reads its padding.

    Args:
        reader: the model's sizes.
        metric: what the user gave; only a function of a language model's logits is tried.
        sides: the prompts by their names.
    """
    if not reader.writes or not callable(metric) or isinstance(metric, LogitMetric | BoundMetric):
        return {}
    found: dict[str, Sequence[bool]] = {}
    for name, prompts in sides.items():
        if prompts.mask is not None and prompts.ids.numel() * reader.vocab <= LARGEST:
            found[name] = _rows(metric, prompts, reader.vocab)
    return found


def _rows(metric: object, prompts: Prompts, vocab: int) -> list[bool]:
    """Rows of one batch; none where no gradient tells."""
    device = prompts.ids.device
    generator = torch.Generator(device="cpu").manual_seed(0)
    drawn = torch.randn(*prompts.ids.shape, vocab, generator=generator, dtype=torch.float32).to(
        device
    )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = drawn.requires_grad_()
            value = metric(logits)  # type: ignore[operator]
            (slope,) = torch.autograd.grad(value, logits)
    except Exception:  # whatever the function does with such logits, the question will tell
        return [False] * len(prompts.ids)
    read = (slope != 0).any(dim=-1) & ~prompts.own.to(device)
    return [bool(row) for row in read.any(dim=1)]
