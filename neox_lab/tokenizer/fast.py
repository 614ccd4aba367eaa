"""``GPTNeoXTokenizerFast``: Hugging Face's tokenizer interface for GPT-NeoX and Pythia.

The Rust library does the work; the classes here decide what to ask of it and in which form to
answer: ``Vocabulary`` (tokens, ids, roles), ``Decoder`` (ids to text), ``Encoder`` (text to ids),
and in this file how a tokenizer is built, loaded and saved. Two things differ from transformers
on purpose: character offsets are those of tokenizer.json (a token's leading space is left out),
and no call leaves a trace in the Rust tokenizer.

Threads: a tokenizer may be shared. Calls that encode text wait for one another; adding tokens
while other threads encode is safe too, but which of them see the new token is up to chance.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from neox_lab.errors import TokenizerError
from neox_lab.files import StrPath
from neox_lab.hub import HubOptions, PathOrId
from neox_lab.tokenizer import files, pipeline
from neox_lab.tokenizer.arguments import named_arguments, reject_unknown
from neox_lab.tokenizer.encoding import Encoder
from neox_lab.tokenizer.settings import DEFAULT_TOKENS, DEFAULTS, ROLES, SETTINGS, flag
from neox_lab.tokenizer.vocabulary import TokenLike


class GPTNeoXTokenizerFast(Encoder):
    """Text to ids and back for the GPT-NeoX family (Black et al. 2022, arXiv:2204.06745).

    Build one with ``from_pretrained``, or from ``tokenizer_file=`` (a tokenizer.json),
    ``vocab_file=`` with ``merges_file=``, or ``tokenizer_object=`` (a ``tokenizers.Tokenizer``,
    which is copied). Settings are keyword arguments:

    Args:
        vocab_file: vocab.json of a byte-level vocabulary.
        merges_file: merges.txt that belongs to it.
        tokenizer_file: tokenizer.json.
        tokenizer_object: a Rust tokenizer.
        **settings: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token``, ``sep_token``,
            ``cls_token``, ``mask_token`` (a text, an ``AddedToken``, or None for none),
            ``extra_special_tokens`` (list), ``add_bos_token``, ``add_eos_token``,
            ``add_prefix_space``, ``trim_offsets``, ``split_special_tokens``,
            ``clean_up_tokenization_spaces`` (bool), ``padding_side``, ``truncation_side``
            ("right" or "left"), ``model_max_length`` (tokens), ``model_input_names`` (list).

    Attributes:
        is_fast: True, as in transformers.
        name_or_path: where it was loaded from.

    Raises:
        TokenizerError: a setting or its value is unknown.
        CheckpointError: a file is missing or damaged.
    """

    is_fast = True
    name_or_path = ""

    def __init__(
        self,
        vocab_file: StrPath | None = None,
        merges_file: StrPath | None = None,
        tokenizer_file: StrPath | None = None,
        *,
        tokenizer_object: Tokenizer | None = None,
        **settings: Any,
    ) -> None:
        reject_unknown(settings, SETTINGS, type(self).__name__)
        backend = pipeline.load_backend(tokenizer_file, vocab_file, merges_file, tokenizer_object)
        self._start(backend, settings, foreign={})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: PathOrId, **kwargs: Any
    ) -> GPTNeoXTokenizerFast:
        """Load from a directory, a hub id, or one tokenizer.json.

        Args:
            pretrained_model_name_or_path: where it is; a single file is read alone, without the
                files beside it.
            **kwargs: settings, which win over those in the files, and the hub's options
                (``revision``, ``subfolder``, ``cache_dir``, ``force_download``,
                ``local_files_only``, ``token``).

        Raises:
            CheckpointError: files are missing or damaged.
            TokenizerError: a keyword argument or a setting is unknown.
        """
        options = HubOptions.take(kwargs)
        hub_names = {field.name for field in dataclasses.fields(HubOptions)} - {"pinned"}
        reject_unknown(kwargs, [*SETTINGS, *hub_names], f"{cls.__name__}.from_pretrained")
        path = Path(pretrained_model_name_or_path).expanduser()
        if path.is_file():
            backend = pipeline.load_backend(tokenizer_file=path)
            saved = files.interpret({}, {}, {})
        else:
            backend, saved = files.read_source(pretrained_model_name_or_path, options)
        tokenizer = cls.__new__(cls)
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        try:
            tokenizer._start(backend, saved.settings | kwargs, saved.foreign)
        except TokenizerError as error:  # the value may come from a file, so say which tokenizer
            raise TokenizerError(f"Tokenizer of {tokenizer.name_or_path!r}: {error}") from error
        return tokenizer

    def _start(self, backend: Tokenizer, settings: dict[str, Any], foreign: dict[str, Any]) -> None:
        """Take ``backend`` over and apply the settings."""
        super().__init__(backend)
        self._foreign = foreign
        baked = _baked_in(backend)
        settings = dict(settings)
        if "additional_special_tokens" in settings:
            settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        for name, default in (DEFAULTS | baked).items():
            if name in DEFAULTS:
                value = settings.get(name)
                setattr(self, name, default if value is None else value)
        for name, current, change in (
            ("add_prefix_space", pipeline.prefix_space, pipeline.set_prefix_space),
            ("trim_offsets", pipeline.trims_offsets, pipeline.set_trimming),
        ):
            wanted = settings.get(name)
            if wanted is not None and flag(name, wanted) != bool(current(backend)):
                change(backend, wanted)
        for role in ROLES:
            default = baked.get(role, DEFAULT_TOKENS.get(role))
            if default is not None and backend.token_to_id(default) is None:
                default = None
            self._fill(role, settings.get(role, default))
        self.extra_special_tokens = settings.get("extra_special_tokens")
        for name in ("add_bos_token", "add_eos_token"):
            if settings.get(name) is not None:
                setattr(self, name, settings[name])

    # --- special tokens around each text ----------------------------------------------------

    @property
    def add_bos_token(self) -> bool:
        """Whether a call puts ``bos_token`` before each text."""
        return self._frame()[0]

    @add_bos_token.setter
    def add_bos_token(self, add: bool) -> None:
        self._set_frame(flag("add_bos_token", add), self.add_eos_token)

    @property
    def add_eos_token(self) -> bool:
        """Whether a call puts ``eos_token`` after each text."""
        return self._frame()[1]

    @add_eos_token.setter
    def add_eos_token(self, add: bool) -> None:
        self._set_frame(self.add_bos_token, flag("add_eos_token", add))

    @property
    def add_prefix_space(self) -> bool:
        """Whether each text is read as if a space stood before it; given when loading."""
        return bool(pipeline.prefix_space(self._backend))

    def set_special_token(self, role: str, token: TokenLike | None) -> None:
        """Let ``token`` play ``role``; where calls add that role's token, they add the new one."""
        bos, eos = self._frame()
        super().set_special_token(role, token)
        if (role == "bos_token" and bos) or (role == "eos_token" and eos):
            self._set_frame(bos and self.bos_token is not None, eos and self.eos_token is not None)

    def _frame(self) -> tuple[bool, bool]:
        """Whether the post-processor adds bos and eos, found by looking at what it does."""
        with pipeline.encoding_state(self._backend):
            encoding = self._backend.encode("a")
        special, ids = encoding.special_tokens_mask, encoding.ids
        bos = bool(ids) and bool(special[0]) and ids[0] == self.bos_token_id
        eos = bool(ids) and bool(special[-1]) and ids[-1] == self.eos_token_id
        return bos, eos

    def _set_frame(self, bos: bool, eos: bool) -> None:
        if (bos, eos) == self._frame():
            return
        for wanted, role in ((bos, "bos_token"), (eos, "eos_token")):
            if wanted and self.special_tokens_map.get(role) is None:
                raise TokenizerError(f"There is no {role} to add: set tokenizer.{role} first.")
        pipeline.set_template(
            self._backend,
            (self.bos_token, self.bos_token_id) if bos and self.bos_token else None,
            (self.eos_token, self.eos_token_id) if eos and self.eos_token else None,
        )

    # --- saving -----------------------------------------------------------------------------

    @named_arguments
    def save_pretrained(self, save_directory: StrPath) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

        All files are replaced as a whole or none is. The class written is transformers'
        ``PreTrainedTokenizerFast``, the one that follows tokenizer.json to the letter, so
        ``AutoTokenizer`` gives the same ids and offsets.

        Returns:
            The paths.

        Raises:
            CheckpointError: ``save_directory`` is a file.
            OSError: a file cannot be written.
        """
        settings = {name: getattr(self, name) for name in DEFAULTS}
        roles = self.special_tokens_map
        extra = {"additional_special_tokens": self._extra} if self._extra else {}
        config = {
            **self._foreign,
            **settings,
            **dict.fromkeys(DEFAULT_TOKENS),
            **roles,
            **extra,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": self.add_prefix_space,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        with pipeline.encoding_state(self._backend):
            vocabulary = self._backend.to_str(pretty=True)
        return files.write_all(
            Path(save_directory),
            [
                ("tokenizer.json", vocabulary),
                (files.CONFIG_FILE, files.json_text(config)),
                (files.ROLES_FILE, files.json_text(roles | extra)),
            ],
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, added={len(self) - self.vocab_size}, "
            f"special_tokens={self.special_tokens_map}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, model_max_length={self.model_max_length})"
        )


def _baked_in(backend: Tokenizer) -> dict[str, Any]:
    """Settings kept inside tokenizer.json, where a tool saved its last call; they are cleared."""
    baked: dict[str, Any] = {}
    if backend.truncation is not None:
        baked["truncation_side"] = backend.truncation["direction"]
        backend.no_truncation()
    if backend.padding is not None:
        baked["padding_side"] = backend.padding["direction"]
        baked["pad_token"] = backend.padding["pad_token"]
        backend.no_padding()
    return baked
