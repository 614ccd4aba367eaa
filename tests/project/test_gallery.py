"""The gallery has a picture of every kind of view, and its command draws them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rooms import ROOT

import neox_lab as nl
from neox_lab.results import Result

sys.path.insert(0, str(ROOT / "docs"))

import gallery  # found in docs/

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_every_kind_of_view_is_shown() -> None:
    pages = gallery.shown().values()
    shown = {type(each.view() if isinstance(each, Result) else each) for each in pages}
    public = (getattr(nl.views, name) for name in nl.views.__all__)
    kinds = {each for each in public if isinstance(each, type) and issubclass(each, nl.views.View)}
    assert kinds - shown == {nl.views.View}


def test_the_command_draws_every_block(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "gallery.py"), "--to", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    words = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert {path.stem for path in tmp_path.glob("*.png")} == words.keys()
    for name, said in words.items():
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert picture.std() > 3, f"{name} is empty"
        assert len(said) > 10
