"""Text generation: strategies, what changes scores, what ends a text, streaming."""

from neox_lab.generation.generates import Generates
from neox_lab.generation.settings import GenerationConfig

__all__ = ["GenerationConfig", "Generates"]
