"""Where the files of a checkpoint go: a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.errors import CheckpointError
from neox_lab.files import write_bytes

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelCard


def upload(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
) -> CommitInfo:
    """Send the files of a folder to the hub in one commit, with a model card if there is none.

    Args:
        folder: what to send.
        repo_id: ``"owner/name"``, or a name in one's own namespace; made if absent.
        message: of the commit.
        description: of the commit.
        private: whether a repository made here is.
        token: access token; None or True for the stored one.
        revision: branch to commit to, made if absent; None for ``main``.
        create_pr: open a pull request instead.
        tags: words to add to the model card.

    Raises:
        CheckpointError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card = _model_card(repo_id, token if isinstance(token, str) else None, tags)
        write_bytes(folder / "README.md", str(card).encode())
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # each version of huggingface_hub has other network errors
        raise CheckpointError(
            f"Uploading to {repo_id!r} failed: {type(error).__name__}: {error}"
        ) from error


def _model_card(repository: str, token: str | None, tags: Sequence[str]) -> ModelCard:
    """The model's card on the hub, or a new one, with ``tags``."""
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.errors import EntryNotFoundError

    try:
        card = ModelCard.load(repository, token=token)
    except EntryNotFoundError:
        header = ModelCardData(library_name="transformers", tags=[]).to_yaml()
        card = ModelCard(f"---\n{header}\n---\n\n# {repository.rpartition('/')[2]}\n")
    known = card.data.tags or []
    card.data.tags = [*known, *(tag for tag in tags if tag not in known)] or None
    return card
