"""What hashes of files say about revisions: which are not what their names say.

Revisions are compared by the files that hold their weights. Two have *equal* weights where all
files of one format are the same, and are *mixed up* where only some of their shards are. Of two
such revisions the hashes alone do not tell which is wrong; ``main`` and the last step, which are
the finished model, are believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from neox_lab.dynamics.sources import Revision, missing_shards, weight_files
from neox_lab.hub_revisions import Files

NAMED = 6  # revisions named in a sentence
MAIN = "main"


@dataclass
class Faults:
    """What was found.

    Attributes:
        of: what is wrong with a revision, by its name; only those with a fault.
        groups: revisions with equal weights, several each.
        sentences: the same for people, and what else should be known.
        missing: steps that there should be.
    """

    of: dict[str, list[str]] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    def add(self, name: str, fault: str) -> None:
        """One more fault of a revision."""
        self.of.setdefault(name, []).append(fault)


def find_faults(
    revisions: Sequence[Revision], contents: Mapping[str, Files], expected: Iterable[int] = ()
) -> Faults:
    """All that is wrong with the revisions of a model.

    Args:
        revisions: by step.
        contents: the files of each by its name; what is not in it is not judged.
        expected: the steps that there should be; without them a regular spacing is looked for.
    """
    faults = Faults()
    known = [each for each in revisions if each.name in contents]
    judged = [each for each in known if each.step is not None or each.name == MAIN]
    weights = {each.name: _by_format(contents[each.name]) for each in judged}
    _incomplete(faults, judged, weights)
    judged = [each for each in judged if weights[each.name]]
    groups = _groups(judged, weights)
    last = max((each.step for each in judged if each.step is not None), default=None)
    for group in groups:
        _equal(faults, group, last)
    _mixed(faults, groups, weights, last)
    _main_is_another(faults, groups, last)
    steps = sorted({each.step for each in revisions if each.step is not None})
    faults.missing = _missing(steps, expected)
    if faults.missing:
        faults.sentences.append(f"Missing: {named([f'step{s}' for s in faults.missing])}.")
    if len(known) < len(revisions):
        faults.sentences.append(
            f"Of {len(revisions) - len(known)} revisions the files are not known; they were not "
            "judged."
        )
    return faults


def named(names: Sequence[str]) -> str:
    """Some names for a sentence: all, or the first and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


Weights = dict[str, dict[str, str]]
"""Hashes of the files of weights, of their tensors where these are known, by format and name."""


def _by_format(files: Files) -> Weights:
    found = weight_files(files)
    return {
        form: {name: file.tensors or file.content for name, file in stored.items()}
        for form, stored in found.items()
    }


def _incomplete(faults: Faults, judged: Sequence[Revision], weights: Mapping[str, Weights]) -> None:
    """Revisions without weights, or without some of their shards."""
    empty = [each.name for each in judged if not weights[each.name]]
    for name in empty:
        faults.add(name, "no weights")
    if empty:
        faults.sentences.append(f"Without weights: {named(empty)}.")
    for each in judged:
        for form, files in weights[each.name].items():
            count = missing_shards(files)
            if count > 0:
                faults.add(each.name, f"{count} shards missing ({form})")
                faults.sentences.append(f"{each.name} lacks {count} of its {form} shards.")


def _groups(judged: Sequence[Revision], weights: Mapping[str, Weights]) -> list[list[Revision]]:
    """The revisions in groups of equal weights, most of one each, by their first."""
    found: list[tuple[set[tuple[str, frozenset[str]]], list[Revision]]] = []
    for each in judged:
        keys = {(form, frozenset(files.values())) for form, files in weights[each.name].items()}
        members, apart = [each], []
        for other, earlier in found:
            if keys & other:
                keys, members = keys | other, [*earlier, *members]
            else:
                apart.append((other, earlier))
        found = [*apart, (keys, members)]
    groups = [sorted(members, key=judged.index) for _, members in found]
    return sorted(groups, key=lambda members: judged.index(members[0]))


def _equal(faults: Faults, group: Sequence[Revision], last: int | None) -> None:
    """One group of equal weights: whether it may be one, and which members are wrong."""
    if len(group) < 2:
        return
    faults.groups.append([each.name for each in group])
    has_main = any(each.name == MAIN for each in group)
    wrong = [each for each in group if each.step is not None]
    if has_main or any(each.step == last for each in wrong):
        wrong = [each for each in wrong if each.step != last]
    if not wrong or (not has_main and len({each.step for each in group}) == 1):
        return
    names = [each.name for each in wrong]
    for each in wrong:
        others = [other.name for other in group if other is not each]
        first = [MAIN] if has_main else []
        told = named([*first, *(name for name in others if name != MAIN)])
        faults.add(each.name, f"same weights as {told}")
    if has_main:
        verb = "has" if len(names) == 1 else "have"
        faults.sentences.append(
            f"{len(names)} {_steps(names)} {verb} the weights of main, the finished model: "
            f"{named(names)}."
        )
    else:
        known = [each.name for each in group if each not in wrong]
        whose = f" as {known[0]}, the last step" if known else ""
        faults.sentences.append(
            f"{len(names)} {_steps(names)} {'has' if len(names) == 1 else 'have'} the same "
            f"weights{whose}: {named(names)}.{_first_steps(group)}"
        )


def _steps(names: Sequence[str]) -> str:
    return "step" if len(names) == 1 else "steps"


def _first_steps(group: Sequence[Revision]) -> str:
    """What may explain that the first steps are equal."""
    if {each.step for each in group} <= {0, 1, 2}:
        return " A first update with a learning rate of 0, or left out, changes nothing."
    return ""


def _mixed(
    faults: Faults,
    groups: Sequence[Sequence[Revision]],
    weights: Mapping[str, Weights],
    last: int | None,
) -> None:
    """Revisions some of whose shards are those of another revision with other weights."""
    owners: dict[str, set[int]] = {}
    for number, group in enumerate(groups):
        for each in group:
            for files in weights[each.name].values():
                for content in files.values():
                    owners.setdefault(content, set()).add(number)
    for number, group in enumerate(groups):
        if any(each.name == MAIN or each.step == last for each in group):
            continue
        for each in group:
            for files in weights[each.name].values():
                others: dict[int, list[str]] = {}
                for name, content in files.items():
                    for other in owners[content] - {number}:
                        others.setdefault(other, []).append(name)
                for other, shards in others.items():
                    _is_mixed(faults, each, shards, len(files), groups[other])


def _is_mixed(
    faults: Faults, revision: Revision, shards: Sequence[str], count: int, other: Sequence[Revision]
) -> None:
    """Some shards of a revision are those of others."""
    names = [each.name for each in other]
    whose = MAIN if MAIN in names else names[0]
    faults.add(revision.name, f"shards of {whose}: {named(shards)}")
    verb = "is that" if len(shards) == 1 else "are those"
    faults.sentences.append(
        f"{revision.name} mixes two revisions: {named(shards)} of its {count} files {verb} of "
        f"{whose}."
    )


def _main_is_another(
    faults: Faults, groups: Sequence[Sequence[Revision]], last: int | None
) -> None:
    """Say so where ``main`` is not the last step."""
    for group in groups:
        names = [each.name for each in group]
        if MAIN in names and last is not None and all(each.step != last for each in group):
            faults.sentences.append(
                f"main is not the same file as step{last}, the last step. Other files may hold "
                "equal tensors."
            )


def _missing(steps: Sequence[int], expected: Iterable[int]) -> list[int]:
    """Steps between the first and the last that there should be and are not."""
    if not steps:
        return []
    wanted = set(expected)
    if not wanted:
        wanted = _regular(steps)
    return sorted(step for step in wanted - set(steps))


def _regular(steps: Sequence[int]) -> set[int]:
    """The steps that a regular spacing would have, if most neighbours are that far apart."""
    gaps = [after - before for before, after in pairwise(steps)]
    if not gaps:
        return set()
    gap, count = Counter(gaps).most_common(1)[0]
    if count < 4 or 2 * count <= len(gaps):
        return set()
    wide = [(a, b) for a, b in pairwise(steps) if (b - a) % gap == 0]
    return {step for a, b in wide for step in range(a, b, gap)}
