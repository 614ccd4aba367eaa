"""``model.generate`` and its relatives, for a causal language model to inherit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import GenerationError
from neox_lab.files import PathLike
from neox_lab.generation.generate_call import Call, Companions
from neox_lab.generation.generation_cache import GenerationCache
from neox_lab.generation.output_builder import Record
from neox_lab.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from neox_lab.generation.settings import FILE_NAME, GenerationConfig
from neox_lab.generation.stream import Describer, StreamStep
from neox_lab.generation.streamers import new_tokens
from neox_lab.hub import HubOptions, PathOrId, find_file

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

_log = logging.getLogger("neox_lab")

Generated = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class Generates:
    """Text generation."""

    config: GPTNeoXConfig
    tokenizer: Any

    @property
    def generation_config(self) -> GenerationConfig:
        """What ``generate`` does where a call does not say otherwise."""
        if "_generation_config" not in self.__dict__:
            made = GenerationConfig.from_model_config(self.config)
            self.__dict__["_generation_config"] = made
        return cast(GenerationConfig, self.__dict__["_generation_config"])

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.__dict__["_generation_config"] = config

    def _load_beside(self, source: PathOrId, options: HubOptions) -> None:
        """Read ``generation_config.json`` if there is one."""
        path = find_file(source, FILE_NAME, options, required=False)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _save_beside(self, directory: PathLike) -> None:
        """Write ``generation_config.json``."""
        self.generation_config.save_pretrained(directory)

    @torch.no_grad()
    def generate(
        self,
        inputs: str | list[str] | Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **arguments: Any,
    ) -> Generated:
        """Continue a text.

        Greedy search by default; ``do_sample=True`` draws, ``num_beams`` searches with beams,
        ``prompt_lookup_num_tokens`` or ``assistant_model`` read several tokens at once.
        Interrupting the kernel stops after the last whole step and returns what there is.

        Args:
            inputs: token ids ``[batch, pos]``, a text, or several texts (padded on the left);
                None starts from the beginning-of-text token.
            generation_config: settings, used where ``arguments`` have none.
            arguments: settings (see ``neox_lab.generation.settings.SETTINGS``); inputs of the
                model (``input_ids``, ``attention_mask``, ``inputs_embeds``, ``past_key_values``
                with the whole text as inputs); and what goes with them
                (``neox_lab.generation.generate_call.Companions``: ``logits_processor``,
                ``stopping_criteria``, ``prefix_allowed_tokens_fn``, ``assistant_model``,
                ``streamer``, ``negative_prompt_ids``, ``tokenizer``).

        Returns:
            Token ids ``[batch * num_return_sequences, pos]``, prompt included (unless it was
            ``inputs_embeds`` alone), filled up with the padding token; with
            ``return_dict_in_generate=True`` an object that holds more.

        Raises:
            GenerationError: unknown, impossible or contradictory arguments.
        """
        return self._run(self._call(inputs, generation_config, arguments))

    def _call(
        self, inputs: Any, config: GenerationConfig | None, arguments: dict[str, Any]
    ) -> Call:
        companions = Companions.taken_from(arguments)
        if companions.tokenizer is None:
            companions.tokenizer = self.tokenizer
        model = cast("LanguageModel", self)
        return Call(model, inputs, config, companions, arguments, self.generation_config)

    def _run(self, call: Call) -> Generated:
        """Run a call to its end, or to an interruption."""
        record = Record(call.prompt.ids, call.settings)
        streamer = call.companions.streamer
        if streamer is not None:
            streamer.put(call.prompt.ids.cpu())
        try:
            for step in call.steps:
                record.add(step)
                if streamer is not None:
                    for tokens in new_tokens(step.ids, step.new):
                        streamer.put(tokens)
        except KeyboardInterrupt:
            count = record.ids.shape[1] - call.prompt.ids.shape[1]
            _log.warning("Generation was interrupted; returning the %d tokens there are.", count)
            call.reader.forget_beyond(record.ids)
        finally:
            if streamer is not None:
                streamer.end()
        return cast(Generated, record.result(call.reader, call.beams))

    @torch.no_grad()
    def stream(
        self,
        inputs: str | Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        alternatives: int = 5,
        names_filter: Any = None,
        **arguments: Any,
    ) -> Iterator[StreamStep]:
        """Continue one text, token by token.

        ``for step in model.stream("The king"): print(step.text, end="")``. Nothing runs ahead:
        each token is computed when it is asked for, and stopping early leaves nothing behind.

        Args:
            inputs: a text or token ids ``[1, pos]``.
            generation_config: see ``generate``.
            alternatives: how many of the likeliest tokens each step names.
            names_filter: hook points whose activations each step carries: a name, glob, ...
            arguments: see ``generate``; no beams and no streamer.

        Yields:
            A ``StreamStep`` for each new token.

        Raises:
            GenerationError: as ``generate``; when the first token is asked for.
        """
        call = self._call(inputs, generation_config, arguments)
        if call.prompt.ids.shape[0] > 1 or call.beams is not None or call.companions.streamer:
            raise GenerationError("stream() continues one text, without num_beams or streamer.")
        cache = None if names_filter is None else self._cache_for(call)
        describer = Describer(call.companions.tokenizer, alternatives)
        steps = iter(call.steps)
        while True:
            with self._filling(cache, names_filter):
                step = next(steps, None)
            if step is None:
                return
            activations = None if cache is None else cache.steps[-1]
            yield from describer.describe(step, activations)

    @torch.no_grad()
    def generate_with_cache(
        self,
        inputs: str | list[str] | Tensor | None = None,
        names_filter: Any = None,
        generation_config: GenerationConfig | None = None,
        **arguments: Any,
    ) -> tuple[Generated, GenerationCache]:
        """Continue a text and keep activations of every step, without running anything twice.

        Args:
            inputs: see ``generate``.
            names_filter: what to keep: a name, alias, glob, predicate, or several; None keeps
                every hook point.
            generation_config: see ``generate``.
            arguments: see ``generate``.

        Returns:
            What ``generate`` returns, and the activations.

        Raises:
            HookNameError: ``names_filter`` names no hook point.
            GenerationError: as ``generate``.
        """
        call = self._call(inputs, generation_config, arguments)
        cache = self._cache_for(call)
        with self._filling(cache, "*" if names_filter is None else names_filter):
            output = self._run(call)
        ids = cast(Tensor, output if isinstance(output, Tensor) else output.sequences)
        if call.companions.tokenizer is not None and call.prompt.embeds is None:
            cache.pieces = call.companions.tokenizer.pieces(ids[0, :-1].tolist())
        cache.attention_mask = call.reader.mask
        return output, cache

    def _cache_for(self, call: Call) -> GenerationCache:
        """An empty cache for the steps of ``call``; refuses calls whose steps do not add up."""
        if not call.settings.use_cache or call.settings.num_beams > 1 or call.drafts:
            raise GenerationError(
                "Activations can be kept step by step only where each step reads one new token: "
                "with use_cache=True, and without num_beams, prompt_lookup_num_tokens or "
                "assistant_model."
            )
        return GenerationCache(call.model.hook_points)

    @contextmanager
    def _filling(self, cache: GenerationCache | None, names: Any) -> Iterator[None]:
        """Keep activations in ``cache`` for the duration of a ``with`` block."""
        if cache is None:
            yield
            return
        one = isinstance(names, str | tuple) or callable(names)
        places = [(name, cache) for name in ([names] if one else names)]
        with cast("LanguageModel", self).hooks(places, must_fire=False):
            yield

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each token that was generated.

        Args:
            sequences: ``output.sequences`` ``[batch, pos]``.
            scores: ``output.scores`` of the same call.
            beam_indices: ``output.beam_indices``, for beam search.
            normalize_logits: make the scores log probabilities first.

        Returns:
            ``[batch, new_pos]``; 0 where a text is shorter than the longest. Of beam search, each
            row's sum over (number of new tokens ** length_penalty) is its ``sequences_scores``.
        """
        stacked = torch.stack(tuple(scores))  # [new_pos, row, vocab]
        if normalize_logits:
            stacked = stacked.log_softmax(dim=-1)
        if beam_indices is None:
            new = stacked.shape[0]
            rows = torch.arange(stacked.shape[1], device=sequences.device)[:, None].expand(-1, new)
        else:
            new = int((beam_indices >= 0).sum(dim=1).max())
            rows = beam_indices[:, :new]
        tokens = sequences[:, sequences.shape[1] - new :]
        steps = torch.arange(new, device=sequences.device)
        return stacked[steps, rows.clamp(min=0), tokens].masked_fill(rows < 0, 0.0)
