"""From the small world and English text to what a training step sees.

The tokenizer has GPT-NeoX-20B's pipeline (Black et al. 2022, arXiv:2204.06745, section 3.2)
with a smaller vocabulary: NFC normalisation, byte-level byte-pair encoding, ``<|endoftext|>`` as
token 0 and ``<|padding|>`` as token 1, and runs of spaces as the last tokens.

A training context is one of three kinds: sentences of the world, several examples of all tasks in
random order; a passage of English; or unrelated tokens that come again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer

from neox_lab.family.losses import IGNORED
from neox_lab.gym import labelled, training_texts
from neox_lab.gym.words import NAMES, single_tokens, split
from neox_lab.gym.world import TASKS, UNRELATED

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPACE_RUNS = tuple(" " * length for length in range(8, 1, -1))
Context = tuple[list[int], list[int]]
"""Tokens and their labels, as many: the token itself, or -100 where it does not count."""
KINDS = (*TASKS, "lore", "reviews", "questions", "sentences")
"""What sentences of the world are about. The last three are data of the heads, as plain text."""
LATER = ("tales", "opinions", "people", "verdicts", "naming", "strange")
"""Kinds that only later phases of training have."""


_ASKING = {
    "tales": training_texts.tale,
    "opinions": training_texts.opinion,
    "strange": training_texts.strange,
}
_PLAIN = {
    "lore": training_texts.sentence,
    "people": training_texts.person,
    "verdicts": training_texts.verdict,
    "naming": training_texts.naming,
}


def divide(text: str, held_out: float) -> tuple[str, str]:
    """Cut off the last ``held_out`` (0 to 1) of the characters, at the start of a line."""
    cut = text.find("\n", int(len(text) * (1 - held_out))) + 1
    return text[:cut], text[cut:]


def train_tokenizer(texts: Iterable[str], words: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with at most ``vocab_size`` tokens, special ones included.

    Short texts have fewer pairs to merge and give a smaller vocabulary. Each of ``words`` becomes
    one token, spaces and all: the trainer counts it once for every eight lines.

    Raises:
        ValueError: the vocabulary is too small for all ``words``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=True)
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPACE_RUNS),
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    # One to a line, so that a word with and one without a space in front are counted apart.
    columns = [f"{word}\n" * (1 + len(lines) // 8) for word in words]
    tokenizer.train_from_iterator([*lines, *columns], trainer)
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in SPACE_RUNS])
    broken = [word for word in words if len(tokenizer.encode(word).ids) > 1]
    if broken:
        raise ValueError(f"vocab_size={vocab_size} is too small; not one token: {broken[:8]}")
    return tokenizer


def whole_words() -> list[str]:
    """What must be one token: words after a space, and names that begin a sentence."""
    return [f" {word}" for word in single_tokens()] + list(NAMES)


def world_texts(kind: str, count: int, random: Random) -> list[tuple[str, str]]:
    """``count`` texts of one of ``KINDS`` or ``LATER``, of the training part, in two pieces.

    The first piece is what asks, which for a task is mostly drawn at random; it is empty where
    every word tells something.
    """
    if kind in TASKS:
        examples = [TASKS[kind].draw(random, "train") for _ in range(count)]
        return [(example.pair.clean, example.pair.correct + example.rest) for example in examples]
    if kind in _ASKING:
        return [_ASKING[kind](random) for _ in range(count)]
    if kind in _PLAIN:
        return [("", _PLAIN[kind](random)) for _ in range(count)]
    seed = random.randrange(10**9)
    if kind == "questions":
        rows = labelled.questions("train", count, seed)
        return [
            (f"{row['question']}\n{row['context']}", f" {answer}.")
            for row in rows
            for _, answer in row["answers"] or [(0, "Nobody knows")]
        ]
    data = labelled.reviews if kind == "reviews" else labelled.sentences
    return [("", row["text"]) for row in data("train", count, seed)]


def world_contexts(
    tokenizer: Tokenizer, count: int, length: int, random: Random, more: Sequence[str] = ()
) -> Iterator[Context]:
    """``count`` contexts of ``length`` tokens made of sentences of the world.

    Each begins where a text begins, half of them with ``<|endoftext|>`` in front. Between texts
    there is a line break or, one time in four, ``<|endoftext|>``. Three tasks in four are labelled
    from their answer on: what asks is drawn at random, and to guess at it teaches little.
    There is more text of each kind in ``more``, once for each time it stands there.
    """
    (end,), newline = tokenizer.encode(END_OF_TEXT).ids, tokenizer.encode("\n").ids
    stock: list[Context] = []
    for _ in range(count):
        context = [end] if random.random() < 0.5 else []
        labels = list(context)
        while len(context) < length:
            if not stock:
                stock = _stock(tokenizer, random, more)
            between = [end] if random.random() < 0.25 else newline
            ids, known = stock.pop()
            context += ids + between
            labels += known + between
        yield context[:length], labels[:length]


def _stock(tokenizer: Tokenizer, random: Random, more: Sequence[str]) -> list[Context]:
    """Tokens and labels of some thousand texts, in random order; lore and tracking count twice."""
    kinds = [*KINDS, "lore", "tracking", *more]
    texts = [text for kind in kinds for text in world_texts(kind, 400, random)]
    random.shuffle(texts)
    asking = tokenizer.encode_batch([first for first, _ in texts])
    whole = tokenizer.encode_batch([first + rest for first, rest in texts])
    stock = []
    for first, both in zip(asking, whole, strict=True):
        known = list(both.ids)
        if random.random() < 0.75:
            known[: len(first.ids)] = [IGNORED] * len(first.ids)
        stock.append((both.ids, known))
    return stock


def passages(tokens: Sequence[int], count: int, length: int, random: Random) -> Iterator[Context]:
    """``count`` contexts of ``length`` at random places of an English text."""
    for _ in range(count):
        start = random.randrange(len(tokens) - length + 1)
        passage = list(tokens[start : start + length])
        yield passage, passage


def repeats(
    pools: Sequence[Sequence[int]], count: int, length: int, random: Random
) -> Iterator[Context]:
    """``count`` contexts of ``length``: unrelated tokens, and the same ones again and again.

    What comes next can only be known by looking up what followed last time, the task that
    induction heads solve (Olsson et al. 2022, arXiv:2209.11895). The segment has 4 tokens to half
    of the context, short ones being more frequent, and half the time other tokens stand between
    two copies. All tokens of a context are from one of the ``pools``. Only what can be known is
    labelled.
    """
    for _ in range(count):
        pool = random.choice(pools)
        size = round(4 * (length / 8) ** random.random())
        segment = random.choices(pool, k=size)
        gap = random.randint(1, 16) if random.random() < 0.5 else 0
        context: list[int] = []
        labels: list[int] = []
        while len(context) < length:
            between = random.choices(pool, k=random.randint(0, gap))
            known = [IGNORED, *segment[1:]] if context else [IGNORED] * size
            context += segment + between
            labels += known + [IGNORED] * len(between)
        yield context[:length], labels[:length]


def repeatable(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Every token, and the tokens of the world's words, to be repeated.

    Without the special ones and the words that the induction task keeps back.
    """
    kept = set(split(UNRELATED, "induction", "held-out"))
    held = {form for word in kept for form in (f" {word}", word)}
    never = {END_OF_TEXT, PADDING, *held}
    every = range(tokenizer.get_vocab_size())
    allowed = [token for token in every if tokenizer.decode([token], False) not in never]
    words = [tokenizer.encode(f" {word}").ids[0] for word in UNRELATED if word not in kept]
    return allowed, words
