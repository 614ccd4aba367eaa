"""``model.generate`` with TransformerLens's arguments."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.compat.transformer_lens.hook_points import Hooks
from neox_lab.compat.transformer_lens.text import Side, Text, Texts
from neox_lab.errors import GenerationError
from neox_lab.generation.outputs import Generated
from neox_lab.generation.processors import FrequencyPenalty

Returned = Literal["input", "str", "tokens", "tensor"]


class Generates(Hooks, Texts):
    """Writing text."""

    def generate(
        self,
        input: Text | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        return_type: Returned = "input",
        verbose: bool = True,
        **arguments: Any,
    ) -> str | list[str] | Generated:
        """Continue texts; hooks that are in force act on every step.

        Args:
            input: a text, several (padded on the left), or token ids ``[batch, pos]``.
            max_new_tokens: how many tokens to write at most.
            stop_at_eos: a token of ``eos_token_id`` ends a text.
            eos_token_id: None for the tokenizer's.
            do_sample: draw tokens; otherwise, and at a temperature of 0, the likeliest one.
            top_k: draw from so many of the likeliest; None for all.
            top_p: draw from the likeliest that hold this share; has no effect beside ``top_k``.
            temperature: divides the scores that are drawn from.
            freq_penalty: what a token's score loses for each time it stands in the text.
            use_past_kv_cache: keep keys and values.
            prepend_bos: as for ``to_tokens``.
            padding_side: has no meaning: what is continued is padded on the left.
            return_type: ``"input"`` (what ``input`` is), ``"str"``, ``"tokens"`` or ``"tensor"``.
            verbose: has no meaning: there is no progress bar.
            arguments: any other of ``model.native.generate``.

        Returns:
            Texts without special tokens, or token ids ``[batch, pos]``, prompt included.
        """
        check(
            "return_type", return_type, one_of("input", "str", "tokens", "tensor"), GenerationError
        )
        as_text = return_type == "str" or (return_type == "input" and not isinstance(input, Tensor))
        eos = eos_token_id
        if eos is None and (stop_at_eos or self.native.tokenizer is not None):
            eos = self.tokenizer.eos_token_id
        draws = do_sample and temperature != 0
        if draws:
            cut = {"top_k": top_k} if top_k is not None else {"top_p": top_p or 1.0, "top_k": 0}
            penalty = [FrequencyPenalty(freq_penalty * temperature)] if freq_penalty else []
            arguments |= {"temperature": temperature, "logits_processor": penalty, **cut}
        if isinstance(input, Tensor):
            arguments["input_ids"] = input if input.dim() > 1 else input[None]
        else:
            arguments |= self.encoded(input, prepend_bos, "left")
        with self.in_force():
            made = self.native.generate(
                max_new_tokens=max_new_tokens,
                do_sample=draws,
                eos_token_id=eos if stop_at_eos else None,
                pad_token_id=eos[0] if isinstance(eos, list) else eos,
                use_cache=use_past_kv_cache,
                **arguments,
            )
        if not (as_text and isinstance(made, Tensor)):
            return made
        texts = self.tokenizer.batch_decode(made, skip_special_tokens=True)
        return texts if len(texts) > 1 else texts[0]
