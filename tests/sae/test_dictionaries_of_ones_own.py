"""The examples in docstrings of dictionaries made of one's own tensors are run as they stand."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import neox_lab as nl


def example(documented: type) -> str:
    """The code in a docstring: what is indented after a line that ends with ``::``."""
    text = inspect.getdoc(documented)
    assert text
    code = text.partition("::\n\n")[2].partition("\n\nAttributes:")[0]
    return inspect.cleandoc("\n" + code)


@pytest.mark.parametrize("documented", [nl.sae.Dictionary, nl.sae.CrossLayerWeights])
def test_the_example_runs_and_what_it_makes_is_read_again(
    documented: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example(documented), names)
    assert repr(nl.sae.load("mine")) == repr(names["mine"])
    with names["model"].spliced(names["mine"]):  # type: ignore[attr-defined]
        pass
