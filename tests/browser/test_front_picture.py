"""The command that takes the front page's picture still takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
pytestmark = pytest.mark.usefixtures("chromium")


def test_the_front_picture_is_taken(tmp_path: Path) -> None:
    taken = tmp_path / "taken.png"
    command = [sys.executable, str(DOCS / "front_picture.py"), "--out", str(taken)]
    subprocess.run(command, check=True, cwd=DOCS.parent)
    assert taken.stat().st_size < 150_000
    shown = zip(shrunk(DOCS / "explorer.png"), shrunk(taken), strict=True)
    apart = max(abs(ours - theirs) for ours, theirs in shown)
    assert apart < 100, "it shows something else; run python docs/front_picture.py"


def shrunk(path: Path) -> bytes:
    """A picture so small that letters are grey, and fonts of other machines make no difference."""
    return Image.open(path).convert("RGB").resize((60, 50), Image.Resampling.BOX).tobytes()
