"""What lives where, what a pass reads, and how long that takes: before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from neox_lab.checks import check, number, or_none
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.model.network import Network
from neox_lab.results import FrameResult
from neox_lab.sizes import size_in_words
from neox_lab.streaming.linear import store_of
from neox_lab.streaming.placement import Sizes, sizes_of
from neox_lab.streaming.store import AT_A_TIME

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import BarsView

RATE = or_none(number(above=0))


class Question(NamedTuple):
    """What a question costs.

    Attributes:
        question: which.
        passes: how often it needs every layer.
        memory: bytes beside the weights that stand there at its end, with the prompts given.
    """

    question: str
    passes: float
    memory: int


class Asked(NamedTuple):
    """What questions are about.

    Attributes:
        batch: prompts.
        pos: tokens of each.
        cache: bytes of a cache of all activations.
        new_tokens: that are generated.
    """

    batch: int = 0
    pos: int = 0
    cache: int = 0
    new_tokens: int = 1


def questions(config: GPTNeoXConfig, size: int, asked: Asked) -> tuple[Question, ...]:
    """Questions to a model.

    Args:
        config: its shape.
        size: bytes of one of its numbers.
        asked: what they are about.
    """
    layers, new = config.num_hidden_layers, asked.new_tokens
    row = layers * asked.batch * config.hidden_size * size  # of all layers, at one position
    return (
        Question("a forward pass, with or without hooks", 1, 0),
        Question("a cache of all activations", 1, asked.cache),
        Question("a logit lens", 1, 0),
        Question("a sweep of patches, at resid_pre", 1, row * asked.pos * (asked.pos + 1) // 2),
        Question(
            f"generate: {new} new token{'s' * (new > 1)}", new, 2 * row * (asked.pos + new - 1)
        ),
        Question("a gradient: up and down again", 2, 0),
    )


@dataclass(frozen=True)
class Part:
    """Some of a model's weights.

    Attributes:
        part: which.
        where: where they are.
        nbytes: memory that they take there.
        read: bytes that a pass reads of them from files.
    """

    part: str
    where: str
    nbytes: int
    read: int


@dataclass(frozen=True)
class MemoryPlan(FrameResult):
    """What lives where.

    Attributes:
        parts: of the model.
        rate: bytes that are read from its files in a second; None if nothing is read.
        asked: questions.
    """

    parts: tuple[Part, ...]
    rate: float | None
    asked: tuple[Question, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each part: ``part``, ``where``, ``bytes`` and ``read_each_pass``."""
        return make_frame(
            [
                {"part": p.part, "where": p.where, "bytes": p.nbytes, "read_each_pass": p.read}
                for p in self.parts
            ]
        )

    @property
    def memory(self) -> int:
        """Bytes of weights in memory; activations come on top."""
        return sum(part.nbytes for part in self.parts)

    @property
    def read(self) -> int:
        """Bytes that a pass reads from files."""
        return sum(part.read for part in self.parts)

    @property
    def questions(self) -> pd.DataFrame:
        """What questions cost: ``question``, ``passes``, ``bytes`` read, ``seconds``, ``memory``.

        Seconds are those of reading. What is computed meanwhile takes its own time; whichever takes
        longer is how long it takes. Memory is what stands there at the end beside the weights: the
        cache, the rows of a sweep (at most, or in a file without a name if a quarter of the free
        memory has no room for them), keys and values. What a block makes of one batch comes and
        goes on top.
        """
        seconds = self.read / self.rate if self.rate else 0.0
        return make_frame(
            [
                {
                    "question": question,
                    "passes": passes,
                    "bytes": int(passes * self.read),
                    "seconds": passes * seconds,
                    "memory": memory,
                }
                for question, passes, memory in self.asked
            ]
        )

    @property
    def title(self) -> str:
        """The plan in a line."""
        memory = f"{size_in_words(self.memory)} of weights in memory"
        if self.rate is None:
            return f"{memory}, nothing to read"
        return f"{memory}, {size_in_words(self.read)} read each pass"

    @property
    def note(self) -> str:
        """How long a pass takes at least."""
        if self.rate is None:
            return "All layers are in memory."
        seconds = self.read / self.rate
        return f"At {size_in_words(self.rate)} a second, a pass takes {seconds:.3g} s at least."

    def view(self) -> BarsView:
        """A bar for each part, as long as its memory in megabytes."""
        from neox_lab.views import BarsView

        names = [f"{part.part}, streamed" if part.read else part.part for part in self.parts]
        megabytes = [part.nbytes / 1e6 for part in self.parts]
        note = f"{self.note} Bars are megabytes in memory."
        return BarsView(names, megabytes, title=self.title, note=note)

    def __repr__(self) -> str:
        """Parts and questions as tables."""
        lines = [self.title, self.note, ""]
        wide = max(len(part.part) for part in self.parts)
        for part in self.parts:
            read = f", {size_in_words(part.read)} read each pass" if part.read else ""
            lines.append(f"  {part.part:<{wide}}  {part.where}: {size_in_words(part.nbytes)}{read}")
        told = [q for q in self.asked if self.rate is not None or q.memory]
        lines += [""] * bool(told)
        for question, passes, memory in told:
            line = f"  {question}: {passes:g} pass{'es' * (passes != 1)}"
            if self.rate is not None:
                line += f", {passes * self.read / self.rate:.3g} s of reading"
            lines.append(line + (f", {size_in_words(memory)} on top" if memory else ""))
        return "\n".join(lines)


def memory_plan(model: nn.Module, read_rate: float | None, about: Asked) -> MemoryPlan:
    """What lives where; see ``GPTNeoXPreTrainedModel.memory_plan``.

    Args:
        model: one of the five classes.
        read_rate: bytes a second; None measures it.
        about: what questions are about.

    Raises:
        InputError: a rate that is no number above 0.
        CheckpointError: a layer that is read to measure the rate cannot be.
    """
    given = check("read_rate", read_rate, RATE, InputError)
    network, config = getattr(model, "gpt_neox", model), model.config
    assert isinstance(network, Network)
    assert isinstance(config, GPTNeoXConfig)
    layers = len(network.layers)
    parameters = dict(model.named_parameters())
    dtype = next(iter(parameters.values())).dtype
    sizes = sizes_of(parameters, layers, dtype, {})
    store = store_of(model)
    main = str(next(iter(parameters.values())).device)
    parts = [Part("embeddings, head, vectors", main, sizes.fixed, 0)]
    streamed = set() if store is None else set(store.sources)
    resident = [layer for layer in range(layers) if layer not in streamed]
    if resident:
        parts.append(Part(_named(resident), main, _bytes(sizes, resident), 0))
    asked = questions(config, dtype.itemsize, about)
    if store is None:
        return MemoryPlan(tuple(parts), None, asked)
    read = sum(place.nbytes for named in store.sources.values() for place in named.values())
    room = AT_A_TIME * max(sizes.layers) + store.passing
    files = len(store.files)
    where = f"{main}, two at a time from {files} file{'s' * (files > 1)}"
    parts.append(Part(_named(sorted(streamed)), where, room, read))
    return MemoryPlan(tuple(parts), given or store.measure(), asked)


def _bytes(sizes: Sizes, layers: list[int]) -> int:
    return sum(sizes.layers[layer] for layer in layers)


def _named(layers: list[int]) -> str:
    """Layers in words; they are a stretch."""
    first, last = layers[0], layers[-1]
    return f"layer {first}" if first == last else f"layers {first} to {last}"
