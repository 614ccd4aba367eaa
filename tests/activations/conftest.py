"""Models that the tests of this folder share."""

from __future__ import annotations

from typing import Any

import pytest
from collected_model import build


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def wired(request: pytest.FixtureRequest) -> Any:
    return build(use_parallel_residual=request.param)


@pytest.fixture(scope="module")
def model() -> Any:
    return build()
