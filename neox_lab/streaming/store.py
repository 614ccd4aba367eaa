"""Which layers are in memory, and the one thread that reads the next.

Two layers are there at a time: the one that is computed with, and the one that is read meanwhile.
More would not help: a pass visits every layer once, so whatever is thrown out least recently is
exactly what is needed next. Layers that fit into memory for good are not in the store at all.

    take(layer 7) ──► 7 is there: its weights ──► the reader starts on 8, over what was 6
                      7 is not there: wait for the reader

What somebody still holds is never written over, see ``slots``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError, DeviceError
from neox_lab.progress import Progress
from neox_lab.streaming.accelerator import Upload
from neox_lab.streaming.files import OpenFile, Place
from neox_lab.streaming.gradients import noting
from neox_lab.streaming.slots import Slots
from neox_lab.streaming.written import Seals

AT_A_TIME = 2
CONVERTED = 16 * 2**20  # bytes that are read at a time where they are converted on the way


@dataclass
class Read:
    """What the reader has done since the model was loaded.

    Attributes:
        layers: how many layers were read, each time counted.
        nbytes: bytes read.
        seconds: how long the reader took over them.
    """

    layers: int = 0
    nbytes: int = 0
    seconds: float = 0.0


@dataclass
class _Weights:
    """The matrices of one layer, and what they were when they had been read."""

    layer: int
    tensors: dict[str, Tensor]
    seals: Seals
    ready: Callable[[Tensor], Tensor]


class LayerStore:
    """The matrices of those layers that do not stay in memory.

    Attributes:
        sources: by layer, where each of its matrices lies, by its name within the block.
        dtype: which matrices are converted to on the way.
        device: where they are computed with.
        read: what was read so far.
        passing: bytes that a matrix takes on its way, where it is converted.
    """

    def __init__(
        self,
        sources: Mapping[int, Mapping[str, Place]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Nothing is read yet."""
        self.sources = {layer: dict(sources[layer]) for layer in sorted(sources)}
        self.dtype, self.device = dtype, device
        self.read = Read()
        matrices = next(iter(self.sources.values()), {}).values()
        same = Counter(place.numel * dtype.itemsize for place in matrices)
        self._slots = Slots({nbytes: AT_A_TIME * count for nbytes, count in same.items()})
        places = [place for named in self.sources.values() for place in named.values()]
        others = [place.nbytes for place in places if place.dtype != dtype]
        self.passing = min(CONVERTED, max(others, default=0))
        self._upload = None if device.type == "cpu" else Upload(device)
        self._there: dict[int, Future[_Weights]] = {}
        self._at = self._stopped = -1
        self._announced = range(0)
        self._written: DeviceError | None = None  # found by the reader, to be raised by others
        self._start()

    def _start(self) -> None:
        """A reader of this process: threads do not live on in a forked one, and locks stay shut."""
        self._process, self._shared = os.getpid(), threading.Lock()
        self._there.clear()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="neox_lab layers")

    @property
    def _lock(self) -> threading.Lock:
        if os.getpid() != self._process:
            self._start()
        return self._shared

    @contextmanager
    def going(self, first: int, last: int) -> Iterator[Iterable[int]]:
        """The layers ``first`` to ``last - 1``, to be run one after the other in a ``with`` block.

        Reading starts, autograd is given notes of weights, and a bar says which layer it is at.
        """
        self._expect(first, last)
        read = [layer for layer in range(first, last) if layer in self.sources]
        with self.noting():
            if len(read) < 2:
                yield range(first, last)
                return
            with Progress(last, "layer", done=read[0], delay=1) as bar:
                yield _told(range(first, last), bar)

    def _expect(self, first: int, last: int) -> None:
        """Start reading, for a run of the layers ``first`` to ``last - 1``.

        One that goes on where the last one stopped is a step of a climb (see ``patching.climb``):
        the layer above is read while this one is used.
        """
        with self._lock:
            climbs = first == self._stopped
            self._stopped = last
            self._announced = range(first, last + 1 if climbs else last)
            coming = [layer for layer in self.sources if layer in self._announced]
            if coming and coming[0] not in self._there:
                self._want(*coming[:AT_A_TIME])

    def take(self, layer: int, name: str) -> Tensor:
        """A matrix of a layer, on ``device``; the next layer is read meanwhile.

        Args:
            layer: number of the block.
            name: within the block, such as ``attention.dense.weight``.

        Returns:
            ``[out, in]``; it stays what it is for as long as it is held.

        Raises:
            CheckpointError: the file was cut short or changed, or the store was closed.
            DeviceError: somebody wrote into the layer's weights, which would have been lost.
        """
        while True:
            with self._lock:
                if layer != self._at or layer not in self._there:
                    self._arrive(layer)
                wanted = self._there[layer]
            try:
                weights = wanted.result()
                break
            except CancelledError:  # another thread wanted others first
                continue
            except Exception:
                with self._lock:
                    self._forget_failed()  # what failed is read again if it is asked for again
                raise
        tensor = weights.tensors[name]
        if weights.seals.counted(name, tensor) or self._written is not None:
            with self._lock:
                if weights.seals.counted(name, tensor) and self._there.get(layer) is wanted:
                    del self._there[layer]
                    self._written = _lost(layer, name)
                self._tell_written()
        return weights.ready(tensor)

    def owner(self, storage: int) -> tuple[int, str] | None:
        """Layer and name of the matrix that is there and whose memory begins at ``storage``."""
        with self._lock:
            there = [(layer, each) for layer, each in self._there.items() if each.done()]
        for layer, future in there:
            if future.cancelled() or future.exception() is not None:
                continue
            for name, tensor in future.result().tensors.items():
                if tensor.untyped_storage().data_ptr() == storage:
                    return layer, name
        return None

    def noting(self) -> AbstractContextManager[None]:
        """Inside, autograd keeps notes of weights and reads them again, see ``gradients``."""
        return noting(self)

    def _arrive(self, layer: int) -> None:
        """See to it that a layer and the next one are there or on their way."""
        step = 1 if layer >= self._at else -1
        following = layer + step
        ends = layer in self._announced and following not in self._announced
        if layer in self._there:  # as the latest one
            self._there[layer] = self._there.pop(layer)
        self._want(*([layer] if ends or following not in self.sources else [layer, following]))
        self._at = layer

    def _want(self, *layers: int) -> None:
        """Have these layers read, in this order, in the place of others that are there.

        Raises:
            CheckpointError: the store was closed.
            DeviceError: somebody wrote into others, which were given up.
        """
        self._tell_written()
        self._forget_failed()  # that of a pass before, or read ahead: it may go well now
        missing = [layer for layer in layers if layer not in self._there]
        others = [layer for layer in self._there if layer not in layers]
        spare = max(0, len(self._there) + len(missing) - AT_A_TIME)
        left = [self._there.pop(layer) for layer in others[:spare]]
        gone = [future for future in left if not future.cancel()]
        if left and self._upload is not None:
            del left
            while gone:
                self._look_at(gone.pop())  # and let go of it here and now, see ``computed``
            self._upload.computed()
        for layer in missing:
            try:
                self._there[layer] = self._reader.submit(self._fill, layer, gone)
            except RuntimeError as error:  # the executor was shut down
                raise CheckpointError(
                    "The files of this model were closed, so its layers cannot be read any more. "
                    "Load the model again."
                ) from error

    def _tell_written(self) -> None:
        error, self._written = self._written, None
        if error is not None:
            raise error

    def _look_at(self, gone: Future[_Weights]) -> None:
        """See whether somebody wrote into a layer that was given up."""
        if gone.exception() is not None:
            return
        weights = gone.result()
        name = weights.seals.broken(weights.tensors)
        if name is not None:
            self._written = _lost(weights.layer, name)

    def _forget_failed(self) -> None:
        for layer, future in list(self._there.items()):
            if future.done() and (future.cancelled() or future.exception() is not None):
                del self._there[layer]

    def _fill(self, layer: int, gone: list[Future[_Weights]]) -> _Weights:
        """Read a layer over those that were given up; the reader's work."""
        while gone:
            self._look_at(gone.pop())  # and let go of it
        if self._upload is not None:
            self._upload.wait()
        began = time.perf_counter()
        made = self._read if self._upload is None else self._upload.sender(self.dtype)
        tensors = {name: made(place) for name, place in self.sources[layer].items()}
        ready = _as_it_is if self._upload is None else self._upload.receiver()
        self.read.layers += 1
        self.read.nbytes += sum(place.nbytes for place in self.sources[layer].values())
        self.read.seconds += time.perf_counter() - began
        return _Weights(layer, tensors, Seals(tensors), ready)

    def _read(self, place: Place) -> Tensor:
        """A matrix in a slot, converted on the way if need be."""
        slot = self._slots.take(place.numel * self.dtype.itemsize)
        tensor = slot.tensor(place.shape, self.dtype)
        if place.dtype == self.dtype:
            place.file.read(place, 0, slot.bytes())
            return tensor
        flat, size = tensor.view(-1), place.dtype.itemsize
        piece = self._slots.take(self.passing)
        numbers = piece.tensor((piece.nbytes // size,), place.dtype)
        for start in range(0, place.nbytes, piece.nbytes):
            end = min(start + piece.nbytes, place.nbytes)
            place.file.read(place, start, piece.bytes()[: end - start])
            flat[start // size : end // size].copy_(numbers[: (end - start) // size])
        return tensor

    def measure(self) -> float:
        """Bytes that a second of reading brings: so far, or of one layer that is read for it.

        Pages that the system keeps in memory are read faster than the disk can.
        """
        if self.read.seconds == 0:
            self.take(
                *next((layer, name) for layer in self.sources for name in self.sources[layer])
            )
        return self.read.nbytes / self.read.seconds

    @property
    def nbytes(self) -> int:
        """Memory that layers take now, those that others hold included."""
        return self._slots.nbytes

    def close(self) -> None:
        """Stop the reader and close the files; weights that are held stay."""
        with self._lock:
            self._reader.shutdown(wait=True, cancel_futures=True)
            self._there.clear()
            self._slots.clear()
            for file in self.files:
                file.close()

    @property
    def files(self) -> set[OpenFile]:
        """The files that layers are read from."""
        return {place.file for named in self.sources.values() for place in named.values()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same store: copies of a model read the same files."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            "A model whose layers are read from files as they are needed cannot be pickled or "
            "stored: the file it came from is its copy. Load it where it is needed."
        )


def _told(layers: range, bar: Progress) -> Iterator[int]:
    """``layers``; ``bar`` hears of each that was done, from the first that was read on."""
    for layer in layers:
        yield layer
        if layer >= bar.done:
            bar.update()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _lost(layer: int, name: str) -> DeviceError:
    return DeviceError(
        f"Somebody wrote into {name} of layer {layer}, which is read from its file for each pass, "
        "so the change is lost. Load the model without max_memory= to change weights, or change "
        "activations with hooks."
    )
