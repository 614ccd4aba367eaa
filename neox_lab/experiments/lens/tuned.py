"""The tuned lens: each stream is translated into the language of the last layer, then read.

    training = nl.lens.TunedLens.train(model, texts)      # how good it is, beside the logit lens
    nl.lens.tuned_lens(model, "The people of the", training.lens)

Early layers do not write as the last one does: their streams have other means and other
directions, and what the logit lens reads there is partly noise. For every layer a tuned lens has an
affine map, trained so that what is read after it is as close as can be to what the model says in
the end (Belrose et al. 2023, arXiv:2303.08112). What it reads is what could be said, given a
translation, not what later layers do with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, SWITCH, TEXT, Kind, check, one_of, require_model, shown
from neox_lab.errors import CheckpointError, InputError
from neox_lab.experiments.lens import tuned_files
from neox_lab.experiments.lens.reading import ENDS, read
from neox_lab.experiments.lens.result import LensResult
from neox_lab.experiments.lens.streams import Texts, documents, require_end
from neox_lab.experiments.lens.tuned_result import TunedLensResult, measured
from neox_lab.hub import HubOptions, PathOrId
from neox_lab.model.identity import Identity, identity, refuse_another
from neox_lab.notices import tell

if TYPE_CHECKING:
    from neox_lab.experiments.patching.progress_report import ProgressReport
    from neox_lab.family.contract import HookedModel, LanguageModel
    from neox_lab.family.text import Inputs

SITES = Kind(
    f"one of {', '.join(ENDS)}: a tuned lens translates the residual stream between blocks; "
    "logit_lens reads other sites",
    lambda value: isinstance(value, str) and value in ENDS,
    ENDS,
)


@dataclass(eq=False)
class TunedLens:
    """A translator ``h + W_i h + b_i`` for the stream before each layer.

    Attributes:
        weight: ``W_i``, ``[layer, d_model, d_model]``, float32.
        bias: ``b_i``, ``[layer, d_model]``.
        identity: of the model that it was trained on; None of published files, which do not say.
        any_revision: whether it may read other weights of the same structure, such as another
            training step. What it reads is then named "Tuned lens of other weights".
        base_model: what its files call the model.
        base_revision: which revision, where they say so.
        unembed_hash: the few digits that published files note of its unembedding.
    """

    weight: Tensor
    bias: Tensor
    identity: Identity | None = None
    any_revision: bool = False
    base_model: str | None = None
    base_revision: str | None = None
    unembed_hash: str | None = None

    def __repr__(self) -> str:
        """Of which model, and how large."""
        layers, width = self.bias.shape
        return f"TunedLens(base_model={self.base_model!r}, layers={layers}, d_model={width})"

    def translate(self, stream: Tensor, layer: int) -> Tensor:
        """The stream before a layer, in the language of the last one.

        Args:
            stream: ``[.., d_model]``; computed in float32 at least and given back in its dtype.
            layer: which one.
        """
        wide = stream.to(self.weight.dtype) if stream.itemsize < 4 else stream
        weight, bias = self.weight[layer].to(wide), self.bias[layer].to(wide)
        return (wide + wide @ weight.T + bias).to(stream.dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: PathOrId,
        model: HookedModel,
        *,
        revision: str | None = None,
        subfolder: str = "",
        repo_type: str = "model",
        any_revision: bool = False,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> TunedLens:
        """A lens from files: the published ``config.json`` and ``params.pt``, or ours.

        The lenses of Belrose et al. are in a Space of the hub, one folder for each model::

            TunedLens.from_pretrained(
                "AlignmentResearch/tuned-lens", model, repo_type="space",
                subfolder="lens/EleutherAI/pythia-70m-deduped")

        Args:
            source: a directory, or an id on the hub.
            model: the model that it is for. Files of ours know it. Published ones know its width,
                its number of layers and a few digits of its unembedding; where these digits differ
                there is a warning.
            revision: of the files, not of the model.
            subfolder: folder below ``source``.
            repo_type: ``model``, ``space`` or ``dataset``.
            any_revision: take it though it was trained on other weights of this structure.
            cache_dir: where downloads are kept.
            local_files_only: use the cache and never the network.
            token: access token.

        Raises:
            CheckpointError: there is none, it is damaged, its numbers are not finite, it would run
                code, or it is for another model.
            InputError: an unknown ``repo_type``, or an argument of another kind.
        """
        require_model(model)
        check("repo_type", repo_type, one_of("model", "space", "dataset"), InputError)
        check("any_revision", any_revision, SWITCH, InputError)
        check("subfolder", subfolder, TEXT, InputError)
        options = HubOptions(
            revision, subfolder, cache_dir, False, local_files_only, token, False, repo_type
        )
        stored = tuned_files.read(source, options)
        lens = cls._of(stored)
        lens.any_revision = any_revision
        lens.is_at_home(model)
        noted = lens.unembed_hash
        unembed = model.get_output_embeddings()
        if lens.identity is None and noted and unembed is not None and not any_revision:
            if tuned_files.unembed_hash(unembed.weight) != noted:
                tell(
                    f"The lens in {os.fspath(source)!r} notes another unembedding than this "
                    f"model's; it was trained on {lens.base_model!r}, revision "
                    f"{lens.base_revision!r}."
                )
        return lens

    @classmethod
    def _of(cls, stored: tuned_files.Stored) -> TunedLens:
        """A lens of what is stored of it."""
        names = ("base_model_name_or_path", "base_model_revision", "unembed_hash")
        told = (stored.told.get(name) for name in names)
        return cls(stored.weight, stored.bias, stored.identity, False, *told)

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        format: Literal["safetensors", "published"] = "safetensors",
    ) -> None:
        """Write the lens; a lens that was there stays until the new one is whole.

        Args:
            directory: where; it is made if need be.
            format: ``safetensors`` is one file, which knows the model; ``published`` is
                ``config.json`` and ``params.pt``, for other programs.

        Raises:
            InputError: an unknown format, or no path.
            CheckpointError: it cannot be written, or other things of these names are there.
        """
        check("format", format, one_of("safetensors", "published"), InputError)
        told = {
            "base_model_name_or_path": self.base_model,
            "base_model_revision": self.base_revision,
            "unembed_hash": self.unembed_hash,
        }
        stored = tuned_files.Stored(self.weight, self.bias, told, self.identity)
        tuned_files.write(directory, stored, format == "published")

    def is_at_home(self, model: HookedModel) -> bool:
        """Whether this is the model that the lens was trained on, as far as anybody knows.

        Args:
            model: which one.

        Returns:
            False for other weights of the same structure, where ``any_revision`` allows them.

        Raises:
            CheckpointError: it is for another model.
        """
        layers, width = self.bias.shape
        config = model.config
        if (layers, width) != (config.num_hidden_layers, config.hidden_size):
            raise CheckpointError(
                f"The lens is for {layers} layers of width {width}; this model has "
                f"{config.num_hidden_layers} of width {config.hidden_size}."
            )
        if self.identity is None:
            return True
        now = identity(model)
        same = self.identity.weights == now.weights
        if same or self.any_revision or self.identity.structure != now.structure:
            refuse_another(self.identity._replace(weights=now.weights), now, "The lens")
            return same
        raise CheckpointError(
            "The lens was trained on other weights of this structure, such as another revision. If "
            "it shall read these: lens.any_revision = True."
        )

    @classmethod
    def train(
        cls,
        model: LanguageModel,
        texts: Texts,
        *,
        to: str | os.PathLike[str] | None = None,
        steps: int = 250,
        tokens_per_step: int = 2**12,
        length: int | None = None,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-3,
        held_out: float = 0.1,
        batch_size: int = 8,
        seed: int = 0,
        precision: Literal["float32", "bfloat16"] = "float32",
        progress: bool | ProgressReport = True,
    ) -> TunedLensResult:
        """Train a lens, all layers from one pass over the hidden states.

        The recipe is the published one, so a published lens and one of ours can be compared: the
        loss of each layer is KL(what the model says || what the lens reads) at the same position,
        a mean over tokens; SGD with Nesterov's momentum of 0.9; a learning rate of 0.1 that falls
        in a line to zero; weight decay, which pulls towards the logit lens, also of the biases;
        the gradient of all translators together cut to a norm of 1. Published lenses took 250
        steps of 2**18 tokens of the Pile's validation texts, in sequences of 2,048, in bfloat16.
        By default it is 2**12 tokens here, in float32. Documents are not joined to longer
        sequences, and long ones are cut. Where they have fewer tokens together than one step reads,
        a ``NeoxLabWarning`` says how often a step reads them. The built-in model takes about a
        minute for 100 steps of 2**11 tokens on one core, so try small numbers first.

        No tensor ``[token, vocab]`` exists for more than a piece of the tokens.

        Args:
            model: a ``GPTNeoXForCausalLM``; its weights stay as they are.
            texts: the documents: a list of texts, token ids ``[batch, pos]``, or a dict of
                ``input_ids`` and ``attention_mask``; some thousand tokens at least.
            to: a folder for the state and the lens. Training that was stopped or killed goes on
                from there, and ends with the same numbers.
            steps: of the optimiser.
            tokens_per_step: at least so many; published 2**18.
            length: tokens that the model reads at once; None for as many as it was made for, 2,048
                at most.
            learning_rate: of the first step.
            weight_decay: as of ``torch.optim.SGD``.
            held_out: share of the documents that is kept to measure with.
            batch_size: sequences in one forward pass.
            seed: of the order of the documents and of which are held out.
            precision: of products with the unembedding, which take nearly all of the time.
                ``bfloat16`` as published; faster where the device multiplies such numbers.
            progress: show how far it has got; or a function that is told the steps done and all
                steps, and may raise KeyboardInterrupt.

        Returns:
            How close each layer comes on the held-out documents; ``.lens`` is the lens.

        Raises:
            InputError: an argument out of range, dropout is on, a model without an unembedding, or
                the loss is not finite.
            DataError: fewer than two documents.
            CheckpointError: the folder holds something else, or another training.
            TokenizerError: texts, and the model has no tokenizer.
            HookError: hooks, PyTorch hooks or spliced functions stand in the final layer norm or
                the unembedding.
        """
        from neox_lab.experiments.lens.tuned_training import Recipe, train

        recipe = Recipe(
            steps,
            tokens_per_step,
            length,
            learning_rate,
            weight_decay,
            held_out,
            batch_size,
            seed,
            precision,
        ).checked()
        require_end(model)
        if not callable(progress):
            check("progress", progress, SWITCH, InputError)
        rows = documents(model, texts)
        with torch.inference_mode(False), torch.enable_grad():
            trained = train(model, rows, recipe, to, progress)
        lens = cls._of(trained.lens)
        return lens._measured(model, trained.held_out, recipe.batch_size, seed, trained.losses)

    def evaluate(
        self, model: LanguageModel, texts: Texts, *, batch_size: int = 8, seed: int = 0
    ) -> TunedLensResult:
        """How close each layer of the lens comes to what the model says, beside the logit lens.

        Args:
            model: the one that it was trained on, or with ``any_revision`` another revision.
            texts: documents that it was not trained on, as ``train`` takes them.
            batch_size: sequences in one forward pass.
            seed: of the bootstrap over documents.

        Raises:
            InputError: an argument out of range, no document, or dropout is on.
            CheckpointError: the lens is for another model.
            TokenizerError: texts, and the model has no tokenizer.
            HookError: hooks, PyTorch hooks or spliced functions stand in the final layer norm or
                the unembedding.
        """
        batch_size = check("batch_size", batch_size, COUNT, InputError)
        seed = check("seed", seed, SEED, InputError)
        require_end(model)
        self.is_at_home(model)
        rows = documents(model, texts)
        if not rows:
            raise InputError("There is no document with a token to measure on.")
        return self._measured(model, rows, batch_size, seed, [])

    def _measured(
        self,
        model: LanguageModel,
        rows: list[list[int]],
        batch_size: int,
        seed: int,
        losses: list[float],
    ) -> TunedLensResult:
        frame = measured(self.translate, model, rows, batch_size, seed)
        return TunedLensResult(self, frame, losses, len(rows), sum(map(len, rows)))


def tuned_lens(
    model: HookedModel,
    inputs: Inputs,
    lens: TunedLens,
    site: str = "resid_pre",
    *,
    watch: Sequence[str | int] = (),
    top_k: int = 5,
) -> LensResult:
    """Read predictions off the residual stream, each row translated by a tuned lens.

    It sees what hooks do (``with model.hooks(...)``), as the logit lens does.

    Args:
        model: the one that the lens is for; see ``TunedLens.any_revision``.
        inputs: a string, a list of strings, or token ids ``[batch, pos]``.
        lens: from ``TunedLens.train`` or ``TunedLens.from_pretrained``.
        site: ``resid_pre`` (before each block, and at the end) or ``resid_post``. The stream after
            a block is the one before the next, and is translated as that.
        watch: tokens to follow, as strings of exactly one token or as ids.
        top_k: how many of the likeliest tokens to keep.

    Returns:
        A row of predictions for each layer; the last is the model's own.

    Raises:
        InputError: another site, ``lens`` is no lens, a model without an unembedding, or a watched
            id or ``top_k`` out of range.
        CheckpointError: the lens is for another model.
        HookError: a function is spliced in, or a hook that may change something is placed, above
            the last block; or there are PyTorch hooks that reading a layer early would skip.
        TokenizerError: a watched string is not exactly one token.
    """
    require_model(model)
    if not isinstance(lens, TunedLens):
        held = isinstance(getattr(lens, "lens", None), TunedLens)
        hint = " What TunedLens.train returned has it as .lens." if held else ""
        raise InputError(f"lens={shown(lens)}; expected a TunedLens.{hint}")
    check("site", site, SITES, InputError)
    name = "Tuned lens" if lens.is_at_home(model) else "Tuned lens of other weights"
    first = 1 if site == "resid_post" else 0
    return read(
        model,
        inputs,
        site,
        watch=watch,
        top_k=top_k,
        name=name,
        translate=lambda stream, row: lens.translate(stream, row + first),
    )
