"""Which revisions are not what their names say."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from neox_lab.dynamics.faults import MAIN, Faults, find_faults
from neox_lab.dynamics.listing import whole_numbers
from neox_lab.dynamics.sources import Revision, Source, digest, source_of
from neox_lab.errors import NeoxLabWarning
from neox_lab.frames import make_frame
from neox_lab.hub import PathOrId
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.dynamics.steps_view import StepsView


@dataclasses.dataclass(frozen=True)
class AuditResult(Result):
    """What an audit found.

    Attributes:
        name: of the model.
        frame: one row a revision, by step: ``revision``, ``step``, ``tokens``, ``weights`` (12
            digits, equal for equal files), ``group`` (a number for revisions with equal weights,
            missing for one that is like no other) and ``fault`` in words, "" for none.
        sentences: what was found, for people; empty if there is nothing to say.
        missing: steps that there should be.
    """

    name: str
    frame: pd.DataFrame
    sentences: tuple[str, ...]
    missing: tuple[int, ...]

    @property
    def bad(self) -> pd.DataFrame:
        """The rows of ``frame`` with a fault."""
        return self.frame[self.frame["fault"] != ""].reset_index(drop=True)

    def view(self) -> StepsView:
        """The steps on a line; those with equal weights in one colour."""
        from neox_lab.dynamics.steps_view import StepsView
        from neox_lab.views import Piece

        pieces, kinds = [], []
        for row in self.frame.to_dict("records"):
            name = str(row["step"]) if _there(row["step"]) else str(row["revision"])
            kind = f"equal weights {row['group']}" if _there(row["group"]) else None
            kind = "other fault" if kind is None and row["fault"] else kind
            kinds.append(kind)
            details = {"revision": row["revision"], "weights": row["weights"]}
            told = details | ({"fault": row["fault"]} if row["fault"] else {})
            note = "!" if row["fault"] else ""
            pieces.append(Piece(name, note if kind else "", kind, details=told if kind else {}))
            pieces.append(Piece("  "))
        found = self.sentences or ("No fault was found.",)
        return StepsView(
            pieces,
            f"Revisions of {self.name}: {len(self.bad)} of {len(self.frame)} with a fault",
            "Steps in order; in one colour where their weights are equal. ! marks a fault.",
            [{"finding": sentence} for sentence in found],
            "What was found",
            list(dict.fromkeys(kind for kind in kinds if kind)),
        )

    def __repr__(self) -> str:
        """What was found, in sentences."""
        found = [f"{len(self.frame)} revisions of {self.name}; {len(self.bad)} with a fault."]
        return "\n".join([*found, *self.sentences])


def audit(name: PathOrId | None = None) -> AuditResult:
    """Find revisions that are not what their names say, before an answer rests on them.

    It compares the hashes of files, so nothing is loaded, and of a repository on the hub nothing
    but metadata is fetched; of safetensors files on this machine it compares the tensors. It finds
    the same weights under different steps, shards of two steps in one revision, steps that have
    the weights of ``main`` and are not the last, weights or shards that are not there, and missing
    steps: Pythia's are known, elsewhere a regular spacing must not be broken. On the hub, equal
    tensors in files that differ otherwise are not found.

    Args:
        name: an id on the hub, a directory of checkpoints, or None for the built-in model.

    Raises:
        CheckpointError: there is no such model, it has no revisions, or it cannot be reached.
    """
    source = source_of(name)
    found = source.revisions()
    contents = source.contents(found)
    faults = find_faults(found, contents, source.expected_steps)
    groups = {name: at for at, group in enumerate(faults.groups, 1) for name in group}
    rows: list[dict[str, Any]] = [
        {
            "revision": each.name,
            "step": each.step,
            "tokens": each.tokens,
            "weights": digest(contents.get(each.name, {})),
            "group": groups.get(each.name),
            "fault": "; ".join(faults.of.get(each.name, [])),
        }
        for each in found
    ]
    frame = whole_numbers(make_frame(rows), "step", "tokens", "group")
    return AuditResult(source.shown, frame, tuple(faults.sentences), tuple(faults.missing))


def warn_of(source: Source, faults: Faults, chosen: list[Revision]) -> None:
    """Warn where revisions that are about to be used are not what their names say."""
    bad = [each.name for each in chosen if each.name in faults.of]
    if bad:
        told = "; ".join(f"{name}: {', '.join(faults.of[name])}" for name in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        warnings.warn(
            f"{len(bad)} of the revisions of {source.shown} are not what their names say "
            f"({told}{more}). Their rows are marked in the column 'fault'; "
            "nl.dynamics.audit says more.",
            NeoxLabWarning,
            stacklevel=3,
        )


def _there(value: object) -> bool:
    """Whether a cell has a value."""
    import pandas as pd

    return not pd.isna(value)  # type: ignore[call-overload]


__all__ = ["MAIN", "AuditResult", "audit", "warn_of"]
