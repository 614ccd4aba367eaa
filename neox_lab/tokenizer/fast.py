"""``GPTNeoXTokenizerFast``: Hugging Face's tokenizer interface for GPT-NeoX and Pythia.

The Rust library does the work; the classes here decide what to ask of it and in which form to
answer: ``Vocabulary`` (tokens, ids, roles), ``Decoder`` (ids to text), ``Encoder`` (text to ids),
``ChatEncoder`` (conversations to text), and in this file how a tokenizer is built, loaded and
saved. Two things differ from transformers on purpose: character offsets are those of tokenizer.json
(a token's leading space is left out), and no call leaves a trace in the Rust tokenizer.

Threads: a tokenizer may be shared. Calls that encode text wait for one another; adding tokens
while other threads encode is safe too, but which of them see the new token is up to chance.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tokenizers import Tokenizer

from neox_lab.errors import CheckpointError, TokenizerError
from neox_lab.files import StrPath
from neox_lab.hub import HubOptions, PathOrId, refuse_revision, written
from neox_lab.hub_upload import upload
from neox_lab.kinship import Kin
from neox_lab.tokenizer import files, pipeline
from neox_lab.tokenizer.arguments import drop_of_others, named_arguments
from neox_lab.tokenizer.chat import ChatEncoder
from neox_lab.tokenizer.settings import DEFAULT_TOKENS, DEFAULTS, ROLES, SETTINGS, flag
from neox_lab.tokenizer.training import Corpus, learn
from neox_lab.tokenizer.vocabulary import TokenLike, row_of_ids

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from torch import Tensor

    from neox_lab.tokenizer.pipeline import Merge


UPLOAD_OPTIONS = (
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)


class GPTNeoXTokenizerFast(Kin, ChatEncoder):
    """Text to ids and back for the GPT-NeoX family (Black et al. 2022, arXiv:2204.06745).

    Build one with ``from_pretrained``, or from ``tokenizer_file=`` (a tokenizer.json),
    ``vocab_file=`` with ``merges_file=``, ``vocab=`` with ``merges=``, or ``tokenizer_object=`` (a
    ``tokenizers.Tokenizer``, which is copied). Settings are keyword arguments:

    Args:
        vocab_file: vocab.json of a byte-level vocabulary.
        merges_file: merges.txt that belongs to it.
        tokenizer_file: tokenizer.json.
        tokenizer_object: a Rust tokenizer.
        vocab: ids of a byte-level vocabulary by token, or the path of a vocab.json.
        merges: the merges that belong to it, as pairs or as the lines of a merges.txt, or its path.
        added_tokens_decoder: tokens by id that are added to the vocabulary where it lacks them.
        **settings: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token``, ``sep_token``,
            ``cls_token``, ``mask_token`` (a text, an ``AddedToken``, or None for none),
            ``extra_special_tokens`` (list, or a mapping from names to tokens), ``add_bos_token``,
            ``add_eos_token``, ``add_prefix_space``, ``trim_offsets``, ``split_special_tokens``,
            ``clean_up_tokenization_spaces`` (bool), ``padding_side``, ``truncation_side``
            ("right" or "left"), ``model_max_length`` (tokens), ``model_input_names`` (list),
            ``chat_template`` (see ``apply_chat_template``). Settings that only other tokenizers
            have are ignored with a warning.

    Attributes:
        is_fast: True, as in transformers.
        init_kwargs: the settings it was made with.
        name_or_path: where it was loaded from.

    Raises:
        TokenizerError: a setting or its value is unknown.
        CheckpointError: a file is missing or damaged.
    """

    kin_module: ClassVar[str] = "transformers.tokenization_utils_base"
    kin_name: ClassVar[str | None] = "PreTrainedTokenizerBase"
    is_fast = True
    name_or_path = ""
    vocab_files_names: ClassVar = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    init_inputs = ()
    init_kwargs: dict[str, Any]

    def __init__(
        self,
        vocab_file: StrPath | None = None,
        merges_file: StrPath | None = None,
        tokenizer_file: StrPath | None = None,
        *,
        tokenizer_object: Tokenizer | None = None,
        vocab: StrPath | Mapping[str, int] | None = None,
        merges: StrPath | Sequence[Merge] | None = None,
        added_tokens_decoder: Mapping[int, TokenLike] | None = None,
        **settings: Any,
    ) -> None:
        drop_of_others(settings, SETTINGS, type(self).__name__)
        if isinstance(vocab, Mapping):
            if any((vocab_file, merges_file, tokenizer_file, tokenizer_object)):
                raise TokenizerError("vocab= holds the whole vocabulary: give no file beside it.")
            settings = DEFAULT_TOKENS | settings
            backend = pipeline.from_vocabulary(vocab, merges)
        elif not isinstance(merges, str | os.PathLike | None):
            raise TokenizerError("merges= as a list needs vocab= as a dictionary.")
        else:
            backend = pipeline.load_backend(
                tokenizer_file, vocab_file or vocab, merges_file or merges, tokenizer_object
            )
        files.add_declared(backend, added_tokens_decoder or {})
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
        drop_of_others(kwargs, [*SETTINGS, *hub_names], f"{cls.__name__}.from_pretrained")
        path = Path(written(pretrained_model_name_or_path)).expanduser()
        if path.is_file():
            refuse_revision(path, options)
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
        except Exception as error:
            if type(error) is not Exception:  # what the Rust library raises is plain
                raise
            raise CheckpointError(
                f"The tokenizer of {tokenizer.name_or_path!r} is damaged: {error}"
            ) from error
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
        self._name_tokens(settings.get("model_specific_special_tokens") or {})
        for name in ("add_bos_token", "add_eos_token"):
            if settings.get(name) is not None:
                setattr(self, name, settings[name])
        self.init_kwargs = copy.deepcopy(foreign | settings | self.special_tokens_map)

    # --- special tokens around each text ----------------------------------------------------

    @property
    def add_bos_token(self) -> bool:
        """Whether a call puts ``bos_token`` before each text."""
        return self._frame()[0]

    @add_bos_token.setter
    def add_bos_token(self, add: bool) -> None:
        self._set_frame(self._can_add("bos_token", add), self.add_eos_token)

    @property
    def add_eos_token(self) -> bool:
        """Whether a call puts ``eos_token`` after each text."""
        return self._frame()[1]

    @add_eos_token.setter
    def add_eos_token(self, add: bool) -> None:
        self._set_frame(self.add_bos_token, self._can_add("eos_token", add))

    @property
    def add_prefix_space(self) -> bool:
        """Whether each text is read as if a space stood before it; given when loading."""
        return bool(pipeline.prefix_space(self._backend))

    @property
    def trim_offsets(self) -> bool:
        """Whether a token's characters leave out its leading space; given when loading."""
        return pipeline.trims_offsets(self._backend)

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int] | Tensor,
        token_ids_1: Sequence[int] | Tensor | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where a row of ids has a special token and 0 elsewhere, ``[pos]``.

        Args:
            token_ids_0: ids ``[pos]``.
            token_ids_1: ids of the second text, where special tokens are still to be added.
            already_has_special_tokens: the ids are those of a call. Else the mask is that of the
                row which a call would make of them.

        Raises:
            TokenizerError: there is a second text although special tokens are in place, or an id
                is negative or no integer.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise TokenizerError(
                    "With already_has_special_tokens=True both texts stand in token_ids_0: leave "
                    "token_ids_1 out."
                )
            special = set(self.all_special_ids)
            return [int(token_id in special) for token_id in row_of_ids(token_ids_0)]
        bos, eos = self._frame()
        texts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        around = [[1] * bos + [0] * len(row_of_ids(text)) + [1] * eos for text in texts]
        return list(itertools.chain.from_iterable(around))

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

    def _can_add(self, role: str, add: bool) -> bool:
        if flag(f"add_{role}", add) and role not in self.special_tokens_map:
            warnings.warn(
                f"There is no {role}, so none is added: set tokenizer.{role}, and then "
                f"tokenizer.add_{role} = True.",
                stacklevel=3,
            )
            return False
        return add

    def _set_frame(self, bos: bool, eos: bool) -> None:
        if (bos, eos) == self._frame():
            return
        pipeline.set_template(
            self._backend,
            (self.bos_token, self.bos_token_id) if bos and self.bos_token else None,
            (self.eos_token, self.eos_token_id) if eos and self.eos_token else None,
        )

    # --- saving -----------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: StrPath,
        filename_prefix: str | None = None,
        save_jinja_files: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **upload_options: Any,
    ) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat templates.

        All files are replaced as a whole or none is. The class written is transformers'
        ``PreTrainedTokenizerFast``, the one that follows tokenizer.json to the letter, so
        ``AutoTokenizer`` gives the same ids and offsets.

        Args:
            save_directory: where to; made if it is not there.
            filename_prefix: what the names of all files begin with, before a hyphen.
            save_jinja_files: write chat templates as files of their own, as transformers reads them
                since 4.51, rather than into tokenizer_config.json.
            push_to_hub: also upload the directory, see ``push_to_hub``.
            repo_id: where to; the directory's name where None.
            **upload_options: further arguments of ``push_to_hub``.

        Returns:
            The paths.

        Raises:
            CheckpointError: ``save_directory`` is a file, or the upload fails.
            TokenizerError: a template's name cannot be that of a file, or an argument is unknown.
            OSError: a file cannot be written.
        """
        drop_of_others(upload_options, UPLOAD_OPTIONS, "save_pretrained")
        settings = {name: getattr(self, name) for name in DEFAULTS}
        templates = files.template_files(settings, apart=save_jinja_files)
        settings = {name: value for name, value in settings.items() if value is not None}
        roles = self.special_tokens_map  # named tokens among them, as transformers writes them
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
        contents = {
            files.CONFIG_FILE: files.json_text(config),
            files.ROLES_FILE: files.json_text(roles | extra),
            **templates,
            "tokenizer.json": vocabulary,
        }
        directory = Path(save_directory)
        earlier = [] if filename_prefix else files.templates_in(directory)
        paths = files.write_all(directory, contents, filename_prefix, earlier)
        if push_to_hub:
            _upload(save_directory, repo_id or Path(save_directory).resolve().name, upload_options)
        return paths

    def push_to_hub(self, repo_id: str, **upload_options: Any) -> CommitInfo:
        """Upload the tokenizer's files to the Hugging Face hub, in one commit.

        Args:
            repo_id: ``"owner/name"``, or a name in one's own namespace; made if absent.
            **upload_options: ``commit_message``, ``commit_description``, ``private``, ``token``,
                ``revision``, ``create_pr``, ``tags``.

        Returns:
            What huggingface_hub says of the commit.

        Raises:
            CheckpointError: the hub cannot be reached or refuses.
            TokenizerError: an argument is unknown.
        """
        drop_of_others(upload_options, UPLOAD_OPTIONS, "push_to_hub")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return _upload(folder, repo_id, upload_options)

    @named_arguments
    def save_vocabulary(
        self, save_directory: StrPath, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and merges.txt alone, without the other stages and added tokens.

        Args:
            save_directory: where to; it must be there.
            filename_prefix: what the names of both begin with, before a hyphen.

        Returns:
            The paths.

        Raises:
            CheckpointError: ``save_directory`` is no directory.
            OSError: a file cannot be written.
        """
        if not Path(save_directory).is_dir():
            raise CheckpointError(f"There is no directory {os.fspath(save_directory)!r}.")
        with tempfile.TemporaryDirectory() as folder:
            saved = [Path(path) for path in self._backend.model.save(folder)]
            contents = {path.name: path.read_bytes().decode() for path in saved}
        return files.write_all(Path(save_directory), contents, filename_prefix)

    # --- another vocabulary -----------------------------------------------------------------

    def train_new_from_iterator(
        self,
        text_iterator: Corpus,
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[TokenLike] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A tokenizer with the same pipeline and settings and a vocabulary learnt from texts.

        Args:
            text_iterator: texts, or batches of texts.
            vocab_size: number of tokens to learn, special ones and the 256 bytes among them.
            length: how many texts there are, for the progress bar alone.
            new_special_tokens: special tokens beside those of this tokenizer.
            special_tokens_map: other names for special tokens of this tokenizer.
            **kwargs: arguments of ``tokenizers.trainers.BpeTrainer``, such as ``min_frequency`` and
                ``show_progress``.

        Returns:
            The new tokenizer; this one stays as it is.

        Raises:
            TokenizerError: the vocabulary is not made of merges, or an argument is unknown.
        """
        renamed = dict(special_tokens_map or {})
        added = list(new_special_tokens or [])
        backend = learn(self._backend, text_iterator, vocab_size, length, added, renamed, kwargs)
        settings = {name: getattr(self, name) for name in DEFAULTS}
        settings |= dict.fromkeys(ROLES)
        roles = {r: renamed.get(token, token) for r, token in self.special_tokens_map.items()}
        settings["model_specific_special_tokens"] = {name: roles.pop(name) for name in self._named}
        settings |= roles
        extra = [renamed.get(token, token) for token in self._extra]
        return type(self)(
            tokenizer_object=backend, extra_special_tokens=[*extra, *added], **settings
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, "
            f"vocab_size={self.vocab_size}, added={len(self) - self.vocab_size}, "
            f"special_tokens={self.special_tokens_map}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, model_max_length={self.model_max_length})"
        )


def _upload(folder: StrPath, repo_id: str, options: Mapping[str, Any]) -> CommitInfo:
    return upload(
        Path(folder),
        repo_id,
        message=options.get("commit_message") or "Upload tokenizer",
        description=options.get("commit_description"),
        private=options.get("private"),
        token=options.get("token"),
        revision=options.get("revision"),
        create_pr=options.get("create_pr", False),
        tags=options.get("tags") or (),
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
