"""Models larger than memory: layers that are read from their files as they are needed.

    files       where in which file a matrix lies, and reading it
    slots       memory that is filled again and again, and never while somebody looks at it
    written     whether somebody wrote into it, which would be lost
    store       which layers are in memory, and the one thread that reads the next
    accelerator the way of a layer to an accelerator
    linear      a linear map whose weight is in the store
    gradients   autograd keeps notes of weights, which are read again on the way down
    placement   how many layers fit, and where each is

``nl.load(name, max_memory={"cpu": "8GB"})`` is the door to all of it.
"""

from neox_lab.streaming.linear import (
    StreamedLinear,
    refuse_loading,
    refuse_moves,
    refuse_saving,
    refuse_training,
    refuse_writing,
    store_of,
    stream,
)
from neox_lab.streaming.placement import devices_of
from neox_lab.streaming.store import LayerStore

__all__ = [
    "LayerStore",
    "StreamedLinear",
    "devices_of",
    "refuse_loading",
    "refuse_moves",
    "refuse_saving",
    "refuse_training",
    "refuse_writing",
    "store_of",
    "stream",
]
