"""Where the files of a checkpoint come from: a directory, or the Hugging Face hub.

A *source* is a directory (which never touches the network) or a hub id such as
``EleutherAI/pythia-70m``. ``find_file`` turns a source and a file name into a path. A hub
branch or tag can move while its files are fetched one by one, so a load of several files
first calls ``pin``, which replaces the revision by the commit it stands for now::

    options = pin("EleutherAI/pythia-70m", HubOptions(revision="step3000"))
    config_path = find_file("EleutherAI/pythia-70m", "config.json", options)

Downloading, the cache and access tokens are the ``huggingface_hub`` library's, so a file
fetched by any other tool is not fetched again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from pathlib import Path
from typing import Any

from neox_lab.checks import TEXT, check, or_none, shown
from neox_lab.errors import CheckpointError, nearest
from neox_lab.files import set_aside, write_bytes, write_text
from neox_lab.hub_answers import check_bytes, check_commit, check_etag, check_name, is_commit
from neox_lab.hub_models import nearest_models
from neox_lab.steps import nearest_revisions

logger = logging.getLogger("neox_lab")

PathOrId = str | os.PathLike[str]
"""Where a checkpoint is: a directory, or an id on the hub."""

_RESOLVE_TIMEOUT = 10.0  # seconds; a hub slower than this counts as out of reach
_LAST_TIMEOUT = 60.0  # of a second try, for a file that is asked for


@dataclasses.dataclass(frozen=True)
class HubOptions:
    """How to fetch files from the hub; everything but ``subfolder`` is idle for a directory.

    Attributes:
        revision: branch, tag (``"step3000"``) or commit; None means ``"main"``. A directory has no
            other.
        subfolder: folder below the source that holds the files.
        cache_dir: where downloads are kept; None means huggingface_hub's own cache.
        force_download: fetch again even what the cache holds.
        local_files_only: use the cache and never the network.
        token: access token; True for the stored one, False for none.
        pinned: set by ``pin``: ``revision`` is a commit the hub or the cache has confirmed.
        repo_type: ``model``, ``dataset`` or ``space``: what the id names.
    """

    revision: str | None = None
    subfolder: str = ""
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False
    token: str | bool | None = None
    pinned: bool = False
    repo_type: str = "model"

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> HubOptions:
        """Build the options from ``kwargs``, removing the entries that were used."""
        names = [field.name for field in dataclasses.fields(cls)]
        taken = {name: kwargs.pop(name) for name in names if name in kwargs}
        if taken.get("subfolder", "") is None:
            taken["subfolder"] = ""
        return cls(**taken)


DEFAULTS = HubOptions()
_ADDRESS = re.compile(
    r"(?:https?://[^/]+/)?(\w[\w.-]*/\w[\w.-]*?)(?:/?|/(?:tree|blob|resolve)/.*)?"
)
"""A hub id within the address of its page, or with a slash behind it."""


def written(source: PathOrId) -> str:
    """``source`` as a string.

    Raises:
        CheckpointError: it is neither a string nor a path.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"{shown(source)} names no checkpoint: give a directory, or an id on the hub such as "
            "'EleutherAI/pythia-70m'."
        )
    return os.fspath(source)


def local_directory(source: PathOrId) -> Path | None:
    """The directory that ``source`` names, or None when it is a hub id.

    Raises:
        CheckpointError: it can be neither: a file, or a path to nothing.
    """
    text = written(source)
    path = Path(text).expanduser()
    if text and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise CheckpointError(f"{text!r} is a file: give the directory that holds it.")
    looks_like_path = text.startswith(("/", ".", "~")) or "\\" in text or text.count("/") > 1
    if looks_like_path or not text or isinstance(source, Path):
        if id_in_it := _ADDRESS.fullmatch(text):
            raise CheckpointError(
                f"There is no directory {shown(text)}. Of a model on the hub give the id alone: "
                f"{id_in_it[1]!r}."
            )
        siblings = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        raise CheckpointError(f"There is no directory {shown(text)}.{nearest(path.name, siblings)}")
    return None


def pin(source: PathOrId, options: HubOptions = DEFAULTS) -> HubOptions:
    """The same options with ``revision`` replaced by the commit it stands for now.

    One request to the hub. Where the hub cannot be reached, the commit last seen is taken
    from the cache and the options returned no longer use the network. Directories, and
    commits that are already cached, need nothing.

    Raises:
        CheckpointError: neither the hub nor the cache knows the id and revision, or a revision of
            a directory is asked for.
    """
    if options.pinned:
        return options
    directory = local_directory(source)
    if directory is not None:
        refuse_revision(directory, options)
        return options
    check("revision", options.revision, or_none(TEXT), CheckpointError)
    repository, revision = os.fspath(source), options.revision or "main"
    check_name(revision, "revision")
    cache = repository_cache(repository, options)
    if is_commit(revision) and (cache / "snapshots" / revision).is_dir():
        return dataclasses.replace(options, pinned=True)
    if not network_allowed(options):
        return _pin_to_cache(repository, revision, cache, options, error=None)

    from huggingface_hub import HfApi

    try:
        info = HfApi(token=options.token).repo_info(
            repository,
            revision=revision,
            repo_type=options.repo_type,
            timeout=_RESOLVE_TIMEOUT,
        )
    except Exception as error:  # each version of huggingface_hub has other network errors
        if hub_answered(error):
            raise explained(error, repository, revision) from error
        return _pin_to_cache(repository, revision, cache, options, error)
    commit = check_commit(info.sha, hub_of(repository))
    _remember(cache, revision, commit)
    return dataclasses.replace(options, revision=commit, pinned=True)


def refuse_revision(path: Path, options: HubOptions) -> None:
    """See that no revision is asked of what lies on the disk, which is one and no other.

    Args:
        path: a directory, or a file.
        options: how it is asked for.

    Raises:
        CheckpointError: says where the revision may be.
    """
    revision = options.revision
    if options.pinned or revision is None or revision == "main":
        return
    inside = os.path.join(path, revision) if isinstance(revision, str) else ""
    # Of any text, ``os.path.isdir`` says no where a path would raise.
    if revision not in ("", ".", "..") and os.path.isdir(inside):
        hint = f"It has a folder of that name: give {inside!r} instead."
    else:
        hint = (
            "Leave revision= out, or give the directory of that checkpoint, or the model's id on "
            "the hub."
        )
    raise CheckpointError(
        f"revision={shown(revision)} of {os.fspath(path)!r}: what lies on the disk is one "
        f"revision, and only the hub knows others by name. {hint}"
    )


def find_file(
    source: PathOrId, filename: str, options: HubOptions = DEFAULTS, required: bool = True
) -> Path | None:
    """Path of one file of the source, downloaded if need be.

    Args:
        source: a directory or a hub id.
        filename: which file.
        options: where and how to look.
        required: whether it is an error that there is no such file.

    Returns:
        The path; None when the source has no such file and none is required.

    Raises:
        CheckpointError: the source or a required file is missing, access is refused, the hub
            cannot be reached and the cache does not hold the file, a save was killed half-way, or
            a revision of a directory is asked for.
    """
    directory = local_directory(source)
    check_name(filename, "file")
    if directory is not None:
        refuse_revision(directory, options)
        path = directory / options.subfolder / filename
        if path.is_file():
            return path
        if required:
            check_no_save_was_killed(source, options, filename)
    else:
        options = pin(source, options)
        downloaded = _download(os.fspath(source), filename, options)
        if downloaded is not None:
            return downloaded
    if not required:
        return None
    present = list_files(source, options)
    holds = f" It holds: {', '.join(present)}." if present else ""
    raise CheckpointError(
        f"There is no file {filename!r} in {_describe(source, options)}."
        f"{nearest(filename, present)}{holds}"
    )


def check_no_save_was_killed(source: PathOrId, options: HubOptions, *names: str) -> None:
    """See that no process died in a directory while files of these names took their places.

    Raises:
        CheckpointError: one did; what is there may be of two saves.
    """
    directory = local_directory(source)
    left = None if directory is None else set_aside(directory / options.subfolder, *names)
    if left is not None:
        raise CheckpointError(
            f"A process was killed while it saved into {os.fspath(source)!r}, so the files there "
            f"may be of two saves. Save again. An earlier file is kept as {left.name!r}: with that "
            "and all others of its kind renamed back, everything is as it was before."
        )


def list_files(source: PathOrId, options: HubOptions = DEFAULTS) -> list[str]:
    """Names of the files that the source is known to hold, for messages; may be empty."""
    directory = local_directory(source)
    if directory is None:
        repository = os.fspath(source)
        if network_allowed(options):
            from huggingface_hub import HfApi

            try:
                names = HfApi(token=options.token).list_repo_files(
                    repository, revision=options.revision, repo_type=options.repo_type
                )
            except Exception:  # a better message is no reason for a second failure
                return []
            prefix = f"{options.subfolder}/" if options.subfolder else ""
            return sorted(name[len(prefix) :] for name in names if name.startswith(prefix))
        directory = repository_cache(repository, options) / "snapshots" / (options.revision or "")
    folder = directory / options.subfolder
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _download(repository: str, filename: str, options: HubOptions) -> Path | None:
    """Path of one file at the pinned commit, or None where that commit has no such file.

    Raises:
        CheckpointError: it cannot be had, or the hub's answers cannot be used.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    name = f"{options.subfolder}/{filename}" if options.subfolder else filename
    check_name(name, "file")
    network = network_allowed(options)
    if network and not options.force_download:
        known = try_to_load_from_cache(
            repository,
            name,
            cache_dir=options.cache_dir,
            revision=options.revision,
            repo_type=options.repo_type,
        )
        if known is _CACHED_NO_EXIST:
            return None
        if isinstance(known, str):
            return Path(known)
    etag = _etag(repository, name, options) if network else None
    if network and etag is None:
        return None
    try:
        path = Path(
            hf_hub_download(
                repository,
                name,
                revision=options.revision,
                repo_type=options.repo_type,
                cache_dir=options.cache_dir,
                force_download=options.force_download and network,
                local_files_only=not network,
                token=options.token,
            )
        )
    except EntryNotFoundError as error:
        if network:  # it was there a moment ago
            raise out_of_reach(repository, options.revision, error) from error
        return None
    except Exception as error:  # refused, interrupted, disk full: all end the load
        raise explained(error, repository, options.revision or "main") from error
    if etag is not None:
        check_bytes(path, etag)
    return path


def _etag(repository: str, name: str, options: HubOptions) -> str | None:
    """The ETag of a file at the pinned commit, or None where that commit has no such file.

    huggingface_hub will ask for it again and make paths of the answer, unseen.

    Raises:
        CheckpointError: the hub refuses, cannot be reached, or its answer cannot be used.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    commit = options.revision or "main"
    url = hf_hub_url(repository, name, revision=commit, repo_type=options.repo_type)
    for timeout in (_RESOLVE_TIMEOUT, _LAST_TIMEOUT):
        try:
            found = get_hf_file_metadata(url, token=options.token, timeout=timeout)
        except EntryNotFoundError:
            _remember_absent(repository_cache(repository, options), commit, name)
            return None
        except Exception as error:  # each version of huggingface_hub has other network errors
            if hub_answered(error):
                raise explained(error, repository, commit) from error
            if timeout == _LAST_TIMEOUT:
                raise out_of_reach(repository, commit, error) from error
        else:
            break
    check_commit(found.commit_hash, hub_of(repository))
    return check_etag(found.etag, hub_of(repository))


def hub_of(repository: str) -> str:
    """What an answer came from, for messages."""
    from huggingface_hub import constants

    return f"What answers for {repository!r} at {constants.ENDPOINT}"


def network_allowed(options: HubOptions) -> bool:
    """Whether options and environment allow to ask the hub."""
    from huggingface_hub import constants

    return not (options.local_files_only or constants.HF_HUB_OFFLINE)


def repository_cache(repository: str, options: HubOptions) -> Path:
    """The folder of one model in the hub's cache, which holds ``refs`` and ``snapshots``.

    Raises:
        CheckpointError: it is no possible id.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise CheckpointError(
            f"{shown(repository)} is neither a directory nor a possible hub id "
            f"(they look like 'EleutherAI/pythia-70m'): {error!s:.300}"
        ) from error
    cache = Path(options.cache_dir or constants.HF_HUB_CACHE).expanduser()
    return cache / f"{options.repo_type}s--{repository.replace('/', '--')}"


def _pin_to_cache(
    repository: str, revision: str, cache: Path, options: HubOptions, error: Exception | None
) -> HubOptions:
    """Options for a load from the cache alone, at the commit last seen for ``revision``."""
    reference = cache / "refs" / revision
    if not reference.is_file():
        raise out_of_reach(repository, revision, error) from error
    if error is not None:
        logger.warning(
            "The hub cannot be reached (%s); %s is taken from the cache.", error, repository
        )
    commit = check_commit(reference.read_text().strip(), f"The cache ({str(reference)!r})")
    return dataclasses.replace(options, revision=commit, local_files_only=True, pinned=True)


def _remember(cache: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch or tag names, for loads without network."""
    if is_commit(revision):
        return
    reference = cache / "refs" / revision
    try:
        if reference.is_file() and reference.read_text() == commit:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_text(reference, commit)
    except OSError as error:  # a read-only cache still serves what it holds
        logger.info("Could not write %s: %s", reference, error)


def _remember_absent(cache: Path, commit: str, name: str) -> None:
    """Note in the cache that a commit has no such file, as huggingface_hub does."""
    mark = cache / ".no_exist" / commit / name
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(mark, b"")
    except OSError as error:  # it will be asked for again
        logger.info("Could not write %s: %s", mark, error)


def hub_answered(error: Exception) -> bool:
    """Whether the hub itself refused, as opposed to not being reached or being down."""
    from huggingface_hub.errors import HfHubHTTPError

    response = getattr(error, "response", None)
    return isinstance(error, HfHubHTTPError) and response is not None and response.status_code < 500


def _describe(source: PathOrId, options: HubOptions) -> str:
    where = f"subfolder {options.subfolder!r} of " if options.subfolder else ""
    if local_directory(source) is not None:
        return f"{where}directory {os.fspath(source)!r}"
    cached = "" if network_allowed(options) else " (looking only in the local cache)"
    revision = options.revision or "main"
    return f"{where}hub model {os.fspath(source)!r} at {revision!r}{cached}"


def _branches(repository: str) -> list[str]:
    """Branches and tags on the hub, for messages; may be empty."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().list_repo_refs(repository)
    except Exception:  # a better message is no reason for a second failure
        return []
    return [each.name for each in (*found.branches, *found.tags)]


def out_of_reach(repository: str, revision: str | None, error: Exception | None) -> CheckpointError:
    """What to say of a revision that is neither in the cache nor to be had."""
    if error is None:
        reason = "network use is switched off (local_files_only or HF_HUB_OFFLINE)"
    else:
        reason = f"the hub cannot be reached ({type(error).__name__}: {error})"
    shape = "" if "/" in repository else " Ids on the hub look like 'EleutherAI/pythia-70m'."
    return CheckpointError(
        f"There is no directory {repository!r} here, and of that id on the hub the revision "
        f"{revision or 'main'!r} is not in the local cache, and {reason}."
        f"{nearest_models(repository)}{shape} Give a local directory that is there, or download it "
        "once with a network and then set HF_HUB_OFFLINE=1. What is built in needs no network: "
        "neox_lab.load() is the model, nl.gym.dictionaries() are its dictionaries."
    )


def explained(error: Exception, repository: str, revision: str) -> CheckpointError:
    """The hub's refusal in plain words, with the revisions closest to one that it does not have."""
    from huggingface_hub import errors

    what = f"{repository!r} at revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        text = f"{what} is gated: accept its terms on the hub's page, then pass token=."
    elif isinstance(error, errors.RevisionNotFoundError):
        text = (
            f"The hub has {repository!r}, but no revision (branch, tag, commit) {revision!r}."
            f"{nearest_revisions(revision, _branches(repository))}"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = (
            f"The hub shows no model {repository!r}, and there is no directory of that name: "
            f"check the spelling; for a private model pass token=.{nearest_models(repository)}"
        )
    else:
        text = f"Fetching {what} failed: {type(error).__name__}: {error}"
    return CheckpointError(text)
