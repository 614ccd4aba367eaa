"""The command that takes the front page's picture still takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageStat

DOCS = Path(__file__).resolve().parents[2] / "docs"
pytestmark = pytest.mark.usefixtures("chromium")


def test_the_front_picture_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "taken.png"
    command = [sys.executable, str(DOCS / "front_picture.py"), "--out", str(taken)]
    subprocess.run(command, check=True, cwd=DOCS.parent)
    assert taken.stat().st_size < 150_000
    old, new = Image.open(DOCS / "explorer.png"), Image.open(taken)
    # Fonts of other machines move things a little, so that single colours cannot be compared.
    for before, now in zip(old.size, new.size, strict=True):
        assert abs(now - before) < 0.1 * before
    apart = [abs(before - now) for before, now in zip(mean(old), mean(new), strict=True)]
    assert max(apart) < 8, "it shows something else; run python docs/front_picture.py"


def mean(picture: Image.Image) -> list[float]:
    """The mean of each colour, 0 to 255: of a picture whose views are empty it is near 255."""
    return ImageStat.Stat(picture.convert("RGB")).mean
