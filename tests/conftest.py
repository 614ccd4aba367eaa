"""Fixtures every test may use."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub import hf_api as api
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from hypothesis import HealthCheck, settings
from newer_transformers import (  # noqa: F401  pytest finds its hooks here
    pytest_collection_modifyitems,
    pytest_terminal_summary,
)
from small_hub import SmallHub

# A shell that starts something in the background lets it ignore Ctrl-C, and some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Two cores, shared with the other workers if pytest-xdist has some.
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
# Machines that run tests are shared and slow; how long an example takes is not what is tested.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _gradients_stay_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that switched them off would be no fault of the next one, which fails by it."""
    before = torch.is_grad_enabled()  # some modules are without gradients from end to end
    yield
    after = torch.is_grad_enabled()
    torch.set_grad_enabled(before)
    # What PyTorch itself leaves when it is interrupted (see ``strike_by_clock``) is no fault.
    assert after == before or "interrupts" in request.path.parts, "the test switched gradients off"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of texts, tokenizers and labelled data that stands beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout, which is not there")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models are faster so, above all on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def server() -> Iterator[SmallHub]:
    small_hub = SmallHub()
    thread = threading.Thread(target=small_hub.serve_forever, daemon=True)
    thread.start()
    yield small_hub
    small_hub.shutdown()
    small_hub.server_close()
    thread.join()


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


if os.environ.get("NEOX_LAB_NO_SKIPS"):
    # Where everything is installed a test that skips itself proves nothing: it fails instead.

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report() -> Generator[None, Any, Any]:
        """Make skipped files fail."""
        return _failed_if_skipped((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport() -> Generator[None, Any, Any]:
        """Make skipped tests fail."""
        return _failed_if_skipped((yield))


def _failed_if_skipped(report: Any) -> Any:
    if report.skipped and not hasattr(report, "wasxfail"):  # a gap known by name is no skip
        report.outcome = "failed"
        report.longrepr = f"skipped under NEOX_LAB_NO_SKIPS: {report.longrepr}"
    return report
