"""Writing text with a language model.

In reading order, the way a call goes:

    settings          what can be set, and what holds where nothing is set
    generation_config settings that somebody made, and their files
    prompt            where a text begins: tokens, texts, vectors, a past
    generate_call     everything settled before the first step
    model_stepper     the model, one step at a time
    sampling, beams, assisted           the strategies: from scores to tokens
    processor_order   which processors change the scores before, and in which order
    processors, warpers, watermark      these processors
    stopping          when a text is finished
    output_builder, outputs             what ``generate`` returns
    stream, streamers, text             tokens and text while they are being written
    generation_cache  hooks and activations inside generation
    mixin             ``generate``, ``stream`` and ``generate_with_cache`` themselves
"""

from neox_lab.generation.generation_cache import GenerationCache, only
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.mixin import GenerationMixin
from neox_lab.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from neox_lab.generation.processors import LogitsProcessor, LogitsProcessorList
from neox_lab.generation.stopping import StoppingCriteria, StoppingCriteriaList
from neox_lab.generation.stream import Alternative, StreamStep
from neox_lab.generation.streamers import (
    AsyncTextIteratorStreamer,
    BaseStreamer,
    TextIteratorStreamer,
    TextStreamer,
)

__all__ = [
    "Alternative",
    "AsyncTextIteratorStreamer",
    "BaseStreamer",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerationCache",
    "GenerationConfig",
    "GenerationMixin",
    "LogitsProcessor",
    "LogitsProcessorList",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "StreamStep",
    "TextIteratorStreamer",
    "TextStreamer",
    "only",
]
