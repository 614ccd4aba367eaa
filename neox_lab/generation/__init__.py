"""Writing text with a language model.

In reading order: ``settings`` (what can be set), ``prompt`` (where a text begins), ``call``
(everything settled before the first step), ``reader`` (the model, one step at a time); the
strategies ``sampling``, ``beams`` and ``assisted``; ``processors``, ``warpers`` and ``watermark``
change scores, ``lineup`` orders them, ``stopping`` ends a text; ``record``, ``outputs``,
``stream`` and ``streamers`` hand results out, ``watching`` looks inside.
"""

from neox_lab.generation.generation_cache import GenerationCache, only
from neox_lab.generation.mixin import Generates
from neox_lab.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from neox_lab.generation.processors import LogitsProcessor, LogitsProcessorList
from neox_lab.generation.settings import GenerationConfig
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
    "Generates",
    "GenerationCache",
    "GenerationConfig",
    "LogitsProcessor",
    "LogitsProcessorList",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "StreamStep",
    "TextIteratorStreamer",
    "TextStreamer",
    "only",
]
