"""One step of decoding that a GPU can repeat without Python.

Writing one token takes a GPU some microseconds for each of hundreds of small kernels, and Python
longer than that to ask for each. A CUDA graph remembers them all and is asked for once. It repeats
what was recorded to the letter: it reads and writes the same memory, and no Python runs. So the
step is made of what stays where it is:

    ids, positions  ``[batch, 1]``         the token to read, and its place in its own text
    place           ``[1]``                its place in the buffers
    text            ``[batch, capacity]``  True where there is text; later places are hidden
    keys, values    ``[batch, head, capacity, d_head]`` for each layer
    logits          ``[batch, 1, vocab]``

``captured_stepper`` says when steps are taken from a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.model.key_value_cache import KeyValueCache, LayerKeysValues

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

DEVICES = ("cuda",)
"""Types of devices on which steps are recorded."""


def records(device: torch.device) -> bool:
    """Whether steps are recorded on ``device``."""
    return device.type in DEVICES


class _StaticLayer(LayerKeysValues):
    """Keys and values of one layer in buffers of a fixed size."""

    def __init__(self, like: LayerKeysValues, capacity: int, place: Tensor) -> None:
        super().__init__()
        assert like.keys is not None
        batch, heads, _, d_head = like.keys.shape
        self.buffers = tuple(like.keys.new_empty(batch, heads, capacity, d_head) for _ in "kv")
        self._place = place
        self.length = capacity - 1  # with the one that comes, the whole buffer is attended to

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer.index_copy_(2, self._place, new)
        return self.buffers[0], self.buffers[1]

    def load(self, layer: LayerKeysValues) -> None:
        """Hold what ``layer`` holds, and zeros after it: what is hidden is multiplied by 0."""
        for buffer, given in zip(self.buffers, (layer.keys, layer.values), strict=True):
            assert given is not None
            buffer[:, :, : given.shape[2]] = given
            buffer[:, :, given.shape[2] :] = 0


class StaticStep:
    """One step of decoding in which nothing changes its place in memory.

    Attributes:
        capacity: positions that the buffers have room for.
        past: how many positions were read.
        ids: the token of each text that is to be read ``[batch, 1]``.
        logits: what the model said then, float32 ``[batch, 1, vocab]``.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache, capacity: int) -> None:
        """Room for texts of ``capacity`` positions, as many as ``cache`` has; ``load`` fills it."""
        self.capacity, self.past = capacity, 0
        output, keys = model.get_output_embeddings(), cache.layers[0].keys
        assert output is not None and keys is not None
        batch, device = keys.shape[0], keys.device
        # What is made under inference_mode could not be written to outside.
        with torch.inference_mode(False), torch.no_grad():
            self.ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
            self._positions, self._place = self.ids.clone(), self.ids.new_zeros(1)
            vocab = output.weight.shape[0]
            self.logits = torch.zeros(batch, 1, vocab, dtype=torch.float32, device=device)
            self._text = torch.ones(batch, capacity, dtype=torch.bool, device=device)
            self._index = torch.arange(capacity, device=device)
            self._layers = [_StaticLayer(like, capacity, self._place) for like in cache.layers]
        self._cache = KeyValueCache(0)
        self._cache.layers = list(self._layers)

    def load(self, cache: KeyValueCache, mask: Tensor | None, positions: Tensor | None) -> None:
        """Begin after what was read.

        Args:
            cache: keys and values of it.
            mask: 1 for text and 0 for padding ``[batch, past + 1]``, or None.
            positions: of the token that comes, ``[batch or 1, 1]``; None for as many as were read.
        """
        self.past = cache.get_seq_length()
        for layer, given in zip(self._layers, cache.layers, strict=True):
            layer.load(given)
        self._place.fill_(self.past)
        self._text.fill_(True)
        if mask is not None:
            self._text[:, : mask.shape[1]] = mask.bool()
        if positions is None:
            self._positions.fill_(self.past)
        else:
            self._positions.copy_(positions.expand_as(self._positions))

    def run(self, model: LanguageModel) -> None:
        """Read ``ids`` and go on to the next place: what is recorded. No number decides here."""
        visible = self._text & (self._index <= self._place)
        output = model(
            input_ids=self.ids,
            attention_mask=visible[:, None, None],
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self.logits.copy_(output.logits)
        self._place += 1
        self._positions += 1

    def give_back(self, cache: KeyValueCache) -> None:
        """Append to ``cache`` the positions that it lacks."""
        have = cache.get_seq_length()
        if have < self.past:
            for layer, own in zip(cache.layers, self._layers, strict=True):
                layer.append(*(buffer[:, :, have : self.past] for buffer in own.buffers))


def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What repeats ``run`` on a CUDA device.

    Args:
        run: is called a few times, in a stream of its own as recording demands.
        device: where it computes.

    Raises:
        RuntimeError: it does what cannot be recorded, such as waiting for a number.
    """
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream(device)
    # A recording that fails leaves its stream the current one; this brings the right one back.
    with torch.cuda.device(device), torch.cuda.stream(current), draws_go_on(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        current.wait_stream(stream)
        # Other threads, such as a notebook's, may allocate memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            run()
    return graph.replay


@contextmanager
def draws_go_on(device: torch.device) -> Iterator[None]:
    """Let random numbers be drawn on ``device`` after a recording that fails inside, too.

    PyTorch takes the generator of the device part in every recording, and before version 2.13 one
    that fails leaves it so: every draw would raise until the process ends. Then it gets the state
    that it had before; one from which numbers can be drawn is left alone, because recordings of
    somebody else's may share its state.
    """
    generator = torch.cuda.default_generators[device.index]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        try:
            torch.empty(1, dtype=torch.float32, device=device).uniform_()
        except RuntimeError:
            generator.graphsafe_set_state(before)
        else:
            generator.set_state(before.get_state())
        raise


def difference(played: Tensor, plain: Tensor, dtype: torch.dtype) -> str | None:
    """How logits ``[batch, 1, vocab]`` differ by more than rounding in ``dtype``; None if not."""
    bound = 16 * max(torch.finfo(dtype).eps, 2.0**-14)
    scale = plain.nan_to_num(0.0, 0.0, 0.0).abs().amax()
    far = (played - plain).abs() > bound * scale
    if not bool((far | (played.isnan() != plain.isnan())).any()):
        return None
    apart = float((played - plain).nan_to_num(0.0, 0.0, 0.0).abs().amax() / scale)
    return f"logits differ by {apart:.2g} of the largest, where {bound:.2g} would be rounding"
