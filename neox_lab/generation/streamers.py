"""Showing text while it is being written.

``generate(..., streamer=s)`` calls ``s.put(ids)`` with the prompt and then with each new token,
and ``s.end()`` at the end, also if generation stops with an error or is interrupted.
"""

from __future__ import annotations

import asyncio
from queue import Queue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.errors import GenerationError
from neox_lab.generation.text import GrowingText

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast


class BaseStreamer:
    """What a streamer is: something with ``put`` and ``end``."""

    def put(self, value: Tensor) -> None:
        """Take token ids: first the prompt ``[1, pos]``, then one token ``[1]`` at a time."""
        raise NotImplementedError

    def end(self) -> None:
        """Hear that there will be no more."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Print text as soon as its characters are complete.

    Args:
        tokenizer: byte-level, such as GPT-NeoX's.
        skip_prompt: do not show the prompt.
        skip_special_tokens: do not show special tokens such as ``<|endoftext|>``.
    """

    def __init__(
        self,
        tokenizer: GPTNeoXTokenizerFast,
        skip_prompt: bool = False,
        skip_special_tokens: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self._growing = GrowingText(tokenizer, skip_special_tokens)
        self._prompt_is_next = True

    def put(self, value: Tensor) -> None:
        """Take token ids ``[1, pos]`` or ``[pos]`` and hand on the text they complete.

        Raises:
            GenerationError: more than one text at a time.
        """
        if value.dim() > 1 and value.shape[0] > 1:
            raise GenerationError(
                f"A text streamer shows one text; it was given a batch of {value.shape[0]}."
            )
        is_prompt, self._prompt_is_next = self._prompt_is_next, False
        if is_prompt and self.skip_prompt:
            return
        text = "".join(self._growing.add(token) for token in value.flatten().tolist())
        if text:
            self.on_finalized_text(text)

    def end(self) -> None:
        """Hand on what is left of an unfinished character, and be ready for the next text."""
        self._prompt_is_next = True
        self.on_finalized_text(self._growing.end(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print new ``text``, and at ``stream_end`` a line end; override this to do otherwise."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """Hand the text to another thread, which iterates over this object.

    Args:
        tokenizer: see ``TextStreamer``.
        skip_prompt: see ``TextStreamer``.
        timeout: seconds to wait for the next piece of text before ``queue.Empty`` is raised;
            None waits for ever.
        skip_special_tokens: see ``TextStreamer``.
    """

    def __init__(
        self,
        tokenizer: GPTNeoXTokenizerFast,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = False,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, skip_special_tokens)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put ``text`` into the queue; None at ``stream_end``."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        """The next piece of text.

        Raises:
            queue.Empty: there was none for ``timeout`` seconds.
        """
        text = self.text_queue.get(timeout=self.timeout)
        if text is None:
            raise StopIteration
        return text


class AsyncTextIteratorStreamer(TextStreamer):
    """Hand the text to a coroutine, which iterates over this object with ``async for``.

    Must be made inside a running event loop; ``generate`` then runs in another thread.

    Args:
        tokenizer: see ``TextStreamer``.
        skip_prompt: see ``TextStreamer``.
        timeout: seconds to wait for the next piece of text before ``TimeoutError`` is raised.
        skip_special_tokens: see ``TextStreamer``.
    """

    def __init__(
        self,
        tokenizer: GPTNeoXTokenizerFast,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = False,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, skip_special_tokens)
        self.timeout = timeout
        self.text_queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put ``text`` into the queue from whatever thread generates; None at ``stream_end``."""
        if text:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, None)

    def __aiter__(self) -> AsyncTextIteratorStreamer:
        return self

    async def __anext__(self) -> str:
        """The next piece of text.

        Raises:
            TimeoutError: there was none for ``timeout`` seconds.
        """
        text = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        if text is None:
            raise StopAsyncIteration
        return text


def new_tokens(ids: Tensor, new: int) -> list[Tensor]:
    """The last ``new`` tokens of ``ids`` ``[batch, pos]``, one by one, each ``[batch]``."""
    return [] if new == 0 else list(torch.unbind(ids[:, -new:].cpu(), dim=1))
