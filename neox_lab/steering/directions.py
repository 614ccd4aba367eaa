"""Directions: vectors at sites of one model, with what says whether they mean anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import FINITE, SWITCH, check, one_of, require_model, shown, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.hooks.hooking import Placement
from neox_lab.hooks.names import exact
from neox_lab.model.identity import Identity, identity, refuse_another
from neox_lab.other_names import STEERED, names_ours_of
from neox_lab.results import FrameResult
from neox_lab.steering.edits import MODES, Edit, Steering
from neox_lab.steering.places import Places, Where
from neox_lab.steering.widths import check_widths

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from neox_lab.experiments.metrics import Metric
    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.files import StrPath
    from neox_lab.steering.curve import SteeringCurve
    from neox_lab.steering.projecting import Projection
    from neox_lab.steering.side_effects import SideEffects
    from neox_lab.views import View

CONTROLS = ("random", "shuffled")


@dataclass(frozen=True)
class AtSite:
    """A direction at one site.

    Attributes:
        vector: ``[d]``, float32 on the CPU: adding it once moves a negative example to where the
            positive ones are.
        site_norm: mean norm of the activations there, first positions of texts left out; NaN where
            no texts were read.
        origin: component of the negative examples along the vector, on average; NaN likewise.
        separation: how often an unseen positive example lies beyond an unseen negative one; 0.5 is
            chance, NaN if there were too few examples.
        null: the same with shuffled labels, the mean of all shufflings; NaN likewise.
        shuffled: what the method finds where labels say nothing, ``[draw, d]``, each at right
            angles to the vector and as long.
    """

    vector: Tensor
    site_norm: float = math.nan
    origin: float = math.nan
    separation: float = math.nan
    null: float = math.nan
    shuffled: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float32))

    @property
    def norm(self) -> float:
        """Length of the vector."""
        return float(self.vector.norm())


def aside(control: Tensor, vector: Tensor) -> Tensor | None:
    """A control without its component along a direction, as long as that, float32.

    Examples of one kind differ from each other along the direction, too: some praise is stronger.
    So what is found between them, whatever the labels, has a share of the direction, and made as
    long as the direction that share is large.

    Args:
        control: ``[d]``.
        vector: the direction ``[d]``.

    Returns:
        None where nothing is left.
    """
    wide, unit = control.double(), vector.double() / vector.double().norm()
    left = wide - (wide @ unit) * unit
    if not float(left.norm()) > 1e-3 * float(wide.norm()):
        return None
    return (left * (vector.double().norm() / left.norm())).float()


@dataclass(frozen=True)
class Direction(FrameResult):
    """A direction at one site or several of a model.

        with direction.steer(scale=2.0):
            model.generate("The film was")

    Attributes:
        sites: what it is at each site, by hook name, in the order of the forward pass.
        method: how it was found.
        positions: where texts were read, in words.
        model_name: the model's, for titles.
        identity: of the model it belongs to; None where nobody said.
    """

    sites: dict[str, AtSite]
    method: str
    positions: str
    model_name: str = ""
    identity: Identity | None = None
    _model: HookedModel | None = field(default=None, repr=False)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The vector ``[d]`` at each site, float32 on the CPU."""
        return {name: at.vector for name, at in self.sites.items()}

    @property
    def model(self) -> HookedModel:
        """The model it belongs to.

        Raises:
            InputError: it was read from a file and not yet put on a model.
        """
        if self._model is None:
            raise InputError("this direction has no model yet; direction.on(model) gives it one")
        return self._model

    def on(self, model: HookedModel, *, same: bool = True) -> Direction:
        """The same direction on a model, such as the one it was saved from, loaded anew.

        Args:
            model: has all its sites, as wide.
            same: it must be the model that the direction was found in; False to try it in
                another, such as another training step.

        Raises:
            InputError: this is no model, or sites have another width there.
            CheckpointError: it is another model; the message says in what they differ.
            HookNameError: it lacks a site.
        """
        require_model(model)
        if check("same", same, SWITCH, InputError):
            refuse_another(self.identity, identity(model), "This direction")
        check_widths(model, self.vectors)
        return replace(self, _model=model)

    def at(self, *sites: str | tuple[str, int]) -> Direction:
        """The direction at some of its sites.

        Args:
            sites: hook names, or short forms such as ``("resid_post", 2)``.

        Raises:
            InputError: it has no such site.
        """
        kept = {}
        for site in sites:
            name = site if isinstance(site, str) else exact(site, self.model.hook_points)
            if name not in self.sites:
                raise InputError(
                    f"no direction at {shown(site)}; there are {', '.join(self.sites)}"
                )
            kept[name] = self.sites[name]
        if not kept:
            raise InputError("no site was named")
        return replace(self, sites=kept)

    def control(self, kind: str = "random", draw: int = 0) -> Direction:
        """A direction that should do nothing of its own, as long as this one at every site.

        All are at right angles to this one: a share of it would act, in a control, as it does here.

        Args:
            kind: ``"random"``, drawn evenly, or ``"shuffled"``, what the same method finds where
                labels say nothing.
            draw: which one, from 0; shuffled ones are as many as were made.

        Raises:
            InputError: an unknown kind, or there is no such shuffled one.
        """
        check("kind", kind, one_of(*CONTROLS), InputError)
        draw = check("draw", draw, whole(least=0, most=2**31), InputError)
        made = {}
        for number, (name, at) in enumerate(self.sites.items()):
            if kind == "random":
                generator = torch.Generator().manual_seed(902_653 + draw * 100_003 + number)
                vector = torch.randn(at.vector.shape, generator=generator, dtype=torch.float32)
            elif draw < len(at.shuffled):
                vector = at.shuffled[draw]
            else:
                raise InputError(
                    f"there are {len(at.shuffled)} directions of shuffled labels at {name!r}"
                )
            beside = aside(vector, at.vector)
            if beside is None:
                raise InputError(
                    f"nothing is at right angles to the direction at {name!r} in control {draw}"
                )
            made[name] = AtSite(beside, at.site_norm)
        return replace(self, sites=made, method=f"{kind} control of {self.method}")

    @names_ours_of(*STEERED)
    @contextmanager
    def steer(
        self, scale: float = 1.0, positions: Places = "all", mode: str = "add"
    ) -> Iterator[HookedModel]:
        """Steer the model for a ``with`` block: every run, ``generate`` included.

        At several sites the vector is added at each of them, so the effect adds up.

        Args:
            scale: how far, in lengths of the direction: 1 moves a negative example to where the
                positive ones are, on average. For ``"ablate"`` the share that is taken away, for
                ``"clamp"`` the level: 0 is where the negative examples are, 1 the positive ones.
            positions: which tokens: ``"all"``, ``"prompt"`` or ``"generated"`` in generation,
                ``"last"`` (the last token of each prompt), or absolute positions, counted from the
                first token of each text: 3, ``[3, 4]``, ``slice(5, None)``. Padding is left alone.
                With a key-value cache and without one they mean the same.
            mode: ``"add"``, ``"ablate"`` (take away the component along the direction),
                ``"clamp"`` (set it) or ``"norm-preserving"`` (add, and keep the norm).

        Yields:
            The model.

        Raises:
            InputError: an unknown mode, a scale that is no finite number, or positions that mean
                nothing.
            HookNeverFiredError: at the end of the block, if the model ran past a site.
        """
        with steer((self, scale), positions=positions, mode=mode) as model:
            yield model

    def project(self, inputs: Inputs) -> Projection:
        """Where each token of texts lies along the direction.

        Args:
            inputs: a text, several, or token ids ``[batch, pos]``.

        Returns:
            A value for each token and site, shown as the text with them: −1 is where the negative
            examples are on average, 1 where the positive ones are.

        Raises:
            InputError: dropout is on, or nothing to read.
        """
        from neox_lab.steering.projecting import project

        return project(self, inputs)

    @names_ours_of(*STEERED)
    def evaluate(
        self,
        metric: Metric,
        inputs: str | list[str],
        scales: Sequence[float] = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
        *,
        texts: Sequence[str] | None = None,
        mode: str = "add",
        positions: Places = "all",
        controls: int = 4,
        batch_size: int = 32,
        seed: int = 0,
    ) -> SteeringCurve:
        """Effect against fluency over scales, beside the controls.

        Args:
            metric: such as ``nl.patching.logit_difference(" good", " bad")``, or any function from
                logits to a scalar, which is then called for each prompt by itself.
            inputs: the prompts that the metric is measured on.
            scales: how far to steer; see ``steer``.
            texts: held-out texts whose predictions should not suffer; the prompts if None.
            mode: see ``steer``.
            positions: see ``steer``.
            controls: how many random directions, and how many of shuffled labels, where there are.
            batch_size: rows in one forward pass.
            seed: of the random directions and the bootstrap.

        Raises:
            InputError: dropout is on, a metric of another head, or another argument is not what it
                can be.
            DataError: texts that cannot be read or scored.
        """
        from neox_lab.steering.curve import evaluate_direction

        return evaluate_direction(
            self, metric, inputs, scales, texts, mode, positions, controls, batch_size, seed
        )

    @names_ours_of(*STEERED)
    def side_effects(
        self,
        scale: float = 1.0,
        tasks: Sequence[str] | None = None,
        *,
        mode: str = "add",
        positions: Places = "all",
        count: int = 100,
        seed: int = 0,
    ) -> SideEffects:
        """What steering does to the tasks of the small world, beside a random direction.

        Args:
            scale: see ``steer``.
            tasks: names of tasks, see ``nl.gym.tasks()``; None for all.
            mode: see ``steer``.
            positions: see ``steer``.
            count: prompts of each task.
            seed: of the prompts.

        Raises:
            InputError: an unknown task, a model with another head, or see ``steer``.
        """
        from neox_lab.steering.side_effects import side_effects

        return side_effects(self, scale, tasks, mode, positions, count, seed)

    @contextmanager
    def removed(self) -> Iterator[HookedModel]:
        """Ablate the direction from the residual stream, everywhere, for a ``with`` block.

        Whatever site it was found at: its component is taken away before and after every block,
        and, where blocks are sequential, between attention and MLP.

        Yields:
            The model.

        Raises:
            InputError: it has several vectors (see ``at``), or none of the residual stream.
        """
        from neox_lab.steering.removing import removed

        with removed(self) as model:
            yield model

    def remove_from_weights(self) -> HookedModel:
        """A copy of the model that cannot write along the direction, to use and to save.

        Embedding, ``attention.dense`` and ``mlp.dense_4h_to_h`` lose their component along it,
        biases too; tied embeddings are untied, for the unembedding only reads. The copy computes
        what the model computes within ``removed()``.

        Raises:
            InputError: it has several vectors (see ``at``), or none of the residual stream.
            HookError: a part of the model is no plain matrix, as with adapters.
        """
        from neox_lab.steering.removing import remove_from_weights

        return remove_from_weights(self)

    def save(self, path: StrPath) -> Path:
        """Write it, with its controls and which model it belongs to, for ``nl.steering.load``.

        Args:
            path: a safetensors file; one that is there is replaced when the new one is whole.

        Returns:
            Where it is.

        Raises:
            CheckpointError: the file cannot be written.
        """
        from neox_lab.steering.saving import save

        return save(self, path)

    def export(self, path: StrPath, layout: str) -> Path:
        """Write its vectors for another library.

        Args:
            path: the file.
            layout: ``"repeng"``, a GGUF control vector, which llama.cpp reads too; or
                ``"steering-vectors"``: ``SteeringVector(**torch.load(path))`` there.

        Returns:
            Where it is.

        Raises:
            InputError: an unknown layout, or sites that it cannot name.
            CheckpointError: the file cannot be written.
        """
        from neox_lab.steering.saving import export

        return export(self, path, layout)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each site: how long the direction is, and what it tells apart."""
        rows = [
            {
                "site": name,
                "norm": at.norm,
                "site_norm": at.site_norm,
                "relative": at.norm / at.site_norm,
                "separation": at.separation,
                "null": at.null,
            }
            for name, at in self.sites.items()
        ]
        return make_frame(rows)

    def view(self) -> View:
        """What the direction tells apart at each site, beside shuffled labels; or its length."""
        from neox_lab.views import BarsView, CurvesView, Line

        frame = self.frame
        names = [name.removeprefix("blocks.").replace(".hook_", " ") for name in frame["site"]]
        at = range(len(frame))
        title = f"Direction by {self.method}"
        if frame["separation"].isna().all():
            note = "How long it is. What it tells apart is unknown: four examples of each kind say."
            return BarsView(names, frame["norm"], title, note)
        if len(frame) == 1:
            shares = {"unseen examples": "separation", "shuffled labels": "null"}
            values = [*frame[list(shares.values())].iloc[0], 0.5]
            note = f"{names[0]}: how often a positive example lies beyond a negative one."
            return BarsView([*shares, "chance"], values, title, note)
        lines = {
            "separation of unseen examples": Line(at, frame["separation"]),
            "shuffled labels": Line(at, frame["null"]),
        }
        return CurvesView(title, lines, "site", "separation", names, {"chance": 0.5})


@names_ours_of(*STEERED)
@contextmanager
def steer(
    *directions: tuple[Direction, float], positions: Places = "all", mode: str = "add"
) -> Iterator[HookedModel]:
    """Steer along several directions at once.

        with nl.steering.steer((happy, 2.0), (formal, -1.0), positions="generated"):
            model.generate("The film was")

    They act in the order given; where two stand at one site, the second sees what the first made.

    Args:
        directions: pairs of a direction and its scale.
        positions: see ``Direction.steer``.
        mode: see ``Direction.steer``.

    Yields:
        The model.

    Raises:
        InputError: no pairs, directions of different models, or see ``Direction.steer``.
        HookNeverFiredError: at the end of the block, if the model ran past a site.
    """
    check("mode", mode, one_of(*MODES), InputError)
    where = Where.of(positions)
    for pair in directions:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Direction):
            raise InputError(f"got {shown(pair, 80)}; expected pairs of a direction and a scale")
    if not directions:
        raise InputError("no direction was given")
    model = directions[0][0].model
    if any(direction.model is not model for direction, _ in directions):
        raise InputError(
            "these directions are of different models; direction.on(model) moves one to another"
        )
    points = model.hook_points
    placement = Placement(points, (), ())
    for direction, scale in directions:
        scale = check("scale", scale, FINITE, InputError)
        for name, at in direction.sites.items():
            origin = 0.0 if math.isnan(at.origin) else at.origin
            edit = Edit(at.vector.to(model.device), mode, scale, origin)
            # At hook_embed no run has said where positions stand; the first block reads the same.
            there = "blocks.0.hook_resid_pre" if name == "hook_embed" else exact(name, points)
            placement.entries.append((there, [Steering(points[there], edit, where)]))
    with model.hook_stack.placed(placement, must_fire=True):
        yield model
