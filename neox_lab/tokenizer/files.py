"""The files of a tokenizer: reading what a directory says, writing one back.

``tokenizer.json`` holds the whole Rust tokenizer. ``tokenizer_config.json`` beside it holds what
the Rust library does not know: lengths, sides, and which token plays which role. Older tools
also wrote ``special_tokens_map.json`` and ``added_tokens.json``; both are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from neox_lab.errors import CheckpointError, TokenizerError
from neox_lab.files import read_json, staged_files
from neox_lab.hub import (
    HubOptions,
    PathOrId,
    check_no_save_was_killed,
    find_file,
    list_files,
    local_directory,
    pin,
)
from neox_lab.tokenizer.pipeline import load_backend
from neox_lab.tokenizer.settings import ROLES, SETTINGS
from neox_lab.tokenizer.vocabulary import TokenLike

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
CONFIG_FILE = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

# Written by other tools about themselves; they would be untrue in a file of ours.
_NOT_KEPT = {
    "added_tokens_decoder",
    "auto_map",
    "backend",
    "init_inputs",
    "is_local",
    "local_files_only",
    "merges_file",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_class",
    "tokenizer_file",
    "vocab_file",
}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the files beside a vocabulary say.

    Attributes:
        settings: constructor arguments.
        foreign: keys that mean nothing here and are written back on save.
        added: tokens that must exist, by id.
    """

    settings: dict[str, Any]
    foreign: dict[str, Any]
    added: dict[int, TokenLike]


def interpret(config: dict[str, Any], roles: dict[str, Any], added: dict[str, Any]) -> Saved:
    """Read the contents of tokenizer_config.json, special_tokens_map.json, added_tokens.json.

    The two older files count only where the newer ``added_tokens_decoder`` is absent, as in
    transformers. Two settings are not taken from files: ``clean_up_tokenization_spaces``, which
    transformers 4 wrote as true without anyone asking and which would make decoding lossy, and
    ``add_bos_token``/``add_eos_token`` when false, because tokenizer.json says so itself.
    """
    declared = config.get("added_tokens_decoder")
    if declared is None:
        config = config | roles
        special = {_content(config.get(role)) for role in ROLES}
        tokens: dict[int, TokenLike] = {
            int(token_id): AddedToken(text, special=text in special, normalized=text not in special)
            for text, token_id in added.items()
        }
    else:
        tokens = {int(token_id): _token(value) for token_id, value in declared.items()}
    settings = {name: value for name, value in config.items() if name in SETTINGS}
    settings.pop("clean_up_tokenization_spaces", None)
    for name in ("add_bos_token", "add_eos_token"):
        if not settings.get(name):
            settings.pop(name, None)
    for role in ROLES:
        if isinstance(settings.get(role), dict):
            settings[role] = _token(settings[role] | {"special": True})
    extra = settings.pop("additional_special_tokens", None) or settings.get("extra_special_tokens")
    if isinstance(extra, list):
        extra = [_token(token) for token in extra]
    settings["extra_special_tokens"] = extra
    named = {
        name: _token(value)
        for name, value in config.items()
        if name.endswith("_token") and name not in SETTINGS and isinstance(value, str | dict)
    }
    if named:
        settings["model_specific_special_tokens"] = named | (
            settings.get("model_specific_special_tokens") or {}
        )
    known = _NOT_KEPT.union(SETTINGS, named)
    foreign = {name: value for name, value in config.items() if name not in known}
    return Saved(settings, foreign, tokens)


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


def _token(value: object) -> str | AddedToken:
    """An added token from its JSON form; texts stay texts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no token")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{flag: value[flag] for flag in flags if flag in value})


def add_declared(backend: Tokenizer, added: Mapping[int, TokenLike]) -> None:
    """Add the tokens that the files declare and ``backend`` lacks, in order of their ids.

    Raises:
        CheckpointError: a token would get another id than declared.
    """
    for token_id, token in sorted(added.items()):
        if backend.token_to_id(str(token)) is None:
            backend.add_tokens([token])
        if (given := backend.token_to_id(str(token))) != token_id:
            raise CheckpointError(
                f"The files declare the added token {str(token)!r} with id {token_id}, but in this "
                f"vocabulary it has id {given}: tokenizer.json and {CONFIG_FILE} do not belong "
                "together."
            )


def json_text(content: dict[str, Any]) -> str:
    """JSON as it is written to files: sorted, readable, in Unicode."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def template_files(settings: dict[str, Any], apart: bool) -> dict[str, str]:
    """Chat templates by file; those that get one are taken out of ``settings``.

    Args:
        settings: what goes into tokenizer_config.json; changed in place.
        apart: whether templates are files of their own. In tokenizer_config.json several are a
            list, as in transformers.

    Raises:
        TokenizerError: a template's name cannot be that of a file.
    """
    templates = settings.pop("chat_template")
    if templates is None:
        return {}
    if not apart:
        listed = isinstance(templates, dict)
        settings["chat_template"] = (
            [{"name": name, "template": text} for name, text in templates.items()]
            if listed
            else templates
        )
        return {}
    if isinstance(templates, str):
        return {TEMPLATE_FILE: templates}
    for name in templates:
        if not re.fullmatch(r"[^/\\\0]+", name) or name in (".", ".."):
            raise TokenizerError(f"chat_template: {name!r} cannot be the name of a file.")
    return {
        TEMPLATE_FILE if name == "default" else f"{TEMPLATE_FOLDER}/{name}.jinja": text
        for name, text in templates.items()
    }


def templates_in(directory: Path) -> list[Path]:
    """The chat templates that an earlier save left as files of their own."""
    further = (directory / TEMPLATE_FOLDER).glob("*.jinja")
    return [path for path in (directory / TEMPLATE_FILE, *further) if path.is_file()]


def write_all(
    directory: Path,
    contents: Mapping[str, str],
    prefix: str | None = None,
    instead_of: Iterable[Path] = (),
) -> tuple[str, ...]:
    """Write named texts into ``directory``, all or none of them.

    Args:
        directory: where to; made if it is not there.
        contents: texts by name of file; last that without which the others are not read.
        prefix: what the names begin with, before a hyphen.
        instead_of: files of an earlier save that go, unless they are written again.

    Returns:
        Their paths.

    Raises:
        CheckpointError: ``directory`` is a file.
        OSError: a file cannot be written.
    """
    if directory.is_file():
        raise CheckpointError(f"{str(directory)!r} is a file: give a directory to save into.")
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with staged_files() as stage:
        for name, text in contents.items():
            path = directory / (f"{prefix}-{name}" if prefix else name)
            path.parent.mkdir(exist_ok=True)
            stage(path).write_text(text, encoding="utf-8")
            paths.append(str(path))
        for path in instead_of:
            if str(path) not in paths:
                stage.remove(path)
    return tuple(paths)


def read_source(source: PathOrId, options: HubOptions) -> tuple[Tokenizer, Saved]:
    """The Rust tokenizer of a directory or hub id, and what the files beside it say.

    Raises:
        CheckpointError: there is no tokenizer, or its files are damaged.
    """
    options = pin(source, options)

    def find(name: str) -> Path | None:
        return find_file(source, name, options, required=False)

    tokenizer_file, vocab_file, merges_file = map(find, VOCABULARY_FILES)
    if tokenizer_file is None:
        check_no_save_was_killed(source, options, *VOCABULARY_FILES)
    if tokenizer_file is not None:
        backend = load_backend(tokenizer_file=tokenizer_file)
    elif vocab_file is not None and merges_file is not None:
        backend = load_backend(vocab_file=vocab_file, merges_file=merges_file)
    else:
        raise CheckpointError(
            f"{os.fspath(source)!r} has no tokenizer.json, nor vocab.json with merges.txt. It "
            f"holds: {', '.join(list_files(source, options)) or 'nothing'}. SentencePiece models "
            "(*.model) are not GPT-NeoX tokenizers and cannot be read. A model that was saved here "
            "has one once model.tokenizer.save_pretrained(folder) has written it beside."
        )
    beside = [find(name) for name in (CONFIG_FILE, ROLES_FILE, ADDED_FILE)]
    config, roles, added = [{} if path is None else read_json(path) for path in beside]
    try:
        saved = interpret(config, roles, added)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{CONFIG_FILE}, {ROLES_FILE} or {ADDED_FILE} of {os.fspath(source)!r} describes a "
            f"token in an unknown form ({type(error).__name__}: {error})."
        ) from error
    add_declared(backend, saved.added)
    if templates := _read_templates(source, options):
        alone = list(templates) == ["default"]
        saved.settings["chat_template"] = templates["default"] if alone else templates
    return backend, saved


def _read_templates(source: PathOrId, options: HubOptions) -> dict[str, str]:
    """Chat templates by name that are files of their own.

    The hub is asked for further ones only where there is a first, which spares every other load a
    request.

    Raises:
        CheckpointError: a file holds no text.
    """
    paths = {"default": find_file(source, TEMPLATE_FILE, options, required=False)}
    if paths["default"] is not None or local_directory(source) is not None:
        folder = os.path.join(options.subfolder, TEMPLATE_FOLDER)
        inside = dataclasses.replace(options, subfolder=folder)
        for name in list_files(source, inside):
            if name.endswith(".jinja"):
                paths[name.removesuffix(".jinja")] = find_file(source, name, inside)
    try:
        return {
            n: path.read_text(encoding="utf-8") for n, path in paths.items() if path is not None
        }
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"A chat template of {os.fspath(source)!r} is no text: {error}."
        ) from error
