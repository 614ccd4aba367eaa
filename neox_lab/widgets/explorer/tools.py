"""What panels that are opened work with: given to ``nl.explore``, or the built-in model's own.

dictionaries    features of the selected layer
tuned           the tuned lens
direction       what to steer along
revisions       checkpoints to measure at
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neox_lab.built_in import is_inside
from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM

if TYPE_CHECKING:
    from neox_lab.experiments.lens.tuned import TunedLens
    from neox_lab.experiments.lens.tuned_result import TunedLensResult
    from neox_lab.sae import Dictionary
    from neox_lab.steering.directions import Direction
    from neox_lab.widgets.explorer.revisions import Revisions


@dataclass(frozen=True)
class Tools:
    """See the head of this file; None for what nobody gave.

    Attributes:
        trained: tuned lenses that were trained here, by the weights that they are for.
    """

    dictionaries: Mapping[str, Dictionary] | None = None
    tuned: TunedLens | None = None
    direction: Direction | None = None
    revisions: Revisions | None = None
    trained: dict[str, TunedLensResult] = field(default_factory=dict)

    def dictionary(self, model: GPTNeoXForCausalLM, layer: int) -> tuple[str, Dictionary, str]:
        """The dictionary that writes at the end of a layer: its name, itself, code that has it.

        Raises:
            InputError: there is none, or none at this layer.
        """
        site = f"blocks.{layer}.hook_resid_post"
        given, known = self.dictionaries, "dictionaries"
        if given is None:
            if not is_inside(model.name_or_path):
                raise InputError(
                    "There is no dictionary of this model here. Give some: nl.explore(model, "
                    "prompt, dictionaries={name: nl.sae.load(path_or_hub_id, ...)})."
                )
            from neox_lab.gym import dictionaries

            given, known = dictionaries(model), "nl.gym.dictionaries(model)"
        there = {each.site_out: name for name, each in given.items()}
        if site not in there:
            sites = ", ".join(sorted(there)) or "none"
            raise InputError(
                f"No dictionary writes at {site}; there is one at {sites}. Select another layer."
            )
        name = there[site]
        return name, given[name], f"dictionary = {known}[{name!r}]"


def checked(
    dictionaries: object, tuned: object, direction: object, revisions: Revisions | None
) -> Tools:
    """What a user gave.

    Raises:
        InputError: something is of another kind.
    """
    from neox_lab.experiments.lens.tuned import TunedLens
    from neox_lab.sae import Dictionary
    from neox_lab.steering.directions import Direction

    if dictionaries is not None and not (
        isinstance(dictionaries, Mapping)
        and all(isinstance(name, str) for name in dictionaries)
        and all(isinstance(each, Dictionary) for each in dictionaries.values())
    ):
        raise InputError(
            f"dictionaries={shown(dictionaries, 80)}; expected a mapping from names to "
            "dictionaries, such as {'layer 2': nl.sae.load(...)}."
        )
    if tuned is not None and not isinstance(tuned, TunedLens):
        raise InputError(f"tuned={shown(tuned, 80)}; expected a TunedLens.")
    if direction is not None and not isinstance(direction, Direction):
        raise InputError(
            f"direction={shown(direction, 80)}; expected what nl.steering.direction returns."
        )
    return Tools(dictionaries, tuned, direction, revisions)
