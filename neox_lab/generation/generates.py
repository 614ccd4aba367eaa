"""``model.generate`` and its relatives, for a causal language model to inherit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import GenerationError, nearest
from neox_lab.generation.call import Call, Companions
from neox_lab.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from neox_lab.generation.record import Record
from neox_lab.generation.settings import FILE_NAME, SETTINGS, GenerationConfig
from neox_lab.generation.stream import Describer, StreamStep
from neox_lab.generation.streamers import new_tokens
from neox_lab.generation.watching import GenerationCache
from neox_lab.hub import HubOptions, Source, find_file

if TYPE_CHECKING:
    from neox_lab.generation.model import LanguageModel

_log = logging.getLogger("neox_lab")

_COMPANIONS = tuple(Companions.__dataclass_fields__)

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

    def _load_beside(self, source: Source, options: HubOptions) -> None:
        """Read ``generation_config.json`` if there is one."""
        path = find_file(source, FILE_NAME, options, required=False)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _save_beside(self, directory: Source) -> None:
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
                (``neox_lab.generation.call.Companions``: ``logits_processor``,
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

    def _call(self, inputs: Any, config: GenerationConfig | None, arguments: dict[str, Any]) -> Call:
        companions = {name: arguments.pop(name) for name in _COMPANIONS if name in arguments}
        if companions.get("tokenizer") is None:
            companions["tokenizer"] = self.tokenizer
        model = cast("LanguageModel", self)
        return Call(
            model, inputs, config, Companions(**companions), arguments, self.generation_config
        )

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
        if call.prompt.ids.shape[0] > 1 or call.beams is not None:
            raise GenerationError("stream() continues one text, without num_beams.")
        describe = Describer(call.companions.tokenizer, alternatives)
        kept = self._capture(call, names_filter)
        steps = iter(call.steps)
        while True:
            with self._watched(kept, names_filter):
                step = next(steps, None)
            if step is None:
                return
            for place, logits in enumerate(step.logits):
                end = step.ids.shape[1] - step.new + place + 1
                ids, is_last = step.ids[:, :end], False
                made = describe.step(int(ids[0, -1]), ids, logits[0], is_last)
                if kept is not None:
                    made.activations = kept.steps[-1]
                yield made

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
        cache = self._capture(call, names_filter or "*")
        with self._watched(cache, names_filter or "*"):
            return self._run(call), cast(GenerationCache, cache)
