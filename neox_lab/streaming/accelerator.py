"""Layers on their way to an accelerator: through pinned memory, beside what is computed there.

Copies run on a stream of their own. A layer's memory is given up when nobody holds it and what was
computed with it is done, which PyTorch's allocator sees to (``record_stream``); before the next
copy starts the reader waits for that, so that no more than two layers are ever there.

    reader     file ──► pinned buffer ──► device, in the stream of copies ──► arrived
    computing  waits for arrived in its own stream; lets go of another layer ──► done
    reader     waits for done, and before a buffer is filled again for the copy out of it
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neox_lab.streaming.files import Place

PINNED = 32 * 2**20  # bytes of each of two buffers: one is read into while the other is copied


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


class Upload:
    """The way from files to one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Two pinned buffers and a stream; ``cuda`` is the device that is current now."""
        if device.index is None:  # every thread has its own current device
            device = torch.device(device.type, torch.cuda.current_device())
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(PINNED, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [_event() for _ in range(2)]
        self._done: torch.cuda.Event | None = None

    def computed(self) -> None:
        """Note how far the stream of whoever computes is, which has just let go of layers.

        What it does later must not count: the allocator notes the end of a tensor's use when the
        last one lets go of it, and the reader would wait for all that was asked for until then.
        """
        done = _event()
        done.record(torch.cuda.current_stream(self.device))
        self._done = done

    def wait(self) -> None:
        """Let the reader's thread wait until the memory of layers that were let go of is free."""
        if self._done is not None:
            self._done.synchronize()

    def sender(self, dtype: torch.dtype) -> Callable[[Place], Tensor]:
        """What copies one matrix to the device, in the reader's thread."""

        def send(place: Place) -> Tensor:
            size, number = place.dtype.itemsize, 0
            views = [buffer.numpy().data for buffer in self._buffers]
            with torch.cuda.stream(self._stream):
                made = torch.empty(place.shape, dtype=dtype, device=self.device)
                flat = made.view(-1)
                start = 0
                while start < place.nbytes:
                    end = min(start + PINNED, place.nbytes)
                    self._copied[number].synchronize()
                    place.file.read(place, start, views[number][: end - start])
                    piece = self._buffers[number][: end - start].view(place.dtype)
                    flat[start // size : end // size].copy_(piece, non_blocking=True)
                    self._copied[number].record(self._stream)
                    start, number = end, 1 - number
            return made

        return send

    def receiver(self) -> Callable[[Tensor], Tensor]:
        """What makes a matrix safe to compute with in whatever stream is current then."""
        arrived = _event()
        arrived.record(self._stream)

        def receive(tensor: Tensor) -> Tensor:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            tensor.record_stream(stream)
            return tensor

        return receive
