"""From a directory or the hub to tensors in a model, and back.

In reading order: ``files`` finds which files make a checkpoint, ``reading`` takes tensors out
of them one at a time, ``names`` says which tensor goes where, ``loading`` builds a model from
all that and ``report`` tells what did not fit; ``saving`` is the way back.
"""

from neox_lab.checkpoint.loading import load_into
from neox_lab.checkpoint.report import LoadingReport
from neox_lab.checkpoint.saving import check_names, save

__all__ = ["LoadingReport", "check_names", "load_into", "save"]
