"""Where a model came from, so that other processes load it for themselves.

origin = origin_of(model)      # small, can be pickled
origin.model()                 # there: loaded once by each process, and kept
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neox_lab.built_in import is_inside, weights_directory
from neox_lab.errors import InputError
from neox_lab.family.heads import CLASSES
from neox_lab.model.identity import Identity, differing, identity
from neox_lab.streaming import store_of

if TYPE_CHECKING:
    from neox_lab.family.base import GPTNeoXPreTrainedModel
    from neox_lab.family.contract import HookedModel

KEPT = 2
"""Models that a process keeps."""
_kept: OrderedDict[Origin, GPTNeoXPreTrainedModel] = OrderedDict()
_loading = threading.Lock()


@dataclass(frozen=True)
class Origin:
    """How to load a model, and which it must turn out to be.

    Attributes:
        place: an id on the hub or a directory; of the built-in model the way below its weights.
        built_in: it is one of those in the package, wherever that lies.
        head: which class.
        revision: the commit on the hub, or None.
        dtype: of the weights.
        device: ``cpu`` or the kind of accelerator; which one of several, its process decides.
        attention: the attention path that was chosen, or None.
        texts: it has a tokenizer.
        identity: checksums of what was loaded here.
    """

    place: str
    built_in: bool
    head: str
    revision: str | None
    dtype: torch.dtype
    device: str
    attention: str | None
    texts: bool
    identity: Identity

    def model(self) -> GPTNeoXPreTrainedModel:
        """The model: loaded once by a process, which keeps the last few.

        Raises:
            InputError: what lies there is another model.
            CheckpointError: it cannot be loaded.
        """
        with _loading:  # threads of one worker share it
            found = _kept.pop(self, None) or self._load()
            _kept[self] = found
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
            return found

    def _load(self) -> GPTNeoXPreTrainedModel:
        from neox_lab.tokenizer import GPTNeoXTokenizerFast

        place = os.fspath(weights_directory() / self.place) if self.built_in else self.place
        model = CLASSES[self.head].from_pretrained(
            place,
            revision=self.revision,
            dtype=self.dtype,
            device_map=self.device,
            attn_implementation=self.attention,
        )
        if self.texts:
            source = weights_directory() if self.built_in else place
            model.tokenizer = GPTNeoXTokenizerFast.from_pretrained(source, revision=self.revision)
        if wrong := differing(self.identity, identity(model)):
            raise InputError(
                f"A worker loaded {self.place!r} and found another model than the one given: "
                f"{' and '.join(wrong)} differ. {_SAVE}"
            )
        return model


_SAVE = (
    "Workers load the model for themselves, so save what you have with "
    "model.save_pretrained(folder) (and model.tokenizer.save_pretrained(folder)) where all of them "
    "can read it, and give nl.load(folder)."
)


def origin_of(model: HookedModel) -> Origin:
    """Where a model came from.

    Args:
        model: any of the classes, as it was loaded.

    Raises:
        InputError: nobody could load it again as it is: it was made here, hooks are in place, or
            its layers are read from files.
    """
    if changing := model.hook_stack.changing:
        raise InputError(
            f"Hooks are in place at {', '.join(changing[:3])}, and workers have none: they load "
            "the model for themselves. Take the hooks away, or leave out executor=."
        )
    if store_of(model.backbone) is not None:
        raise InputError(
            "Layers of the model are read from its files here (max_memory=), and workers would "
            "load it whole. Load it without max_memory=, or leave out executor=."
        )
    place = str(model.config.name_or_path or "")
    if not place:
        raise InputError(f"The model was made here and came from no folder or hub. {_SAVE}")
    built_in = is_inside(place)
    if built_in:
        place = Path(place).relative_to(weights_directory()).as_posix()
    elif os.path.isdir(place):
        place = os.path.abspath(place)
    return Origin(
        place=place,
        built_in=built_in,
        head=model.head,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device.type,
        attention=model.config._attn_implementation,
        texts=model.tokenizer is not None,
        identity=identity(model),
    )
