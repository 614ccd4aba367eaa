"""A hub for tests of this folder, asked from within the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub import hf_api as api
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from small_hub import SmallHub


@pytest.fixture
def hub(server: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A small hub that ``nl.load`` asks instead of the real one, with an empty cache."""
    server.down = False
    server.requests.clear()
    server.sent.clear()
    server.repositories.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(api.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, __import__("huggingface_hub.file_download").file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    disable_progress_bars()
    yield server
    enable_progress_bars()
